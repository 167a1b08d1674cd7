"""What is to be known of BlackJAX's own algorithms, by their names there."""

from typing import Any

from driftbridge.samplers.base import Facts


def _facts(summary: str, source: str, acceptance: float = 0.8, **facts: Any) -> Facts:
    """Facts of an exact algorithm with gradients as it reports them, unless said otherwise."""
    exact = {"gradients": "of its trajectory", "bias": "none", "adjusted": True, "uses_value": True}
    return Facts(summary, source=source, acceptance=acceptance, **exact | facts)


# Algorithms that sample the density they are given. Others of BlackJAX ask for a Gaussian prior
# beside it, for its latent structure or for minibatches.
FACTS = {
    "nuts": _facts("no-U-turn trajectories", "Hoffman & Gelman 2014"),
    "hmc": _facts("leapfrog trajectories of fixed length", "Neal 2011"),
    "mhmc": _facts("leapfrog trajectories, one of their states by weight", "Betancourt 2017"),
    "dhmc": _facts("leapfrog trajectories of random length", "Neal 2011"),
    "dmhmc": _facts("as mhmc, of random length", "Betancourt 2017"),
    "mala": _facts("Langevin proposal", "Roberts & Tweedie 1996", 0.574, gradients="1"),
    "barker": _facts("Barker's proposal", "Livingstone & Zanella 2022", 0.4, gradients="1"),
    "ghmc": _facts(
        "one leapfrog step, persistent velocity and slice", "Neal 2020", 0.9, gradients="1",
        kinetic=True,
    ),
    "mclmc": _facts(
        "microcanonical Langevin dynamics", "Robnik et al. 2023, arXiv 2212.08549", gradients="2",
        bias="not known in closed form", adjusted=False, kinetic=True,
    ),
    "adjusted_mclmc": _facts(
        "microcanonical trajectories, adjusted", "Robnik et al. 2025, arXiv 2503.01707", 0.9
    ),
    "adjusted_mclmc_dynamic": _facts(
        "the same, of random length", "Robnik et al. 2025, arXiv 2503.01707", 0.65
    ),
    "rmh": _facts("any proposal with a Metropolis step", "Hastings 1970", gradients="0"),
    "irmh": _facts("independent proposals", "Hastings 1970", gradients="0"),
    "additive_step_random_walk": _facts("random walk", "Metropolis et al. 1953", gradients="0"),
    "slice_sampling": _facts("slices along random lines", "Neal 2003", gradients="0"),
    "coordinate_slice": _facts("slices along coordinates", "Neal 2003", gradients="0"),
}  # fmt: skip

# Gradients of one integration step where it is not one, for the default integrators.
GRADIENTS = {"mclmc": 2, "adjusted_mclmc": 2, "adjusted_mclmc_dynamic": 2}

"""Samplers as kernels of NumPyro: what works with its own kernels works with ours."""

import pickle
import subprocess
import sys
import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.sharding import PartitionSpec
from numpyro.infer import MCMC, DiscreteGibbs, Gibbs, Predictive
from numpyro.infer.gibbs import discrete_latent_sites

from driftbridge import samplers, targets
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import chain_keys, streams
from driftbridge.samplers.metric import DenseMetric
from driftbridge.samplers.numpyro import SamplerKernel
from tests.laws.samplers import SAMPLERS

# One whose warm-up has the form of the kept draws, and one whose has not.
QUICK = ("JitteredHMC", "UBU")
KERNELS = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SAMPLERS]
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0])
NUM_CHAINS = 4
FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "adapt_state.step_size")


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("school", sigma.shape[0]):
        eta = numpyro.sample("eta", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gaussian(scale):
    numpyro.sample("x", dist.Normal(0.0, scale).to_event(1))


def mixture(weights, means):
    c = numpyro.sample("c", dist.Categorical(weights))
    numpyro.sample("x", dist.Normal(means[c], 0.5))
    numpyro.sample("scale", dist.HalfNormal(1.0))


def mcmc(kernel, num_warmup=30, num_samples=20, chain_method="vectorized", **settings):
    settings = {"num_chains": NUM_CHAINS, "progress_bar": False} | settings
    return MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        chain_method=chain_method,
        **settings,
    )


@cache
def finished(name):
    """A run of the model, which no test changes."""
    run = mcmc(SamplerKernel(schools, SAMPLERS[name]()))
    run.run(jax.random.key(0), SIGMA, Y, extra_fields=FIELDS)
    return run


def extra_fields(name):
    fields = finished(name).get_extra_fields(group_by_chain=True)
    assert set(fields) == {*FIELDS, "diverging"}
    assert all(field.shape == (NUM_CHAINS, 20) for field in fields.values())
    # Chains are tuned each alone, and go on as they were tuned.
    steps = np.asarray(fields["adapt_state.step_size"])
    assert len(np.unique(steps[:, 0])) == NUM_CHAINS
    assert np.all(steps == steps[:, :1])
    assert np.all(fields["num_steps"] >= 1)
    if SAMPLERS[name]().facts.adjusted:
        assert np.all(np.isfinite(fields["energy"]))


def potential_energy_is_numpyros(name):
    run = finished(name)
    sites = {site: run.get_samples(True)[site][:, -1] for site in ("mu", "tau", "eta")}
    z = sites | {"tau": jnp.log(sites["tau"])}
    with jax.numpy_rank_promotion("allow"):
        theirs = jax.vmap(partial(numpyro.infer.util.potential_energy, schools, (SIGMA, Y), {}))(z)
    ours = run.get_extra_fields(True)["potential_energy"][:, -1]
    # Round-off of about ten terms of size 10, and of a logarithm of an exponential.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def summary(name, capsys):
    finished(name).print_summary()
    printed = capsys.readouterr().out
    assert "tau" in printed and "theta" not in printed
    assert "Number of divergences: 0" in printed


def shapes_and_deterministic_sites(name):
    draws = finished(name).get_samples(group_by_chain=True)
    assert draws["theta"].shape == (NUM_CHAINS, 20, 5)
    expected = draws["mu"][..., None] + draws["tau"][..., None] * draws["eta"]
    np.testing.assert_allclose(draws["theta"], expected, rtol=1e-5, atol=1e-5)  # float32


def predictive(name):
    draws = finished(name).get_samples()
    replicated = Predictive(schools, draws)(jax.random.key(1), SIGMA)["y"]
    assert replicated.shape == (NUM_CHAINS * 20, 5)


def arviz_data(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own
        import arviz

        data = arviz.from_numpyro(finished(name), log_likelihood=True)
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    assert data.log_likelihood["y"].shape == (NUM_CHAINS, 20, 5)
    assert {"lp", "n_steps", "acceptance_rate", "step_size", "energy"} <= set(data.sample_stats)


def continuation(name):
    """20 + 20 draws are the 40 of one run, bit for bit, also by a run that was pickled between."""
    kernel = SamplerKernel(gaussian, SAMPLERS[name]())
    scale = jnp.array([1.0, 3.0])
    whole, parts = mcmc(kernel, num_samples=40), mcmc(kernel)
    whole.run(jax.random.key(2), scale)
    parts.run(jax.random.key(2), scale)
    first = parts.get_samples(True)["x"]
    parts = pickle.loads(pickle.dumps(parts))
    parts.post_warmup_state = parts.last_state
    parts.run(parts.post_warmup_state.rng_key, scale)
    joined = jnp.concatenate([first, parts.get_samples(True)["x"]], axis=1)
    np.testing.assert_array_equal(joined, whole.get_samples(True)["x"])


def new_data(name):
    """With `jit_model_args` the arguments of the present run count, not those of the first."""
    kernel = SamplerKernel(gaussian, SAMPLERS[name]())
    run = mcmc(kernel, jit_model_args=True)
    run.run(jax.random.key(3), jnp.array([1.0, 3.0]))
    run.run(jax.random.key(3), jnp.array([1e-2, 1.0]))
    fresh = mcmc(SamplerKernel(gaussian, SAMPLERS[name]()))
    fresh.run(jax.random.key(3), jnp.array([1e-2, 1.0]))
    # Data are constants of one program and arguments of the other: round-off of 50 transitions.
    np.testing.assert_allclose(
        run.get_samples()["x"], fresh.get_samples()["x"], rtol=1e-3, atol=1e-5
    )


def potential_of_trees(name):
    """A potential of an array and of a dict of the same numbers: the same draws."""
    starts = jnp.linspace(-1.0, 1.0, 3 * NUM_CHAINS).reshape(NUM_CHAINS, 3)

    def of_array(z):
        return jnp.sum(z**2) / 2

    def of_dict(z):
        return (z["a"] ** 2 + jnp.sum(z["b"] ** 2)) / 2

    alone, together = (mcmc(SamplerKernel(None, SAMPLERS[name](), potential_fn=fn))
                       for fn in (of_array, of_dict))
    alone.run(jax.random.key(4), init_params=starts)
    together.run(
        jax.random.key(4), init_params={"a": starts[:, 0], "b": starts[:, 1:]},
        extra_fields=("z.a", "potential_energy"),
    )
    draws = together.get_samples()
    joined = jnp.concatenate([draws["a"][:, None], draws["b"]], axis=1)
    # Sums in another order, over 50 transitions of a contraction.
    np.testing.assert_allclose(alone.get_samples(), joined, rtol=1e-4, atol=1e-5)


def single_precision_under_x64(name):
    with jax.enable_x64(True):
        starts = {"x": jnp.zeros((NUM_CHAINS, 2), jnp.float32)}
        run = mcmc(SamplerKernel(gaussian, SAMPLERS[name]()))
        run.run(jax.random.key(5), jnp.array([1.0, 3.0]), init_params=starts)
        assert run.last_state.z["x"].dtype == run.get_samples()["x"].dtype == jnp.float32
        assert run.last_state.potential_energy.dtype == jnp.float32


def block_of_gibbs(name):
    """A discrete site next to ours: sites of every block move, and none is lost."""
    kernel = Gibbs(
        [
            (DiscreteGibbs(mixture), discrete_latent_sites),
            (SamplerKernel(mixture, SAMPLERS[name]()), None),
        ]
    )
    run = mcmc(kernel, chain_method=jax.vmap)
    arguments = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.0])
    run.run(jax.random.key(6), *arguments, extra_fields=("block_states.1.diverging",))
    draws = run.get_samples(group_by_chain=True)
    assert np.all(np.ptp(draws["x"], axis=1) > 0) and np.all(draws["scale"] > 0)
    assert not run.get_extra_fields()["block_states.1.diverging"].any()


ITEMS = [
    extra_fields,
    potential_energy_is_numpyros,
    summary,
    shapes_and_deterministic_sites,
    predictive,
    arviz_data,
    continuation,
    new_data,
    potential_of_trees,
    single_precision_under_x64,
    block_of_gibbs,
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.__name__)
@pytest.mark.parametrize("name", KERNELS)
def test_just_works(name, item, capsys):
    item(name, capsys) if item is summary else item(name)

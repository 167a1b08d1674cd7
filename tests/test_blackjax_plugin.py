"""BlackJAX's machinery around our samplers, and its samplers in our driver."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers import MALA, AdjustedKinetic, JitteredHMC
from driftbridge.samplers.blackjax import as_blackjax

MEAN, VARIANCE = np.array([1.0, 1.0, 0.0]), np.array([4.0, 4.0, 0.25])


@pytest.fixture(autouse=True)
def permitting_rank_promotion():
    """BlackJAX promotes ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def log_density(p):
    """A Gaussian of a tree: moments `MEAN` and `VARIANCE`."""
    return -jnp.sum((p["a"] - 1) ** 2) / 8 - 2 * p["b"] ** 2


def start():
    return {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros((), jnp.float32)}


def flat(position):
    return np.column_stack([np.asarray(position["a"]), np.asarray(position["b"])])


def draws_of(algorithm, num_steps, state=None):
    initial = {"initial_position": start()} if state is None else {"initial_state": state}
    _, (positions, infos) = blackjax.util.run_inference_algorithm(
        jax.random.key(3), algorithm, num_steps, transform=lambda s, i: (s.position, i), **initial
    )
    return flat(positions), infos


def require_moments(draws):
    """Means and variances within five standard errors, taken from 40 batches."""
    for values, truth in ((draws, MEAN), ((draws - MEAN) ** 2, VARIANCE)):
        batches = np.mean(np.reshape(values, (40, -1, 3)), axis=1)
        error = np.std(batches, axis=0, ddof=1) / np.sqrt(40)
        # Student's t of 39 degrees, six tests in all: a false alarm in 1e4 needs 4.9.
        assert np.all(np.abs(np.mean(batches, axis=0) - truth) < 5.5 * error)


@pytest.mark.parametrize(
    "sampler",
    [MALA(0.15), JitteredHMC(0.3, 1.5), AdjustedKinetic(0.4)],
    ids=lambda s: type(s).__name__,
)
def test_moments_in_the_loop_of_blackjax(sampler):
    draws, infos = draws_of(as_blackjax(sampler)(log_density), 20_000)
    require_moments(draws[800:])
    assert draws.dtype == np.float32
    assert 0.6 < np.mean(infos.acceptance_rate) <= 1
    assert not np.any(infos.is_divergent)
    assert np.all(infos.num_gradients >= 1)

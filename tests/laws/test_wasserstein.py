"""Empirical W2 between chains and exact draws, by exact transport, against its floor."""

import jax
import numpy as np
import pytest

from driftbridge.transport import wasserstein
from tests.laws.samplers import SAMPLERS
from tests.laws.targets import Quadratic

CHAINS, REPLICATES = 250, 12


@pytest.fixture(scope="module")
def floor():
    """Mean and standard deviation of W2 between two independent exact clouds."""
    z = np.random.default_rng(0).standard_normal((2, REPLICATES, CHAINS, 2))
    distances = [wasserstein(x, y) for x, y in zip(*z, strict=True)]
    return np.mean(distances), np.std(distances, ddof=1)


def cloud(name, step_size, steps):
    """Positions after some steps of independent chains from exact positions."""
    sampler, target = SAMPLERS[name](step_size=step_size), Quadratic(1.0, 2)

    def chain(key):
        first, rest = jax.random.split(key)
        start = jax.random.normal(first, (2,))

        def step(state, key):
            return sampler.step(target, state, sampler.noise(key, start))[0], None

        keys = jax.random.split(rest, steps)
        return jax.lax.scan(step, sampler.init(target, start), keys)[0].position

    return np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(2), CHAINS)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RandomizedMidpoint", "UBU", "BAOAB", "MALA"])
def test_chains_are_as_close_as_independent_draws(name, floor):
    # Biases at h = 0.2 are below 0.007 in the variance, hence below 0.005 in W2, beneath the
    # floor's own fluctuation. Five sigma of a nearly Gaussian statistic.
    mean, spread = floor
    exact = np.random.default_rng(1).standard_normal((CHAINS, 2))
    assert wasserstein(cloud(name, 0.2, 20), exact) < mean + 5 * spread


@pytest.mark.slow
def test_a_large_bias_is_seen(floor):
    # LMC at h = 1 has variance 2: W2 = sqrt(2) (sqrt(2) - 1) = 0.586 between the laws. By the
    # triangle inequality the clouds are that far apart less the distance of each from its law,
    # which is below the floor.
    mean, spread = floor
    exact = np.random.default_rng(1).standard_normal((CHAINS, 2))
    distance = wasserstein(cloud("LMC", 1.0, 20), exact)
    assert distance > mean + 5 * spread
    assert abs(distance - 0.586) < mean + 5 * spread

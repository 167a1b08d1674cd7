"""The discretisation bias as a number: coupled chains, and what `estimate_bias` makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers import (
    ABOBA,
    BAOAB,
    BUB,
    KLMC,
    LMC,
    OBABO,
    UBU,
    DiagonalMetric,
    PoissonMidpoint,
    Preconditioned,
    RandomizedMidpoint,
    RandomizedMidpointKinetic,
    Splitting,
)
from driftbridge.samplers.base import with_step_size
from driftbridge.samplers.coupled import begin, check_coupled, halvings, nested_noise
from driftbridge.samplers.noise import coarse_uniform
from driftbridge.targets.base import Target
from tests.laws.linear_probe import split_noise

STEP = 0.3

COUPLED = {
    "LMC": LMC(STEP),
    "RandomizedMidpoint": RandomizedMidpoint(STEP),
    "KLMC": KLMC(STEP, 1.5, 2.0),
    "RandomizedMidpointKinetic": RandomizedMidpointKinetic(STEP, 1.5, 2.0),
    "OBABO": OBABO(STEP, 1.5, 2.0),
    "BAOAB": BAOAB(STEP, 1.5, 2.0),
    "ABOBA": ABOBA(STEP, 1.5, 2.0),
    "UBU": UBU(STEP, 1.5, 2.0),
    "BUB": BUB(STEP, 1.5, 2.0),
    "BUBUB": Splitting("BUBUB", STEP, 1.5, 2.0),
    "BUBUBUB": Splitting("BUBUBUB", STEP, 1.5, 2.0),
    "BOAOB": Splitting("BOAOB", STEP, 1.5, 2.0),
    "Preconditioned": Preconditioned(UBU(STEP, 1.5, 2.0), DiagonalMetric(jnp.ones(1) * 3)),
}
# Methods whose noise is the path of the whole free flow: without force every step is exact.
EXACT = [
    "LMC", "RandomizedMidpoint", "KLMC", "RandomizedMidpointKinetic", "UBU", "BUB", "BUBUB",
    "BUBUBUB", "Preconditioned",
]  # fmt: skip


class Flat(Target):
    """No force."""

    dim: int = 1

    def log_density(self, x):
        return 0 * jnp.sum(x)


def jacobian_of_double_step(sampler, first, second):
    """Derivative of the normals of the double step by those of the two steps."""
    given, join = split_noise((first, second), 1)
    return jax.jacobian(lambda z: split_noise(sampler.coarsen(*join(z)), 1)[0])(given)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", COUPLED)
def test_double_steps_have_the_law_of_steps(name):
    sampler = COUPLED[name]
    for seed in range(4):  # the random times are early and late
        first, second = (sampler.noise(jax.random.key(2 * seed + i), jnp.zeros(1)) for i in (0, 1))
        jacobian = jacobian_of_double_step(sampler, first, second)
        # A linear map with orthonormal rows makes independent standard normals of such. Round-off
        # of the free flow's coefficients, which cancel to about 1e-12 of theirs.
        np.testing.assert_allclose(jacobian @ jacobian.T, np.eye(len(jacobian)), atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EXACT)
def test_without_force_a_double_step_is_two_steps(name):
    sampler, target = COUPLED[name], Flat()
    for seed in range(4):
        noises = [sampler.noise(jax.random.key(2 * seed + i), jnp.zeros(1)) for i in (0, 1)]
        state = begin(target, sampler, jnp.asarray([0.4]), jnp.asarray([-0.7]))
        two = state
        for noise in noises:
            two = sampler.step(target, two, noise)[0]
        double = with_step_size(sampler, jnp.asarray(2 * STEP))
        one = double.step(target, state, sampler.coarsen(*noises))[0]
        np.testing.assert_allclose(one.position, two.position, atol=1e-12)
        if "velocity" in one._fields:
            np.testing.assert_allclose(one.velocity, two.velocity, atol=1e-12)


def test_a_random_time_of_a_double_step_is_uniform():
    first, second = jax.random.uniform(jax.random.key(0), (2, 20_000))
    is_early, uniform = jax.vmap(coarse_uniform)(first, second)
    # Kolmogorov's statistic passes 1.95 / sqrt(n) once in a thousand.
    assert kstest(uniform, "uniform").statistic < 1.95 / np.sqrt(20_000)
    assert kstest(first[is_early], "uniform").statistic < 1.95 / np.sqrt(is_early.sum())
    assert kstest(second[is_early], "uniform").statistic < 1.95 / np.sqrt(is_early.sum())


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (PoissonMidpoint(0.1), "PoissonMidpoint has no coarsen"),
        (Splitting("OBAOABO"), "share the noise"),
        (Splitting("UUBU"), "share the noise"),
    ],
)
def test_methods_without_one_path_say_so(sampler, message):
    with pytest.raises(TypeError, match=message):
        check_coupled(sampler)


@pytest.mark.parametrize("name", COUPLED)
def test_noise_at_three_steps_keeps_its_dtype(name, x64):
    samplers = halvings(cast_floating(COUPLED[name], jnp.float32), 3)
    like = jnp.zeros(2, jnp.float32)
    noises = nested_noise(samplers, jax.random.key(0), jnp.int32(3), like)
    assert [len(level) for level in noises] == [1, 2, 4]
    form = jax.eval_shape(samplers[0].noise, jax.random.key(0), like)
    for noise in (noise for level in noises for noise in level):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), noise) == jax.tree.map(
            lambda a: (a.shape, a.dtype), form
        )

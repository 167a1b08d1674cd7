"""Adjusted kernels leave their target exactly invariant, whatever the step size."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.base import innermost
from driftbridge.samplers.hmc import HMC, JitteredHMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.base import Target
from tests.laws.targets import LogCosh

# 5.5 sigma: a false alarm has probability 4e-8 for one comparison, and below 1e-4 for the 2000 of
# this file; p-values of the Kolmogorov-Smirnov test are held to the same level.
SIGMAS, P_VALUE = 5.5, 4e-8
CHAINS = 40_000  # 5.5 sigma are 0.03 in a mean and 0.04 in a variance
TIMES = (1, 3, 10)


class Correlated(Target):
    """A Gaussian with standard deviations 1, 2 and 1/2, and one correlation 0.8."""

    dim: int = eqx.field(static=True, default=3)

    def log_density(self, x):
        return -jnp.sum(self.standard(x) ** 2) / 2

    def standard(self, x):
        z0, z1, z2 = x[0], x[1] / 2 - 1, 2 * x[2]
        return jnp.stack([z0, (z1 - 0.8 * z0) / 0.6, z2])

    def from_normal(self, z):
        return np.stack([z[:, 0], 2 * (0.8 * z[:, 0] + 0.6 * z[:, 1] + 1), z[:, 2] / 2], axis=1)


class Banana(Target):
    """`x0 ~ N(0, 1)`, `x1 | x0 ~ N(x0^2 / 2, 1/4)`."""

    dim: int = eqx.field(static=True, default=2)

    def log_density(self, x):
        return -jnp.sum(self.standard(x) ** 2) / 2

    def standard(self, x):
        return jnp.stack([x[0], 2 * (x[1] - x[0] ** 2 / 2)])

    def from_normal(self, z):
        return np.stack([z[:, 0], z[:, 0] ** 2 / 2 + z[:, 1] / 2], axis=1)


# The monotone map to a standard normal, tabulated: 4001 points keep its error below 1e-5. It is
# integrated from the left, where the tail has all its digits, and mirrored.
GRID = np.linspace(-8, 8, 4001)
LEFT_DENSITY = (np.exp(-(GRID**2) / 2) / np.cosh(GRID) ** 2)[:2001]
LEFT_MASS = np.cumsum(LEFT_DENSITY) - LEFT_DENSITY / 2
LEFT = stats.norm.ppf(LEFT_MASS / LEFT_MASS[-1] / 2)
NORMAL = np.concatenate([LEFT, -LEFT[-2::-1]])


class ExactLogCosh(LogCosh):
    """`LogCosh` in one dimension, with its map to a standard normal."""

    def standard(self, x):
        return jnp.interp(x, jnp.asarray(GRID, x.dtype), jnp.asarray(NORMAL, x.dtype))

    def from_normal(self, z):
        return np.interp(z, NORMAL, GRID)


TARGETS = {"banana": Banana(), "correlated": Correlated(), "logcosh": ExactLogCosh(1)}

# A moderate and a large step: acceptance from 0.98 down to 0.4 on the three targets.
KERNELS = {
    "MALA": (MALA(0.1), MALA(0.25)),
    "HMC": (HMC(0.35, 1.0), HMC(0.65, 1.9)),
    "JitteredHMC": (JitteredHMC(0.35, 1.0), JitteredHMC(0.6, 1.2, 1.0)),
    "MALT": (MALT(0.4, 1.0, 3), MALT(0.65, 0.3, 3)),
    "AdjustedKinetic": (AdjustedKinetic(0.35, 1.0), AdjustedKinetic(0.5, 0.5, 1.8)),
}


@eqx.filter_jit
def run(target, sampler, positions, key):
    """Standardised positions, velocities, and acceptance rates of ten steps of every chain."""

    def chain(position, key):
        def step(state, t):
            noise = sampler.noise(jax.random.fold_in(key, t), position)
            state, info = sampler.at_step(t).step(target, state, noise)
            velocity = state.velocity if sampler.facts.kinetic else jnp.zeros(0)
            return state, (target.standard(state.position), velocity, info.acceptance_rate)

        state = sampler.init(target, position)
        return jax.lax.scan(step, state, jnp.arange(1, TIMES[-1] + 1))[1]

    return jax.vmap(chain)(positions, jax.random.split(key, len(positions)))


def check(target, sampler, seed=0):
    """Largest z-score and least p-value after 1, 3 and 10 steps from exact positions."""
    normal = np.random.default_rng(seed).normal(size=(CHAINS, target.dim))
    positions = jnp.asarray(target.from_normal(normal), jnp.float32)
    numbers = cast_floating(sampler, jnp.float32)  # one program for both step sizes
    position, velocity, rate = run(target, numbers, positions, jax.random.key(seed))
    u = innermost(sampler).u if sampler.facts.kinetic else 1.0
    z = np.concatenate([np.asarray(position), np.asarray(velocity) / np.sqrt(u)], axis=2)
    scores, p_values = [], []
    for t in TIMES:
        draws = z[:, t - 1].astype(float)
        identity = np.eye(draws.shape[1])
        # Variance 1 of a product of two independent normals, 2 of a square.
        error = np.sqrt((1 + identity) / CHAINS)
        scores.append(np.max(np.abs(draws.mean(0))) * np.sqrt(CHAINS))
        scores.append(np.max(np.abs(draws.T @ draws / CHAINS - identity) / error))
        p_values += [stats.kstest(column, "norm").pvalue for column in draws.T]
    # A kernel that accepts or rejects everything shows nothing.
    assert 0.35 < np.mean(rate) < 0.995
    return max(scores), min(p_values)


TARGETS_BY_COST = ["banana", *(pytest.param(t, marks=pytest.mark.slow) for t in list(TARGETS)[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS_BY_COST)
@pytest.mark.parametrize("kernel", KERNELS)
def test_steps_from_exact_positions_keep_the_law(kernel, target):
    # An unset velocity included: started at zero, the variance is 0.63 after three steps.
    for sampler in KERNELS[kernel]:
        score, p_value = check(TARGETS[target], sampler)
        assert score < SIGMAS
        assert p_value > P_VALUE


QUICK_PAIRS = [("AdjustedKinetic", "dense"), ("HMC", "diagonal")]
SLOW_PAIRS = sorted({(k, m) for k in KERNELS for m in ("dense", "diagonal")} - {*QUICK_PAIRS})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "metric"),
    [*QUICK_PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW_PAIRS)],
)
def test_preconditioned_steps_keep_the_law(kernel, metric):
    target = TARGETS["banana"]
    metric = {  # not the target's own
        "diagonal": DiagonalMetric(jnp.asarray([0.8, 1.2])),
        "dense": DenseMetric.from_covariance(jnp.asarray([[1.0, 0.3], [0.3, 0.8]])),
    }[metric]
    score, p_value = check(target, Preconditioned(KERNELS[kernel][1], metric))
    assert score < SIGMAS
    assert p_value > P_VALUE


class AlwaysAccepts(MALA):
    """The proposal without its correction."""

    def step(self, target, state, noise):
        return super().step(target, state, noise._replace(uniform=jnp.zeros_like(noise.uniform)))


class StartsAtRest(AdjustedKinetic):
    """Takes an unset velocity for zero."""

    def init(self, target, position):
        return super().init(target, position)._replace(velocity=jnp.zeros_like(position))


@pytest.mark.slow
@pytest.mark.parametrize("broken", [AlwaysAccepts(0.1), StartsAtRest(0.35, 1.0)])
def test_a_broken_kernel_is_seen(broken):
    # Twice the threshold: the test has power to spare.
    score, p_value = check(TARGETS["banana"], broken)
    assert score > 2 * SIGMAS
    assert p_value < P_VALUE

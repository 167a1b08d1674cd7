"""Simulation-based calibration of adjusted kernels: ranks of the truth are uniform.

A parameter is drawn from the prior and data from the model, so that the parameter is an exact draw
from its posterior. A stationary chain runs through it, from a random one of its `L + 1` times into
the future and, the kernel being reversible, by the same kernel into the past. Then all `L + 1`
positions are exchangeable with respect to time shifts and the truth's rank among them, ties broken
at random, is exactly uniform: no warm-up, no thinning, correlated draws or not.

Talts, Betancourt, Simpson, Vehtari and Gelman (2018); the two-sided chain is the serial test of
Besag and Clifford (1989).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy import stats

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.hmc import HMC, JitteredHMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.metric import DenseMetric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.base import Target

# Replications that are simulated at once.
BATCH = 4000
# Times of the chain beside the truth: 16 possible ranks.
LENGTH = 15
DESIGN = np.random.default_rng(5).normal(size=(10, 2)) * [1.0, 2.0] + [0.5, 0.0]

# Chi-squared p-values below this are alarms: three quantities for each of six kernels make a false
# alarm in 2e-5 of all runs of this file.
ALARM = 1e-6


class Logistic(Target):
    """Ten binary outcomes, two coefficients with standard normal priors."""

    y: Float[Array, " n"]
    dim: int = eqx.field(static=True, default=2)

    def log_likelihood(self, x):
        signed = (2 * self.y - 1) * (jnp.asarray(DESIGN, x.dtype) @ x)
        return jnp.sum(jax.nn.log_sigmoid(signed))

    def log_density(self, x):
        return self.log_likelihood(x) - jnp.sum(x**2) / 2


def two_sided(sampler, target, position, time, key):
    """Positions after and before the truth at `time`, each `LENGTH` of them, the nearest first."""

    def steps(state, key, numbers):
        def step(state, t):
            # The transition number that leads from time t to t + 1, whichever way it is walked.
            noise = sampler.noise(jax.random.fold_in(key, t), position)
            state, _ = sampler.at_step(t).step(target, state, noise)
            return state, state.position

        return jax.lax.scan(step, state, numbers)[1]

    past, future = jax.random.split(key)
    after = time + jnp.arange(LENGTH)
    before = time - 1 - jnp.arange(LENGTH)
    start = sampler.init(target, position)
    if not sampler.facts.kinetic:
        return steps(start, future, after), steps(start, past, before)
    # The reverse of "refresh, then move" is "turn, move, then refresh": a fresh start, whose first
    # step moves with the velocity that it draws. The future has that velocity turned.
    turned = sampler.noise(jax.random.fold_in(past, before[0]), position).normal
    forward = start._replace(velocity=-turned)
    return steps(forward, future, after), steps(start, past, before)


@eqx.filter_jit
def simulate(sampler, key, replications):
    """Truth, future and past of every replication, each with its likelihood, and its time."""

    def one(key):
        prior, data, place, chain = jax.random.split(key, 4)
        x = jax.random.normal(prior, (2,))
        rate = jax.nn.sigmoid(jnp.asarray(DESIGN, x.dtype) @ x)
        target = Logistic(jax.random.bernoulli(data, rate).astype(x.dtype))
        time = jax.random.randint(place, (), 0, LENGTH + 1)
        future, past = two_sided(sampler, target, x, time, chain)
        at = jax.vmap(lambda x: jnp.append(x, target.log_likelihood(x)))
        return at(x[None])[0], at(future), at(past), time

    return jax.vmap(one)(jax.random.split(key, replications))


def ranks_of(sampler, seed):
    """Ranks of the truth in `BATCH` replications: of each coefficient, and of the likelihood."""
    numbers = cast_floating(sampler, jnp.float32)
    truth, future, past, time = map(np.asarray, simulate(numbers, jax.random.key(seed), BATCH))
    truth, time = truth[:, None], time[:, None, None]
    distance = np.arange(LENGTH)[None, :, None]
    chains = ((past, distance < time), (future, distance < LENGTH - time))
    below = sum(np.sum((chain < truth) & used, axis=1) for chain, used in chains)
    equal = sum(np.sum((chain == truth) & used, axis=1) for chain, used in chains)
    return below + np.random.default_rng(seed).integers(equal + 1)


def p_values(sampler, batches):
    """Chi-squared p-value of the ranks of each coefficient and of the likelihood."""
    ranks = np.concatenate([ranks_of(sampler, seed) for seed in range(batches)])
    return np.array([stats.chisquare(np.bincount(r, minlength=LENGTH + 1)).pvalue for r in ranks.T])


# At large steps: acceptance between 0.5 and 0.9.
KERNELS = {
    "MALA": MALA(0.5),
    "HMC": HMC(0.8, 1.6),
    "JitteredHMC": JitteredHMC(0.8, 1.6),
    "MALT": MALT(0.8, 1.0, 3),
    "AdjustedKinetic": AdjustedKinetic(0.7, 1.0),
    "Preconditioned": Preconditioned(
        MALA(0.6), DenseMetric.from_covariance(jnp.asarray([[0.6, 0.1], [0.1, 0.4]]))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_ranks_are_uniform(name):
    assert np.min(p_values(KERNELS[name], 50)) > ALARM


class AlwaysAccepts(MALA):
    """The proposal without its correction."""

    def step(self, target, state, noise):
        return super().step(target, state, noise._replace(uniform=jnp.zeros_like(noise.uniform)))


class NeverTurns(AdjustedKinetic):
    """Keeps the velocity on rejection."""

    def step(self, target, state, noise):
        state, info = super().step(target, state, noise)
        velocity = jnp.where(noise.uniform < info.acceptance_rate, 1.0, -1.0) * state.velocity
        return state._replace(velocity=velocity), info


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "batches"), [(AlwaysAccepts(0.5), 1), (NeverTurns(0.7, 1.0), 10)]
)
def test_a_broken_kernel_is_seen(broken, batches):
    assert np.min(p_values(broken, batches)) < ALARM / 1000

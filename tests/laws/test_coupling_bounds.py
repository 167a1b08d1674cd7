"""Coupled chains keep their laws, and what they bound is above the exact distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.samplers.coupling_bounds import coupling_bounds
from driftbridge.samplers.couplings import (
    CommonVelocity,
    Reflection,
    Synchronous,
    coupling_for,
    reflect,
)
from driftbridge.samplers.hmc import HMC, JitteredHMC, JitteredStepHMC
from driftbridge.samplers.kinetic import KLMC
from driftbridge.samplers.langevin import LMC
from driftbridge.samplers.local_scale import LocalScaleHMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.metric import DiagonalMetric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.samplers.splitting import OBABO, UBU
from driftbridge.targets import DiagonalGaussian
from tests.laws.targets import Quadratic

NORMAL = Quadratic(1.0)
# Kolmogorov-Smirnov p-values below this are alarms; some twenty of them are looked at here.
ALARM = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 4.0])
def test_reflection_is_a_maximal_coupling_of_normals(x64, size):
    n, dim = 100_000, 3
    shift = size * jnp.asarray([0.6, 0.0, -0.8])
    keys = jax.random.split(jax.random.key(0), 2)
    normals, uniforms = jax.random.normal(keys[0], (n, dim)), jax.random.uniform(keys[1], (n,))
    other, coincide = jax.vmap(reflect, (0, None, 0))(normals, shift, uniforms)
    other, coincide = np.asarray(other), np.asarray(coincide)
    # Mean and covariance of n normals: errors of 1 / sqrt(n), and sqrt(2 / n) on the diagonal.
    assert np.max(np.abs(other.mean(0))) < 5 / np.sqrt(n)
    assert np.max(np.abs(np.cov(other.T) - np.eye(dim))) < 5 * np.sqrt(2 / n)
    along = other @ np.array([0.6, 0.0, -0.8])
    assert stats.kstest(along, "norm").pvalue > ALARM
    # No coupling of two unit normals a distance `size` apart is equal more often.
    largest = 2 * stats.norm.cdf(-size / 2)
    error = np.sqrt(largest * (1 - largest) / n)
    assert abs(coincide.mean() - largest) <= 5 * error
    if size == 0:
        np.testing.assert_array_equal(other, normals)


KERNELS = {
    "MALA": (MALA(0.6), Reflection()),
    "preconditioned MALA": (Preconditioned(MALA(0.4), DiagonalMetric(jnp.full(1, 1.3))), None),
    "HMC": (HMC(0.7, 1.4), CommonVelocity(0.5)),
    "JitteredHMC": (JitteredHMC(0.7, 1.4), CommonVelocity(0.5)),
    "JitteredStepHMC": (JitteredStepHMC(0.7, 1.4), CommonVelocity(0.5)),
    "preconditioned HMC": (
        Preconditioned(HMC(0.7, 1.0), DiagonalMetric(jnp.full(1, 0.8))),
        CommonVelocity(0.5),
    ),
}


def pairs_after(sampler, coupling, x, y, steps, seed=0):
    """Positions of many pairs, shape `(steps, pairs)` each."""
    sampler, coupling = cast_floating((sampler, coupling), x.dtype)

    @jax.jit
    def run(x, y, keys):
        def one(x, y, key):
            def step(pair, key):
                noise = coupling.noise(sampler, key, pair[0].position)
                pair = coupling.step(NORMAL, sampler, *pair, noise)
                return pair, (pair[0].position[0], pair[1].position[0])

            start = (sampler.init(NORMAL, x), sampler.init(NORMAL, y))
            return jax.lax.scan(step, start, jax.random.split(key, steps))[1]

        return jax.vmap(one, out_axes=1)(x, y, keys)

    return map(np.asarray, run(x, y, jax.random.split(jax.random.key(seed), len(x))))


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_each_chain_of_a_pair_keeps_the_target(name, x64):
    # The chain behind is stationary, and takes its noise from one that is not.
    sampler, coupling = KERNELS[name]
    coupling = coupling or coupling_for(sampler)
    n = 20_000
    y = jax.random.normal(jax.random.key(1), (n, 1))
    xs, ys = pairs_after(sampler, coupling, jnp.full((n, 1), 1.5), y, 4)
    for behind in ys:
        assert stats.kstest(behind, "norm").pvalue > ALARM
    # The other way round: the chain ahead is stationary beside one that is not.
    ahead, _ = pairs_after(sampler, coupling, y, jnp.full((n, 1), 1.5), 4, seed=2)
    assert min(stats.kstest(row, "norm").pvalue for row in ahead) > ALARM
    assert stats.kstest(xs[0], "norm").pvalue < ALARM  # one step from 1.5 is seen
    together = xs == ys
    assert 0.2 < together[-1].mean() < 1
    # Bit for bit, from the step on which they met.
    assert np.all(together[1:] >= together[:-1])


def test_proposals_that_always_coincide_are_seen(x64):
    class AlwaysCoincide(Reflection):
        """Gives the other chain the shifted normal whatever its density."""

        def noise(self, sampler, key, like):
            return super().noise(sampler, key, like)._replace(uniform=jnp.zeros((), like.dtype))

    n = 20_000
    y = jax.random.normal(jax.random.key(1), (n, 1))
    _, ys = pairs_after(MALA(0.6), AlwaysCoincide(), jnp.full((n, 1), 1.5), y, 1)
    assert stats.kstest(ys[0], "norm").pvalue < ALARM / 1000


@pytest.mark.slow
def test_the_chain_ahead_moves_by_the_kernel_alone(x64):
    # Exact equality but for the order in which two programs round.
    x, y = jnp.linspace(-2, 2, 50)[:, None], jnp.linspace(3, -3, 50)[:, None]
    sampler, coupling = cast_floating((MALA(0.6), Reflection()), jnp.float64)
    ahead, _ = pairs_after(sampler, coupling, x, y, 3)

    def alone(x, key):
        def step(state, key):
            noise = coupling.noise(sampler, key, x).kernel
            state, _ = sampler.step(NORMAL, state, noise)
            return state, state.position[0]

        return jax.lax.scan(step, sampler.init(NORMAL, x), jax.random.split(key, 3))[1]

    keys = jax.random.split(jax.random.key(0), 50)
    np.testing.assert_allclose(ahead, jax.vmap(alone, out_axes=1)(x, keys), rtol=1e-12)


START, STEP = 4.0, 0.2


def langevin_law(steps):
    """Mean and sd of LMC from START at each step; sd of its stationary law (an AR(1) process)."""
    a = 1 - STEP
    stationary = np.sqrt(2 * STEP / (1 - a**2))
    return START * a**steps, stationary * np.sqrt(1 - a ** (2 * steps)), stationary


def exact_distances(steps):
    """W1, W2 and total variation between the two Gaussians, the first two by quantiles."""
    mean, sd, stationary = langevin_law(steps)
    w2 = np.sqrt(mean**2 + (sd - stationary) ** 2)
    normal = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    w1 = np.array(
        [np.mean(np.abs(m + (s - stationary) * normal)) for m, s in zip(mean, sd, strict=True)]
    )
    x = np.linspace(-8, 8, 40_001)
    gaps = [
        np.abs(stats.norm.pdf(x, m, s) - stats.norm.pdf(x, 0, stationary))
        for m, s in zip(mean, sd, strict=True)
    ]
    return w1, w2, np.array([np.sum(g) * (x[1] - x[0]) / 2 for g in gaps])


def test_synchronous_bounds_are_above_the_exact_distance_and_close(x64):
    found = coupling_bounds(NORMAL, LMC(STEP), init=np.array([START]), lag=30, num_pairs=200)
    t = np.arange(1, 60)
    w1, w2, _ = exact_distances(t)
    for bound, error, exact in ((found.w1, found.errors.w1, w1), (found.w2, found.errors.w2, w2)):
        assert np.all(bound[t] + 5 * error[t] >= exact)
        assert np.all(bound[t] <= 5 * exact)
    assert found.tv is None
    # Distances shrink by 1 - h a step, exactly, and so do the bounds.
    np.testing.assert_allclose(found.w2[1:100] / found.w2[:99], 1 - STEP, rtol=1e-6)


def test_a_short_run_extrapolates_its_tail(x64):
    run = {"init": np.array([START]), "lag": 5, "num_pairs": 50}
    short = coupling_bounds(NORMAL, LMC(STEP), max_steps=20, **run)
    long = coupling_bounds(NORMAL, LMC(STEP), **run)
    # The decay of LMC on a Gaussian is geometric: nothing but rounding is lost.
    np.testing.assert_allclose(short.w2, long.w2[:21], rtol=1e-9)
    np.testing.assert_allclose(short.w1, long.w1[:21], rtol=1e-9)
    assert np.all(short.tail.w2 > 1e-3 * short.w2) and np.all(long.tail.w2[:21] < 1e-9)


@pytest.mark.slow
def test_meeting_bounds_of_an_unadjusted_kernel_are_above_the_exact_distance(x64):
    found = coupling_bounds(
        NORMAL, LMC(STEP), init=np.array([START]), lag=40, num_pairs=500, coupling=Reflection()
    )
    assert found.num_unmet == 0
    t = np.arange(1, min(30, len(found.steps)))
    for bound, error, exact in zip(
        (found.w1, found.w2, found.tv), found.errors, exact_distances(t), strict=True
    ):
        assert np.all(bound[t] + 5 * error[t] >= exact)


def mala_laws(step, start, count):
    """W1 and TV to the target of MALA's law from one point, on a grid.

    The kernel is written as a density, `q(x, y) min(1, pi(y) q(y, x) / (pi(x) q(x, y)))`, with what
    is rejected on the diagonal.
    """
    x = np.linspace(-8, 8, 1601)
    dx = x[1] - x[0]
    q = stats.norm.pdf(x[None], (1 - step) * x[:, None], np.sqrt(2 * step))
    pi = stats.norm.pdf(x)
    flow = np.minimum(pi[:, None] * q, pi[None] * q.T) / pi[:, None] * dx
    kernel = flow + np.diag(1 - flow.sum(1))
    law = (np.arange(len(x)) == np.argmin(np.abs(x - start))).astype(float)
    w1, tv = [], []
    for _ in range(count):
        gap = law - pi * dx
        w1.append(np.sum(np.abs(np.cumsum(gap))) * dx)
        tv.append(np.sum(np.abs(gap)) / 2)
        law = law @ kernel
    return np.array(w1), np.array(tv)


@pytest.mark.slow
def test_bounds_of_mala_are_above_the_exact_distance(x64):
    found = coupling_bounds(NORMAL, MALA(0.3), init=np.array([3.0]), lag=30, num_pairs=1000)
    assert found.num_unmet == 0 and np.all(np.isfinite(found.meeting_times))
    t = np.arange(min(20, len(found.steps)))
    w1, tv = mala_laws(0.3, 3.0, len(t))
    # The grid is right to the square of its spacing, 1e-4.
    assert np.all(found.w1[t] + 5 * found.errors.w1[t] >= w1 - 1e-4)
    assert np.all(found.tv[t] + 5 * found.errors.tv[t] >= tv - 1e-4)
    # And close to it while the distance is large, as a coupling that is often optimal has it.
    assert np.all(found.w1[:5] < 2 * w1[:5]) and np.all(found.tv[:5] < 2 * tv[:5])


@pytest.mark.parametrize(
    "sampler", [UBU(0.4), OBABO(0.4), KLMC(0.2)], ids=lambda s: type(s).__name__
)
def test_kinetic_kernels_contract_to_their_own_law(sampler, x64):
    found = coupling_bounds(NORMAL, sampler, init=np.array([START]), lag=20, num_pairs=200)
    # The mean of the position is that far from the stationary one: below W1.
    mean = START  # at step 0
    assert found.w1[0] + 5 * found.errors.w1[0] >= mean
    assert found.w1[0] < 5 * mean
    assert found.w2[150] < 1e-3 * found.w2[0]
    assert np.all(found.w2 >= found.w1 - 1e-12)


@pytest.mark.slow
def test_pairs_that_do_not_meet_make_the_bounds_infinite():
    found = coupling_bounds(NORMAL, MALA(0.01), init=np.array([8.0]), max_steps=20, num_pairs=10)
    assert found.num_unmet > 0
    assert np.all(np.isinf(found.w1)) and np.all(np.isinf(found.tv)) and np.all(np.isinf(found.w2))
    assert np.sum(np.isinf(found.meeting_times)) == found.num_unmet


def test_distances_that_grow_make_the_bounds_infinite():
    found = coupling_bounds(Quadratic(-0.05), LMC(0.1), max_steps=100, num_pairs=10)
    assert np.all(np.isinf(found.w1)) and np.all(np.isinf(found.w2))


@pytest.mark.slow
def test_distances_are_those_of_the_metric(x64):
    scale = np.array([2.0, 0.5])
    run = {"lag": 10, "num_pairs": 20, "max_steps": 60}
    sampler = LMC(0.1)
    metric = DiagonalMetric(scale)
    mine = coupling_bounds(
        DiagonalGaussian(np.zeros(2), scale), Preconditioned(sampler, metric), metric=metric,
        init=3 * scale, **run,
    )  # fmt: skip
    other = coupling_bounds(DiagonalGaussian(np.zeros(2)), sampler, init=np.full(2, 3.0), **run)
    np.testing.assert_allclose(mine.w2, other.w2, rtol=1e-9)


@pytest.mark.slow
def test_float32_starts_stay_float32(x64):
    start = jnp.full(1, START, jnp.float32)
    found = coupling_bounds(NORMAL, MALA(0.3), init=start, lag=20, num_pairs=50)
    wide = coupling_bounds(NORMAL, MALA(0.3), init=np.array([START]), lag=20, num_pairs=50)
    assert found.num_unmet == 0
    # Other noise of the same laws: five standard errors of the difference.
    spread = np.hypot(found.errors.w1[0], wide.errors.w1[0])
    assert abs(found.w1[0] - wide.w1[0]) < 5 * spread


@pytest.mark.parametrize(
    ("sampler", "keywords", "error", "says"),
    [
        (MALT(0.1), {}, TypeError, "MALT"),
        (LocalScaleHMC(0.1), {}, TypeError, "JitteredStepHMC"),
        (HMC(0.1), {"coupling": Reflection()}, TypeError, "LMC and MALA"),
        (MALA(0.1), {"coupling": CommonVelocity()}, TypeError, "JitteredHMC"),
        (JitteredHMC(0.1), {"coupling": Synchronous()}, TypeError, "CommonVelocity"),
        (MALA(0.1), {"lag": 0}, ValueError, "lag"),
        (MALA(0.1), {"num_pairs": 1}, ValueError, "num_pairs"),
        (LMC(100.0), {}, ValueError, "smaller step"),
    ],
)
def test_what_cannot_be_coupled_is_refused(sampler, keywords, error, says):
    with pytest.raises(error, match=says):
        coupling_bounds(NORMAL, sampler, **keywords)

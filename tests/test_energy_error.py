"""The energy error of unadjusted samplers against its definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.samplers.base import Point
from driftbridge.samplers.energy_error import WithEnergyError
from driftbridge.samplers.hmc import HMC
from driftbridge.samplers.kinetic import KLMC
from driftbridge.samplers.langevin import LMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.metric import DiagonalMetric
from driftbridge.samplers.ornstein_uhlenbeck import free_flight
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.samplers.splitting import OBABO
from tests.laws.linear_probe import probe, stationary
from tests.laws.samplers import SAMPLERS, UNADJUSTED
from tests.laws.targets import LogCosh, Quadratic

START = (0.4, -1.0, 1.5)


def two_points(sampler, target, seed=0):
    """Points before and after one step, and its info."""
    sampler, x = WithEnergyError(sampler), jnp.asarray(START)

    @jax.jit
    def run(key):
        state = sampler.init(target, x)
        new, info = sampler.step(target, state, sampler.noise(key, x))
        return state.point, new.point, info

    return run(jax.random.key(seed))


@pytest.mark.usefixtures("x64")
def test_error_of_langevin_is_the_log_metropolis_ratio():
    h, target = 0.3, LogCosh(3)
    before, after, info = two_points(LMC(h), target)
    there = stats.norm.logpdf(after.position, before.position + h * before.score, np.sqrt(2 * h))
    back = stats.norm.logpdf(before.position, after.position + h * after.score, np.sqrt(2 * h))
    ratio = after.log_density + back.sum() - before.log_density - there.sum()
    assert float(info.energy_error) == pytest.approx(-float(ratio), abs=1e-13)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_error_of_a_splitting_is_that_of_its_kicks_and_drift():
    h, u, target = 0.5, 1.8, LogCosh(3)
    before, after, info = two_points(OBABO(h, 1.0, u), target)
    half = (after.position - before.position) / h  # the velocity of the drift
    velocities = half - u * h / 2 * before.score, half + u * h / 2 * after.score
    kinetic = [jnp.sum(v**2) / (2 * u) for v in velocities]
    error = kinetic[1] - after.log_density - kinetic[0] + before.log_density
    assert float(info.energy_error) == pytest.approx(float(error), abs=1e-13)


def moments(sampler, curvature):
    """Stationary `Var x` and `Cov(x, x')` on a quadratic, exactly."""
    moment = stationary(sampler, curvature)
    _, maps = probe(sampler, curvature)
    return moment[0, 0], (maps.drift[0] @ moment)[0, 0]


def point(target, x):
    return Point(x, *target.value_and_score(x))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sampler", [LMC(0.01), OBABO(0.1, 1.3, 1.5)], ids=["LMC", "OBABO"])
def test_variance_of_the_error_measures_the_bias(sampler):
    curvature, d = 2.0, 3
    target = Quadratic(curvature, d)
    x, y = jax.random.normal(jax.random.key(0), (2, d))
    # On a quadratic E = (tau λ² / 4) (|x'|² - |x|²) ...
    factor = sampler.diffusion_time * curvature**2 / 4
    error = sampler.energy_error(point(target, x), point(target, y))
    assert float(error) == pytest.approx(float(factor * (y @ y - x @ x)), abs=1e-13)
    # ... whose variance follows from Gaussian moments, Var(x'² - x²) = 4 (S² - C²), with S = Var x
    # and C = Cov(x, x').
    variance, covariance = moments(sampler, curvature)
    bias = curvature * variance - 1
    per_dimension = factor**2 * 4 * (variance**2 - covariance**2)
    # Leading order: corrections are of the relative size of the bias, here one per cent.
    assert 0.005 < bias < 0.02
    assert per_dimension == pytest.approx(4 * bias**3, rel=3 * bias)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("friction", [1.3, 500.0], ids=["inertial", "overdamped"])
def test_error_of_exponential_euler_measures_its_bias(friction):
    # Friction times step is 0.013 and 5.
    curvature, d, sampler = 2.0, 4000, KLMC(0.01, friction, 1.5)
    variance, covariance = moments(sampler, curvature)
    bias = curvature * variance - 1
    # In many dimensions the work of a step is its mean: draw (x, x') from the stationary law. The
    # relative noise of a sum of d squares is sqrt(2/d) = 0.022, that of b^(3/2) is 0.034.
    x, z = jax.random.normal(jax.random.key(0), (2, d))
    x = np.sqrt(variance) * x
    y = covariance / variance * x + np.sqrt(variance - covariance**2 / variance) * z
    target = Quadratic(curvature, d)
    error = sampler.energy_error(point(target, x), point(target, y))
    assert float(error**2 / d) == pytest.approx(4 * bias**3, rel=5 * 2 * 0.034)
    # Exactly, on the mean of the work λ (S - C), to the order of the bias and of h sqrt(u λ).
    time = free_flight(friction, 0.01, 1.5).e2
    mean = curvature * (variance - covariance) * 0.01 / (2 * friction * float(time))
    assert mean == pytest.approx(bias, rel=2 * bias + 0.01 * np.sqrt(1.5 * curvature))


@pytest.mark.slow
def test_an_error_of_exponential_euler_below_rounding_is_none():
    # In float32 the potential of 1e6 is known to 0.06 only.
    sampler = KLMC(1e-4, 10.0)
    before = Point(jnp.zeros(3), jnp.asarray(-1e6), jnp.zeros(3))
    after = Point(jnp.full(3, 1e-5), jnp.asarray(-1e6 - 0.25), jnp.zeros(3))
    assert float(sampler.energy_error(before, after)) == 0
    assert float(sampler.energy_error(before, after._replace(log_density=-1e6 - 10.0))) > 0


QUICK = ("KLMC", "OBABO", "PoissonMidpoint")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in UNADJUSTED]
)
def test_errors_come_with_one_more_gradient(name):
    sampler, target = SAMPLERS[name](step_size=0.1), LogCosh(3)
    before, after, info = two_points(sampler, target)
    noise = WithEnergyError(sampler).noise(jax.random.key(0), after.position).inner
    plain = jax.jit(lambda x: sampler.step(target, sampler.init(target, x), noise))
    state, expected = plain(jnp.asarray(START))
    np.testing.assert_allclose(state.position, after.position, rtol=1e-6)
    assert info.num_gradients == expected.num_gradients + 1
    error = sampler.energy_error(before, after)
    np.testing.assert_allclose(info.energy_error, error, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_errors_in_a_metric_are_those_in_its_coordinates():
    scale = jnp.asarray([0.5, 2.0, 7.0])

    class Stretched(LogCosh):
        def log_density(self, x):
            return super().log_density(x / scale)

        def score(self, x):
            return super().score(x / scale) / scale

    inner = WithEnergyError(OBABO(0.5))
    outer = Preconditioned(inner, DiagonalMetric(scale))
    z = jnp.asarray(START)
    noises = jax.vmap(lambda key: inner.noise(key, z))(jax.random.split(jax.random.key(0), 4))

    def errors(sampler, target, x):
        def step(state, noise):
            state, info = sampler.step(target, state, noise)
            return state, info.energy_error

        return jax.jit(lambda x: jax.lax.scan(step, sampler.init(target, x), noises)[1])(x)

    expected = errors(inner, LogCosh(3), z)
    np.testing.assert_allclose(errors(outer, Stretched(3), scale * z), expected, atol=1e-13)


@pytest.mark.parametrize("step_size", [1e5, 1e30])
def test_a_step_that_blows_up_diverges_and_is_refused(step_size):
    before, after, info = two_points(LMC(step_size), LogCosh(3))
    assert bool(info.is_divergent)
    assert float(info.energy_error) > 1000
    np.testing.assert_array_equal(after.position, before.position)


@pytest.mark.parametrize(
    ("sampler", "cure"),
    [
        (MALA(), "MALA reports its energy error itself"),
        (HMC(), "HMC reports its energy error itself"),
        (Preconditioned(LMC(), DiagonalMetric(jnp.ones(3))), r"Write Preconditioned\(WithEnergy"),
    ],
)
def test_samplers_that_have_an_energy_error_are_refused(sampler, cure):
    with pytest.raises(ValueError, match=cure):
        WithEnergyError(sampler)


@pytest.mark.slow
def test_a_refused_step_redraws_the_velocity_and_keeps_the_rest():
    sampler, target = WithEnergyError(OBABO(0.1)), LogCosh(3)
    state = sampler.init(target, jnp.asarray(START))
    state, _ = sampler.step(target, state, sampler.noise(jax.random.key(0), state.position))
    refused = sampler.refuse(state)
    assert np.isinf(refused.inner.velocity).all()
    np.testing.assert_array_equal(refused.position, state.position)

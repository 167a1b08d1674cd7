"""The exact Ornstein-Uhlenbeck increment: covariance, semigroup, digits in float32, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.ornstein_uhlenbeck import (
    FreeFlight,
    ballistic,
    compose,
    drift,
    fly,
    free_flight,
    ou_noise,
    refresh,
)

ETAS = [1e-6, 1e-3, 1e-2, 0.09, 0.11, 0.3, 0.49, 0.51, 1.0, 3.0, 20.0]


def covariance(flight: FreeFlight) -> np.ndarray:
    """Covariance of position and velocity, from the factors."""
    x, v = (np.asarray(leaf) for leaf in ou_noise(flight, jnp.eye(2)[0], jnp.eye(2)[1]))
    return np.array([[x @ x, x @ v], [v @ x, v @ v]])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eta", ETAS)
def test_covariance_is_the_integral_of_the_response(eta):
    friction, u = 1.7, 2.5
    time = eta / friction
    # Gauss-Legendre with 60 nodes is exact to round-off for exponents up to 40.
    roots, weights = np.polynomial.legendre.leggauss(60)
    s, w = (roots + 1) / 2 * time, weights / 2 * time
    response = np.stack([-np.expm1(-friction * s) / friction, np.exp(-friction * s)])
    exact = 2 * friction * u * np.einsum("q,iq,jq->ij", w, response, response)
    # The direct form loses up to a thousand roundings just above its switch.
    np.testing.assert_allclose(covariance(free_flight(friction, time, u)), exact, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eta", ETAS)
def test_drift_coefficients_are_integrals_of_the_decay(eta):
    friction = 1.7
    time = eta / friction
    roots, weights = np.polynomial.legendre.leggauss(60)
    s, w = (roots + 1) / 2 * time, weights / 2 * time
    flight = free_flight(friction, time)
    # E1 integrates the decay; E2 integrates E1, hence (t - s) times the decay.
    np.testing.assert_allclose(flight.e1, w @ np.exp(-friction * s), rtol=1e-13)
    np.testing.assert_allclose(flight.e2, w @ ((time - s) * np.exp(-friction * s)), rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("first", "second"), [(0.3, 0.4), (1e-4, 2.0), (0.05, 0.01)])
def test_flows_compose(first, second):
    friction, u = 1.3, 0.7
    a, b = (free_flight(friction, t, u) for t in (first, second))
    whole = free_flight(friction, first + second, u)
    z = jnp.eye(4)
    x, v = compose(ou_noise(a, z[0], z[1]), ou_noise(b, z[2], z[3]), b)
    x, v = np.asarray(x), np.asarray(v)
    joined = np.array([[x @ x, x @ v], [v @ x, v @ v]])
    np.testing.assert_allclose(joined, covariance(whole), rtol=1e-13)
    zero = jnp.zeros(1)
    halfway = fly(jnp.ones(1), jnp.full(1, -2.0), a, zero, zero)
    np.testing.assert_allclose(
        fly(*halfway, b, zero, zero),
        fly(jnp.ones(1), jnp.full(1, -2.0), whole, zero, zero),
        rtol=1e-13,
    )


@pytest.mark.slow
@pytest.mark.parametrize("eta", ETAS)
def test_float32_keeps_its_digits(eta):
    friction, u = np.float32(1.7), np.float32(2.5)
    time = np.float32(eta) / friction
    single = free_flight(*(jnp.asarray(number, jnp.float32) for number in (friction, time, u)))
    with jax.enable_x64(True):
        double = free_flight(*(jnp.asarray(number, jnp.float64) for number in (friction, time, u)))
    assert all(leaf.dtype == jnp.float32 for leaf in single)
    # The direct difference just above its switch at 0.5 loses fifty roundings in the variance;
    # eta itself is rounded once. The textbook variance is wrong by 80 % at eta = 0.01.
    np.testing.assert_allclose(single, double, rtol=3e-6)


@pytest.mark.usefixtures("x64")
def test_no_friction_is_ballistic():
    time = 0.7
    np.testing.assert_allclose(free_flight(0.0, time, 2.0), ballistic(time), rtol=1e-15)
    x, v = jnp.ones(2), jnp.asarray([0.3, -0.1])
    z = jnp.asarray([5.0, 6.0])
    np.testing.assert_array_equal(fly(x, v, ballistic(time), z, z)[0], drift(x, v, time))
    np.testing.assert_array_equal(refresh(v, ballistic(time), z), v)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_coefficients_are_differentiable_at_zero_friction():
    slopes = jax.jacfwd(lambda friction: jnp.stack(free_flight(friction, 2.0)[:3]))(0.0)
    np.testing.assert_allclose(slopes, [-2.0, -2.0, -8 / 6], rtol=1e-14)

"""Softplus and log-sigmoid: values, slopes and curvatures against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.targets import log_sigmoid, softplus

POINTS = np.array([-1e4, -80.0, -30.0, -1.5, -1e-3, 0.0, 1e-3, 1.5, 30.0, 80.0, 1e4])
# A handful of roundings, each half a unit in the last place; exp(-|x|) carries |x| eps / 2.
ROUNDINGS = 8


def tolerance(dtype):
    return (ROUNDINGS + np.abs(POINTS).clip(max=100)) * float(np.finfo(dtype).eps)


def reference(x):
    """Value, slope and curvature in NumPy's float64, tails kept relative."""
    tail = np.exp(-np.abs(x))
    value = np.maximum(x, 0) + np.log1p(tail)
    slope = np.where(x >= 0, 1, tail) / (1 + tail)
    return value, slope, tail / (1 + tail) ** 2


def assert_close(got, expected, dtype):
    assert got.dtype == dtype
    # Below the smallest normal number the processor may flush to zero.
    slack = tolerance(dtype) * np.abs(expected) + float(np.finfo(np.float32).tiny)
    assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= slack)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_two_derivatives_over_the_whole_line(dtype, x64):
    value, slope, curvature = reference(POINTS)
    x = jnp.asarray(POINTS, dtype)
    assert_close(softplus(x), value, dtype)
    assert_close(jax.vmap(jax.grad(softplus))(x), slope, dtype)
    assert_close(jax.vmap(jax.hessian(softplus))(x), curvature, dtype)
    assert_close(log_sigmoid(-x), -value, dtype)
    assert_close(jax.vmap(jax.grad(log_sigmoid))(-x), slope, dtype)
    assert_close(jax.vmap(jax.hessian(log_sigmoid))(-x), -curvature, dtype)


def test_infinities_and_nan():
    x = jnp.array([-jnp.inf, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(softplus(x), [0.0, np.inf, np.nan])
    np.testing.assert_array_equal(log_sigmoid(x), [-np.inf, 0.0, np.nan])


def test_gradient_of_a_sum_evaluates_no_logarithm():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(log_sigmoid(x))))
    program = gradient.lower(jnp.zeros(8)).compile().as_text()
    assert "exponential" in program
    assert "log-plus-one" not in program and " log(" not in program


@pytest.mark.slow
def test_hessian_of_a_logistic_regression_is_the_fisher_form(x64):
    rng = np.random.default_rng(0)
    X, beta = rng.normal(size=(20, 3)), rng.normal(size=3)

    def log_likelihood(b):
        return jnp.sum(log_sigmoid(X @ b))

    p = 1 / (1 + np.exp(-X @ beta))
    expected = -(X.T * (p * (1 - p))) @ X
    # Twenty terms of order one: round-off of float64 leaves twelve digits.
    np.testing.assert_allclose(jax.hessian(log_likelihood)(beta), expected, rtol=1e-12)

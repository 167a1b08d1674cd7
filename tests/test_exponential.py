"""The exponential of the transport solvers, against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.exponential import exponential


def test_error_is_that_of_rounding_the_argument():
    x = np.linspace(-87.3, 88.7, 100_001).astype(np.float32)
    found = np.asarray(jax.jit(exponential)(x), np.float64)
    exact = np.exp(x.astype(np.float64))
    # Half a unit in the last place of x / log 2, and two of the factors.
    allowed = np.abs(x) * 2.0**-24 + 7e-7
    assert found.dtype == exact.dtype and np.all(np.abs(found / exact - 1) < allowed)
    assert exponential(jnp.float32(0)) == 1


def test_ends_of_the_range():
    x = jnp.asarray([-1e30, -200.0, 89.0, jnp.inf, jnp.nan], jnp.float32)
    least, below, above, infinite, missing = np.asarray(exponential(x))
    # Never subnormal, which is slow; and smaller than any sum that a solver trusts.
    assert least == below == np.finfo(np.float32).tiny
    assert above == infinite == np.inf and np.isnan(missing)


def test_derivatives_are_itself():
    x = jnp.linspace(-3, 3, 7)
    for order in (jax.grad(exponential), jax.grad(jax.grad(exponential))):
        np.testing.assert_allclose(jax.vmap(order)(x), np.exp(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept_in_float64(x64, dtype):
    found = exponential(jnp.asarray([1.0], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.e, rtol=4 * np.finfo(dtype).eps)

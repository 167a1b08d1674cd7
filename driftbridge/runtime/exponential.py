"""The exponential of large arrays, where its time counts."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# 2^f for |f| <= 1/2, exact at 0: of degree five, with the least relative error, 1.1e-7 (found by
# Lawson's iterated least squares).
_POWER = (1.0, 0.6931469776, 0.2402224209, 0.0555073374, 0.0096715126, 0.0013264727)
# Of the least normal number of float32, and of infinity.
_LEAST, _INFINITY = -126, 128


@jax.custom_jvp
def exponential(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`exp(x)`, for float32 on a CPU in two thirds of the time of XLA's.

    `2^t = 2^k 2^f`, `k` the integer next to `t = x / log 2`, the second factor a polynomial. The
    relative error is that of rounding `t`, `|x| 2^-24`, and 3e-7. Results stay at 2^-126 = 1.2e-38
    where they would be less, as the numbers below are slow. Other dtypes and other machines have
    `jnp.exp`.
    """
    if x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return jnp.exp(x)
    t = x * jnp.float32(1 / math.log(2))
    bounded = jnp.clip(t, _LEAST, _INFINITY)
    # Adding 1.5 2^23 leaves the nearest integer in the low bits. XLA would cancel a subtraction of
    # it from the sum, so the bits are read as an integer.
    bits = lax.bitcast_convert_type(bounded + jnp.float32(12582912), jnp.int32)
    k = bits - jnp.int32(0x4B400000)
    f = bounded - k.astype(jnp.float32)
    power = jnp.float32(_POWER[-1])
    for coefficient in _POWER[-2::-1]:
        power = power * f + jnp.float32(coefficient)
    return lax.bitcast_convert_type(
        lax.bitcast_convert_type(power, jnp.int32) + (k << 23), jnp.float32
    )


@exponential.defjvp
def _(primals, tangents):
    value = exponential(*primals)
    return value, value * tangents[0]

"""Standard normals and uniforms, the random numbers of every step."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import unit_floats


def normals(key: Key[Array, ""], shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """Independent standard normals: `jax.random.normal`, in less time."""
    return normals_and_uniforms(key, shape, dtype, (0,))[0]


def normals_and_uniforms(
    key: Key[Array, ""], shape: tuple[int, ...], dtype, uniforms: tuple[int, ...] = ()
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Independent standard normals of a shape, and uniforms on [0, 1) of another (one by default).

    One call of the generator: splitting the key for two calls would double the time that noise
    takes to compile. Normals are `sqrt(2) erfinv(u)`, `u` uniform on (-1, 1), as in
    `jax.random.normal`.
    """
    size, rest = math.prod(shape), math.prod(uniforms)
    unit = unit_floats(key, size + rest, dtype)
    low = np.nextafter(np.asarray(-1, dtype), np.asarray(0, dtype))
    symmetric = jnp.maximum(unit[:size] * (1 - low) + low, low)
    normal = lax.erf_inv(symmetric) * np.asarray(math.sqrt(2), dtype)
    return normal.reshape(shape), unit[size:].reshape(uniforms)

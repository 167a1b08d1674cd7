"""Standard normals and uniforms from one draw of random bits."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key


def normals_and_uniforms(
    key: Key[Array, ""], shape: tuple[int, ...], dtype, uniforms: tuple[int, ...] = ()
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Independent standard normals of a shape, and uniforms on [0, 1) of another (one by default).

    One call of the generator: splitting the key for two calls would double the time that noise
    takes to draw, and to compile. Normals are `sqrt(2) erfinv(u)`, `u` uniform on (-1, 1), as in
    `jax.random.normal`.
    """
    size, rest = math.prod(shape), math.prod(uniforms)
    low = jnp.nextafter(jnp.asarray(-1, dtype), jnp.asarray(0, dtype))
    uniform = jax.random.uniform(key, (size + rest,), dtype, low, 1)
    normals = math.sqrt(2) * lax.erf_inv(uniform[:size])
    return normals.reshape(shape), ((uniform[size:] + 1) / 2).reshape(uniforms)

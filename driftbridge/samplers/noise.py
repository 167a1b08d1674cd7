"""Standard normals and uniforms, the random numbers of every step."""

import math
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from driftbridge.runtime.threefry import draws_here, unit_floats_at, words_of


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
    if draws_here(key, dtype):
        numbers = _numbers(size, rest, np.dtype(dtype).name)(words_of(key))
    else:
        unit = jax.random.uniform(key, (size + rest,), dtype)
        numbers = jnp.concatenate([_normal(unit[:size]), unit[size:]])
    return numbers[:size].reshape(shape), numbers[size:].reshape(uniforms)


def coarse_uniform(
    first: Float[Array, ""], second: Float[Array, ""]
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """A random time of a double step among those of its two steps, each a fraction of its step.

    **Returns:** whether it is the first step's, and the fraction `U` of the double step.

    The sum of two uniforms modulo one is independent of either; so is the choice it makes, and
    `P(U < x) = P(first < 2x) / 2` for `x < 1/2`: `U` is uniform and takes no other random number.
    """
    is_early = (first + second) % 1 < 0.5
    return is_early, jnp.where(is_early, first, 1 + second) / 2


def _normal(unit: Float[Array, "..."]) -> Float[Array, "..."]:
    """Standard normals of uniforms on [0, 1)."""
    low = np.nextafter(np.asarray(-1, unit.dtype), np.asarray(0, unit.dtype))
    symmetric = jnp.maximum(unit * (1 - low) + low, low)
    return lax.erf_inv(symmetric) * np.asarray(math.sqrt(2), unit.dtype)


@lru_cache(maxsize=128)
def _numbers(size: int, rest: int, dtype: str) -> Callable:
    """A function of the words of a key that gives `size` normals and `rest` uniforms behind them.

    Over many keys it draws the first number of all of them, then the second, and so on: keys are
    many where numbers are few (31, say, of which a loop over vectors of 8 does 7 one by one).
    """

    def entries(words, count):
        unit = unit_floats_at(words, count, dtype)
        return jnp.where(count < size, _normal(unit), unit) if size else unit

    @jax.custom_batching.custom_vmap
    def of_one(words):
        return entries(words, jnp.arange(size + rest, dtype=jnp.uint32))

    @jax.custom_batching.custom_vmap
    def of_many(words):
        # One long axis of keys: XLA makes vectors of the innermost, which may be two steps.
        flat = tuple(word.reshape(-1) for word in words)

        def draw(i, out):
            count = jnp.full(flat[0].shape, i.astype(jnp.uint32))
            return lax.dynamic_update_index_in_dim(out, entries(flat, count), i, 0)

        numbers = lax.fori_loop(0, size + rest, draw, jnp.zeros((size + rest, flat[0].size), dtype))
        return numbers.T.reshape(*words[0].shape, size + rest)

    @of_one.def_vmap
    @of_many.def_vmap
    def _(axis_size, in_batched, words):
        return of_many(words), True

    return of_one

"""Laws that one can draw from: functions of a key, and data sets drawn from with replacement."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from driftbridge.runtime.threefry import draws_here, fold_in, threefry, unit_floats, words_of
from driftbridge.transport.base import as_dtype
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import as_rows, as_weights

Draw = Callable[[Key[Array, ""], int], Float[Array, "n dim"]]


class Rows(eqx.Module):
    """Row numbers drawn with given probabilities, each right to `2^-32`.

    A float32 cumulative sum would give the rows of a large table probabilities that are wrong by
    a share of themselves; the thresholds are integers, compared with 32 random bits, and filled up
    to a size for which programs are compiled.
    """

    thresholds: UInt32[Array, " n"]

    def __init__(self, weights: Float[np.ndarray, " n"]):
        upper = np.cumsum(np.asarray(weights, np.float64))
        scaled = np.rint(upper / upper[-1] * 2.0**32)
        # The last row that has weight takes what is left of the range.
        scaled[np.flatnonzero(weights)[-1] :] = 2.0**32
        scaled = padded(scaled, bucket(len(scaled)), 2.0**32)
        self.thresholds = jnp.asarray(np.minimum(scaled, 2.0**32 - 1).astype(np.uint32))

    def __call__(self, key: Key[Array, ""], n: int) -> Int[Array, " draws"]:
        return self._at(_bits(key, n))

    def evenly(self, key: Key[Array, ""], n: int) -> Int[Array, " draws"]:
        """Systematic draws: one in each `n`-th of the probability, in the order of the rows."""
        step = 2**32 // n
        return self._at(jnp.arange(n, dtype=jnp.uint32) * step + _bits(key, 1) % step)

    def _at(self, bits: UInt32[Array, " draws"]) -> Int[Array, " draws"]:
        last = jnp.asarray(2**32 - 1, jnp.uint32)
        # The bits below 2^32 - 1 leave that threshold to the last row with weight.
        found = jnp.searchsorted(self.thresholds, jnp.minimum(bits, last - 1), side="right")
        return found.astype(jnp.int32)


class Resampled(eqx.Module):
    """Rows of a data set drawn with replacement: `x_i + noise z`, `i` with probability `a_i`.

    **Arguments:**

    - `x`: points `(n, dim)`.
    - `weights`: `(n,)`, nonnegative, sum 1; None for equal ones.
    - `noise`: `>= 0`, standard deviation of a Gaussian added to every coordinate.

    **Raises:** `ValueError` for points that are not finite, wrong weights or negative noise.
    """

    points: Float[Array, "rows dim"]
    rows: Rows
    noise: Float[Array, ""] | None

    def __init__(self, x: Any, weights: Any = None, noise: float = 0.0):
        points = as_table(x, "x")
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must be finite and at least 0; got {noise}.")
        self.points = jnp.asarray(padded(points, bucket(len(points))))
        self.rows = Rows(as_weights(weights, len(points), "x"))
        self.noise = as_dtype(noise, points.dtype) if noise > 0 else None

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, "draws dim"]:
        which, shift = fold_in(key, 0), fold_in(key, 1)
        drawn = self.points[self.rows(which, n)]
        if self.noise is None:
            return drawn
        return drawn + self.noise * normals(shift, drawn.shape, drawn.dtype)


def normals(key: Key[Array, ""], shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """Standard normals, of which a program is compiled in a tenth of the time of `jax.random`'s."""
    unit = unit_floats(key, math.prod(shape), dtype).reshape(shape)
    low = np.nextafter(np.asarray(-1, dtype), np.asarray(0, dtype))
    return lax.erf_inv(jnp.maximum(unit * (1 - low) + low, low)) * np.asarray(math.sqrt(2), dtype)


def even_times(key: Key[Array, ""], n: int, dtype: Any) -> Float[Array, " n"]:
    """`n` times that are each uniform on [0, 1), one in each `n`-th part of it."""
    return (jnp.arange(n, dtype=dtype) + unit_floats(key, n, dtype)) / n


def systematic(
    weights: Float[np.ndarray, " n"], count: int, random: np.random.Generator
) -> Int[np.ndarray, " count"]:
    """`count` rows in order, each as often as its weight says up to one: without bias.

    Kitagawa (1996), "Monte Carlo filter and smoother for non-Gaussian nonlinear state space
    models", appendix.
    """
    upper = np.cumsum(weights)
    points = (random.random() + np.arange(count)) / count * upper[-1]
    return np.minimum(np.searchsorted(upper, points, side="right"), len(weights) - 1)


def _bits(key: Key[Array, ""], n: int) -> UInt32[Array, " n"]:
    if not draws_here(key, jnp.float32):
        return jax.random.bits(key, (n,), jnp.uint32)
    count = jnp.arange(n, dtype=jnp.uint32)
    high, low = threefry(words_of(key), (jnp.zeros_like(count), count))
    return high ^ low


def as_table(x: Any, name: str) -> Float[np.ndarray, "n dim"]:
    """Points of a data set as an array `(n, dim)` of the dtype in which JAX holds them."""
    rows = np.asarray(as_rows(x, name))
    if rows.ndim != 2 or not len(rows):
        raise ValueError(
            f"{name} must have shape (n, dim) with at least one row; got {rows.shape}. One column "
            "of data is data[:, None]."
        )
    return rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype))


def as_draw(source: Any, name: str, weights: Any = None) -> tuple[Any, jax.ShapeDtypeStruct]:
    """A law to draw from, of a function or a data set, and the shape and dtype of one draw.

    **Arguments:** `source`: points `(n, dim)`, or a function of a key and an integer `n` that
    returns `(n, dim)` and that JAX can trace; `weights`: of points.

    **Raises:** `ValueError` for a function that returns anything else or cannot be traced, and for
    weights beside a function.
    """
    if not callable(source):
        source = Resampled(source, weights)
    elif weights is not None:
        raise ValueError(f"{name} is a function: its weights are in what it draws.")
    try:
        two = jax.eval_shape(lambda key: source(key, 2), jax.random.key(0))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"{name} must draw with jax.random from the key it is given, so that JAX can trace it; "
            "draws that come from elsewhere are given as an array."
        ) from error
    if getattr(two, "ndim", 0) != 2 or two.shape[0] != 2:
        raise ValueError(
            f"{name}(key, n) must return points of shape (n, dim); for n = 2 it returned {two}."
        )
    return source, jax.ShapeDtypeStruct(two.shape[1:], two.dtype)

"""Sizes at which programs are compiled: arrays are padded to them, weights with zeros."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Shaped

# Up to here a size costs milliseconds, and few sizes save compilations; above, padding costs more
# than a compilation.
COARSE = 4096
# Sizes in an octave above.
FINE = 16


def bucket(n: int) -> int:
    """The least size `>= n` for which programs are compiled.

    `2^k` or `3 2^(k-1)`, at least 16, up to 4096; sixteen sizes in an octave above, so that a large
    matrix grows by at most an eighth.
    """
    if n < 1:
        raise ValueError(f"a size must be at least 1; got {n}.")
    if n > COARSE:
        step = (1 << (n - 1).bit_length()) // (2 * FINE)
        return -(-n // step) * step
    power = max(16, 1 << (n - 1).bit_length())
    return power * 3 // 4 if power > 16 and n <= power * 3 // 4 else power


def below(size: int) -> int:
    """The bucket below a bucket of at most 4096."""
    power = 1 << (size.bit_length() - 1)
    return max(16, power if size > power else power * 3 // 4)


def padded(values: np.ndarray, size: int, fill: ArrayLike = 0.0) -> np.ndarray:
    """`values` with rows of `fill` behind, `size` in all; on the host, where no size compiles."""
    short = size - len(values)
    rows = np.full((short, *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, rows]) if short else values


def trimmed(values: Any, n: int) -> Shaped[Array, "n ..."]:
    """The first `n` rows; a concrete array is cut on the host, where no size compiles."""
    if isinstance(values, Tracer):
        return values[:n]
    return jax.device_put(np.asarray(values)[:n])

"""Random keys that depend on (seed, chain, step) alone.

A key has three independent streams: `start` (initial positions), `steps` (the noise of every
transition, warm-up included) and `prediction` (replicated data). The noise of chain `c` at step `s`
comes from `fold_in(fold_in(steps, c), s)`, so neither the number of chains, nor the length of a
chunk, nor an interruption changes it.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from driftbridge.runtime.threefry import fold_in


class Streams(NamedTuple):
    """The three streams of a key."""

    start: Key[Array, ""]
    steps: Key[Array, ""]
    prediction: Key[Array, ""]


def as_key(key: Any) -> Key[Array, ""]:
    """Return a typed key from a seed (modulo 2^64) or a typed key.

    Raises `TypeError` for a legacy `uint32` key, naming the cure.
    """
    if isinstance(key, int | np.integer):
        key = int(key)
        words: Any = np.array([(key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF], np.uint32)
        return jax.random.wrap_key_data(words, impl="threefry2x32")
    if isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise TypeError(f"key must be one key; got an array of keys of shape {key.shape}.")
        return key
    raise TypeError(
        f"key must be an int or a typed key from jax.random.key; got {type(key).__name__}. "
        "A legacy key from jax.random.PRNGKey is turned into one by jax.random.wrap_key_data."
    )


def streams(key: Key[Array, ""]) -> Streams:
    """Split a key into its three streams."""
    return Streams(*(fold_in(key, i) for i in range(3)))


def chain_keys(
    key: Key[Array, ""], chains: Int[np.ndarray | Array, " chains"]
) -> Key[Array, " chains"]:
    """One key for each chain number, the same whatever other chains there are."""
    return fold_in(key, chains)


def host_generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's generator for work on the host, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())

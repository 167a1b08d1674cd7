"""The Threefry generator as elementwise arithmetic: the numbers of `jax.random`, at less cost.

`jax.random` rolls the rounds of the hash into a compiled loop that goes through memory five times,
and whose bodies take XLA on a CPU near a second to compile for noise of many chains and steps. The
plain expression here is compiled in a tenth of that and drawn in about half the time, and works on
NumPy's arrays, where nothing is compiled. Keys of another generator than Threefry are left to
`jax.random`.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, UInt

Words = tuple[Any, Any]
Numbers = Int[np.ndarray, "..."] | Int[Array, "..."]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_ON_HOST = (operator.add, operator.xor, operator.or_, operator.lshift, operator.rshift)
# JAX takes twice as long to trace an operator as the operation that it stands for.
_TRACED = (lax.add, lax.bitwise_xor, lax.bitwise_or, lax.shift_left, lax.shift_right_logical)


def threefry(key: Words, counter: Words) -> Words:
    """Threefry-2x32 with 20 rounds: two words from a key and a counter of two words each.

    Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", section 3.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = counter[0] + schedule[0], counter[1] + schedule[1]
    add, xor, union, left, right = _ON_HOST if isinstance(a, np.ndarray) else _TRACED
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            a = add(a, b)
            b = xor(a, union(left(b, np.uint32(rotation)), right(b, np.uint32(32 - rotation))))
        a = a + schedule[(i + 1) % 3]
        b = b + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return a, b


# Traced once for each shape, however often a program draws.
_traced = jax.jit(threefry)


def fold_in(key: Key[Array, ""], data: int | Numbers) -> Key[Array, "..."]:
    """One key for each number in `data`, as `jax.random.fold_in`.

    Nothing is compiled where the key is known and `data` an integer or an array of NumPy.
    """
    if not _is_threefry(key):
        each = jax.vmap(lambda number: jax.random.fold_in(key, number))
        return each(jnp.ravel(data)).reshape(jnp.shape(data))
    if isinstance(key, Tracer) or isinstance(data, jax.Array):
        data = jnp.asarray(data).astype(jnp.uint32)
        words = _traced(words_of(key), (jnp.zeros_like(data), data))
        return jax.random.wrap_key_data(jnp.stack(words, axis=-1), impl="threefry2x32")
    words = _folded(known_words(key), data)
    found: Any = np.stack(words, axis=-1).reshape(*np.shape(data), 2)
    return jax.random.wrap_key_data(found, impl="threefry2x32")


def unit_floats(key: Key[Array, ""], size: int, dtype) -> Float[Array, " size"]:
    """`jax.random.uniform` on [0, 1) of shape `(size,)`."""
    if not draws_here(key, dtype):
        return jax.random.uniform(key, (size,), dtype)
    return unit_floats_at(words_of(key), jnp.arange(size, dtype=jnp.uint32), dtype)


def unit_floats_at(words: Words, count: UInt[Array, "..."], dtype) -> Float[Array, "..."]:
    """Entries number `count` of `unit_floats`, for the two words of a key or of many."""
    high, low = _traced(words, (jnp.zeros_like(count), count))
    return lax.bitcast_convert_type(_mantissas(high, low, dtype), dtype) - np.ones((), dtype)


def known_unit_floats(
    key: Key[Array, ""], numbers: Sequence[Int[np.ndarray, " n"] | int], size: int, dtype
) -> Float[np.ndarray, "n size"]:
    """`unit_floats` of a known key with each of `numbers` folded in, one after the other.

    On the host, where nothing is traced or compiled; the numbers are those of `unit_floats`.
    """
    words = known_words(key)
    for number in numbers:
        words = _folded(words, number)
    count = np.arange(size, dtype=np.uint32)[None]
    high, low = threefry((words[0][:, None], words[1][:, None]), (np.zeros_like(count), count))
    return _mantissas(high, low, dtype).view(dtype) - np.ones((), dtype)


def _folded(words: Words, data) -> Words:
    """The words of a known key with each number of `data` folded in, along one axis."""
    # NumPy warns of scalars that overflow, and lets arrays wrap around.
    number = np.reshape(np.asarray(data, np.uint32), (-1,))
    return threefry(words, (np.zeros_like(number), number))


def _mantissas(high, low, dtype):
    """The bits of numbers in [1, 2) with random mantissas, from two words of the generator."""
    info = jnp.finfo(dtype)
    bits = high ^ low
    if info.bits == 64:
        bits = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    one = np.ones((), dtype).view(bits.dtype)
    return (bits >> np.array(info.bits - info.nmant, bits.dtype)) | one


def known_words(key: Key[Array, ""]) -> Words:
    """The two words of a known Threefry key, as arrays of NumPy of length one."""
    # Also inside `jit`, where a key that the function closes over is known all the same.
    with jax.ensure_compile_time_eval():
        known = np.asarray(jax.random.key_data(key))
    return known[:1], known[1:]


def words_of(key: Key[Array, ""]) -> Words:
    """The two words of a Threefry key."""
    data = jax.random.key_data(key)
    return data[0], data[1]


def draws_here(key: Key[Array, ""], dtype) -> bool:
    """Whether numbers of this key and dtype are drawn here, not by `jax.random`."""
    return _is_threefry(key) and jnp.finfo(dtype).bits in (32, 64)


def _is_threefry(key) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"

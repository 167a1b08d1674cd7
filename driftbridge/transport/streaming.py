"""Rows in blocks through one compiled program, at memory that does not grow with their number."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from driftbridge.transport.points import traced

if TYPE_CHECKING:
    from driftbridge.transport.base import TransportMap

# Numbers that one block holds: 32 MiB in float32, which beats larger ones on CPUs.
BLOCK_FLOATS = 1 << 23
LEAST, MOST = 16, 1 << 16


@partial(jax.jit, static_argnames=("method", "static"))
def _block(transport: "TransportMap", method: str, rows, first, shared: tuple, static: tuple):
    if shared:  # a random key: every row has its own, whatever the blocks
        numbers = first + jnp.arange(rows.shape[0], dtype=jnp.int32)
        keys = jax.vmap(lambda number: jax.random.fold_in(shared[0], number))(numbers)
        return getattr(transport, method)(rows, keys, *static)
    return getattr(transport, method)(rows, *static)


def rows_of_block(row_floats: int) -> int:
    """The power of two of rows whose working memory is about `BLOCK_FLOATS`."""
    wanted = max(LEAST, min(MOST, BLOCK_FLOATS // max(row_floats, 1)))
    return 1 << (wanted.bit_length() - 1)


def streamed(
    transport: "TransportMap", method: str, rows: Any, shared: tuple = (), static: tuple = ()
) -> Any:
    """A batched method of a map over all rows.

    Blocks have one of a few sizes, powers of two, the last filled up with copies of its last row:
    another number of rows compiles nothing.

    **Arguments:**

    - `rows`: `(n, dim)`; if it is traced, the method is called on it as it is.
    - `shared`: nothing, or one random key, of which each row gets its own.

    **Returns:** what the method returns for each row, as a NumPy array.
    """
    if traced(rows) or any(traced(leaf) for leaf in jax.tree.leaves(transport)):
        zero = jnp.zeros((), jnp.int32)
        return _block(transport, method, rows.astype(transport.dtype), zero, shared, static)
    n = rows.shape[0]
    size = min(rows_of_block(transport.row_floats), 1 << max(n - 1, LEAST - 1).bit_length())
    values, out = np.asarray(rows), None
    for start in range(0, n, size):
        block = values[start : start + size].astype(transport.dtype)
        count = len(block)
        if count < size:
            block = np.concatenate([block, np.repeat(block[-1:], size - count, axis=0)])
        first = np.asarray(start, np.int32)
        part = np.asarray(_block(transport, method, block, first, shared, static))[:count]
        if out is None:
            out = np.empty((n, *part.shape[1:]), part.dtype)
        out[start : start + count] = part
    if out is None:  # no rows: the shape is that of a block
        block = jax.ShapeDtypeStruct((LEAST, *values.shape[1:]), transport.dtype)
        zero = jax.ShapeDtypeStruct((), np.int32)
        shape = jax.eval_shape(
            lambda t, rows, first, key: _block(t, method, rows, first, key, static),
            transport, block, zero, shared,
        )  # fmt: skip
        out = np.zeros((0, *shape.shape[1:]), shape.dtype)
    return out

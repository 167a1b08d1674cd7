"""A user's function with its arguments: arrays as leaves, everything else static."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from driftbridge.runtime.dtypes import default_dtype


class Arguments(eqx.Module):
    """A function with its arguments, of which arrays and floats can change without compiling again.

    Arrays of numbers and Python or NumPy floats become leaves. Integers, booleans, strings and
    functions are static: they may set shapes and branches, and another value compiles again. `None`
    and the structure of containers are static too.
    """

    arrays: tuple[Array, ...]
    static: tuple[Any, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def __init__(self, fn: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        paths, self.treedef = jax.tree.flatten_with_path((fn, args, kwargs or {}))
        leaves = [_leaf(_name(path), leaf) for path, leaf in paths]
        self.arrays = tuple(leaf for leaf in leaves if isinstance(leaf, jax.Array))
        # None marks an array: a None that was given is structure, never a leaf.
        self.static = tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves)

    @property
    def tree(self) -> tuple[Any, tuple, dict[str, Any]]:
        """The function, its positional and its keyword arguments."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.static]
        return jax.tree.unflatten(self.treedef, leaves)


def _name(path):
    """The position or keyword of an argument, with the path inside it."""
    return jax.tree_util.keystr(path[1:], simple=True, separator=".")


def _leaf(name, value):
    """An array on the device, put there without a compiled program; or a hashable constant."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, float | np.floating):
        dtype = value.dtype if isinstance(value, np.floating) else default_dtype()
        return jax.device_put(np.asarray(value, dtype))
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, np.ndarray):
        if not (value.dtype == bool or jnp.issubdtype(value.dtype, np.number)):
            raise TypeError(
                f"argument {name} is an array of dtype {value.dtype}; pass numbers (labels as "
                "integer codes, dates as numbers)."
            )
        return jax.device_put(value)
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"argument {name} is a {type(value).__name__}, neither an array nor hashable; pass "
            "NumPy or JAX arrays (a data frame's columns as column.to_numpy())."
        ) from None
    return value


@contextlib.contextmanager
def explaining_traced_arguments():
    """Add the cure to the error of a function that needs the value of an argument while traced."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        error.add_note(
            "Arrays and floats among the arguments are traced, so that new data compile nothing. "
            "Pass what sets shapes or branches as a Python int, bool or str argument (for example "
            "num_groups=int(groups.max()) + 1), computed before the call."
        )
        raise

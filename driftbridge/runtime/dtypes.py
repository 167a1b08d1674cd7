"""The driver's door: every floating leaf becomes a strongly typed array of one dtype."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np


def default_dtype() -> np.dtype:
    """The floating dtype of new positions: float64 where x64 is on, else float32."""
    return np.dtype(jnp.result_type(float))


Tree = TypeVar("Tree")


def cast_floating(tree: Tree, dtype) -> Tree:
    """Return `tree` with every floating leaf (Python floats included) as an array of `dtype`.

    Integer, boolean and key arrays are left alone: they are indices, counts or random keys.
    The result is strongly typed, so a Python float and an array of the same value share one
    compiled program.
    """

    def cast(leaf):
        if isinstance(leaf, bool | int):
            return leaf
        if isinstance(leaf, float):
            return jax.device_put(np.asarray(leaf, dtype))  # nothing is compiled
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return jax.lax.convert_element_type(jnp.asarray(leaf), dtype)
            return jnp.asarray(leaf)
        return leaf

    return jax.tree.map(cast, tree)

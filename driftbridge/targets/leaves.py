"""How a target holds its numbers, and how it checks them without compiling anything."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Leaf = jax.Array | np.ndarray


def floating(value: Any) -> Leaf:
    """`value` as an array leaf: JAX arrays keep their dtype, anything else becomes NumPy float64.

    NumPy leaves keep full precision whatever the default dtype of JAX is at construction; the
    driver casts them at its door, and methods cast them to the dtype of the position.
    """
    if isinstance(value, jax.Array):
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
    return np.asarray(value, np.float64)


def is_concrete(value: Any) -> bool:
    """Whether the numbers of `value` can be looked at here."""
    return isinstance(value, float | int | np.ndarray | np.generic) or (
        isinstance(value, jax.Array) and not isinstance(value, Tracer)
    )


def check_positive(**values: Any) -> None:
    """Raise `ValueError` for a concrete number that is not positive and finite."""
    for name, value in values.items():
        if is_concrete(value):
            numbers = np.asarray(value)
            if not np.all((numbers > 0) & np.isfinite(numbers)):
                raise ValueError(f"{name} must be positive and finite; got {value}.")


def check_finite(**values: Any) -> None:
    """Raise `ValueError` for a concrete array with a NaN or an infinity, naming its place."""
    for name, value in values.items():
        if is_concrete(value) and not np.all(np.isfinite(value)):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(value)))[0])
            raise ValueError(f"{name} must be finite; got {np.asarray(value)[place]} at {place}.")


def exact(value: Any) -> np.ndarray:
    """A concrete leaf in NumPy float64, for the closed forms and quadratures of `truth`."""
    return np.asarray(value, np.float64)

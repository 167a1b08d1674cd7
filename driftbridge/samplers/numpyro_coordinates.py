"""NumPyro's trees of unconstrained values as flat positions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from driftbridge.targets.base import Target
from driftbridge.targets.layout import Layout


@dataclass(frozen=True)
class Coordinates:
    """How NumPyro's tree of unconstrained values is laid out in a flat position."""

    layout: Layout
    leaves: tuple[str, ...]
    treedef: Any

    def split(self, position: Float[Array, " dim"]) -> PyTree:
        parts = self.layout.split(position)
        return jax.tree.unflatten(self.treedef, [parts[name] for name in self.leaves])

    def join(self, z: PyTree) -> Float[Array, " dim"]:
        """Raises `ValueError` or `TypeError` naming a leaf of a wrong kind."""
        if jax.tree.structure(z) != self.treedef:
            raise ValueError(
                f"init_params must have one array for each of {', '.join(self.leaves)}, in "
                f"unconstrained space, as {self.treedef}; got {jax.tree.structure(z)}."
            )
        named = dict(zip(self.leaves, map(jnp.asarray, jax.tree.leaves(z)), strict=True))
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            if named[name].shape != shape:
                raise ValueError(
                    f"init_params has shape {named[name].shape} for {name!r}, whose unconstrained "
                    f"shape is {shape}."
                )
            if not jnp.issubdtype(named[name].dtype, jnp.floating):
                raise TypeError(f"init_params must be floating; {name!r} is {named[name].dtype}.")
        return self.layout.join(named)

    def label(self, index: int) -> str:
        """Name of one coordinate of a position."""
        for name, shape, size in zip(
            self.layout.names, self.layout.shapes, self.layout.sizes, strict=True
        ):
            if index < size:
                place = ", ".join(str(i) for i in np.unravel_index(index, shape))
                return f"{name}[{place}]" if place else name
            index -= size
        raise IndexError(index)

    @classmethod
    def of_model(cls, layout: Layout) -> "Coordinates":
        names = tuple(sorted(layout.names))
        return cls(layout, names, jax.tree.structure(dict.fromkeys(names, 0)))

    @classmethod
    def of_tree(cls, z: PyTree) -> "Coordinates":
        paths, treedef = jax.tree.flatten_with_path(z)
        names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths)
        names = tuple(name or "z" for name in names)
        shapes = tuple(tuple(jnp.shape(leaf)) for _, leaf in paths)
        return cls(Layout(names, shapes), names, treedef)


class Potential(Target):
    """The density `exp(-fn(z))`."""

    dim: int = eqx.field(static=True)
    fn: Callable[[PyTree], Any] = eqx.field(static=True)
    coordinates: Coordinates = eqx.field(static=True)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return -jnp.asarray(self.fn(self.coordinates.split(x)), x.dtype)

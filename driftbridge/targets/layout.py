"""Named arrays laid end to end in one flat vector."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the arrays that make up a flat vector, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def dim(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def split(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        """The arrays by name."""
        if x.shape != (self.dim,):
            raise ValueError(f"a position of this target has shape ({self.dim},); got {x.shape}.")
        # One split, whose gradient is one concatenation.
        parts = jax.lax.split(x, self.sizes)
        return {
            name: part.reshape(shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def join(self, arrays: dict[str, Float[Array, "..."]]) -> Float[Array, " dim"]:
        """The flat vector of arrays given by name."""
        return jnp.concatenate([jnp.ravel(arrays[name]) for name in self.names])

"""Ground costs `c(x, y)` of two points, and their matrices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.runtime.products import product

# A function of two points `(dim,)`; None is half the squared distance, by a matrix product.
Cost = Callable[[Array, Array], Array] | None


def half_squared_distance(x: Float[Array, " dim"], y: Float[Array, " dim"]) -> Float[Array, ""]:
    """`|x - y|^2 / 2`, the cost to which the library's `epsilon` belongs."""
    return jnp.sum((x - y) ** 2) / 2


def cost_matrix(
    cost: Cost, x: Float[Array, "n dim"], y: Float[Array, "m dim"]
) -> Float[Array, "n m"]:
    """`c(x_i, y_j)`; without a cost, half the squared distance as a matrix product.

    The product cancels: its absolute error is that of `|x|^2`, so centre the points first.
    """
    if cost is not None:
        return jax.vmap(lambda x: jax.vmap(lambda y: cost(x, y))(y))(x)
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    return squares / 2 - product(x, y.T)

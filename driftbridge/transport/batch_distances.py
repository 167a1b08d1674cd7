"""Distances between the points of two batches, in losses, and the energy distance of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.runtime.products import product


def distances(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, "n m"]:
    """Distances between all points of two batches, with a gradient of 0 where they meet."""
    centre = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - centre, y - centre
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]
    squares = squares - 2 * product(x, y.T)
    # Differences of squares are right to the rounding of the squares.
    least = 4 * jnp.finfo(x.dtype).eps * jnp.mean(jnp.abs(squares))
    return jnp.sqrt(jnp.maximum(squares, least))


def squared_energy_distance(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, ""]:
    """`2 E |X - Y| - E |X - X'| - E |Y - Y'|` over distinct points: without bias, 0 in the mean for
    one law.

    Székely and Rizzo (2013), Journal of Statistical Planning and Inference 143.
    """
    return 2 * jnp.mean(distances(x, y)) - _within(x) - _within(y)


def _within(x: Float[Array, "n dim"]) -> Float[Array, ""]:
    """The mean distance of two distinct points."""
    n = x.shape[0]
    apart = jnp.where(jnp.eye(n, dtype=bool), 0, distances(x, x))
    return jnp.sum(apart) / (n * (n - 1))

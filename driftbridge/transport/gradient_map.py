"""Maps that are gradients of strictly convex functions: one inverse and one determinant."""

import abc

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import HasDensity
from driftbridge.transport.convex import inverse_gradient

# Products of coordinates of all points that are held at once: 64 MiB in float32.
MOST_PRODUCTS = 1 << 24


class GradientMap(HasDensity):
    """`T = grad phi`, whose Jacobian is symmetric and positive definite."""

    @abc.abstractmethod
    def _jacobian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        """The Hessian of `phi`."""

    @abc.abstractmethod
    def _near(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Where the search for the points with images `y` begins."""

    @abc.abstractmethod
    def _length(self, y: Float[Array, "n dim"]) -> Float[Array, ""]:
        """Length of the images, in their units: what rounding is relative to."""

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        length = self._length(y)
        return inverse_gradient(self._transport, self._jacobian, y, self._near(y), length)

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        factor = jnp.linalg.cholesky(self._jacobian(x))
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


def second_moments(
    weights: Float[Array, "n m"], points: Float[Array, "m dim"]
) -> Float[Array, "n dim dim"]:
    """`sum_j w_ij a_j a_j'` for every row of weights."""
    size, dim = points.shape
    if size * dim**2 > MOST_PRODUCTS:  # row by row, without an array of all products of coordinates
        return lax.map(lambda row: product((points * row[:, None]).T, points), weights)
    products = (points[:, :, None] * points[:, None, :]).reshape(size, dim * dim)
    return product(weights, products).reshape(-1, dim, dim)

"""Linear changes of coordinates `x = L z` in which a target is closer to a unit Gaussian."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from driftbridge.runtime.products import product
from driftbridge.targets.leaves import check_positive, is_concrete


class Metric(eqx.Module):
    """An invertible matrix `L` with `L L^T` close to the covariance of the target.

    A subclass supplies the products of one vector with `L` and `L^-1` (positions) and with `L^T`
    and `L^-T` (scores: if `x = L z`, the gradient in `z` is `L^T` times that in `x`).
    """

    @abc.abstractmethod
    def unwhiten(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`L z`: a displacement in the user's coordinates."""

    @abc.abstractmethod
    def whiten(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`L^-1 x`, the inverse of `unwhiten`."""

    @abc.abstractmethod
    def whiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`L^T s`: the gradient in `z` of a function with gradient `s` in `x`."""

    @abc.abstractmethod
    def unwhiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`L^-T s`, the inverse of `whiten_score`."""


class DiagonalMetric(Metric):
    """A scale for each coordinate, `L = diag(scale)`.

    **Arguments:**

    - `scale`: positive, shape `(dim,)`; standard deviations of the target.
    """

    scale: Float[ArrayLike, " dim"]

    def __check_init__(self):
        check_positive(scale=self.scale)

    @classmethod
    def from_variance(cls, variance: Float[ArrayLike, " dim"]) -> "DiagonalMetric":
        """The metric of a diagonal covariance."""
        return cls(jnp.sqrt(variance))

    def unwhiten(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return jnp.multiply(self.scale, z)

    def whiten(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return jnp.divide(x, self.scale)

    def whiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return jnp.multiply(self.scale, score)

    def unwhiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return jnp.divide(score, self.scale)


class DenseMetric(Metric):
    """A full matrix, `L = cholesky`.

    Two products with a `dim x dim` matrix for each gradient, which batches of chains turn into
    matrix products (vector first, so that none is transposed).

    **Arguments:**

    - `cholesky`: lower triangular with positive diagonal, shape `(dim, dim)`.
    - `inverse_cholesky`: its inverse.
    """

    cholesky: Float[ArrayLike, "dim dim"]
    inverse_cholesky: Float[ArrayLike, "dim dim"]

    @classmethod
    def from_covariance(cls, covariance: Float[ArrayLike, "dim dim"]) -> "DenseMetric":
        """The metric of a covariance; `ValueError` where it is not positive definite.

        Inside a transformation, where values cannot be looked at, the metric is then NaN.
        """
        cholesky = jnp.linalg.cholesky(jnp.asarray(covariance))
        if is_concrete(cholesky) and not np.all(np.isfinite(cholesky)):
            least = np.linalg.eigvalsh(np.asarray(covariance, np.float64))[0]
            raise ValueError(
                f"covariance must be positive definite; its least eigenvalue is {least:.3g}. Add "
                "a multiple of the identity, or use DiagonalMetric."
            )
        identity = jnp.eye(len(cholesky), dtype=cholesky.dtype)
        inverse = jax.scipy.linalg.solve_triangular(cholesky, identity, lower=True)
        return cls(cholesky, inverse)

    def unwhiten(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return product(z, jnp.transpose(self.cholesky))

    def whiten(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return product(x, jnp.transpose(self.inverse_cholesky))

    def whiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return product(score, self.cholesky)

    def unwhiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return product(score, self.inverse_cholesky)

"""The optimal map between Gaussians: the affine map of Bures and Wasserstein."""

import time
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.products import product
from driftbridge.transport.base import Fit, HasDensity, Method, as_dtype
from driftbridge.transport.measures import Moments, moments
from driftbridge.transport.points import Sample

# Share of every column's variance added to its diagonal entry: no slope exceeds the root of its
# inverse, in directions where the source has no points.
RIDGE = 1e-6
# Variance, in units of the columns', of directions in which a sample has none: those whose share of
# the largest is below rounding.
EMPTY, RANK = 1e-2, 1e-12


class Bures(NamedTuple):
    """The optimal map between two Gaussians, and the terms of their distance.

    - `matrix`: `M = C0^{-1/2} N C0^{-1/2}`, with `N = (C0^{1/2} C1 C0^{1/2})^{1/2}`.
    - `root`, `inverse_root`: `C0^{1/2}` and `C0^{-1/2}`.
    - `eigenvalues`, `eigenvectors`: of `N`.
    """

    matrix: Float[np.ndarray, "dim dim"]
    root: Float[np.ndarray, "dim dim"]
    inverse_root: Float[np.ndarray, "dim dim"]
    eigenvalues: Float[np.ndarray, " dim"]
    eigenvectors: Float[np.ndarray, "dim dim"]


def gaussians(source: Sample, target: Sample, shrunk: bool = False) -> tuple[Moments, Moments]:
    """Moments of both samples, `1e-6` of each column's variance on the diagonals.

    `shrunk` covariances are those of Ledoit and Wolf, in units of the columns.

    The variance is the mean of both samples', so that a column that is constant in one of them has
    a bounded slope, and columns of any units are treated alike. Directions in which the source has
    no points, as with fewer of them than dimensions, get `1e-2`: what new points have there is
    stretched by at most ten.
    """
    first, second = moments(source), moments(target)
    variances = (np.diagonal(first.covariance) + np.diagonal(second.covariance)) / 2
    scale = np.sqrt(np.where(variances > 0, variances, 1.0))
    if shrunk:
        first, second = (
            Moments(found.mean, _shrunk(sample, found, scale))
            for sample, found in ((source, first), (target, second))
        )
    ridge = RIDGE * np.diag(scale**2)
    filled = first.covariance + _empty(first.covariance, scale)
    return Moments(first.mean, filled + ridge), Moments(second.mean, second.covariance + ridge)


def _shrunk(
    sample: Sample, found: Moments, scale: Float[np.ndarray, " dim"]
) -> Float[np.ndarray, "dim dim"]:
    """The covariance `S` pulled to a multiple of the identity as far as its noise is large.

    `(1 - r) S + r m I`, `m = tr S / dim`, `r = min(1, sum_i w_i^2 |z_i z_i' - S|^2 / |S - m I|^2)`
    with the centred points `z_i` over the columns' units.

    Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices,
    section 3.3; with weights.
    """
    z = (sample.points.astype(np.float64) - found.mean) / scale
    covariance = found.covariance / np.outer(scale, scale)
    level = np.trace(covariance) / len(scale) * np.eye(len(scale))
    apart = np.sum((covariance - level) ** 2)
    # |z z' - S|^2 = |z|^4 - 2 z . S z + |S|^2
    squares = np.sum(z**2, axis=1) ** 2 - 2 * np.sum(z * (z @ covariance), axis=1)
    noise = np.sum(sample.weights**2 * (squares + np.sum(covariance**2)))
    share = 1.0 if noise >= apart else noise / apart
    return ((1 - share) * covariance + share * level) * np.outer(scale, scale)


def _empty(
    covariance: Float[np.ndarray, "dim dim"], scale: Float[np.ndarray, " dim"]
) -> Float[np.ndarray, "dim dim"]:
    """A covariance of the directions in which another has nothing, in units of the columns."""
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    empty = vectors[:, values <= RANK * max(values[-1], 0.0)]
    return EMPTY * np.outer(scale, scale) * (empty @ empty.T)


def bures(source: Float[np.ndarray, "dim dim"], target: Float[np.ndarray, "dim dim"]) -> Bures:
    """The map between centred Gaussians of two covariances.

    The eigenvalues of `source` must be positive.
    """
    values, vectors = np.linalg.eigh(source)
    values = np.maximum(values, np.finfo(np.float64).tiny)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    squares, basis = np.linalg.eigh(root @ target @ root)
    roots = np.sqrt(np.maximum(squares, 0))
    left = inverse_root @ basis
    return Bures((left * roots) @ left.T, root, inverse_root, roots, basis)


class AffineMap(HasDensity):
    """`T(x) = m1 + A (x - m0)` with `A` symmetric and positive definite."""

    source_mean: Float[Array, " dim"]
    target_mean: Float[Array, " dim"]
    matrix: Float[Array, "dim dim"]
    inverse_matrix: Float[Array, "dim dim"]
    log_determinant: Float[Array, ""]

    @property
    def dim(self) -> int:
        return self.source_mean.shape[0]

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.target_mean[None] + product(x - self.source_mean[None], self.matrix)

    def _potential(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        centred = x - self.source_mean[None]
        quadratic = jnp.sum(centred * product(centred, self.matrix), axis=1) / 2
        return quadratic + product(x, self.target_mean)

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.source_mean[None] + product(y - self.target_mean[None], self.inverse_matrix)

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return jnp.full(x.shape[0], self.log_determinant)


class Affine(Method):
    """The optimal map between the Gaussians that have the moments of the data.

    `T(x) = m1 + A (x - m0)`, `A = C0^{-1/2} (C0^{1/2} C1 C0^{1/2})^{1/2} C0^{-1/2}`: the gradient
    of a convex function, hence optimal for its own image, and the best affine map whatever the
    data. A covariance gets `1e-6` of each column's variance on its diagonal.

    **Arguments:**

    - `shrunk`: whether covariances are shrunk by the rule of Ledoit and Wolf, which pays where
      points are few for their dimension and directions are alike.

    Olkin and Pukelsheim (1982); Takatsu (2011).
    """

    name: ClassVar[str] = "affine"

    shrunk: bool = eqx.field(static=True, default=False)

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> AffineMap:
        start = time.perf_counter()
        first, second = gaussians(source, target, self.shrunk)
        matrix = bures(first.covariance, second.covariance).matrix
        values, vectors = np.linalg.eigh(matrix)
        dtype = source.points.dtype
        # A direction that the map takes to a point has no inverse; a float32 of its slope has one.
        values = np.maximum(values, float(np.finfo(dtype).eps) * values[-1])
        return AffineMap(
            Fit(self.name, seconds=time.perf_counter() - start),
            as_dtype(first.mean, dtype),
            as_dtype(second.mean, dtype),
            as_dtype(matrix, dtype),
            as_dtype((vectors / values) @ vectors.T, dtype),
            as_dtype(np.log(values).sum(), dtype),
        )

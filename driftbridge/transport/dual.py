"""The dual of optimal transport as an objective of training, and where training begins."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.resampling import Rows
from driftbridge.transport.soft_maxima import SoftMaxima, conjugate_points

# The least slope of a fold's map in balanced coordinates, where the affine map is the identity.
LEAST_SLOPE = 0.02
# Soft maxima begin at points of the target shrunk to this, their temperature this share of the
# variance: a map that is next to affine.
SHRUNK, WARM = 0.2, 0.5
# The least eigenvalue of the quadratic that training starts from.
LEAST_EIGENVALUE = 0.05
# Points whose mean Hessian the start takes away from the quadratic, and their coordinates at most.
STARTED, MOST_COORDINATES = 1000, 1 << 22


class Weighted(NamedTuple):
    """Points, filled up to a size bucket by ones without weight."""

    points: Float[Array, "n dim"]
    weights: Float[Array, " n"]
    rows: Rows

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray) -> "Weighted":
        size = bucket(len(points))
        filled = padded(weights.astype(points.dtype), size)
        placed = jax.device_put((padded(points, size), filled))
        return cls(placed[0], placed[1], Rows(weights))

    def batch(self, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        """`n` points and their weights, evenly over the sample; all of them where `n` is more."""
        if n >= len(self.points):
            return self.points, self.weights
        rows = self.rows.evenly(key, n)
        return self.points[rows], jnp.full((n,), 1 / n, self.points.dtype)


class Trainable(eqx.Module):
    """The parameters of `SoftMaxima`: temperatures by their logarithm, the matrix by a root."""

    points: Float[Array, "members groups dim"]
    offsets: Float[Array, "members groups"]
    log_temperatures: Float[Array, " groups"]
    root: Float[Array, "dim dim"]

    def potential(self) -> SoftMaxima:
        least = LEAST_SLOPE * jnp.eye(len(self.root), dtype=self.root.dtype)
        return SoftMaxima(
            self.points,
            self.offsets,
            jnp.exp(self.log_temperatures),
            product(self.root, self.root.T) + least,
            jnp.asarray(1 / self.points.shape[1], self.points.dtype),
        )


class Dual(Objective):
    """`E phi(u) + E phi*(v)`, least for the potential of the optimal map.

    `phi*(v) = u(v) . v - phi(u(v))`, whose derivative in `phi` is `-phi` at `u(v)` held fixed: the
    envelope theorem. `u(v)` comes by Newton steps.

    Taghvaei and Jalali (2019), arXiv 1902.07197, equation 6; Makkuva et al. (2020), arXiv
    1908.10962, equation 4.
    """

    source: Weighted
    target: Weighted
    num_steps: int = eqx.field(static=True)
    num_products: int = eqx.field(static=True)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        return self.source.batch(fold_in(key, 0), n), self.target.batch(fold_in(key, 1), n)

    def loss(self, model: Trainable, batch: Any) -> Float[Array, ""]:
        (u, a), (v, b) = batch
        phi = model.potential()
        found = conjugate_points(lax.stop_gradient(phi), v, self.num_steps, self.num_products)
        found = lax.stop_gradient(found)
        return jnp.sum(a * phi.value(u)) + jnp.sum(
            b * (jnp.sum(found * v, axis=1) - phi.value(found))
        )

    def affine(self) -> float:
        """The dual of all points for `phi(u) = |u|^2 / 2`, the affine map's potential."""
        sides = self.source, self.target
        squares = [np.sum(s.weights * np.sum(np.square(s.points), axis=1)) for s in sides]
        return float(sum(squares) / 2)


def begin(
    objective: Dual, num_groups: int, num_members: int, random: np.random.Generator
) -> Trainable:
    """A potential whose mean Hessian over the source is the identity."""
    points, weights = (np.asarray(v, np.float64) for v in objective.target[:2])
    dtype, dim = objective.target.points.dtype, points.shape[1]
    count = num_members, num_groups
    chosen = random.choice(len(points), count, p=weights / weights.sum())
    a, t = SHRUNK * points[chosen], WARM * SHRUNK**2 * dim
    few = max(1, min(STARTED, MOST_COORDINATES // (num_groups * dim)))
    u = np.asarray(objective.source.points, np.float64)[:few]
    b = np.asarray(objective.source.weights, np.float64)[:few]
    b = b if b.sum() > 0 else np.ones(len(b))
    offsets = -np.sum(a**2, axis=2) / 2
    logits = (np.tensordot(u, a, (1, 2)) + offsets) / t
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    means = np.einsum("njg,jgd->ngd", p, a, optimize=True) * np.sqrt(b / b.sum())[:, None, None]
    means = means.reshape(-1, dim)
    shares = np.tensordot(b / b.sum(), p, 1)
    slope = np.einsum("jg,jgd,jge->de", shares, a, a, optimize=True) - means.T @ means
    rest = (1 - LEAST_SLOPE) * np.eye(dim) - slope / (t * num_groups)
    values, vectors = np.linalg.eigh(rest)
    root = (vectors * np.sqrt(np.maximum(values, LEAST_EIGENVALUE))) @ vectors.T
    parts = a, offsets, np.full(num_groups, np.log(t)), root
    return Trainable(*jax.device_put(tuple(part.astype(dtype) for part in parts)))

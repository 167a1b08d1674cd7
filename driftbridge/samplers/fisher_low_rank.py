"""The low-rank metric that whitens draws and scores together, for many dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.samplers.geometric_mean import geometric_mean
from driftbridge.samplers.low_rank import LowRankMetric

# Directions in which the draws spread most, and as many in which the scores do.
DIRECTIONS = 16
# Products with the draws that a search for directions takes.
POWERS = 3


def first_low_rank(like: Float[Array, " dim"]) -> LowRankMetric:
    """The identity as a metric with `2 DIRECTIONS` stretched directions."""
    rank = min(2 * DIRECTIONS, like.size)
    basis = jnp.eye(like.size, rank, dtype=like.dtype)
    return LowRankMetric(jnp.ones_like(like), basis, jnp.ones(rank, like.dtype))


def improved_low_rank(
    metric: LowRankMetric,
    positions: Float[Array, "draws dim"],
    scores: Float[Array, "draws dim"],
    weight: Float[Array, ""],
) -> LowRankMetric:
    """The metric after its scales, then its directions, have been fitted to draws and scores.

    With the stretch of the previous directions undone, the scale of a coordinate is multiplied by
    `(Var x / Var s)^(1/4)`. In the scaled coordinates `U` spans the directions in which the draws
    spread most and those in which the scores do, and the stretch is the square root of the
    geometric mean of `U^T Cov(x) U` and `(U^T Cov(s) U)^-1`: the minimiser of the Fisher divergence
    among metrics that are the identity outside `U`. Where a few directions dominate the variance of
    every coordinate, scales and directions settle after some calls.

    **Arguments:**

    - `metric`: the previous one.
    - `positions`, `scores`: centred, and multiplied by the square roots of the draws' weights.
    - `weight`: of the previous metric in every fit, in [0, 1).

    The Fisher divergence as a criterion for low-rank metrics: arXiv 2603.18845.
    """
    x, s = jax.vmap(metric.whiten)(positions), jax.vmap(metric.whiten_score)(scores)
    spread, force = jnp.sum(x**2, axis=0), jnp.sum(s**2, axis=0)
    level = weight * jnp.sqrt(jnp.mean(spread) * jnp.mean(force))
    # One factor makes draws and scores alike in size, so that both are shrunk alike.
    balance = jnp.sqrt(jnp.mean(force) / jnp.mean(spread))
    spread, force = (1 - weight) * spread * balance + level, (1 - weight) * force / balance + level
    scale = metric.scale * (spread / force) ** 0.25 / jnp.sqrt(balance)

    x, s = positions / scale[None], scores * scale[None]
    number = metric.stretch.size // 2
    basis = jnp.linalg.qr(jnp.concatenate([directions(x, number), directions(s, number)], 1))[0]
    # What the previous metric says of the new directions is the prior: shrinkage towards a fixed
    # form would never let a stretch exceed the fourth root of the number of draws.
    inside = product(metric.basis.T, basis)
    excess = product(inside.T * (metric.stretch**2 - 1)[None], inside)
    factor = jnp.linalg.cholesky(jnp.eye(2 * number, dtype=basis.dtype) + excess)
    x = jax.scipy.linalg.solve_triangular(factor, product(x, basis).T, lower=True)
    s = product(factor.T, product(s, basis).T)
    mean = geometric_mean(_shrunk(x, weight), _shrunk(s, weight))
    # Singular values of a factor keep the digits that eigenvalues of the product would lose.
    turn, stretch, _ = jnp.linalg.svd(product(factor, jnp.linalg.cholesky(mean)))
    fitted = LowRankMetric(scale, product(basis, turn), stretch)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(fitted)]
    usable = jnp.stack(finite).all() & jnp.all(stretch > 0)
    return jax.tree.map(lambda new, old: jnp.where(usable, new, old), fitted, metric)


def directions(rows: Float[Array, "draws dim"], number: int) -> Float[Array, "dim number"]:
    """Orthonormal directions of nearly largest second moment, by subspace iteration."""
    start = np.random.default_rng(0).normal(size=(rows.shape[0], number))
    basis = jnp.linalg.qr(product(rows.T, jnp.asarray(start, rows.dtype)))[0]

    def turn(_, basis):
        return jnp.linalg.qr(product(rows.T, product(rows, basis)))[0]

    return jax.lax.fori_loop(0, POWERS, turn, basis)


def _shrunk(columns, weight):
    moments = product(columns, columns.T)
    return (1 - weight) * moments + weight * jnp.eye(len(moments), dtype=columns.dtype)

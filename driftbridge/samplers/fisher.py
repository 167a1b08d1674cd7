"""The metric that whitens draws and scores together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from driftbridge.runtime.products import product
from driftbridge.samplers.fisher_low_rank import first_low_rank, improved_low_rank
from driftbridge.samplers.geometric_mean import geometric_mean
from driftbridge.samplers.low_rank import LowRankMetric
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric, Metric

# Largest dimension at which a full matrix is worth its cubic cost.
DENSE_UP_TO = 256
# Effective draws that the previous metric counts for.
PREVIOUS_DRAWS = 5.0
ROUNDS = 2


def first_metric(like: Float[Array, " dim"]) -> Metric:
    """The identity, in the form that suits the dimension."""
    if like.size > DENSE_UP_TO:
        return first_low_rank(like)
    identity = jnp.eye(like.size, dtype=like.dtype)
    return DenseMetric(identity, identity)


def fisher_metric(
    metric: Metric,
    positions: Float[Array, "draws dim"],
    scores: Float[Array, "draws dim"],
    included: Bool[Array, " draws"],
    num_independent: Float[Array, ""],
) -> Metric:
    """The metric `Σ` that minimises the Fisher divergence of `N(mean, Σ)` to the target.

    `Σ` is the geometric mean of `Cov x` and `(Cov s)^-1`, `s` the score: the `Σ` with
    `Σ Cov(s) Σ = Cov(x)`, exact for every Gaussian from as many draws as dimensions. Covariances
    are taken in the coordinates of the previous metric and shrunk towards it with weight
    `5 / (n + 5)`, twice: shrinkage towards a fixed form would spoil an ill-conditioned metric.

    **Arguments:**

    - `metric`: the previous one; the new one has its form (dense, low-rank or diagonal).
    - `positions`, `scores`: draws and the score at each.
    - `included`: which draws count.
    - `num_independent`: how many independent draws they are worth, `n`.

    The Fisher divergence as a criterion for metrics: arXiv 2603.18845.
    """
    weight = PREVIOUS_DRAWS / (num_independent + PREVIOUS_DRAWS)
    share = included / jnp.maximum(jnp.sum(included), 1).astype(positions.dtype)
    centred = _centred(positions, share)
    forces = _centred(scores, share)

    def improve(_, metric):
        return _improved(metric, centred, forces, share, weight)

    return jax.lax.fori_loop(0, ROUNDS, improve, metric)


def _centred(rows, share):
    # Rows that are left out may hold anything; zero times NaN is NaN.
    rows = jnp.where(share[:, None] > 0, rows, 0)
    return rows - (share @ rows)[None]


def _improved(metric, centred, forces, share, weight):
    if isinstance(metric, LowRankMetric):
        root = jnp.sqrt(share)[:, None]
        return improved_low_rank(metric, centred * root, forces * root, weight)
    x = jax.vmap(metric.whiten)(centred) * jnp.sqrt(share)[:, None]
    s = jax.vmap(metric.whiten_score)(forces) * jnp.sqrt(share)[:, None]
    # One factor makes the two alike in size, so that both are shrunk alike.
    balance = (jnp.sum(s**2) / jnp.sum(x**2)) ** 0.25
    usable = jnp.isfinite(balance) & (balance > 0)
    balance = jnp.where(usable, balance, 1)
    x, s = x * balance, s / balance
    if isinstance(metric, DiagonalMetric):
        spread, force = jnp.sum(x**2, axis=0), jnp.sum(s**2, axis=0)
        level = weight * (jnp.mean(spread) + jnp.mean(force)) / 2
        spread, force = ((1 - weight) * part + level for part in (spread, force))
        ratio = (spread / force) ** 0.25 / balance
        return DiagonalMetric(jnp.where(usable, metric.scale * ratio, metric.scale))
    assert isinstance(metric, DenseMetric)
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    spread, force = _gram(x), _gram(s)
    level = weight * (jnp.trace(spread) + jnp.trace(force)) / (2 * len(identity))
    spread, force = ((1 - weight) * part + level * identity for part in (spread, force))
    factor = jnp.linalg.cholesky(geometric_mean(spread, force)) / balance
    cholesky = product(metric.cholesky, factor)
    inverse = jax.scipy.linalg.solve_triangular(factor, metric.inverse_cholesky, lower=True)
    usable = usable & jnp.all(jnp.isfinite(cholesky)) & jnp.all(jnp.isfinite(inverse))
    return DenseMetric(
        jnp.where(usable, cholesky, metric.cholesky),
        jnp.where(usable, inverse, metric.inverse_cholesky),
    )


def _gram(rows):
    return product(rows.T, rows)

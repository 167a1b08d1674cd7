"""Laguerre cells and their soft form: conditional laws of points given a potential."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from driftbridge.runtime.products import product


class Scores(NamedTuple):
    """Scores `g_j + x.y_j - |y_j|^2 / 2 + offset_j`: the largest is the cell of `x`.

    `offset` is `epsilon log b_j`, or zero without regularisation; minus infinity without weight.
    """

    points: Float[Array, "n dim"]
    offset: Float[Array, " n"]

    def __call__(self, g: Float[Array, " n"], x: Float[Array, "m dim"]) -> Float[Array, "m n"]:
        row = g - jnp.sum(self.points**2, axis=1) / 2 + self.offset
        return product(x, self.points.T) + row[None]


def scores_of(
    points: Float[Array, "n dim"],
    weights: Float[Array, " n"],
    epsilon: Float[Array, ""],
    is_hard: bool,
) -> Scores:
    """The scores of a problem; `is_hard` is the one without regularisation."""
    scale = 0 if is_hard else epsilon
    logarithm = jnp.log(jnp.where(weights > 0, weights, 1))
    return Scores(points, jnp.where(weights > 0, scale * logarithm, -jnp.inf))


def probabilities(
    scores: Float[Array, "m n"], epsilon: Float[Array, ""], is_hard: bool
) -> Float[Array, "m n"]:
    """The conditional law of the points in each row; all on the best one if `is_hard`."""
    if is_hard:
        return jax.nn.one_hot(jnp.argmax(scores, axis=1), scores.shape[1], dtype=scores.dtype)
    return jax.nn.softmax(scores / epsilon, axis=1)


def mean_probabilities(
    scores: Float[Array, "m n"], epsilon: Float[Array, ""], is_hard: bool
) -> Float[Array, " n"]:
    """The mean of `probabilities` over rows: the masses that the points get.

    Points that tie, such as one that occurs twice, share the mass between them.
    """
    largest = jnp.max(scores, axis=1)[:, None]
    if is_hard:
        shares = (scores == largest).astype(scores.dtype)
    else:
        shares = jnp.exp((scores - largest) / epsilon)
    # One pass to normalise and sum.
    return product(1 / (jnp.sum(shares, axis=1) * scores.shape[0]), shares)


def soft_maximum(
    scores: Float[Array, "m n"], epsilon: Float[Array, ""], is_hard: bool
) -> Float[Array, " m"]:
    """`epsilon log sum_j exp(score_j / epsilon)`, or the maximum."""
    if is_hard:
        return jnp.max(scores, axis=1)
    return epsilon * logsumexp(scores / epsilon, axis=1)

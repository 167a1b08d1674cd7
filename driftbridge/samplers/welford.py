"""Running mean and variance or covariance of a batch of chains, merged without cancellation."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from driftbridge.runtime.products import product


class Moments(NamedTuple):
    """Number of vectors seen, their mean, and the sum of squared deviations from it.

    `squares` has shape `(dim,)`, or `(dim, dim)` for the sums of products of two coordinates.
    """

    count: Float[Array, ""]
    mean: Float[Array, " dim"]
    squares: Float[Array, "..."]


def no_moments(dim: int, dtype, dense: bool = False) -> Moments:
    """Moments of nothing."""
    squares = jnp.zeros((dim, dim) if dense else dim, dtype)
    return Moments(jnp.zeros((), dtype), jnp.zeros(dim, dtype), squares)


def add_batch(
    moments: Moments, batch: Float[Array, "chains dim"], included: Bool[Array, ""]
) -> Moments:
    """Moments with one vector of every chain added where `included`.

    Chan, Golub and LeVeque (1983), eq. (2.1): means and squares of two groups are merged, which
    keeps float32 right where `sum x^2 - n mean^2` would cancel.
    """
    added = jnp.asarray(batch.shape[0], batch.dtype)
    batch_mean = jnp.mean(batch, axis=0)
    deviations = batch - batch_mean[None]
    is_dense = moments.squares.ndim == 2
    batch_squares = (
        product(deviations.T, deviations) if is_dense else jnp.sum(deviations**2, axis=0)
    )
    total = moments.count + added
    shift = batch_mean - moments.mean
    merged = Moments(
        total,
        moments.mean + shift * (added / total),
        moments.squares
        + batch_squares
        + (jnp.outer(shift, shift) if is_dense else shift**2) * (moments.count * added / total),
    )
    return Moments(
        *(jnp.where(included, new, old) for new, old in zip(merged, moments, strict=True))
    )


def shrunk_variance(moments: Moments, previous: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """Variance of what was seen, shrunk towards `previous` with the weight of five draws.

    Stan shrinks towards a constant 1e-3, which fixes a scale; the previous metric has none. Where
    nothing varied (every move rejected) the previous value stays.
    """
    variance = moments.squares / jnp.maximum(moments.count - 1, 1)
    weight = moments.count / (moments.count + 5)
    shrunk = weight * variance + (1 - weight) * previous
    return jnp.where((variance > 0) & jnp.isfinite(variance), shrunk, previous)


def shrunk_covariance(
    moments: Moments, previous: Float[Array, "dim dim"]
) -> Float[Array, "dim dim"]:
    """Covariance of what was seen, shrunk towards `previous` with the weight of `dim + 5` draws.

    As many draws as dimensions give a matrix that is singular or nearly so; what they do not tell
    is left to the previous one. Where a coordinate did not vary the previous matrix stays.
    """
    covariance = moments.squares / jnp.maximum(moments.count - 1, 1)
    weight = moments.count / (moments.count + previous.shape[0] + 5)
    shrunk = weight * covariance + (1 - weight) * previous
    varies = jnp.all(jnp.diagonal(covariance) > 0) & jnp.all(jnp.isfinite(covariance))
    return jnp.where(varies, shrunk, previous)

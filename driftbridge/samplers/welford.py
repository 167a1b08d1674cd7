"""Running mean and variance of a batch of chains, merged without cancellation."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
    """Number of vectors seen, their mean, and the sum of squared deviations from it."""

    count: Float[Array, ""]
    mean: Float[Array, " dim"]
    squares: Float[Array, " dim"]


def no_moments(shape: tuple[int, ...], dtype) -> Moments:
    """Moments of nothing."""
    return Moments(jnp.zeros((), dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def add_batch(
    moments: Moments, batch: Float[Array, "chains dim"], included: Bool[Array, ""]
) -> Moments:
    """Moments with one vector of every chain added where `included`.

    Chan, Golub and LeVeque (1983), eq. (2.1): means and squares of two groups are merged, which
    keeps float32 right where `sum x^2 - n mean^2` would cancel.
    """
    added = jnp.asarray(batch.shape[0], batch.dtype)
    batch_mean = jnp.mean(batch, axis=0)
    batch_squares = jnp.sum((batch - batch_mean[None]) ** 2, axis=0)
    total = moments.count + added
    shift = batch_mean - moments.mean
    merged = Moments(
        total,
        moments.mean + shift * (added / total),
        moments.squares + batch_squares + shift**2 * (moments.count * added / total),
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

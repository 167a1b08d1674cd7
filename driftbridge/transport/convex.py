"""Inverses of gradients of strictly convex functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Newton's iteration ends in about ten steps; more where the function is nearly piecewise linear.
MOST_STEPS = 100
HALVINGS = 30
# A step is taken where the slope along it has fallen to this share of the slope at its start.
CURVATURE = 0.5


class _Search(NamedTuple):
    count: Int[Array, ""]
    low: Float[Array, " n"]
    high: Float[Array, " n"]
    length: Float[Array, " n"]
    is_found: Bool[Array, " n"]


class _Iterate(NamedTuple):
    count: Int[Array, ""]
    x: Float[Array, "n dim"]
    residual: Float[Array, "n dim"]
    is_done: Bool[Array, " n"]


def inverse_gradient(
    gradient: Callable[[Float[Array, "n dim"]], Float[Array, "n dim"]],
    hessian: Callable[[Float[Array, "n dim"]], Float[Array, "n dim dim"]],
    y: Float[Array, "n dim"],
    start: Float[Array, "n dim"],
    length: Float[Array, ""],
) -> Float[Array, "n dim"]:
    """The points at which the gradient of a strictly convex function is `y`.

    Newton's iteration on `phi(x) - x . y`, whose slope along each step is bisected until it is at
    most half of that at the start. The slope of a convex function is monotone, so that this
    converges from anywhere, and needs no values, whose differences rounding would hide.

    **Arguments:**

    - `gradient`, `hessian`: of `phi` at a batch of points; the Hessian positive definite.
    - `y`: gradients wanted.
    - `start`: where to begin.
    - `length`: of the set of gradients, in their units: what rounding is relative to.

    **Returns:** the points; NaN where the gradient differs from `y` by more than rounding.
    """
    eps = jnp.finfo(y.dtype).eps
    scale = length + jnp.max(jnp.abs(y), axis=1)

    def is_close(residual):
        return jnp.max(jnp.abs(residual), axis=1) <= 4 * eps * scale

    def step(now: _Iterate) -> _Iterate:
        direction = jnp.linalg.solve(hessian(now.x), now.residual[:, :, None])[:, :, 0]
        length = newton_length(gradient, y, now.x, now.residual, direction, now.is_done)
        move = length[:, None] * direction
        x = jnp.where(now.is_done[:, None], now.x, now.x - move)
        residual = gradient(x) - y
        is_still = jnp.max(jnp.abs(move), axis=1) <= eps * jnp.max(jnp.abs(x), axis=1)
        return _Iterate(now.count + 1, x, residual, now.is_done | is_still | is_close(residual))

    residual = gradient(start) - y
    first = _Iterate(jnp.zeros((), jnp.int32), start, residual, is_close(residual))
    last = lax.while_loop(lambda s: (s.count < MOST_STEPS) & ~jnp.all(s.is_done), step, first)
    # Rounding of x by eps |x| moves its image by as much times the slope.
    steepness = jnp.sqrt(jnp.sum(hessian(last.x) ** 2, axis=(1, 2)))
    rounding = eps * (scale + steepness * jnp.max(jnp.abs(last.x), axis=1))
    reached = jnp.max(jnp.abs(last.residual), axis=1) <= 100 * rounding
    return jnp.where(reached[:, None], last.x, jnp.nan)


def newton_length(
    gradient: Callable[[Float[Array, "n dim"]], Float[Array, "n dim"]],
    y: Float[Array, "n dim"],
    x: Float[Array, "n dim"],
    residual: Float[Array, "n dim"],
    direction: Float[Array, "n dim"],
    is_done: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """How far to go from `x` against each direction: the step is whole, or bisected.

    It ends where the slope along it is at most half of that at the start. Rows that are done are
    not looked at.
    """
    slope = jnp.sum(direction * residual, axis=1)

    def bisect(search: _Search) -> _Search:
        trial = x - search.length[:, None] * direction
        at_trial = jnp.sum(direction * (gradient(trial) - y), axis=1)
        is_far, is_short = at_trial < -CURVATURE * slope, at_trial > CURVATURE * slope
        high = jnp.where(is_far, search.length, search.high)
        low = jnp.where(is_short, search.length, search.low)
        is_found = search.is_found | ~(is_far | is_short) | (low >= 1)
        length = jnp.where(is_found, search.length, (low + high) / 2)
        return _Search(search.count + 1, low, high, length, is_found)

    one = jnp.ones_like(slope)
    search = _Search(jnp.zeros((), jnp.int32), 0 * one, one, one, is_done)
    return lax.while_loop(
        lambda s: (s.count < HALVINGS) & ~jnp.all(s.is_found), bisect, search
    ).length

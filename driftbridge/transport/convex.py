"""Inverses of gradients of strictly convex functions."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Newton's iteration on a strictly convex function with a line search ends in a handful of steps.
MOST_STEPS = 60
HALVINGS = 25


def inverse_gradient(
    potential: Callable[[Float[Array, "n dim"]], Float[Array, " n"]],
    gradient: Callable[[Float[Array, "n dim"]], Float[Array, "n dim"]],
    hessian: Callable[[Float[Array, "n dim"]], Float[Array, "n dim dim"]],
    y: Float[Array, "n dim"],
    start: Float[Array, "n dim"],
) -> Float[Array, "n dim"]:
    """The points at which the gradient of a strictly convex function is `y`.

    Newton's iteration on `phi(x) - x . y`, each step halved until the gradient's norm falls or,
    far from the solution, the function does. Ends where no step improves any point: at rounding.

    **Arguments:**

    - `potential`, `gradient`, `hessian`: `phi` and its derivatives at a batch of points; the
      Hessian positive definite.
    - `y`: gradients wanted.
    - `start`: where to begin.

    **Returns:** the points; NaN for those at which no point of such a gradient was reached.
    """
    eps = jnp.finfo(y.dtype).eps
    scale = 1 + jnp.max(jnp.abs(y), axis=1)

    def state_at(x):
        residual = gradient(x) - y
        return jnp.sum(residual**2, axis=1), residual

    def objective(x):
        return potential(x) - jnp.sum(x * y, axis=1)

    def step(carry):
        i, x, error, residual, _ = carry
        direction = jnp.linalg.solve(hessian(x), residual[:, :, None])[:, :, 0]
        value = objective(x)
        slope = jnp.sum(direction * residual, axis=1)

        def halve(search):
            k, length, best, best_error, best_residual, found = search
            trial = x - length * direction
            trial_error, trial_residual = state_at(trial)
            falls = objective(trial) <= value - 1e-4 * length * slope
            accepted = ((trial_error < 0.9 * error) | (falls & (trial_error < 4 * error))) & ~found
            pick = accepted[:, None]
            return (
                k + 1,
                length / 2,
                jnp.where(pick, trial, best),
                jnp.where(accepted, trial_error, best_error),
                jnp.where(pick, trial_residual, best_residual),
                found | accepted,
            )

        nothing = jnp.zeros(x.shape[0], bool)
        is_done = error <= (8 * eps * scale) ** 2
        search = (0, jnp.ones((), x.dtype), x, error, residual, nothing | is_done)
        _, _, x, error, residual, found = lax.while_loop(
            lambda s: (s[0] < HALVINGS) & ~jnp.all(s[5]), halve, search
        )
        return i + 1, x, error, residual, jnp.any(found & ~is_done)

    error, residual = state_at(start)
    _, x, error, _, _ = lax.while_loop(
        lambda c: (c[0] < MOST_STEPS) & c[4], step, (0, start, error, residual, jnp.array(True))
    )
    # Rounding of x by eps |x| moves its image by as much times the slope.
    slope = jnp.sqrt(jnp.sum(hessian(x) ** 2, axis=(1, 2)))
    rounding = eps * (scale + slope * jnp.max(jnp.abs(x), axis=1))
    reached = error <= (100 * rounding) ** 2 * x.shape[1]
    return jnp.where(reached[:, None], x, jnp.nan)

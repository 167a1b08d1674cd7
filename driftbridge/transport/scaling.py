"""Stabilised scaling: matrix-vector products with a stored kernel that absorbs its scalings."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from driftbridge.runtime.products import product
from driftbridge.transport.blocked import LEAST
from driftbridge.transport.costs import cost_matrix
from driftbridge.transport.entropic_problem import Problem, log_weights, logsumexp_rows
from driftbridge.transport.iterate import RUNNING, Iterate, Settings, judged, stage_tolerance

# Products between two evaluations of the kernel, which costs about as much as five of them.
ABSORB_EVERY = 10


class Scalings(NamedTuple):
    """`diag(u) K diag(v)`, with `s = K (b v)` and its row error."""

    u: Float[Array, " n"]
    v: Float[Array, " m"]
    s: Float[Array, " n"]
    error: Float[Array, ""]
    count: Int[Array, ""]
    fine: Bool[Array, ""]


def iterate_stored(problem: Problem, start: Iterate, settings: Settings) -> Iterate:
    """Iterate until the status changes, with the kernel stored and rebuilt every ten iterations.

    Schmitzer (2019), arXiv 1610.06519, section 3.1 (absorption); there the kernel is rebuilt when
    the scalings leave a range, here after a count too, as float32 loses digits with their size.
    """
    a, b = problem.a, problem.b
    costs = cost_matrix(problem.cost, problem.x, problem.y)
    log_a, log_b = log_weights(a), log_weights(b)

    def log_step(iterate: Iterate) -> tuple[Array, Array]:
        epsilon = iterate.epsilon
        f = -epsilon * logsumexp_rows((iterate.g[None, :] - costs) / epsilon + log_b[None, :])
        g = -epsilon * logsumexp_rows(((f[:, None] - costs) / epsilon + log_a[:, None]).T)
        return f, g

    def body(iterate: Iterate) -> Iterate:
        epsilon = iterate.epsilon
        f, g = lax.cond(iterate.needs_log, log_step, lambda i: (i.f, i.g), iterate)
        logs = iterate.needs_log.astype(jnp.int32)
        density = jnp.exp((f[:, None] + g[None, :] - costs) / epsilon)
        tolerance = stage_tolerance(iterate, problem.epsilon, settings)
        left = jnp.minimum(settings.max_iterations - iterate.iterations - logs, ABSORB_EVERY)

        def goes_on(at: Scalings):
            return (
                at.fine & (at.count < left) & ((at.error > tolerance) | (settings.tolerance == 0))
            )

        def scale(at: Scalings) -> Scalings:
            u = 1 / at.s
            t = product(a * u, density)
            v = 1 / t
            s = product(density, b * v)
            error = jnp.sum(a * jnp.abs(u * s - 1))
            return Scalings(u, v, s, error, at.count + 1, _in_range(t) & _in_range(s))

        s = product(density, b)
        error = jnp.sum(a * jnp.abs(s - 1))
        at = Scalings(
            jnp.ones_like(f), jnp.ones_like(g), s, error, jnp.zeros_like(logs), _in_range(s)
        )
        at = lax.while_loop(goes_on, scale, at)
        fine = at.fine
        moved = iterate._replace(
            f=jnp.where(fine, f + epsilon * jnp.log(at.u), f),
            g=jnp.where(fine, g + epsilon * jnp.log(at.v), g),
            error=jnp.where(fine, at.error, jnp.inf).astype(f.dtype),
            needs_log=~fine,
        )
        return judged(moved, problem.epsilon, settings, at.count + logs)

    return lax.while_loop(lambda iterate: iterate.status == RUNNING, body, start)


def _in_range(sums: Float[Array, " n"]) -> Array:
    return jnp.all((sums > LEAST) & (sums < 1 / LEAST))

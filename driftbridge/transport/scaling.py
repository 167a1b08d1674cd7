"""Stabilised scaling: matrix-vector products with a stored kernel that absorbs its scalings."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from driftbridge.runtime.exponential import exponential
from driftbridge.runtime.products import product
from driftbridge.transport.blocked import in_range, log_sweep
from driftbridge.transport.costs import cost_matrix
from driftbridge.transport.entropic_problem import Problem, log_weights
from driftbridge.transport.iterate import (
    RUNNING,
    Iterate,
    Settings,
    judged,
    relaxed,
    stage_tolerance,
)

# Products between two evaluations of the kernel, which costs about as much as five of them.
ABSORB_EVERY = 10


class Scalings(NamedTuple):
    """The plan `a_i u_i K_ij v_j`, with `s = K v` and the error of its rows."""

    u: Float[Array, " n"]
    v: Float[Array, " m"]
    s: Float[Array, " n"]
    error: Float[Array, ""]
    relaxation: Float[Array, ""]
    count: Int[Array, ""]
    fine: Bool[Array, ""]


def iterate_stored(problem: Problem, start: Iterate, settings: Settings) -> Iterate:
    """Iterate until the status changes, with the kernel stored and rebuilt every ten iterations.

    The kernel holds the weights `b`, and its rows are scaled to a largest entry of one, so that row
    sums neither overflow nor vanish. A column sum that vanishes calls for an iteration in the log
    domain.

    Schmitzer (2019), arXiv 1610.06519, section 3.1 (absorption); there the kernel is rebuilt when
    the scalings leave a range, here after a count too, as float32 loses digits with their size.
    """
    a, b = problem.a, problem.b
    has_mass = b > 0
    costs = cost_matrix(problem.cost, problem.x, problem.y)
    log_b = log_weights(b)

    def body(iterate: Iterate) -> Iterate:
        epsilon = iterate.epsilon
        logs = iterate.needs_log.astype(jnp.int32)
        g = lax.cond(
            iterate.needs_log,
            lambda iterate: log_sweep(problem, iterate.g, epsilon)[1],
            lambda iterate: iterate.g,
            iterate,
        )
        # The two forms differ so that neither stores the exponents for the other.
        weighted, inverse = g + epsilon * log_b, 1 / epsilon
        largest = jnp.max(weighted[None, :] - costs, axis=1) * inverse
        kernel = exponential((weighted * inverse)[None, :] - costs * inverse - largest[:, None])
        tolerance = stage_tolerance(iterate, problem.epsilon, settings)
        left = jnp.minimum(settings.max_iterations - iterate.iterations - logs, ABSORB_EVERY)

        def goes_on(at: Scalings):
            unfinished = (at.error > tolerance) | (settings.tolerance == 0)
            return at.fine & (at.count < left) & unfinished

        def scale(at: Scalings) -> Scalings:
            # With a relaxation of 1 the power is 1.
            u = 1 / at.s * (at.u * at.s) ** (1 - at.relaxation)
            t = product(a * u, kernel)
            ratio = jnp.where(has_mass, t / jnp.where(has_mass, b, 1), 1)
            v = 1 / ratio
            s = product(kernel, v)
            error = jnp.sum(a * jnp.abs(u * s - 1))
            w = relaxed(at.relaxation, at.count, at.error, error, settings)
            return Scalings(u, v, s, error, w, at.count + 1, in_range(ratio) & in_range(s))

        ones = jnp.ones_like(g)
        s = product(kernel, ones)
        infinite = jnp.full_like(epsilon, jnp.inf)
        w = iterate.relaxation
        at = Scalings(1 / s, ones, s, infinite, w, jnp.zeros_like(logs), in_range(s))
        at = lax.while_loop(goes_on, scale, at)
        moved = iterate._replace(
            f=jnp.where(at.fine, epsilon * (jnp.log(at.u) - largest), iterate.f),
            g=jnp.where(at.fine, g + epsilon * jnp.log(at.v), g),
            error=jnp.where(at.fine, at.error, infinite),
            relaxation=jnp.where(at.fine, at.relaxation, 1),
        )
        known = judged(moved, problem.epsilon, settings, at.count + logs)
        return known._replace(needs_log=~at.fine)

    return lax.while_loop(lambda iterate: iterate.status == RUNNING, body, start)

"""Sinkhorn's iteration over blocks of rows, in memory that grows with the points alone."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from driftbridge.runtime.exponential import exponential
from driftbridge.runtime.products import product
from driftbridge.transport.entropic_problem import (
    LOG_ZERO,
    Problem,
    exponents,
    in_blocks,
    log_weights,
)
from driftbridge.transport.iterate import RUNNING, Iterate, Settings, judged, relaxed
from driftbridge.transport.plan_products import softmin

# Names of axes of a mesh over which the rows are spread; None for one device.
Axis = tuple[str, ...] | None

# Sums in (LEAST, 1 / LEAST) have their full relative precision in float32.
LEAST = 1e-30


def sweep(
    problem: Problem,
    f: Array,
    g: Array,
    epsilon: Array,
    relaxation: ArrayLike = 1.0,
    axis: Axis = None,
) -> tuple[Array, Array]:
    """`s_i = sum_j b_j K_ij` and `t_j = sum_i a_i K_ij / s_i^w`, `K` the plan's density.

    `w` is the relaxation, 1 in Sinkhorn's iteration. One exponential for each entry; a block is
    used twice while it is in cache.
    """

    # Columns without mass have no density, whatever their potential.
    g = jnp.where(problem.b > 0, g, LOG_ZERO)

    def block(t, rows):
        x, f, a = rows
        density = exponential(exponents(problem.cost, x, f, problem.y, g, epsilon))
        s = product(density, problem.b)
        # With a relaxation of 1 the power is 1.
        return t + product(a / s * s ** (1 - relaxation), density), s

    t, s = lax.scan(block, jnp.zeros_like(g), in_blocks(problem, problem.x, f, problem.a))
    return s.reshape(-1), _total(t, axis)


def row_sweep(problem: Problem, g: Array, epsilon: Array, axis: Axis = None) -> tuple[Array, Array]:
    """`f`, the softmin of `g`, in the log domain, and the column sums `c` of the plan of both.

    One exponential for each entry, where `log_sweep` takes two in two passes; a
    column far from all rows may have a sum without digits here.
    """
    log_b = log_weights(problem.b)

    def block(c, rows):
        x, a = rows
        exponent = exponents(problem.cost, x, jnp.zeros_like(a), problem.y, g, epsilon)
        exponent = exponent + log_b[None, :]
        largest = jnp.max(exponent, axis=1)
        mass = exponential(exponent - largest[:, None])
        s = jnp.sum(mass, axis=1)
        return c + product(a / s, mass), largest + jnp.log(s)

    c, log_s = lax.scan(block, jnp.zeros_like(g), in_blocks(problem, problem.x, problem.a))
    return -epsilon * log_s.reshape(-1), _total(c, axis)


def log_sweep(
    problem: Problem, g: Array, epsilon: Array, of_rows=None, axis: Axis = None
) -> tuple[Array, Array]:
    """One iteration from `g` in the log domain, safe for any `g`.

    `f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)`, and `g` from `f` likewise; with
    `of_rows`, `g` from `of_rows(f)`.
    """
    at = dataclasses.replace(problem, epsilon=epsilon)
    f = softmin(at, g)
    # The other pass is over blocks of columns: reductions across rows cost many times as much.
    exponent = -softmin(at.transposed(), f if of_rows is None else of_rows(f)) / epsilon
    if axis is not None:
        largest = lax.pmax(exponent, axis)
        exponent = largest + jnp.log(lax.psum(jnp.exp(exponent - largest), axis))
    return f, -epsilon * exponent


def iterate_blocked(
    problem: Problem, start: Iterate, settings: Settings, always_log: bool, axis: Axis = None
) -> Iterate:
    """Iterate until the status changes; every iteration absorbs its scalings.

    With `always_log` each iteration is taken in the log domain; with `axis` the rows are those of
    one device along an axis of a mesh.
    """

    has_mass, one = problem.b > 0, jnp.ones_like(problem.epsilon)

    def step(iterate: Iterate) -> Iterate:
        w, epsilon = iterate.relaxation, iterate.epsilon
        s, t = sweep(problem, iterate.f, iterate.g, epsilon, w, axis)
        fine = (_total(jnp.where(in_range(s), 0, 1), axis) == 0) & in_range(
            jnp.where(has_mass, t, 1)
        )
        error = _total(jnp.sum(problem.a * jnp.abs(s - 1)), axis)
        # The first error of a stage has none before it.
        before = jnp.where(iterate.since >= 2, iterate.error, jnp.inf)
        following = relaxed(w, iterate.since, before, error, settings)
        at = iterate._replace(error=error, relaxation=following)
        known = judged(at, problem.epsilon, settings, jnp.int32(1))
        ended = known.status == 1
        moved = known._replace(
            f=jnp.where(ended, iterate.f, iterate.f - w * epsilon * jnp.log(s)),
            g=jnp.where(ended | ~has_mass, iterate.g, iterate.g - epsilon * jnp.log(t)),
        )
        refused = iterate._replace(needs_log=jnp.ones_like(iterate.needs_log), relaxation=one)
        return jax.tree.map(lambda a, b: jnp.where(fine, a, b), moved, refused)

    def log_iteration(g: Array, epsilon: Array) -> tuple[Array, Array]:
        if always_log:
            return log_sweep(problem, g, epsilon, axis=axis)
        f, c = row_sweep(problem, g, epsilon, axis)
        ratio = jnp.where(has_mass, c / jnp.where(has_mass, problem.b, 1), 1)
        return lax.cond(
            in_range(ratio),
            lambda: (f, g - epsilon * jnp.log(ratio)),
            lambda: log_sweep(problem, g, epsilon, axis=axis),
        )

    def log_step(iterate: Iterate) -> Iterate:
        f, g = log_iteration(iterate.g, iterate.epsilon)
        missing = problem.a * jnp.abs(jnp.expm1((iterate.f - f) / iterate.epsilon))
        error = _total(jnp.sum(missing), axis)
        error = jnp.where(iterate.iterations == 0, jnp.inf, error)
        if not always_log:
            count = iterate.iterations + 1
            over = count >= settings.max_iterations
            return iterate._replace(
                f=f,
                g=g,
                iterations=count,
                since=iterate.since + 1,
                status=jnp.where(over, 3, iterate.status).astype(jnp.int32),
                needs_log=jnp.zeros_like(iterate.needs_log),
            )
        known = judged(iterate._replace(error=error), problem.epsilon, settings, jnp.int32(1))
        ended = known.status == 1
        return known._replace(f=jnp.where(ended, iterate.f, f), g=jnp.where(ended, iterate.g, g))

    def body(iterate: Iterate) -> Iterate:
        if always_log:
            return log_step(iterate)
        return lax.cond(iterate.needs_log, log_step, step, iterate)

    return lax.while_loop(lambda iterate: iterate.status == RUNNING, body, start)


def _total(values: Array, axis: Axis) -> Array:
    """The sum over the devices of an axis of a mesh."""
    return values if axis is None else lax.psum(values, axis)


def in_range(sums: Float[Array, " n"]) -> Array:
    """Whether all sums have their digits."""
    return jnp.all((sums > LEAST) & (sums < 1 / LEAST))

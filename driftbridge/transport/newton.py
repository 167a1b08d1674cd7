"""A damped Newton method with conjugate gradients on the semi-dual, for small epsilon and tight
tolerances."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int

from driftbridge.runtime.exponential import exponential
from driftbridge.runtime.products import product
from driftbridge.transport.blocked import row_sweep
from driftbridge.transport.entropic_problem import Problem, exponents, in_blocks, log_weights
from driftbridge.transport.iterate import (
    CONVERGED,
    MAX_ITERATIONS,
    RUNNING,
    STALLED,
    Iterate,
    Settings,
)

# First damping, in units of the Hessian's diagonal, and how fast it falls at most.
DAMPING, LEAST_DAMPING, FALL = 1e-2, 1e-12, 5.0
# A step refused is tried once more at a quarter; each refusal multiplies the damping by four.
SHRINK, TRIALS = 4.0, 2
# Share of the predicted increase of the semi-dual that a step must attain.
ACCEPTED = 1e-3
# Products of one solve, after which the next ones are factored; that costs about as much.
MOST_PRODUCTS = 500
# Steps in which the least error must fall by a twentieth.
PATIENCE, FALLEN = 12, 0.95


class Columns(NamedTuple):
    """The plan of `g` whose rows are exact: its column sums `c` and `error = sum |c - b|`."""

    g: Float[Array, " m"]
    f: Float[Array, " n"]
    c: Float[Array, " m"]
    error: Float[Array, ""]


class Solve(NamedTuple):
    """State of the conjugate gradients."""

    solution: Float[Array, " m"]
    residual: Float[Array, " m"]
    direction: Float[Array, " m"]
    rho: Float[Array, ""]
    count: Int[Array, ""]


class Trial(NamedTuple):
    """A step of a given size and the share of the predicted increase that it attains."""

    size: Float[Array, ""]
    g: Float[Array, " m"]
    c: Float[Array, " m"]
    share: Float[Array, ""]
    count: Int[Array, ""]


class Newton(NamedTuple):
    """State of the method: potentials to look at next, and the best seen."""

    g: Float[Array, " m"]
    best: Columns
    damping: Float[Array, ""]
    count: Int[Array, ""]
    idle: Int[Array, ""]
    status: Int[Array, ""]
    # Whether conjugate gradients have run out of products.
    is_stiff: Bool[Array, ""]


def finish(problem: Problem, start: Iterate, settings: Settings, stored: bool) -> Iterate:
    """Maximise the semi-dual `sum_i a_i f_i(g) + sum_j b_j g_j` from `start`, `f` the softmin.

    Its gradient is `b - c`, `c` the column sums of the plan with exact rows, and its Hessian
    `-(diag c - W^T diag(a) W) / epsilon`, `W` the conditional law of columns given rows. A step
    solves `((1 + damping) diag c - W^T diag(a) W) dg = epsilon (b - c)` by conjugate gradients
    preconditioned with `diag c`; a large damping gives a short step of Sinkhorn's own direction.
    The damping follows the share of the predicted increase that was attained, and one of
    Sinkhorn's iterations follows each step, which mends single columns far off.

    Every sweep over the matrix counts as an iteration: products, trials, rebuilt kernels. Columns
    without mass keep the potentials of `start`.

    Where parts of the points exchange next to no mass, conjugate gradients end nowhere: `advance`
    can then factor the matrix, in float64 and with the kernel stored.

    Nielsen (1999), Damping parameter in Marquardt's method, eq. (2.5).
    """

    state = begin(problem, start)
    state = advance(problem, state, settings, stored, settings.max_iterations)
    return ended(problem, start, state)


def begin(problem: Problem, start: Iterate) -> Newton:
    """The state before the first look at `start`."""
    infinite = jnp.full_like(problem.epsilon, jnp.inf)
    nothing = Columns(start.g, start.f, jnp.zeros_like(start.g), infinite)
    zero = jnp.zeros_like(start.iterations)
    damping = jnp.full_like(infinite, DAMPING)
    running, is_stiff = jnp.full_like(zero, RUNNING), jnp.zeros_like(zero, bool)
    return Newton(start.g, nothing, damping, start.iterations, zero, running, is_stiff)


def advance(
    problem: Problem,
    state: Newton,
    settings: Settings,
    stored: bool,
    until: Array,
    may_factor: bool = False,
) -> Newton:
    """Steps until the status changes or, between two steps, `until` iterations are done.

    `may_factor` is for programs of one problem: a batch would factor for all.
    """
    may_factor = may_factor and stored and problem.b.dtype == jnp.float64

    def body(state: Newton) -> Newton:
        at = columns_of(problem, state.g)
        count = state.count + 1
        idle = jnp.where(at.error < FALLEN * state.best.error, 0, state.idle + 1)
        better = at.error < state.best.error
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), at, state.best)
        status = _status(at.error, count, idle, settings)
        known = Newton(at.g, best, state.damping, count, idle, status, state.is_stiff)
        return lax.cond(
            status == RUNNING,
            lambda known: _step(problem, at, known, settings, stored, may_factor),
            lambda known: known,
            known,
        )

    def goes_on(state: Newton):
        return (state.status == RUNNING) & (state.count < until)

    return lax.while_loop(goes_on, body, state)


def ended(problem: Problem, start: Iterate, state: Newton) -> Iterate:
    """The best potentials seen."""
    # Before the first look nothing is known of `start` that its own iteration did not know.
    seen = jnp.isfinite(state.best.error)
    unfinished = jnp.where(state.status == RUNNING, MAX_ITERATIONS, state.status)
    return start._replace(
        f=state.best.f,
        g=state.best.g,
        error=jnp.where(seen, state.best.error, start.error),
        iterations=state.count,
        status=unfinished.astype(jnp.int32),
        epsilon=problem.epsilon,
    )


def _step(
    problem: Problem,
    at: Columns,
    state: Newton,
    settings: Settings,
    stored: bool,
    may_factor: bool,
) -> Newton:
    """One step from `at`, to potentials and a damping for the next."""
    b, epsilon, damping = problem.b, problem.epsilon, state.damping
    most = jnp.minimum(settings.max_iterations - state.count, MOST_PRODUCTS)
    W = _conditional(problem, at, problem.x, at.f) if stored else None
    target = epsilon * (b - at.c)

    def iterated():
        solve = _solve(target, at, damping, _smoothing(problem, at, W), most)
        return solve.solution, solve.count

    def factored():
        return _factored(target, at, damping, problem.a, W), most

    if may_factor:
        direction, count = lax.cond(state.is_stiff, factored, iterated)
    else:
        direction, count = iterated()
    slope = jnp.sum((b - at.c) * direction)
    curvature = slope - damping * jnp.sum(at.c * direction**2) / epsilon

    def goes_on(trial: Trial):
        return ~(trial.share > ACCEPTED) & (trial.count < TRIALS)

    def shorter(trial: Trial) -> Trial:
        size = jnp.where(trial.count == 0, 1.0, trial.size / SHRINK).astype(b.dtype)
        new = columns_of(problem, at.g + size * direction)
        # The trapezoidal rule: differences of the semi-dual itself drown in rounding.
        gained = size * (slope + jnp.sum((b - new.c) * direction)) / 2
        predicted = size * slope - size**2 * curvature / 2
        return Trial(size, new.g, new.c, gained / predicted, trial.count + 1)

    nothing = jnp.zeros_like(epsilon)
    first = Trial(nothing, at.g, at.c, nothing, jnp.zeros_like(state.count))
    trial = lax.while_loop(goes_on, shorter, first)
    accepted = trial.share > ACCEPTED
    ratio = jnp.where((b > 0) & (trial.c > 0), trial.c / jnp.where(b > 0, b, 1), 1)
    refusals = trial.count - accepted
    eased = damping * jnp.maximum(1 / FALL, 1 - (2 * trial.share - 1) ** 3)
    damping = jnp.where(refusals > 0, damping * SHRINK**refusals, eased)
    return state._replace(
        g=jnp.where(accepted, trial.g - epsilon * jnp.log(ratio), at.g),
        damping=jnp.maximum(damping, LEAST_DAMPING).astype(b.dtype),
        count=state.count + count + trial.count + (1 if stored else 0),
        is_stiff=state.is_stiff | (count >= MOST_PRODUCTS),
    )


def columns_of(problem: Problem, g: Array) -> Columns:
    """Eliminate `f`: one pass in the log domain."""
    f, c = row_sweep(problem, g, problem.epsilon)
    return Columns(g, f, c, jnp.sum(jnp.abs(c - problem.b)))


def _conditional(problem: Problem, at: Columns, x: Array, f: Array) -> Array:
    """`W`, the conditional law of columns given these rows."""
    exponent = exponents(problem.cost, x, f, problem.y, at.g, problem.epsilon)
    return exponential(exponent + log_weights(problem.b)[None, :])


def _smoothing(problem: Problem, at: Columns, W: Array | None):
    """The function `v -> W^T (a (W v))`, by blocks of rows where `W` is not stored."""
    a = problem.a
    if W is not None:
        return lambda v: product(a * product(W, v), W)

    def apply(v):
        def block(total, rows):
            x, f, a = rows
            W = _conditional(problem, at, x, f)
            return total + product(a * product(W, v), W), None

        return lax.scan(block, jnp.zeros_like(v), in_blocks(problem, problem.x, at.f, a))[0]

    return apply


def _factored(target: Array, at: Columns, damping: Array, a: Array, W: Array | None) -> Array:
    """The system's solution by a Cholesky factor, rows and columns over `sqrt(c)`.

    `sqrt(c)` spans the kernel without damping: its square over `sum c` is added, which changes
    nothing as the target has no part in it. Columns without mass stay.
    """
    assert W is not None
    c = at.c
    root = jnp.sqrt(c)
    scale = jnp.where(c > 0, 1 / jnp.where(c > 0, root, 1), 0)
    half = jnp.sqrt(a)[:, None] * W * scale[None, :]
    kernel = root[:, None] * root[None, :] / jnp.sum(c)
    matrix = (1 + damping) * jnp.eye(len(c), dtype=c.dtype) - product(half.T, half) + kernel
    return scale * cho_solve(cho_factor(matrix), scale * target)


def _solve(target: Array, at: Columns, damping: Array, smooth, most: Array) -> Solve:
    """Conjugate gradients, to the accuracy that keeps Newton's method superlinear.

    Dembo, Eisenstat and Steihaug (1982), theorem 3.3, with the square root of the error.
    """
    c = at.c
    inverse = jnp.where(c > 0, 1 / jnp.where(c > 0, c, 1), 0)

    def preconditioned(r):
        z = inverse * r
        # The Hessian's kernel is the constants.
        return jnp.where(c > 0, z - jnp.sum(c * z) / jnp.sum(c), 0)

    def iterate(solve: Solve) -> Solve:
        p = solve.direction
        Hp = (1 + damping) * c * p - smooth(p)
        curvature = jnp.sum(p * Hp)
        positive = curvature > 0
        alpha = jnp.where(positive, solve.rho / jnp.where(positive, curvature, 1), 0)
        residual = solve.residual - alpha * Hp
        z = preconditioned(residual)
        rho = jnp.sum(residual * z)
        # A curvature that is not positive is rounding: the solve ends with what it has.
        return Solve(
            solve.solution + alpha * p,
            residual,
            z + rho / solve.rho * p,
            jnp.where(positive, rho, 0),
            solve.count + 1,
        )

    z = preconditioned(target)
    rho = jnp.sum(target * z)
    enough = jnp.minimum(0.01, at.error) * rho
    zero = jnp.zeros_like(most)
    return lax.while_loop(
        lambda solve: (solve.rho > enough) & (solve.count < most),
        iterate,
        Solve(jnp.zeros_like(target), target, z, rho, zero),
    )


def _status(error, count, idle, settings: Settings) -> Array:
    unfinished = jnp.where(count >= settings.max_iterations, MAX_ITERATIONS, RUNNING)
    running = jnp.where(idle >= PATIENCE, STALLED, unfinished)
    return jnp.where(error <= settings.tolerance, CONVERGED, running).astype(jnp.int32)

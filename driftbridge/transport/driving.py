"""Runs the forms of Sinkhorn's iteration: chooses one, reports progress, measures the result."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from driftbridge.runtime.progress import Progress, reporter
from driftbridge.transport import plan_products
from driftbridge.transport.blocked import iterate_blocked, log_sweep
from driftbridge.transport.entropic_problem import Problem
from driftbridge.transport.iterate import (
    ANNEAL_BELOW,
    CONVERGED,
    MAX_ITERATIONS,
    RUNNING,
    STAGE_TOLERANCE,
    STALLED,
    Iterate,
    Settings,
    settings_of,
)
from driftbridge.transport.newton import advance, begin, ended
from driftbridge.transport.scaling import iterate_stored
from driftbridge.transport.sharded import solve_sharded

METHODS = ("auto", "stored", "blocked", "log", "newton")
# Entries of a matrix that is stored whatever epsilon is, and at small epsilon.
STORED, STORED_SMALL = 2048**2, 6144**2
# Below this tolerance a Newton finish is faster than scaling.
TIGHT = 1e-4
# Share of the tolerance that rounding may take without a measurement of the error.
ROUNDING = 0.02
# Share of the tolerance aimed at where rounding has used up the rest.
AIM = 0.7
# A chunk between two reports of progress takes about this long.
CHUNK_SECONDS = 1.0


class Choice(NamedTuple):
    """A method, whether its matrix is stored, and why."""

    method: str
    stored: bool
    reason: str


def choose(
    method: str, problem: Problem, mean: float, tolerance: float, over_devices: bool
) -> Choice:
    """The form for a problem whose mean cost is `mean`."""
    if over_devices:
        if method not in ("auto", "blocked", "log"):
            raise ValueError(f"rows are spread over devices in blocks, not by {method!r}.")
        chosen = "blocked" if method == "auto" else method
        return Choice(chosen, False, "rows are spread over devices")
    entries = len(problem.a) * len(problem.b)
    share = float(problem.epsilon) / mean if mean > 0 else np.inf
    is_small = share < ANNEAL_BELOW
    stored = entries <= (STORED_SMALL if is_small else STORED)
    if method != "auto":
        return Choice(method, stored if method == "newton" else method == "stored", "asked for")
    of_size = f"the matrix has {entries} entries, which {'is' if stored else 'are not'} stored"
    if tolerance > 0 and is_small:
        return Choice(
            "newton",
            stored,
            f"epsilon is {share:.2g} of the mean cost, at which scaling is slow; {of_size}",
        )
    if 0 < tolerance < TIGHT:
        return Choice("newton", stored, f"the tolerance is below {TIGHT:g}; {of_size}")
    return Choice("stored" if stored else "blocked", stored, of_size)


@partial(jax.jit, static_argnames="method")
def solve_form(method: str, problem: Problem, start: Iterate, settings: Settings) -> Iterate:
    """Iterate in the form "stored", "blocked" or "log" until the status changes."""
    if method == "stored":
        return iterate_stored(problem, start, settings)
    return iterate_blocked(problem, start, settings, always_log=method == "log")


_begin, _ended = jax.jit(begin), jax.jit(ended)
_advance = jax.jit(partial(advance, may_factor=True), static_argnames="stored")


@jax.jit
def _measured(problem: Problem, f: Array, g: Array) -> Array:
    rows, columns = plan_products.marginals(problem, f, g)
    errors = jnp.sum(jnp.abs(rows - problem.a)), jnp.sum(jnp.abs(columns - problem.b))
    return jnp.maximum(*errors)


@jax.jit
def _cooled(problem: Problem, iterate: Iterate) -> Iterate:
    f, g = log_sweep(problem, iterate.g, problem.epsilon)
    return iterate._replace(f=f, g=g, iterations=iterate.iterations + 1)


_extended = jax.jit(lambda problem, f: plan_products.softmin(problem.transposed(), f))


def _settled(problem: Problem, iterate: Iterate) -> tuple[Array, Array]:
    """The potentials with `sum a f = sum b g`, so that a symmetric problem has equal ones.

    Columns without mass, which a kernel with weights leaves out, get the softmin of `f`.
    """
    a, b = np.asarray(problem.a, np.float64), np.asarray(problem.b, np.float64)
    f, g = np.asarray(iterate.f, np.float64), np.asarray(iterate.g, np.float64)
    if np.any(b[: int(np.flatnonzero(b)[-1])] == 0):
        g = np.where(b > 0, g, np.asarray(_extended(problem, iterate.f)))
    shift = (np.sum(b * g) - np.sum(a * f)) / 2
    dtype = problem.x.dtype
    return jax.device_put((f + shift).astype(dtype)), jax.device_put((g - shift).astype(dtype))


def to_tolerance(choice: Choice, problem, iterate, tolerance, max_iterations, progress, mesh):
    """Potentials, their error, iterations and status; iterated to the tolerance if that can be."""
    aim = tolerance
    while True:
        iterate = _run(choice, problem, iterate, aim, max_iterations, progress, mesh)
        if float(iterate.epsilon) > float(problem.epsilon):
            # The iterations ended in a stage of annealing: its potentials make no plan of the last.
            iterate = _cooled(problem, iterate)
        f, g = _settled(problem, iterate)
        status = int(iterate.status)
        # Each potential is rounded to this share of epsilon.
        largest = max(float(np.max(np.abs(f))), float(np.max(np.abs(g))))
        rounding = 4 * float(np.finfo(f.dtype).eps) * largest / float(problem.epsilon)
        is_known = status == CONVERGED and rounding < ROUNDING * tolerance
        error = iterate.error if is_known else _measured(problem, f, g)
        if status != CONVERGED or float(error) <= tolerance:
            break
        if aim < tolerance:
            status = STALLED
            break
        # Rounding of the potentials has added to the error of the iteration: aim lower, once.
        aim = AIM * tolerance
        iterate = iterate._replace(status=jax.device_put(np.int32(RUNNING)))
    return f, g, error, iterate.iterations, status


def _run(
    choice: Choice, problem, iterate: Iterate, tolerance, max_iterations, progress, mesh
) -> Iterate:
    form = "stored" if choice.stored else "blocked"
    if choice.method != "newton":
        program = partial(solve_form, choice.method)
        if mesh is not None:
            program = partial(solve_sharded, mesh, choice.method)
        return _reported(program, problem, iterate, tolerance, max_iterations, progress)
    loose = max(tolerance, STAGE_TOLERANCE)
    program = partial(solve_form, form)
    iterate = _reported(program, problem, iterate, loose, max_iterations, progress)
    if int(iterate.status) != CONVERGED or tolerance >= STAGE_TOLERANCE:
        return iterate
    return _newton(choice, problem, iterate, tolerance, max_iterations, progress)


def _newton(choice, problem, iterate, tolerance, max_iterations, progress) -> Iterate:
    """Newton's method from a loose iterate; reports between steps."""
    limits = settings_of(tolerance, max_iterations, problem.x.dtype)
    state = _begin(problem, iterate)
    report, start = reporter(progress), int(iterate.iterations)
    began, count, done = time.perf_counter(), 1 if progress else max_iterations, start
    while int(state.status) == RUNNING and done < max_iterations:
        until = jax.device_put(np.int32(min(done + count, max_iterations)))
        state = _advance(problem, state, limits, choice.stored, until)
        if progress:
            done, seconds = int(state.count), time.perf_counter() - began
            note = f"Newton, marginal error {float(state.best.error):.2g}"
            rate = (done - start) / seconds
            report(Progress("Sinkhorn", done, max_iterations, rate, None, note))
            count = max(1, int(rate * CHUNK_SECONDS))
        else:
            done = max_iterations
    return _ended(problem, iterate, state)


def _reported(program, problem, iterate, tolerance, max_iterations, progress) -> Iterate:
    """The program's iterate; with progress, in chunks of about a second."""
    if not progress:
        return program(problem, iterate, settings_of(tolerance, max_iterations, problem.x.dtype))
    report, count, done = reporter(progress), 1, int(iterate.iterations)
    while True:
        start = time.perf_counter()
        until = min(done + count, max_iterations)
        iterate = program(problem, iterate, settings_of(tolerance, until, problem.x.dtype))
        before, done, status = done, int(iterate.iterations), int(iterate.status)
        seconds = time.perf_counter() - start
        note = f"marginal error {float(iterate.error):.2g}"
        rate = (done - before) / seconds
        report(Progress("Sinkhorn", done, max_iterations, rate, None, note))
        if status != MAX_ITERATIONS or done >= max_iterations:
            return iterate
        iterate = iterate._replace(status=jax.device_put(np.int32(RUNNING)))
        if seconds < CHUNK_SECONDS / 2:
            count *= 2

"""Entropic transport between two weighted sets of points."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from driftbridge.runtime.progress import Callback, Progress, reporter
from driftbridge.transport import plan_products
from driftbridge.transport.blocked import iterate_blocked
from driftbridge.transport.costs import Cost
from driftbridge.transport.entropic_plan import Account, EntropicPlan
from driftbridge.transport.entropic_problem import Problem, mean_cost
from driftbridge.transport.iterate import (
    CONVERGED,
    MAX_ITERATIONS,
    RUNNING,
    STAGE_TOLERANCE,
    STALLED,
    Iterate,
    Settings,
    first,
)
from driftbridge.transport.newton import finish
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import as_rows, as_weights
from driftbridge.transport.scaling import iterate_stored

METHODS = ("auto", "stored", "blocked", "log", "newton")
# Epsilon is annealed below this share of the mean cost, from the second share of it.
ANNEAL_BELOW, ANNEAL_FROM = 0.02, 0.25
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


def sinkhorn(
    x: Any,
    y: Any,
    *,
    epsilon: float,
    a: Any = None,
    b: Any = None,
    cost: Cost = None,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    method: str = "auto",
    init: EntropicPlan | tuple[Any, Any] | None = None,
    progress: bool | Callback = False,
) -> EntropicPlan:
    """The plan between two weighted sets of points that minimises `<C, P> + epsilon KL(P | a b)`.

    **Arguments:**

    - `x`, `y`: points `(n, dim)` and `(m, dim)`.
    - `epsilon`: `> 0`, in the units of the cost. For the default cost this is the library's
      convention: a regulariser of `|x - y|^2` in another library is half as large here.
    - `a`, `b`: weights `(n,)` and `(m,)` that sum to one; None for equal ones.
    - `cost`: a function of two points `(dim,)`, defined once (a new function compiles again); None
      for `|x - y|^2 / 2` by matrix products.
    - `tolerance`: of the larger of `sum |P 1 - a|` and `sum |P^T 1 - b|`, in `[0, 2)`. Float32
      attains about `1e-5` at an epsilon of .005 of the mean cost, float64 `1e-9`. Zero runs
      exactly `max_iterations`.
    - `max_iterations`: sweeps over the matrix, annealing counted.
    - `method`: "stored" (scaling with a stored kernel), "blocked" (rows in blocks, memory that
      grows with the points alone), "log" (blocks in the log domain), "newton" (scaling, then
      Newton's method on the semi-dual, stored or blocked by size), or "auto": Newton's method for
      an epsilon below .02 of the mean cost and for tolerances below `1e-4`.
    - `init`: a plan of the same sizes, or potentials `(f, g)`, to start from without annealing.
    - `progress`: False, True or a callback.

    **Returns:** an `EntropicPlan`; read its `status`.

    **Raises:** `ValueError` for arguments outside their range, no points, points that are not
    finite or of different dimensions, and weights that are negative or do not sum to one.

    Cuturi (2013), arXiv 1306.0895, algorithm 1.
    """
    _check(epsilon, tolerance, max_iterations, method)
    problem, points, centres = _problem(x, y, a, b, epsilon, cost)
    mean = float(_mean_cost(problem))
    chosen = _choose(method, problem, mean, float(tolerance))
    if init is None:
        f, g = (jax.device_put(np.zeros(len(w), w.dtype)) for w in (problem.a, problem.b))
        anneals = float(epsilon) < ANNEAL_BELOW * mean
        start = max(ANNEAL_FROM * mean, float(epsilon)) if anneals else float(epsilon)
    else:
        f, g = _potentials_of(init, problem, points, centres)
        start = float(epsilon)
    # Scaling meets any start; blocks need potentials that fit the costs.
    iterate = first(f, g, np.asarray(start, problem.x.dtype), needs_log=not chosen.stored)
    f, g, error, iterations, status = _to_tolerance(
        chosen, problem, iterate, float(tolerance), int(max_iterations), progress
    )
    return EntropicPlan(
        x=jax.device_put(points[0]),
        y=jax.device_put(points[1]),
        problem=problem,
        centred_f=f,
        centred_g=g,
        centres=centres,
        error=error,
        num_iterations=iterations,
        code=jax.device_put(np.int32(status)),
        account=Account(chosen.method, chosen.reason),
    )


def _check(epsilon, tolerance, max_iterations, method) -> None:
    if not 0 < float(epsilon) < np.inf:
        raise ValueError(f"epsilon must be positive and finite; got {epsilon}.")
    if not 0 <= float(tolerance) < 2:
        raise ValueError(
            f"tolerance must lie in [0, 2), as marginals differ by 2 at most; got {tolerance}."
        )
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1; got {max_iterations}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")


def _problem(x, y, a, b, epsilon, cost):
    """The padded problem, the points as arrays of one dtype, and the points' centres."""
    rows = [np.asarray(as_rows(points, name)) for name, points in (("x", x), ("y", y))]
    for name, points in zip("xy", rows, strict=True):
        if points.ndim != 2 or points.shape[0] < 1 or points.shape[1] < 1:
            raise ValueError(
                f"{name} must have shape (n, dim) with n and dim at least 1; got {points.shape}. "
                "One column of numbers is values[:, None]."
            )
    if rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(
            f"x and y must have one dimension; got {rows[0].shape[1]} and {rows[1].shape[1]}."
        )
    dtype = jax.dtypes.canonicalize_dtype(np.result_type(*rows))
    dtype = np.dtype(np.float32) if np.dtype(dtype).itemsize < 4 else np.dtype(dtype)
    weights = [
        as_weights(w, len(points), name) for w, points, name in zip((a, b), rows, "xy", strict=True)
    ]
    # The squared distance of centred points keeps its digits however far apart the means are.
    if cost is None:
        centres = [
            np.average(p.astype(np.float64), axis=0, weights=w)
            for p, w in zip(rows, weights, strict=True)
        ]
    else:
        centres = [np.zeros(points.shape[1]) for points in rows]
    centres = [centre.astype(dtype) for centre in centres]
    rows = [points.astype(dtype) for points in rows]
    sizes = [bucket(len(points)) for points in rows]
    centred = [
        jax.device_put(padded(points - centre, size))
        for points, centre, size in zip(rows, centres, sizes, strict=True)
    ]
    masses = [
        jax.device_put(padded(w.astype(dtype), size))
        for w, size in zip(weights, sizes, strict=True)
    ]
    problem = Problem(
        centred[0],
        centred[1],
        masses[0],
        masses[1],
        jax.device_put(np.asarray(epsilon, dtype)),
        cost,
    )
    return problem, rows, (jax.device_put(centres[0]), jax.device_put(centres[1]))


_mean_cost = jax.jit(mean_cost)


class Choice(NamedTuple):
    """A method, whether its matrix is stored, and why."""

    method: str
    stored: bool
    reason: str


def _choose(method: str, problem: Problem, mean: float, tolerance: float) -> Choice:
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


def _potentials_of(init, problem, points, centres):
    """Potentials of the centred, padded problem."""
    n, m = (len(p) for p in points)
    f, g = (init.f, init.g) if isinstance(init, EntropicPlan) else init
    f, g = np.asarray(f, problem.x.dtype), np.asarray(g, problem.x.dtype)
    if f.shape != (n,) or g.shape != (m,):
        raise ValueError(
            f"init must hold potentials of shapes ({n},) and ({m},); got {f.shape} and {g.shape}."
        )
    delta = np.asarray(centres[0]) - np.asarray(centres[1])
    f = f - (points[0] - np.asarray(centres[0])) @ delta
    g = g + (points[1] - np.asarray(centres[1])) @ delta
    return tuple(
        jax.device_put(padded(value.astype(problem.x.dtype), len(weights)))
        for value, weights in ((f, problem.a), (g, problem.b))
    )


@partial(jax.jit, static_argnames="method")
def _solve(method: str, problem: Problem, start: Iterate, settings: Settings) -> Iterate:
    if method == "stored":
        return iterate_stored(problem, start, settings)
    return iterate_blocked(problem, start, settings, always_log=method == "log")


_finish = jax.jit(finish, static_argnames="stored")


@jax.jit
def _measured(problem: Problem, f: Array, g: Array) -> Array:
    rows, columns = plan_products.marginals(problem, f, g)
    errors = jnp.sum(jnp.abs(rows - problem.a)), jnp.sum(jnp.abs(columns - problem.b))
    return jnp.maximum(*errors)


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


def _to_tolerance(choice: Choice, problem, iterate, tolerance, max_iterations, progress):
    """Potentials, their error, iterations and status; iterated to the tolerance if that can be."""
    aim = tolerance
    while True:
        iterate = _run(choice, problem, iterate, aim, max_iterations, progress)
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


def _settings(problem: Problem, tolerance: float, max_iterations: int) -> Settings:
    return Settings(
        jax.device_put(np.asarray(tolerance, problem.x.dtype)),
        jax.device_put(np.asarray(max_iterations, np.int32)),
    )


def _run(choice: Choice, problem, iterate: Iterate, tolerance, max_iterations, progress) -> Iterate:
    form = "stored" if choice.stored else "blocked"
    if choice.method != "newton":
        program = partial(_solve, choice.method)
        return _reported(program, problem, iterate, tolerance, max_iterations, progress)
    loose = max(tolerance, STAGE_TOLERANCE)
    program = partial(_solve, form)
    iterate = _reported(program, problem, iterate, loose, max_iterations, progress)
    if int(iterate.status) != CONVERGED or tolerance >= STAGE_TOLERANCE:
        return iterate
    program = partial(_finish, stored=choice.stored)
    iterate = iterate._replace(status=jax.device_put(np.int32(RUNNING)))
    return _reported(program, problem, iterate, tolerance, max_iterations, progress)


def _reported(program, problem, iterate, tolerance, max_iterations, progress) -> Iterate:
    """The program's iterate; with progress, in chunks of about a second."""
    if not progress:
        return program(problem, iterate, _settings(problem, tolerance, max_iterations))
    report, count, done = reporter(progress), 1, int(iterate.iterations)
    while True:
        start = time.perf_counter()
        until = min(done + count, max_iterations)
        iterate = program(problem, iterate, _settings(problem, tolerance, until))
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

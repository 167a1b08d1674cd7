"""Semidiscrete optimal transport: from a law that one can draw from to finitely many points."""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import as_dtype
from driftbridge.transport.laguerre import mean_probabilities, scores_of
from driftbridge.transport.marginal_error import marginal_error
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import as_weights
from driftbridge.transport.resampling import Draw, as_draw, as_table
from driftbridge.transport.semidiscrete_plan import SemidiscretePlan, Solve

# Entries of one matrix of scores, 32 MiB in float32, and draws of one step.
BLOCK, MOST_BATCH = 1 << 23, 1024
# Steps of one compiled chunk, and draws per point while the regularisation falls.
CHUNK, ANNEALING = 100, 200
# Factor on the first steps without regularisation.
LATE = 4.0
# Draws with which the first step is chosen, and points among which neighbours are looked for.
PILOT, NEIGHBOURS = 1024, 512
# Points and columns up to which the neighbours of all are found.
MANY, LOW = 20_000, 5


def semidiscrete(
    source: Any,
    y: Any,
    *,
    epsilon: float = 0.0,
    source_weights: Any = None,
    target_weights: Any = None,
    tolerance: float = 0.01,
    max_iterations: int = 20_000,
    batch_size: int | None = None,
    key: int | Key[Array, ""] = 0,
) -> SemidiscretePlan:
    """Solve a semidiscrete transport problem for the cost `|x - y|^2 / 2`.

    Maximises `E_x[-epsilon log sum_j b_j exp((g_j - c(x, y_j)) / epsilon)] + sum_j b_j g_j`, for
    `epsilon = 0` `E_x[min_j c(x, y_j) - g_j] + sum_j b_j g_j`, by stochastic ascent: a step adds
    `step (b_j - p_j) / b_j`, with `p_j` the mean of the conditional probabilities over fresh draws.
    The regularisation first falls from the mean cost to the wanted one (without one, to a quarter
    of the width of a cell times the distance of neighbours); then the steps decrease as
    `t^(-1/2)`, and the potential is the average of the iterates with weights that grow as `t^2`.
    Where the error stops falling, what is left are masses that have to move past many points, and
    the regularisation falls once more, three times as slowly.

    It stops where the `chi^2` distance of the masses from the weights lies below `tolerance` by
    two standard errors, and so does an estimate from draws that were not used before.

    **Arguments:**

    - `source`: a function `(key, n) -> (n, dim)` that JAX can trace, or points `(m, dim)`, which
      are drawn from with replacement.
    - `y`: target points `(n, dim)`.
    - `epsilon`: `>= 0`, regularisation.
    - `source_weights`, `target_weights`: of points; nonnegative with sum 1, None for equal ones.
    - `tolerance`: `> 0`, of `sum_j (m_j - b_j)^2 / b_j`; an `L1` error is at most its root. What a
      check's draws can tell is `(2 n)^{1/2} / 1.3e5` for `n` points; no less is called converged.
    - `max_iterations`: steps, a quarter of them at most for the falling regularisation.
    - `batch_size`: draws of a step; None for a power of two up to 1024.
    - `key`: seed or typed key.

    **Returns:** a `SemidiscretePlan`; `plan.status` says whether the tolerance was reached.

    **Raises:** `ValueError` for arguments outside their range or a source that cannot be traced.

    Genevay, Cuturi, Peyré and Bach (2016), arXiv 1605.08527, section 4; for the falling
    regularisation Genans, Godichon-Baggioni, Vialard and Wintenberger (2025), arXiv 2510.27340.
    """
    start = time.perf_counter()
    epsilon, tolerance = float(epsilon), float(tolerance)
    draw, like = as_draw(source, "source", source_weights)
    table = as_table(y, "y")
    weights = as_weights(target_weights, len(table), "y")
    _check(epsilon, tolerance, max_iterations, batch_size, like.shape[0], table.shape[1])
    centre = weights @ table.astype(np.float64)
    size = bucket(len(table))
    points = padded((table - centre).astype(like.dtype), size)
    problem = _Problem(
        draw,
        as_dtype(centre, like.dtype),
        jnp.asarray(points),
        as_dtype(padded(weights, size), like.dtype),
    )
    batch = batch_size or _batch(size)
    steps_key, checks_key, pilot_key = (fold_in(as_key(key), number) for number in range(3))
    schedule, pace = _schedule(problem, weights, points, pilot_key, epsilon, batch, max_iterations)
    ascent = _ascend(
        problem, schedule, pace, steps_key, checks_key, epsilon, tolerance, max_iterations, batch
    )
    g, iterations, status, history, error = ascent
    potential = np.asarray(g, np.float64) - weights @ np.asarray(g, np.float64)[: len(weights)]
    seconds = time.perf_counter() - start
    return SemidiscretePlan(
        problem.points,
        problem.centre,
        problem.weights,
        as_dtype(potential, like.dtype),
        as_dtype(epsilon, like.dtype),
        epsilon == 0,
        Solve(len(table), status, iterations, batch, tuple(history), error, seconds),
    )


class _Problem(eqx.Module):
    """The centred problem."""

    source: Draw
    centre: Float[Array, " dim"]
    points: Float[Array, "n dim"]
    weights: Float[Array, " n"]

    def draw(self, key: Key[Array, ""], n: int) -> Float[Array, "m dim"]:
        return self.source(key, n) - self.centre[None]


class _Schedule(NamedTuple):
    """Regularisation and step by iteration, on the host.

    - `first`, `last`: the regularisation, over `annealing` iterations from iteration `start`.
    - `share`: of a step that is taken where a batch does not hit every point.
    - `late`: factor of the first steps after that.
    """

    first: float
    last: float
    start: int
    annealing: int
    share: float
    late: float

    @property
    def annealed(self) -> int:
        """The iteration from which the regularisation is the last."""
        return self.start + self.annealing

    def again(self, t: int) -> "_Schedule":
        """The schedule from iteration `t` on, three times as slow."""
        return self._replace(start=t, annealing=3 * self.annealing)

    def epsilon(self, t):
        fraction = np.minimum((t - self.start) / self.annealing, 1)
        return self.first * (self.last / self.first) ** fraction

    def step(self, t):
        epochs = np.maximum(t - self.annealed, 0) * self.share
        slowed = self.late / np.sqrt(1 + epochs / 10)
        return self.share * np.where(t < self.annealed, 1.0, slowed)

    def averaging(self, t):
        late = t - self.annealed
        return np.where(late < 0, 1.0, np.minimum(1, 3 / (np.maximum(late, 0) + 3)))


def _check(epsilon, tolerance, max_iterations, batch_size, dim, target_dim) -> None:
    if not 0 <= epsilon < np.inf:
        raise ValueError(f"epsilon must be finite and at least 0; got {epsilon}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance}.")
    if max_iterations < 4 * CHUNK:
        raise ValueError(f"max_iterations must be at least {4 * CHUNK}; got {max_iterations}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    if dim != target_dim:
        raise ValueError(f"source has dimension {dim} and y {target_dim}; they must be equal.")


def _batch(size: int) -> int:
    return 1 << (max(64, min(MOST_BATCH, BLOCK // size)).bit_length() - 1)


def _schedule(problem, weights, points, key, epsilon, batch, max_iterations):
    """The schedule, and the least step of each point."""
    x = np.asarray(_pilot(problem, key), np.float64)
    y = np.asarray(points[: len(weights)], np.float64)
    dim = y.shape[1]
    mean_cost = (np.mean(np.sum(x**2, axis=1)) + weights @ np.sum(y**2, axis=1)) / 2
    # The share of a point's mass that a potential moves is over the width of its cell times the
    # distance of its neighbours: the inverse of the Hessian's diagonal over the mass.
    width = np.sqrt(np.mean(np.var(x, axis=0))) * len(y) ** (-1 / dim)
    pace = np.zeros(problem.points.shape[0])
    pace[: len(y)] = np.minimum(width * _distances(y) / 4, mean_cost)
    last = epsilon if epsilon > 0 else float(np.median(pace[: len(y)]))
    # A point is hit once in n / batch steps: larger steps would throw it out of its cell.
    share = min(1.0, batch / len(weights))
    wanted = CHUNK * -(-int(ANNEALING / share) // CHUNK)
    annealing = min(wanted, CHUNK * (max_iterations // (4 * CHUNK)))
    # Cells have facets, across which larger steps average out; a soft plan has none.
    late = LATE if epsilon == 0 else 1.0
    return _Schedule(max(mean_cost, last), last, 0, annealing, share, late), pace


def spacing(y: Float[np.ndarray, "n dim"]) -> float:
    """Median squared distance of nearest neighbours, extrapolated from some of the points.

    Infinite for points that are all equal.
    """
    some = np.unique(y[np.unique(np.linspace(0, len(y) - 1, NEIGHBOURS).astype(int))], axis=0)
    if len(some) < 2:
        return np.inf
    thinning = (len(some) / len(y)) ** (2 / y.shape[1])
    return float(np.median(_nearest(some)) ** 2 * thinning)


def _distances(y: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
    """Distance of each point from the nearest other one; infinite if all are equal.

    In a large table of many columns, where distances are alike and take long, it is one for all.
    """
    if len(y) > MANY and y.shape[1] > LOW:
        return np.full(len(y), np.sqrt(spacing(y)))
    different, place = np.unique(y, axis=0, return_inverse=True)
    if len(different) < 2:
        return np.full(len(y), np.inf)
    return _nearest(different)[place.reshape(-1)]


def _nearest(points: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
    from scipy.spatial import KDTree

    return KDTree(points).query(points, k=2)[0][:, 1]


def _ascend(problem, schedule, pace, key, checks_key, epsilon, tolerance, max_iterations, batch):
    """Chunks of steps until a check and a second look agree that the tolerance is met."""
    size, dtype = problem.points.shape[0], problem.points.dtype
    g = average = jnp.asarray(np.zeros(size, dtype))
    history, t, next_check, checks = [], 0, schedule.annealed + 5 * CHUNK, 0
    pace, wanted = as_dtype(pace, dtype), epsilon == 0
    while True:
        hard = wanted and t >= schedule.annealed
        times = np.arange(t, t + CHUNK)
        rows = (schedule.epsilon(times), schedule.step(times), schedule.averaging(times))
        rows = as_dtype(np.stack(rows, axis=1), dtype)
        g, average = _steps(
            problem, pace, g, average, key, times.astype(np.int32), rows, batch, hard
        )
        t += CHUNK
        last = t + CHUNK > max_iterations
        if t < next_check and not last:
            continue
        next_check, status = int(t + max(5 * CHUNK, t // 2)), "max_iterations"

        def look(number, average=average):
            k = fold_in(checks_key, number)
            return marginal_error(problem, average, epsilon, tolerance, k)

        found = look(2 * checks)
        history.append((t, found.chi2, found.chi2_error))
        if not np.isfinite(found.chi2):
            return average, t, "not_finite", history, found
        if last or found.chi2 + 2 * found.chi2_error <= tolerance:
            error = look(2 * checks + 1)
            if error.chi2 + 2 * error.chi2_error <= tolerance:
                status = "converged"
            if last or status == "converged":
                return average, t, status, history, error
        checks += 1
        slower = schedule.again(t)
        if _has_stalled(history) and slower.annealed + 5 * CHUNK <= max_iterations:
            schedule, g, next_check = slower, average, slower.annealed + 5 * CHUNK


def _has_stalled(history) -> bool:
    """Whether the last check found less than a fifth less than the one before."""
    return len(history) > 1 and history[-1][1] > 0.8 * history[-2][1]


@eqx.filter_jit
def _pilot(problem: _Problem, key: Key[Array, ""]) -> Float[Array, "m dim"]:
    return problem.draw(key, PILOT)


@eqx.filter_jit
def _steps(problem, pace, g, average, key, times, rows, batch: int, is_hard: bool):
    """One chunk of steps; `rows` hold regularisation, step and weight of the new iterate."""
    weights = problem.weights
    relative = jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1), 0)

    def step(state, inputs):
        g, average = state
        t, (epsilon, size, share) = inputs
        x = problem.draw(fold_in(key, t), batch)
        scores = scores_of(problem.points, weights, epsilon, is_hard)(g, x)
        masses = mean_probabilities(scores, epsilon, is_hard)
        scale = pace if is_hard else jnp.maximum(pace, epsilon)
        g = g + size * scale * (weights - masses) * relative
        return (g, average + share * (g - average)), None

    return jax.lax.scan(step, (g, average), (times, rows))[0]

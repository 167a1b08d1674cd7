"""The squared Wasserstein distance between the laws of `benchmarks.plane`, once, with its error.

    python -m benchmarks.population_cost [--draws N] [--points N] [--save] [--small]

Each draw has so many fresh points a side, and the exact cost of their optimal assignment. Prices
from entropic transport say which pairs can be in it; the assignment of least cost among those is
found, with prices that none of them violates; pairs that violate these prices are added, until
there are none: then no other pair would have helped. The mean over draws has a bias of the order of
`log(n) / n`, and the standard error printed.
"""

import time
from typing import NamedTuple

import numpy as np
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from scipy.spatial import KDTree

from benchmarks.plane import PLANE
from benchmarks.timing import machine, parser_of, record
from driftbridge.transport import sinkhorn

# Pairs of each row and of each column that a round adds, and rounds.
CANDIDATES, ROUNDS = 16, 50
# Regularisation of the first prices, in mean costs over n; sweeps of shortest paths.
SHARE_POINTS, SWEEPS = 20.0, 5000
# The solver adds up to n integers, times n, in 64 bits.
BITS = 58
# What the proof may leave of the cost.
GAP = 1e-6


class Bounds(NamedTuple):
    """An assignment's mean cost, and the value of potentials that no pair violates."""

    upper: float
    lower: float


def matched(x: np.ndarray, y: np.ndarray) -> Bounds:
    """Bounds of the least mean of `|x_i - y_s(i)|^2` over assignments `s`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, mean = len(x), np.sum(np.var(x, axis=0)) + np.sum(np.var(y, axis=0))
    plan = sinkhorn(x, y, epsilon=SHARE_POINTS / n * mean / 2, tolerance=2e-2)
    f, g = (2 * np.asarray(part, np.float64) for part in (plan.f, plan.g))
    pairs = np.arange(n) * n + np.arange(n)  # with these there is an assignment
    for _ in range(ROUNDS):
        pairs = np.union1d(pairs, candidates(x, y, f, g))
        rows, columns = np.divmod(pairs, n)
        costs = np.sum((x[rows] - y[columns]) ** 2, axis=1)
        chosen = assigned(rows, columns, costs - f[rows] - g[columns], n)
        tight = np.sum((x - y[chosen]) ** 2, axis=1)
        f, g = prices(rows, columns, costs, chosen, tight, f, 1e-12 * mean)
        least, _ = nearest(x, y, g, 1)
        bounds = Bounds(float(np.mean(tight)), float(np.mean(g) + np.mean(least)))
        if bounds.upper - bounds.lower <= GAP * bounds.upper:
            break
    return bounds


def candidates(x: np.ndarray, y: np.ndarray, f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The numbers `i n + j` of the pairs of least reduced cost of each row and each column."""
    every = np.arange(len(x))[:, None]
    of_rows, of_columns = nearest(x, y, g, CANDIDATES)[1], nearest(y, x, f, CANDIDATES)[1]
    return np.concatenate(
        [(every * len(x) + of_rows).ravel(), (of_columns * len(x) + every).ravel()]
    )


def nearest(
    x: np.ndarray, y: np.ndarray, g: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The least `|x_i - y_j|^2 - g_j` of each row, and the columns where they are.

    That is a squared distance in one more dimension, between `(x_i, 0)` and
    `(y_j, sqrt(max g - g_j))`, less `max g`.
    """
    lifted = np.column_stack([y, np.sqrt(g.max() - g)])
    found = KDTree(lifted).query(np.column_stack([x, np.zeros(len(x))]), k=count)
    return found[0] ** 2 - g.max(), found[1]


def assigned(rows: np.ndarray, columns: np.ndarray, costs: np.ndarray, n: int) -> np.ndarray:
    """The column of each row in the assignment of least cost among some pairs, costs rounded."""
    span = costs - costs.min()
    units = np.round(span / span.max() * (2.0**BITS / n**2)).astype(np.int64)
    solver = SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(rows.astype(np.int32), columns.astype(np.int32), units)
    if solver.solve() != SimpleLinearSumAssignment.OPTIMAL:
        raise RuntimeError("the assignment among candidates was not solved.")
    return np.array([solver.right_mate(i) for i in range(n)])


def prices(rows, columns, costs, chosen, tight, f, tolerance: float):
    """Potentials that are equal to the cost on chosen pairs, and at most it on all pairs given.

    Shortest paths by the method of Bellman and Ford; `rows` are sorted.
    """
    g, starts = np.empty_like(f), np.searchsorted(rows, np.arange(len(f)))
    for _ in range(SWEEPS):
        g[chosen] = tight - f
        least = np.minimum.reduceat(costs - g[columns], starts)
        if np.all(f - least < tolerance):
            break
        f = np.minimum(f, least)
    return f, g


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--draws", type=int, default=10, help="independent pairs of samples")
    parser.add_argument("--points", type=int, default=20_000, help="points of a sample")
    chosen = parser.parse_args()
    draws, points = (2, 500) if chosen.small else (chosen.draws, chosen.points)
    print(f"{machine()}\n\n{draws} draws of {points} points a side\n")
    rows, met = [], True
    for name, problem in PLANE.items():
        found = []
        for draw in range(draws):
            start, rng = time.perf_counter(), np.random.default_rng([draw, 1789])
            found.append(matched(problem.source(rng, points), problem.target(rng, points)))
            seconds = time.perf_counter() - start
            print(f"  {name}, draw {draw}: {found[-1].lower:.5f} to {found[-1].upper:.5f}, "
                  f"{seconds:.0f} s", flush=True)  # fmt: skip
        upper, lower = np.array(found).T
        error = float(upper.std(ddof=1) / np.sqrt(draws))
        proved = bool(np.all(upper - lower <= GAP * upper))
        met &= proved
        print(f"{name}: {upper.mean():.4f} ± {error:.4f} ({100 * error / upper.mean():.2f} %), "
              f"{'proved' if proved else 'NOT PROVED'}\n", flush=True)  # fmt: skip
        rows.append({"problem": name, "draws": draws, "points": points, "cost": upper.mean(),
                     "error": error, "least": lower.mean()})  # fmt: skip
    return record("population_cost", rows, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

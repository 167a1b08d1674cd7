"""The squared Wasserstein distance between the laws of `benchmarks.plane`, once, with its error.

    python -m benchmarks.population_cost [--draws N] [--points N] [--save] [--small]

Each draw has so many fresh points a side, and the exact cost of their optimal assignment: prices
from entropic transport say which pairs can be in it, the assignment of least cost among those is
found, and potentials that no pair violates prove that no other pair would have helped. The mean
over draws has a bias of the order of `log(n) / n`, and the standard error printed.
"""

import time
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from benchmarks.plane import PLANE
from benchmarks.timing import machine, parser_of, record
from driftbridge.transport import sinkhorn

# Candidates of each row and of each column. Prices are off by about their regularisation, which
# must not exceed the differences that decide: those fall as `1 / n`.
CANDIDATES, SHARE_POINTS = 16, 6.0
# Rows of a block of the cost matrix; sweeps of shortest paths.
BLOCK, SWEEPS = 1000, 5000
# What the proof may leave of the cost.
GAP = 2e-4


class Bounds(NamedTuple):
    """An assignment's mean cost, and the value of potentials that no pair violates."""

    upper: float
    lower: float


def matched(x: np.ndarray, y: np.ndarray) -> Bounds:
    """Bounds of the least mean of `|x_i - y_s(i)|^2` over assignments `s`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, every = len(x), np.arange(len(x))
    mean = np.sum(np.var(x, axis=0)) + np.sum(np.var(y, axis=0))
    plan = sinkhorn(x, y, epsilon=SHARE_POINTS / n * mean / 2, tolerance=2e-2)
    f, g = (2 * np.asarray(part, np.float64) for part in (plan.f, plan.g))
    of_rows, of_columns = nearest(x, y, g), nearest(y, x, f)
    rows = np.concatenate([np.repeat(every, CANDIDATES), of_columns.ravel()])
    columns = np.concatenate([of_rows.ravel(), np.repeat(every, CANDIDATES)])
    rows, columns = np.divmod(np.unique(rows * n + columns), n)
    costs = np.sum((x[rows] - y[columns]) ** 2, axis=1)
    # Prices change no assignment's rank; with these the shortest paths are short.
    reduced = costs - f[rows] - g[columns]
    graph = csr_array((reduced - reduced.min() + 1e-6, (rows, columns)), shape=(n, n))
    _, chosen = min_weight_full_bipartite_matching(graph)
    tight = np.sum((x - y[chosen]) ** 2, axis=1)
    starts = np.searchsorted(rows, every)
    for _ in range(SWEEPS):
        g[chosen] = tight - f
        least = np.minimum.reduceat(costs - g[columns], starts)
        if np.all(f - least < 1e-12 * mean):
            break
        f = np.minimum(f, least)
    lower = float(np.mean(g) + np.mean(transform(x, y, g)))
    return Bounds(float(np.mean(tight)), lower)


def blocks(x: np.ndarray, y: np.ndarray, g: np.ndarray):
    """`|x_i - y_j|^2 - g_j`, some rows at a time."""
    squares = np.sum(y**2, axis=1) - g
    for part in np.array_split(x, -(-len(x) // BLOCK)):
        yield np.sum(part**2, axis=1)[:, None] + squares[None] - 2 * part @ y.T


def nearest(x: np.ndarray, y: np.ndarray, g: np.ndarray) -> np.ndarray:
    """For each row the columns of least reduced cost."""
    few = slice(0, CANDIDATES)
    return np.concatenate(
        [np.argpartition(block, CANDIDATES, axis=1)[:, few] for block in blocks(x, y, g)]
    )


def transform(x: np.ndarray, y: np.ndarray, g: np.ndarray) -> np.ndarray:
    """`min_j |x_i - y_j|^2 - g_j`."""
    return np.concatenate([block.min(axis=1) for block in blocks(x, y, g)])


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

"""Hierarchical refinement: one-to-one couplings of large tables in linear memory."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.couplings import TableCoupling, tables
from driftbridge.transport.distances import gaussian_wasserstein
from driftbridge.transport.minibatch import indices

# Points that choose the direction of a split, starts of that choice, and its rounds.
SAMPLE, STARTS, ROUNDS = 1 << 14, 3, 20

Segment = tuple[int, int]


class HierarchicalRefinement(TableCoupling):
    """A bijection between two tables of equal length, near the optimal one.

    Both tables are cut in halves that belong together, and those again, down to parts small enough
    for an exact assignment. A cut is the best coupling of rank two with parts of equal size: it
    maximises `<u, v>`, the product of the means of the two upper halves, about the means of all.
    For a given `v` the best half of `x` lies above the median of `<x, v>`, and for a given `u` that
    of `y` above the median of `<y, u>`; the two steps alternate. In one dimension the result is
    optimal.

    Then sweeps: pairs whose sources, or whose targets, lie close together are grouped by random
    cuts and assigned anew within each group, which never raises the cost.

    **Arguments:**

    - `x`, `y`: points `(n, dim)`, `n` equal for both.
    - `leaf`: points in the parts that are assigned exactly.
    - `sweeps`: how often pairs are grouped and assigned again.
    - `key`: seed of the directions.

    **Returns** an object with `columns`, the row of `y` for each row of `x`; `costs`, the mean of
    `|x - y|^2` after the cuts and after each sweep; `cost`, the last of them, an upper bound on
    `W2^2`; and `lower_bound` on the same.

    **Raises:** `ValueError` for tables of different lengths.

    Memory grows as `n dim + leaf^2`, time as `n log n dim + n leaf^2` for each sweep at worst.

    The recursion is that of Halmos et al. (2025), arXiv 2503.03025, where every cut is found
    by low-rank Sinkhorn; the alternating cut and the sweeps are our own.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "n dim"]
    columns: Int[Array, " n"]
    costs: Float[Array, " sweeps"]
    lower_bound: Float[Array, ""]

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        leaf: int = 256,
        sweeps: int = 2,
        key: int | Key[Array, ""] = 0,
    ):
        self.x, self.y = tables(x, y)
        if len(self.x) != len(self.y):
            raise ValueError(
                f"x and y must have the same number of rows; got {len(self.x)} and {len(self.y)}. "
                "Draw as many from the larger one, or use SemidiscreteCoupling or MinibatchOT."
            )
        if leaf < 2 or sweeps < 0:
            raise ValueError(
                f"leaf must be at least 2 and sweeps at least 0; got {leaf} and {sweeps}."
            )
        first, second = np.asarray(self.x), np.asarray(self.y)
        rng = host_generator(as_key(key))
        columns = _bisected(first, second, leaf, rng)
        costs = [_mean_cost(first, second, columns)]
        for sweep in range(sweeps):
            _sweep(first, second, columns, (first, second[columns])[sweep % 2], leaf, rng)
            costs.append(_mean_cost(first, second, columns))
        self.columns = indices(columns)
        self.costs = jnp.asarray(np.array(costs), self.x.dtype)
        self.lower_bound = jnp.asarray(gaussian_wasserstein(first, second) ** 2, self.x.dtype)

    @property
    def cost(self) -> float:
        return float(self.costs[-1])

    def _rows(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        i = jax.random.randint(key, (n,), 0, len(self.columns))
        return i, self.columns[i]


def _mean_cost(x, y, columns) -> float:
    """Mean of `|x - y|^2` in blocks of rows."""
    parts = np.array_split(np.arange(len(x)), max(1, len(x) // SAMPLE))
    total = sum(np.sum(np.square(x[i] - y[columns[i]], dtype=np.float64)) for i in parts)
    return float(total / len(x))


def _segments(n: int, leaf: int) -> Iterator[tuple[Segment, int | None]]:
    """Segments in the order of cutting, each with its middle, or None if it is small enough."""
    stack = [(0, n)]
    while stack:
        low, high = stack.pop()
        if high - low <= leaf:
            yield (low, high), None
            continue
        middle = (low + high) // 2
        yield (low, high), middle
        stack += [(low, middle), (middle, high)]


def _bisected(x, y, leaf: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    rows, others = np.arange(len(x)), np.arange(len(x))
    columns = np.empty(len(x), np.int64)
    for (low, high), middle in _segments(len(x), leaf):
        i, j = rows[low:high], others[low:high]
        if middle is None:
            columns[i] = j[assign(_costs(x[i], y[j]))]
            continue
        u, v = _cut(_some(x, i, rng), _some(y, j, rng), rng)
        rows[low:high] = _halved(i, x[i] @ v.astype(x.dtype), middle - low)
        others[low:high] = _halved(j, y[j] @ u.astype(y.dtype), middle - low)
    return columns


def _costs(x, y) -> Float[np.ndarray, "n n"]:
    """Squared distances of two parts moved to one mean: they differ by a sum over rows and columns.

    Distances of small parts far from one another would lose their digits, and are slower to assign.
    """
    first = x - x.mean(axis=0, dtype=np.float64)
    return squared_distances(first, y - y.mean(axis=0, dtype=np.float64))


def _halved(i, values, middle: int) -> Int[np.ndarray, " n"]:
    """Rows with the `middle` smallest values first."""
    return i[np.argpartition(values, middle)]


def _some(points, i, rng) -> Float[np.ndarray, "k dim"]:
    chosen = i if len(i) <= SAMPLE else rng.choice(i, SAMPLE)
    part = points[chosen].astype(np.float64)
    return part - part.mean(axis=0)


def _cut(x, y, rng):
    """`u` and `v` of the best cut found: means of the upper halves of `x` and `y`."""
    best, cut = -np.inf, None
    for v in _starts(x, y, rng):
        value = -np.inf
        for _ in range(ROUNDS):
            u = _upper_mean(x, v)
            w = _upper_mean(y, u)
            if u @ w <= value * (1 + 1e-6):
                break
            value, v = u @ w, w
            if value > best:
                best, cut = value, (u, w)
    if cut is None:  # all points of one table are equal: any halves do
        return v, v
    return cut


def _upper_mean(points, direction):
    values = points @ direction
    return points[np.argpartition(values, len(values) // 2)[len(values) // 2 :]].mean(axis=0)


def _starts(x, y, rng):
    """Principal axes of both tables together, or random differences in high dimension."""
    dim = x.shape[1]
    if dim > 64:
        return [x[rng.integers(len(x))] + y[rng.integers(len(y))] for _ in range(STARTS)]
    _, vectors = np.linalg.eigh(x.T @ x / len(x) + y.T @ y / len(y))
    return list(vectors.T[::-1][:STARTS])


def _sweep(x, y, columns, places, leaf: int, rng: np.random.Generator) -> None:
    """Assign anew within groups of pairs whose `places` are close together; changes `columns`."""
    pairs = np.arange(len(x))
    for (low, high), middle in _segments(len(x), leaf):
        i = pairs[low:high]
        if middle is not None:
            # A difference of two points is long where the points are spread out.
            direction = places[rng.choice(i)] - places[rng.choice(i)]
            pairs[low:high] = _halved(i, places[i] @ direction, middle - low)
            continue
        j = columns[i]
        cost = _costs(x[i], y[j])
        chosen = assign(cost)
        if np.take_along_axis(cost, chosen[:, None], 1).sum() < np.trace(cost):
            columns[i] = j[chosen]

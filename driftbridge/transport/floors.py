"""What a distance shows between two samples of one law: its floor."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.transport.kernel_sums import off_diagonal_forms

Distance = Callable[[np.ndarray, np.ndarray], float]


class Level(NamedTuple):
    """A distance beside its floor, both between samples of the sizes `sizes`.

    - `value`: the distance, or its mean over subsamples.
    - `floor`: mean distance of two disjoint samples of the target.
    - `spread`: standard deviation of that distance over splits of the points at hand.
    """

    value: float
    floor: float
    spread: float
    sizes: tuple[int, int]


def subsampled(
    distance: Distance,
    x: Float[np.ndarray, "n dim"],
    y: Float[np.ndarray, "m dim"],
    rng: np.random.Generator,
    num_splits: int,
    most: int,
) -> Level:
    """Value and floor at `k = min(n, m // 2)` points: the largest size at which neither is biased.

    Each split takes two disjoint parts of `k` points from `y` and one from `x`. Both means are then
    exactly those of fresh samples of `k` points, whatever the two laws and the distance's rate.

    **Arguments:** `most`: `k` is at most this.
    """
    k = min(len(x), len(y) // 2, most)
    values, floors = np.empty(num_splits), np.empty(num_splits)
    for split in range(num_splits):
        rows = rng.permutation(len(y))
        first, second = y[rows[:k]], y[rows[k : 2 * k]]
        values[split] = distance(x[rng.permutation(len(x))[:k]], first)
        floors[split] = distance(first, second)
    return Level(float(values.mean()), float(floors.mean()), _deviation(floors), (k, k))


def pooled(
    distance: Distance,
    x: Float[np.ndarray, "n dim"],
    y: Float[np.ndarray, "m dim"],
    rng: np.random.Generator,
    num_splits: int,
    value: float,
) -> Level:
    """The floor at all `n` and `m` points, by random splits of the pooled ones.

    It is exactly that of fresh samples where the laws are equal; where they are not, it is the
    floor of their mixture, which is the higher the further apart they are.
    """
    n, both = len(x), np.concatenate([x, y])
    floors = np.empty(num_splits)
    for split in range(num_splits):
        rows = rng.permutation(len(both))
        floors[split] = distance(both[rows[:n]], both[rows[n:]])
    return Level(value, float(floors.mean()), _deviation(floors), (n, len(y)))


def kernel_level(
    x: Float[np.ndarray, "n dim"],
    y: Float[np.ndarray, "m dim"],
    kernel: str,
    bandwidth: float,
    rng: np.random.Generator,
    num_splits: int,
    value: float,
) -> Level:
    """The floor of a kernel discrepancy at all `n` and `m` points, from halves of the target.

    Between samples of one law the mean of the squared discrepancy is exactly proportional to
    `1/n + 1/m`, and so is its law but for terms of higher order: that of two halves gives the floor
    at any sizes. All splits are one matrix product.
    """
    n, m = len(x), len(y)
    k = m // 2
    labels = np.repeat([1 / k, -1 / k, 0.0], [k, k, m - 2 * k])
    columns = np.stack([rng.permutation(labels) for _ in range(num_splits)], axis=1)
    squares = off_diagonal_forms(y, columns, kernel, bandwidth)
    # The diagonal is 1 for the Gaussian and the Laplace kernel.
    squares = squares + (0.0 if kernel == "energy" else 2 / k)
    roots = np.sqrt(np.maximum(squares, 0) * ((1 / n + 1 / m) / (2 / k)))
    return Level(value, float(roots.mean()), _deviation(roots), (n, m))


def _deviation(values: Float[np.ndarray, " splits"]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")

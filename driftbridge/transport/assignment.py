"""Optimal assignments of one set of points to another of the same size."""

import numpy as np
from jaxtyping import Float, Int

# Regularisation over the mean cost, and rounds, of the scaling that finds prices; below this size
# it takes as long as it saves.
SHARE, ROUNDS, LEAST = 0.05, 20, 48
# Smallest exponent of a kernel in float32 that leaves its sums in range.
LOWEST = -60.0


def squared_distances(
    x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "m dim"]
) -> Float[np.ndarray, "n m"]:
    """`|x_i - y_j|^2` in float64, from centred points."""
    centre = y.mean(axis=0, dtype=np.float64)
    x, y = x - centre, y - centre
    return np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None] - 2 * x @ y.T


def assign(cost: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
    """The column of each row in an assignment of least cost, exactly.

    A price for each column, the same in all rows, changes no assignment's rank. With prices near
    the optimal dual ones, here from a few rounds of matrix scaling, the shortest paths by which the
    solver goes on are short: 2.5 times as fast at 256 points, 4 to 9 times at 1024.

    Crouse (2016), "On implementing 2D rectangular assignment algorithms", as SciPy has it.
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost - _prices(cost)[None])[1]


def _prices(cost: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    n = len(cost)
    reduced = cost - cost.min(axis=1)[:, None]
    epsilon = SHARE * reduced.mean()
    if n < LEAST or not 0 < epsilon < np.inf:
        return np.zeros(n)
    kernel = np.exp(np.maximum(reduced / -epsilon, LOWEST).astype(np.float32))
    rows = columns = np.ones(n, np.float32)
    with np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            columns = 1 / (rows @ kernel)
            rows = 1 / (kernel @ columns)
        prices = epsilon * np.log(columns.astype(np.float64))
    return prices if np.isfinite(prices).all() else np.zeros(n)

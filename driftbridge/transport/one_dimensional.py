"""Optimal transport on the line: quantiles against quantiles, by sorting."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from driftbridge.transport.points import as_rows, as_weights


class Staircase(NamedTuple):
    """A monotone coupling of two sorted samples, from the lower left corner to the upper right.

    - `rows`, `columns`: ranks that are coupled, both nondecreasing.
    - `mass`: what they share, `>= 0`.
    """

    rows: Int[np.ndarray, " k"]
    columns: Int[np.ndarray, " k"]
    mass: Float[np.ndarray, " k"]


def staircase(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> Staircase:
    """The monotone coupling of weights in sorted order: it merges the steps of two quantiles.

    **Arguments:**

    - `a`, `b`: positive weights that sum to one.
    """
    above, below = _levels(a), _levels(b)
    levels = np.union1d(above, below)
    levels = levels[levels < 1 - 4 * np.finfo(np.float64).eps]
    starts = np.concatenate([[0.0], levels])
    mass = np.append(levels, 1.0) - starts
    middles = starts + mass / 2
    rows = np.minimum(np.searchsorted(above, middles, side="right"), len(a) - 1)
    columns = np.minimum(np.searchsorted(below, middles, side="right"), len(b) - 1)
    return Staircase(rows, columns, mass)


def _levels(weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Values of the distribution function at the points; `i / n` and `j / m` meet exactly."""
    if np.ptp(weights) == 0:
        return np.arange(1, len(weights) + 1) / len(weights)
    sums = np.cumsum(weights)
    return sums / sums[-1]


def wasserstein_1d(x: Any, y: Any, p: float | int = 2, *, a: Any = None, b: Any = None) -> float:
    """Wasserstein distance between two weighted samples of numbers.

    `W_p^p = int_0^1 |F^{-1}(u) - G^{-1}(u)|^p du`, in time `(n + m) log(n + m)` and in float64.

    **Arguments:**

    - `x`, `y`: `(n,)` or `(n, 1)`, and `(m,)` or `(m, 1)`.
    - `p`: `>= 1`.
    - `a`, `b`: weights `(n,)` and `(m,)`, each summing to one; equal if None.

    **Returns:** the distance, in the units of the data.

    **Raises:** `ValueError` for `p < 1`, other shapes, values that are not finite, or weights that
    do not sum to one.

    Santambrogio (2015), Optimal Transport for Applied Mathematicians, proposition 2.17.
    """
    check_power(p)
    (x, a), (y, b) = _line(x, a, "x"), _line(y, b, "y")
    at = staircase(a, b)
    return float(np.sum(at.mass * np.abs(x[at.rows] - y[at.columns]) ** p) ** (1 / p))


def check_power(p: float | int) -> None:
    """**Raises:** `ValueError` unless `p >= 1` is finite."""
    if not 1 <= p < np.inf:
        raise ValueError(f"p must be at least 1 and finite; got {p}.")


def _line(x: Any, weights: Any, name: str):
    """Numbers in increasing order with their weights, those of weight zero left out."""
    x = np.asarray(as_rows(x, name), np.float64)
    if x.ndim == 2:
        if x.shape[1] != 1:
            raise ValueError(f"{name} must be one column of numbers; got shape {x.shape}.")
        x = x[:, 0]
    if len(x) == 0:
        raise ValueError(f"{name} is empty: a distance needs at least one point.")
    weights = as_weights(weights, len(x), name)
    order = np.argsort(x, kind="stable")
    order = order[weights[order] > 0]
    return x[order], weights[order]

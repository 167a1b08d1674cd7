"""How far a map is from optimal, without knowing the optimal one."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.base import as_dtype
from driftbridge.transport.convex_cost import ConvexCost, HalfSquare
from driftbridge.transport.points import as_rows

# Points between which the assignment is solved: a tenth of a second.
MOST = 512


def optimality_gap(x: Any, image: Any, cost: ConvexCost | None = None) -> float:
    """The share of its cost that a map could save on these points by exchanging their images.

    `1 - min_p mean c(T(x_p(i)) - x_i) / mean c(T(x_i) - x_i)` over permutations `p`, in `[0, 1]`.
    The graph of an optimal map is cyclically monotone: no exchange of images among any of its
    points saves anything. So a gap above 0 proves a map not to be optimal between its source and
    its own image, however small its training loss is; a gap of 0 proves nothing about other points.

    **Arguments:** `x`, `image`: points and their images, both `(n, dim)`; the first 512 are used.
    `cost`: a convex cost, None for `|d|^2 / 2`.

    **Raises:** `ValueError` for shapes that differ.

    Villani (2009), "Optimal transport, old and new", theorem 5.10.
    """
    first, second = (np.asarray(as_rows(p, "x"))[:MOST] for p in (x, image))
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"x and image must both be (n, dim); got {first.shape}, {second.shape}.")
    costs = _matrix(cost or HalfSquare(), first, second)
    paid = float(np.trace(costs))
    least = float(costs[np.arange(len(costs)), assign(costs)].sum())
    # Rounding of squared distances may leave the best assignment a digit above the identity.
    return max(0.0, 1 - least / paid) if paid > 0 else 0.0


def mean_cost(x: Any, image: Any, cost: ConvexCost) -> float:
    """The mean of `c(T(x) - x)`."""
    first, second = np.asarray(x), np.asarray(image)
    values = cost.value(as_dtype(second - first, first.dtype))
    return float(np.mean(np.asarray(values, np.float64)))


def _matrix(
    cost: ConvexCost, x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "n dim"]
) -> Float[np.ndarray, "n n"]:
    if isinstance(cost, HalfSquare):
        return squared_distances(x, y) / 2
    n, dim = x.shape
    moved: Any = (y[None, :, :] - x[:, None, :]).reshape(n * n, dim)
    values: Array = cost.value(as_dtype(moved, x.dtype))
    return np.asarray(values, np.float64).reshape(n, n)

"""The c-transform: the best potential of one side given the other's, hence lower bounds."""

import numpy as np
from jaxtyping import Float


def power_cost(
    x: Float[np.ndarray, "n dim"], y: Float[np.ndarray, "m dim"], p: float | int
) -> Float[np.ndarray, "n m"]:
    """`|x_i - y_j|^p` in float64, from differences: points that are equal cost exactly nothing."""
    from scipy.spatial.distance import cdist

    if p == 2:
        return cdist(x, y, "sqeuclidean")
    distances = cdist(x, y)
    return distances if p == 1 else distances**p


def c_transform(cost: Float[np.ndarray, "n m"], g: Float[np.ndarray, " m"], block: int = 256):
    """`f_i = min_j (c_ij - g_j)`, in blocks of rows."""
    return np.concatenate(
        [np.min(cost[i : i + block] - g, axis=1) for i in range(0, len(cost), block)]
    )


def c_transform_of_points(x, y, g, p, entries: int = 2**21):
    """The same from points, holding some rows of costs at a time."""
    block = max(1, entries // len(y))
    return np.concatenate(
        [np.min(power_cost(x[i : i + block], y, p) - g, axis=1) for i in range(0, len(x), block)]
    )


def completed(f, g, x, y, p):
    """Potentials of all points where some are NaN, feasible if the others are."""
    known, missing = ~np.isnan(g), np.isnan(f)
    if missing.any():
        f = f.copy()
        f[missing] = c_transform_of_points(x[missing], y[known], g[known], p)
    if not known.all():
        g = g.copy()
        g[~known] = c_transform_of_points(y[~known], x, f, p)
    return f, g

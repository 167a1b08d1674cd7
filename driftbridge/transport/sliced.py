"""The sliced Wasserstein distance: sorting along random directions."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.measures import two_samples
from driftbridge.transport.one_dimensional import check_power, staircase


def sliced_wasserstein(
    x: Any,
    y: Any,
    key: int | Key[Array, ""] = 0,
    num_projections: int = 128,
    p: float | int = 2,
    *,
    a: Any = None,
    b: Any = None,
) -> float:
    """Sliced Wasserstein distance, the root mean power of one-dimensional distances.

    `SW_p^p = mean_u W_p^p(u.x, u.y)` over random unit vectors `u`. They come in sets of `dim`
    orthogonal ones, each uniform on the sphere: the mean is unbiased, and exact for a translation
    once there is a whole set (then `SW_2 = |shift| / sqrt(dim)`). Time
    `num_projections (n dim + n log n)`.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `key`: of the directions, which depend on nothing else.
    - `num_projections`: `>= 1`; a multiple of `dim` serves best.
    - `p`: `>= 1`.
    - `a`, `b`: weights, each summing to one; equal if None.

    **Returns:** the distance, in the units of the data; it is at most `W_p`.

    **Raises:** `ValueError` for arguments outside their range.

    Bonneel, Rabin, Peyré and Pfister (2015), Journal of Mathematical Imaging and Vision 51,
    definition 3; orthogonal directions: Rowland et al. (2019), arXiv 1903.03784.
    """
    check_power(p)
    source, target = two_samples(x, y, a, b)
    axes = directions(key, num_projections, source.points.shape[1]).astype(source.points.dtype)
    powers = line_powers(
        source.points @ axes.T, target.points @ axes.T, p, source.weights, target.weights
    )
    return float(np.mean(powers) ** (1 / p))


def directions(
    key: int | Key[Array, ""], num_projections: int, dim: int
) -> Float[np.ndarray, "directions dim"]:
    """Random unit vectors, orthogonal within each set of `dim`."""
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1; got {num_projections}.")
    sets = -(-num_projections // dim)
    # Drawn on the host, where a new dimension compiles nothing.
    rng = host_generator(as_key(key))
    normal = rng.normal(size=(sets, dim, dim))
    q, r = np.linalg.qr(normal)
    # The signs of the diagonal make the orthogonal matrices uniform (Mezzadri 2007).
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    return np.swapaxes(q, 1, 2).reshape(-1, dim)[:num_projections]


def line_powers(
    x: Float[np.ndarray, "n lines"],
    y: Float[np.ndarray, "m lines"],
    p: float | int,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " lines"]:
    """`W_p^p` of each column. With equal weights all columns share one staircase of ranks."""
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return sorted_powers(np.sort(x, axis=0), np.sort(y, axis=0), p)
    return np.array([_weighted(x[:, line], y[:, line], p, a, b) for line in range(x.shape[1])])


def sorted_powers(
    x: Float[np.ndarray, "n lines"], y: Float[np.ndarray, "m lines"], p: float | int
) -> Float[np.ndarray, " lines"]:
    """`W_p^p` of each column of points that are sorted and have equal weights."""
    if len(x) == len(y):
        return np.asarray(np.mean(np.abs(x - y) ** p, axis=0, dtype=np.float64))
    at = staircase(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)))
    return at.mass @ np.abs(x[at.rows] - y[at.columns]).astype(np.float64) ** p


def _weighted(x, y, p, a, b) -> float:
    order = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    order = order[0][a[order[0]] > 0], order[1][b[order[1]] > 0]
    at = staircase(a[order[0]], b[order[1]])
    differences = x[order[0][at.rows]] - y[order[1][at.columns]]
    return float(at.mass @ np.abs(differences).astype(np.float64) ** p)

"""Weighted samples: two of them checked at once, their moments, and parts of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from driftbridge.transport.points import Sample, as_rows, as_weights, columns_of


class Moments(NamedTuple):
    """Mean and covariance of a sample, in float64."""

    mean: Float[np.ndarray, " dim"]
    covariance: Float[np.ndarray, "dim dim"]


def two_samples(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    least: int = 1,
    *,
    names: tuple[str, str] = ("x", "y"),
    vectors: bool = True,
    same_dim: bool = True,
    as_mass: Callable[..., np.ndarray] = as_weights,
) -> tuple[Sample, Sample]:
    """Points `(n, dim)` and `(m, dim)` of one dtype on the host, with weights that sum to one.

    **Arguments:**

    - `x`, `y`: arrays or data frames. Of two data frames the columns must have the same names, in
      any order.
    - `a`, `b`: weights, equal if None.
    - `least`: how many points each must have.
    - `names`: what messages call the two.
    - `vectors`: whether a vector is one column, or an error.
    - `same_dim`: whether both must have as many columns.
    - `as_mass`: what checks weights, other than as weights that sum to one.

    **Raises:** `ValueError` for shapes that do not fit, too few points, values that are not finite,
    or weights that are negative or do not sum to one.
    """
    columns, others = columns_of(x), columns_of(y)
    if columns is not None and others is not None and set(columns) != set(others):
        only = [c for c in columns if c not in others], [c for c in others if c not in columns]
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same columns; only in {names[0]}: {only[0]}, "
            f"only in {names[1]}: {only[1]}."
        )
    rows = []
    for name, data in zip(names, (x, y), strict=True):
        points = np.asarray(as_rows(data, name, columns=columns or others))
        points = points[:, None] if points.ndim == 1 and vectors else points
        if points.ndim != 2:
            raise ValueError(
                f"{name} must have shape (n, dim); got {points.shape}. One column of data is "
                "data[:, None]."
            )
        if len(points) < least or points.shape[1] < 1:
            raise ValueError(
                f"{name} must have at least {least} row{'s' * (least > 1)} and 1 column; got "
                f"{points.shape}."
            )
        rows.append(points)
    if same_dim and rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have one dimension; got {rows[0].shape[1]} and "
            f"{rows[1].shape[1]} columns."
        )
    dtype = np.result_type(rows[0].dtype, rows[1].dtype, np.float32)
    masses = [as_mass(w, len(p), name) for w, p, name in zip((a, b), rows, names, strict=True)]
    first, second = (Sample(p.astype(dtype), w) for p, w in zip(rows, masses, strict=True))
    return first, second


def device_dtype(points: np.ndarray) -> np.dtype:
    """The dtype in which programs see these points: float32 unless x64 is on."""
    return np.dtype(jax.dtypes.canonicalize_dtype(points.dtype))


def moments(sample: Sample) -> Moments:
    """Mean and covariance of the weighted points, a point of weight `2/n` being two of them."""
    points, weights = np.asarray(sample.points, np.float64), sample.weights
    mean = weights @ points
    centred = points - mean
    return Moments(mean, (centred * weights[:, None]).T @ centred)


def mean_cost(source: Sample, target: Sample, centred: bool = False) -> float:
    """The mean of `|x - y|^2 / 2` over independent pairs, if asked of both about their means."""
    means, spread = [], 0.0
    for sample in (source, target):
        points = np.asarray(sample.points, np.float64)
        mean = sample.weights @ points
        spread += float(sample.weights @ np.sum((points - mean) ** 2, axis=1))
        means.append(mean)
    return (spread + (0.0 if centred else float(np.sum((means[0] - means[1]) ** 2)))) / 2


def part_of(sample: Sample, rows: np.ndarray) -> Sample:
    """Some points with their weights; equal ones where all weight is on the others."""
    weights = sample.weights[rows]
    total = weights.sum()
    weights = weights / total if total > 0 else np.full(len(rows), 1 / max(len(rows), 1))
    condition = None if sample.condition is None else sample.condition[rows]
    return Sample(sample.points[rows], weights, condition)

"""Two weighted samples that are to be compared, checked once."""

from typing import Any

import numpy as np

from driftbridge.transport.points import Sample, as_rows, as_weights, columns_of


def two_samples(
    x: Any, y: Any, a: Any = None, b: Any = None, least: int = 1
) -> tuple[Sample, Sample]:
    """Points `(n, dim)` and `(m, dim)` of one dtype, with weights that sum to one.

    **Arguments:**

    - `x`, `y`: arrays or data frames; a vector is one column. Of two data frames the columns must
      have the same names, in any order.
    - `a`, `b`: weights, equal if None.
    - `least`: how many points each must have.

    **Raises:** `ValueError` for shapes that do not fit, too few points, values that are not finite,
    or weights that are negative or do not sum to one.
    """
    names = columns_of(x) or columns_of(y)
    points = [as_rows(x, "x", columns=names), as_rows(y, "y", columns=names)]
    points = [np.asarray(p)[:, None] if p.ndim == 1 else np.asarray(p) for p in points]
    for name, rows in zip("xy", points, strict=True):
        if len(rows) < least or rows.shape[1] < 1:
            raise ValueError(
                f"{name} must have at least {least} row(s) and 1 column; got {rows.shape}."
            )
    if points[0].shape[1] != points[1].shape[1]:
        raise ValueError(
            f"x and y must have one dimension; got {points[0].shape[1]} and {points[1].shape[1]} "
            "columns."
        )
    dtype = np.result_type(points[0].dtype, points[1].dtype, np.float32)
    weights = as_weights(a, len(points[0]), "x"), as_weights(b, len(points[1]), "y")
    return Sample(points[0].astype(dtype), weights[0]), Sample(points[1].astype(dtype), weights[1])

"""How far apart points are."""

import numpy as np
from jaxtyping import Float

# Points whose distances give the median.
MEDIAN_OF = 1000


def median_distance(points: Float[np.ndarray, "n dim"]) -> float:
    """Median distance of points that differ, among at most 1000 evenly spaced rows.

    **Raises:** `ValueError` if all are equal.
    """
    from scipy.spatial.distance import pdist

    rows = np.unique(np.linspace(0, len(points) - 1, MEDIAN_OF).astype(int))
    distances = pdist(points[rows].astype(np.float64))
    if not np.any(distances > 0):
        raise ValueError(
            f"all {len(rows)} points looked at are equal: there is no median distance. Give a "
            "bandwidth."
        )
    return float(np.median(distances[distances > 0]))

"""Energy distance and maximum mean discrepancy of two weighted samples."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.runtime.spread import median_distance
from driftbridge.transport.kernel_sums import KERNELS, off_diagonal_forms
from driftbridge.transport.measures import two_samples
from driftbridge.transport.points import Sample


class KernelDiscrepancy(NamedTuple):
    """The squared discrepancy of two samples in both of its estimates.

    - `v_statistic`: squared discrepancy of the two empirical laws, `>= 0` and biased upwards for
      that of the laws behind them.
    - `u_statistic`: pairs of a point with itself left out: unbiased for independent points with
      equal weights; it may be negative. NaN where a sample has a single point.
    - `kernel`, `bandwidth`: the kernel.
    """

    v_statistic: float
    u_statistic: float
    kernel: str
    bandwidth: float

    @property
    def value(self) -> float:
        """The discrepancy of the empirical laws: the root of `v_statistic`."""
        return float(np.sqrt(self.v_statistic))


def kernel_discrepancy(
    x: Any,
    y: Any,
    kernel: str = "gaussian",
    bandwidth: float | int | str = "median",
    *,
    a: Any = None,
    b: Any = None,
) -> KernelDiscrepancy:
    """Squared maximum mean discrepancy, `E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`.

    The kernels are `exp(-r^2 / (2 h^2))` ("gaussian"), `exp(-r / h)` ("laplace") and `-r`
    ("energy", which gives the squared energy distance), `r = |x - y|`. Time grows as `(n + m)^2`,
    memory as `n + m`. Up to 2048 points in all the sums are taken in float64 on the host; of more,
    sums of blocks are taken in the dtype of the points and added in float64.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `kernel`: "gaussian", "laplace" or "energy".
    - `bandwidth`: `h > 0`, or "median": the median distance of pooled points that differ, among at
      most 1000 of them.
    - `a`, `b`: weights, each summing to one; equal if None.

    **Returns:** a `KernelDiscrepancy`.

    **Raises:** `ValueError` for arguments outside their range, or points that are all equal where
    the bandwidth is their median distance.

    Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), JMLR 13, equations (3) and (5).
    """
    source, target = two_samples(x, y, a, b)
    pooled = np.concatenate([source.points, target.points])
    bandwidth = bandwidth_of(pooled, kernel, bandwidth)
    forms = off_diagonal_forms(pooled, _columns(source, target), kernel, bandwidth)
    within_x, within_y, both = forms
    shares = np.sum(source.weights**2), np.sum(target.weights**2)
    # Gaussian and Laplace kernels are 1 on the diagonal, a distance is 0.
    diagonal = 0.0 if kernel == "energy" else float(np.sum(shares))
    across = within_x + within_y - both
    with np.errstate(divide="ignore", invalid="ignore"):
        u_statistic = within_x / (1 - shares[0]) + within_y / (1 - shares[1]) - across
    return KernelDiscrepancy(
        v_statistic=float(max(both + diagonal, 0.0)),
        u_statistic=float(u_statistic) if max(shares) < 1 else float("nan"),
        kernel=kernel,
        bandwidth=bandwidth,
    )


def mmd(
    x: Any,
    y: Any,
    kernel: str = "gaussian",
    bandwidth: float | int | str = "median",
    *,
    a: Any = None,
    b: Any = None,
) -> float:
    """Maximum mean discrepancy of two empirical laws, the root of the V-statistic.

    `kernel_discrepancy` takes the same arguments and also gives the unbiased U-statistic, which
    estimates the square.
    """
    return kernel_discrepancy(x, y, kernel, bandwidth, a=a, b=b).value


def energy_distance(x: Any, y: Any, *, a: Any = None, b: Any = None) -> float:
    """Energy distance of two empirical laws, `(2 E|X - Y| - E|X - X'| - E|Y - Y'|)^(1/2)`.

    Zero only for equal laws; it has the square root of the units of the data. Pairs of a point with
    itself are counted (V-statistic), so that the square of the distance between two samples of one
    law is about `(1/n + 1/m) E|X - X'|`.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `a`, `b`: weights, each summing to one; equal if None.

    Székely and Rizzo (2013), Journal of Statistical Planning and Inference 143, equation (3.1).
    """
    return kernel_discrepancy(x, y, "energy", a=a, b=b).value


def bandwidth_of(
    pooled: Float[np.ndarray, "n dim"], kernel: str, bandwidth: float | int | str
) -> float:
    """The bandwidth as a number; 1 for the energy kernel, which has none."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}.")
    if kernel == "energy":
        return 1.0
    if bandwidth == "median":
        return median_distance(pooled)
    if isinstance(bandwidth, str) or not 0 < bandwidth < np.inf:
        raise ValueError(f"bandwidth must be positive and finite, or 'median'; got {bandwidth!r}.")
    return float(bandwidth)


def _columns(source: Sample, target: Sample) -> Float[np.ndarray, "n 3"]:
    """Weights of the pooled points for the terms within x, within y, and of the difference."""
    n = len(source.points)
    columns = np.zeros((n + len(target.points), 3))
    columns[:n, 0] = columns[:n, 2] = source.weights
    columns[n:, 1] = target.weights
    columns[n:, 2] = -target.weights
    return columns

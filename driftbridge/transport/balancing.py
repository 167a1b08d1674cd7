"""Weights that make one sample look like another, with a bound on what they cost in precision."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from driftbridge.transport import distances
from driftbridge.transport.c_transform import power_cost
from driftbridge.transport.entropy_balancing import (
    largest_effective_size,
    largest_entropy,
    least_imbalance,
    standardised,
)
from driftbridge.transport.maximum_mean_discrepancy import bandwidth_of
from driftbridge.transport.measures import two_samples
from driftbridge.transport.mirror_descent import minimise_entropic
from driftbridge.transport.points import Sample, columns_of
from driftbridge.transport.projected_gradient import Descent, minimise
from driftbridge.transport.simplex import BoundedSimplex, effective_size
from driftbridge.transport.wasserstein_balancing import bounded_counts, nearest_counts

METRICS = ("mmd", "sinkhorn", "linear", "w1")
# Bytes that the matrix of the kernel may take.
MOST_BYTES = 2.0**32


class BalancedWeights(eqx.Module):
    """Weights of a sample, and what they reach.

    - `weights`: `(n,)`, `>= 0`, of sum one.
    - `ess`: their effective sample size `1 / sum w^2`.
    - `before`, `after`: the metric between the sample and the target, with equal weights and with
      these.
    - `lower`: no weights within the bound on the effective size reach less than this.
    - `ipm`: the metric.
    - `status`: "converged", or what the solver ended with.
    """

    weights: Float[np.ndarray, " n"]
    ess: float
    before: float
    after: float
    lower: float
    ipm: str = eqx.field(static=True)
    num_iterations: int = eqx.field(static=True)
    status: str = eqx.field(static=True)

    @property
    def converged(self) -> bool:
        """Whether the solver reached its tolerance."""
        return self.status == "converged"

    def __str__(self) -> str:
        return (
            f"{self.ipm} {self.before:.3g} before, {self.after:.3g} after (at least "
            f"{self.lower:.3g}); effective size {self.ess:.0f} of {len(self.weights)}: "
            f"{self.status}"
        )


def balance_weights(
    x: Any,
    target: Any,
    ipm: str = "mmd",
    *,
    ess_min: float | int | None = None,
    b: Any = None,
    kernel: str = "energy",
    bandwidth: float | int | str = "median",
    moments: int = 1,
    epsilon: float | None = None,
    tolerance: float = 0.01,
    max_iterations: int = 2000,
) -> BalancedWeights:
    """Weights on the rows of `x` that bring it as near as possible to a target sample.

    `min_w sup_f |sum_i w_i f(x_i) - sum_j b_j f(y_j)|` over `w >= 0`, `sum w = 1` and
    `1 / sum w^2 >= ess_min`, for the functions `f` of an integral probability metric:

    - "mmd": the unit ball of a kernel, by default the energy distance's (energy balancing). A
      quadratic program, by projected gradients.
    - "sinkhorn": the Sinkhorn divergence in place of the square of a metric, as its root
      `(2 S)^(1/2)`.
    - "linear": linear functions of the covariates (`moments=1`), or quadratic ones too
      (`moments=2`): their means are matched exactly, by the weights of largest entropy. If these
      miss the bound, by the weights of largest effective size.
    - "w1": functions with Lipschitz constant one. Without a bound each target point counts its
      nearest neighbour.

    Distances are in the units of the columns: standardise them unless these are comparable. The
    linear metric does so itself.

    **Arguments:**

    - `x`, `target`: `(n, dim)` and `(m, dim)`.
    - `ipm`: one of the names above.
    - `ess_min`: least effective size, in [1, n]; None for no bound.
    - `b`: weights of the target; equal if None.
    - `kernel`, `bandwidth`: of "mmd", as in `kernel_discrepancy`.
    - `moments`: 1 or 2, for "linear".
    - `epsilon`: of "sinkhorn"; 5 % of the mean cost if None.
    - `tolerance`: of `after - lower`, as a share of `before`.
    - `max_iterations`: of the solver.

    **Returns:** a `BalancedWeights`; look at its `status`.

    **Raises:** `ValueError` for arguments outside their range; for "linear" if no weights match the
    moments, naming the column, or none within the bound, naming the largest effective size;
    `MemoryError` where the kernel's matrix would not fit.

    Müller (1997), Advances in Applied Probability 29, for the metrics; Huling and Mak (2024),
    Journal of Causal Inference 12, for energy balancing.
    """
    source, goal = two_samples(x, target, None, b)
    n = len(source.points)
    _check(ipm, ess_min, moments, tolerance, max_iterations, n)
    least = 1.0 if ess_min is None else float(ess_min)
    allowed = BoundedSimplex(least)
    if ipm == "linear":
        return _linear(source, goal, least, moments, columns_of(x) or columns_of(target))
    if ipm == "w1":
        return _w1(source, goal, allowed, tolerance, max_iterations)
    if ipm == "mmd":
        width = bandwidth_of(np.concatenate([source.points, goal.points]), kernel, bandwidth)
        return _mmd(source, goal, allowed, kernel, width, tolerance, max_iterations)
    if epsilon is None:
        epsilon = distances.SHARE * distances.mean_cost(source, goal)
    return _sinkhorn(source, goal, allowed, epsilon, tolerance, max_iterations)


def _check(ipm, ess_min, moments, tolerance, max_iterations, n) -> None:
    if ipm not in METRICS:
        raise ValueError(f"ipm must be one of {', '.join(METRICS)}; got {ipm!r}.")
    if ess_min is not None and not 1 <= ess_min <= n:
        raise ValueError(f"ess_min must lie in [1, {n}], the number of points; got {ess_min}.")
    if moments not in (1, 2):
        raise ValueError(f"moments must be 1 or 2; got {moments}.")
    if not 0 < tolerance < 1 or max_iterations < 1:
        raise ValueError(
            "tolerance must lie in (0, 1) and max_iterations be at least 1; got "
            f"{tolerance} and {max_iterations}."
        )


def _mmd(source: Sample, goal: Sample, allowed, kernel, width, tolerance, max_iterations):
    n = len(source.points)
    if 8 * n**2 > MOST_BYTES:
        raise MemoryError(
            f"the kernel of {n} points needs {8 * n**2 / 2**30:.1f} GiB; take fewer, or "
            "ipm='linear'."
        )
    x, y = (np.asarray(sample.points, np.float64) for sample in (source, goal))
    matrix = _kernel(x, x, kernel, width)
    across = _kernel_means(x, y, goal.weights, kernel, width)
    level = goal.weights @ _kernel_means(y, y, goal.weights, kernel, width)

    def value_and_slope(w):
        image = matrix @ w
        return float(w @ image - 2 * across @ w + level), 2 * (image - across)

    even = np.full(n, 1 / n)
    before = np.sqrt(max(value_and_slope(even)[0], 0.0))
    found = minimise(value_and_slope, even, allowed, _root_gap(before, tolerance), max_iterations)
    return _result("mmd", found, before, np.sqrt(max(found.value, 0.0)), 1.0)


def _kernel_means(x, y, b, kernel: str, width: float) -> Float[np.ndarray, " n"]:
    """`sum_j b_j k(x_i, y_j)`, some rows at a time."""
    blocks = [_kernel(x[i : i + 256], y, kernel, width) @ b for i in range(0, len(x), 256)]
    return np.concatenate(blocks)


def _kernel(x, y, kernel: str, width: float) -> Float[np.ndarray, "n m"]:
    values = power_cost(x, y, 2 if kernel == "gaussian" else 1)
    if kernel == "energy":
        return -values
    values /= -2 * width**2 if kernel == "gaussian" else -width
    return np.exp(values, out=values)


def _sinkhorn(source: Sample, goal: Sample, allowed, epsilon, tolerance, max_iterations):
    """Mirror descent of the divergence, whose slope is `f_xy - f_xx` (Feydy et al. 2019, eq. 27).

    The potential of `x` with itself at a point of weight `w` has a term `epsilon log w`, which
    projected gradients would meet as a cliff at zero.
    """
    from driftbridge.transport.sinkhorn import sinkhorn

    def solve(first, second, a, b, start):
        return sinkhorn(first, second, epsilon=epsilon, a=a, b=b, tolerance=1e-4, init=start)

    x, y, b = source.points, goal.points, goal.weights
    own = solve(y, y, b, b, None)
    plans: list[Any] = [None, None]

    def value_and_slope(w):
        plans[:] = solve(x, y, w, b, plans[0]), solve(x, x, w, w, plans[1])
        across, within = plans
        slope = np.asarray(across.f_at(x), np.float64) - np.asarray(within.f_at(x), np.float64)
        return across.dual - (within.dual + own.dual) / 2, slope

    before = np.sqrt(2 * max(value_and_slope(np.full(len(x), 1 / len(x)))[0], 0.0))
    found = minimise_entropic(
        value_and_slope,
        len(x),
        allowed,
        _root_gap(before / np.sqrt(2), tolerance),
        1 / epsilon,
        max_iterations,
    )
    value, _ = value_and_slope(found.weights)
    failed = [plan.status for plan in (own, *plans) if not plan.converged]
    if failed:
        found = found._replace(status=f"a Sinkhorn problem ended with {failed[0]}")
    return _result("sinkhorn", found, before, np.sqrt(2 * max(value, 0.0)), 2.0)


def _linear(source: Sample, goal: Sample, ess_min: float, moments: int, columns):
    features, names = standardised(source, goal, moments, columns)
    found = largest_entropy(features)
    if found.status == "converged" and effective_size(found.weights) < ess_min:
        found = largest_effective_size(features)
        largest = effective_size(found.weights)
        if found.status == "converged" and largest < ess_min * (1 - 1e-9):
            raise ValueError(
                f"weights that match the moments have an effective size of at most {largest:.1f}; "
                f"got ess_min = {ess_min:g}. Lower it, or take ipm='mmd', which trades one for the "
                "other."
            )
    if found.status != "converged":
        rest = least_imbalance(features)
        worst = int(np.argmax(np.abs(rest)))
        raise ValueError(
            f"no weights on x match the moments of the target: that of {names[worst]} stays "
            f"{abs(rest[worst]):.2g} standard deviations off where their sum is least. Leave out "
            "moments or rows of the target, or take ipm='mmd'."
        )
    before = float(np.linalg.norm(features.mean(axis=0)))
    return BalancedWeights(
        weights=found.weights,
        ess=effective_size(found.weights),
        before=before,
        after=float(np.linalg.norm(found.weights @ features)),
        lower=0.0,
        ipm="linear",
        num_iterations=found.num_iterations,
        status=found.status,
    )


def _w1(source: Sample, goal: Sample, allowed, tolerance, max_iterations) -> BalancedWeights:
    x, y = (np.asarray(sample.points, np.float64) for sample in (source, goal))
    cost = power_cost(x, y, 1)
    found = nearest_counts(cost, goal.weights)
    if effective_size(found.weights) < allowed.ess_min:
        found = bounded_counts(cost, goal.weights, allowed.ess_min, max_iterations)
        found = found._replace(weights=allowed.project(found.weights))
    before = distances.wasserstein(x, y, 1, b=goal.weights)
    after = distances.wasserstein(x, y, 1, a=found.weights, b=goal.weights)
    is_close = after - found.lower <= tolerance * before
    return BalancedWeights(
        weights=found.weights,
        ess=effective_size(found.weights),
        before=before,
        after=after,
        lower=found.lower,
        ipm="w1",
        num_iterations=found.num_iterations,
        status="converged" if is_close else "stalled",
    )


def _root_gap(before: float, tolerance: float):
    """Whether the root of a value is within a share of `before` of the least root."""

    def is_done(value, gap):
        high, low = np.sqrt(max(value, 0.0)), np.sqrt(max(value - gap, 0.0))
        return bool(high - low <= tolerance * before)

    return is_done


def _result(ipm: str, found: Descent, before: float, after: float, factor: float):
    return BalancedWeights(
        weights=found.weights,
        ess=effective_size(found.weights),
        before=float(before),
        after=float(after),
        lower=float(np.sqrt(factor * max(found.value - found.gap, 0.0))),
        ipm=ipm,
        num_iterations=found.num_iterations,
        status=found.status,
    )

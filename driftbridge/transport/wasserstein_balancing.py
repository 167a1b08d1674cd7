"""Weights nearest to a target in the Wasserstein-1 distance, with a bound on their spread."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Smoothing as a share of the mean cost, from the first to the last solve.
SMOOTHING = (0.1, 0.02, 0.004, 0.001)


class Nearest(NamedTuple):
    """Weights of points, and a lower bound of what any allowed weights attain.

    - `lower`: `<= min W_1` over the allowed weights.
    """

    weights: Float[np.ndarray, " n"]
    lower: float
    num_iterations: int


def nearest_counts(cost: Float[np.ndarray, "n m"], b: Float[np.ndarray, " m"]) -> Nearest:
    """The optimum without a bound: each target point gives its mass to the nearest point."""
    weights = np.bincount(np.argmin(cost, axis=0), weights=b, minlength=len(cost))
    return Nearest(weights, float(b @ np.min(cost, axis=0)), 0)


def bounded_counts(
    cost: Float[np.ndarray, "n m"],
    b: Float[np.ndarray, " m"],
    ess_min: float,
    max_iterations: int,
) -> Nearest:
    """Weights of effective size at least `ess_min` that are nearly nearest.

    The minimum of `<C, P>` over plans with column sums `b`, and row sums `w` with
    `sum w^2 <= 1 / ess_min`, has the dual

    `max_g b.g - |h_+| / sqrt(ess_min)`, `h_i = max_j (g_j - C_ij)`,

    and `w = h_+ / (sqrt(ess_min) |h_+|)` at its maximum: with multiplier `mu` of the bound a row
    costs `min_w (mu w^2 / 2 - w h) = -h_+^2 / (2 mu)`, and `mu = sqrt(ess_min) |h_+|` is the best.
    The maximum of `h` is smoothed (`epsilon log sum exp`) for a quasi-Newton method, with epsilon
    falling; the bound is the dual without smoothing.
    """
    from scipy.optimize import minimize

    root = np.sqrt(ess_min)
    g = np.min(cost, axis=0) + np.mean(cost)
    lower, iterations, scale = -np.inf, 0, float(np.mean(cost))
    options = {"maxiter": max_iterations, "maxcor": 20, "gtol": 1e-7 * np.max(b)}
    for share in SMOOTHING:
        epsilon = share * scale

        def negative_dual(g, epsilon=epsilon):
            h, columns = _smooth_maxima(cost, g, epsilon)
            norm = root * max(np.linalg.norm(h), 1e-300)
            return norm / ess_min - b @ g, columns / norm - b

        found = minimize(negative_dual, g, jac=True, method="L-BFGS-B", options=options)
        g, iterations = found.x, iterations + int(found.nit)
        h = np.concatenate([np.max(g - rows, axis=1) for rows in _blocks(cost)])
        lower = max(lower, float(b @ g - np.linalg.norm(np.maximum(h, 0)) / root))
    weights, _ = _smooth_maxima(cost, g, SMOOTHING[-1] * scale)
    return Nearest(weights / weights.sum(), max(lower, 0.0), iterations)


def _blocks(cost: Float[np.ndarray, "n m"]) -> list[Float[np.ndarray, "rows m"]]:
    """Rows in blocks of half a megabyte, which stay in cache."""
    rows = max(1, 2**16 // cost.shape[1])
    return [cost[i : i + rows] for i in range(0, len(cost), rows)]


def _smooth_maxima(
    cost: Float[np.ndarray, "n m"], g: Float[np.ndarray, " m"], epsilon: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """`h_i = (epsilon log sum_j exp((g_j - C_ij) / epsilon))_+`, and the slope of `|h|^2 / 2`."""
    smooth, columns = [], np.zeros(len(g))
    for rows in _blocks(cost):
        values = g - rows
        top = np.max(values, axis=1)
        values -= top[:, None]
        values /= epsilon
        np.exp(values, out=values)
        total = values.sum(axis=1)
        h = np.maximum(top + epsilon * np.log(total), 0)
        columns += (h / total) @ values
        smooth.append(h)
    return np.concatenate(smooth), columns

"""Weights that match moments exactly: those of largest entropy, or of largest effective size."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.transport.points import Sample

STEPS = 200
# Differences of moments, in standard deviations, that count as none.
EXACT = 1e-10


class Balanced(NamedTuple):
    """Weights that match moments, and how.

    - `imbalance`: largest difference of a moment, in standard deviations.
    - `status`: "converged", or "infeasible" if no weights match the moments.
    """

    weights: Float[np.ndarray, " n"]
    imbalance: float
    num_iterations: int
    status: str


def standardised(source: Sample, goal: Sample, moments: int, columns: tuple[str, ...] | None):
    """Covariates less the target's means, over the deviations of both samples; and their names."""
    x, y = (np.asarray(sample.points, np.float64) for sample in (source, goal))
    dim = x.shape[1]
    names = [f"column {i}" for i in range(dim)] if columns is None else list(columns)
    if moments == 2:
        first, second = np.triu_indices(dim)
        # Products of centred columns: their size tells them apart from the means.
        centre = goal.weights @ y
        x, y = (
            np.concatenate([p, (p - centre)[:, first] * (p - centre)[:, second]], axis=1)
            for p in (x, y)
        )
        names += [f"{names[i]} times {names[j]}" for i, j in zip(first, second, strict=True)]
    mean = goal.weights @ y
    deviation = np.sqrt((x.var(axis=0) + goal.weights @ (y - mean) ** 2) / 2)
    # What rounding leaves of a constant column is no deviation; the same constant in both samples
    # leaves nothing to match.
    size = np.abs(mean) + np.max(np.abs(x), axis=0)
    unit = np.where(deviation > 1e-12 * size, deviation, np.where(size > 0, size, 1))
    features = (x - mean) / unit
    kept = np.max(np.abs(features), axis=0) > 1e-12
    return features[:, kept], [name for name, is_kept in zip(names, kept, strict=True) if is_kept]


def largest_entropy(features: Float[np.ndarray, "n k"]) -> Balanced:
    """The weights of largest entropy with `sum w_i h_i = 0`: `w_i` proportional to `exp(l . h_i)`.

    Newton's method on the dual `log sum_i exp(l . h_i)`, which is convex, smooth, and unbounded
    below exactly where no weights match.

    **Arguments:**

    - `features`: `h`, of about unit scale, less their target values.

    Hainmueller (2012), Political Analysis 20, section 3.2.
    """

    def at(dual):
        exponents = features @ dual
        top = np.max(exponents)
        weights = np.exp(exponents - top)
        total = np.sum(weights)
        return top + np.log(total), weights / total

    def curvature(weights, slope):
        return (features * weights[:, None]).T @ features - np.outer(slope, slope)

    return _newton(features, at, curvature)


def largest_effective_size(features: Float[np.ndarray, "n k"]) -> Balanced:
    """The weights of least `sum w_i^2` with `sum w_i h_i = 0`: `w_i = (l . h_i + c)_+`.

    Semismooth Newton on the dual of the quadratic program, after the sum of the weights has joined
    the moments.

    Zubizarreta (2015), Journal of the American Statistical Association 110, equation (1), with
    exact balance.
    """
    n = len(features)
    # Scaled so that the equal weights have c = 1.
    extended = np.concatenate([features, np.ones((n, 1))], axis=1)

    def at(dual):
        weights = np.maximum(extended @ dual, 0) / n
        return n * np.sum(weights**2) / 2 - dual[-1], weights

    def curvature(weights, slope):
        active = extended[weights > 0]
        return active.T @ active / n

    offset = np.zeros(extended.shape[1])
    offset[-1] = 1.0
    found = _newton(extended, at, curvature, offset)
    return found._replace(weights=found.weights / max(np.sum(found.weights), 1e-300))


def _newton(features, value_and_weights, curvature, offset: Any = 0.0) -> Balanced:
    """Minimise a convex dual whose slope is `sum w_i h_i - offset`, with halved Newton steps."""
    k = features.shape[1]
    dual = np.zeros(k) + offset
    value, weights = value_and_weights(dual)
    for iteration in range(STEPS):
        slope = features.T @ weights - offset
        imbalance = float(np.max(np.abs(slope))) if k else 0.0
        if imbalance <= EXACT:
            return Balanced(weights, imbalance, iteration, "converged")
        matrix = curvature(weights, slope)
        # Without this much the system is singular where few points carry all weight, or a moment
        # follows from the others.
        ridge = 1e-12 * max(np.trace(matrix) / k, 1e-12) + 1e-14
        step = np.linalg.solve(matrix + ridge * np.eye(k), -slope)
        share = 1.0
        while share > 1e-12:
            new_value, new_weights = value_and_weights(dual + share * step)
            if new_value <= value + 1e-4 * share * float(slope @ step):
                break
            share /= 2
        else:
            # Rounding of the value hides what is left to gain; the slope may still fall.
            new_value, new_weights = value_and_weights(dual + step)
            share = 1.0
            if np.max(np.abs(features.T @ new_weights - offset)) >= imbalance:
                break
        dual, value, weights = dual + share * step, new_value, new_weights
        if np.max(np.abs(dual)) > 1e8:
            break
    slope = features.T @ weights - offset
    imbalance = float(np.max(np.abs(slope)))
    status = "converged" if imbalance <= 100 * EXACT else "infeasible"
    return Balanced(weights, imbalance, STEPS, status)


def least_imbalance(features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """The moments `m = sum w_i h_i` of the weights with the least `sum |m|`, a linear program.

    All zero exactly where some weights match. Moments that can match do not make up for one that
    cannot, as they would where the largest is least.
    """
    from scipy.optimize import linprog

    n, k = features.shape
    bound = -np.eye(k)
    found = linprog(
        np.append(np.zeros(n), np.ones(k)),
        A_ub=np.block([[features.T, bound], [-features.T, bound]]),
        b_ub=np.zeros(2 * k),
        A_eq=np.append(np.ones(n), np.zeros(k))[None],
        b_eq=[1.0],
        method="highs",
    )
    return features.T @ found.x[:n]

"""Spectral projected gradients on weights, stopped by a bound of what is left to gain."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.transport.simplex import BoundedSimplex

# Values that a step has to fall below the largest of.
MEMORY = 10
SUFFICIENT = 1e-4
HALVINGS = 30


class Descent(NamedTuple):
    """Weights that minimise a convex function, and how well.

    - `value`: at `weights`.
    - `gap`: `value` is at most this far above the minimum.
    - `status`: "converged", "stalled" (no step lowers the value any more) or "max_iterations".
    """

    weights: Float[np.ndarray, " n"]
    value: float
    gap: float
    num_iterations: int
    status: str


def minimise(
    value_and_slope: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: Float[np.ndarray, " n"],
    allowed: BoundedSimplex,
    is_done: Callable[[float, float], bool],
    max_iterations: int,
) -> Descent:
    """Minimise a convex differentiable function of weights.

    Steps go along `P(w - s grad) - w` with the length `s = |dw|^2 / (dw . dgrad)` of Barzilai and
    Borwein, shortened until the value falls below the largest of the last ten. By convexity the
    gap is at most `grad . (w - v)`, `v` the weights with the least `grad . v`.

    **Arguments:**

    - `is_done`: of a value and its gap.

    Birgin, Martínez and Raydan (2000), SIAM Journal on Optimization 10, algorithm SPG2; the gap:
    Jaggi (2013), ICML, equation (2).
    """
    w = allowed.project(start)
    value, slope = value_and_slope(w)
    length = 1 / max(np.max(np.abs(allowed.project(w - slope) - w)), 1e-12)
    values, best, lower = [value], (value, w), -np.inf
    status, iteration = "max_iterations", 0
    for iteration in range(max_iterations + 1):
        lower = max(lower, value - float(slope @ (w - allowed.least(slope))))
        if value <= best[0]:
            best = (value, w)
        if is_done(best[0], best[0] - lower):
            status = "converged"
            break
        if iteration == max_iterations:
            break
        direction = allowed.project(w - length * slope) - w
        fall = float(slope @ direction)
        share, highest = 1.0, max(values[-MEMORY:])
        for _ in range(HALVINGS):
            there = w + share * direction
            new_value, new_slope = value_and_slope(there)
            if new_value <= highest + SUFFICIENT * share * fall:
                break
            # The least of the parabola through both values, within a tenth and a half.
            bend = 2 * (new_value - value - share * fall)
            share *= float(np.clip(-fall * share / bend if bend > 0 else 0.5, 0.1, 0.5))
        else:
            status = "stalled"
            break
        step, turn = there - w, new_slope - slope
        curvature = float(step @ turn)
        length = float(np.clip(step @ step / curvature, 1e-10, 1e10)) if curvature > 0 else 1e10
        w, value, slope = there, new_value, new_slope
        values.append(value)
    return Descent(best[1], best[0], best[0] - lower, iteration, status)

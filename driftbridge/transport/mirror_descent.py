"""Mirror descent on weights, for functions that are steep where a weight is nearly zero."""

from collections.abc import Callable

import numpy as np

from driftbridge.transport.projected_gradient import HALVINGS, MEMORY, SUFFICIENT, Descent
from driftbridge.transport.simplex import BoundedSimplex


def minimise_entropic(
    value_and_slope: Callable[[np.ndarray], tuple[float, np.ndarray]],
    num_weights: int,
    allowed: BoundedSimplex,
    is_done: Callable[[float, float], bool],
    step: float,
    max_iterations: int,
) -> Descent:
    """Minimise a convex differentiable function of weights by multiplying them.

    Steps `w <- w exp(-s grad)`, brought back to the bound in relative entropy, with the length
    `s = (dlog w . dw) / (dw . dgrad)` that the last change of the slope suggests, shortened until
    the value falls below the largest of the last ten. The bound of the gap is that of
    `projected_gradient.minimise`, at its best over all iterations.

    **Arguments:**

    - `step`: the first `s`.

    Beck and Teboulle (2003), Operations Research Letters 31, section 4.
    """
    w = np.full(num_weights, 1 / num_weights)
    value, slope = value_and_slope(w)
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
        highest = max(values[-MEMORY:])
        for _ in range(HALVINGS):
            there = np.maximum(allowed.tilt(np.log(w) - step * slope), 1e-300)
            new_value, new_slope = value_and_slope(there)
            if new_value <= highest + SUFFICIENT * float(slope @ (there - w)):
                break
            step /= 3
        else:
            status = "stalled"
            break
        change, turn = there - w, new_slope - slope
        curvature = float(change @ turn)
        length = float((np.log(there) - np.log(w)) @ change)
        step = (
            float(np.clip(length / curvature, step / 100, step * 100))
            if curvature > 0
            else 2 * step
        )
        w, value, slope = there, new_value, new_slope
        values.append(value)
    return Descent(best[1], best[0], best[0] - lower, iteration, status)

"""Two weighted sets of points, checked, centred and padded for the solvers."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.costs import Cost
from driftbridge.transport.entropic_problem import Problem, mean_cost, mean_half_square
from driftbridge.transport.measures import device_dtype, two_samples
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import as_weights


class Prepared(NamedTuple):
    """A padded problem, the points as given in its dtype, and what was subtracted from them.

    `mean` is the scale of epsilon, `entropic_problem.mean_cost`.
    """

    problem: Problem
    points: tuple[Float[Array, "n dim"], Float[Array, "m dim"]]
    centres: tuple[Float[Array, " dim"], Float[Array, " dim"]]
    mean: float


def prepared(
    x: Any, y: Any, a: Any, b: Any, epsilon: Any, cost: Cost, conserved: bool = True
) -> Prepared:
    """Check the points and weights.

    The squared distance of points that are centred each at their own mean keeps its digits however
    far apart the means are. Where mass is not conserved both share a centre, and weights may have
    any sums.

    **Raises:** `ValueError` naming what is wrong, a cost that is not finite too.
    """
    if not 0 < float(epsilon) < np.inf:
        raise ValueError(f"epsilon must be positive and finite; got {epsilon}.")
    as_mass = as_weights if conserved else _as_masses
    samples = two_samples(x, y, a, b, vectors=False, as_mass=as_mass)
    rows = [np.asarray(sample.points) for sample in samples]
    weights = [sample.weights for sample in samples]
    dtype = device_dtype(rows[0])
    centres = [np.zeros(rows[0].shape[1])] * 2
    if cost is None:
        centres = [w @ p / w.sum() for p, w in zip(rows, weights, strict=True)]
        centres = centres if conserved else [(centres[0] + centres[1]) / 2] * 2
    centres = [centre.astype(dtype) for centre in centres]
    rows = [points.astype(dtype) for points in rows]
    sizes = [bucket(len(points)) for points in rows]
    # A cost may not be a number at zero, so that padding repeats a point; its weight is zero.
    centred = [
        padded(points - centre, size, 0.0 if cost is None else points[-1])
        for points, centre, size in zip(rows, centres, sizes, strict=True)
    ]
    masses = [padded(w.astype(dtype), size) for w, size in zip(weights, sizes, strict=True)]
    # On the host where it can be: a program and its answer would take longer.
    mean = mean_half_square(centred[0], masses[0], centred[1], masses[1]) if cost is None else None
    arrays = centred, masses, rows, centres, np.asarray(epsilon, dtype)
    centred, masses, rows, centres, epsilon = jax.device_put(arrays)
    problem = Problem(centred[0], centred[1], masses[0], masses[1], epsilon, cost)
    mean = float(_mean_cost(problem) if mean is None else mean)
    if not np.isfinite(mean):
        raise ValueError(
            "cost is not finite between all points of x and y: its mean above its least is "
            f"{mean}. Give a cost that is a number for every pair of them."
        )
    return Prepared(problem, (rows[0], rows[1]), (centres[0], centres[1]), mean)


def potentials_of(prepared: Prepared, f: Any, g: Any) -> tuple[np.ndarray, np.ndarray]:
    """Given potentials of the points as potentials of the centred, padded problem.

    **Raises:** `ValueError` for other shapes.
    """
    problem, (x, y), centres, _ = prepared
    f, g = np.asarray(f, np.float64), np.asarray(g, np.float64)
    if f.shape != (len(x),) or g.shape != (len(y),):
        raise ValueError(
            f"init must hold potentials of shapes ({len(x)},) and ({len(y)},); got {f.shape} and "
            f"{g.shape}."
        )
    x0, y0 = (np.asarray(centre, np.float64) for centre in centres)
    delta = x0 - y0
    f = f - (np.asarray(x, np.float64) - x0) @ delta
    g = g + (np.asarray(y, np.float64) - y0) @ delta
    dtype = problem.x.dtype
    sizes = len(problem.a), len(problem.b)
    return padded(f.astype(dtype), sizes[0]), padded(g.astype(dtype), sizes[1])


_mean_cost = jax.jit(mean_cost)


def _as_masses(weights: Any, n: int, name: str) -> np.ndarray:
    """Weights of any positive sum; equal ones that sum to one if None."""
    if weights is None:
        return np.full(n, 1 / n)
    values = np.asarray(weights, np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} has {n} points, but its weights have shape {values.shape}.")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"weights of {name} must be at least 0; row {row} has {values[row]}.")
    if not values.sum() > 0:
        raise ValueError(f"weights of {name} must have a positive sum; all are 0.")
    return values

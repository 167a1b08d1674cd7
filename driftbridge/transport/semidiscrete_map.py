"""Maps onto the points of the target: Laguerre cells, and their entropic smoothing."""

import time
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.transport.base import Fit, Method, Stochastic
from driftbridge.transport.measures import mean_cost
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import Resampled
from driftbridge.transport.semidiscrete import semidiscrete, spacing
from driftbridge.transport.semidiscrete_plan import SemidiscretePlan


class SemidiscreteMap(Stochastic):
    """`T(x)`: for `epsilon = 0` the point of the target in whose Laguerre cell `x` lies, else the
    mean of the entropic plan's conditional law; `sample` draws from that law.

    - `plan`: the potential, and how far the masses of the points are from their weights.
    """

    plan: SemidiscretePlan

    @property
    def dim(self) -> int:
        return self.plan.points.shape[1]

    @property
    def dtype(self) -> Any:
        return self.plan.points.dtype

    @property
    def row_floats(self) -> int:
        return 2 * self.plan.points.shape[0]

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.plan.barycentre(x)

    def _sample(self, x: Float[Array, "n dim"], key: Any, n: int) -> Float[Array, "n draws dim"]:
        return self.plan.centre[None, None] + self.plan.points[self.plan.draw_each(key, x, n)]


class Semidiscrete(Method):
    """The semidiscrete map from the source, taken for a law with a density, to the target's points.

    With `epsilon = 0` it is piecewise constant: every image is a point of the target, and all of
    them get their weight. With `epsilon > 0` it is smooth, and for a target that has finitely many
    points and `epsilon ~ n^{-1/2}` its squared error falls as `n^{-1/2}` in any dimension, which no
    estimator betters (Pooladian, Divol and Niles-Weed 2023, arXiv 2301.11302).

    **Arguments:**

    - `epsilon`: of the cost `|x - y|^2 / 2`. None for the centred mean cost over `n^{1/2}`.
    - `noise`: standard deviation of what is added to resampled points of the source. None for half
      the distance of neighbours, over `dim^{1/2}`, if `epsilon = 0`, where single points cannot be
      split between targets; else none.
    - `tolerance`, `max_iterations`: of `semidiscrete`.
    """

    epsilon: float | None = 0.0
    noise: float | None = None
    tolerance: float = 0.01
    max_iterations: int = 20_000
    name: ClassVar[str] = "semidiscrete"

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> SemidiscreteMap:
        start = time.perf_counter()
        epsilon = self.epsilon
        if epsilon is None:
            epsilon = mean_cost(source, target, centred=True) / len(source.points) ** 0.5
        noise = self.noise
        if noise is None:
            noise = _half_spacing(source) if epsilon == 0 else 0.0
        plan = semidiscrete(
            Resampled(source.points, source.weights, noise), target.points, epsilon=epsilon,
            target_weights=target.weights, tolerance=self.tolerance,
            max_iterations=self.max_iterations, key=key,
        )  # fmt: skip
        error = plan.solve.error
        message = (
            f"masses of the target's points differ from their weights by chi2 {error.chi2:.2g} "
            f"after {plan.solve.iterations} iterations, above the tolerance {self.tolerance:g}"
        )
        numbers = (
            ("epsilon", float(epsilon)),
            ("noise", float(noise)),
            ("chi2", error.chi2),
            ("chi2_error", error.chi2_error),
            ("iterations", plan.solve.iterations),
        )
        return SemidiscreteMap(
            Fit(
                self.name, converged=plan.converged, messages=() if plan.converged else (message,),
                numbers=numbers, seconds=time.perf_counter() - start,
            ),
            plan,
        )  # fmt: skip


def _half_spacing(source: Sample) -> float:
    points = np.asarray(source.points, np.float64)
    distance = np.sqrt(spacing(points))
    return float(distance / 2 / np.sqrt(points.shape[1])) if np.isfinite(distance) else 0.0

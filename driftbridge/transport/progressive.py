"""Entropic maps applied in steps, each from where the last one left the points."""

import time
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float, Key

from driftbridge.transport.base import Fit, Method, TransportMap
from driftbridge.transport.entropic import Entropic, EntropicMap
from driftbridge.transport.points import Sample
from driftbridge.transport.streaming import streamed


class ProgressiveMap(TransportMap):
    """`x <- x + alpha_k (T_k(x) - x)` for each step `k`, the last with `alpha = 1`."""

    steps: tuple[EntropicMap, ...]
    fractions: tuple[float, ...] = eqx.field(static=True)

    @property
    def dim(self) -> int:
        return self.steps[0].dim

    @property
    def dtype(self) -> Any:
        return self.steps[0].dtype

    @property
    def row_floats(self) -> int:
        return self.steps[0].row_floats

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        for step, fraction in zip(self.steps, self.fractions, strict=True):
            x = x + fraction * (step._transport(x) - x)
        return x


class Progressive(Method):
    """The progressive entropic map: several entropic problems along the way.

    From `x_0 = x`, with `T_k` the entropic map from the law of `x_k` to the target,
    `x_{k+1} = x_k + alpha_k (T_k(x_k) - x_k)`, `alpha_k = 1 / (K - k)`: steps of constant speed, of
    which the last one goes all the way. Points move on from where they are, in the fit as in its
    application.

    **Arguments:**

    - `num_steps`: `K >= 1`.
    - `epsilon`, `share`, `tolerance`, `max_iterations`: of every step, as in `Entropic`; the mean
      cost is taken anew at each.

    Kassraie, Pooladian, Klein, Thornton, Niles-Weed and Cuturi (2024), arXiv 2406.05061,
    algorithm 2.
    """

    name: ClassVar[str] = "progressive"

    num_steps: int = 4
    epsilon: float | None = None
    share: float | None = None
    tolerance: float = 1e-3
    max_iterations: int = 20_000

    def __check_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {self.num_steps}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> ProgressiveMap:
        start = time.perf_counter()
        method = Entropic(self.epsilon, self.share, self.tolerance, self.max_iterations)
        points, steps = source.points, []
        fractions = tuple(1 / (self.num_steps - k) for k in range(self.num_steps))
        for fraction in fractions:
            step = method.fit(Sample(points, source.weights), target, key)
            steps.append(step)
            moved = streamed(step, "_transport", points)
            points = (points + fraction * (moved - points)).astype(source.points.dtype)
        fit = Fit(
            self.name,
            converged=all(step.fit.converged for step in steps),
            messages=tuple(m for step in steps for m in step.fit.messages),
            numbers=tuple(number for step in steps for number in step.fit.numbers),
            seconds=time.perf_counter() - start,
        )
        return ProgressiveMap(fit, tuple(steps), fractions)

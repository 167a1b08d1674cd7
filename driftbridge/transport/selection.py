"""The regularisation of a map, chosen by the dual objective on points held out."""

import dataclasses
import math
import time
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.transport.base import Method
from driftbridge.transport.entropic import Corrected, CorrectedMap
from driftbridge.transport.padding import below, bucket
from driftbridge.transport.points import Sample
from driftbridge.transport.streaming import streamed

# Share of the points held out, and how many points are used at most.
HELD_OUT, MOST = 0.25, 4000
# A candidate must be better by this many standard errors of the paired difference.
ERRORS = 2.0
# From one candidate to the next, and as far as that goes: below, entropic maps recall single
# points; above, the map is affine up to a per cent.
FACTOR, LEAST, LARGEST = 3.0, 1e-3, 10.0
# Points of the target that a candidate may fail to reach.
LOST = 0.05


class Dual(NamedTuple):
    """Terms of the dual objective at single points; a lost point has NaN."""

    source: Float[np.ndarray, " n"]
    target: Float[np.ndarray, " m"]


def held_out_dual(fitted: CorrectedMap, source: Sample, target: Sample) -> Dual:
    """`phi(x)` and its conjugate `phi*(y) = x . y - phi(x)` at `x = T^{-1}(y)`, for `T = grad phi`.

    Their mean over both laws is least, among all convex functions, for the optimal map between
    them, and exceeds that by at most `E|T - T0|^2 / (2 m)` where `T` has slopes `>= m`: on points
    that were not fitted to, it judges the map and not how well it recalls the target.

    Brenier (1991); Vacher and Vialard (2021), arXiv 2112.12532, on its stability.
    """
    conjugate = streamed(fitted, "_inverse", target.points)
    products = np.sum(conjugate.astype(np.float64) * target.points, axis=1)
    reached = np.isfinite(products)
    values = streamed(fitted, "_potential", np.where(reached[:, None], conjugate, 0))
    return Dual(
        streamed(fitted, "_potential", source.points).astype(np.float64),
        np.where(reached, products - values, np.nan),
    )


class Selected(Method):
    """The corrected entropic map at a regularisation that held-out points choose.

    Starts from the share of `Corrected` and takes a third of it, or else three times as much, as
    long as the dual objective of the points held out falls by two standard errors of its paired
    difference. Then the map is fitted to all points.

    **Arguments:**

    - `tolerance`, `max_iterations`: as in `Entropic`.
    """

    name: ClassVar[str] = "selected"

    tolerance: float = 1e-3
    max_iterations: int = 20_000

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> CorrectedMap:
        start = time.perf_counter()
        share, tried = self._choose(source, target, key)
        fitted = self._at(share).fit(source, target, key)
        numbers = (*fitted.fit.numbers, ("share", share), ("shares_tried", tried))
        seconds = time.perf_counter() - start
        fit = dataclasses.replace(fitted.fit, numbers=numbers, seconds=seconds)
        return dataclasses.replace(fitted, fit=fit)

    def _at(self, share: float) -> Corrected:
        return Corrected(share=share, tolerance=self.tolerance, max_iterations=self.max_iterations)

    def _choose(self, source: Sample, target: Sample, key: Key[Array, ""]) -> tuple[float, str]:
        """The share, and all that were looked at."""
        random = host_generator(key)
        (x, x_test), (y, y_test) = (_split(sample, random) for sample in (source, target))

        def judge(share: float) -> Dual:
            return held_out_dual(self._at(share).fit(x, y, key), x_test, y_test)

        share = self._at(1.0).default_share(source.points.shape[1])
        first = best = judge(share)
        tried = [share]
        for factor, limit in ((1 / FACTOR, LEAST), (FACTOR, LARGEST)):
            if best is not first:
                break
            while LEAST <= share * factor <= LARGEST and share != limit:
                found = judge(share * factor)
                tried.append(share * factor)
                if not _is_better(found, best, x_test, y_test):
                    break
                share, best = share * factor, found
        return share, ", ".join(f"{s:.3g}" for s in tried)


def _split(sample: Sample, random: np.random.Generator) -> tuple[Sample, Sample]:
    """Points to fit and points held out, at most `MOST` in all.

    A quarter is held out, or more, so that the points of the fit have one size bucket for all
    samples of one.
    """
    order = random.permutation(len(sample.points))[:MOST]
    n = len(order)
    cut = max(2, n - min(math.ceil((1 - HELD_OUT) * n), below(bucket(n))))
    parts = []
    for rows in (order[cut:], order[:cut]):
        weights = sample.weights[rows]
        total = weights.sum()
        # All weight may be on the other part; then this one has equal weights.
        weights = weights / total if total > 0 else np.full(len(rows), 1 / len(rows))
        parts.append(Sample(sample.points[rows], weights))
    return parts[0], parts[1]


def _is_better(new: Dual, old: Dual, source: Sample, target: Sample) -> bool:
    """Whether the objective falls by `ERRORS` standard errors, on points that both reached."""
    mean, variance = 0.0, 0.0
    for a, b, weights in zip(new, old, (source.weights, target.weights), strict=True):
        known = np.isfinite(a) & np.isfinite(b)
        if np.mean(~np.isfinite(a)) > LOST or not known.any():
            return False
        difference, w = (a - b)[known], weights[known] / weights[known].sum()
        centre = w @ difference
        mean += centre
        variance += w**2 @ (difference - centre) ** 2
    return bool(mean < -ERRORS * np.sqrt(variance))

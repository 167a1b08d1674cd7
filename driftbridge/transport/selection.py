"""The regularisation of a map, chosen by the dual objective on points held out."""

import dataclasses
import math
import time
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.transport.base import Method
from driftbridge.transport.entropic import Corrected, CorrectedMap
from driftbridge.transport.measures import part_of
from driftbridge.transport.padding import below, bucket
from driftbridge.transport.points import Sample
from driftbridge.transport.streaming import streamed

# Folds, the share of the points that each holds out, and how many points are used at most.
FOLDS, HELD_OUT, MOST = 4, 0.25, 2000
# From one candidate to the next, and as far as that goes: below, entropic maps recall single
# points; above, the map is affine up to a per cent.
FACTOR, LEAST, LARGEST = 3.0, 1e-3, 10.0
# Share of the target that a candidate may fail to reach; what it does not reach has no dual.
LOST = 0.01


def held_out_dual(fitted: CorrectedMap, source: Sample, target: Sample) -> float:
    """`E phi(x) + E phi*(y)` for the map `T = grad phi`, `phi*(y) = x . y - phi(x)`, `T(x) = y`.

    Among all convex functions it is least for the optimal map between both laws, and exceeds that
    by at most `E|T - T0|^2 / (2 m)` where `T` has slopes `>= m`. On points that were not fitted to
    it judges the map, and not how well it recalls the target. Infinite for a map that does not
    reach 1 % of the target.

    Brenier (1991); Vacher and Vialard (2021), arXiv 2112.12532, on its stability.
    """
    conjugate = streamed(fitted, "_inverse", target.points)
    reached = np.isfinite(conjugate).all(axis=1)
    if target.weights @ ~reached > LOST:
        return math.inf
    # The quadratic part of float32 potentials needs float64 sums over points.
    values = [
        streamed(fitted, "_potential", points).astype(np.float64)
        for points in (source.points, np.where(reached[:, None], conjugate, target.points))
    ]
    products = np.sum(conjugate.astype(np.float64) * target.points, axis=1)
    weights = target.weights * reached
    terms = np.where(reached, products - values[1], 0)
    return float(source.weights @ values[0] + weights @ terms / weights.sum())


class Selected(Method):
    """The corrected entropic map at a regularisation that held-out points choose.

    Starts from the share of `Corrected` and takes a third of it, or else three times as much, as
    long as the dual objective falls, in four folds of at most 2000 points. Then the map is fitted
    to all points.

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
        folds = list(zip(_folds(source, random), _folds(target, random), strict=True))

        def objective(share: float) -> float:
            method, total = self._at(share), 0.0
            for (x, x_test), (y, y_test) in folds:
                total += held_out_dual(method.fit(x, y, key), x_test, y_test) / FOLDS
            return total

        start = self._at(1.0).default_share(source.points.shape[1])
        share, least, tried = start, objective(start), [start]
        for factor in (1 / FACTOR, FACTOR):
            while share in (start, tried[-1]) and LEAST <= share * factor <= LARGEST:
                tried.append(share * factor)
                found = objective(tried[-1])
                if not found < least:
                    break
                share, least = tried[-1], found
            if share != start:
                break
        return share, ", ".join(f"{s:.3g}" for s in tried)


def _folds(sample: Sample, random: np.random.Generator) -> list[tuple[Sample, Sample]]:
    """Points to fit and points held out, four times.

    A quarter is held out, or more, so that the points of the fit have one size bucket for all
    samples of one.
    """
    order = random.permutation(len(sample.points))[:MOST]
    n = len(order)
    cut = max(2, n - min(math.ceil((1 - HELD_OUT) * n), below(bucket(n))))
    turned = [np.roll(order, -(i * n) // FOLDS) for i in range(FOLDS)]
    return [(part_of(sample, t[cut:]), part_of(sample, t[:cut])) for t in turned]

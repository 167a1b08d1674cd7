"""The map, and its regularisation, chosen by the dual objective on points held out."""

import dataclasses
import math
import time
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.transport.affine import Affine, AffineMap
from driftbridge.transport.base import Method
from driftbridge.transport.brenier import Brenier, BrenierMap
from driftbridge.transport.entropic import Corrected, CorrectedMap
from driftbridge.transport.folds import FOLDS, folds
from driftbridge.transport.measures import part_of
from driftbridge.transport.pairs import effective_size
from driftbridge.transport.points import Sample
from driftbridge.transport.streaming import streamed

# Fewest points that a potential is learned from, and fewest for each dimension.
LEAST_POINTS, POINTS_PER_DIM = 300, 10
# Points that the choice of a regularisation looks at, at most.
MOST = 2000
# Entries of the Hessians of all held-out points, and the fewest points that are looked at.
MOST_WORK, LEAST_CONJUGATES = 5e9, 50
# From one candidate to the next, and as far as that goes: below, entropic maps recall single
# points; above, the map is affine up to a per cent.
FACTOR, LEAST, LARGEST = 3.0, 1e-3, 10.0
# Share of the target that a candidate may fail to reach; what it does not reach has no dual.
LOST = 0.01


def held_out_dual(fitted: CorrectedMap | AffineMap, source: Sample, target: Sample) -> float:
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
    """The map that held-out points choose: the one whose dual is furthest below the affine map's.

    - The corrected entropic map at several regularisations: from the share of `Corrected` to a
      third of it, or else three times as much, as long as the dual falls, in four folds of at most
      2000 points.
    - The affine map with shrunk covariances, if it gains more than the standard error over folds.
    - The map of `Brenier` on top of the better affine map, where there are 300 points or more and
      ten for each dimension, if it gains more than its standard error on the best of the others.

    What is chosen is fitted to all points. `T.fit.numbers` has all gains.

    **Arguments:**

    - `tolerance`, `max_iterations`: as in `Entropic`.
    """

    name: ClassVar[str] = "selected"

    tolerance: float = 1e-3
    max_iterations: int = 20_000

    def fit(
        self, source: Sample, target: Sample, key: Key[Array, ""]
    ) -> CorrectedMap | AffineMap | BrenierMap:
        start = time.perf_counter()
        share, gain, shrunk_gain, tried = self._choose(source, target, key)
        numbers: dict[str, float | str] = {
            "corrected_share": share,
            "corrected_gain": gain,
            "shares_tried": tried,
            "shrunk_gain": shrunk_gain,
        }
        fitted = None
        if _are_enough(source, target):
            fitted = Brenier(shrunk=shrunk_gain > 0).fit(source, target, key)
            found = dict(fitted.fit.numbers)
            brenier_gain = shrunk_gain + float(found["held_out_gain"])
            numbers["brenier_gain"] = brenier_gain
            # Each fold stopped where its dual was least, which flatters it.
            if not brenier_gain - float(found["gain_error"]) > max(gain, shrunk_gain):
                fitted = None
        if fitted is None:
            method = Affine(shrunk=True) if shrunk_gain > max(gain, 0) else self._at(share)
            fitted = method.fit(source, target, key)
        fit = dataclasses.replace(
            fitted.fit,
            numbers=(*fitted.fit.numbers, *numbers.items()),
            seconds=time.perf_counter() - start,
        )
        return dataclasses.replace(fitted, fit=fit)

    def _at(self, share: float) -> Corrected:
        return Corrected(share=share, tolerance=self.tolerance, max_iterations=self.max_iterations)

    def _choose(
        self, source: Sample, target: Sample, key: Key[Array, ""]
    ) -> tuple[float, float, float, str]:
        """The share, its gain, that of shrunk covariances or 0, and all shares looked at."""
        random = host_generator(key)
        parts = list(zip(*(folds(s, random, MOST) for s in (source, target)), strict=True))

        def duals(method: Corrected | Affine) -> np.ndarray:
            return np.array(
                [
                    held_out_dual(method.fit(x, y, key), x_test, _some(y_test, len(y.points)))
                    for (x, x_test), (y, y_test) in parts
                ]
            )

        start = self._at(1.0).default_share(source.points.shape[1])
        share, least, tried = start, duals(self._at(start)).mean(), [start]
        for factor in (1 / FACTOR, FACTOR):
            while share in (start, tried[-1]) and LEAST <= share * factor <= LARGEST:
                tried.append(share * factor)
                found = duals(self._at(tried[-1])).mean()
                if not found < least:
                    break
                share, least = tried[-1], found
            if share != start:
                break
        affine = duals(Affine())
        gains = affine - duals(Affine(shrunk=True))
        error = gains.std(ddof=1) / np.sqrt(FOLDS)
        shrunk_gain = float(gains.mean()) if gains.mean() > error else 0.0
        text = ", ".join(f"{s:.3g}" for s in tried)
        return share, float(affine.mean() - least), shrunk_gain, text


def _some(sample: Sample, n: int) -> Sample:
    """As many points as have their conjugates found in seconds, given `n` points of the map."""
    count = max(LEAST_CONJUGATES, int(MOST_WORK / (n * sample.points.shape[1] ** 2)))
    return part_of(sample, np.arange(min(count, len(sample.points))))


def _are_enough(source: Sample, target: Sample) -> bool:
    """Whether there are points enough to learn a potential from."""
    least = min(effective_size(sample.weights) for sample in (source, target))
    return least >= max(LEAST_POINTS, POINTS_PER_DIM * source.points.shape[1])

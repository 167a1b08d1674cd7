"""The map, and its regularisation, chosen by the dual objective on points held out."""

import dataclasses
import math
import time
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.transport.affine import Affine, AffineMap
from driftbridge.transport.base import Method
from driftbridge.transport.brenier import Brenier, BrenierMap
from driftbridge.transport.entropic import Corrected, CorrectedMap
from driftbridge.transport.folds import FEWEST, Fold, folds
from driftbridge.transport.learned import with_numbers
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


class Candidate(NamedTuple):
    """A method, and the dual of its map on the held-out points of each fold."""

    method: Any
    duals: Float[np.ndarray, " folds"]

    @property
    def dual(self) -> float:
        return float(self.duals.mean())

    def gain_over(self, other: "Candidate") -> tuple[float, float]:
        """By how much its dual is less in the mean over the folds, and the standard error."""
        gains = other.duals - self.duals
        return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def judged(method: Corrected | Affine, parts: list[Fold], key: Key[Array, ""]) -> Candidate:
    """A method fitted to each fold, and its held-out duals."""
    duals = []
    for fold in parts:
        target = _some(fold.target_held_out, len(fold.target.points))
        fitted = method.fit(fold.source, fold.target, key)
        duals.append(held_out_dual(fitted, fold.source_held_out, target))
    return Candidate(method, np.array(duals))


class Selected(Method):
    """The map that held-out points choose: the one with the least dual.

    Four folds of at most 2000 points try

    - the affine map, and that with shrunk covariances, which must be better by a standard error;
    - the corrected entropic map at several regularisations: from the share of `Corrected` to a
      third of it, or else three times as much, as long as the dual falls;
    - the map of `Brenier` on top of the better affine map, where there are 300 points or more and
      ten for each dimension. It must be better than the best of the others by a standard error, as
      each fold stops where its dual is least, which flatters it.

    What is chosen is fitted to all points. `T.fit.numbers` has by how much the duals are below the
    affine map's. Of fewer than 16 points nothing can be held out, and the map is affine.

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
        if min(len(source.points), len(target.points)) < FEWEST:
            fitted = Affine().fit(source, target, key)
            few = f"fewer than {FEWEST} points on a side: none were held out to choose a map on"
            return _with(fitted, {}, start, few)
        parts = folds(source, target, host_generator(key), MOST)
        affine, shrunk = (judged(Affine(shrunk), parts, key) for shrunk in (False, True))
        shares = self._corrected(parts, key)
        corrected = min(shares, key=lambda one: one.dual)
        gain, error = shrunk.gain_over(affine)
        numbers: dict[str, float | int | str] = {
            "corrected_share": float(corrected.method.share),
            "corrected_gain": corrected.gain_over(affine)[0],
            "shares_tried": ", ".join(f"{one.method.share:.3g}" for one in shares),
            "shrunk_gain": gain,
        }
        base = shrunk if gain > error else affine
        best = min((base, corrected), key=lambda one: one.dual)
        if not _are_enough(source, target):
            return _with(best.method.fit(source, target, key), numbers, start)
        brenier = Brenier(shrunk=base is shrunk)
        members = brenier.members(parts, key)
        learned = Candidate(brenier, base.duals - np.array([member.gain for member in members]))
        numbers["brenier_gain"] = learned.gain_over(affine)[0]
        gain, error = learned.gain_over(best)
        if not gain > error:
            return _with(best.method.fit(source, target, key), numbers, start)
        if max(len(source.points), len(target.points)) > MOST:
            return _with(brenier.fit(source, target, key), numbers, start)
        return _with(brenier.joined(members, source, target, start), numbers, start)

    def _corrected(self, parts: list[Fold], key: Key[Array, ""]) -> list[Candidate]:
        """The corrected maps of all shares that were looked at, in their order."""

        def at(share: float) -> Candidate:
            return judged(Corrected(None, share, self.tolerance, self.max_iterations), parts, key)

        start = Corrected().default_share(parts[0].source.points.shape[1])
        tried = [at(start)]
        for factor in (1 / FACTOR, FACTOR):
            share, before = start * factor, tried[0]
            while LEAST <= share <= LARGEST:
                tried.append(at(share))
                if not tried[-1].dual < before.dual:
                    break
                share, before = share * factor, tried[-1]
            if before is not tried[0]:
                break
        return tried


def _with(fitted: Any, numbers: dict[str, float | int | str], start: float, *messages: str) -> Any:
    """A map with more numbers and messages, and the time since `start`."""
    fit = dataclasses.replace(
        with_numbers(fitted.fit, numbers),
        messages=(*fitted.fit.messages, *messages),
        seconds=time.perf_counter() - start,
    )
    return dataclasses.replace(fitted, fit=fit)


def _some(sample: Sample, n: int) -> Sample:
    """As many points as have their conjugates found in seconds, given `n` points of the map."""
    count = max(LEAST_CONJUGATES, int(MOST_WORK / (n * sample.points.shape[1] ** 2)))
    return part_of(sample, np.arange(min(count, len(sample.points))))


def _are_enough(source: Sample, target: Sample) -> bool:
    """Whether there are points enough to learn a potential from."""
    least = min(effective_size(sample.weights) for sample in (source, target))
    return least >= max(LEAST_POINTS, POINTS_PER_DIM * source.points.shape[1])

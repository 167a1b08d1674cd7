"""A distance of two samples beside its floor, with a test of their equality and a sentence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport import distances, floors, permutation
from driftbridge.transport.exact import optimal_coupling
from driftbridge.transport.maximum_mean_discrepancy import bandwidth_of, kernel_discrepancy
from driftbridge.transport.measures import two_samples
from driftbridge.transport.sliced import directions, line_powers

# Distances whose permutations are one matrix product, with their kernels.
KERNELS = {"energy": "energy", "mmd": "gaussian", "laplace": "laplace"}
# The others, with how many splits give the floor.
SPLITS = {"wasserstein": 5, "wasserstein_1": 5, "sinkhorn": 5, "sliced": 20, "bures": 50}
KERNEL_SPLITS = 100
DISTANCES = (*SPLITS, *KERNELS)
# Directions of the sliced distance.
LINES = 128
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A distance of `x` from `y` and what it can be compared with.

    - `distance`: its name.
    - `value`, `floor`: the distance, and what two samples of the target's law show; both between
      samples of `sizes` points.
    - `floor_spread`: standard deviation of the floor over splits of the points at hand; fresh ones
      would add to it, the more the heavier their tails.
    - `p_value`: of the hypothesis that both laws are equal, from all points; NaN if not tested.
    - `test`: the distance whose permutations gave the p-value.
    - `whole`: the distance of all points of `x` from all of `y`; NaN where it was left out.
    - `interval`: certified bounds of the Wasserstein distance of all points, from a feasible plan
      and feasible potentials; None for distances that are no transport problem.
    - `status`: "exact", or that of the solver.
    """

    distance: str
    value: float
    floor: float
    floor_spread: float
    p_value: float
    test: str
    whole: float
    interval: tuple[float, float] | None
    sizes: tuple[int, int]
    status: str = "exact"

    @property
    def n(self) -> int:
        """Points of the smaller sample that value and floor are for."""
        return min(self.sizes)

    @property
    def is_indistinguishable(self) -> bool:
        """Whether the test is not significant at the level 0.05; False without a test."""
        return self.p_value > LEVEL

    @property
    def sentence(self) -> str:
        """The verdict."""
        n, m = self.sizes
        size = f"n = {n}" if n == m else f"n = {n} and {m}"
        numbers = f"{self.distance} distance {self.value:.3g}, floor {self.floor:.3g}"
        if np.isnan(self.p_value):
            verdict, test = "not tested", ""
        else:
            verdict = "indistinguishable" if self.is_indistinguishable else "different"
            by = "" if self.test == self.distance else f" by the {self.test} distance"
            test = f" (p = {self.p_value:.2g}{by})"
        warning = "" if self.status in ("exact", "converged") else f"; the solver: {self.status}"
        return f"{numbers}: {verdict} at {size}{test}{warning}"

    def __str__(self) -> str:
        return self.sentence


def compare(
    x: Any,
    y: Any,
    distance: str | Callable[[np.ndarray, np.ndarray], float] = "wasserstein",
    *,
    key: int | Key[Array, ""] = 0,
    num_permutations: int = 199,
    num_splits: int | None = None,
    floor: str = "target",
    test: str | None = None,
    max_points: int = 2000,
) -> Comparison:
    """Compare a sample with a target sample: a distance, its floor at the same sizes, and a test.

    A distance between two finite samples of one law is not zero, and for transport distances in
    many dimensions far from it. The floor is its mean between two samples of the target's law.

    - "energy", "mmd" (Gaussian) and "laplace", each with the median bandwidth of the target: the
      mean squared discrepancy of samples of one law is proportional to `1/n + 1/m`, so that halves
      of the target give the floor at the sizes of `x` and `y` themselves.
    - All others fall at rates that are not known. With `floor="target"`, value and floor are means
      over disjoint parts of `k = min(n, m // 2)` points, and neither is biased at that size: give
      at least twice as many target points as there are points of `x` to use all of those. With
      `floor="pooled"` both are at the full sizes, and the floor comes from random splits of the
      pooled points: exact where the laws are equal, too high by what the mixture adds where not.

    The test permutes the labels of all points. For "energy", "mmd", "laplace" and "sliced" it is
    that of the distance itself. A permutation of an exact or entropic transport costs a solve, so
    there the energy distance is tested, which is zero for equal laws only, as they are.

    **Arguments:**

    - `x`, `y`: sample `(n, dim)` and target `(m, dim)`, at least 1 and 4 points.
    - `distance`: one of "wasserstein" (of order 2), "wasserstein_1", "sinkhorn" (root of twice the
      divergence at 5 % of the mean cost), "sliced", "bures", "energy", "mmd", "laplace"; or a
      function of two arrays.
    - `key`: of splits, directions and permutations.
    - `num_permutations`: `>= 0`; zero leaves out the test. The least p-value is
      `1 / (num_permutations + 1)`.
    - `num_splits`: `>= 1`; None is 5 where a distance takes a solve, 20 or more where not.
    - `floor`: "target" or "pooled".
    - `test`: "energy", "mmd", "laplace" or "sliced", instead of the one above.
    - `max_points`: where a distance takes a solve, value and floor are for at most so many points,
      and that of all points is left out (NaN) if there are more than twice as many on a side.

    **Returns:** a `Comparison`; `print` gives its sentence.

    **Raises:** `ValueError` for arguments outside their range or too few points; as
    `optimal_coupling` where a Wasserstein problem is too large.
    """
    _check(distance, num_permutations, num_splits, floor, test)
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2; got {max_points}.")
    source, target = (sample.points for sample in two_samples(x, y))
    if len(target) < 4:
        raise ValueError(f"y must have at least 4 points to be split; got {len(target)}.")
    rng = host_generator(as_key(key))
    name = distance if isinstance(distance, str) else getattr(distance, "__name__", "given")
    interval, status = None, "exact"
    if name in KERNELS and isinstance(distance, str):
        kernel = KERNELS[name]
        bandwidth = bandwidth_of(target, kernel, "median")
        whole = kernel_discrepancy(source, target, kernel, bandwidth).value
        level = floors.kernel_level(
            source, target, kernel, bandwidth, rng, num_splits or KERNEL_SPLITS, whole
        )
    else:
        function = (
            _function(distance, key, source.shape[1]) if isinstance(distance, str) else distance
        )
        splits, whole = num_splits or SPLITS.get(name, 5), float("nan")
        is_cheap = name in ("sliced", "bures") or source.shape[1] == 1
        if is_cheap or floor == "pooled" or max(len(source), len(target)) <= 2 * max_points:
            whole, interval, status = _whole(distance, function, source, target)
        if floor == "pooled":
            level = floors.pooled(function, source, target, rng, splits, whole)
        else:
            most = len(source) if is_cheap else max_points
            level = floors.subsampled(function, source, target, rng, splits, most)
    tested = test or (name if name in (*KERNELS, "sliced") else "energy")
    return Comparison(
        distance=name,
        value=level.value,
        floor=level.floor,
        floor_spread=level.spread,
        p_value=_p_value(source, target, tested, rng, key, num_permutations),
        test=tested,
        whole=whole,
        interval=interval,
        sizes=level.sizes,
        status=status,
    )


def _check(distance, num_permutations, num_splits, floor, test) -> None:
    if isinstance(distance, str) and distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}; got {distance!r}.")
    if num_permutations < 0 or (num_splits is not None and num_splits < 1):
        raise ValueError(
            "num_permutations must be at least 0 and num_splits at least 1; got "
            f"{num_permutations} and {num_splits}."
        )
    if floor not in ("target", "pooled"):
        raise ValueError(f"floor must be 'target' or 'pooled'; got {floor!r}.")
    if test is not None and test not in (*KERNELS, "sliced"):
        raise ValueError(f"test must be one of {', '.join(KERNELS)}, sliced; got {test!r}.")


def _function(name: str, key, dim: int) -> floors.Distance:
    """The distance of two arrays with equal weights."""
    if name == "sliced":
        axes = directions(key, LINES, dim)

        def sliced(x, y):
            even = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
            lines = axes.T.astype(x.dtype)
            return float(np.sqrt(np.mean(line_powers(x @ lines, y @ lines, 2, *even))))

        return sliced
    return {
        "wasserstein": distances.wasserstein,
        "wasserstein_1": lambda x, y: distances.wasserstein(x, y, 1),
        "sinkhorn": lambda x, y: distances.sinkhorn_divergence(x, y).distance,
        "bures": distances.gaussian_wasserstein,
    }[name]


def _whole(distance, function, x, y) -> tuple[float, tuple[float, float] | None, str]:
    """The distance of all points, its certified interval, and how the solver ended."""
    if distance in ("wasserstein", "wasserstein_1"):
        p = 2 if distance == "wasserstein" else 1
        found = optimal_coupling(x, y, p=p)
        lower = max(found.lower, 0.0) ** (1 / p)
        status = "exact" if found.status == "optimal" else found.status
        return found.distance, (min(lower, found.distance), found.distance), status
    if distance == "sinkhorn":
        found = distances.sinkhorn_divergence(x, y)
        bad = [status for status in found.status if status != "converged"]
        return found.distance, (found.lower, found.upper), bad[0] if bad else "converged"
    return float(function(x, y)), None, "exact"


def _p_value(x, y, test: str, rng, key, num_permutations: int) -> float:
    if num_permutations == 0:
        return float("nan")
    if test == "sliced":
        lines = directions(key, LINES, x.shape[1]).T.astype(x.dtype)
        return permutation.sliced_p_value(x @ lines, y @ lines, 2, rng, num_permutations)
    kernel = KERNELS[test]
    # The pooled median does not change under permutations.
    bandwidth = bandwidth_of(np.concatenate([x, y]), kernel, "median")
    return permutation.kernel_p_value(x, y, kernel, bandwidth, rng, num_permutations)

"""What a map does to points that it has not seen, beside what the samples could show at best."""

import json
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.transport.base import Cost, Dynamic, Fit, Invertible, TransportMap
from driftbridge.transport.comparison import Comparison, compare
from driftbridge.transport.exact import optimal_coupling
from driftbridge.transport.motion import Motion, motion
from driftbridge.transport.pairs import pair_of
from driftbridge.transport.points import as_rows

# Points of the source in exact transport problems, and twice as many of the target, whose halves
# give the floor: each problem takes a tenth of a second.
MOST = 500
# Points of each side in the energy distance and its permutation test.
TESTED = 5000
PERMUTATIONS = 199
LEVEL = 0.05
# Points kept for pictures.
SHOWN = 2000


class Bounds(NamedTuple):
    """An interval that holds the least mean squared distance to the map's own image.

    Both ends are certified on a sample: a feasible plan above, feasible dual potentials below.
    """

    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class MapReport:
    """A map on test points.

    - `before`, `after`: Wasserstein-2 distances of the test target to the test source and to its
      image; `energy_before`, `energy_after`: energy distances, with a permutation test each. All
      have the floor that two samples of one law show at these sizes.
    - `cost`: mean of `|T(x) - x|^2`; `optimal`: bounds on what the cheapest map to the same image
      would cost, on at most 500 of the points, where the map itself costs `cost_there`.
    - `round_trip`: root mean square of `T^{-1}(T(x)) - x` over the root mean square of `x` about
      its mean; None without an inverse, NaN where a point could not be inverted.
    - `motion`: how a flow moves the points, on at most 500; None for a map that is none.
    - `fit`: how the map was fitted.
    - `source`, `image`, `target`: at most 2000 points each, for pictures.
    """

    before: Comparison
    after: Comparison
    energy_before: Comparison
    energy_after: Comparison
    cost: Cost
    cost_there: float
    optimal: Bounds
    round_trip: float | None
    motion: Motion | None
    num_source: int
    num_target: int
    fit: Fit
    source: Float[np.ndarray, "n dim"]
    image: Float[np.ndarray, "n dim"]
    target: Float[np.ndarray, "m dim"]
    seconds: float

    @property
    def is_at_floor(self) -> bool:
        """Whether image and target cannot be told apart at these sizes."""
        return self.energy_after.p_value > LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the map brings the source closer to the target."""
        return self.energy_after.value < self.energy_before.value

    @property
    def sentence(self) -> str:
        """The verdict."""
        b, a, n = self.before.value, self.after.value, min(self.num_source, self.num_target)
        numbers = (
            f"W2 to the target {b:.3g} before, {a:.3g} after, floor {self.after.floor:.3g} between "
            f"samples of {self.after.n}"
        )
        test = f"energy test p = {self.energy_after.p_value:.2g} at n = {min(n, TESTED)}"
        if not self.fit.converged:
            return f"The fit did not converge. {numbers} ({test})."
        if not self.is_better:
            return f"The map does not bring the source closer. {numbers} ({test})."
        if self.is_at_floor:
            return f"The image cannot be told from the target. {numbers} ({test})."
        return f"The image is closer to the target, and still told from it. {numbers} ({test})."

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data."""

        def distance(found: Comparison) -> dict[str, float]:
            return {"value": found.value, "floor": found.floor, "p_value": found.p_value}

        return {
            "sentence": self.sentence,
            "wasserstein": {"before": distance(self.before), "after": distance(self.after)},
            "energy": {
                "before": distance(self.energy_before),
                "after": distance(self.energy_after),
            },
            "cost": {"mean": self.cost.mean, "error": self.cost.error},
            "optimal": {
                "lower": self.optimal.lower,
                "upper": self.optimal.upper,
                "map": self.cost_there,
            },
            "round_trip": self.round_trip,
            "motion": None if self.motion is None else self.motion._asdict(),
            "points": {"source": self.num_source, "target": self.num_target},
            "fit": {
                "method": self.fit.method,
                "reason": self.fit.reason,
                "converged": self.fit.converged,
                "messages": list(self.fit.messages),
                "numbers": {name: _known(value) for name, value in self.fit.numbers},
                "seconds": self.fit.seconds,
            },
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        rows = [
            ("", "before", "after", "floor", "p after"),
            ("W2", *_row(self.before, self.after)),
            ("energy", *_row(self.energy_before, self.energy_after)),
        ]
        table = "\n".join("  ".join(f"{cell:>9}" for cell in row) for row in rows)
        low, high = self.optimal
        cost = (
            f"mean squared distance moved {self.cost.mean:.4g} ± {self.cost.error:.2g}; to the "
            f"same image at least {low:.4g}, at most {high:.4g} where the map takes "
            f"{self.cost_there:.4g}"
        )
        trip = "" if self.round_trip is None else f"\nround trip error {self.round_trip:.2g}"
        move = ""
        if self.motion is not None:
            enough = "more than were tried" if self.motion.steps is None else self.motion.steps
            move = (
                f"\npath energy {self.motion.energy:.4g}, curvature {self.motion.curvature:.2g}, "
                f"rotation {self.motion.rotation:.2g}, steps to 1 %: {enough}"
            )
        loss = dict(self.fit.numbers).get("held_out_loss", np.nan)
        move += "" if np.isnan(loss) else f"\nheld-out loss {loss:.4g}"
        messages = "".join(f"\n- {message}" for message in self.fit.messages)
        return f"{self.sentence}\n{table}\n{cost}{trip}{move}{messages}"


def _known(value: float | int | str) -> float | int | str | None:
    """A number as JSON has it, which knows no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _row(before: Comparison, after: Comparison) -> tuple[str, ...]:
    p = "-" if np.isnan(after.p_value) else f"{after.p_value:.2g}"
    return f"{before.value:.4g}", f"{after.value:.4g}", f"{after.floor:.4g}", p


def report(transport: TransportMap, x: Any, y: Any, key: int | Key[Array, ""] = 0) -> MapReport:
    """Compare the image of test points with points of the target: see `MapReport`.

    **Arguments:**

    - `x`, `y`: points of source and target, at least 10 each, best such as the fit has not seen.
    - `key`: for subsamples and permutations.
    """
    start = time.perf_counter()
    columns = transport.fit.columns
    x, y = (
        as_rows(data, name, transport.dim, columns) for data, name in ((x, "source"), (y, "target"))
    )
    pair = pair_of(x, y)
    source, target = pair.source.points, pair.target.points
    if min(len(source), len(target)) < 10:
        raise ValueError(
            f"a report needs at least 10 points on each side; got {len(source)} and {len(target)}."
        )
    image = np.asarray(transport(source))
    key = as_key(key)
    energies = [
        compare(
            _part(data, TESTED), _part(target, TESTED), "energy", key=key,
            num_permutations=PERMUTATIONS,
        )
        for data in (source, image)
    ]  # fmt: skip
    parts = [_part(source, MOST), _part(image, MOST), _part(target, 2 * MOST)]
    distances = [
        compare(data, parts[2], "wasserstein", key=key, num_permutations=0) for data in parts[:2]
    ]
    coupling = optimal_coupling(parts[0], parts[1])
    there = np.mean(np.sum((parts[1].astype(np.float64) - parts[0]) ** 2, axis=1))
    return MapReport(
        *distances,
        *energies,
        cost=transport.cost(source),
        cost_there=float(there),
        optimal=Bounds(coupling.lower, coupling.cost),
        round_trip=_round_trip(transport, source, image),
        motion=motion(transport, parts[0]) if isinstance(transport, Dynamic) else None,
        num_source=len(source),
        num_target=len(target),
        fit=transport.fit,
        source=_part(source, SHOWN),
        image=_part(image, SHOWN),
        target=_part(target, SHOWN),
        seconds=time.perf_counter() - start,
    )


def _part(points: np.ndarray, most: int) -> np.ndarray:
    """Evenly spread rows, the same of a set and of its image."""
    if len(points) <= most:
        return points
    return points[np.linspace(0, len(points) - 1, most).astype(int)]


def _round_trip(transport: TransportMap, source: np.ndarray, image: np.ndarray) -> float | None:
    if not isinstance(transport, Invertible):
        return None
    source, image = _part(source, MOST), _part(image, MOST)
    try:
        error = np.asarray(transport.inverse(image), np.float64) - source
    except ValueError:  # a row that float32 cannot invert: the report says NaN, not nothing
        return float("nan")
    spread = source.astype(np.float64) - source.mean(axis=0, dtype=np.float64)
    return float(np.sqrt(np.mean(error**2) / max(np.mean(spread**2), 1e-300)))

"""What every map learned from pairs begins with: parts of the data, pairs of them, a unit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import as_dtype
from driftbridge.transport.conditional import ConditionalOT
from driftbridge.transport.conditions import encoding_of, with_condition
from driftbridge.transport.couplings import Coupling, Independent
from driftbridge.transport.likeness import apart
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.measures import part_of
from driftbridge.transport.minibatch import MinibatchOT, Pool
from driftbridge.transport.points import Sample

# Share of the points that are held out, and the least number of them.
HELD_OUT, LEAST_HELD_OUT = 0.1, 16
# Pairs of a batch, and batches of pairs that are made.
BATCH, POOL = 256, 200


class Parts(NamedTuple):
    """A sample, what of it is trained on, and the rows that are held out."""

    whole: Sample
    kept: Sample
    held_out: Sample
    rows: Int[np.ndarray, " k"]

    @property
    def share_kept(self) -> float:
        return 1 - len(self.rows) / len(self.whole.points)

    @property
    def test(self) -> Sample:
        """What the map is looked at on: what is held out, or all where nothing is."""
        return self.held_out if len(self.rows) else self.whole

    @classmethod
    def of(cls, sample: Sample, share: float, random: np.random.Generator) -> "Parts":
        n = len(sample.points)
        count = min(max(LEAST_HELD_OUT, round(share * n)), n // 2) if share > 0 else 0
        order = random.permutation(n)
        rows, rest = np.sort(order[:count]), np.sort(order[count:])
        return cls(sample, part_of(sample, rest), part_of(sample, rows), rows)


class Pairing(NamedTuple):
    """Pairs to train on and pairs held out, and the path of the affine map between the samples.

    - `coupling`, `held_out`: of the data; None where nothing is held out.
    - `base`: the field of the affine map, of the part trained on.
    - `scale`: root mean square, in a coordinate, of what pairs move beyond their mean.
    - `source`, `target`: the data and their parts.
    """

    coupling: Coupling
    held_out: Coupling | None
    base: McCann
    scale: Float[Array, ""]
    source: Parts
    target: Parts


def check_share(held_out: float) -> None:
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must lie in [0, 1); got {held_out}.")


def paired(
    source: Sample,
    target: Sample,
    coupling: Coupling | Callable | None,
    key: Key[Array, ""],
    held_out: float = HELD_OUT,
) -> Pairing:
    """Hold out some points and couple the samples: see `couplings`.

    **Arguments:** `key`: its numbers 0 to 2 are used here; `held_out`: a share in [0, 1).
    """
    random = host_generator(fold_in(key, 0))
    first, second = (Parts.of(sample, held_out, random) for sample in (source, target))
    pairs, held = couplings(first, second, coupling, fold_in(key, 1))
    dtype = source.points.dtype
    return Pairing(
        pairs,
        held,
        mccann(*gaussians(first.kept, second.kept), dtype),
        as_dtype(spread_of(pairs, fold_in(key, 2)), dtype),
        first,
        second,
    )


def couplings(
    source: Parts, target: Parts, coupling: Coupling | Callable | None, key: Key[Array, ""]
) -> tuple[Coupling, Coupling | None]:
    """Pairs to train on, and pairs that are held out, None where no points are.

    **Arguments:** `coupling`: None for optimal pairs within batches of 256; a function of
    `(x, y, key=key)` and weights, points or random rows of them in, a coupling out; or a coupling,
    which is then also what is held out.

    **Raises:** `ValueError` for a coupling of one's own whose points are not of the data's laws.
    """
    holds_out = len(source.rows) > 0
    if isinstance(coupling, Coupling):
        check_marginals(coupling, source.whole, target.whole, fold_in(key, 2))
        coupling = with_condition(coupling, codes_of(target, target.whole))
        return coupling, coupling if holds_out else None
    if coupling is None:
        pairs = coupled(source.whole, target.whole, None, key)
        assert isinstance(pairs, Pool)
        codes = codes_of(target, target.whole)
        if not holds_out:
            return with_condition(pairs, codes), None
        # Of pairs of all points: held-out ones among themselves would be farther apart.
        kept, held = pairs.split(source.rows, target.rows)
        return with_condition(kept, codes), with_condition(held, codes)
    pairs = coupled(source.kept, target.kept, coupling, fold_in(key, 0))
    check_marginals(pairs, source.kept, target.kept, fold_in(key, 2))
    pairs = with_condition(pairs, codes_of(target, target.kept))
    if not holds_out:
        return pairs, None
    held = coupled(source.held_out, target.held_out, coupling, fold_in(key, 1))
    return pairs, with_condition(held, codes_of(target, target.held_out))


def codes_of(parts: Parts, sample: Sample) -> Float[np.ndarray, "n k"] | None:
    """Codes of the conditions of a part, by the encoding of the whole."""
    if parts.whole.condition is None or sample.condition is None:
        return None
    return encoding_of(parts.whole.condition).of(sample.condition, len(sample.points))


def check_marginals(
    coupling: Coupling, source: Sample, target: Sample, key: Key[Array, ""]
) -> None:
    """Refuse a coupling whose source or target points are not of the laws of the data.

    **Raises:** `ValueError` with the largest distance of a projection.
    """
    for name, points, sample in zip(
        ("source", "target"), drawn(coupling, fold_in(key, 0)), (source, target), strict=True
    ):
        if points.shape[1] != sample.points.shape[1]:
            raise ValueError(
                f"the coupling's {name} points have {points.shape[1]} coordinates, those of the "
                f"data {sample.points.shape[1]}."
            )
        even = np.full(len(points), 1 / len(points))
        worst, bound = apart(Sample(np.asarray(points), even), sample, fold_in(key, 1))
        if worst > bound:
            raise ValueError(
                f"the coupling does not have the law of the {name} as its marginal: along a "
                f"direction their distribution functions are {worst:.3g} apart (draws of one law "
                f"stay below {bound:.3g})."
            )


def coupled(
    source: Sample, target: Sample, coupling: Callable | None, key: Key[Array, ""]
) -> Coupling:
    """Two samples coupled by a function, or optimally within batches.

    With conditions the function is given them by name, and the pairs within batches are those of
    `ConditionalOT`.
    """
    points, named = (source.points, target.points), weights_of(source, target)
    if target.condition is not None:
        named = {**named, "condition": target.condition, "source_condition": source.condition}
    if coupling is not None:
        return coupling(*points, key=key, **named)
    kind = MinibatchOT if target.condition is None else ConditionalOT
    return kind(*points, batch_size=BATCH, pool=POOL, key=key, **named)


def independent(x: Any, y: Any, key: Key[Array, ""], **weights: Any) -> Independent:
    """The independent coupling, as a function that couples."""
    return Independent(x, y, **weights)


def weights_of(source: Sample, target: Sample) -> dict[str, Any]:
    """Weights as arguments of a coupling, where they are not equal."""
    named = {"source_weights": source.weights, "target_weights": target.weights}
    return {name: weights for name, weights in named.items() if np.ptp(weights) > 0}


def drawn(coupling: Coupling, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Pairs from which scales are taken."""
    return coupling.pairs(key, 1024)


def spread_of(coupling: Coupling, key: Key[Array, ""]) -> float:
    """Root mean square, in a coordinate, of what pairs are moved by beyond their mean."""
    x, y = drawn(coupling, key)
    moved = np.asarray(y, np.float64) - np.asarray(x, np.float64)
    spread = float(np.sqrt(np.mean(np.var(moved, axis=0))))
    return spread if spread > 0 else 1.0

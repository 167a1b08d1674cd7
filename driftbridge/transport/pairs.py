"""Source and target of a map: checked, weighed, and what a user should know about them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from driftbridge.transport.conditions import as_condition
from driftbridge.transport.measures import device_dtype, two_samples
from driftbridge.transport.points import Sample, columns_of

# A scale this many times another's dominates a squared distance.
RATIO = 20.0
# Fewer points than this many per dimension leave a covariance nearly singular.
POINTS_PER_DIM = 5


class DataWarning(UserWarning):
    """Data that can be fitted, and of which the user should know something first."""


class Pair(NamedTuple):
    """Two data sets that have passed the door, and what was noticed there."""

    source: Sample
    target: Sample
    columns: tuple[str, ...] | None
    messages: tuple[str, ...]


def pair_of(
    x: Any,
    y: Any,
    source_weights: Any = None,
    target_weights: Any = None,
    source_condition: Any = None,
    target_condition: Any = None,
) -> Pair:
    """Check two data sets, their weights and their conditions.

    **Raises:** `ValueError` for what cannot be fitted: too few points, other dimensions or columns,
    values that are not finite, weights that are negative or do not sum to one.
    """
    columns = columns_of(x) or columns_of(y)
    names = ("source", "target")
    given = two_samples(x, y, source_weights, target_weights, 2, names=names, vectors=False)
    labels = ("source_condition", "condition")
    notices, samples = [], []
    for name, label, (points, weights, _), condition in zip(
        names, labels, given, (source_condition, target_condition), strict=True
    ):
        kept = weights > 0  # a point without weight is none
        if kept.sum() < 2:
            raise ValueError(f"{name} must have weight on at least 2 rows; it has it on one.")
        dtype = device_dtype(points)
        notices += _lost_digits(points[kept], name, dtype, columns)
        if condition is not None:
            condition = as_condition(condition, len(points), label)[kept]
        samples.append(Sample(points[kept].astype(dtype), weights[kept], condition))
    source, target = samples
    return Pair(source, target, columns, (*notices, *_notices(source, target, columns)))


def _lost_digits(
    points: np.ndarray, name: str, dtype: np.dtype, columns: tuple[str, ...] | None
) -> list[str]:
    """Columns whose spread a coarser dtype hardly resolves."""
    spread, size = points.std(axis=0, dtype=np.float64), np.abs(points).max(axis=0)
    lost = np.flatnonzero((spread > 0) & (spread < 1e3 * np.finfo(dtype).eps * size))
    if not lost.size:
        return []
    listed = ", ".join(_label(i, columns) for i in lost[:5])
    return [
        f"{dtype} hardly resolves what varies in the {name}: {listed}; subtract an offset, or "
        "enable x64"
    ]


def effective_size(weights: Float[np.ndarray, " n"]) -> float:
    """`1 / sum w_i^2`: how many points of equal weight would be as good."""
    return float(1 / np.sum(weights**2))


def _notices(source: Sample, target: Sample, columns: tuple[str, ...] | None) -> list[str]:
    """What a user should know about the data before believing a map."""
    dim = source.points.shape[1]
    notices, spreads = [], []
    for name, sample in (("source", source), ("target", target)):
        spread = np.asarray(sample.points, np.float64).std(axis=0)
        spreads.append(spread)
        n = round(effective_size(sample.weights))
        if n < POINTS_PER_DIM * dim:
            notices.append(
                f"the {name} has {n} points in {dim} dimensions, fewer than {POINTS_PER_DIM} for "
                "each: expect an error of the order of the noise, and new rows that lie off the "
                "span of these to be extrapolated"
            )
        constant = np.flatnonzero(np.ptp(sample.points, axis=0) == 0)
        if constant.size:
            listed = ", ".join(_label(i, columns) for i in constant[:5])
            notices.append(f"constant in the {name}: {listed}")
        spread[constant] = 0  # rounding of the mean leaves some
        varying = spread[spread > 0]
        if varying.size and varying.max() > RATIO * varying.min():
            largest, least = int(np.argmax(spread)), np.flatnonzero(spread == varying.min())[0]
            notices.append(
                f"scales in the {name} differ by a factor of {varying.max() / varying.min():.0f} "
                f"({_label(largest, columns)} against {_label(least, columns)}): distances are "
                "those of the larger ones; standardise the columns unless that is meant"
            )
    known = (spreads[0] > 0) & (spreads[1] > 0)
    ratio = np.where(known, np.maximum(spreads[1], 1e-300) / np.maximum(spreads[0], 1e-300), 1.0)
    far = int(np.argmax(np.abs(np.log(ratio))))
    if not 1 / RATIO <= ratio[far] <= RATIO:
        notices.append(
            f"{_label(far, columns)} has {ratio[far]:.3g} times the scale in the target that it "
            "has in the source: are the units the same?"
        )
    return notices


def _label(i: Any, columns: tuple[str, ...] | None) -> str:
    return f"column {i}" if columns is None else columns[i]

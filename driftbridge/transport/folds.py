"""Parts of two samples to fit to, and the points that each holds out."""

import math
from typing import NamedTuple

import numpy as np

from driftbridge.transport.measures import part_of
from driftbridge.transport.padding import COARSE, below, bucket
from driftbridge.transport.points import Sample

# How many, the share of the points that each holds out, and the fewest points that are split.
FOLDS, HELD_OUT, FEWEST = 4, 0.25, 16


class Fold(NamedTuple):
    """What a map is fitted to, and what it is judged on."""

    source: Sample
    target: Sample
    source_held_out: Sample
    target_held_out: Sample


def folds(
    source: Sample, target: Sample, random: np.random.Generator, most: int | None = None
) -> list[Fold]:
    """Four folds of at most `most` random points on each side.

    A quarter is held out; of up to 4096 points more, so that the points of the fit have one size
    bucket for all samples of one.
    """
    sides = [_parts(sample, random, most) for sample in (source, target)]
    return [Fold(x, y, x_out, y_out) for (x, x_out), (y, y_out) in zip(*sides, strict=True)]


def _parts(
    sample: Sample, random: np.random.Generator, most: int | None
) -> list[tuple[Sample, Sample]]:
    order = random.permutation(len(sample.points))[:most]
    n = len(order)
    kept = math.ceil((1 - HELD_OUT) * n)
    cut = n - (min(kept, below(bucket(n))) if n <= COARSE else kept)
    turned = [np.roll(order, -(i * n) // FOLDS) for i in range(FOLDS)]
    return [(part_of(sample, t[cut:]), part_of(sample, t[:cut])) for t in turned]

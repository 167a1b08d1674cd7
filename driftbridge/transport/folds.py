"""Parts of a sample to fit to, and the points that each holds out."""

import math

import numpy as np

from driftbridge.transport.measures import part_of
from driftbridge.transport.padding import below, bucket
from driftbridge.transport.points import Sample

# How many, and the share of the points that each holds out.
FOLDS, HELD_OUT = 4, 0.25


def folds(
    sample: Sample, random: np.random.Generator, most: int | None = None
) -> list[tuple[Sample, Sample]]:
    """Points to fit and points held out, four times; of at most `most` random points.

    A quarter is held out, or more, so that the points of the fit have one size bucket for all
    samples of one.
    """
    order = random.permutation(len(sample.points))[:most]
    n = len(order)
    # Above the coarse buckets a quarter is as good as any.
    cut = max(2, n - min(math.ceil((1 - HELD_OUT) * n), below(bucket(n))))
    turned = [np.roll(order, -(i * n) // FOLDS) for i in range(FOLDS)]
    return [(part_of(sample, t[cut:]), part_of(sample, t[:cut])) for t in turned]

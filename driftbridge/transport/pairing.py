"""What every map learned from pairs begins with: couplings, the affine path, a unit of length."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow import BATCH, HELD_OUT_POOL, POOL, split, spread_of
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.points import Sample


class Pairing(NamedTuple):
    """Pairs to train on and pairs held out, and the path of the affine map between the samples.

    - `coupling`, `held_out`: of parts of the data that share no point.
    - `base`: the field of the affine map, of the part trained on.
    - `scale`: root mean square, in a coordinate, of what pairs move beyond their mean.
    - `source`, `target`: the parts trained on.
    """

    coupling: Coupling
    held_out: Coupling
    base: McCann
    scale: Float[Array, ""]
    source: Sample
    target: Sample


def paired(
    source: Sample, target: Sample, coupling: Coupling | Callable | None, key: Key[Array, ""]
) -> Pairing:
    """Split two samples and couple their parts.

    **Arguments:** `coupling`: None for optimal pairs within batches of 256, a function of
    `(x, y, key=key)`, or a coupling, which is then also what is held out; `key`: its numbers 0 to 3
    are used here.
    """
    random = host_generator(fold_in(key, 0))
    (source, source_held), (target, target_held) = (split(s, random) for s in (source, target))
    dtype = source.points.dtype
    trained_on = _coupled(source, target, coupling, POOL, fold_in(key, 1))
    held_out = _coupled(source_held, target_held, coupling, HELD_OUT_POOL, fold_in(key, 3))
    return Pairing(
        trained_on,
        held_out,
        mccann(*gaussians(source, target), dtype),
        as_dtype(spread_of(trained_on, fold_in(key, 2)), dtype),
        source,
        target,
    )


def _coupled(source: Sample, target: Sample, coupling: Any, pool: int, key: Any) -> Coupling:
    if isinstance(coupling, Coupling):
        return coupling
    weights = (s.weights if np.ptp(s.weights) > 0 else None for s in (source, target))
    weights = dict(zip(("source_weights", "target_weights"), weights, strict=True))
    points = source.points, target.points
    if coupling is not None:
        return coupling(*points, key=key, **weights)
    return MinibatchOT(*points, batch_size=BATCH, pool=pool, key=key, **weights)

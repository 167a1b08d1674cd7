"""`fit_map`: from two data sets to a map."""

import dataclasses
import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.action_matching import ActionMatching
from driftbridge.transport.affine import Affine
from driftbridge.transport.base import Invertible, Method, TransportMap
from driftbridge.transport.brenier import Brenier
from driftbridge.transport.c_rectified import CRectified
from driftbridge.transport.conditional_map import ConditionalMap
from driftbridge.transport.conditions import encoding_of
from driftbridge.transport.consistency import ConsistencyFlow
from driftbridge.transport.curvature import MinimalCurvature
from driftbridge.transport.entropic import Corrected, Debiased, Entropic
from driftbridge.transport.flow import Flow
from driftbridge.transport.interpolant import Interpolant
from driftbridge.transport.jko import JKO
from driftbridge.transport.measures import moments
from driftbridge.transport.metric_flow import MetricFlow
from driftbridge.transport.moment_matching import InductiveMomentMatching
from driftbridge.transport.pairs import POINTS_PER_DIM, DataWarning, Pair, effective_size, pair_of
from driftbridge.transport.points import Sample
from driftbridge.transport.progressive import Progressive
from driftbridge.transport.rearrangement import Rearrangement
from driftbridge.transport.rectified import Rectified
from driftbridge.transport.selection import Selected
from driftbridge.transport.semidiscrete_map import Semidiscrete
from driftbridge.transport.triangular import Triangular
from driftbridge.transport.unbalanced_action_matching import UnbalancedActionMatching
from driftbridge.transport.wasserstein_fisher_rao_flow import WassersteinFisherRao

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Affine, Selected, Brenier, Corrected, Entropic, Debiased, Progressive, Rearrangement,
        Triangular, Semidiscrete, Flow, Interpolant, Rectified, CRectified, ActionMatching,
        UnbalancedActionMatching, MinimalCurvature, WassersteinFisherRao, MetricFlow,
        ConsistencyFlow, InductiveMomentMatching, JKO,
    )
}  # fmt: skip
AUTO = "auto"
# A correlation matrix of this condition number, or worse, has directions without data: columns
# that are sums of others have 1e12 and more in float32.
CONDITION = 1e10
# Beyond this many points on a side an entropic fit takes minutes: `auto` takes a random part.
MOST_POINTS = 50_000


def fit_map(
    x: Any,
    y: Any,
    method: str | Method = AUTO,
    key: int | Key[Array, ""] = 0,
    *,
    source_weights: Any = None,
    target_weights: Any = None,
    condition: Any = None,
    source_condition: Any = None,
) -> TransportMap:
    """Fit a map that carries the law of `x` to the law of `y`.

    With a condition it is a `ConditionalMap`, which carries the law of `x` to that of `y` given `c`
    for every `c`; where the source has conditions too, from the law of `x` given `c`.

    **Arguments:**

    - `x`, `y`: samples of source and target, arrays `(n, dim)` and `(m, dim)` or data frames with
      the same columns; the columns are kept.
    - `method`: a name (static maps: `affine`, `selected`, `brenier`, `corrected`, `entropic`,
      `debiased`, `progressive`, `rearrangement`, `triangular`, `semidiscrete`; learned ones:
      `flow`, `interpolant`, `rectified`, `c_rectified`, `action`, `unbalanced_action`, `curvature`,
      `wasserstein_fisher_rao`, `metric`, `consistency`, `moment_matching`, `jko`) or a method
      object such as
      `driftbridge.transport.Corrected(epsilon=0.1)`. `auto` takes `affine` where there are fewer
      than five points a dimension or a covariance is singular, `rearrangement` in one dimension,
      else `selected`: whichever of the affine map, corrected entropic maps and a learned convex
      potential held-out points choose;
      with a condition `flow`. `T.fit.reason` says which and why.
    - `key`: seed or typed key, for methods that draw.
    - `source_weights`, `target_weights`: `(n,)` and `(m,)`, nonnegative with sum 1; equal if None.
    - `condition`: of the target's points, for `flow` and `interpolant`: `(m,)` of integers,
      booleans or strings for classes, `(m,)` or `(m, k)` of floats for numbers.
    - `source_condition`: of the source's points, of the same kind; None where the source does not
      depend on the condition.

    **Returns:** a `TransportMap`. `T.fit.messages` is what must be known about data and solvers;
    `T.fit.converged` is False where a solver stopped before its tolerance.

    **Warns:** `DataWarning` for few points, constant columns, and scales that differ by more than
    20, each also among the messages.

    **Raises:** `ValueError` for data that cannot be fitted, naming row, column or value.
    """
    start = time.perf_counter()
    if source_condition is not None and condition is None:
        raise ValueError("source_condition needs the condition of the target's points too.")
    pair = pair_of(x, y, source_weights, target_weights, source_condition, condition)
    chosen, reason, messages = _choose(method, pair)
    source, target = pair.source, pair.target
    if condition is not None and not chosen.takes_condition:
        able = ", ".join(name for name, kind in METHODS.items() if kind.takes_condition)
        raise ValueError(f"{chosen.name} takes no condition; {able} do.")
    if method == AUTO and not isinstance(chosen, Affine | Flow):
        source, target, more = _bounded(source, target, key)
        messages = messages + more
    fitted = chosen.fit(source, target, as_key(key))
    fit = dataclasses.replace(
        fitted.fit,
        reason=reason,
        num_source=len(pair.source.points),
        num_target=len(pair.target.points),
        columns=pair.columns,
        messages=pair.messages + messages + fitted.fit.messages,
        seconds=time.perf_counter() - start,
    )
    for message in pair.messages:
        warnings.warn(message, DataWarning, stacklevel=2)
    if pair.target.condition is not None:
        assert isinstance(fitted, Invertible)
        return ConditionalMap(fit, fitted, encoding_of(pair.target.condition))
    return dataclasses.replace(fitted, fit=fit)


def find_method(name: str) -> type[Method]:
    """The method of a name.

    **Raises:** `ValueError` listing the names there are.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {AUTO}, {', '.join(METHODS)}.")
    return METHODS[name]


def _choose(method: str | Method, pair: Pair) -> tuple[Method, str, tuple[str, ...]]:
    """The method, why it was taken, and what must be said of the choice."""
    if isinstance(method, Method):
        return method, "given", ()
    if method != AUTO:
        return find_method(method)(), "given", ()
    if pair.target.condition is not None:
        return Flow(), "of the methods that take a condition it is the simplest", ()
    dim = pair.source.points.shape[1]
    least = min(round(effective_size(s.weights)) for s in (pair.source, pair.target))
    if least < POINTS_PER_DIM * dim:
        return Affine(), f"{least} points are fewer than {POINTS_PER_DIM} a dimension ({dim})", ()
    for name, sample in (("source", pair.source), ("target", pair.target)):
        if _is_singular(sample):
            return Affine(), f"the covariance of the {name} is singular", ()
    if dim == 1:
        return Rearrangement(), "in one dimension it is the optimal map", ()
    return Selected(), f"{least} points in {dim} dimensions, with regular covariances", ()


def _is_singular(sample: Sample) -> bool:
    """Whether the points fill fewer dimensions than they have."""
    covariance = moments(sample).covariance
    spread = np.sqrt(np.diagonal(covariance))
    if np.any(np.ptp(sample.points, axis=0) == 0) or np.any(spread == 0):
        return True
    values = np.linalg.eigvalsh(covariance / spread[:, None] / spread[None, :])
    return bool(values[-1] > CONDITION * values[0])


def _bounded(
    source: Sample, target: Sample, key: int | Key[Array, ""]
) -> tuple[Sample, Sample, tuple[str, ...]]:
    """Random parts of the samples, where they are large, and a sentence that says so."""
    random, messages, parts = host_generator(as_key(key)), [], []
    for name, sample in (("source", source), ("target", target)):
        n = len(sample.points)
        if n > MOST_POINTS:
            rows = np.sort(random.choice(n, MOST_POINTS, replace=False))
            if np.ptp(sample.weights) > 0:  # by their weights, which are then equal
                rows = np.sort(random.choice(n, MOST_POINTS, p=sample.weights))
            sample = Sample(sample.points[rows], np.full(MOST_POINTS, 1 / MOST_POINTS))
            messages.append(
                f"fitted to {MOST_POINTS:,} random points of the {n:,} of the {name}; name a "
                "method to take all"
            )
        parts.append(sample)
    return parts[0], parts[1], tuple(messages)

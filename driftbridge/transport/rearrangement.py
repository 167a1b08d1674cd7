"""The monotone rearrangement: the optimal map on the line, from quantile to quantile."""

import time
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.transport.base import Fit, HasDensity, Method, as_dtype
from driftbridge.transport.padding import bucket
from driftbridge.transport.points import Sample

# Knots per cube root of the number of points.
KNOTS = 4


class Monotone(eqx.Module):
    """A continuous increasing function, linear between knots and beyond them.

    - `x`, `y`: knots, strictly increasing.
    - `slopes`: below the first knot and above the last.
    """

    x: Float[Array, " knots"]
    y: Float[Array, " knots"]
    slopes: Float[Array, " 2"]

    def __call__(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        low, slope = self._piece(self.x, t)
        return self.y[low] + slope * (t - self.x[low])

    def inverse(self, s: Float[Array, " n"]) -> Float[Array, " n"]:
        low, slope = self._piece(self.y, s)
        return self.x[low] + (s - self.y[low]) / slope

    def log_slope(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.log(self._piece(self.x, t)[1])

    def _piece(self, knots: Float[Array, " knots"], t: Float[Array, " n"]):
        """The knot from which the function goes on linearly to each `t`, and the slope there."""
        after = jnp.searchsorted(knots, t, side="right")
        inner = jnp.diff(self.y) / jnp.diff(self.x)
        slopes = jnp.concatenate([self.slopes[:1], inner, self.slopes[1:]])
        return jnp.maximum(after - 1, 0), slopes[after]


class RearrangementMap(HasDensity):
    """`T = Q_y(F_x(x))` on the line, the only nondecreasing map from one law to the other.

    - `function`: `T` as a function that is linear between knots.
    """

    function: Monotone

    @property
    def dim(self) -> int:
        return 1

    @property
    def dtype(self) -> Any:
        return self.function.x.dtype

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.function(x[:, 0])[:, None]

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.function.inverse(y[:, 0])[:, None]

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return self.function.log_slope(x[:, 0])


class Rearrangement(Method):
    """The monotone rearrangement of one-dimensional data, optimal for every convex cost.

    The quantiles of the source at the levels `(k + 1/2) / K` go to those of the target, linearly
    between. Beyond the outer ones the slope is the ratio of the mean excesses, so that what lies
    there keeps its mean. Where `K` grows as `n^{1/3}`, the default, slopes converge as well as
    values, hence densities; with a knot for every point they would not. Quantiles that coincide, as
    in data with repeated values, are left out: the map stays increasing.

    **Arguments:** `num_knots`: `K >= 2`; None for about `4 n^{1/3}`, `n` being the effective size
    of the smaller sample.

    **Raises:** from `fit`, `ValueError` for data of more than one column, or with a column of one
    value.
    """

    num_knots: int | None = None
    name: ClassVar[str] = "rearrangement"

    def __check_init__(self):
        if self.num_knots is not None and self.num_knots < 2:
            raise ValueError(f"num_knots must be at least 2; got {self.num_knots}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> RearrangementMap:
        start = time.perf_counter()
        if source.points.shape[1] != 1:
            raise ValueError(
                f"the rearrangement is of one-dimensional data; got {source.points.shape[1]} "
                "columns. Method 'triangular' rearranges one coordinate after another."
            )
        count = self.num_knots or num_knots(source, target)
        function = rearranged(
            source.points[:, 0], target.points[:, 0], source.weights, target.weights, count
        )
        seconds = time.perf_counter() - start
        return RearrangementMap(
            Fit(self.name, numbers=(("num_knots", count),), seconds=seconds), function
        )


def num_knots(source: Sample, target: Sample) -> int:
    """The default number of knots, one of few."""
    effective = min(1 / np.sum(sample.weights**2) for sample in (source, target))
    return bucket(int(np.ceil(KNOTS * effective ** (1 / 3))))


def quantiles(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], levels: np.ndarray
) -> Float[np.ndarray, " k"]:
    """Weighted quantiles: the sorted value `i` is at level `w_1 + ... + w_{i-1} + w_i / 2`."""
    order = np.argsort(values, kind="stable")
    values, weights = np.asarray(values[order], np.float64), weights[order]
    return np.interp(levels, np.cumsum(weights) - weights / 2, values)


def rearranged(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    count: int,
) -> Monotone:
    """The rearrangement of weighted values, with `count` knots."""
    levels = (np.arange(count) + 0.5) / count
    dtype = x.dtype
    # Knots must differ in the dtype in which the map computes.
    first = quantiles(x, a, levels).astype(dtype).astype(np.float64)
    second = quantiles(y, b, levels).astype(dtype).astype(np.float64)
    name, value = ("source", x[0]) if first[0] == first[-1] else ("target", y[0])
    # A value of many points goes to the mean of where they would go, and comes from it.
    first, second = _joined(first, second, dtype)
    second, first = _joined(second, first, dtype)
    kept = [0]
    for k in range(1, len(first)):
        if first[k] > first[kept[-1]] and second[k] > second[kept[-1]]:
            kept.append(k)
    if len(kept) < 2:
        raise ValueError(
            f"the {name} has one value, {value}, at nearly all of its points: no increasing map "
            "leads from or to it."
        )
    slopes = [_tail_slope(first[kept], second[kept], (x, a), (y, b), end) for end in (0, -1)]
    first, second = _filled(first[kept], second[kept], count, dtype)
    return Monotone(
        as_dtype(first, dtype), as_dtype(second, dtype), as_dtype(np.array(slopes), dtype)
    )


def _joined(values, others, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Increasing `values`, each once, with the mean of `others` over where it stood."""
    once, place, times = np.unique(values, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=others) / times
    return once, means.astype(dtype).astype(np.float64)


def _tail_slope(first, second, source: tuple, target: tuple, end: int) -> float:
    """Ratio of the mean excesses beyond the outer knots; without any, the slope next to them."""
    inner, sign = (1, -1) if end == 0 else (-2, 1)

    def excess(sample, knot):
        values, weights = sample
        return weights @ np.maximum(sign * (values.astype(np.float64) - knot), 0)

    beyond = excess(source, first[end]), excess(target, second[end])
    if min(beyond) <= 0:
        return float((second[inner] - second[end]) / (first[inner] - first[end]))
    return float(beyond[1] / beyond[0])


def _filled(first, second, count: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """`count` knots of the same function: the widest pieces are cut in two."""
    while len(first) < count:
        gap = np.diff(first)
        at = int(np.argmax(gap))
        middle = (np.array([first[at : at + 2].mean(), second[at : at + 2].mean()])).astype(dtype)
        inside = first[at] < middle[0] < first[at + 1] and second[at] < middle[1] < second[at + 1]
        if not inside:  # neighbours in this dtype: a program for fewer knots is compiled
            break
        first = np.insert(first, at + 1, middle[0])
        second = np.insert(second, at + 1, middle[1])
    return first, second

"""Metrics in which the places where data are is near, and the empty space between them far."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import as_dtype

# Points that a metric is made of, drawn from the data where there are more.
NUM_POINTS = 2000


class DiagonalMetric(eqx.Module):
    """The diagonal of a metric at points: the squared length of `v` at `x` is `sum_a G_a v_a^2`."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`G` at a batch of points, positive."""


class MetricSettings(eqx.Module):
    """Settings of a metric; `build` makes one of data."""

    @abc.abstractmethod
    def build(
        self, points: Float[np.ndarray, "n dim"], random: np.random.Generator
    ) -> DiagonalMetric:
        """The metric of some data."""


class Flat(MetricSettings):
    """Euclid's metric, in which nothing bends."""

    def build(
        self, points: Float[np.ndarray, "n dim"], random: np.random.Generator
    ) -> DiagonalMetric:
        return FlatMetric()


class FlatMetric(DiagonalMetric):
    """Ones."""

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return jnp.ones_like(x)


class Land(MetricSettings):
    """The inverse of the local variance of the data: `G_a(x) = 1 / (h_a(x) / h + floor)`.

    `h_a(x) = sum_i (x_ia - x_a)^2 exp(-|x_i - x|^2 / 2 bandwidth^2)`, over at most 2000 points, and
    `h` is its mean over them and over the coordinates: the paper's metric in units in which it does
    not depend on the number of points. Coordinates must have like scales.

    **Arguments:** `bandwidth`: `> 0`, a length; None for the median distance within which a point
    has one in fifty of the others, so that it grows with the dimension. `floor`: `> 0`; empty space
    is `1 / floor` times as far.

    Arvanitidis, Hansen and Hauberg (2016), arXiv 1606.02518; Kapusniak et al. (2024), arXiv
    2405.14780.
    """

    bandwidth: float | None = None
    floor: float = 1e-3

    def __check_init__(self):
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be positive; got {self.bandwidth}.")
        if not self.floor > 0:
            raise ValueError(f"floor must be positive; got {self.floor}.")

    def build(
        self, points: Float[np.ndarray, "n dim"], random: np.random.Generator
    ) -> DiagonalMetric:
        dtype = points.dtype
        points = _some(points, random)
        centre = points.mean(axis=0)
        points = points - centre
        bandwidth = self.bandwidth or _reach(points)
        plain = LandMetric(
            as_dtype(points, dtype),
            as_dtype(centre, dtype),
            as_dtype(bandwidth, dtype),
            as_dtype(self.floor, dtype),
            as_dtype(1.0, dtype),
        )
        mean = float(np.mean(_local_variance(plain, plain.points + plain.centre[None])))
        return dataclasses.replace(plain, unit=as_dtype(mean, dtype))


class LandMetric(DiagonalMetric):
    """The metric of `Land`."""

    points: Float[Array, "m dim"]
    centre: Float[Array, " dim"]
    bandwidth: Float[Array, ""]
    floor: Float[Array, ""]
    unit: Float[Array, ""]

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return 1 / (self.local_variance(x) / self.unit + self.floor)

    def local_variance(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`h`, by products of matrices."""
        x = x - self.centre[None]
        near = product(x, self.points.T)
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(self.points**2, axis=1)[None] - 2 * near
        weights = jnp.exp(-jnp.maximum(squares, 0) / (2 * self.bandwidth**2))
        first, second = product(weights, self.points), product(weights, self.points**2)
        total = jnp.sum(weights, axis=1)[:, None]
        return jnp.maximum(second - 2 * x * first + x**2 * total, 0)


@eqx.filter_jit
def _local_variance(metric: LandMetric, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
    return metric.local_variance(x)


class RadialBasis(MetricSettings):
    """The inverse of a sum of Gaussian bumps that is near 1 on the data: `G = 1 / (h + floor)`.

    `h(x) = sum_k w_k exp(-|x - c_k|^2 / (4 (kappa s_k)^2))`, `c_k` and `s_k` centres and widths of
    clusters of the data, `w >= 0` by least squares of `h - 1` on them.

    **Arguments:** `num_centres`; `kappa`: `> 0`, how far a bump reaches; `floor`: `> 0`.

    Kapusniak et al. (2024), arXiv 2405.14780.
    """

    num_centres: int = eqx.field(static=True, default=100)
    kappa: float = 2.0
    floor: float = 1e-3

    def __check_init__(self):
        if self.num_centres < 1 or not (self.kappa > 0 and self.floor > 0):
            raise ValueError(
                "num_centres must be at least 1, kappa and floor positive; got "
                f"{self.num_centres}, {self.kappa} and {self.floor}."
            )

    def build(
        self, points: Float[np.ndarray, "n dim"], random: np.random.Generator
    ) -> DiagonalMetric:
        from scipy.cluster.vq import kmeans2
        from scipy.optimize import nnls

        dtype = points.dtype
        points = _some(points, random)
        count = min(self.num_centres, len(points))
        centres, labels = kmeans2(
            points, points[random.choice(len(points), count, replace=False)], minit="matrix"
        )
        away = points - centres[labels]
        sizes = np.bincount(labels, minlength=count)
        squares = np.bincount(labels, np.mean(away**2, axis=1), minlength=count)
        widths = np.sqrt(squares / np.maximum(sizes, 1))
        # A cluster of one point reaches as far as the mean of them.
        widths = np.where(widths > 0, widths, widths.mean() or 1.0)
        rates = 1 / (4 * (self.kappa * widths) ** 2)
        between = np.sum((points[:, None] - centres[None]) ** 2, axis=2)
        weights, _ = nnls(np.exp(-rates[None] * between), np.ones(len(points)))
        parts = (centres, rates, weights, self.floor)
        return RadialBasisMetric(*(as_dtype(part, dtype) for part in parts))


class RadialBasisMetric(DiagonalMetric):
    """The metric of `RadialBasis`, the same in all coordinates."""

    centres: Float[Array, "k dim"]
    rates: Float[Array, " k"]
    weights: Float[Array, " k"]
    floor: Float[Array, ""]

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        squares = jnp.sum((x[:, None] - self.centres[None]) ** 2, axis=2)
        bumps = product(jnp.exp(-self.rates[None] * squares), self.weights[:, None])
        return jnp.broadcast_to(1 / (bumps + self.floor), x.shape)


def _reach(points: Float[np.ndarray, "n dim"]) -> float:
    """The median distance to the neighbour beyond which 49 in 50 points lie."""
    some = points[:: max(1, len(points) // 500)]
    squares = np.sum(some**2, axis=1)[:, None] + np.sum(points**2, axis=1)[None]
    squares = np.maximum(squares - 2 * some @ points.T, 0)
    rank = min(max(len(points) // 50, 1), len(points) - 1)
    reach = float(np.sqrt(np.median(np.partition(squares, rank, axis=1)[:, rank])))
    return reach if reach > 0 else 1.0


def _some(points: Any, random: np.random.Generator) -> Float[np.ndarray, "n dim"]:
    """At most `NUM_POINTS` of them, in float64."""
    points = np.asarray(points, np.float64)
    if len(points) <= NUM_POINTS:
        return points
    return points[random.choice(len(points), NUM_POINTS, replace=False)]

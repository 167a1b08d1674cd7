"""The Knothe-Rosenblatt map: one coordinate after another, given those before."""

import time
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.products import product
from driftbridge.transport.base import Fit, HasDensity, Method, as_dtype
from driftbridge.transport.measures import moments, part_of
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import Sample
from driftbridge.transport.rearrangement import quantiles

# Levels of a coordinate between which a conditional distribution is linear.
LEVELS = 64
# Share of a uniform law in every conditional one: no gap in the data stops the map increasing.
UNIFORM = 1e-3
# The map goes on linearly beyond levels that hold one effective point, within these bounds.
LEAST_TAIL, MOST_TAIL = 0.005, 0.15
# Bandwidths among which those of the largest likelihood are taken, and points they are taken on.
GRID_H = (0.1, 0.18, 0.32, 0.56, 1.0, 1.8, 3.2, 1e3)
GRID_R = (0.05, 0.1, 0.18, 0.32, 0.56)
CHOOSING = 768
# Width of the uniform law that bounds a density from below in a likelihood.
SPAN = 8.0
# A standard deviation given the coordinates before, over that without them, that counts as none.
DEPENDENT = 1e-4


class Side(eqx.Module):
    """One of the two laws in coordinates in which it has mean 0 and covariance 1.

    - `mean`, `factor`: `x = mean + factor z`, `factor` lower triangular.
    - `points`: `z_i`, coordinates first.
    - `log_weights`: minus infinity for points that fill a size up.
    - `levels`: of each coordinate, increasing.
    """

    mean: Float[Array, " dim"]
    factor: Float[Array, "dim dim"]
    points: Float[Array, "dim n"]
    log_weights: Float[Array, " n"]
    levels: Float[Array, "dim levels"]

    def whitened(self, x: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
        return solve_triangular(self.factor, (x - self.mean[None]).T, lower=True).T

    def coloured(self, z: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
        return self.mean[None] + product(z, self.factor.T)


class Conditional(NamedTuple):
    """Distribution functions of one coordinate, a row each, linear between levels.

    `values` rise from 0 to 1 over `levels`.
    """

    levels: Float[Array, " levels"]
    values: Float[Array, "rows levels"]

    def distribution(self, t: Float[Array, " rows"]) -> tuple[Array, Array]:
        """The distribution function at `t`, and its slope."""
        low = jnp.sum(self.levels[None] <= t[:, None], axis=1) - 1
        return self._linear(low, lambda at, below, slope: below + slope * (t - self.levels[at]))

    def quantile(self, u: Float[Array, " rows"]) -> tuple[Array, Array]:
        """The quantile at `u`, and the slope of the distribution function there."""
        low = jnp.sum(self.values <= u[:, None], axis=1) - 1
        return self._linear(low, lambda at, below, slope: self.levels[at] + (u - below) / slope)

    def _linear(self, low: Int[Array, " rows"], value):
        at = jnp.clip(low, 0, self.levels.shape[0] - 2)
        below = jnp.take_along_axis(self.values, at[:, None], axis=1)[:, 0]
        above = jnp.take_along_axis(self.values, at[:, None] + 1, axis=1)[:, 0]
        slope = (above - below) / (self.levels[at + 1] - self.levels[at])
        return value(at, below, slope), slope


class TriangularMap(HasDensity):
    """`T_k(x) = Q(F(x_k | x_1 ... x_{k-1}) | T_1 ... T_{k-1})`: a lower triangular Jacobian.

    - `source`, `target`: the two laws.
    - `h`, `r`: bandwidths of the coordinates before each one, and of itself.
    """

    source: Side
    target: Side
    h: Float[Array, " dim"]
    r: Float[Array, " dim"]

    @property
    def dim(self) -> int:
        return self.source.mean.shape[0]

    @property
    def dtype(self) -> Any:
        return self.source.points.dtype

    @property
    def row_floats(self) -> int:
        return 3 * (self.source.points.shape[1] + self.target.points.shape[1]) + 8 * LEVELS

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        z = self.source.whitened(x)
        return self.target.coloured(_carried(self.source, self.target, self.h, self.r, z)[0])

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        w = self.target.whitened(y)
        return self.source.coloured(_carried(self.target, self.source, self.h, self.r, w)[0])

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        z = self.source.whitened(x)
        inner = _carried(self.source, self.target, self.h, self.r, z)[1]
        outer = [jnp.sum(jnp.log(jnp.diag(side.factor))) for side in (self.target, self.source)]
        return inner + outer[0] - outer[1]


class Triangular(Method):
    """The Knothe-Rosenblatt map, by conditional quantiles that are weighted by a kernel.

    Both laws are first carried to mean 0 and covariance 1 by triangular affine maps. There, for
    each coordinate in turn,

    `F(t | z_1 ... z_{k-1}) = sum_i w_i Phi((t - z_ik) / r)`,
    `w_i ~ a_i (1 + D_i / (2 p h^2))^{-p}`, `p = (k + 3) / 2`,

    with `D_i` the squared distance over the coordinates before, and `T_k` carries the quantile of
    the source to that of the target, linearly between 64 levels and beyond the outer points. The
    bandwidths `h` and `r`, common to both laws, have the largest likelihood of each point given the
    others. Where the coordinates before do not matter `h` is infinite, and the map is the affine
    triangular one followed by a rearrangement of the coordinate; else they fall as
    `n^{-1/(k + 4)}`, and conditional laws converge where densities are continuous, at a rate that
    falls with `k`. Where data end, conditional laws are those of the nearest points.

    It is not the optimal map, and depends on the order of the coordinates; its inverse and
    log-determinant are exact. Applying it takes `n` operations for each row and coordinate.

    **Arguments:**

    - `bandwidth`: `> 0`, factor on the bandwidths chosen.
    - `max_points`: points kept of each side, a random part of more.

    Rosenblatt (1952); Knothe (1957); for the bandwidths Hall, Racine and Li (2004).
    """

    bandwidth: float = 1.0
    max_points: int = 4096
    name: ClassVar[str] = "triangular"

    def __check_init__(self):
        if not 0 < self.bandwidth < np.inf:
            raise ValueError(f"bandwidth must be positive and finite; got {self.bandwidth}.")
        if self.max_points < 2:
            raise ValueError(f"max_points must be at least 2; got {self.max_points}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> TriangularMap:
        start = time.perf_counter()
        rng, dtype = host_generator(key), source.points.dtype
        kept = [_some(sample, self.max_points, rng) for sample in (source, target)]
        whitened = [
            _whitened(full, sample, name)
            for full, sample, name in zip((source, target), kept, ("source", "target"), strict=True)
        ]
        parts = [_some(Sample(z, w), CHOOSING, rng) for _, _, z, w in whitened]
        h, r = _bandwidths(parts, dtype)
        effective, chosen_on = (
            min(1 / np.sum(sample.weights**2) for sample in samples) for samples in (kept, parts)
        )
        shrink = (effective / chosen_on) ** (-1 / (np.arange(len(h)) + 5.0))
        h, r = (self.bandwidth * shrink * values for values in (h, r))
        first, second = (_side(*part, r, dtype) for part in whitened)
        numbers = (("h", float(h[-1])), ("r", float(r[-1])))
        return TriangularMap(
            Fit(self.name, numbers=numbers, seconds=time.perf_counter() - start),
            first,
            second,
            as_dtype(h, dtype),
            as_dtype(r, dtype),
        )


def _some(sample: Sample, most: int, rng: np.random.Generator) -> Sample:
    if len(sample.points) <= most:
        return sample
    return part_of(sample, rng.choice(len(sample.points), most, replace=False))


def _whitened(full: Sample, sample: Sample, name: str):
    """Mean, factor, points `(n, dim)` of mean 0 and covariance 1, and their weights."""
    mean, covariance = moments(full)
    variance = np.where(np.diag(covariance) > 0, np.diag(covariance), 1)
    scale = np.sqrt(variance)
    factor = np.linalg.cholesky(covariance + np.diag(DEPENDENT**2 / 100 * variance))
    if not np.all(np.diag(factor) > DEPENDENT * scale):
        column = int(np.argmin(np.diag(factor) / scale))
        raise ValueError(
            f"column {column} of the {name} is constant or a linear function of those before it: "
            "it has no conditional quantiles. Leave it out."
        )
    z = np.linalg.solve(factor, (np.asarray(sample.points, np.float64) - mean).T).T
    return mean, factor, z, sample.weights


def _side(mean, factor, z, weights, r, dtype) -> Side:
    levels = np.stack([_levels(column, weights, w) for column, w in zip(z.T, r, strict=True)])
    size = bucket(len(z))
    return Side(
        as_dtype(mean, dtype),
        as_dtype(factor, dtype),
        as_dtype(padded(z, size).T, dtype),
        as_dtype(_log(padded(weights, size)), dtype),
        as_dtype(levels, dtype),
    )


def _log(weights):
    return np.log(weights, out=np.full(weights.shape, -np.inf), where=weights > 0)


def _bandwidths(parts: list[Sample], dtype) -> tuple[np.ndarray, np.ndarray]:
    """`h` and `r` of each coordinate, of the largest likelihood over a grid."""
    total = np.zeros((parts[0].points.shape[1], len(GRID_H), len(GRID_R)))
    for part in parts:
        size = bucket(len(part.points))
        points = as_dtype(padded(part.points, size).T, dtype)
        log_weights = as_dtype(_log(padded(part.weights, size)), dtype)
        total += np.asarray(_likelihoods(points, log_weights), np.float64)
    best = np.array([np.unravel_index(np.argmax(table), table.shape) for table in total])
    return np.array(GRID_H)[best[:, 0]], np.array(GRID_R)[best[:, 1]]


@jax.jit
def _likelihoods(points: Float[Array, "dim n"], log_weights: Float[Array, " n"]):
    """Mean log density of each point's coordinate given those before and the other points.

    **Returns:** `(dim, len(GRID_H), len(GRID_R))`.
    """
    n = points.shape[1]
    weights = jnp.exp(log_weights)
    others = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, log_weights[None])

    def coordinate(distances, inputs):
        number, z = inputs
        gaps = (z[:, None] - z[None]) ** 2

        def of_h(h):
            w = jax.nn.softmax(others + _log_kernel(distances, number, h), axis=1)

            def of_r(r):
                kernel = jnp.exp(-gaps / (2 * r**2)) / (r * np.sqrt(2 * np.pi))
                density = jnp.sum(w * kernel, axis=1)
                return jnp.sum(weights * jnp.log((1 - UNIFORM) * density + UNIFORM / SPAN))

            return jax.lax.map(of_r, jnp.asarray(GRID_R, points.dtype))

        table = jax.lax.map(of_h, jnp.asarray(GRID_H, points.dtype))
        return distances + gaps, table

    start = jnp.zeros((n, n), points.dtype)
    numbers = jnp.arange(points.shape[0], dtype=points.dtype)
    return jax.lax.scan(coordinate, start, (numbers, points))[1]


def _log_kernel(distances, number, h):
    """`-p log(1 + D / (2 p h^2))`, `p = (number + 4) / 2`, of a density in `number` coordinates.

    Its tails are polynomial: a row far from all points weights them nearly alike, where a Gaussian
    kernel would leave one.
    """
    p = (number + 4) / 2
    return -p * jnp.log1p(distances / (2 * p * h**2))


def _levels(values, weights, bandwidth: float) -> Float[np.ndarray, " levels"]:
    """Levels at normal quantiles of the data, as dense in the tails as a normal law needs."""
    from scipy.special import ndtr

    inner = quantiles(values, weights, ndtr(np.linspace(-3.2, 3.2, LEVELS - 2)))
    levels = np.concatenate([[values.min() - 3 * bandwidth], inner, [values.max() + 3 * bandwidth]])
    # Repeated values repeat levels: a little of an even spacing keeps them apart.
    even = np.linspace(levels[0], levels[-1], LEVELS)
    return 0.99 * levels + 0.01 * even


def _carried(source: Side, target: Side, h, r, z):
    """Coordinates of the images, and the sum of the logarithms of the slopes."""
    apart = jnp.zeros((z.shape[0], source.points.shape[1]), z.dtype)
    others = jnp.zeros((z.shape[0], target.points.shape[1]), z.dtype)

    def coordinate(distances, inputs):
        t, x, y, x_levels, y_levels, number, *widths = inputs
        first, tail = _conditional(
            x,
            x_levels,
            source.log_weights[None] + _log_kernel(distances[0], number, widths[0]),
            widths[1],
        )
        second, other_tail = _conditional(
            y,
            y_levels,
            target.log_weights[None] + _log_kernel(distances[1], number, widths[0]),
            widths[1],
        )
        s, log_slope = _rearranged(first, second, jnp.maximum(tail, other_tail), t)
        distances = (
            distances[0] + (t[:, None] - x[None]) ** 2,
            distances[1] + (s[:, None] - y[None]) ** 2,
        )
        return distances, (s, log_slope)

    numbers = jnp.arange(z.shape[1], dtype=z.dtype)
    sides = (source.points, target.points, source.levels, target.levels)
    _, (images, log_slopes) = jax.lax.scan(
        coordinate, (apart, others), (z.T, *sides, numbers, h, r)
    )
    return images.T, jnp.sum(log_slopes, axis=0)


def _conditional(values, levels, log_weights, r):
    """The conditional law of a coordinate in each row, and the share of one effective point."""
    weights = jax.nn.softmax(log_weights, axis=1)
    steps = norm.cdf((levels[None] - values[:, None]) / r)
    raw = product(weights, steps)
    raw = (raw - raw[:, :1]) / (raw[:, -1:] - raw[:, :1])
    even = (levels - levels[0]) / (levels[-1] - levels[0])
    tail = jnp.clip(jnp.sum(weights**2, axis=1), LEAST_TAIL, MOST_TAIL)
    return Conditional(levels, (1 - UNIFORM) * raw + UNIFORM * even[None]), tail


def _rearranged(source: Conditional, target: Conditional, tail, t):
    """Image and log slope of each `t`: quantile to quantile, linear beyond the tail's share."""
    low, high = source.quantile(tail)[0], source.quantile(1 - tail)[0]
    scale = (target.quantile(1 - tail)[0] - target.quantile(tail)[0]) / (high - low)
    inside = jnp.clip(t, low, high)
    level, density = source.distribution(inside)
    s, other = target.quantile(level)
    slope = jnp.where(inside == t, density / other, scale)
    return s + scale * (t - inside), jnp.log(slope)

"""A process through data sets at several times, from pairs of neighbouring ones."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.couplings import Coupling, Paired
from driftbridge.transport.exact import optimal_coupling
from driftbridge.transport.pairing import coupled
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times

# Up to this many points on each side neighbours are coupled as a whole.
WHOLE = 2000


class Moving(NamedTuple):
    """Points of a process: when, where, and how fast."""

    t: Float[Array, " n"]
    place: Float[Array, "n dim"]
    velocity: Float[Array, "n dim"]


class Curve(eqx.Module):
    """A curve through points at given times: a cubic polynomial between two of them.

    - `knots`: `(K,)`, increasing.
    - `coefficients`: of the powers 3 to 0 of the time since the knot before, `(4, K - 1, dim)`.
    """

    knots: Float[Array, " knots"]
    coefficients: Float[Array, "4 intervals dim"]

    def __call__(self, t: Times | float) -> Float[Array, "n dim"]:
        """Places at times: `(1, dim)` for one time."""
        since, (a, b, c, d) = self._at(t)
        return ((a * since + b) * since + c) * since + d

    def velocity(self, t: Times | float) -> Float[Array, "n dim"]:
        since, (a, b, c, _) = self._at(t)
        return (3 * a * since + 2 * b) * since + c

    def _at(self, t: Times | float):
        t = jnp.atleast_1d(jnp.asarray(t, self.knots.dtype))
        last = len(self.knots) - 2
        interval = jnp.clip(jnp.searchsorted(self.knots, t, side="right") - 1, 0, last)
        return (t - self.knots[interval])[:, None], self.coefficients[:, interval]


def spline(times: Float[np.ndarray, " times"], means: Float[np.ndarray, "times dim"]) -> Curve:
    """The natural cubic spline: of all curves through the points that of the least curvature."""
    from scipy.interpolate import CubicSpline

    dtype = means.dtype
    found = CubicSpline(times, means, bc_type="natural")
    return Curve(as_dtype(times, dtype), as_dtype(found.c, dtype))


def polygon(times: Float[np.ndarray, " times"], means: Float[np.ndarray, "times dim"]) -> Curve:
    """Straight lines between the points."""
    slopes = np.diff(means, axis=0) / np.diff(times)[:, None]
    coefficients = np.stack([0 * slopes, 0 * slopes, slopes, means[:-1]])
    return Curve(as_dtype(times, means.dtype), as_dtype(coefficients, means.dtype))


class Process(eqx.Module):
    """`x_t = (1 - s) x + s y + curve(t) - lines(t)`, `(x, y)` a pair of neighbouring data sets.

    `s` is the share of the time between them that has passed. The correction vanishes at the
    data's times, so that the process has their laws there; between them its mean is `curve`, and
    its deviations from the mean move on straight lines.
    """

    couplings: tuple[Coupling, ...]
    curve: Curve
    lines: Curve

    def draw(self, key: Key[Array, ""], n: int) -> Moving:
        """`n` moments, equally many in every interval, each with a pair of its own."""
        parts, count = [], len(self.couplings)
        for k in range(count):
            size = (n + k) // count
            if size:
                s = even_times(fold_in(fold_in(key, k), 0), size, self.curve.knots.dtype)
                parts.append(self._between(k, s, fold_in(fold_in(key, k), 1), size))
        return Moving(*(jnp.concatenate(side) for side in zip(*parts, strict=True)))

    def marginal(self, key: Key[Array, ""], interval: int, s: Array, n: int) -> Moving:
        """`n` points of the law at the share `s` of an interval."""
        return self._between(interval, jnp.broadcast_to(s, (n,)), key, n)

    def _between(self, interval: int, s: Array, key: Key[Array, ""], n: int) -> Moving:
        x, y = self.couplings[interval].pairs(key, n)
        start, end = self.curve.knots[interval], self.curve.knots[interval + 1]
        t = start + s * (end - start)
        place = x + s[:, None] * (y - x) + self.curve(t) - self.lines(t)
        speed = (y - x) / (end - start) + self.curve.velocity(t) - self.lines.velocity(t)
        return Moving(t, place, speed)


def couple(source: Sample, target: Sample, key: Key[Array, ""]) -> Coupling:
    """Neighbours coupled optimally: as a whole where they are small, else in batches of 256."""
    if max(len(source.points), len(target.points)) <= WHOLE:
        found = optimal_coupling(
            source.points, target.points, a=source.weights, b=target.weights, certificate=False
        )
        x, y = source.points[found.rows], target.points[found.columns]
        return Paired(x, y, found.mass / found.mass.sum())
    return coupled(source, target, None, key)

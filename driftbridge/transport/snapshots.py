"""A process through data sets at several times, from pairs of neighbouring ones."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.bent_path import BentPath
from driftbridge.transport.couplings import Coupling, Paired, Pairs
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
    its deviations from the mean move on straight lines, or on paths that `bend`.
    """

    couplings: tuple[Coupling, ...]
    curve: Curve
    lines: Curve
    bend: BentPath | None = None

    def draw(self, key: Key[Array, ""], n: int) -> Moving:
        """`n` moments, equally many in every interval, each with a pair of its own."""
        parts, count = [], len(self.couplings)
        for k in range(count):
            size = (n + k) // count
            if size:
                s = even_times(fold_in(fold_in(key, k), 0), size, self.curve.knots.dtype)
                pairs = self.couplings[k].pairs(fold_in(fold_in(key, k), 1), size)
                parts.append(self._between(jnp.asarray(k), s, *pairs))
        return Moving(*(jnp.concatenate(side) for side in zip(*parts, strict=True)))

    def marginal(self, key: Key[Array, ""], interval: int, s: Array, n: int) -> Moving:
        """`n` points of the law at the share `s` of an interval."""
        pairs = self.couplings[interval].pairs(key, n)
        return self._between(jnp.asarray(interval), jnp.broadcast_to(s, (n,)), *pairs)

    def at(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Moving:
        """One point of the law at each of some times."""
        n, knots = len(t), self.curve.knots
        interval = jnp.clip(jnp.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 2)
        pairs = [c.pairs(fold_in(key, k), n) for k, c in enumerate(self.couplings)]
        x, y = (jnp.stack(side)[interval, jnp.arange(n)] for side in zip(*pairs, strict=True))
        share = (t - knots[interval]) / (knots[interval + 1] - knots[interval])
        return self._between(interval, share, x, y)

    def _between(self, interval: Array, s: Array, x: Array, y: Array) -> Moving:
        start, end = self.curve.knots[interval], self.curve.knots[interval + 1]
        t = start + s * (end - start)
        if self.bend is None:
            place, moved = x + s[:, None] * (y - x), y - x
        else:
            place, moved = self.bend(s, x, y)
        place = place + self.curve(t) - self.lines(t)
        speed = moved / jnp.reshape(end - start, (-1, 1))
        return Moving(t, place, speed + self.curve.velocity(t) - self.lines.velocity(t))


class Neighbours(Coupling):
    """Pairs of all intervals in turn."""

    couplings: tuple[Coupling, ...]

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        count = len(self.couplings)
        size = -(-n // count)
        drawn = [c.pairs(fold_in(key, k), size) for k, c in enumerate(self.couplings)]
        # In turn, not one interval after another: times of a batch come in order.
        x, y = (
            jnp.stack(side, axis=1).reshape(size * count, -1)[:n]
            for side in zip(*drawn, strict=True)
        )
        return x, y


def couple(source: Sample, target: Sample, key: Key[Array, ""]) -> Coupling:
    """Neighbours coupled optimally: as a whole where they are small, else in batches of 256."""
    if max(len(source.points), len(target.points)) <= WHOLE:
        found = optimal_coupling(
            source.points, target.points, a=source.weights, b=target.weights, certificate=False
        )
        x, y = source.points[found.rows], target.points[found.columns]
        return Paired(x, y, found.mass / found.mass.sum())
    return coupled(source, target, None, key)

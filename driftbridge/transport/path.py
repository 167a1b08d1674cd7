"""`Path`: a process through data sets at several times, as a result."""

import itertools
import os
from pathlib import Path as File
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.transport.base import Fit
from driftbridge.transport.integration import RungeKutta4, Scheme, integrate
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import as_rows, like_rows
from driftbridge.transport.snapshots import Process


class Path(eqx.Module):
    """A process whose law at given times is that of given data.

    `P(x, t0, t1)` carries points along the flow of `P.velocity`; `P.marginal(key, t, n)` draws from
    the law at a time. Times are those of the data.

    - `fit`: how it was fitted, as of a map.
    - `times`: of the data, increasing.
    - `process`: pairs of neighbouring data and how points move between them.
    - `field`: the velocity, a module of `(t, x)`.
    - `num_steps`, `scheme`: of the numerical solution, steps in each interval between data.
    """

    fit: Fit = eqx.field(static=True)
    process: Process
    field: Any
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    @property
    def times(self) -> Float[np.ndarray, " times"]:
        return np.asarray(self.process.curve.knots, np.float64)

    @property
    def dim(self) -> int:
        return self.process.curve.coefficients.shape[2]

    @property
    def dtype(self) -> Any:
        return self.process.curve.knots.dtype

    def __call__(self, x: Any, start: float, end: float) -> Any:
        """Where the flow carries points from time `start` to time `end`, backwards if it is less.

        **Arguments:** `x`: points `(n, dim)` or a data frame; `start`, `end`: between the first and
        the last time of the data.

        **Raises:** `ValueError` for other times or points.
        """
        return self._rows(x, (self._time(start), self._time(end)))[-1]

    def trajectory(self, x: Any, times: Any) -> Float[Array, "times n dim"]:
        """Where points that are at `x` at the first of some times are at each of them.

        **Arguments:** `x`: points `(n, dim)`; `times`: at least one, in any order.
        """
        at = tuple(self._time(t) for t in np.atleast_1d(times))
        return jnp.stack([jnp.asarray(places) for places in self._rows(x, at)])

    def velocity(self, t: Any, x: Any) -> Any:
        """The velocity at a time, or at one for each point.

        **Arguments:** `t`: `()` or `(n,)`; `x`: points `(n, dim)`.
        """
        times = np.vectorize(self._time)(t)
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        found = self.field(jnp.asarray(times, self.dtype), jnp.asarray(rows, self.dtype))
        return like_rows(found, x, self.fit.columns)

    def marginal(self, key: int | Key[Array, ""], t: float, n: int) -> Float[Array, "n dim"]:
        """`n` draws from the law at a time: points between pairs of the neighbouring data.

        **Arguments:** `key`: seed or typed key; `t`: a time; `n`: how many.
        """
        t = self._time(t)
        knots = self.times
        interval = int(np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 2))
        share = (t - knots[interval]) / (knots[interval + 1] - knots[interval])
        return _marginal(
            self.process, as_key(key), interval, jnp.asarray(share, self.dtype), n
        ).place

    def save(self, path: str | os.PathLike) -> File:
        """Write the path to one file, as of a map; `driftbridge.load` reads it."""
        from driftbridge.transport.saved import save

        return save(self, path)

    def _time(self, t: Any) -> float:
        first, last = self.times[0], self.times[-1]
        # Times of float32 data may be off by their rounding.
        slack = 1e-6 * (last - first)
        if not first - slack <= float(t) <= last + slack:
            raise ValueError(f"times must lie in [{first:g}, {last:g}], the data's; got {t}.")
        return float(t)

    def _rows(self, x: Any, times: tuple[float, ...]) -> list[Any]:
        """Points at each of some times, the first of which is where they are given."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        batch = np.atleast_2d(np.asarray(rows, self.dtype))
        spacing, n = np.min(np.diff(self.times)), len(batch)
        at, places = jax.device_put(padded(batch, bucket(max(n, 1)))), [rows]
        for start, end in itertools.pairwise(times):
            steps = max(1, int(np.ceil(self.num_steps * abs(end - start) / spacing - 1e-9)))
            between = jax.device_put(np.asarray([start, end], self.dtype))
            at = _carried(self.field, at, between, steps, self.scheme)
            places.append(np.asarray(at)[:n].reshape(rows.shape))
        return [like_rows(p, x, self.fit.columns) for p in places]


@eqx.filter_jit
def _carried(field: Any, x: Array, between: Array, num_steps: int, scheme: Scheme) -> Array:
    return integrate(field, x, between[0], between[1], num_steps, scheme)


@eqx.filter_jit
def _marginal(process: Process, key: Key[Array, ""], interval: int, share: Array, n: int):
    return process.marginal(key, interval, share, n)

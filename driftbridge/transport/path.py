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
from driftbridge.transport.points import as_rows, like_rows, traced
from driftbridge.transport.snapshots import Process


class Path(eqx.Module):
    """A process whose law at given times is that of given data.

    `P(x, t0, t1)` carries points along the flow of `P.velocity`; `P.marginal(key, t, n)` draws from
    the law at a time. Times are those of the data.

    - `fit`: how it was fitted, as of a map.
    - `times`: of the data, increasing.
    - `origin`: the first of them, from which `process` and `field` count.
    - `process`: pairs of neighbouring data and how points move between them.
    - `field`: the velocity, a module of `(t, x)`.
    - `num_steps`, `scheme`: of the numerical solution, steps in each interval between data.
    """

    fit: Fit = eqx.field(static=True)
    process: Process
    field: Any
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())
    origin: float = eqx.field(static=True, default=0.0)

    @property
    def times(self) -> Float[np.ndarray, " times"]:
        return self._knots + self.origin

    @property
    def _knots(self) -> Float[np.ndarray, " times"]:
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
        return self._rows(x, (start, end))[-1]

    def trajectory(self, x: Any, times: Any) -> Float[Array, "times n dim"]:
        """Where points that are at `x` at the first of some times are at each of them.

        **Arguments:** `x`: points `(n, dim)`; `times`: at least one, in any order.
        """
        places = self._rows(x, np.atleast_1d(times))
        return jnp.stack([jnp.asarray(place) for place in places])

    def velocity(self, t: Any, x: Any) -> Any:
        """The velocity at a time, or at one for each point.

        **Arguments:** `t`: `()` or `(n,)`; `x`: points `(n, dim)`, or one point `(dim,)`.

        **Raises:** `ValueError` for times before the first or after the last of the data, and for
        another number of them than of points.
        """
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        batch = rows if rows.ndim > 1 else rows[None]
        if np.shape(t) not in ((), (len(batch),)):
            raise ValueError(f"t must have shape () or ({len(batch)},); got {np.shape(t)}.")
        times = t - self.origin if traced(t) else self._since(t)
        found = self.field(jnp.asarray(times, self.dtype), jnp.asarray(batch, self.dtype))
        return like_rows(found if rows.ndim > 1 else found[0], x, self.fit.columns)

    def marginal(self, key: int | Key[Array, ""], t: float, n: int) -> Float[Array, "n dim"]:
        """`n` draws from the law at a time: points between pairs of the neighbouring data.

        **Arguments:** `key`: seed or typed key; `t`: a time; `n`: how many.
        """
        t, knots = float(self._since(t)), self._knots
        interval = int(np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 2))
        share = (t - knots[interval]) / (knots[interval + 1] - knots[interval])
        return _marginal(
            self.process, as_key(key), interval, jnp.asarray(share, self.dtype), n
        ).place

    def save(self, path: str | os.PathLike) -> File:
        """Write the path to one file, as of a map; `driftbridge.load` reads it."""
        from driftbridge.transport.saved import save

        return save(self, path)

    def _since(self, t: Any) -> np.ndarray:
        """Times since the first of the data's."""
        since, last = np.asarray(np.subtract(t, self.origin)), self._knots[-1]
        # Times that were computed may be off by their rounding.
        outside = ~((since >= -1e-6 * last) & (since <= (1 + 1e-6) * last))
        if outside.any():
            raise ValueError(
                f"times must lie in [{self.times[0]:.9g}, {self.times[-1]:.9g}], the data's; got "
                f"{np.atleast_1d(t)[np.atleast_1d(outside)][0]}."
            )
        return since

    def _rows(self, x: Any, times: Any) -> list[Any]:
        """Points at each of some times, the first of which is where they are given."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        spacing, since = np.min(np.diff(self._knots)), self._since(times)
        batch = jnp.asarray(rows, self.dtype).reshape(-1, self.dim) if traced(rows) else None
        if batch is None:  # of one of a few sizes, so that other points compile nothing
            host = np.atleast_2d(np.asarray(rows, self.dtype))
            batch = jax.device_put(padded(host, bucket(max(len(host), 1))))
        places, n = [rows], rows.shape[0] if rows.ndim > 1 else 1
        for start, end in itertools.pairwise(since):
            steps = max(1, int(np.ceil(self.num_steps * abs(end - start) / spacing - 1e-9)))
            between = jax.device_put(np.asarray([start, end], self.dtype))
            batch = _carried(self.field, batch, between, steps, self.scheme)
            found = batch if traced(batch) else np.asarray(batch)
            places.append(found[:n].reshape(rows.shape))
        return [like_rows(p, x, self.fit.columns) for p in places]


@eqx.filter_jit
def _carried(field: Any, x: Array, between: Array, num_steps: int, scheme: Scheme) -> Array:
    return integrate(field, x, between[0], between[1], num_steps, scheme)


@eqx.filter_jit
def _marginal(process: Process, key: Key[Array, ""], interval: int, share: Array, n: int):
    return process.marginal(key, interval, share, n)

"""Paths between pairs of points that bend to where data are near in a metric."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.base import as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.data_metric import DiagonalMetric, MetricSettings
from driftbridge.transport.networks import MLP, Architecture, network_for
from driftbridge.transport.resampling import even_times, normals

# Of the paths, unless told.
TRAINING = Training(num_steps=2000, learning_rate=1e-3)


class Timeless(Architecture):
    """An architecture whose network does not see the time: paths bend by one parabola each.

    With one that does, a path of least energy also waits where data are dense.
    """

    architecture: Architecture = MLP()

    def build(self, key: Key[Array, ""], num_in: int, num_out: int, dtype: Any) -> "AtOneTime":
        return AtOneTime(self.architecture.build(key, num_in, num_out, dtype))


class AtOneTime(eqx.Module):
    """A network at time 0, whatever the time."""

    network: Any

    def __call__(self, t, x, condition=None):
        return self.network(jnp.zeros_like(t), x, condition)


class BentPath(eqx.Module):
    """`x_t = (1 - t) x0 + t x1 + t (1 - t) spread phi(t, x0, x1)`; a network of zero is straight.

    The network takes both ends, centred and in units of the spread, as one point.
    """

    network: Any
    centre: Float[Array, " dim"]
    spread: Float[Array, ""]

    def __call__(
        self, t: Float[Array, " n"], x: Float[Array, "n dim"], y: Float[Array, "n dim"]
    ) -> tuple[Float[Array, "n dim"], Float[Array, "n dim"]]:
        """Places and velocities on the paths from `x` to `y`."""
        ends = jnp.concatenate([x - self.centre[None], y - self.centre[None]], axis=1) / self.spread

        def place(t):
            bend = self.spread * self.network(t, ends, None)
            return x + t[:, None] * (y - x) + (t * (1 - t))[:, None] * bend

        return jax.jvp(place, (t,), (jnp.ones_like(t),))


class MetricEnergy(Objective):
    """`E sum_a G_a(x_t + noise z) (dx_t / dt)_a^2` over pairs, times and standard normal `z`.

    The model is the network of a `BentPath`.

    Kapusniak et al. (2024), arXiv 2405.14780.
    """

    coupling: Coupling
    metric: DiagonalMetric
    path: BentPath
    noise: Float[Array, ""]

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        z = normals(fold_in(key, 2), x.shape, x.dtype)
        return even_times(fold_in(key, 1), n, x.dtype), x, y, z

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, x, y, z = batch
        place, velocity = dataclasses.replace(self.path, network=model)(t, x, y)
        metric = self.metric(place + self.noise * z)
        # In units of the spread the gradient does not depend on those of the data.
        return jnp.mean(jnp.sum(metric * (velocity / self.path.spread) ** 2, axis=1))


class PathSettings(eqx.Module):
    """How paths are learned.

    **Arguments:** `metric`: of the data; `network`: an architecture, such as `Timeless(MLP())`, or
    a module of `(t, ends, None)` with ends `(n, 2 dim)`; `training`: a `Training`; `noise`:
    `>= 0`, standard deviation of a normal added to points of paths.
    """

    metric: MetricSettings
    network: Any = Timeless()
    training: Training = TRAINING
    noise: float = 0.0

    def fit(
        self,
        points: Float[np.ndarray, "n dim"],
        coupling: Coupling,
        held_out: Coupling | None,
        key: Key[Array, ""],
    ) -> tuple[BentPath, Trained]:
        """The paths of least energy between pairs, in the metric of some points."""
        dtype, dim = points.dtype, points.shape[1]
        spread = float(np.sqrt(np.mean(np.var(np.asarray(points, np.float64), axis=0)))) or 1.0
        metric = self.metric.build(points, host_generator(fold_in(key, 6)))
        network = network_for(self.network, fold_in(key, 7), 2 * dim, dim, dtype)
        path = BentPath(network, as_dtype(points.mean(axis=0), dtype), as_dtype(spread, dtype))
        objective = MetricEnergy(coupling, metric, path, as_dtype(self.noise, dtype))
        other = None if held_out is None else dataclasses.replace(objective, coupling=held_out)
        trained = train(objective, network, fold_in(key, 8), self.training.part("path"), other)
        return dataclasses.replace(path, network=trained.model), trained

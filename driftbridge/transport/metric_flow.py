"""Metric flow matching: paths that bend to where data are, and the flow along them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.base import Method, as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.data_metric import DiagonalMetric, Land, MetricSettings
from driftbridge.transport.flow import velocity_loss
from driftbridge.transport.flow_map import FlowMap, Residual
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of
from driftbridge.transport.mccann import McCann
from driftbridge.transport.networks import MLP, Architecture, network_for
from driftbridge.transport.pairing import Pairing, paired
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times, normals


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


class BentMatching(Objective):
    """Flow matching along bent paths, with noise on their points; the model is a network."""

    coupling: Coupling
    path: BentPath
    base: McCann
    scale: Float[Array, ""]
    noise: Float[Array, ""]

    def field(self, network: Any) -> Residual:
        """The velocity of a network."""
        return Residual(self.base, network, self.scale)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        t = even_times(fold_in(key, 1), n, x.dtype)
        place, velocity = self.path(t, x, y)
        z = normals(fold_in(key, 2), x.shape, x.dtype)
        return t, place + self.noise * z, velocity

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        return velocity_loss(self.field(model), batch, self.scale)


class MetricFlow(Method):
    """Flow matching along paths of low energy in a metric of the data.

    Paths between pairs are learned first, then the velocity along them. The law of the images is
    the target's as for `Flow`; what changes is the way there.

    **Arguments:**

    - `metric`: `Land()`, `RadialBasis()` or `Flat()`, with which this is `Flow`.
    - `coupling`, `network`, `training`, `num_steps`, `scheme`: as of `Flow`.
    - `path_network`: an architecture, such as `Timeless(MLP())`, or a module of `(t, ends, None)`
      with ends `(n, 2 dim)`.
    - `path_training`: of the paths.
    - `noise`: `>= 0`, standard deviation of a normal added to points of paths, for both trainings;
      it blurs the laws at both ends too. The paper's is .1.

    **Raises:** `ValueError` for a negative noise.

    `T.fit.numbers` has the energy of the paths and of straight ones, on pairs held out and in the
    metric.

    Kapusniak et al. (2024), arXiv 2405.14780.
    """

    name: ClassVar[str] = "metric"

    metric: MetricSettings = Land()
    coupling: Coupling | Callable | None = None
    network: Any = MLP()
    training: Training = Training()
    path_network: Any = Timeless()
    path_training: Training = Training(num_steps=2000, learning_rate=1e-3)
    noise: float = 0.0
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0; got {self.noise}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        pairing = paired(source, target, self.coupling, key)
        path, energies = self._path(pairing, key)
        noise = as_dtype(self.noise, dtype)
        objective = BentMatching(pairing.coupling, path, pairing.base, pairing.scale, noise)
        assert pairing.held_out is not None
        held_out = dataclasses.replace(objective, coupling=pairing.held_out)
        network = network_for(self.network, fold_in(key, 4), dim, dim, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        account = account_of(self.name, trained, time.perf_counter() - start)
        return FlowMap(
            dataclasses.replace(account, numbers=account.numbers + energies),
            objective.field(trained.model),
            pairing.base.shift,
            self.num_steps,
            self.scheme,
        )

    def _path(self, pairing: Pairing, key: Key[Array, ""]) -> tuple[BentPath, tuple]:
        """The path of least energy, and the energies of it and of the straight one."""
        points = np.concatenate([pairing.source.kept.points, pairing.target.kept.points])
        dtype, dim = points.dtype, points.shape[1]
        spread = float(np.sqrt(np.mean(np.var(np.asarray(points, np.float64), axis=0)))) or 1.0
        metric = self.metric.build(points, host_generator(fold_in(key, 6)))
        network = network_for(self.path_network, fold_in(key, 7), 2 * dim, dim, dtype)
        path = BentPath(network, as_dtype(points.mean(axis=0), dtype), as_dtype(spread, dtype))
        objective = MetricEnergy(pairing.coupling, metric, path, as_dtype(self.noise, dtype))
        held_out = dataclasses.replace(objective, coupling=pairing.held_out)
        training = self.path_training.part("path")
        trained = train(objective, network, fold_in(key, 8), training, held_out)
        looks = trained.curve.held_out
        energies = {"straight_energy": float(looks[0]), "path_energy": float(np.nanmin(looks))}
        return dataclasses.replace(path, network=trained.model), tuple(energies.items())

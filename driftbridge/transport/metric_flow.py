"""Metric flow matching: paths that bend to where data are, and the flow along them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.base import Method, as_dtype
from driftbridge.transport.bent_path import TRAINING, BentPath, PathSettings, Timeless
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.data_metric import Land, MetricSettings
from driftbridge.transport.flow import velocity_loss
from driftbridge.transport.flow_map import FlowMap, Residual
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of, with_numbers
from driftbridge.transport.mccann import McCann
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import Pairing, paired
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times, normals


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
    path_training: Training = TRAINING
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
        path, first = self._path(pairing, key)
        noise = as_dtype(self.noise, dtype)
        objective = BentMatching(pairing.coupling, path, pairing.base, pairing.scale, noise)
        assert pairing.held_out is not None
        held_out = dataclasses.replace(objective, coupling=pairing.held_out)
        network = network_for(self.network, fold_in(key, 4), dim, dim, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        account = account_of(self.name, trained, time.perf_counter() - start, path=first)
        looks = first.curve.held_out
        energies = {"straight_energy": float(looks[0]), "path_energy": float(np.nanmin(looks))}
        return FlowMap(
            with_numbers(account, energies),
            objective.field(trained.model),
            pairing.base.shift,
            self.num_steps,
            self.scheme,
        )

    def _path(self, pairing: Pairing, key: Key[Array, ""]) -> tuple[BentPath, Trained]:
        """The path of least energy, and how it was trained."""
        points = np.concatenate([pairing.source.kept.points, pairing.target.kept.points])
        settings = PathSettings(self.metric, self.path_network, self.path_training, self.noise)
        return settings.fit(points, pairing.coupling, pairing.held_out, key)

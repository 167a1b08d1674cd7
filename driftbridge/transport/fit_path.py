"""`fit_path`: from data sets at several times to a process through them."""

import dataclasses
import itertools
import time
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.action_matching import ActionLoss
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.bent_path import TRAINING, PathSettings
from driftbridge.transport.data_metric import Flat, MetricSettings
from driftbridge.transport.flow import velocity_loss
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of
from driftbridge.transport.marginal_path import MarginalPath, Weighted
from driftbridge.transport.measures import moments
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairs import DataWarning, pair_of
from driftbridge.transport.path import Path
from driftbridge.transport.points import Sample
from driftbridge.transport.potential import derivatives, unit_of, with_network
from driftbridge.transport.snapshots import (
    Curve,
    Moving,
    Neighbours,
    Process,
    couple,
    polygon,
    spline,
)

CURVES = {"spline": spline, "polygon": polygon}


class AlongMeans(eqx.Module):
    """`v(t, x) = curve'(t) + scale net(t, u)`, `u` the whitened deviation of `x` from the curve.

    Time enters the network as a share of the whole.
    """

    curve: Curve
    whitening: Float[Array, "dim dim"]
    scale: Float[Array, ""]
    network: Any

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        knots = self.curve.knots
        share = (t - knots[0]) / (knots[-1] - knots[0])
        deviation = product(x - self.curve(t), self.whitening)
        return self.curve.velocity(t) + self.scale * self.network(share, deviation, condition)


class PathMatching(Objective):
    """Flow matching along a process through snapshots; the model is a network."""

    process: Process
    whitening: Float[Array, "dim dim"]
    scale: Float[Array, ""]

    def field(self, network: Any) -> AlongMeans:
        return AlongMeans(self.process.curve, self.whitening, self.scale, network)

    def batch(self, key: Key[Array, ""], n: int) -> Moving:
        return self.process.draw(key, n)

    def loss(self, model: Any, batch: Moving) -> Float[Array, ""]:
        return velocity_loss(self.field(model), batch, self.scale)


class Shares(MarginalPath):
    """The laws of a process at shares of its whole time."""

    process: Process

    def at(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Weighted:
        knots = self.process.curve.knots
        place = self.process.at(key, knots[0] + t * (knots[-1] - knots[0])).place
        return place, jnp.ones_like(t)


class PotentialAlongMeans(eqx.Module):
    """`s(t, x) = <curve'(t), x> + unit net(t, u)`, `t` a share of the whole time, `u` as of
    `AlongMeans`; `network` is None in a form that networks are put into."""

    curve: Curve
    whitening: Float[Array, "dim dim"]
    unit: Float[Array, ""]
    network: Any = None

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n 1"]:
        knots = self.curve.knots
        whole = knots[-1] - knots[0]
        at = knots[0] + t * whole
        along = whole * jnp.sum(self.curve.velocity(at) * x, axis=1, keepdims=True)
        deviation = product(x - self.curve(at), self.whitening)
        return along + self.unit * self.network(t, deviation, condition)


class GradientAlongMeans(eqx.Module):
    """The velocity of a potential of shares of the whole time, in the data's time."""

    potential: PotentialAlongMeans

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        knots = self.potential.curve.knots
        whole = knots[-1] - knots[0]
        return derivatives(self.potential, (t - knots[0]) / whole, x, condition).in_place / whole


class PathFlow(eqx.Module):
    """Flow matching along pairs of neighbouring data sets whose common mean moves on a curve.

    With straight paths between pairs a process turns at every data set. Its mean, of which each
    data set gives a value with a small error, is smooth where the mechanism is: it is put on the
    natural cubic spline through the data's means, and deviations from it stay on straight lines.

    Training goes to its end on all points. Of few points a network comes to learn the pairs by
    heart, and the loss of held-out pairs rises; the laws between the data's times do not suffer
    (embryoid body cells, 300 a time: no worse in W2 for six times as many steps).

    **Arguments:**

    - `means`: "spline", or "polygon" for straight paths throughout.
    - `metric`: deviations from the mean go straight where it is `Flat()`, else, with `Land()` or
      `RadialBasis()` of all data, on paths of low energy as of `MetricFlow`.
    - `network`, `training`, `num_steps`, `scheme`: as of `Flow`; steps are per interval.

    Neklyudov et al. (2023), arXiv 2210.06662, section 5 (straight paths between snapshots); the
    spline of the means is ours.
    """

    name: ClassVar[str] = "flow"

    means: str = eqx.field(static=True, default="spline")
    metric: MetricSettings = Flat()
    network: Any = MLP()
    training: Training = Training(num_steps=6000)
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        if self.means not in CURVES:
            raise ValueError(f"means must be one of {', '.join(CURVES)}; got {self.means!r}.")

    def fit(
        self, times: Float[np.ndarray, " times"], samples: list[Sample], key: Key[Array, ""]
    ) -> Path:
        start = time.perf_counter()
        dtype, dim = samples[0].points.dtype, samples[0].points.shape[1]
        process, before = self._process(times, samples, key)
        objective = self._objective(process, *_scales(samples, times))
        network = network_for(self.network, fold_in(key, 2), dim, self._width(dim), dtype)
        trained = train(objective, network, fold_in(key, 3), self.training)
        return Path(
            account_of(self.name, trained, time.perf_counter() - start, **before),
            process,
            self._field(objective, trained.model),
            self.num_steps,
            self.scheme,
        )

    def _process(
        self, times: Float[np.ndarray, " times"], samples: list[Sample], key: Key[Array, ""]
    ) -> tuple[Process, dict[str, Trained]]:
        """The process, and what was trained for it."""
        dtype = samples[0].points.dtype
        means = np.stack([moments(sample).mean for sample in samples]).astype(dtype)
        curve, lines = CURVES[self.means](times, means), polygon(times, means)
        pairs = enumerate(itertools.pairwise(samples))
        couplings = tuple(couple(*two, fold_in(fold_in(key, 1), k)) for k, two in pairs)
        if isinstance(self.metric, Flat):
            return Process(couplings, curve, lines), {}
        points = np.concatenate([sample.points for sample in samples])
        own = self.training
        training = dataclasses.replace(TRAINING, checkpoint=own.checkpoint, progress=own.progress)
        settings = PathSettings(self.metric, training=training)
        bend, trained = settings.fit(points, Neighbours(couplings), None, fold_in(key, 4))
        return Process(couplings, curve, lines, bend), {"path": trained}

    def _objective(self, process: Process, whitening: Any, scale: float) -> Any:
        """What is minimised, given a whitening of deviations and the size of a velocity."""
        dtype = process.curve.knots.dtype
        return PathMatching(process, as_dtype(whitening, dtype), as_dtype(scale, dtype))

    def _width(self, dim: int) -> int:
        return dim

    def _field(self, objective: Any, network: Any) -> Any:
        return objective.field(network)


class PathAction(PathFlow):
    """Action matching along the process of `PathFlow`: the gradient field that moves its laws.

    Of all fields that move the laws it has the least kinetic energy. Only the laws enter, not the
    pairs; its loss has more noise than that of `PathFlow`.

    **Arguments:** those of `PathFlow`; the activation of the network must have two derivatives.

    Neklyudov et al. (2023), arXiv 2210.06662, algorithm 1.
    """

    name: ClassVar[str] = "action"

    def _objective(self, process: Process, whitening: Any, scale: float) -> ActionLoss:
        knots, dtype = process.curve.knots, process.curve.knots.dtype
        speed = scale * float(knots[-1] - knots[0])
        unit = as_dtype(unit_of(whitening, speed), dtype)
        form = PotentialAlongMeans(process.curve, as_dtype(whitening, dtype), unit)
        return ActionLoss(Shares(process), form, as_dtype(speed, dtype))

    def _width(self, dim: int) -> int:
        return 1

    def _field(self, objective: ActionLoss, network: Any) -> GradientAlongMeans:
        return GradientAlongMeans(with_network(objective.form, network))


METHODS = {method.name: method for method in (PathFlow, PathAction)}


def fit_path(
    data: Mapping[Any, Any], method: PathFlow | str = "flow", key: int | Key[Array, ""] = 0
) -> Path:
    """Fit a process that has the laws of data sets at their times.

    **Arguments:**

    - `data`: points `(n_t, dim)` or data frames with the same columns, by their time.
    - `method`: "flow", "action" or a method object.
    - `key`: seed or typed key.

    **Returns:** a `Path`; `P.fit.messages` is what must be known about data and training.

    **Warns:** `DataWarning` as `fit_map` does.

    **Raises:** `ValueError` for fewer than two times, for one that is not finite, and for data that
    cannot be fitted.
    """
    start = time.perf_counter()
    try:
        times = np.asarray([float(t) for t in data], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data must have numbers as times; got {list(data)}.") from error
    if len(times) < 2 or not np.isfinite(times).all():
        raise ValueError(f"data must have at least two finite times; got {times.tolist()}.")
    if len(np.unique(times)) < len(times):
        raise ValueError(f"data must have each time once; got {times.tolist()}.")
    order, sets = np.argsort(times), list(data.values())
    sets, times = [sets[i] for i in order], times[order]
    pairs = [pair_of(x, y) for x, y in itertools.pairwise(sets)]
    samples = [pair.source for pair in pairs] + [pairs[-1].target]
    messages = tuple(dict.fromkeys(message for pair in pairs for message in pair.messages))
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"no method {method!r} of a path; there are {', '.join(METHODS)}.")
        method = METHODS[method]()
    since = times - times[0]  # which float32 resolves where it does not resolve the times
    _check_spacing(since, times, samples[0].points.dtype)
    found = method.fit(since, samples, as_key(key))
    for message in messages:
        warnings.warn(message, DataWarning, stacklevel=2)
    fit = dataclasses.replace(
        found.fit,
        reason="given",
        num_source=len(samples[0].points),
        num_target=len(samples[-1].points),
        columns=pairs[0].columns,
        messages=messages + found.fit.messages,
        seconds=time.perf_counter() - start,
    )
    return dataclasses.replace(found, fit=fit, origin=float(times[0]))


def _check_spacing(
    since: Float[np.ndarray, " times"], times: Float[np.ndarray, " times"], dtype: Any
) -> None:
    gaps = np.diff(since)
    lost = np.abs(np.diff(since.astype(dtype).astype(np.float64)) - gaps) > 1e-3 * gaps
    if lost.any():
        k = int(np.argmax(lost))
        raise ValueError(
            f"times {times[k]!r} and {times[k + 1]!r} are too close for {dtype}, which must reach "
            f"from {times[0]!r} to {times[-1]!r}: leave one out, or enable x64."
        )


def _scales(
    samples: list[Sample], times: Float[np.ndarray, " times"]
) -> tuple[Float[np.ndarray, "dim dim"], float]:
    """The whitening of the mean covariance, and the size of a velocity."""
    covariance = np.mean([moments(sample).covariance for sample in samples], axis=0)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-6 * max(values[-1], np.finfo(np.float64).tiny))
    speed = np.sqrt(np.mean(values)) * (len(times) - 1) / (times[-1] - times[0])
    return vectors / np.sqrt(values), float(speed)

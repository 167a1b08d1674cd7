"""Rectified flow: a flow is fitted again to the pairs of points that it has made itself."""

import abc
import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.base import Fit, as_dtype
from driftbridge.transport.convex_cost import ConvexCost, HalfSquare
from driftbridge.transport.couplings import Coupling, Paired
from driftbridge.transport.flow import (
    BATCH,
    HELD_OUT_POOL,
    POOL,
    Flow,
    FlowMatching,
    account_of,
    check_width,
    split,
    spread_of,
)
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.minibatch import stream
from driftbridge.transport.networks import Architecture
from driftbridge.transport.optimality import mean_cost, optimality_gap
from driftbridge.transport.points import Sample


class Endpoints(eqx.Module):
    """What a source point is paired with in the next round."""

    @abc.abstractmethod
    def of(
        self, image: Float[np.ndarray, "n dim"], target: Sample, random: np.random.Generator
    ) -> Float[np.ndarray, "n dim"]:
        """End points for source points whose images under the last flow are given."""


class Generated(Endpoints):
    """The images themselves; what a round gets wrong about the target, the next one keeps."""

    def of(
        self, image: Float[np.ndarray, "n dim"], target: Sample, random: np.random.Generator
    ) -> Float[np.ndarray, "n dim"]:
        return image


class Rematched(Endpoints):
    """Points of the target, paired optimally with the images in batches.

    The pairs end in data however often a flow is rectified. The price is the distance between an
    image and its point, that of two samples of `batch_size`: small in few dimensions, as large as
    the data in many.
    """

    batch_size: int = eqx.field(static=True, default=BATCH)

    def of(
        self, image: Float[np.ndarray, "n dim"], target: Sample, random: np.random.Generator
    ) -> Float[np.ndarray, "n dim"]:
        points = target.points[_rows(target, len(image), random)]
        found = np.empty_like(image)
        for start in range(0, len(image), self.batch_size):
            part = slice(start, start + self.batch_size)
            costs = squared_distances(image[part], points[part])
            found[part] = points[part][assign(costs)]
        return found


class Rectified(Flow):
    """Rectified flow: rounds of flow matching, each on pairs that the flow before has made.

    Round `k` pairs source points with their images under the flow of round `k - 1` and fits a flow
    to the straight lines between them. A round that is fitted exactly raises the transport cost for
    no convex cost of the displacement, and paths become straighter, so that few steps solve them.

    **A loss of zero does not mean that the map is optimal.** Rectified flow does not minimise a
    cost: between Gaussians with covariances that do not commute it stays above the optimal cost for
    ever, where the support is disconnected any pairs whose lines do not meet stay as they are, and
    `x1 = -x0` has a loss of zero. `optimality_gap` of `T.fit.numbers` is independent of the loss.
    Optimal pairs in minibatches to begin with, the default, are the best remedy; `CRectified` is
    another.

    **Arguments:**

    - `coupling`, `network`, `training`, `num_steps`, `scheme`: as of `Flow`; `training` is that of
      a round, and each round starts with the network of the last. A checkpoint has the number of
      the round added to its name.
    - `rounds`: flows that are fitted, `>= 1`; one is `Flow`.
    - `endpoints`: `Rematched()` pairs images with data again, `Generated()` does not.
    - `base`: the field that the network is added to, a function of the moments of source and target
      and a dtype; `translation` knows only the means.

    `T.fit.numbers` has `cost_k` of each round, the mean of `|T(x) - x|^2 / 2` on held-out points.

    **Raises:** `ValueError` for fewer than one round.

    Liu, Gong and Liu (2023), arXiv 2209.03003, algorithm 1; Hertrich, Chambolle and Delon (2025),
    "On the relation between rectified flows and optimal transport".
    """

    name: ClassVar[str] = "rectified"

    rounds: int = eqx.field(static=True, default=2)
    endpoints: Endpoints = Rematched()
    base: Callable[..., McCann] = eqx.field(static=True, default=mccann)

    def __check_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        random = host_generator(fold_in(key, 0))
        halves = [split(sample, random) for sample in (source, target)]
        (source, source_held), (target, target_held) = halves
        coupling = self._coupling(source, target, POOL, fold_in(key, 1))
        held = self._coupling(source_held, target_held, HELD_OUT_POOL, fold_in(key, 3))
        base = self.base(*gaussians(source, target), source.points.dtype)
        model = self._network(source.points, fold_in(key, 4))
        first = self._objective(coupling, base, fold_in(key, 2))
        numbers, found = {}, None
        for k in range(self.rounds):
            if found is not None:
                coupling = reflowed(found, source, target, POOL, self.endpoints, random)
                held = reflowed(
                    found, source_held, target_held, HELD_OUT_POOL, self.endpoints, random
                )
            objective, held_out = (on_pairs(first, pairs) for pairs in (coupling, held))
            training = of_round(self.training, k + 1)
            trained = train(objective, model, fold_in(key, 5 + k), training, held_out)
            model = trained.model
            account = account_of(self.name, trained, time.perf_counter() - start)
            found = FlowMap(account, first.field(model), base.shift, self.num_steps, self.scheme)
            places = source_held.points, np.asarray(found(source_held.points))
            numbers[f"cost_{k + 1}"] = mean_cost(*places, self._cost)
            numbers["optimality_gap"] = optimality_gap(*places, self._cost)
            if trained.status == "diverged":
                break
        assert found is not None
        return dataclasses.replace(found, fit=with_numbers(found.fit, numbers))

    @property
    def _cost(self) -> ConvexCost:
        return HalfSquare()

    def _network(self, points: Float[np.ndarray, "n dim"], key: Key[Array, ""]) -> Any:
        dim, dtype = points.shape[1], points.dtype
        network = self.network
        if isinstance(network, Architecture):
            network = network.build(key, dim, dim, dtype)
        check_width(network, dim, dtype)
        return network

    def _objective(self, coupling: Coupling, base: McCann, key: Key[Array, ""]) -> Any:
        return FlowMatching(coupling, base, as_dtype(spread_of(coupling, key), base.shift.dtype))


def of_round(training: Training, number: int) -> Training:
    """The training with a checkpoint of its own for each round."""
    if training.checkpoint is None:
        return training
    return dataclasses.replace(training, checkpoint=f"{training.checkpoint}.{number}")


def reflowed(
    found: FlowMap,
    source: Sample,
    target: Sample,
    pool: int,
    endpoints: Endpoints,
    random: np.random.Generator,
) -> Paired:
    """Pairs of source points, in a fresh order, with the end points of their paths."""
    rows = _rows(source, pool * BATCH, random)
    image = np.asarray(found(source.points))[rows]
    return Paired(source.points[rows], endpoints.of(image, target, random))


def translation(*arguments: Any) -> McCann:
    """The field between the means alone, for what must be learned without the affine map."""
    found = mccann(*arguments)
    vectors, whitening = (np.asarray(part) for part in (found.vectors, found.whitening))
    flat = np.eye(len(vectors)), np.ones(len(vectors)), vectors @ whitening
    parts = (as_dtype(part, found.shift.dtype) for part in flat)
    names = ("vectors", "slopes", "whitening")
    return dataclasses.replace(found, **dict(zip(names, parts, strict=True)))


def on_pairs(objective: Objective, pairs: Coupling) -> Any:
    """The same objective on other pairs."""
    return dataclasses.replace(objective, coupling=pairs)


def with_numbers(fit: Fit, numbers: dict[str, Any]) -> Fit:
    """An account with more numbers."""
    return dataclasses.replace(fit, numbers=(*fit.numbers, *numbers.items()))


def _rows(sample: Sample, count: int, random: np.random.Generator) -> np.ndarray:
    weights = sample.weights if np.ptp(sample.weights) > 0 else None
    return stream(weights, len(sample.points), count, random)

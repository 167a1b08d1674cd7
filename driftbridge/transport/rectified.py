"""Rectified flow: a flow is fitted again to the pairs of points that it has made itself."""

import abc
import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.base import TransportMap, as_dtype
from driftbridge.transport.convex_cost import ConvexCost, HalfSquare
from driftbridge.transport.couplings import Coupling, Paired
from driftbridge.transport.flow import Flow, FlowMatching
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.learned import account_of, with_numbers
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.minibatch import separated, stream
from driftbridge.transport.networks import network_for
from driftbridge.transport.optimality import mean_cost, optimality_gap
from driftbridge.transport.pairing import BATCH, POOL, Parts, couplings, spread_of
from driftbridge.transport.points import Sample

Ends = tuple[Float[np.ndarray, "n dim"], Int[np.ndarray, " n"]]


class Endpoints(eqx.Module):
    """What a source point is paired with in the next round."""

    @abc.abstractmethod
    def of(
        self,
        image: Float[np.ndarray, "n dim"],
        target: Sample,
        random: np.random.Generator,
        number: int,
    ) -> Ends:
        """End points for source points whose images under the last flow are given, and their rows.

        `number` counts the flows so far, from 1. A row is -1 where the point is none of the target.
        """


class Generated(Endpoints):
    """The images themselves; what a round gets wrong about the target, the next one keeps."""

    def of(
        self,
        image: Float[np.ndarray, "n dim"],
        target: Sample,
        random: np.random.Generator,
        number: int,
    ) -> Ends:
        return image, np.full(len(image), -1)


class Rematched(Endpoints):
    """Points of the target, paired optimally with the images in batches.

    The pairs end in data however often a flow is rectified. The price is the distance between an
    image and its point, that of two samples of `batch_size`: small in few dimensions, as large as
    the data in many.
    """

    batch_size: int = eqx.field(static=True, default=BATCH)

    def of(
        self,
        image: Float[np.ndarray, "n dim"],
        target: Sample,
        random: np.random.Generator,
        number: int,
    ) -> Ends:
        rows = _rows(target, len(image), random)
        for start in range(0, len(image), self.batch_size):
            part = slice(start, start + self.batch_size)
            costs = squared_distances(image[part], target.points[rows[part]])
            rows[part] = rows[part][assign(costs)]
        return target.points[rows], rows


class Exchanged(Endpoints):
    """The end points of others, some of which are exchanged at random.

    A `share / 2^(k - 1)` of the pairs after flow `k` gets the end points of one another. The laws
    of both ends stay as they are, but lines now run between parts of the support that were not
    connected, so that a round can pair them better; the shares have a finite sum, so that the cost
    they add does not stay.

    **Arguments:** `share`: in `(0, 1]`; `endpoints`: `Rematched()` or `Generated()`.

    Hertrich, Chambolle and Delon (2025), who add noise to a Gaussian source instead.
    """

    share: float = 0.2
    endpoints: Endpoints = Rematched()

    def __check_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1]; got {self.share}.")

    def of(
        self,
        image: Float[np.ndarray, "n dim"],
        target: Sample,
        random: np.random.Generator,
        number: int,
    ) -> Ends:
        points, rows = self.endpoints.of(image, target, random, number)
        count = round(self.share / 2 ** (number - 1) * len(rows))
        chosen, order = random.choice(len(rows), count, replace=False), np.arange(len(rows))
        order[chosen] = random.permutation(chosen)
        return points[order], rows[order]


class Rectified(Flow):
    """Rectified flow: rounds of flow matching, each on pairs that the flow before has made.

    Round `k` pairs source points with their images under the flow of round `k - 1` and fits a flow
    to the straight lines between them. A round that is fitted exactly raises the transport cost for
    no convex cost of the displacement, and paths become straighter, so that few steps solve them.

    **A loss of zero does not mean that the map is optimal.** Rectified flow does not minimise a
    cost: between Gaussians with covariances that do not commute it stays above the optimal cost for
    ever, where the support is disconnected any pairs whose lines do not meet stay as they are, and
    `x1 = -x0` has a loss of zero. `optimality_gap` of `T.fit.numbers` is independent of the loss.
    Optimal pairs in minibatches to begin with, the default, are the best remedy; gradient fields
    (`CRectified`) and end points that are exchanged between rounds (`Exchanged`) are others.

    **Arguments:**

    - `coupling`, `held_out`, `network`, `training`, `num_steps`, `scheme`: as of `Flow`; `training`
      is that of a round, and each round starts with the network of the last. A checkpoint has the
      number of the round added to its name.
    - `rounds`: flows that are fitted, `>= 1`; one is `Flow`.
    - `endpoints`: `Rematched()` pairs images with data again, `Generated()` does not; `Exchanged()`
      leaves fixed points of zero loss.
    - `base`: the field that the network is added to, a function of the moments of source and target
      and a dtype; `translation` knows only the means.

    `T.fit.numbers` has `cost_k` of each round, the mean of `|T(x) - x|^2 / 2` on held-out points.

    **Raises:** `ValueError` for fewer than one round.

    Liu, Gong and Liu (2023), arXiv 2209.03003, algorithm 1; Hertrich, Chambolle and Delon (2025),
    "On the relation between rectified flows and optimal transport".
    """

    name: ClassVar[str] = "rectified"
    takes_condition: ClassVar[bool] = False

    rounds: int = eqx.field(static=True, default=2)
    endpoints: Endpoints = Rematched()
    base: Callable[..., McCann] = eqx.field(static=True, default=mccann)

    def __check_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        random = host_generator(fold_in(key, 0))
        begins, ends = (Parts.of(sample, self.held_out, random) for sample in (source, target))
        coupling, held = couplings(begins, ends, self.coupling, fold_in(key, 1))
        base = self.base(*gaussians(begins.kept, ends.kept), source.points.dtype)
        model = self._network(source.points, fold_in(key, 4))
        first = self._objective(coupling, base, fold_in(key, 2))
        test = begins.test.points
        numbers, curves, found = {}, [], None
        for k in range(self.rounds):
            if found is not None:
                coupling, held = reflowed(found, begins, ends, self.endpoints, random, k)
            objective = on_pairs(first, coupling)
            held_out = None if held is None else on_pairs(first, held)
            training = self.training.part(str(k + 1))
            trained = train(objective, model, fold_in(key, 5 + k), training, held_out)
            model = trained.model
            account = account_of(self.name, trained, time.perf_counter() - start)
            curves.append((f"round {k + 1}", trained.curve))
            found = FlowMap(account, first.field(model), base.shift, self.num_steps, self.scheme)
            image = np.asarray(found(test))
            numbers[f"cost_{k + 1}"] = mean_cost(test, image, self._cost)
            numbers["optimality_gap"] = optimality_gap(test, image, self._cost)
            if trained.status == "diverged":
                break
        assert found is not None
        fit = dataclasses.replace(with_numbers(found.fit, numbers), curves=tuple(curves))
        return dataclasses.replace(found, fit=fit)

    @property
    def _cost(self) -> ConvexCost:
        return HalfSquare()

    def _network(self, points: Float[np.ndarray, "n dim"], key: Key[Array, ""]) -> Any:
        return network_for(self.network, key, points.shape[1], points.shape[1], points.dtype)

    def _objective(self, coupling: Coupling, base: McCann, key: Key[Array, ""]) -> Any:
        return FlowMatching(coupling, base, as_dtype(spread_of(coupling, key), base.shift.dtype))


def reflowed(
    found: TransportMap,
    source: Parts,
    target: Parts,
    endpoints: Endpoints,
    random: np.random.Generator,
    number: int,
) -> tuple[Paired, Paired | None]:
    """Pairs of source points, in a fresh order, with the end points of their paths: those without
    points that are held out, and those with."""
    rows = _rows(source.whole, POOL * BATCH, random)
    image = np.asarray(found(source.whole.points))[rows]
    ends, columns = endpoints.of(image, target.whole, random, number)
    held = np.isin(rows, source.rows) | np.isin(columns, target.rows)
    share = source.share_kept * target.share_kept
    pairs = [
        Paired(source.whole.points[rows[at]], ends[at]) for at in separated(held, share) if len(at)
    ]
    return pairs[0], pairs[1] if len(pairs) > 1 else None


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


def _rows(sample: Sample, count: int, random: np.random.Generator) -> np.ndarray:
    weights = sample.weights if np.ptp(sample.weights) > 0 else None
    return stream(weights, len(sample.points), count, random)

"""Unbalanced action matching: laws that are moved and grown by one potential."""

import dataclasses
import time
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import train
from driftbridge.transport.action_matching import ActionLoss, ActionMatching
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.gaussian_action import quadratic_potential
from driftbridge.transport.learned import account_of, with_numbers
from driftbridge.transport.networks import network_for
from driftbridge.transport.points import Sample
from driftbridge.transport.potential import Derivatives, derivatives, unit_of, with_network
from driftbridge.transport.weighted_flow_map import WeightedFlowMap, weight_messages


class UnbalancedActionLoss(ActionLoss):
    """`ActionLoss` of a process with growth `s / delta^2`: adds `s^2 / (2 delta^2)`.

    The laws of the path are positive measures. Velocity `grad s` and growth `s / delta^2` move them
    at the least `int (|v|^2 + delta^2 g^2) rho / 2`.

    Neklyudov et al. (2023), arXiv 2210.06662, "Unbalanced action matching", with a length
    `delta` for their 1.
    """

    delta: Float[Array, ""] = dataclasses.field(kw_only=True)

    def density(
        self, potential: Any, t: Array, x: Array, at: Derivatives, signs: Array
    ) -> Float[Array, " n"]:
        growth = (at.value / self.delta) ** 2 / 2
        return super().density(potential, t, x, at, signs) + growth


class GrowingField(eqx.Module):
    """Velocity `grad s` and growth `s / delta^2` of a potential."""

    potential: Any
    delta: Float[Array, ""]

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        return derivatives(self.potential, t, x, condition).in_place

    def rates(
        self, t: Times, x: Float[Array, "n dim"]
    ) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
        """Velocity and growth."""
        found = derivatives(self.potential, t, x)
        return found.in_place, found.value / self.delta**2


class UnbalancedActionMatching(ActionMatching):
    """Action matching with growth: points move along `grad s` and grow by `s / delta^2`.

    The path is that of the lines between the pairs of a coupling, its mass `mass_ratio^t`. How much
    of a change is motion and how much growth is not in the data: `delta` decides, as the length
    over which moving a point costs what doubling its weight does, in order of magnitude. A path of
    straight lines has little to grow; `WassersteinFisherRao` chooses the path too.

    **The loss can be as low as it gets and the map far from optimal**, as of `ActionMatching`.

    **Arguments:**

    - `delta`: `> 0`; None for the root mean square of the pairs' displacements.
    - `mass_ratio`: `> 0`, mass of the target over that of the source.
    - others as of `ActionMatching`; a `path` of one's own has its own masses, whose ratio is to be
      given too. There is no noise, and `epsilon` must be 0.

    **Returns:** of a fit, a `WeightedFlowMap`: use its weights. `T.fit.numbers` has `delta`, the
    `mass` of held-out points under the map, and the `effective_share` of them.

    **Raises:** `ValueError` for numbers outside their range.

    Neklyudov et al. (2023), arXiv 2210.06662, "Unbalanced action matching".
    """

    name: ClassVar[str] = "unbalanced_action"

    delta: float | None = None
    mass_ratio: float = 1.0

    def __check_init__(self):
        check_growth(self.delta, self.mass_ratio)
        if self.epsilon != 0:
            raise ValueError(f"epsilon must be 0 where there is growth; got {self.epsilon}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> WeightedFlowMap:
        start, dtype = time.perf_counter(), source.points.dtype
        ready = self._ready(source, target, key, self.mass_ratio)
        x, y = ready.x, ready.y
        delta = self.delta or float(np.sqrt(np.mean(np.sum((y - x) ** 2, axis=1)))) or 1.0
        moments = gaussians(ready.source, ready.target)
        base = self.base(*moments, dtype)
        cross = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)
        unit, rate = unit_of(base.whitening, ready.scale), float(np.log(self.mass_ratio))
        form = quadratic_potential(base, unit, *moments, cross, rate, delta=delta)
        scale, length = (as_dtype(number, dtype) for number in (ready.scale, delta))
        objective, held_out = (
            path and UnbalancedActionLoss(path, form, scale, self.weight, delta=length)
            for path in (ready.path, ready.held_out)
        )
        assert objective is not None
        network = network_for(self.network, fold_in(key, 4), source.points.shape[1], 1, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        found = WeightedFlowMap(
            account_of(self.name, trained, time.perf_counter() - start),
            GrowingField(with_network(form, trained.model), length),
            base.shift,
            self.num_steps,
            self.scheme,
        )
        return with_weights(found, ready.test, {"delta": delta})


def with_weights(
    found: WeightedFlowMap, x: Float[np.ndarray, "n dim"], numbers: dict[str, float]
) -> WeightedFlowMap:
    """The map with these numbers, and those of its weights at held-out points."""
    weights = {"mass": found.mass(x), "effective_share": found.effective_share(x)}
    fit = with_numbers(found.fit, numbers | weights)
    fit = dataclasses.replace(fit, messages=(*fit.messages, *weight_messages(found, x)))
    return dataclasses.replace(found, fit=fit)


def check_growth(delta: float | None, mass_ratio: float) -> None:
    if delta is not None and not 0 < delta < np.inf:
        raise ValueError(f"delta must be positive and finite; got {delta}.")
    if not 0 < mass_ratio < np.inf:
        raise ValueError(f"mass_ratio must be positive and finite; got {mass_ratio}.")

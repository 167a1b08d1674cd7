"""Flow matching: a velocity learned from pairs of points, on top of the affine map."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import Fit, Method
from driftbridge.transport.conditional_map import ConditionalMap
from driftbridge.transport.conditions import drawn_with_codes, encoding_of, network_given
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow_map import FlowMap, Residual, Still
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of
from driftbridge.transport.maximum_mean_discrepancy import energy_distance
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.measures import part_of
from driftbridge.transport.networks import MLP
from driftbridge.transport.pairing import HELD_OUT, check_share, paired
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times

# Points a side of the comparison with the affine map, and what is said of its outcome.
TESTED = 1000
NOT_CLOSER = (
    "held-out points came no closer to the target by the flow than by the affine map, which this is"
)


def velocity_loss(field: Any, batch: Any, scale: Float[Array, ""]) -> Float[Array, ""]:
    """The mean of `|v(t, x_t) - dx_t / dt|^2` over times, places and velocities, over the scale's.

    The minimiser is the conditional mean of `dx_t / dt` given `x_t`, whose flow carries the laws of
    the process.
    """
    t, place, velocity = batch
    error = (field(t, place) - velocity) / scale
    return jnp.sum(error**2) / error.size


class FlowMatching(Objective):
    """`E |v(t, x_t) - (x1 - x0)|^2` in units of the scale, `x_t = (1 - t) x0 + t x1`.

    The model is the network of a `Residual`.

    Lipman et al. (2023), arXiv 2210.02747, equation 14; Liu et al. (2023), arXiv 2209.03003,
    equation 1; Albergo and Vanden-Eijnden (2023), arXiv 2209.15571, equation 9.
    """

    coupling: Coupling
    base: McCann
    scale: Float[Array, ""]

    def field(self, network: Any) -> Residual:
        """The velocity of a network."""
        return Residual(self.base, network, self.scale)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y, condition = drawn_with_codes(self.coupling, fold_in(key, 0), n)
        t = even_times(fold_in(key, 1), n, x.dtype)
        return (t, x + t[:, None] * (y - x), y - x), condition

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        points, condition = batch
        field = partial(self.field(model), condition=condition)
        return velocity_loss(field, points, self.scale)


class Flow(Method):
    """Flow matching with straight paths between pairs of a coupling.

    The velocity is the affine map's field and a network's residual. The law of the map's images is
    that of the target as far as the training reached; it is the optimal map only so far as the
    pairs were optimal.

    **Arguments:**

    - `coupling`: a function of `(x, y, key=key)`, points or random rows of them in, a coupling
      out; None for `MinibatchOT` with batches of 256. Or a `Coupling`, which then is also what the
      held-out loss is taken on. Where points have weights the function is given `source_weights` or
      `target_weights` too, with conditions `condition` and `source_condition`, and None is then
      for `ConditionalOT`.
    - `held_out`: in `[0, 1)`, share of the points that are held out. Their pairs decide when
      training stops; and where the flow does not bring them closer to the target, in energy
      distance, than the affine map does, the affine map is what is returned. 0 trains to the end
      on all points.
    - `network`: an architecture, or a network: a module of `(t, x, condition)`, with `condition`
      the codes `(n, k)` of conditions, or None.
    - `training`: a `Training`.
    - `num_steps`, `scheme`: of the solution of the differential equation.

    Lipman et al. (2023), arXiv 2210.02747; Tong et al. (2024), arXiv 2302.00482; Pooladian et al.
    (2023), arXiv 2304.14772.
    """

    name: ClassVar[str] = "flow"
    takes_condition: ClassVar[bool] = True

    coupling: Coupling | Callable | None = None
    held_out: float = eqx.field(static=True, default=HELD_OUT)
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        check_share(self.held_out)

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        pairing = paired(source, target, self.coupling, key, self.held_out)
        base, scale = pairing.base, pairing.scale
        objective, held_out = (
            None if pairs is None else FlowMatching(pairs, base, scale)
            for pairs in (pairing.coupling, pairing.held_out)
        )
        assert objective is not None
        encoding = None if target.condition is None else encoding_of(target.condition)
        network = network_given(encoding, self.network, fold_in(key, 4), dim, dim, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        fit = account_of(self.name, trained, time.perf_counter() - start)
        found = self._map(fit, objective.field(trained.model))
        ends = pairing.source.held_out, pairing.target.held_out
        if self.held_out > 0 and not is_closer(found, *ends, encoding):
            whole = mccann(*gaussians(source, target), dtype)
            fit = dataclasses.replace(fit, messages=(*fit.messages, NOT_CLOSER))
            return self._map(fit, Residual(whole, Still(), scale))
        return found

    def _map(self, fit: Fit, field: Residual) -> FlowMap:
        return FlowMap(fit, field, field.base.shift, self.num_steps, self.scheme)


def is_closer(found: FlowMap, source: Sample, target: Sample, encoding: Any = None) -> bool:
    """Whether the flow brings points closer to the target than its base alone does.

    With conditions, of the encoding given, points are compared together with theirs. A source
    without conditions has the target's, which do not depend on its points.
    """
    source, target = (part_of(s, np.arange(min(TESTED, len(s.points)))) for s in (source, target))
    alone = dataclasses.replace(found, field=Residual(found.field.base, Still(), found.field.scale))
    maps = found, alone
    weights = {"a": source.weights, "b": target.weights}
    if encoding is None:
        distances = [_distance(moved(source.points), target.points, weights) for moved in maps]
        return distances[0] < distances[1]
    assert target.condition is not None
    n, conditions = len(source.points), source.condition
    if conditions is None:
        rows = np.random.default_rng(0).choice(len(target.points), n, p=target.weights)
        conditions = target.condition[rows]
    here = encoding.of(conditions, n)
    there = encoding.of(target.condition, len(target.points))
    # Of the size that coordinates have, codes count as much as they do.
    unit = np.std(target.points, axis=0).mean()
    joint = np.column_stack([target.points, unit * there])
    distances = [
        _distance(np.column_stack([moved(source.points, conditions), unit * here]), joint, weights)
        for moved in (ConditionalMap(each.fit, each, encoding) for each in maps)
    ]
    return distances[0] < distances[1]


def _distance(x: Any, y: Any, weights: dict[str, Any]) -> float:
    return float(energy_distance(np.asarray(x), np.asarray(y), **weights))

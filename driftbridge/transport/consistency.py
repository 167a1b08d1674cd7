"""Consistency flow matching: a velocity that is constant along its own paths, piece by piece."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.base import Method, as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.few_step_map import FewStepMap, ImageDistance, StraightJump
from driftbridge.transport.flow_map import Residual
from driftbridge.transport.learned import account_of
from driftbridge.transport.mccann import McCann
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import paired
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times

# Share of a segment beyond which its end is known and no longer learned from the network itself.
BOUNDARY = 0.9


class Consistency(Objective):
    """`E |f(t, x_t) - f(r, x_r)|^2 + alpha |v(t, x_t) - v(r, x_r)|^2`, `r = t + gap`.

    `f(t, x) = x + (e - t) v(t, x)` is where the velocity takes `x` at the end `e` of its segment of
    time, and `x_t`, `x_r` lie on one straight path; no gradient goes through `r`. In the first
    `boundary` of a segment; beyond it, and everywhere for `boundary = 0`, `r = e`, where `f` is
    the identity: plain flow matching. In units of the scale and of a segment.

    In float32 the difference of two `f` at times 1e-3 apart is mostly rounding. As
    `f(t, x_t) - f(r, x_r) = (e - t) (v_t - (1 - rho) v_r - rho (x1 - x0))`,
    `rho = (r - t) / (e - t)`, it is taken between velocities, without cancellation.

    Yang et al. (2024), arXiv 2407.02398.
    """

    coupling: Coupling
    base: McCann
    scale: Float[Array, ""]
    gap: Float[Array, ""]
    alpha: Float[Array, ""]
    boundary: Float[Array, ""]
    num_segments: int = eqx.field(static=True)

    def jump(self, network: Any) -> StraightJump:
        """The jumps of a network."""
        return StraightJump(Residual(self.base, network, self.scale))

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        return even_times(fold_in(key, 1), n, x.dtype), x, y

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, x, y = batch
        field, moved, pieces = self.jump(model).field, y - x, self.num_segments
        segment = jnp.floor(pieces * t)
        end = (segment + 1) / pieces
        within = pieces * t - segment
        inside = (within < self.boundary) & (t + self.gap < end)
        later = jnp.where(inside, t + self.gap, end)
        # At a time one the last bit of a sum may carry `t` to the end of its segment.
        left = jnp.maximum(end - t, 1e-6)
        share = jnp.where(inside, self.gap / left, 1)[:, None]
        here = field(t, x + t[:, None] * moved)
        there = jax.lax.stop_gradient(field(later, x + later[:, None] * moved))
        error = here - (1 - share) * there - share * moved
        squares = jnp.sum(error**2, axis=1) * (pieces * left) ** 2
        still = jnp.sum((here - there) ** 2, axis=1) * inside
        return jnp.mean(squares + self.alpha * still) / (x.shape[1] * self.scale**2)


class ConsistencyFlow(Method):
    """Flow matching straightened so that one evaluation crosses a segment of time.

    Training has two phases, each of `training`: flow matching, then consistency. The held-out loss
    is the energy distance between images and target, for the number of steps asked for.

    **Arguments:**

    - `coupling`, `network`, `training`: as of `Flow`.
    - `num_segments`: pieces of time; a map takes at least one step for each.
    - `num_steps`: evaluations of the map, a multiple of the segments.
    - `gap`: in `(0, 1)`, between the two times that are compared, of a segment. The map is off by
      a multiple of it, and it is learned in about `1 / gap` sweeps.
    - `alpha`: `>= 0`, weight of the difference of velocities.

    **Raises:** `ValueError` for steps that are no multiple of the segments.

    Yang et al. (2024), arXiv 2407.02398.
    """

    name: ClassVar[str] = "consistency"

    coupling: Coupling | Callable | None = None
    network: Any = MLP()
    training: Training = Training(num_steps=4000)
    num_segments: int = eqx.field(static=True, default=2)
    num_steps: int = eqx.field(static=True, default=2)
    gap: float = 0.01
    alpha: float = 1e-5

    def __check_init__(self):
        if self.num_segments < 1 or self.num_steps < 1 or self.num_steps % self.num_segments:
            raise ValueError(
                f"num_steps must be a positive multiple of num_segments; got {self.num_steps} and "
                f"{self.num_segments}."
            )
        if not 0 < self.gap < 1 or not self.alpha >= 0:
            raise ValueError(
                f"gap must be in (0, 1) and alpha at least 0; got {self.gap} and {self.alpha}."
            )

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FewStepMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        pairing = paired(source, target, self.coupling, key)
        gap = self.gap / self.num_segments
        objective = Consistency(
            pairing.coupling,
            pairing.base,
            pairing.scale,
            gap=as_dtype(gap, dtype),
            alpha=as_dtype(self.alpha, dtype),
            boundary=as_dtype(BOUNDARY, dtype),
            num_segments=self.num_segments,
        )
        plain = dataclasses.replace(objective, boundary=as_dtype(0.0, dtype))
        network = network_for(self.network, fold_in(key, 4), dim, dim, dtype)
        assert pairing.held_out is not None
        judge = ImageDistance(pairing.held_out, objective, self.num_steps)
        first = train(plain, network, fold_in(key, 5), self.training.part("flow"), judge)
        second = train(objective, first.model, fold_in(key, 6), self.training, judge)
        return FewStepMap(
            account_of(self.name, second, time.perf_counter() - start, flow=first),
            objective.jump(second.model),
            pairing.base.shift,
            self.num_steps,
            self.num_segments,
        )

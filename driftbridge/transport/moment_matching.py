"""Inductive moment matching: jumps that agree in law with jumps from a little later."""

import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.base import Method, as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.few_step_map import FewStepMap, ImageDistance, Jump
from driftbridge.transport.learned import account_of
from driftbridge.transport.mccann import McCann
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import paired
from driftbridge.transport.points import Sample
from driftbridge.transport.resampling import even_times

LEAST_GROUP = 16


class MomentMatching(Objective):
    """`MMD^2` between `f_{s,t}(x_s)` and `f_{r,t}(x_r)`, `s < r <= t`, group by group.

    `x_s` and `x_r` lie on one path `x_t = (1 - t) x0 + t x1`; a group of `M` pairs shares its
    times, `r = min(t, s + gap)`, and no gradient goes through `r`. At `r = t` the jump is the
    identity, so that by induction over `r` every jump has the law of `x_t`, whatever the source.
    The kernel is Laplace's, `exp(-|y - y'| / (scale (t - s) sqrt(dim)))`: a jump of length `t - s`
    is compared at the scale at which it moves points.

    The estimate keeps the pairs of a point with itself: that of `x_s` and `x_r` adds `1 / M` of a
    consistency loss, all there is at `M = 1`, which selects one of the many maps of the right law.

    Zhou, Ermon and Song (2025), arXiv 2503.07565, with time reversed and any source.
    """

    coupling: Coupling
    base: McCann
    scale: Float[Array, ""]
    gap: Float[Array, ""]
    group: int = eqx.field(static=True)

    def jump(self, network: Any) -> Jump:
        """The jumps of a network."""
        return Jump(self.base, network, self.scale)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        groups = n // self.group
        x, y = self.coupling.pairs(fold_in(key, 0), groups * self.group)
        s = even_times(fold_in(key, 1), groups, x.dtype)
        t = s + (1 - s) * (1 - unit_floats(fold_in(key, 2), groups, x.dtype))
        return s, t, x, y

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        s, t, x, y = batch
        jump, moved = self.jump(model), y - x
        r = jnp.minimum(t, s + self.gap)
        from_s, from_r, to = (jnp.repeat(time, self.group) for time in (s, r, t))
        here = jump(from_s, to, x + from_s[:, None] * moved)
        there = jax.lax.stop_gradient(jump(from_r, to, x + from_r[:, None] * moved))
        unit = self.scale * (t - s) * np.sqrt(x.shape[1])
        shape = (-1, self.group, x.shape[1])
        return jnp.mean(discrepancy(here.reshape(shape), there.reshape(shape), unit))


def discrepancy(
    x: Float[Array, "groups n dim"],
    y: Float[Array, "groups n dim"],
    unit: Float[Array, " groups"],
) -> Float[Array, " groups"]:
    """`MMD^2` by Laplace's kernel between groups of points, pairs of one point included."""

    def kernel(a, b):
        squares = jnp.sum((a[:, :, None] - b[:, None]) ** 2, axis=-1)
        # The root has a gradient of 0 where points meet.
        away = jnp.sqrt(jnp.maximum(squares, 1e-12 * unit[:, None, None] ** 2))
        return jnp.mean(jnp.exp(-away / unit[:, None, None]), axis=(1, 2))

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


class InductiveMomentMatching(Method):
    """A map of one or a few jumps that matches laws, not velocities.

    The held-out loss is the energy distance between images and target, for the number of steps
    asked for.

    **Arguments:**

    - `coupling`, `training`: as of `Flow`; the batch is a multiple of `group`.
    - `network`: an architecture, or a module of `(s, x, t)` with `t` `(n, 1)`.
    - `num_steps`: evaluations of the map.
    - `gap`: in `(0, 1]`, between the two times that are compared.
    - `group`: at least 16, points whose laws are compared.

    Zhou, Ermon and Song (2025), arXiv 2503.07565.
    """

    name: ClassVar[str] = "moment_matching"

    coupling: Coupling | Callable | None = None
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=1)
    gap: float = 0.05
    group: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.num_steps < 1 or self.group < LEAST_GROUP:
            raise ValueError(
                f"num_steps must be at least 1 and group at least {LEAST_GROUP}; got "
                f"{self.num_steps} and {self.group}."
            )
        if not 0 < self.gap <= 1:
            raise ValueError(f"gap must be in (0, 1]; got {self.gap}.")
        if self.training.batch_size % self.group:
            raise ValueError(
                f"the batch of the training must be a multiple of group; got "
                f"{self.training.batch_size} and {self.group}."
            )

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FewStepMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        pairing = paired(source, target, self.coupling, key)
        objective = MomentMatching(
            pairing.coupling, pairing.base, pairing.scale, as_dtype(self.gap, dtype), self.group
        )
        network = network_for(self.network, fold_in(key, 4), dim, dim, dtype, num_conditions=1)
        assert pairing.held_out is not None
        judge = ImageDistance(pairing.held_out, objective, self.num_steps)
        trained = train(objective, network, fold_in(key, 5), self.training, judge)
        return FewStepMap(
            account_of(self.name, trained, time.perf_counter() - start),
            objective.jump(trained.model),
            pairing.base.shift,
            self.num_steps,
        )

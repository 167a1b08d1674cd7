"""c-rectified flow: rounds whose velocity is that of a potential, for a convex cost."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective
from driftbridge.transport.base import as_dtype
from driftbridge.transport.convex_cost import ConvexCost, HalfSquare
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.mccann import McCann
from driftbridge.transport.networks import network_for
from driftbridge.transport.pairing import drawn, spread_of
from driftbridge.transport.potential import (
    GradientField,
    Potential,
    derivatives,
    unit_of,
    with_network,
)
from driftbridge.transport.rectified import Rectified
from driftbridge.transport.resampling import even_times


class FenchelYoung(Objective):
    """`E [c*(grad f(t, x_t)) - <grad f(t, x_t), x1 - x0> + c(x1 - x0)]` over `E c(x1 - x0)`.

    With `x_t = (1 - t) x0 + t x1`. At least 0, and 0 where `x1 - x0 = grad c*(grad f)`. For the
    cost `|d|^2 / 2` it is `E |grad f - (x1 - x0)|^2 / 2`, and its minimiser that of action matching
    on the same lines. The model is the network of the potential.

    Liu (2022), "Rectified flow: a marginal preserving approach to optimal transport", arXiv
    2209.14577.
    """

    coupling: Coupling
    form: Any
    cost: ConvexCost
    level: Float[Array, ""]

    def field(self, network: Any) -> GradientField:
        """The velocity of a network."""
        return GradientField(with_network(self.form, network), self.cost)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        return even_times(fold_in(key, 1), n, x.dtype), x, y

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, x, y = batch
        moved = y - x
        potential = with_network(self.form, model)
        momentum = derivatives(potential, t, x + t[:, None] * moved).in_place
        met = jnp.sum(momentum * moved, axis=1)
        excess = self.cost.conjugate(momentum) - met + self.cost.value(moved)
        return jnp.mean(excess) / self.level


class CRectified(Rectified):
    """Rectified flow for a convex cost: one potential, velocity `grad c*(grad f(t, x))`.

    A round minimises the loss of `FenchelYoung` on the straight lines between the pairs of the last
    one. The cost `E c(x1 - x0)` falls in each round by the loss that is left and a term that is 0
    only for straight paths, so that a fixed point whose support is connected is optimal for `c`.

    **A loss of zero does not mean that the map is optimal** where the support is not connected, or
    the pairs admit no flow: see `Rectified`, and read `optimality_gap`.

    The potential is that of the affine map's field, times `E <grad c(d), d> / E |d|^2` over the
    pairs' displacements, 1 for the cost `|d|^2 / 2`, and a network of one output.

    **Arguments:** `cost`: a `ConvexCost`; others as of `Rectified`, with a network that returns
    `(n, 1)` and whose activation has two derivatives. `cost_k` of `T.fit.numbers` is the mean of
    `c(T(x) - x)` on held-out points.

    Liu (2022), arXiv 2209.14577; Hertrich, Chambolle and Delon (2025).
    """

    name: ClassVar[str] = "c_rectified"

    cost: ConvexCost = HalfSquare()

    @property
    def _cost(self) -> ConvexCost:
        return self.cost

    def _network(self, points: Float[np.ndarray, "n dim"], key: Key[Array, ""]) -> Any:
        return network_for(self.network, key, points.shape[1], 1, points.dtype)

    def _objective(self, coupling: Coupling, base: McCann, key: Key[Array, ""]) -> Any:
        dtype = base.shift.dtype
        cost = jax.tree.map(lambda number: as_dtype(number, dtype), self.cost)
        x, y = drawn(coupling, fold_in(key, 1))
        moved = y - x
        level = float(jnp.mean(cost.value(moved)))
        share = jnp.sum(cost.gradient(moved) * moved) / jnp.maximum(jnp.sum(moved**2), 1e-30)
        share = 1.0 if isinstance(cost, HalfSquare) else float(share)
        unit = share * unit_of(base.whitening, spread_of(coupling, fold_in(key, 0)))
        *numbers, level = (as_dtype(number, dtype) for number in (unit, share, 0.0, level or 1.0))
        return FenchelYoung(coupling, Potential(base, None, *numbers), cost, level)

"""Action matching: the potential of a process that is known by draws at its times alone."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.runtime.training import Objective, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import TransportMap, as_dtype
from driftbridge.transport.diffusion_map import DiffusionMap
from driftbridge.transport.flow import Flow
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.learned import account_of, with_numbers
from driftbridge.transport.marginal_path import Lines, MarginalPath
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.networks import network_for
from driftbridge.transport.optimality import optimality_gap
from driftbridge.transport.pairing import Parts, couplings
from driftbridge.transport.points import Sample
from driftbridge.transport.potential import (
    Derivatives,
    GradientField,
    Potential,
    derivatives,
    laplacian,
    unit_of,
    with_network,
)
from driftbridge.transport.resampling import even_times

Weight = Callable[[Array], Array]


def uniform(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """All times count alike."""
    return jnp.ones_like(t)


def falling(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 - t`: the term at time 1 vanishes."""
    return 1 - t


class ActionLoss(Objective):
    """`w(0) E s(0, x_0) - w(1) E s(1, x_1) + int E [w (|grad s|^2 / 2 + ds/dt) + w' s] dt`.

    Integrated by parts it is `int w E [|grad s - v|^2 - |v|^2] / 2 dt`, with `v` the gradient field
    that moves the laws of the path: pairs are not needed, and the least value is negative. The term
    with `w'` belongs to a weight that changes. The model is the network of the potential.

    - `path`: draws of all times; `form`: a potential without a network; `scale`: a speed, the unit
      of the loss; `weight`: of the times.

    Neklyudov, Brekelmans, Severo and Makhzani (2023), arXiv 2210.06662.
    """

    path: MarginalPath
    form: Any
    scale: Float[Array, ""]
    weight: Weight = eqx.field(static=True, default=uniform)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        key, dtype = fold_in(key, 0), self.scale.dtype
        t = even_times(fold_in(key, 1), n, dtype)
        # One key for all times: what the draws have in common cancels.
        inner, first, last = (self.path.at(fold_in(key, 0), at) for at in (t, 0 * t, 0 * t + 1))
        ends = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)
        signs = jnp.where(unit_floats(fold_in(key, 2), inner[0].size, dtype) < 0.5, -1.0, 1.0)
        return t, inner, ends, signs.reshape(inner[0].shape).astype(dtype)

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, (x, mass), (end, end_mass), signs = batch
        potential = with_network(self.form, model)
        at = derivatives(potential, t, x)
        weight, slope = jax.jvp(self.weight, (t,), (jnp.ones_like(t),))
        inner = weight * (at.in_time + self.density(potential, t, x, at, signs)) + slope * at.value
        side = jnp.concatenate([jnp.zeros_like(t), jnp.ones_like(t)])
        ends = (1 - 2 * side) * self.weight(side) * end_mass * potential(side, end)[:, 0]
        return (jnp.mean(mass * inner) + jnp.sum(ends) / len(t)) / self.scale**2

    def density(
        self, potential: Any, t: Array, x: Array, at: Derivatives, signs: Array
    ) -> Float[Array, " n"]:
        """What is added to `ds/dt`, at each draw."""
        return jnp.sum(at.in_place**2, axis=1) / 2


class EntropicActionLoss(ActionLoss):
    """`ActionLoss` of a process with noise, `dX = grad s dt + sqrt(epsilon) dW`.

    Adds `epsilon / 2` times the Laplacian of `s`, by one random direction for each draw.

    Neklyudov et al. (2023), arXiv 2210.06662, "Entropic action matching".
    """

    def density(
        self, potential: Any, t: Array, x: Array, at: Derivatives, signs: Array
    ) -> Float[Array, " n"]:
        spread = self.form.epsilon / 2 * laplacian(potential, t, x, signs)
        return super().density(potential, t, x, at, signs) + spread


class ActionMatching(Flow):
    """Action matching: the gradient field that moves the laws of a path, from draws of it.

    The path is that of the lines between the pairs of a coupling, and the field `grad s(t, x)`
    moves its laws at the least kinetic energy. Pairs are not seen: the same loss serves any process
    of which there are draws at its times (`path`). Where there are pairs, `CRectified(rounds=1)`
    has the same minimiser and less noise.

    With `epsilon > 0` the process is `dX = grad s dt + sqrt(epsilon) dW`, with the same laws, and
    the result a `DiffusionMap` that can be drawn from.

    **The loss can be as low as it gets and the map far from optimal**: it is as good as the path
    that was chosen, here the coupling. `optimality_gap` of `T.fit.numbers` is independent of it.

    **Arguments:**

    - `coupling`, `held_out`, `training`, `num_steps`, `scheme`: as of `Flow`.
    - `network`: an architecture, or a network that returns `(n, 1)`; its activation must have two
      derivatives.
    - `epsilon`: `>= 0`, volatility of the process.
    - `weight`: of the times, a function that JAX can differentiate: `uniform` or `falling`.
    - `base`: as of `Rectified`.
    - `path`: a `MarginalPath` from source to target in place of the lines between pairs; it is also
      what the held-out loss is taken on.

    **Raises:** `ValueError` for a negative or infinite `epsilon`.

    Neklyudov, Brekelmans, Severo and Makhzani (2023), arXiv 2210.06662, algorithm 1.
    """

    name: ClassVar[str] = "action"
    takes_condition: ClassVar[bool] = False

    epsilon: float = 0.0
    weight: Weight = eqx.field(static=True, default=uniform)
    base: Callable[..., McCann] = eqx.field(static=True, default=mccann)
    path: MarginalPath | None = None

    def __check_init__(self):
        if not 0 <= self.epsilon < np.inf:
            raise ValueError(f"epsilon must be finite and at least 0; got {self.epsilon}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> TransportMap:
        start, dtype = time.perf_counter(), source.points.dtype
        ready = self._ready(source, target, key, 1.0)
        base = self.base(*gaussians(ready.source, ready.target), dtype)
        numbers = (unit_of(base.whitening, ready.scale), 1.0, self.epsilon)
        form = Potential(base, None, *(as_dtype(number, dtype) for number in numbers))
        loss = ActionLoss if self.epsilon == 0 else EntropicActionLoss
        objective, held_out = (
            path and loss(path, form, as_dtype(ready.scale, dtype), self.weight)
            for path in (ready.path, ready.held_out)
        )
        assert objective is not None
        network = network_for(self.network, fold_in(key, 4), source.points.shape[1], 1, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        field = GradientField(with_network(form, trained.model))
        account = account_of(self.name, trained, time.perf_counter() - start)
        if self.epsilon == 0:
            found = FlowMap(account, field, base.shift, self.num_steps, self.scheme)
            gap = optimality_gap(ready.test, found(ready.test))
            return dataclasses.replace(found, fit=with_numbers(account, {"optimality_gap": gap}))
        return DiffusionMap(
            account, field, base.shift, as_dtype(self.epsilon, dtype), self.num_steps
        )

    def _ready(self, source: Sample, target: Sample, key: Key[Array, ""], ratio: float) -> "Ready":
        """Paths to train on and to hold out, and what is known of them."""
        random, dtype = host_generator(fold_in(key, 0)), source.points.dtype
        begins, ends = (Parts.of(sample, self.held_out, random) for sample in (source, target))
        if self.path is not None:
            path, held_out = self.path, self.path if self.held_out > 0 else None
        else:
            path, held_out = (
                None if pairs is None else Lines(pairs, as_dtype(ratio, dtype))
                for pairs in couplings(begins, ends, self.coupling, fold_in(key, 1))
            )
        assert path is not None
        test = begins.test.points
        x, y = (np.asarray(side, np.float64) for side in _ends(path, fold_in(key, 2)))
        # The base knows of lines between pairs all but their spread; of other paths it knows less.
        spread, size = (float(np.sqrt(np.mean(v))) for v in (np.var(y - x, axis=0), (y - x) ** 2))
        scale = max(spread, size / 100 if self.path is None else size) or 1.0
        return Ready(path, held_out, begins.kept, ends.kept, test, x, y, scale)


class Ready(NamedTuple):
    """What a fit begins with.

    - `path`, `held_out`: to train on and to hold out, None where nothing is.
    - `source`, `target`: without the points held out; `test`: those of the source, or all.
    - `x`, `y`: draws of the path's ends that go together; `scale`: a speed, in a coordinate.
    """

    path: MarginalPath
    held_out: MarginalPath | None
    source: Sample
    target: Sample
    test: Float[np.ndarray, "n dim"]
    x: Float[np.ndarray, "draws dim"]
    y: Float[np.ndarray, "draws dim"]
    scale: float


@eqx.filter_jit
def _ends(path: MarginalPath, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Draws at times 0 and 1 of one key."""
    zero = jnp.zeros(1024)
    return path.at(key, zero)[0], path.at(key, zero + 1)[0]

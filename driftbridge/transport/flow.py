"""Flow matching: a velocity learned from pairs of points, on top of the affine map."""

import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import Fit, Method, as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow_map import FlowMap, Residual
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.measures import part_of
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.networks import MLP, Architecture
from driftbridge.transport.points import Sample

# Share of the points on which early stopping is decided, and the least number of them.
HELD_OUT, LEAST_HELD_OUT = 0.1, 16
# Pairs of a batch, and batches of pairs that are made for training and to hold out.
BATCH, POOL, HELD_OUT_POOL = 256, 200, 16


class FlowMatching(Objective):
    """`E |v(t, x_t) - (x1 - x0)|^2` in units of the scale, `x_t = (1 - t) x0 + t x1`.

    The minimiser is the conditional mean of `x1 - x0` given `x_t`, whose flow carries the law of
    `x0` to that of `x1`. The model is the network of a `Residual`.

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
        x, y = self.coupling.pairs(fold_in(key, 0), n)
        return even_times(fold_in(key, 1), n, x.dtype), x, y

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, x, y = batch
        moved = y - x
        error = (self.field(model)(t, x + t[:, None] * moved) - moved) / self.scale
        return jnp.sum(error**2) / error.size


def even_times(key: Key[Array, ""], n: int, dtype: Any) -> Float[Array, " n"]:
    """`n` times that are each uniform on [0, 1), one in each `n`-th part of it."""
    return (jnp.arange(n, dtype=dtype) + unit_floats(key, n, dtype)) / n


class Flow(Method):
    """Flow matching with straight paths between pairs of a coupling.

    The velocity is the affine map's field and a network's residual. The law of the map's images is
    that of the target as far as the training reached; it is the optimal map only so far as the
    pairs were optimal.

    **Arguments:**

    - `coupling`: a function of `(x, y, key=key)`, points or random rows of them in, a coupling
      out; None for `MinibatchOT` with batches of 256. Or a `Coupling`, which then is also what the
      held-out loss is taken on.
    - `network`: an architecture, or a network: a module of `(t, x, condition)`.
    - `training`: a `Training`.
    - `num_steps`, `scheme`: of the solution of the differential equation.

    Lipman et al. (2023), arXiv 2210.02747; Tong et al. (2024), arXiv 2302.00482; Pooladian et al.
    (2023), arXiv 2304.14772.
    """

    name: ClassVar[str] = "flow"

    coupling: Coupling | Callable | None = None
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        random = host_generator(fold_in(key, 0))
        (source, source_held), (target, target_held) = (split(s, random) for s in (source, target))
        coupling = self._coupling(source, target, POOL, fold_in(key, 1))
        base = mccann(*gaussians(source, target), dtype)
        scale = as_dtype(spread_of(coupling, fold_in(key, 2)), dtype)
        objective = FlowMatching(coupling, base, scale)
        held = self._coupling(source_held, target_held, HELD_OUT_POOL, fold_in(key, 3))
        held_out = FlowMatching(held, base, scale)
        network = self.network
        if isinstance(network, Architecture):
            network = network.build(fold_in(key, 4), dim, dim, dtype)
        check_width(network, dim, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        return FlowMap(
            account_of(self.name, trained, time.perf_counter() - start),
            objective.field(trained.model),
            base.shift,
            self.num_steps,
            self.scheme,
        )

    def _coupling(self, source: Sample, target: Sample, pool: int, key: Key[Array, ""]) -> Coupling:
        if isinstance(self.coupling, Coupling):
            return self.coupling
        weights = (s.weights if np.ptp(s.weights) > 0 else None for s in (source, target))
        weights = dict(zip(("source_weights", "target_weights"), weights, strict=True))
        points = source.points, target.points
        if self.coupling is not None:
            return self.coupling(*points, key=key, **weights)
        return MinibatchOT(*points, batch_size=BATCH, pool=pool, key=key, **weights)


def split(sample: Sample, random: np.random.Generator) -> tuple[Sample, Sample]:
    """A sample as the part to train on and the part held out."""
    n = len(sample.points)
    count = min(max(LEAST_HELD_OUT, round(HELD_OUT * n)), n // 2)
    rows = random.permutation(n)
    return part_of(sample, np.sort(rows[count:])), part_of(sample, np.sort(rows[:count]))


def spread_of(coupling: Coupling, key: Key[Array, ""]) -> float:
    """Root mean square, in a coordinate, of what pairs are moved by beyond their mean."""
    x, y = _some_pairs(coupling, key)
    moved = np.asarray(y, np.float64) - np.asarray(x, np.float64)
    spread = float(np.sqrt(np.mean(np.var(moved, axis=0))))
    return spread if spread > 0 else 1.0


@eqx.filter_jit
def _some_pairs(coupling: Coupling, key: Key[Array, ""]) -> Any:
    return coupling.pairs(key, 1024)


def check_width(network: Any, dim: int, dtype: Any) -> None:
    """Refuse a network that does not take and return points of the dimension of the data."""
    t, x = jax.ShapeDtypeStruct((2,), dtype), jax.ShapeDtypeStruct((2, dim), dtype)
    try:
        found = eqx.filter_eval_shape(lambda net, t, x: net(t, x, None), network, t, x)
    except TypeError as error:
        raise ValueError(
            f"the network does not take times (n,), points (n, {dim}) and None: {error}"
        ) from error
    if getattr(found, "shape", None) != (2, dim):
        raise ValueError(
            f"the network must return (n, {dim}) for n points of the data; for n = 2 it returned "
            f"{getattr(found, 'shape', found)}."
        )


def account_of(name: str, trained: Trained, seconds: float) -> Fit:
    """How a learned map came about."""
    messages = ()
    if trained.status == "diverged":
        messages = (
            f"training diverged after {trained.num_steps} steps; the parameters are those after "
            f"{trained.best_step}: lower the learning rate",
        )
    looks = trained.curve.held_out
    numbers = {
        "status": trained.status,
        "num_steps": trained.num_steps,
        "best_step": trained.best_step,
        "held_out_loss": float(np.nanmin(looks)) if np.isfinite(looks).any() else float("nan"),
        "training_seconds": trained.seconds,
    }
    return Fit(
        name,
        converged=trained.status != "diverged",
        messages=messages,
        numbers=tuple(numbers.items()),
        seconds=seconds,
    )

"""Flow matching: a velocity learned from pairs of points, on top of the affine map."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import Fit, Method, as_dtype
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow_map import FlowMap, Residual, Still
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.maximum_mean_discrepancy import energy_distance
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.measures import part_of
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.networks import MLP, Architecture
from driftbridge.transport.points import Sample

# Share of the points that are held out, and the least number of them.
HELD_OUT, LEAST_HELD_OUT = 0.1, 16
# Pairs of a batch, and batches of pairs that are made for training and to hold out.
BATCH, POOL, HELD_OUT_POOL = 256, 200, 16
# Points a side of the comparison with the affine map, and what is said of its outcome.
TESTED = 1000
NOT_CLOSER = (
    "held-out points came no closer to the target by the flow than by the affine map, which this is"
)


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
    - `held_out`: in `[0, 1)`, share of the points that are held out. Their pairs decide when
      training stops; and where the flow does not bring them closer to the target, in energy
      distance, than the affine map does, the affine map is what is returned. 0 trains to the end
      on all points.
    - `network`: an architecture, or a network: a module of `(t, x, condition)`.
    - `training`: a `Training`.
    - `num_steps`, `scheme`: of the solution of the differential equation.

    Lipman et al. (2023), arXiv 2210.02747; Tong et al. (2024), arXiv 2302.00482; Pooladian et al.
    (2023), arXiv 2304.14772.
    """

    name: ClassVar[str] = "flow"

    coupling: Coupling | Callable | None = None
    held_out: float = eqx.field(static=True, default=HELD_OUT)
    network: Any = MLP()
    training: Training = Training()
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def __check_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1); got {self.held_out}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> FlowMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        random = host_generator(fold_in(key, 0))
        parts = tuple(Parts.of(sample, self.held_out, random) for sample in (source, target))
        coupling, held = self._couplings(parts[0], parts[1], fold_in(key, 1))
        base = mccann(*gaussians(parts[0].kept, parts[1].kept), dtype)
        scale = as_dtype(spread_of(coupling, fold_in(key, 2)), dtype)
        objective = FlowMatching(coupling, base, scale)
        held_out = None if held is None else FlowMatching(held, base, scale)
        network = self.network
        if isinstance(network, Architecture):
            network = network.build(fold_in(key, 4), dim, dim, dtype)
        check_width(network, dim, dtype)
        trained = train(objective, network, fold_in(key, 5), self.training, held_out)
        fit = account_of(self.name, trained, time.perf_counter() - start)
        found = self._map(fit, objective.field(trained.model))
        if self.held_out > 0 and not is_closer(found, parts[0].held_out, parts[1].held_out):
            whole = mccann(*gaussians(source, target), dtype)
            fit = dataclasses.replace(fit, messages=(*fit.messages, NOT_CLOSER))
            return self._map(fit, Residual(whole, Still(), scale))
        return found

    def _map(self, fit: Fit, field: Residual) -> FlowMap:
        return FlowMap(fit, field, field.base.shift, self.num_steps, self.scheme)

    def _couplings(
        self, source: "Parts", target: "Parts", key: Key[Array, ""]
    ) -> tuple[Coupling, Coupling | None]:
        """Pairs to train on, and pairs that are held out."""
        if self.coupling is None:
            pairs = self._coupling(source.whole, target.whole, POOL, key)
            assert isinstance(pairs, MinibatchOT)
            # Of pairs of all points: held-out ones among themselves would be farther apart.
            return pairs.split(source.rows, target.rows) if self.held_out > 0 else (pairs, None)
        pairs = self._coupling(source.kept, target.kept, POOL, fold_in(key, 0))
        if self.held_out == 0:
            return pairs, None
        held_out = source.held_out, target.held_out
        return pairs, self._coupling(*held_out, HELD_OUT_POOL, fold_in(key, 1))

    def _coupling(self, source: Sample, target: Sample, pool: int, key: Key[Array, ""]) -> Coupling:
        if isinstance(self.coupling, Coupling):
            return self.coupling
        points, weights = (source.points, target.points), weights_of(source, target)
        if self.coupling is not None:
            return self.coupling(*points, key=key, **weights)
        return MinibatchOT(*points, batch_size=BATCH, pool=pool, key=key, **weights)


class Parts(NamedTuple):
    """A sample, what of it is trained on, and the rows that are held out."""

    whole: Sample
    kept: Sample
    held_out: Sample
    rows: Int[np.ndarray, " k"]

    @classmethod
    def of(cls, sample: Sample, share: float, random: np.random.Generator) -> "Parts":
        n = len(sample.points)
        count = min(max(LEAST_HELD_OUT, round(share * n)), n // 2) if share > 0 else 0
        order = random.permutation(n)
        rows, rest = np.sort(order[:count]), np.sort(order[count:])
        return cls(sample, part_of(sample, rest), part_of(sample, rows), rows)


def split(sample: Sample, random: np.random.Generator) -> tuple[Sample, Sample]:
    """A sample as the part to train on and a tenth that is held out."""
    parts = Parts.of(sample, HELD_OUT, random)
    return parts.kept, parts.held_out


def is_closer(found: FlowMap, source: Sample, target: Sample) -> bool:
    """Whether the flow brings points closer to the target than its base alone does."""
    few = slice(0, TESTED)
    alone = dataclasses.replace(found, field=Residual(found.field.base, Still(), found.field.scale))
    distances = [
        energy_distance(np.asarray(moved(source.points[few])), target.points[few])
        for moved in (found, alone)
    ]
    return bool(distances[0] < distances[1])


def weights_of(source: Sample, target: Sample) -> dict[str, Any]:
    """Weights as arguments of a coupling, None where they are equal."""
    weights = (s.weights if np.ptp(s.weights) > 0 else None for s in (source, target))
    return dict(zip(("source_weights", "target_weights"), weights, strict=True))


@eqx.filter_jit
def drawn(coupling: Coupling, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Pairs from which scales are taken."""
    return coupling.pairs(key, 1024)


def spread_of(coupling: Coupling, key: Key[Array, ""]) -> float:
    """Root mean square, in a coordinate, of what pairs are moved by beyond their mean."""
    x, y = drawn(coupling, key)
    moved = np.asarray(y, np.float64) - np.asarray(x, np.float64)
    spread = float(np.sqrt(np.mean(np.var(moved, axis=0))))
    return spread if spread > 0 else 1.0


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

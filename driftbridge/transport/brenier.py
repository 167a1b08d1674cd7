"""The gradient of a convex function that is fitted to the dual of optimal transport."""

import time
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import HELD_OUT_ROWS, Trained, Training, train
from driftbridge.transport.balanced import Balanced
from driftbridge.transport.base import Fit, Method, as_dtype
from driftbridge.transport.dual import Dual, Weighted, begin
from driftbridge.transport.folds import FEWEST, Fold, folds
from driftbridge.transport.gradient_map import GradientMap
from driftbridge.transport.measures import part_of
from driftbridge.transport.points import Sample
from driftbridge.transport.soft_maxima import SoftMaxima

# Most Newton steps to the conjugate of a batch, with products in each; and of held-out points,
# which go on until they have converged.
EFFORT, HELD_OUT_EFFORT = (3, 6), (50, 20)
# Learning rate times the root of the dimension: what moves a matrix by its entries' changes.
RATE = 0.04
AFFINE = "no fold's potential was better on its held-out points than the affine map, which this is"


class Member(NamedTuple):
    """The potential of a fold, and by how much its held-out dual is less than the affine map's."""

    trained: Trained
    balanced: Balanced
    gain: float


class BrenierMap(GradientMap):
    """`T(x) = m1 + grad phi(x - m0)`."""

    potential: SoftMaxima
    source_mean: Float[Array, " dim"]
    target_mean: Float[Array, " dim"]
    inverse_matrix: Float[Array, "dim dim"]

    @property
    def dim(self) -> int:
        return self.source_mean.shape[0]

    @property
    def dtype(self) -> Any:
        return self.source_mean.dtype

    @property
    def row_floats(self) -> int:
        members, groups, dim = self.potential.points.shape
        return 3 * groups * members + groups * dim + 3 * dim**2

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.target_mean[None] + self.potential.gradient(x - self.source_mean[None])

    def _jacobian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        return self.potential.hessian(x - self.source_mean[None])

    def _near(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.source_mean[None] + product(y - self.target_mean[None], self.inverse_matrix)

    def _length(self, y: Float[Array, "n dim"]) -> Float[Array, ""]:
        return jnp.max(jnp.abs(self.target_mean)) + jnp.max(jnp.abs(y))


class Brenier(Method):
    """The gradient of a convex function, trained on the dual of optimal transport.

    `T = grad phi`, `phi` a quadratic and soft maxima of affine functions, minimises
    `E phi(x) + E phi*(y)`, whose minimum over all convex functions is the potential of the optimal
    map between the laws. Training starts next to the affine map, in coordinates in which that is
    the identity. The points are held out in turn, a quarter each time; each potential stops where
    the dual of its held-out points is least, counts as the affine map where that is less still, and
    the mean of the four is the map: it uses all points, and the mean of convex functions is convex.

    Maps that bend in few directions it finds from few points, where entropic maps lose their
    resolution as the dimension grows. `T.fit.numbers` has `held_out_gain`, by how much the dual is
    less than the affine map's in the mean over the folds, its standard error, and how many folds
    are used. 16 points on each side are the least.

    **Arguments:**

    - `num_groups`, `num_members`: soft maxima, and affine functions in each.
    - `training`: a `Training`; None for 1500 steps of 256 points at a rate of `0.04 / sqrt(dim)`,
      looked at every 50.
    - `shrunk`: as of `Affine`, for the map that training starts from.

    Brenier (1991); Taghvaei and Jalali (2019), arXiv 1902.07197; Amos (2023), arXiv 2210.12153, on
    conjugates. Balanced coordinates, starts and the mean over folds are ours.
    """

    name: ClassVar[str] = "brenier"

    num_groups: int = eqx.field(static=True, default=64)
    num_members: int = eqx.field(static=True, default=4)
    training: Training | None = None
    shrunk: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        for name, least in (("num_groups", 1), ("num_members", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> BrenierMap:
        start = time.perf_counter()
        members = self.members(folds(source, target, host_generator(key)), key)
        return self.joined(members, source, target, start)

    def members(self, parts: list[Fold], key: Key[Array, ""]) -> list[Member]:
        """A potential for each fold.

        **Raises:** `ValueError` for fewer than 16 points on a side.
        """
        fold = parts[0]
        for sides in ((fold.source, fold.source_held_out), (fold.target, fold.target_held_out)):
            n = sum(len(sample.points) for sample in sides)
            if n < FEWEST:
                raise ValueError(
                    f"brenier needs at least {FEWEST} points on each side, some of which are held "
                    f"out; got {n}. Take 'affine' for fewer."
                )
        return [self._member(fold, fold_in(key, k), k) for k, fold in enumerate(parts)]

    def joined(
        self, members: list[Member], source: Sample, target: Sample, start: float
    ) -> BrenierMap:
        """The map of the mean of all folds' potentials, begun at `start`."""
        whole, dtype = Balanced.of(source, target, self.shrunk), source.points.dtype
        potential, m0, m1 = _mean(members, whole, dtype)
        return BrenierMap(
            _account(self.name, members, time.perf_counter() - start),
            potential,
            as_dtype(m0, dtype),
            as_dtype(m1, dtype),
            as_dtype(np.linalg.inv(whole.root @ whole.root), dtype),
        )

    def _member(self, fold: Fold, key: Key[Array, ""], number: int) -> Member:
        """The potential of one fold."""
        balanced = Balanced.of(fold.source, fold.target, self.shrunk)

        def dual(x: Sample, y: Sample, effort: tuple[int, int]) -> Dual:
            return Dual(
                Weighted.of(balanced.source(x.points), x.weights),
                Weighted.of(balanced.target(y.points), y.weights),
                num_steps=effort[0],
                num_products=effort[1],
            )

        # No more than a look takes, so that it takes all.
        x, y = (
            part_of(sample, np.arange(min(len(sample.points), HELD_OUT_ROWS)))
            for sample in (fold.source_held_out, fold.target_held_out)
        )
        held_out = dual(x, y, HELD_OUT_EFFORT)
        objective = dual(fold.source, fold.target, EFFORT)
        training = self._training(fold.source.points.shape[1]).part(f"fold{number + 1}")
        random = host_generator(fold_in(key, 0))
        first = begin(objective, self.num_groups, self.num_members, random)
        trained = train(objective, first, fold_in(key, 1), training, held_out)
        gain = held_out.affine() - float(trained.curve.held_out[_best(trained)])
        return Member(trained, balanced, balanced.scale**2 * gain)

    def _training(self, dim: int) -> Training:
        if self.training is not None:
            return self.training
        return Training(
            num_steps=1500,
            learning_rate=RATE / dim**0.5,
            averaging=0.95,
            validate_every=50,
            patience=4,
        )


def _account(name: str, members: list[Member], seconds: float) -> Fit:
    """What the folds gained, and how their trainings went."""
    trained = {f"fold {k + 1}": member.trained for k, member in enumerate(members)}
    gains = [member.gain for member in members]
    used = sum(gain > 0 for gain in gains)
    diverged = [label for label, one in trained.items() if one.status == "diverged"]
    messages = ()
    if diverged:
        messages = (f"training diverged in {', '.join(diverged)}: lower the learning rate",)
    if used == 0:
        messages = (*messages, AFFINE)
    numbers = {
        "held_out_gain": float(np.mean(gains)),
        "gain_error": float(np.std(gains, ddof=1) / np.sqrt(len(gains))),
        "folds_used": used,
        "best_steps": ", ".join(str(one.best_step) for one in trained.values()),
        "training_seconds": sum(one.seconds for one in trained.values()),
    }
    return Fit(
        name,
        converged=not diverged,
        messages=messages,
        numbers=tuple(numbers.items()),
        curves=tuple((label, one.curve) for label, one in trained.items()),
        seconds=seconds,
    )


def _best(trained: Trained) -> int:
    """The look at which the parameters that were kept were looked at."""
    return int(np.flatnonzero(trained.curve.steps == trained.best_step)[0])


def _mean(
    members: list[Member], whole: Balanced, dtype: Any
) -> tuple[SoftMaxima, np.ndarray, np.ndarray]:
    """The mean potential, as a function of `x - m0`, with `m0`, and the constant of its gradient.

    `s^2 phi(S (x - m) / s)` has the points `s S a`, temperatures `s^2 t` and the matrix `S Q S`,
    the offsets `s^2 c + s S a . (m0 - m)` about `m0`. A member that gained nothing counts as the
    affine map of the whole samples: its soft maxima are zero, so that all maps have one shape.
    """
    m0, m1, count = whole.source_mean, np.zeros_like(whole.target_mean), len(members)
    matrix, parts = np.zeros_like(whole.root), []
    for trained, own, gain in members:
        leaves = jax.tree.leaves(trained.model.potential())
        a, c, t, q, _ = (np.asarray(leaf, np.float64) for leaf in leaves)
        if not gain > 0:
            matrix += whole.root @ whole.root / count
            m1 += whole.target_mean / count
            parts.append((0 * a, 0 * c, np.ones_like(t)))
            continue
        apart, q, a = m0 - own.source_mean, own.root @ q @ own.root, own.scale * a @ own.root
        parts.append((a, own.scale**2 * c + a @ apart, own.scale**2 * t))
        matrix += q / count
        m1 += (own.target_mean + q @ apart) / count
    points, offsets = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    temperatures = np.concatenate([part[2] for part in parts])
    values = points, offsets, temperatures, matrix, 1 / len(temperatures)
    return SoftMaxima(*(as_dtype(value, dtype) for value in values)), m0, m1

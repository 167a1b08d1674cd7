"""The gradient of a convex function that is fitted to the dual of optimal transport."""

import time
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Trained, Training, train
from driftbridge.transport.affine import bures, gaussians
from driftbridge.transport.base import Fit, HasDensity, Method, as_dtype
from driftbridge.transport.convex import inverse_gradient
from driftbridge.transport.folds import folds
from driftbridge.transport.measures import part_of
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import Sample
from driftbridge.transport.soft_maxima import SoftMaxima, conjugate_points

# Most Newton steps to the conjugate of a batch, with products in each; and of held-out points,
# which go on until they have converged.
STEPS, PRODUCTS = 3, 6
HELD_OUT_STEPS, HELD_OUT_PRODUCTS = 50, 20
# Held-out points at most, and points on a side at least.
MOST_HELD_OUT, LEAST_POINTS = 4096, 16
# The least slope of a fold's map in balanced coordinates, where the affine map is the identity.
LEAST_SLOPE = 0.02
# Soft maxima begin at points of the target shrunk to this, their temperature this share of the
# variance: a map that is next to affine.
SHRUNK, WARM = 0.2, 0.5
# The least eigenvalue of the quadratic that training starts from.
LEAST_EIGENVALUE = 0.05
# Points whose mean Hessian the start takes away from the quadratic, and their coordinates at most.
STARTED, MOST_COORDINATES = 1000, 1 << 22
# Learning rate times the root of the dimension: what moves a matrix by its entries' changes.
RATE = 0.04
AFFINE = "no fold's potential was better on its held-out points than the affine map, which this is"


class Balanced(NamedTuple):
    """Coordinates `u = S (x - m0) / s`, `v = S^{-1} (y - m1) / s` with `S^2` the affine map.

    `x . y` becomes `s^2 u . v`, so that gradients of convex functions stay such; both samples have
    the same covariance, and the affine map is the identity.
    """

    root: Float[np.ndarray, "dim dim"]
    inverse: Float[np.ndarray, "dim dim"]
    scale: float
    source_mean: Float[np.ndarray, " dim"]
    target_mean: Float[np.ndarray, " dim"]

    @classmethod
    def of(cls, source: Sample, target: Sample, shrunk: bool) -> "Balanced":
        first, second = gaussians(source, target, shrunk)
        values, vectors = np.linalg.eigh(bures(first.covariance, second.covariance).matrix)
        roots = np.sqrt(np.maximum(values, np.finfo(np.float32).eps * values[-1]))
        root = (vectors * roots) @ vectors.T
        scale = np.sqrt(np.trace(root @ first.covariance @ root) / len(root))
        return cls(root, (vectors / roots) @ vectors.T, float(scale), first.mean, second.mean)

    def source(self, x: np.ndarray) -> np.ndarray:
        return (((x - self.source_mean) @ self.root) / self.scale).astype(x.dtype)

    def target(self, y: np.ndarray) -> np.ndarray:
        return (((y - self.target_mean) @ self.inverse) / self.scale).astype(y.dtype)


class Weighted(NamedTuple):
    """Points, filled up to a size bucket by ones without weight."""

    points: Float[Array, "n dim"]
    weights: Float[Array, " n"]
    levels: Float[Array, " n"]

    @classmethod
    def of(cls, points: np.ndarray, weights: np.ndarray) -> "Weighted":
        size = bucket(len(points))
        filled = padded(weights.astype(points.dtype), size)
        levels = np.cumsum(filled, dtype=np.float64).astype(points.dtype)
        return cls(*jax.device_put((padded(points, size), filled, levels)))

    def batch(self, key: Key[Array, ""], n: int) -> tuple[Array, Array]:
        """`n` points and their weights, evenly over the sample; all of them where `n` is more."""
        if n >= len(self.points):
            return self.points, self.weights
        places = (jnp.arange(n) + jax.random.uniform(key, (), self.levels.dtype)) / n
        # Below the last level, which is that of the rows of padding too.
        places = jnp.minimum(places, 1 - jnp.finfo(places.dtype).eps)
        rows = jnp.searchsorted(self.levels, places * self.levels[-1], side="right")
        return self.points[rows], jnp.full((n,), 1 / n, self.points.dtype)


class Trainable(eqx.Module):
    """The parameters of `SoftMaxima`: temperatures by their logarithm, the matrix by a root."""

    points: Float[Array, "members groups dim"]
    offsets: Float[Array, "members groups"]
    log_temperatures: Float[Array, " groups"]
    root: Float[Array, "dim dim"]

    def potential(self) -> SoftMaxima:
        least = LEAST_SLOPE * jnp.eye(len(self.root), dtype=self.root.dtype)
        return SoftMaxima(
            self.points,
            self.offsets,
            jnp.exp(self.log_temperatures),
            product(self.root, self.root.T) + least,
            jnp.asarray(1 / self.points.shape[1], self.points.dtype),
        )


class Dual(Objective):
    """`E phi(u) + E phi*(v)`, least for the potential of the optimal map.

    `phi*(v) = u(v) . v - phi(u(v))`, whose derivative in `phi` is `-phi` at `u(v)` held fixed: the
    envelope theorem. `u(v)` comes by Newton steps.

    Taghvaei and Jalali (2019), arXiv 1902.07197, equation 6; Makkuva et al. (2020), arXiv
    1908.10962, equation 4.
    """

    source: Weighted
    target: Weighted
    num_steps: int = eqx.field(static=True)
    num_products: int = eqx.field(static=True)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        return self.source.batch(fold_in(key, 0), n), self.target.batch(fold_in(key, 1), n)

    def loss(self, model: Trainable, batch: Any) -> Float[Array, ""]:
        (u, a), (v, b) = batch
        phi = model.potential()
        found = conjugate_points(lax.stop_gradient(phi), v, self.num_steps, self.num_products)
        found = lax.stop_gradient(found)
        return jnp.sum(a * phi.value(u)) + jnp.sum(
            b * (jnp.sum(found * v, axis=1) - phi.value(found))
        )


class Member(NamedTuple):
    """The potential of a fold, and by how much its held-out dual is less than the affine map's."""

    trained: Trained
    balanced: Balanced
    gain: float


class BrenierMap(HasDensity):
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

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        start = self.source_mean[None] + product(y - self.target_mean[None], self.inverse_matrix)
        length = jnp.max(jnp.abs(self.target_mean)) + jnp.max(jnp.abs(y))
        return inverse_gradient(self._transport, self._jacobian, y, start, length)

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        factor = jnp.linalg.cholesky(self._jacobian(x))
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


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
        random = host_generator(key)
        parts = list(zip(*(folds(s, random) for s in (source, target)), strict=True))
        return self.joined(self.members(parts, key), source, target, start)

    def members(
        self, parts: list[tuple[tuple[Sample, Sample], tuple[Sample, Sample]]], key: Key[Array, ""]
    ) -> "list[Member]":
        """A potential for each fold, `(x, x held out), (y, y held out)`.

        **Raises:** `ValueError` for fewer than 16 points on a side.
        """
        for side in (0, 1):
            n = sum(len(part.points) for part in parts[0][side])
            if n < LEAST_POINTS:
                raise ValueError(
                    f"brenier needs at least {LEAST_POINTS} points on each side, some of which are "
                    f"held out; got {n}. Take 'affine' for fewer."
                )
        return [self._member(*sides, fold_in(key, k), k) for k, sides in enumerate(parts)]

    def joined(
        self, members: "list[Member]", source: Sample, target: Sample, start: float
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

    def _member(
        self,
        source: tuple[Sample, Sample],
        target: tuple[Sample, Sample],
        key: Key[Array, ""],
        number: int,
    ) -> "Member":
        """The potential of one fold, given what it is trained on and what it holds out."""
        (x, x_test), (y, y_test) = source, target
        balanced = Balanced.of(x, y, self.shrunk)

        def dual(x: Sample, y: Sample, *effort: int) -> Dual:
            return Dual(
                Weighted.of(balanced.source(x.points), x.weights),
                Weighted.of(balanced.target(y.points), y.weights),
                *effort,
            )

        # No more than a look takes, so that it takes all.
        x_test, y_test = (
            part_of(sample, np.arange(min(len(sample.points), MOST_HELD_OUT)))
            for sample in (x_test, y_test)
        )
        objective = dual(x, y, STEPS, PRODUCTS)
        held_out = dual(x_test, y_test, HELD_OUT_STEPS, HELD_OUT_PRODUCTS)
        training = self._training(x.points.shape[1]).part(f"fold{number + 1}")
        begin = self._start(objective, host_generator(fold_in(key, 0)))
        trained = train(objective, begin, fold_in(key, 1), training, held_out)
        gain = _affine_dual(held_out) - float(trained.curve.held_out[_best(trained)])
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

    def _start(self, objective: Dual, random: np.random.Generator) -> Trainable:
        """A potential whose mean Hessian over the source is the identity."""
        points, weights = (np.asarray(v, np.float64) for v in objective.target[:2])
        dtype, dim = objective.target.points.dtype, points.shape[1]
        count = self.num_members, self.num_groups
        chosen = random.choice(len(points), count, p=weights / weights.sum())
        a, t = SHRUNK * points[chosen], WARM * SHRUNK**2 * dim
        few = max(1, min(STARTED, MOST_COORDINATES // (self.num_groups * dim)))
        u = np.asarray(objective.source.points, np.float64)[:few]
        b = np.asarray(objective.source.weights, np.float64)[:few]
        b = b if b.sum() > 0 else np.ones(len(b))
        offsets = -np.sum(a**2, axis=2) / 2
        logits = (np.tensordot(u, a, (1, 2)) + offsets) / t
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        means = np.einsum("njg,jgd->ngd", p, a, optimize=True) * np.sqrt(b / b.sum())[:, None, None]
        means = means.reshape(-1, dim)
        shares = np.tensordot(b / b.sum(), p, 1)
        slope = np.einsum("jg,jgd,jge->de", shares, a, a, optimize=True) - means.T @ means
        rest = (1 - LEAST_SLOPE) * np.eye(dim) - slope / (t * self.num_groups)
        values, vectors = np.linalg.eigh(rest)
        root = (vectors * np.sqrt(np.maximum(values, LEAST_EIGENVALUE))) @ vectors.T
        parts = a, offsets, np.full(self.num_groups, np.log(t)), root
        return Trainable(*jax.device_put(tuple(part.astype(dtype) for part in parts)))


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


def _affine_dual(objective: Dual) -> float:
    """The dual of `phi(u) = |u|^2 / 2`."""
    sides = objective.source, objective.target
    return float(sum(np.sum(s.weights * np.sum(np.square(s.points), axis=1)) for s in sides) / 2)


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

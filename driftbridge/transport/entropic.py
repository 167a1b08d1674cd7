"""Maps from entropic potentials: plain, debiased, and corrected by the Gaussian residual."""

import abc
import time
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.products import product
from driftbridge.transport.affine import bures, gaussians
from driftbridge.transport.base import (
    Fit,
    Method,
    Stochastic,
    TransportMap,
    as_dtype,
)
from driftbridge.transport.gradient_map import GradientMap, second_moments
from driftbridge.transport.measures import mean_cost
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import Sample
from driftbridge.transport.sinkhorn import EntropicPlan, sinkhorn

# Default regularisation over the mean cost of centred data: what the corrected map does best with
# grows with the dimension, in which entropic maps lose their resolution.
SHARE, MOST_SHARE = 0.07, 0.5
PLAIN_SHARE = 0.03


class SoftAssignment(eqx.Module):
    """The conditional mean of an entropic plan, as a function of the source point.

    With potential `g` of the target points `y_j`, weights `b_j` and cost `|x - y|^2 / 2`,

    `T(x) = sum_j p_j(x) y_j`,
    `p_j(x) ~ b_j exp((g_j - |y_j|^2 / 2 + x . y_j) / epsilon)`,

    the gradient of the convex function `epsilon log sum_j b_j exp(...)`: two matrix products.

    - `points`: `y_j`, about `origin`.
    - `offsets`: `log b_j + (g_j - |y_j|^2 / 2) / epsilon`.
    """

    points: Float[Array, "m dim"]
    offsets: Float[Array, " m"]
    epsilon: Float[Array, ""]
    origin: Float[Array, " dim"]

    def logits(self, x: Float[Array, "n dim"]) -> Float[Array, "n m"]:
        return product(x - self.origin[None], self.points.T) / self.epsilon + self.offsets[None]

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.origin[None] + product(jax.nn.softmax(self.logits(x), axis=-1), self.points)

    def potential(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """The convex function whose gradient is `T`, up to a constant."""
        soft = self.epsilon * jax.nn.logsumexp(self.logits(x), axis=-1)
        return soft + product(x - self.origin[None], self.origin)

    def jacobian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        """`Cov_p(y) / epsilon`: symmetric and positive semidefinite."""
        p = jax.nn.softmax(self.logits(x), axis=-1)
        mean = product(p, self.points)
        second = second_moments(p, self.points)
        return (second - mean[:, :, None] * mean[:, None, :]) / self.epsilon

    def draw(self, x: Float[Array, "n dim"], keys: Key[Array, " n"], n: int):
        """`n` draws from the conditional law at each point."""
        levels = jnp.cumsum(jax.nn.softmax(self.logits(x), axis=-1), axis=1)

        def choose(key, row):
            # Among ties the first, so that no point without mass is chosen.
            uniform = jax.random.uniform(key, (n,), row.dtype) * row[-1]
            return jnp.searchsorted(row, uniform, side="right")

        chosen = jax.vmap(choose)(keys, levels)
        return self.origin[None, None] + self.points[jnp.minimum(chosen, len(self.points) - 1)]


def soft_assignment(plan: EntropicPlan, origin: np.ndarray) -> SoftAssignment:
    """The conditional mean of a plan between points that were shifted by `-origin`.

    Points are filled up to a size bucket by ones without mass, on the host: another number of them
    compiles nothing.
    """
    points, potential, weights = (np.asarray(v, np.float64) for v in (plan.y, plan.g, plan.b))
    epsilon = float(plan.epsilon)
    with np.errstate(divide="ignore"):
        offsets = np.log(weights) + (potential - np.sum(points**2, axis=1) / 2) / epsilon
    size, dtype = bucket(len(points)), plan.y.dtype
    return SoftAssignment(
        as_dtype(padded(points, size), dtype),
        as_dtype(padded(offsets - offsets.max(), size, -np.inf), dtype),
        as_dtype(epsilon, dtype),
        as_dtype(origin, dtype),
    )


class _Soft(TransportMap):
    """A map made of a conditional mean: `shift` takes the source to where its target lies."""

    soft: SoftAssignment
    shift: Float[Array, " dim"]

    @property
    def dim(self) -> int:
        return self.shift.shape[0]

    @property
    def dtype(self) -> Any:
        return self.shift.dtype


class EntropicMap(_Soft, Stochastic):
    """`T(x) = E[y | x]` under the entropic plan; draws are from the conditional law."""

    @property
    def row_floats(self) -> int:
        return 3 * self.soft.points.shape[0]

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.soft(x + self.shift[None])

    def _sample(self, x: Float[Array, "n dim"], keys: Key[Array, " n"], n: int):
        return self.soft.draw(x + self.shift[None], keys, n)


class DebiasedMap(_Soft):
    """`T(x) = x + T_xy(x) - T_xx(x)`: the map of the source to itself is taken off."""

    own: SoftAssignment

    @property
    def row_floats(self) -> int:
        return 3 * (self.soft.points.shape[0] + self.own.points.shape[0])

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return x + self.soft(x + self.shift[None]) - self.own(x)


class CorrectedMap(_Soft, GradientMap):
    """`T(x) = T_eps(x) + (M - G) (x - m0)`: see `Corrected`."""

    residual: Float[Array, "dim dim"]
    source_mean: Float[Array, " dim"]
    target_mean: Float[Array, " dim"]
    inverse_matrix: Float[Array, "dim dim"]

    @property
    def row_floats(self) -> int:
        return 3 * self.soft.points.shape[0] + 2 * self.dim**2

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.soft(x + self.shift[None]) + product(x - self.source_mean[None], self.residual)

    def _potential(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        centred = x - self.source_mean[None]
        quadratic = jnp.sum(centred * product(centred, self.residual), axis=1) / 2
        return self.soft.potential(x + self.shift[None]) + quadratic

    def _jacobian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        return self.soft.jacobian(x + self.shift[None]) + self.residual[None]

    def _near(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.source_mean[None] + product(y - self.target_mean[None], self.inverse_matrix)

    def _length(self, y: Float[Array, "n dim"]) -> Float[Array, ""]:
        return jnp.max(jnp.abs(self.soft.points))


class _Regularised(Method):
    """Settings that the entropic methods share.

    **Arguments:**

    - `epsilon`: regularisation of the cost `|x - y|^2 / 2`, `> 0`; None for `share` times the mean
      cost after both means are taken off.
    - `share`: see `epsilon`; None for the rule of the method.
    - `tolerance`: L1 error of the marginals at which Sinkhorn's iteration ends.
    - `max_iterations`: after which it ends in any case, and the map says so.
    """

    epsilon: float | None = None
    share: float | None = None
    tolerance: float = 1e-3
    max_iterations: int = 20_000

    def __check_init__(self):
        for name in ("epsilon", "share", "tolerance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}.")

    @abc.abstractmethod
    def default_share(self, dim: int) -> float:
        """The regularisation over the mean cost unless it is given."""

    def epsilon_for(self, source: Sample, target: Sample) -> float:
        """The regularisation for two centred samples."""
        if self.epsilon is not None:
            return self.epsilon
        share = self.default_share(source.points.shape[1]) if self.share is None else self.share
        return max(share * mean_cost(source, target), float(np.finfo(np.float32).tiny))

    def solve(self, source: Sample, target: Sample, epsilon: float) -> EntropicPlan:
        return sinkhorn(
            source.points,
            target.points,
            epsilon=epsilon,
            a=source.weights,
            b=target.weights,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def centred(sample: Sample) -> tuple[Sample, np.ndarray]:
    """The sample about its mean, and the mean."""
    points = np.asarray(sample.points, np.float64)
    mean = sample.weights @ points
    return Sample((points - mean).astype(sample.points.dtype), sample.weights), mean


def fit_of(name: str, plans: dict[str, EntropicPlan], epsilon: float, start: float) -> Fit:
    """What is told of entropic plans."""
    failed = {n: p for n, p in plans.items() if str(p.status) != "converged"}
    messages = tuple(
        f"Sinkhorn's iteration ({n}) ended {plan.status} at a marginal error of "
        f"{float(plan.error):.2g}; take a larger epsilon or more iterations"
        for n, plan in failed.items()
    )
    numbers: list[tuple[str, float | int | str]] = [("epsilon", epsilon)]
    for plan in plans.values():
        numbers += [("iterations", int(plan.num_iterations)), ("marginal_error", float(plan.error))]
    seconds = time.perf_counter() - start
    return Fit(
        name, converged=not failed, messages=messages, numbers=tuple(numbers), seconds=seconds
    )


class Entropic(_Regularised):
    """The entropic map: the conditional mean of the target under the entropic plan.

    `T(x) = sum_j p_j(x) y_j` with `p` of `SoftAssignment`; means are taken off first, which leaves
    the plan as it is and keeps `epsilon` apart from the shift. It contracts towards the mean as
    `epsilon` grows; `Corrected` undoes that.

    **Arguments:** as in every entropic method: `epsilon`, `share` (here 0.03), `tolerance`,
    `max_iterations`.

    Pooladian and Niles-Weed (2021), arXiv 2109.12004, equation 8.
    """

    name: ClassVar[str] = "entropic"

    def default_share(self, dim: int) -> float:
        return PLAIN_SHARE

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> EntropicMap:
        start = time.perf_counter()
        (first, m0), (second, m1) = centred(source), centred(target)
        epsilon = self.epsilon_for(first, second)
        plan = self.solve(first, second, epsilon)
        fit = fit_of(self.name, {"source to target": plan}, epsilon, start)
        shift = as_dtype(m1 - m0, source.points.dtype)
        return EntropicMap(fit, soft_assignment(plan, m1), shift)


class Debiased(_Regularised):
    """The entropic map less that of the source to itself.

    `T(x) = x + T_xy(x) - T_xx(x)`. Better than the plain map in few dimensions, useless in many,
    where `T_xx` is far from the identity. Not monotone in general, hence no inverse.

    **Arguments:** as in `Entropic`.

    Pooladian, Cuturi and Niles-Weed (2022), arXiv 2202.08919.
    """

    name: ClassVar[str] = "debiased"

    def default_share(self, dim: int) -> float:
        return PLAIN_SHARE

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> DebiasedMap:
        start = time.perf_counter()
        (first, m0), (second, m1) = centred(source), centred(target)
        epsilon = self.epsilon_for(first, second)
        plan, own = self.solve(first, second, epsilon), self.solve(first, first, epsilon)
        plans = {"source to target": plan, "source to itself": own}
        fit = fit_of(self.name, plans, epsilon, start)
        shift = as_dtype(m1 - m0, source.points.dtype)
        return DebiasedMap(fit, soft_assignment(plan, m1), shift, soft_assignment(own, m0))


class Corrected(_Regularised):
    """The entropic map plus the part of the Gaussian map that entropy takes away.

    With sample covariances `C0`, `C1`, `N = (C0^{1/2} C1 C0^{1/2})^{1/2}`, the matrix
    `M = C0^{-1/2} N C0^{-1/2}` of the optimal map between Gaussians, and
    `G = C0^{-1/2} ((N^2 + epsilon^2 / 4)^{1/2} - epsilon / 2) C0^{-1/2}` that of the entropic map
    between them,

    `T(x) = T_eps(x) + (M - G) (x - m0)`.

    It is exact for Gaussians at any `epsilon`; as `epsilon` grows it tends to the affine map, as it
    shrinks to the plain entropic one. `M - G` is positive definite, since
    `n + e > (n^2 + e^2)^{1/2}` for the eigenvalues `n` of `N` and `e = epsilon / 2 > 0`; and
    `T_eps` is the gradient of a convex function. So `T` is the gradient of a strictly convex
    function: monotone, invertible, with a positive Jacobian determinant.

    **Arguments:** as in `Entropic`; `share` is `min(1/2, 0.07 sqrt(dim))` unless given.

    The construction and its proof are ours; `G` is the closed form of Janati, Muzellec, Peyré and
    Cuturi (2020), arXiv 2006.02572, theorem 1.
    """

    name: ClassVar[str] = "corrected"

    def default_share(self, dim: int) -> float:
        return min(MOST_SHARE, SHARE * dim**0.5)

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> CorrectedMap:
        start = time.perf_counter()
        (first, m0), (second, m1) = centred(source), centred(target)
        epsilon = self.epsilon_for(first, second)
        plan = self.solve(first, second, epsilon)
        gaussian = bures(*(m.covariance for m in gaussians(source, target)))
        left = gaussian.inverse_root @ gaussian.eigenvectors
        values, half = gaussian.eigenvalues, epsilon / 2
        # n - ((n^2 + e^2)^{1/2} - e) without cancellation.
        lost = 2 * values * half / (values + half + np.hypot(values, half))
        residual = (left * lost) @ left.T
        dtype = source.points.dtype
        return CorrectedMap(
            fit_of(self.name, {"source to target": plan}, epsilon, start),
            soft_assignment(plan, m1),
            as_dtype(m1 - m0, dtype),
            as_dtype(residual, dtype),
            as_dtype(m0, dtype),
            as_dtype(m1, dtype),
            as_dtype(np.linalg.pinv(gaussian.matrix, hermitian=True), dtype),
        )

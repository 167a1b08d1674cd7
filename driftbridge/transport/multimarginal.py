"""One model of maps between any two of several data sets: interpolants on the simplex."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective, Training, train
from driftbridge.transport.affine import RIDGE
from driftbridge.transport.base import Fit, Times, as_dtype
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.learned import account_of
from driftbridge.transport.measures import Moments, device_dtype, moments
from driftbridge.transport.networks import MLP, network_for
from driftbridge.transport.pairing import HELD_OUT, Parts
from driftbridge.transport.points import Sample, as_rows, as_weights, columns_of
from driftbridge.transport.resampling import Draw, Resampled, even_times
from driftbridge.transport.simplex_curves import Curve, FourierCurve, corners_of, vertex
from driftbridge.transport.simplex_regression import GaussianComponents, Regression

# Batch, and learning rate, of a search for a curve of least energy.
CURVE_TRAINING = Training(num_steps=500, batch_size=256, learning_rate=1e-2, averaging=0.99)


class AlongCurve(eqx.Module):
    """`v(t, x) = sum_k alpha_k'(t) g_k(alpha(t), x)`: the velocity of the law of `x(alpha(t))`."""

    components: Any
    curve: Curve

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        alpha, rate = (jnp.broadcast_to(a, (x.shape[0], a.shape[1])) for a in self.curve(t))
        return jnp.sum(rate[:, :, None] * self.components(alpha, x), axis=1)


class CurveEnergy(Objective):
    """`E |sum_k alpha_k' g_k|^2` along the path of independent draws; the model is a curve."""

    draws: tuple[Draw, ...]
    components: Any

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        points = [draw(fold_in(key, 1 + k), n) for k, draw in enumerate(self.draws)]
        return even_times(fold_in(key, 0), n, points[0].dtype), jnp.stack(points, axis=1)

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        t, points = batch
        x = jnp.sum(model.weights(t)[:, :, None] * points, axis=1)
        return jnp.mean(jnp.sum(AlongCurve(self.components, model)(t, x) ** 2, axis=1))


class MultimarginalField(eqx.Module):
    """Conditional means `g_k(alpha, x)` of several data sets given a mean of one point of each.

    - `fit`: how it was fitted.
    - `components`: a module of weights `(n, sets)` and points `(n, dim)` to `(n, sets, dim)`.
    - `draws`: the data sets, as laws to draw from.

    Albergo, Boffi, Lindsey and Vanden-Eijnden (2023), arXiv 2310.03695.
    """

    fit: Fit = eqx.field(static=True)
    components: Any
    draws: tuple[Draw, ...]
    like: Float[Array, " dim"]

    @property
    def num_sets(self) -> int:
        return len(self.draws)

    def velocity(
        self, alpha: Float[Array, " sets"], rate: Float[Array, " sets"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        """`sum_k rate_k g_k(alpha, x)`: how points move where the weights move by `rate`."""
        every = jnp.broadcast_to(alpha, (x.shape[0], self.num_sets))
        return jnp.einsum("k,nki->ni", rate, self.components(every, x), precision="highest")

    def score(
        self, alpha: Float[Array, " sets"], x: Float[Array, "n dim"], normal: int
    ) -> Float[Array, "n dim"]:
        """`grad log rho(alpha, x) = -g_k(alpha, x) / alpha_k`, for a data set `k` that is standard
        normal, `k = normal` and `alpha_k > 0`: with any other it is no score."""
        every = jnp.broadcast_to(alpha, (x.shape[0], self.num_sets))
        return -self.components(every, x)[:, normal] / alpha[normal]

    def map_between(
        self, i: int, j: int, num_steps: int = 20, scheme: Scheme | None = None
    ) -> FlowMap:
        """The map from data set `i` to data set `j` along their edge.

        **Raises:** `ValueError` for a number of no data set.
        """
        return self.map_through((i, j), num_steps, scheme)

    def map_through(
        self, route: Sequence[int], num_steps: int = 20, scheme: Scheme | None = None
    ) -> FlowMap:
        """The map from the first to the last data set of a route, through those between.

        **Arguments:** `route`: numbers of data sets, at least two; `num_steps`: in all, rounded up
        to a multiple of the sides.
        """
        sides = max(len(route) - 1, 1)
        curve = corners_of(tuple(route), self.num_sets, self.like.dtype)
        return self.map_along(curve, sides * -(-num_steps // sides), scheme)

    def map_along(self, curve: Curve, num_steps: int = 20, scheme: Scheme | None = None) -> FlowMap:
        """The map along any curve of weights, from where it begins to where it ends."""
        field = AlongCurve(self.components, curve)
        return FlowMap(self.fit, field, self.like, num_steps, scheme or RungeKutta4())

    def energy(self, curve: Curve, key: int | Key[Array, ""] = 0, n: int = 4096) -> float:
        """The mean of `|v|^2` along a curve, of which `W2^2` is the least that any path has."""
        return float(_energy(CurveEnergy(self.draws, self.components), curve, as_key(key), n))

    def shortest_curve(
        self,
        i: int,
        j: int,
        num_waves: int = 3,
        training: Training = CURVE_TRAINING,
        key: int | Key[Array, ""] = 0,
    ) -> FourierCurve:
        """The curve from `i` to `j` of least energy; nothing is fitted again.

        The search begins near the edge and, once each, bent towards every other data set; what it
        returns is the best of the curves that are least among their neighbours.
        """
        key, dtype = as_key(key), self.like.dtype
        ends = np.stack([vertex(k, self.num_sets) for k in (i, j)])
        objective, found = CurveEnergy(self.draws, self.components), []
        for towards in (None, *(k for k in range(self.num_sets) if k not in (i, j))):
            # The squares of a curve have no gradient at zero.
            start = 0.1 * host_generator(key).normal(size=(num_waves, self.num_sets))
            if towards is not None:
                start[0, towards] = 1.0
            curve = FourierCurve(as_dtype(ends, dtype), as_dtype(start, dtype))
            own = training.part("straight" if towards is None else f"towards{towards}")
            found.append(train(objective, curve, fold_in(key, 1), own).model)
        return min(found, key=self.energy)


def fit_multimarginal(
    data: Sequence[Any],
    key: int | Key[Array, ""] = 0,
    *,
    network: Any = None,
    training: Training | None = None,
    edge_share: float = 0.5,
) -> MultimarginalField:
    """Learn maps between all pairs of several data sets, and along all detours, with one network.

    A point of the interpolant is `x(alpha) = sum_k alpha_k x_k` of independent draws; along any
    curve of weights its law moves by `v = sum_k alpha_k' g_k`. Which points go together is not
    optimal, it comes about.

    **Arguments:**

    - `data`: at least two samples `(n_k, dim)`, arrays or data frames with the same columns.
    - `key`: seed or typed key.
    - `network`: an architecture, or a module of `(t, x, alpha)`, `t` zero and `alpha` `(n, sets)`,
      that returns `(n, sets dim)`; None for `MLP()`.
    - `training`: a `Training`, None for the default.
    - `edge_share`: in [0, 1], share of weights that lie on edges of the simplex.

    **Raises:** `ValueError` for fewer than two data sets, or ones of different dimensions.
    """
    start, key = time.perf_counter(), as_key(key)
    samples = _samples(data)
    if not 0 <= edge_share <= 1:
        raise ValueError(f"edge_share must be in [0, 1]; got {edge_share}.")
    dtype, dim = samples[0].points.dtype, samples[0].points.shape[1]
    random = host_generator(fold_in(key, 0))
    parts = [Parts.of(sample, HELD_OUT, random) for sample in samples]
    base, whitening, scale = _base([part.kept for part in parts], dtype)
    objective, held_out = (
        Regression(
            tuple(Resampled(part.points, part.weights) for part in side),
            base,
            whitening,
            scale,
            as_dtype(edge_share, dtype),
        )
        for side in ([part.kept for part in parts], [part.held_out for part in parts])
    )
    sets = len(samples)
    network = network_for(network or MLP(), fold_in(key, 1), dim, sets * dim, dtype, sets)
    trained = train(objective, network, fold_in(key, 2), training or Training(), held_out)
    fit = account_of("multimarginal", trained, time.perf_counter() - start)
    fit = dataclasses.replace(fit, columns=columns_of(data[0]))
    components = objective.components(trained.model)
    return MultimarginalField(fit, components, objective.draws, base.means[0])


def _samples(data: Sequence[Any]) -> list[Sample]:
    if len(data) < 2:
        raise ValueError(f"data must hold at least two data sets; got {len(data)}.")
    columns, samples = columns_of(data[0]), []
    for k, points in enumerate(data):
        rows = np.asarray(as_rows(points, f"data[{k}]", columns=columns))
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(
                f"data[{k}] must have shape (n, dim) with at least two rows; got {rows.shape}."
            )
        if samples and rows.shape[1] != samples[0].points.shape[1]:
            raise ValueError(
                f"all data sets must have one dimension; data[0] has "
                f"{samples[0].points.shape[1]} columns and data[{k}] {rows.shape[1]}."
            )
        samples.append(Sample(rows, as_weights(None, len(rows), f"data[{k}]")))
    dtype = device_dtype(np.zeros((), np.result_type(*(s.points.dtype for s in samples))))
    return [Sample(sample.points.astype(dtype), sample.weights) for sample in samples]


def _base(samples: list[Sample], dtype: Any) -> tuple[GaussianComponents, Array, Array]:
    """The Gaussian conditional means, the whitening of the mean covariance, and its scale."""
    found = [moments(sample) for sample in samples]
    pooled = np.mean([each.covariance for each in found], axis=0)
    variances = np.diagonal(pooled)
    ridge = np.diag(RIDGE * np.where(variances > 0, variances, 1.0))
    found = [Moments(each.mean, each.covariance + ridge) for each in found]
    values, vectors = np.linalg.eigh(pooled + ridge)
    base = GaussianComponents(
        as_dtype(np.stack([each.mean for each in found]), dtype),
        as_dtype(np.stack([each.covariance for each in found]), dtype),
    )
    whitening = as_dtype((vectors / np.sqrt(values)) @ vectors.T, dtype)
    return base, whitening, as_dtype(np.sqrt(np.mean(np.diagonal(pooled + ridge))), dtype)


@eqx.filter_jit
def _energy(objective: CurveEnergy, curve: Curve, key: Key[Array, ""], n: int) -> Any:
    return objective.loss(curve, objective.batch(key, n))

"""Conditional means of several data sets given a mean of one point of each, learned at once."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.products import product
from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.runtime.training import Objective
from driftbridge.transport.resampling import Draw, even_times


class GaussianComponents(eqx.Module):
    """`g_k(alpha, x) = E[x_k | sum_j alpha_j x_j = x]` for independent Gaussians.

    `g_k = m_k + alpha_k C_k S^{-1} (x - m)`, `m = sum alpha_k m_k`, `S = sum alpha_k^2 C_k`: their
    regression on `x`.
    """

    means: Float[Array, "sets dim"]
    covariances: Float[Array, "sets dim dim"]

    def __call__(
        self, alpha: Float[Array, "n sets"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n sets dim"]:
        num_sets, dim = self.means.shape
        flat = self.covariances.reshape(num_sets, dim * dim)
        total = product(alpha**2, flat).reshape(-1, dim, dim)
        centred = x - product(alpha, self.means)
        along = jnp.linalg.solve(total, centred[:, :, None])[:, :, 0]
        moved = jnp.einsum("kij,nj->nki", self.covariances, along, precision="highest")
        return self.means[None] + alpha[:, :, None] * moved


class Components(eqx.Module):
    """Learned conditional means on top of the Gaussian ones: `g_k + scale net_k(alpha, u)`.

    What the network adds is projected so that `sum_k alpha_k g_k = x` holds for every parameter:
    `r_k - alpha_k sum_j alpha_j r_j / sum_j alpha_j^2`. At vertex `k`, `g_k(x) = x` exactly.
    """

    base: GaussianComponents
    network: Any
    whitening: Float[Array, "dim dim"]
    scale: Float[Array, ""]

    def __call__(
        self, alpha: Float[Array, "n sets"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n sets dim"]:
        u = product(x - product(alpha, self.base.means), self.whitening)
        learned = self.network(jnp.zeros((), x.dtype), u, alpha)
        learned = learned.reshape(*alpha.shape, x.shape[1])
        share = alpha / jnp.sum(alpha**2, axis=1, keepdims=True)
        error = jnp.sum(alpha[:, :, None] * learned, axis=1)
        learned = learned - share[:, :, None] * error[:, None, :]
        return self.base(alpha, x) + self.scale * learned


class Regression(Objective):
    """`sum_k E|g_k(alpha, x(alpha)) - x_k|^2` over independent draws `x_k` and weights `alpha`.

    Half of the weights, or `edge_share` of them, lie on edges of the simplex, where maps between
    two sets go, evenly; the others are uniform on it.

    Albergo, Boffi, Lindsey and Vanden-Eijnden (2023), arXiv 2310.03695.
    """

    draws: tuple[Draw, ...]
    base: GaussianComponents
    whitening: Float[Array, "dim dim"]
    scale: Float[Array, ""]
    edge_share: Float[Array, ""]

    def components(self, network: Any) -> Components:
        """The conditional means of a network."""
        return Components(self.base, network, self.whitening, self.scale)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        sets = len(self.draws)
        points = [draw(fold_in(key, 2 + k), n) for k, draw in enumerate(self.draws)]
        points = jnp.stack(points, axis=1)
        dtype = points.dtype
        unit = unit_floats(fold_in(key, 0), n * sets, dtype).reshape(n, sets)
        # Exponentials over their sum are uniform on the simplex.
        inner = -jnp.log1p(-unit) + jnp.finfo(dtype).tiny
        inner = inner / jnp.sum(inner, axis=1, keepdims=True)
        random = unit_floats(fold_in(key, 1), 2 * n, dtype)
        first = jnp.floor(random[:n] * sets).astype(jnp.int32)
        second = (first + 1 + jnp.floor(random[n:] * (sets - 1)).astype(jnp.int32)) % sets
        t = even_times(fold_in(key, 2 + sets), n, dtype)[:, None]
        corners = jnp.eye(sets, dtype=dtype)
        edge = (1 - t) * corners[first] + t * corners[second]
        chosen = unit_floats(fold_in(key, 3 + sets), n, dtype) < self.edge_share
        return jnp.where(chosen[:, None], edge, inner), points

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        alpha, points = batch
        x = jnp.sum(alpha[:, :, None] * points, axis=1)
        error = (self.components(model)(alpha, x) - points) / self.scale
        return jnp.sum(error**2) / error.size

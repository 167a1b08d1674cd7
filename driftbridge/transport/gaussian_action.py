"""Action matching between Gaussians in closed form, with noise and growth, and as a base."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.mccann import McCann
from driftbridge.transport.measures import Moments

# Chebyshev polynomials in which the coefficients of a Gaussian path's potential are held.
DEGREE = 8


class Quadratic(NamedTuple):
    """`s(x) = constant + <slope, x - m> + <x - m, matrix (x - m)> / 2`."""

    constant: float
    slope: Float[np.ndarray, " dim"]
    matrix: Float[np.ndarray, "dim dim"]


def gaussian_action(
    covariance: ArrayLike,
    covariance_rate: ArrayLike,
    mean_rate: ArrayLike,
    mass_rate: float = 0.0,
    *,
    delta: float = np.inf,
    epsilon: float = 0.0,
) -> Quadratic:
    """The potential of action matching on Gaussians `m_t N(mu_t, C_t)`, at one time.

    The one quadratic `s` with `d rho/dt = -div(rho grad s) + epsilon / 2 Laplace rho
    + s rho / delta^2`:

    `B C + C B + C B C / delta^2 = dC/dt - epsilon I`, `(I + C / delta^2) c = d mu/dt`,
    `a = delta^2 (dm/dt) / m - tr(B C) / 2`.

    **Arguments:**

    - `covariance`, `covariance_rate`, `mean_rate`: `C` and `dC/dt`, `(dim, dim)`, and `d mu/dt`,
      `(dim,)`.
    - `mass_rate`: `(dm/dt) / m`.
    - `delta`: `> 0`; infinite for no growth, where the constant `a` is arbitrary and given as 0.
    - `epsilon`: `>= 0`, the volatility.

    Neklyudov et al. (2023), arXiv 2210.06662, sections 2 and 3, for Gaussians.
    """
    covariance = np.asarray(covariance, np.float64)
    values, vectors = np.linalg.eigh(covariance)
    rate = np.asarray(covariance_rate, np.float64) - epsilon * np.eye(len(values))
    sums = values[:, None] + values[None, :]
    sums = sums + values[:, None] * values[None, :] / delta**2
    matrix = vectors @ ((vectors.T @ rate @ vectors) / sums) @ vectors.T
    along = vectors.T @ np.asarray(mean_rate, np.float64)
    slope = vectors @ (along / (1 + values / delta**2))
    growth = 0.0 if np.isinf(delta) else delta**2 * mass_rate
    constant = 0.0 if np.isinf(delta) else growth - float(np.sum(matrix * covariance)) / 2
    return Quadratic(constant, slope, matrix)


class QuadraticPotential(eqx.Module):
    """`s(t, x)` of a Gaussian path, and `unit net(t, u)` of a network.

    The coefficients of the quadratic in `x - m_t` are Chebyshev series in time; `u` is `x` carried
    back along the affine map and whitened.
    """

    base: McCann
    network: Any
    unit: Float[Array, ""]
    constants: Float[Array, " terms"]
    slopes: Float[Array, "terms dim"]
    matrices: Float[Array, "terms dim dim"]

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n 1"]:
        t = jnp.broadcast_to(t, x.shape[:1])
        centred = x - self.base.source_mean[None] - t[:, None] * self.base.shift[None]
        terms, dim = self.slopes.shape
        turned = product(centred, jnp.moveaxis(self.matrices, 0, 1).reshape(dim, terms * dim))
        bent = jnp.sum(turned.reshape(-1, terms, dim) * centred[:, None, :], axis=2) / 2
        quadratic = self.constants[None] + product(centred, self.slopes.T) + bent
        values = jnp.sum(chebyshev(t, terms) * quadratic, axis=1, keepdims=True)
        u = self.base.whitened(self.base.start_of(t, x))
        return values + self.unit * self.network(t, u, condition)


def chebyshev(t: Float[Array, " n"], terms: int) -> Float[Array, "n terms"]:
    """The first Chebyshev polynomials of `2 t - 1`."""
    z = 2 * t - 1
    found = [jnp.ones_like(z), z]
    for _ in range(terms - 2):
        found.append(2 * z * found[-1] - found[-2])
    return jnp.stack(found[:terms], axis=1)


def quadratic_potential(
    base: McCann,
    unit: float,
    source: Moments,
    target: Moments,
    cross: Float[np.ndarray, "dim dim"],
    log_ratio: float,
    delta: float,
) -> QuadraticPotential:
    """The potential of the Gaussians with the moments of `(1 - t) x0 + t x1`, mass `ratio^t`."""
    first, last, dtype = source.covariance, target.covariance, base.shift.dtype
    both, shift = cross + cross.T, target.mean - source.mean
    # Nodes of Chebyshev's polynomials, at which the series is exact.
    nodes = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
    found = []
    for t in (nodes + 1) / 2:
        covariance = (1 - t) ** 2 * first + t**2 * last + t * (1 - t) * both
        rate = -2 * (1 - t) * first + 2 * t * last + (1 - 2 * t) * both
        found.append(gaussian_action(covariance, rate, shift, log_ratio, delta=delta))
    series = []
    for part in zip(*found, strict=True):
        values = np.asarray(part)
        flat = values.reshape(len(nodes), -1)
        coefficients = np.polynomial.chebyshev.chebfit(nodes, flat, DEGREE)
        series.append(as_dtype(coefficients.reshape(values.shape), dtype))
    return QuadraticPotential(base, None, as_dtype(unit, dtype), *series)

"""Distances of a law to a target as the best of many test functions: what a JKO step descends."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.products import product
from driftbridge.transport.resampling import Draw, normals

# Beyond this the exponential of a test function would overflow in float32 squares.
LARGEST = 30.0


class Gaussian(eqx.Module):
    """The Gaussian with the moments of the points that a step begins with."""

    mean: Float[Array, " dim"]
    root: Float[Array, "dim dim"]
    inverse_root: Float[Array, "dim dim"]

    def whitened(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Coordinates in which it is standard normal."""
        return product(x - self.mean[None], self.inverse_root)

    def unwhitened(self, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.mean[None] + product(u, self.root)

    def log_density(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """Up to its norming constant, which is that of the whitening."""
        return -jnp.sum(self.whitened(x) ** 2, axis=1) / 2

    def draw(self, key: Key[Array, ""], n: int) -> Float[Array, "n dim"]:
        shape = n, self.mean.shape[0]
        return self.unwhitened(normals(key, shape, self.mean.dtype))


class Energy(eqx.Module):
    """`F(P) = sup_h E_P a(h, x) - E_R b(h, z)`, with test values `h` of any sign."""

    @abc.abstractmethod
    def draw(self, reference: Gaussian, key: Key[Array, ""], n: int) -> Float[Array, "n dim"]:
        """Points `z` of the law `R`."""

    @abc.abstractmethod
    def value(
        self,
        test: Callable[[Array], Array],
        x: Float[Array, "n dim"],
        z: Float[Array, "m dim"],
        reference: Gaussian,
    ) -> Float[Array, ""]:
        """The value at one test function, from points of both laws."""


class KullbackLeibler(Energy):
    """`KL(P || Q)` up to a constant, for a density `Q` that need not be normalised.

    With `mu` the Gaussian that has the moments of the step's start,
    `KL = sup_h E_P [h + log mu - log Q] - E_mu exp(h) + 1`; the best `h` is `log dP/dmu`. A
    constant in `log Q` moves the value and nothing else.

    **Arguments:** `log_density`: a function of points `(n, dim)` that returns `(n,)` and that JAX
    can differentiate; the same object for every fit, as a new one compiles again.

    Fan, Zhang, Taghvaei and Chen (2022), arXiv 2112.02424.
    """

    log_density: Callable[[Array], Array]

    def draw(self, reference: Gaussian, key: Key[Array, ""], n: int) -> Float[Array, "n dim"]:
        return reference.draw(key, n)

    def value(
        self,
        test: Callable[[Array], Array],
        x: Float[Array, "n dim"],
        z: Float[Array, "m dim"],
        reference: Gaussian,
    ) -> Float[Array, ""]:
        # log mu up to the constant of its covariance: the value is KL up to constants.
        ratio = reference.log_density(x) - self.log_density(x)
        dual = test(x) - jnp.mean(jnp.exp(jnp.minimum(test(z), LARGEST))) + 1
        return jnp.mean(dual + ratio)


class JensenShannon(Energy):
    """Twice the Jensen-Shannon divergence to samples, in `[0, 2 log 2]`.

    `sup_h E_P log(1 - sigmoid(h)) + E_Q log sigmoid(h) + 2 log 2`; the best `h` is `log dQ/dP`.

    Goodfellow et al. (2014), arXiv 1406.2661, theorem 1.
    """

    target: Draw

    def draw(self, reference: Gaussian, key: Key[Array, ""], n: int) -> Float[Array, "n dim"]:
        return self.target(key, n)

    def value(
        self,
        test: Callable[[Array], Array],
        x: Float[Array, "n dim"],
        z: Float[Array, "m dim"],
        reference: Gaussian,
    ) -> Float[Array, ""]:
        best = -jnp.mean(jax.nn.softplus(test(x))) - jnp.mean(jax.nn.softplus(-test(z)))
        return best + 2 * np.log(2)


class Witness(eqx.Module):
    """A scalar network plus a quadratic form of whitened points, all zero at first.

    Ratios of Gaussian densities are in its class without the network.
    """

    network: Any
    quadratic: Float[Array, "dim dim"]
    linear: Float[Array, " dim"]
    constant: Float[Array, ""]

    def __call__(self, u: Float[Array, "n dim"]) -> Float[Array, " n"]:
        curved = jnp.sum(product(u, self.quadratic) * u, axis=1)
        flat = product(u, self.linear[:, None])[:, 0] + self.constant
        zero = jnp.zeros((), u.dtype)
        return self.network(zero, u, None)[:, 0] + curved + flat

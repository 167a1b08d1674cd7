"""Targets on which laws have closed forms."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.targets.base import Target


class Quadratic(Target):
    """`U(x) = λ |x|^2 / 2`."""

    curvature: Float[Array, ""] | float
    dim: int = eqx.field(static=True, default=1)

    def log_density(self, x):
        return -self.curvature * jnp.sum(x**2) / 2


class LogCosh(Target):
    """`U(x) = sum x^2 / 2 + 2 log cosh x`: curvatures from `m = 1` to `M = 3`, not Gaussian."""

    dim: int = eqx.field(static=True, default=1)

    def log_density(self, x):
        return -jnp.sum(x**2 / 2 + 2 * jnp.logaddexp(x, -x))

    def score(self, x):
        return -x - 2 * jnp.tanh(x)

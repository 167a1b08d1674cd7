"""Noise of interpolants: `gamma(t)`, zero at times 0 and 1.

What enters a velocity is the product `gamma gamma'`, which is finite; `gamma'` alone diverges at
the ends for the root that a Brownian bridge has, and is exposed nowhere. A gamma of one's own is a
subclass with `squared`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Time = Float[Array, "..."]


class Gamma(eqx.Module):
    """The standard deviation of the noise, a function of times of any shape.

    A subclass implements `squared`, smooth on [0, 1], zero at both ends and positive between.
    """

    @abc.abstractmethod
    def squared(self, t: Time) -> Time:
        """`gamma(t)^2`."""

    def __call__(self, t: Time) -> Time:
        """`gamma(t)`."""
        # Times that rounding puts beyond an end have none.
        return jnp.sqrt(jnp.maximum(self.squared(t), 0))

    def product(self, t: Time) -> Time:
        """`gamma(t) gamma'(t)`, half the derivative of the square."""
        return jax.jvp(self.squared, (t,), (jnp.ones_like(t),))[1] / 2


class NoNoise(Gamma):
    """`gamma = 0`: a flow without a score."""

    def squared(self, t: Time) -> Time:
        return jnp.zeros_like(t)


class Brownian(Gamma):
    """`gamma = sqrt(scale t (1 - t))`, as of a Brownian bridge of volatility `scale`, `> 0`.

    The only one here whose velocity holds the scores of source and target at the ends.
    """

    scale: float | Array = 1.0

    def __check_init__(self):
        if isinstance(self.scale, float | int) and not 0 < self.scale < np.inf:
            raise ValueError(f"scale must be positive and finite; got {self.scale}.")

    def squared(self, t: Time) -> Time:
        return self.scale * t * (1 - t)


class Squared(Gamma):
    """`gamma = t (1 - t)`."""

    def squared(self, t: Time) -> Time:
        return (t * (1 - t)) ** 2


class SineSquared(Gamma):
    """`gamma = sin^2(pi t)`."""

    def squared(self, t: Time) -> Time:
        return jnp.sin(np.pi * t) ** 4

"""Convex costs of a displacement, with the gradient of the conjugate that a velocity needs."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Added to squared lengths, so that a power has a derivative at zero.
SMALLEST = 1e-12


class ConvexCost(eqx.Module):
    """A convex function `c` of a displacement, `c(0) = 0`, and its conjugate `c*`.

    `c*(p) = max_d <p, d> - c(d)`. The Fenchel-Young inequality `c(d) + c*(p) >= <p, d>` holds with
    equality where `d = grad c*(p)`. All take rows `(n, dim)`.
    """

    @abc.abstractmethod
    def value(self, d: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """`c(d)`."""

    @abc.abstractmethod
    def gradient(self, d: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`grad c(d)`, the inverse of `conjugate_gradient`."""

    @abc.abstractmethod
    def conjugate(self, p: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """`c*(p)`."""

    @abc.abstractmethod
    def conjugate_gradient(self, p: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`grad c*(p)`, the displacement of momentum `p`."""


class HalfSquare(ConvexCost):
    """`c(d) = |d|^2 / 2`, which is its own conjugate: velocity and momentum are one."""

    def value(self, d: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return jnp.sum(d**2, axis=1) / 2

    def gradient(self, d: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return d

    def conjugate(self, p: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return jnp.sum(p**2, axis=1) / 2

    def conjugate_gradient(self, p: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return p


class Power(ConvexCost):
    """`c(d) = |d|^p / p`, with `c*(m) = |m|^q / q` and `1 / p + 1 / q = 1`.

    **Arguments:** `p`: `> 1`; near 1 the conjugate's power `p / (p - 1)` is large, and training
    slow.

    **Raises:** `ValueError` for another `p`.
    """

    p: float | Array

    def __init__(self, p: float | Array):
        if not 1 < p < np.inf:
            raise ValueError(f"p must be above 1 and finite; got {p}.")
        self.p = p

    @property
    def q(self) -> float | Array:
        """The conjugate exponent."""
        return self.p / (self.p - 1)

    def value(self, d: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return _power(d, self.p) / self.p

    def gradient(self, d: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return d * _power(d, self.p - 2)[:, None]

    def conjugate(self, p: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return _power(p, self.q) / self.q

    def conjugate_gradient(self, p: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return p * _power(p, self.q - 2)[:, None]


def _power(d: Float[Array, "n dim"], exponent: float | Array) -> Float[Array, " n"]:
    return (jnp.sum(d**2, axis=1) + SMALLEST) ** (exponent / 2)

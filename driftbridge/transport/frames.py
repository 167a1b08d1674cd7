"""Coordinates in which the affine map stands still."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.affine import bures
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.mccann import McCann, mccann
from driftbridge.transport.measures import Moments


class Frame(eqx.Module):
    """Affine coordinates that may move with time: `x = m_t + A_t u`."""

    @abc.abstractmethod
    def enter(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`u` of `x`."""

    @abc.abstractmethod
    def leave(self, t: Times, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`x` of `u`."""

    @abc.abstractmethod
    def log_det(self) -> Float[Array, ""] | float:
        """`log |det A_1| - log |det A_0|`."""


class Unmoved(Frame):
    """The user's own coordinates."""

    def enter(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return x

    def leave(self, t: Times, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return u

    def log_det(self) -> float:
        return 0.0


class Whitened(Frame):
    """Coordinates that whiten the source, and the target pulled back by the affine map.

    `m_t = (1 - t) m0 + t m1` and `A_t = ((1 - t) I + t M) C0^{1/2}`, with `T(x) = m1 + M (x - m0)`
    the optimal map between Gaussians: in them source and target have mean 0 and covariance I, and
    a point that rests moves along the straight path of that map.
    """

    base: McCann
    unwhitening: Float[Array, "dim dim"]

    def enter(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.base.whitened(self.base.start_of(t, x))

    def leave(self, t: Times, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        base, t = self.base, jnp.reshape(t, (-1, 1))
        along = product(u, self.unwhitening) * (1 - t + t * base.slopes[None])
        return base.source_mean[None] + t * base.shift[None] + product(along, base.vectors.T)

    def of_rows(self, t: float, x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        """`u` of a data set of any number of rows, on the host, where none compiles anything."""
        base = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self.base)
        centred = np.asarray(x, np.float64) - base.source_mean - t * base.shift
        return centred @ base.vectors / (1 - t + t * base.slopes) @ base.whitening

    def log_det(self) -> Float[Array, ""]:
        return jnp.sum(jnp.log(self.base.slopes))


def whitened(source: Moments, target: Moments, dtype) -> Whitened:
    """The frame between samples of given moments, whose covariances are regular."""
    base = mccann(source, target, dtype)
    root = bures(source.covariance, target.covariance).root
    vectors = np.asarray(base.vectors, np.float64)
    return Whitened(base, as_dtype(root @ vectors, dtype))

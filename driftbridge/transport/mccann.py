"""The straight path between two Gaussians: a field without training, the base of learned ones."""

import jax.numpy as jnp
import numpy as np
from equinox import Module
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.affine import bures
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.measures import Moments


class McCann(Module):
    """The velocity of McCann's interpolation between Gaussians, whose flow is the affine map.

    The points `x_t = (1 - t) x0 + t T(x0)` of the optimal map `T(x) = m1 + M (x - m0)` move by
    `v(t, x) = m1 - m0 + (M - I) ((1 - t) I + t M)^{-1} (x - m_t)`; with `M = U diag(slopes) U'` the
    inverse is a division.

    McCann (1997), section 2; Takatsu (2011), theorem 1.1.
    """

    source_mean: Float[Array, " dim"]
    shift: Float[Array, " dim"]
    vectors: Float[Array, "dim dim"]
    slopes: Float[Array, " dim"]
    whitening: Float[Array, "dim dim"]

    def start_of(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Where on the source the points at times `t` came from, along the eigenvectors."""
        t = jnp.reshape(t, (-1, 1))
        centred = x - self.source_mean[None] - t * self.shift[None]
        return product(centred, self.vectors) / (1 - t + t * self.slopes[None])

    def velocity_of(self, start: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """The velocity, constant along a path, of what `start_of` returned."""
        return self.shift[None] + product(start * (self.slopes - 1)[None], self.vectors.T)

    def whitened(self, start: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """What `start_of` returned in coordinates in which the source has unit covariance."""
        return product(start, self.whitening)

    def __call__(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.velocity_of(self.start_of(t, x))


def mccann(source: Moments, target: Moments, dtype) -> McCann:
    """The field between Gaussians of given moments, whose covariances are regular."""
    parts = bures(source.covariance, target.covariance)
    slopes, vectors = np.linalg.eigh(parts.matrix)
    # A slope of zero would make a path end in a point, which has no inverse.
    slopes = np.maximum(slopes, float(np.finfo(dtype).eps) * slopes[-1])
    return McCann(
        as_dtype(source.mean, dtype),
        as_dtype(target.mean - source.mean, dtype),
        as_dtype(vectors, dtype),
        as_dtype(slopes, dtype),
        as_dtype(vectors.T @ parts.inverse_root, dtype),
    )

"""Curves in the simplex of weights, from one vertex to another."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.base import Times, as_dtype


class Curve(eqx.Module):
    """Weights of the data sets at times in [0, 1]."""

    @abc.abstractmethod
    def weights(self, t: Float[Array, " n"]) -> Float[Array, "n sets"]:
        """Weights at times: nonnegative, with sum 1."""

    def __call__(self, t: Times) -> tuple[Float[Array, "n sets"], Float[Array, "n sets"]]:
        """Weights and their rates of change, one row for one time."""
        t = jnp.atleast_1d(t)
        return jax.jvp(self.weights, (t,), (jnp.ones_like(t),))


class Polyline(Curve):
    """Straight from corner to corner, each side in the same time.

    Where there are several sides the weights rest at corners, by `3 s^2 - 2 s^3` of the time `s` on
    a side: a velocity that jumps would cost an integrator its order.

    **Arguments:** `corners`: points of the simplex `(corners, sets)`.
    """

    corners: Float[Array, "corners sets"]

    def weights(self, t: Float[Array, " n"]) -> Float[Array, "n sets"]:
        sides = self.corners.shape[0] - 1
        side = jnp.clip(jnp.floor(t * sides), 0, sides - 1)
        share, index = (t * sides - side)[:, None], side.astype(jnp.int32)
        share = share if sides == 1 else share**2 * (3 - 2 * share)
        return self.corners[index] + share * (self.corners[index + 1] - self.corners[index])


class FourierCurve(Curve):
    """From one vertex to another, bent by squares of sines:

    `alpha(t) ~ (1 - t) e_i + t e_j + (sum_m c_m sin(pi m t))^2`, divided by its sum. Every value of
    the coefficients is a curve in the simplex with these ends.

    **Arguments:** `ends`: two points `(2, sets)`; `coefficients`: `(waves, sets)`.

    Albergo, Boffi, Lindsey and Vanden-Eijnden (2023), arXiv 2310.03695.
    """

    ends: Float[np.ndarray, "2 sets"] | Float[Array, "2 sets"]
    coefficients: Float[Array, "waves sets"]

    def weights(self, t: Float[Array, " n"]) -> Float[Array, "n sets"]:
        waves = jnp.arange(1, self.coefficients.shape[0] + 1, dtype=t.dtype)
        bend = jnp.sin(np.pi * t[:, None] * waves[None]) @ self.coefficients
        t, ends = t[:, None], jax.lax.stop_gradient(self.ends)
        found = (1 - t) * ends[:1] + t * ends[1:] + bend**2
        return found / jnp.sum(found, axis=1, keepdims=True)


def vertex(number: int, num_sets: int) -> Float[np.ndarray, " sets"]:
    """A corner of the simplex.

    **Raises:** `ValueError` for a number of no data set.
    """
    if not 0 <= number < num_sets:
        raise ValueError(
            f"the data sets are numbered 0 to {num_sets - 1}; there is none of number {number}."
        )
    return np.eye(num_sets)[number]


def corners_of(route: tuple[int, ...], num_sets: int, dtype) -> Polyline:
    """The polyline through vertices."""
    if len(route) < 2:
        raise ValueError(f"a route has at least two data sets; got {route}.")
    return Polyline(as_dtype(np.stack([vertex(k, num_sets) for k in route]), dtype))

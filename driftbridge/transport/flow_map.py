"""The map that a velocity field makes, with inverse, density and trajectories."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.base import Dynamic, HasDensity, Learned, Times
from driftbridge.transport.integration import RungeKutta4, Scheme, integrate
from driftbridge.transport.mccann import McCann

# Up to this dimension the divergence is exact, one derivative for each coordinate; above it is
# estimated with this many random directions.
EXACT_DIM, NUM_PROBES = 32, 8


class Residual(eqx.Module):
    """A learned velocity on top of the affine map: `v(t, x) = v_G(t, x) + scale net(t, u)`.

    `v_G` is the field between the Gaussians that have the moments of the data, and `u` is `x`
    carried back along it and whitened. A network that is zero leaves the affine map.
    """

    base: McCann
    network: Any
    scale: Float[Array, ""]

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        start = self.base.start_of(t, x)
        learned = self.network(t, self.base.whitened(start), condition)
        return self.base.velocity_of(start) + self.scale * learned


class Still(eqx.Module):
    """The network that adds nothing."""

    def __call__(self, t: Times, x: Float[Array, "n dim"], condition: Any = None):
        return jnp.zeros_like(x)


class FlowMap(Learned, Dynamic, HasDensity):
    """`T(x)` is where `dx/dt = v(t, x)` carries `x` from time 0 to time 1.

    - `field`: the velocity, a module of `(t, x)` with `t` `()` or `(n,)`, `x` `(n, dim)`.
    - `num_steps`, `scheme`: of the numerical solution; another accuracy is
      `dataclasses.replace(T, num_steps=...)`.

    `log_det` is the integral of the divergence: exact to 32 dimensions, above them Hutchinson's
    estimate with eight random directions, the same ones for all points.
    """

    field: Any
    like: Float[Array, " dim"]
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())

    def _velocity(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, "n dim"]:
        return self.field(t, x)

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return integrate(self._at, x, 0, 1, self.num_steps, self.scheme)

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return integrate(self._at, y, 1, 0, self.num_steps, self.scheme)

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        def both(t, state):
            return divergence(lambda z: self._at(t, z), state[0])

        start = x, jnp.zeros(x.shape[0], x.dtype)
        return integrate(both, start, 0, 1, self.num_steps, self.scheme)[1]

    def _trajectory(
        self, x: Float[Array, "n dim"], times: tuple[float, ...]
    ) -> Float[Array, "n times dim"]:
        places, at = [], 0.0
        for time in times:
            if time > at:
                steps = int(np.ceil(self.num_steps * (time - at)))
                x = integrate(self._at, x, at, time, steps, self.scheme)
            places.append(x)
            at = time
        return jnp.stack(places, axis=1)

    def _at(self, t: Float[Array, ""], x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.field(t, x)


def divergence(
    velocity: Callable[[Array], Array], x: Float[Array, "n dim"]
) -> tuple[Float[Array, "n dim"], Float[Array, " n"]]:
    """A field at a batch of points, and its divergence there.

    Hutchinson (1990), for more than 32 dimensions.
    """
    dim = x.shape[1]
    value, derivative = jax.linearize(velocity, x)
    if dim <= EXACT_DIM:
        basis = jnp.eye(dim, dtype=x.dtype)
        along = jax.vmap(lambda e: derivative(jnp.broadcast_to(e[None], x.shape)))(basis)
        return value, jnp.trace(along, axis1=0, axis2=2)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(NUM_PROBES, dim)).astype(x.dtype)
    along = jax.vmap(lambda e: derivative(jnp.broadcast_to(e[None], x.shape)))(jnp.asarray(signs))
    return value, jnp.mean(jnp.sum(along * signs[:, None, :], axis=2), axis=0)

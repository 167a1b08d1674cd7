"""Learned scalar potentials, on top of the affine map's, and the fields of their gradients."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.base import Times
from driftbridge.transport.convex_cost import ConvexCost, HalfSquare
from driftbridge.transport.mccann import McCann


class Derivatives(NamedTuple):
    """A potential at points and times, and its derivatives in both."""

    value: Float[Array, " n"]
    in_time: Float[Array, " n"]
    in_place: Float[Array, "n dim"]


class Potential(eqx.Module):
    """`s(t, x) = share phi(t, x) - epsilon |u|^2 / 4 + unit net(t, u)`.

    `phi` is the potential of the affine map's field, `grad phi = v_G`: McCann's velocity is
    symmetric in `x`, so it has one,

    `phi(t, x) = <m1 - m0, x - m_t> + <a, (M - I) ((1 - t) I + t M) a> / 2`,

    where `x - m_t = ((1 - t) I + t M) a`. `u`, `x` carried back along it and whitened, is standard
    normal at every time where the data are Gaussian, so that `grad (-|u|^2 / 2)` is the score of
    the path. A network that is zero leaves the field of the affine map.

    - `network`: None in a form that networks are put into.
    - `unit`: scale of the network's values, a speed times a length.
    - `share`: of the affine part, 1 for the cost `|d|^2 / 2`.
    - `epsilon`: volatility of a process with noise, whose drift is `v + epsilon / 2 grad log rho`.
    """

    base: McCann
    network: Any
    unit: Float[Array, ""]
    share: Float[Array, ""]
    epsilon: Float[Array, ""]

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n 1"]:
        start = self.base.start_of(t, x)
        u = self.base.whitened(start)
        affine = self.base_potential(t, x, start)[:, None]
        score = self.epsilon / 4 * jnp.sum(u**2, axis=1, keepdims=True)
        return self.share * affine - score + self.unit * self.network(t, u, condition)

    def base_potential(
        self, t: Times, x: Float[Array, "n dim"], start: Float[Array, "n dim"]
    ) -> Float[Array, " n"]:
        """`phi`, given `start_of(t, x)`, the eigencoordinates of `a`."""
        base, t = self.base, jnp.reshape(t, (-1, 1))
        centred = x - base.source_mean[None] - t * base.shift[None]
        slopes = base.slopes[None]
        bend = (slopes - 1) * (1 - t + t * slopes) * start**2
        return jnp.sum(centred * base.shift[None], axis=1) + jnp.sum(bend, axis=1) / 2


class GradientField(eqx.Module):
    """The velocity `grad c*(grad s(t, x))` of a potential, `grad s` for the cost `|d|^2 / 2`."""

    potential: Any
    cost: ConvexCost = HalfSquare()

    def __call__(
        self, t: Times, x: Float[Array, "n dim"], condition: Any = None
    ) -> Float[Array, "n dim"]:
        return self.cost.conjugate_gradient(derivatives(self.potential, t, x, condition).in_place)


def with_network(form: Any, network: Any) -> Any:
    """A potential with this network."""
    return eqx.tree_at(lambda p: p.network, form, network, is_leaf=lambda leaf: leaf is None)


def derivatives(
    potential: Any, t: Times, x: Float[Array, "n dim"], condition: Any = None
) -> Derivatives:
    """The values `(n, 1)` of a potential and its derivatives in time and place, by one pass."""
    t = jnp.broadcast_to(t, x.shape[:1])
    value, pull = jax.vjp(lambda t, x: potential(t, x, condition)[:, 0], t, x)
    in_time, in_place = pull(jnp.ones_like(value))
    return Derivatives(value, in_time, in_place)


def laplacian(
    potential: Any, t: Times, x: Float[Array, "n dim"], direction: Float[Array, "n dim"]
) -> Float[Array, " n"]:
    """`<z, Hessian z>` for a direction each: the Laplacian in the mean over random signs `z`.

    Hutchinson (1990); one derivative of the gradient along `z`.
    """
    gradient = GradientField(potential)
    along = jax.jvp(lambda x: gradient(t, x), (x,), (direction,))[1]
    return jnp.sum(along * direction, axis=1)


def unit_of(whitening: Any, scale: float) -> float:
    """A speed as the unit of a potential of whitened coordinates: times a length of the source."""
    # V' C^{-1/2}, whose inverse has the squared norm tr C.
    sizes = np.linalg.svd(np.asarray(whitening, np.float64), compute_uv=False)
    return float(scale * np.sqrt(np.mean(sizes**-2.0)))

"""How points move along a flow: energy against distance, straightness, rotation, steps needed."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.base import Dynamic
from driftbridge.transport.flow_map import FlowMap

# Times at which velocities are looked at, and directions in which they are differentiated.
TIMES, PROBES = 40, 4
# Numbers of steps that are tried, and what they may change of the distance moved.
STEPS, ACCURACY = (1, 2, 3, 5, 10, 20, 40), 0.01


class Motion(NamedTuple):
    """How a flow moves points `x_t` from `x_0` to `x_1`.

    - `energy`: `E int |v|^2 dt`, at least the cost `E |x_1 - x_0|^2`.
    - `curvature`: `E int |v - (x_1 - x_0)|^2 dt` over the cost: 0 for straight paths at constant
      speed, energy over cost less 1 in general.
    - `rotation`: share of the antisymmetric part in `E |dv/dx|^2`: 0 for gradients, as the velocity
      of optimal transport is one; 1/2 where the derivative has no symmetry at all.
    - `steps`: least number of steps of the map's scheme whose images differ from the map's by at
      most 1 % of the distance moved, in the root mean square; None if none of those tried does.
    """

    energy: float
    curvature: float
    rotation: float
    steps: int | None


def motion(transport: Dynamic, x: Float[np.ndarray, "n dim"]) -> Motion:
    """How a flow moves points.

    **Arguments:** `x`: points of the source `(n, dim)`.
    """
    times = np.linspace(0, 1, TIMES + 1)
    places = np.asarray(transport.trajectory(x, times), np.float64)
    moved = places[-1] - places[0]
    cost = max(float(np.mean(np.sum(moved**2, axis=1))), 1e-300)
    # Simpson's rule: the ends once, odd points four times, even ones twice.
    weights = np.where(np.arange(TIMES + 1) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    weights /= 3 * TIMES
    energy, antisymmetric, whole = 0.0, 0.0, 0.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(PROBES, x.shape[1]))
    probes = jax.device_put(signs.astype(transport.dtype))
    for t, place, weight in zip(times, places, weights, strict=True):
        at = jax.device_put(place.astype(transport.dtype))
        v, part, all_ = (
            np.asarray(f) for f in _looked_at(transport, at, jnp.asarray(t, at.dtype), probes)
        )
        energy += weight * float(np.mean(np.sum(np.square(v, dtype=np.float64), axis=1)))
        antisymmetric += weight * float(part)
        whole += weight * float(all_)
    return Motion(
        energy,
        max(energy / cost - 1, 0.0),
        antisymmetric / max(whole, 1e-300),
        _steps(transport, x, places[-1], cost),
    )


@eqx.filter_jit
def _looked_at(transport: Dynamic, x: Array, t: Array, probes: Array):
    """Velocities, and the mean squares of `(J - J') u / 2` and of `J u`."""
    velocity, push = jax.linearize(lambda x: transport._velocity(x, t), x)
    pull = jax.linear_transpose(push, x)

    def along(u):
        u = jnp.broadcast_to(u[None], x.shape)
        forward, backward = push(u), pull(u)[0]
        return jnp.mean(jnp.sum((forward - backward) ** 2, axis=1)) / 4, jnp.mean(
            jnp.sum(forward**2, axis=1)
        )

    parts, wholes = jax.vmap(along)(probes)
    return velocity, jnp.mean(parts), jnp.mean(wholes)


def _steps(transport: Dynamic, x: np.ndarray, image: np.ndarray, cost: float) -> int | None:
    if not isinstance(transport, FlowMap):
        return None
    for steps in STEPS:
        moved = np.asarray(dataclasses.replace(transport, num_steps=steps)(x), np.float64)
        if np.mean(np.sum((moved - image) ** 2, axis=1)) <= ACCURACY**2 * cost:
            return steps
    return None

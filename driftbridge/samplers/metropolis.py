"""The accept-or-reject decision every adjusted kernel shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from driftbridge.samplers.base import Info, State
from driftbridge.samplers.noise import normals_and_uniforms

# Energy errors beyond this are counted as divergences (as in Stan and NumPyro).
DIVERGENCE = 1000.0


class MetropolisNoise(NamedTuple):
    """Standard normals for the proposal and a uniform for the decision."""

    normal: Float[Array, "*shape"]
    uniform: Float[Array, ""]


def metropolis_noise(key: Key[Array, ""], shape: tuple[int, ...], dtype) -> MetropolisNoise:
    """Noise of one step whose proposal takes normals of this shape."""
    return MetropolisNoise(*normals_and_uniforms(key, shape, dtype))


def kinetic_change(
    before: Float[Array, " dim"], after: Float[Array, " dim"]
) -> Float[Array, " dim"]:
    """Change of `v^2 / 2` in each coordinate, for unit mass.

    The product of difference and mean keeps the digits that a difference of two sums of squares,
    each of size `dim / 2`, loses in float32.
    """
    return (after - before) * (after + before) / 2


def metropolis(
    state: State,
    proposal: State,
    energy_error: Float[Array, ""],
    uniform: Float[Array, ""],
    num_gradients: int | Int[Array, ""],
    energy: tuple[Float[Array, ""], Float[Array, ""]],
) -> tuple[State, Info]:
    """Accept `proposal` with probability `min(1, exp(-energy_error))`, else keep `state`.

    A NaN or infinite error is a rejection and a divergence. `uniform` is in `[0, 1)`; `energy` is
    the total energy of `state` and of `proposal`, each with its velocity.
    """
    error = jnp.where(jnp.isfinite(energy_error), energy_error, jnp.inf)
    rate = jnp.exp(-jnp.maximum(error, 0))
    accepted = uniform < rate
    new = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, state)
    info = Info(
        acceptance_rate=rate,
        is_divergent=error > DIVERGENCE,
        num_gradients=jnp.asarray(num_gradients, jnp.int32),
        energy_error=error,
        energy=jnp.where(accepted, energy[1], energy[0]),
    )
    return new, info

"""The accept-or-reject decision every adjusted kernel shares."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.samplers.base import Info, State

# Energy errors beyond this are counted as divergences (as in Stan and NumPyro).
DIVERGENCE = 1000.0


def metropolis(
    state: State,
    proposal: State,
    energy_error: Float[Array, ""],
    uniform: Float[Array, ""],
    num_gradients,
) -> tuple[State, Info]:
    """Accept `proposal` with probability `min(1, exp(-energy_error))`, else keep `state`.

    A NaN or infinite error is a rejection and a divergence. `uniform` is in `[0, 1)`.
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
    )
    return new, info

"""The Metropolis-adjusted Langevin algorithm."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.samplers.base import Facts, Info, Sampler, require_positive
from driftbridge.samplers.metropolis import metropolis
from driftbridge.targets.base import Target


class MALAState(NamedTuple):
    """Position with what the next step reuses."""

    position: Float[Array, " dim"]
    log_density: Float[Array, ""]
    score: Float[Array, " dim"]


class MALANoise(NamedTuple):
    """A standard normal for the proposal and a uniform for the decision."""

    normal: Float[Array, " dim"]
    uniform: Float[Array, ""]


class MALA(Sampler):
    """Langevin proposals, accepted or rejected.

    `x' = x + h s(x) + sqrt(2h) xi`, accepted with probability `min(1, exp(-E))`,
    `E = U(x') - U(x) + (s + s') . (x' - x) / 2 + h (|s'|^2 - |s|^2) / 4`,
    where `U` is the potential and `s = -grad U`. `E` is the log Metropolis ratio written without
    the cancelling squares, and equals the energy error of one leapfrog step of size `sqrt(2h)`.

    **Arguments:**

    - `step_size`: `h > 0`, time of the overdamped diffusion.

    Roberts and Tweedie (1996), section 1.4.2.
    """

    step_size: Float[Array, ""] | float = 0.1

    facts: ClassVar[Facts] = Facts(
        summary="Langevin proposal with a Metropolis step",
        gradients="1",
        bias="none",
        source="Roberts & Tweedie 1996, sec. 1.4.2",
        adjusted=True,
        uses_value=True,
    )

    def __check_init__(self):
        require_positive(step_size=self.step_size)

    def init(self, target: Target, position: Float[Array, " dim"]) -> MALAState:
        return MALAState(position, *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MALANoise:
        normal, uniform = jax.random.split(key)
        return MALANoise(
            jax.random.normal(normal, like.shape, like.dtype),
            jax.random.uniform(uniform, (), like.dtype),
        )

    def step(self, target: Target, state: MALAState, noise: MALANoise) -> tuple[MALAState, Info]:
        h = self.step_size
        position = state.position + h * state.score + jnp.sqrt(2 * h) * noise.normal
        proposal = MALAState(position, *target.value_and_score(position))
        error = (
            state.log_density
            - proposal.log_density
            + jnp.sum((state.score + proposal.score) * (position - state.position)) / 2
            + h * (jnp.sum(proposal.score**2) - jnp.sum(state.score**2)) / 4
        )
        return metropolis(state, proposal, error, noise.uniform, num_gradients=1)

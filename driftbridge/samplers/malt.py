"""Metropolis-adjusted Langevin trajectories."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.samplers.base import Facts, Info, Point, Sampler
from driftbridge.samplers.metropolis import (
    MetropolisNoise,
    kinetic_change,
    metropolis,
    metropolis_noise,
)
from driftbridge.samplers.ornstein_uhlenbeck import free_flight, refresh
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


class MALT(Sampler):
    """Trajectories of kinetic Langevin dynamics from a fresh velocity, accepted as a whole.

    `v ~ N(0, I)`; `n` steps O(h/2) B(h/2) A(h) B(h/2) O(h/2) of size `h`; the end is accepted with
    probability `min(1, exp(-E))`, where `E` sums the energy errors of the B-A-B parts alone: the O
    moves are reversible for the velocity's law by themselves. No velocity is flipped. Neighbouring
    O moves are merged, and the first and the last half move only redraw what is redrawn anyway.
    Without friction it would be `HMC`, and one step is MALA with step size `h^2 / 2`.

    **Arguments:**

    - `step_size`: `h > 0`, time of the kinetic dynamics with unit mass.
    - `friction`: `γ > 0`, per unit time.
    - `num_steps`: `n >= 1`, steps of a trajectory (an int: it sets the shape of the noise).

    Riou-Durand and Vogrinc (2022), arXiv 2202.13230, algorithm 1.
    """

    step_size: Float[Array, ""] | float = 0.1
    friction: Float[Array, ""] | float = 1.0
    num_steps: int = eqx.field(static=True, default=10)

    facts: ClassVar[Facts] = Facts(
        summary="kinetic Langevin trajectories with a Metropolis step",
        gradients="n",
        bias="none",
        source="Riou-Durand & Vogrinc 2022, arXiv 2202.13230, alg. 1",
        adjusted=True,
        uses_value=True,
        acceptance=0.8,
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size, friction=self.friction, num_steps=self.num_steps)

    def init(self, target: Target, position: Float[Array, " dim"]) -> Point:
        return Point(position, *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MetropolisNoise:
        return metropolis_noise(key, (self.num_steps, *like.shape), like.dtype)

    def step(self, target: Target, state: Point, noise: MetropolisNoise) -> tuple[Point, Info]:
        h = self.step_size
        flight = free_flight(self.friction, h)

        def kick_refresh_kick_drift(i, carry):
            position, velocity, heat = carry
            score = target.score(position)
            before = velocity + h / 2 * score
            normal = lax.dynamic_index_in_dim(noise.normal, i, 0, keepdims=False)
            after = refresh(before, flight, normal)
            velocity = after + h / 2 * score
            return position + h * velocity, velocity, heat + kinetic_change(before, after)

        start = noise.normal[0]
        velocity = start + h / 2 * state.score
        carry = (state.position + h * velocity, velocity, jnp.zeros_like(start))
        position, velocity, heat = lax.fori_loop(1, self.num_steps, kick_refresh_kick_drift, carry)
        end = Point(position, *target.value_and_score(position))
        velocity = velocity + h / 2 * end.score
        # The B-A-B parts change the kinetic energy by what the O moves do not.
        work = jnp.sum(kinetic_change(start, velocity) - heat)
        error = state.log_density - end.log_density + work
        energies = (
            jnp.sum(start**2) / 2 - state.log_density,
            jnp.sum(velocity**2) / 2 - end.log_density,
        )
        return metropolis(state, end, error, noise.uniform, self.num_steps, energies)

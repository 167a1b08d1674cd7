"""Kinetic Langevin dynamics with a Metropolis step after every leapfrog step."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.batching import outlined_alone
from driftbridge.samplers.base import Facts, Info, Point
from driftbridge.samplers.kinetic import Kinetic, is_unset, unset
from driftbridge.samplers.metropolis import (
    MetropolisNoise,
    kinetic_change,
    metropolis,
    metropolis_noise,
)
from driftbridge.samplers.ornstein_uhlenbeck import free_flight, refresh
from driftbridge.targets.base import Target


class AdjustedKineticState(NamedTuple):
    """Position and velocity, infinite until the first step, with what the next step reuses."""

    position: Float[Array, " dim"]
    velocity: Float[Array, " dim"]
    log_density: Float[Array, ""]
    score: Float[Array, " dim"]


class AdjustedKinetic(Kinetic):
    """One step of kinetic Langevin dynamics, accepted, or rejected with the velocity reversed.

    `v <- exp(-γh) v + sqrt(u (1 - exp(-2γh))) xi`, then B(h/2) A(h) B(h/2), accepted with
    probability `min(1, exp(-E))`, `E = U' - U + (|v'|^2 - |v|^2) / (2u)`; on rejection `(x, -v)`.
    The two half O moves of OBABO are merged. A rejection turns the chain back, so the step is
    chosen for rare rejections. One gradient a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`.

    Horowitz (1991); Bou-Rabee and Vanden-Eijnden (2010), section 2.
    """

    in_line: ClassVar[bool] = False  # two of its coefficients are cheaper than an operation more

    facts: ClassVar[Facts] = Facts(
        summary="kinetic Langevin with a Metropolis step after every step",
        gradients="1",
        bias="none",
        source="Horowitz 1991",
        adjusted=True,
        kinetic=True,
        uses_value=True,
        acceptance=0.9,
    )

    def init(self, target: Target, position: Float[Array, " dim"]) -> AdjustedKineticState:
        return AdjustedKineticState(position, unset(position), *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MetropolisNoise:
        return metropolis_noise(key, like.shape, like.dtype)

    def step(
        self, target: Target, state: AdjustedKineticState, noise: MetropolisNoise
    ) -> tuple[AdjustedKineticState, Info]:
        h, u = self.step_size, self.u
        flight = free_flight(self.friction, h, u)
        velocity = jnp.where(
            is_unset(state.velocity),
            jnp.sqrt(u) * noise.normal,
            refresh(state.velocity, flight, noise.normal),
        )
        position = state.position + h * (velocity + u * h / 2 * state.score)
        end = Point(position, *target.value_and_score(position))
        return _judged(self, state._replace(velocity=velocity), end, noise.uniform)


@outlined_alone
def _judged(
    sampler: AdjustedKinetic, state: AdjustedKineticState, end: Point, uniform: Float[Array, ""]
):
    u, velocity = sampler.u, state.velocity
    final = velocity + u * sampler.step_size / 2 * (state.score + end.score)
    error = state.log_density - end.log_density + jnp.sum(kinetic_change(velocity, final)) / u
    energy = jnp.sum(velocity**2) / (2 * u) - state.log_density
    proposal = AdjustedKineticState(end.position, final, end.log_density, end.score)
    turned = state._replace(velocity=-velocity)
    return metropolis(turned, proposal, error, uniform, 1, (energy, energy + error))

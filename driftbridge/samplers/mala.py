"""The Metropolis-adjusted Langevin algorithm."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.batching import outlined_alone
from driftbridge.samplers.base import Facts, Info, Point, Sampler
from driftbridge.samplers.metropolis import MetropolisNoise, metropolis, metropolis_noise
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


class MALA(Sampler):
    """Langevin proposals, accepted or rejected.

    `x' = x + h s(x) + sqrt(2h) xi`, accepted with probability `min(1, exp(-E))`,
    `E = U(x') - U(x) + (s + s') . (x' - x) / 2 + h (|s'|^2 - |s|^2) / 4`,
    where `U` is the potential and `s = -grad U`. `E` is the log Metropolis ratio written without
    the cancelling squares, and equals the energy error of one leapfrog step of size `sqrt(2h)`
    from velocity `xi`; the energy reported is that leapfrog's.

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
        acceptance=0.574,  # optimal in high dimension: Roberts & Rosenthal (1998), theorem 1
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size)

    def init(self, target: Target, position: Float[Array, " dim"]) -> Point:
        return Point(position, *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MetropolisNoise:
        return metropolis_noise(key, like.shape, like.dtype)

    def step(self, target: Target, state: Point, noise: MetropolisNoise) -> tuple[Point, Info]:
        h = self.step_size
        position = state.position + h * state.score + jnp.sqrt(2 * h) * noise.normal
        proposal = Point(position, *target.value_and_score(position))
        return _judged(self, state, proposal, noise)


@outlined_alone
def _judged(mala: MALA, state: Point, proposal: Point, noise: MetropolisNoise):
    error = mala.energy_error(state, proposal)
    energy = jnp.sum(noise.normal**2) / 2 - state.log_density
    return metropolis(state, proposal, error, noise.uniform, 1, (energy, energy + error))

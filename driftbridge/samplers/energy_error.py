"""The energy error of unadjusted samplers, by which warm-up chooses their step size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.samplers.base import Info, Noise, Point, Sampler, State, Wrapper
from driftbridge.samplers.metropolis import DIVERGENCE
from driftbridge.targets.base import Target


class EnergyState(NamedTuple):
    """State of the sampler with the value and the gradient of the log density at its position."""

    position: Float[Array, " dim"]
    inner: State
    log_density: Float[Array, ""]
    score: Float[Array, " dim"]

    @property
    def point(self) -> Point:
        return Point(self.position, self.log_density, self.score)


class EnergyNoise(NamedTuple):
    """Noise of the sampler, and a uniform for the decision on the way to the typical set."""

    inner: Noise
    uniform: Float[Array, ""]


class WithEnergyError(Wrapper):
    """An unadjusted sampler whose steps report their energy error, for warm-up.

    After each step the log density and its gradient are evaluated at the new position (one more
    gradient, counted in `num_gradients`), and the sampler's `energy_error` is taken between the
    two points; a step whose error would be a divergence is refused. Unless it says otherwise this
    error is

    `E = U' - U + (s + s') . (x' - x) / 2 + tau (|s'|^2 - |s|^2) / 4`

    with `tau = h` (overdamped) or `u h^2 / 2` (kinetic). It is exactly the log Metropolis ratio of
    Langevin Monte Carlo, and the energy error of the B-A-B part of a kinetic step, for

    `(|v'|^2 - |v|^2) / (2u) = (s + s') . (x' - x) / 2 + (u h^2 / 8) (|s'|^2 - |s|^2)`

    when `v' - v = u h (s + s') / 2` and `x' - x = h v + u h^2 s / 2`; elsewhere it is a proxy. On a
    Gaussian of precision `lambda` the first two terms of `E` cancel the change of potential, and
    `E = (tau lambda^2 / 4) (x'^2 - x^2)`. In equilibrium `x^2` has variance `2 / lambda^2` and
    correlation `1 - 2 tau lambda` over a step, to leading order, so that for each coordinate

    `Var E = tau^3 lambda^3 / 2 = 4 b^3`,  `b = tau lambda / 2`:

    `b` is the relative bias `h lambda / 2` of LMC's variance and `u h^2 lambda / 4` of OBABO's.
    To be combined as `Preconditioned(WithEnergyError(sampler), metric)`: errors are then of the
    dynamics in `z`.

    **Arguments:**

    - `sampler`: an unadjusted sampler, not a wrapper (`ValueError` otherwise).
    - `approach`: 1 on the way to the typical set, 0 afterwards. On the way the velocity is drawn
      afresh in every step and moves are accepted with probability `min(1, exp(-E))`: from a bad
      start the energy of undamped dynamics, or an unstable first step size, would take very long
      to die out. The acceptance rate is reported in either case.

    The variance as a measure of bias: arXiv 2412.08876.
    """

    sampler: Sampler
    approach: Float[Array, ""] | float = 0.0

    def __check_init__(self):
        name = type(self.sampler).__name__
        if isinstance(self.sampler, Wrapper):
            raise ValueError(
                f"WithEnergyError takes a bare sampler; got {name}. "
                f"Write {name}(WithEnergyError(sampler), ...)."
            )
        if self.sampler.facts.adjusted:
            raise ValueError(
                f"{name} reports its energy error itself; use it without WithEnergyError."
            )

    def init(self, target: Target, position: Float[Array, " dim"]) -> EnergyState:
        inner = self.sampler.init(target, position)
        return EnergyState(position, inner, *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> EnergyNoise:
        uniform = unit_floats(fold_in(key, 1), 1, like.dtype)[0]
        return EnergyNoise(self.sampler.noise(fold_in(key, 0), like), uniform)

    def step(
        self, target: Target, state: EnergyState, noise: EnergyNoise
    ) -> tuple[EnergyState, Info]:
        approaching = jnp.asarray(self.approach) > 0
        start = choose(approaching, self.sampler.refuse(state.inner), state.inner)
        inner, info = self.sampler.step(target, start, noise.inner)
        new = EnergyState(inner.position, inner, *target.value_and_score(inner.position))
        # With a fresh velocity a kinetic step is a Langevin step, and has its ratio.
        error = jnp.where(
            approaching,
            Sampler.energy_error(self.sampler, state.point, new.point),
            self.sampler.energy_error(state.point, new.point),
        )
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)
        rate = jnp.exp(-jnp.maximum(error, 0))
        kept = jnp.where(approaching, noise.uniform < rate, error <= DIVERGENCE)
        return choose(kept, new, self.refuse(state)), info._replace(
            acceptance_rate=rate,
            energy_error=error,
            is_divergent=info.is_divergent | (error > DIVERGENCE),
            num_gradients=info.num_gradients + 1,
        )

    def refuse(self, state: EnergyState) -> EnergyState:
        return state._replace(inner=self.sampler.refuse(state.inner))


def choose(condition: Bool[Array, ""], yes: State, no: State) -> State:
    """One of two states."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

"""Hamiltonian trajectories whose step size is drawn around the local scale of the target."""

import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.samplers.base import Facts, Info, Point
from driftbridge.samplers.hmc import JitteredStepHMC, leapfrog
from driftbridge.samplers.metropolis import kinetic_change, metropolis
from driftbridge.samplers.noise import normals_and_uniforms
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import is_concrete


class LocalScaleNoise(NamedTuple):
    """The velocity, the normal that draws the step size, and a uniform for the decision."""

    velocity: Float[Array, " dim"]
    scale: Float[Array, ""]
    uniform: Float[Array, ""]


class LocalScaleHMC(JitteredStepHMC):
    """Hamiltonian trajectories with a step size of each position's own.

    With `r(x) = log(|s(x)|² / d) / 2`, zero on average for a whitened Gaussian, and
    `ψ(x) = -(r - clip(r, ±1.5 / sqrt(d)))`, a transition draws

    `log e ~ N(ψ(x), σ²)`,  `v ~ N(0, I)`,

    takes `n = ceil(T / h)` leapfrog steps of size `e T / n (1 + j (2 r(t) - 1))`, and accepts with
    the probability `min(1, exp(-E - D))`, `E` the change of energy and
    `D = ((log e - ψ(x'))² - (log e - ψ(x))²) / (2 σ²)` what the choice of `e` costs. For
    `(x, v, e)` has the density `exp(-U(x) - |v|²/2) N(log e; ψ(x), σ²)`, and a trajectory with its
    end velocity flipped is an involution of unit Jacobian at fixed `e`. Where the density narrows
    (a funnel, a centred hierarchy) steps shrink with it, at no gradient more than in `HMC`. With
    `σ = 0` steps are of one size everywhere, and it is `JitteredStepHMC`.

    **Arguments:**

    - `step_size`: `h > 0`, at a place of average scale.
    - `trajectory_length`: `T > 0`, mean time there.
    - `jitter`: `j` in (0, 1], as in `JitteredStepHMC`.
    - `spread`: `σ >= 0`.

    Bou-Rabee, Carpenter and Marsden (2024), arXiv 2404.15253, on Gibbs self-tuning; this choice of
    `ψ` is our own.
    """

    spread: Float[Array, ""] | float = 1.0

    facts: ClassVar[Facts] = Facts(
        summary="leapfrog trajectories with local step sizes and a Metropolis step",
        gradients="ceil(T / h)",
        bias="none",
        source="Bou-Rabee, Carpenter & Marsden 2024, arXiv 2404.15253",
        adjusted=True,
        uses_value=True,
        acceptance=0.8,
    )

    def __check_init__(self):
        spread = self.spread
        if is_concrete(spread) and not (np.isfinite(spread) and np.min(spread) >= 0):
            raise ValueError(f"spread must be finite and not negative; got {spread}.")

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> LocalScaleNoise:
        normals, uniform = normals_and_uniforms(key, (like.size + 1,), like.dtype)
        return LocalScaleNoise(normals[:-1], normals[-1], uniform)

    def step(self, target: Target, state: Point, noise: LocalScaleNoise) -> tuple[Point, Info]:
        num_steps, step_size = self.steps(state.position.dtype)
        is_local = jnp.asarray(self.spread) > 0
        spread = jnp.where(is_local, self.spread, 1)
        centre = log_scale(state.score)
        log_factor = centre + spread * noise.scale
        factor = jnp.exp(jnp.clip(log_factor, -20, 4))
        size = step_size * jnp.where(is_local, factor, 1)
        end, velocity = leapfrog(target, state, noise.velocity, size, num_steps)
        kinetic = jnp.sum(kinetic_change(noise.velocity, velocity))
        error = state.log_density - end.log_density + kinetic
        moved = log_factor - log_scale(end.score)
        cost = (moved**2 / spread**2 - noise.scale**2) / 2
        total = error + jnp.where(is_local, cost, 0)
        energy = jnp.sum(noise.velocity**2) / 2 - state.log_density
        state, info = metropolis(
            state, end, total, noise.uniform, num_steps, (energy, energy + error)
        )
        # A step drawn far above the local scale fails by design; one below it should not.
        fails = info.is_divergent & ~(is_local & (noise.scale > 0))
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)
        return state, info._replace(energy_error=error, is_divergent=fails)


def log_scale(score: Float[Array, " dim"]) -> Float[Array, ""]:
    """`ψ`: minus the log of the score's size, where it differs from what a Gaussian would have."""
    dim = score.size
    usual = 1.5 / math.sqrt(dim)
    size = jnp.log(jnp.maximum(jnp.sum(score**2) / dim, jnp.finfo(score.dtype).tiny)) / 2
    return jnp.clip(size, -usual, usual) - size

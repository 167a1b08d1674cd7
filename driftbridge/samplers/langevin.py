"""Overdamped Langevin dynamics `dx = score(x) dt + sqrt(2) dW`, discretised without correction."""

import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.samplers.base import Facts, Info, Sampler, unadjusted_info
from driftbridge.samplers.noise import coarse_uniform, normals, normals_and_uniforms
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


class PositionState(NamedTuple):
    """A position, for steps that reuse nothing."""

    position: Float[Array, " dim"]


class ScoreState(NamedTuple):
    """A position and the score there."""

    position: Float[Array, " dim"]
    score: Float[Array, " dim"]


class LMC(Sampler):
    """Langevin Monte Carlo, the Euler-Maruyama scheme, also known as ULA.

    `x' = x + h s(x) + sqrt(2h) xi`, with `s` the score. On a Gaussian of curvature `λ` the
    stationary variance is `1 / (λ (1 - hλ/2))`; stable for `hλ < 2`. One gradient a step.

    **Arguments:**

    - `step_size`: `h > 0`, time of the diffusion.

    Roberts and Tweedie (1996), section 1.4.1; Durmus, Majewski and Miasojedow (2019) for rates.
    """

    step_size: Float[Array, ""] | float = 0.1

    facts: ClassVar[Facts] = Facts(
        summary="Euler-Maruyama for the overdamped diffusion (ULA)",
        gradients="1",
        bias="h/2",
        energy_order=3,
        strong_order=1.0,
        weak_order=1.0,
        source="Roberts & Tweedie 1996, sec. 1.4.1",
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size)

    def init(self, target: Target, position: Float[Array, " dim"]) -> ScoreState:
        return ScoreState(position, target.score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return normals(key, like.shape, like.dtype)

    def step(
        self, target: Target, state: ScoreState, noise: Float[Array, " dim"]
    ) -> tuple[ScoreState, Info]:
        h = self.step_size
        position = state.position + h * state.score + jnp.sqrt(2 * h) * noise
        return ScoreState(position, target.score(position)), unadjusted_info(position, 1)

    def coarsen(self, first: Float[Array, " dim"], second: Float[Array, " dim"]):
        return (first + second) / math.sqrt(2)


class MidpointNoise(NamedTuple):
    """The fraction of the step at which the force is taken, and the path before and after it."""

    uniform: Float[Array, ""]
    before: Float[Array, " dim"]
    after: Float[Array, " dim"]


class RandomizedMidpoint(Sampler):
    """Randomized midpoint Langevin Monte Carlo.

    With one uniform `U` a step and chain, and the same Brownian path in both lines,

    `y  = x + hU s(x) + sqrt(2hU) xi1`,
    `x' = x + h s(y) + sqrt(2h) (sqrt(U) xi1 + sqrt(1 - U) xi2)`.

    On a Gaussian, with `a = hλ`, the stationary variance times `λ` is
    `(1 - a + a²/2) / (1 - a + a²/2 - a³/6)`, so the bias is third order. Two gradients a step.

    **Arguments:**

    - `step_size`: `h > 0`, time of the diffusion. Theory: `Mh + sqrt(κ) (Mh)^{3/2} <= 1/4` for
      curvatures up to `M` and condition number `κ`.

    Yu, Karagulyan and Dalalyan (2024), arXiv 2306.08494; Shen and Lee (2019), arXiv 1909.05503.
    """

    step_size: Float[Array, ""] | float = 0.1

    facts: ClassVar[Facts] = Facts(
        summary="Overdamped diffusion with the force at a random time of the step",
        gradients="2",
        bias="h³/6",
        energy_order=3,
        strong_order=1.0,
        weak_order=2.0,
        source="Yu, Karagulyan & Dalalyan 2024, arXiv 2306.08494",
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size)

    def init(self, target: Target, position: Float[Array, " dim"]) -> PositionState:
        return PositionState(position)

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MidpointNoise:
        normals, uniform = normals_and_uniforms(key, (2, *like.shape), like.dtype)
        return MidpointNoise(uniform, *normals)

    def step(
        self, target: Target, state: PositionState, noise: MidpointNoise
    ) -> tuple[PositionState, Info]:
        h, x = self.step_size, state.position
        time = h * noise.uniform
        path = jnp.sqrt(2 * time) * noise.before
        midpoint = x + time * target.score(x) + path
        path = path + jnp.sqrt(2 * (h - time)) * noise.after
        position = x + h * target.score(midpoint) + path
        return PositionState(position), unadjusted_info(position, 2)

    def coarsen(self, first: MidpointNoise, second: MidpointNoise) -> MidpointNoise:
        # The path in four pieces; in units of the step they take `a`, `1 - a`, `b` and `1 - b`.
        a, b = first.uniform, second.uniform
        inner = jnp.sqrt(1 - a) * first.after + jnp.sqrt(b) * second.before
        before = (jnp.sqrt(a) * first.before + inner) / jnp.sqrt(1 + b)
        after = (inner + jnp.sqrt(1 - b) * second.after) / jnp.sqrt(2 - a)
        is_early, uniform = coarse_uniform(a, b)
        return MidpointNoise(
            uniform,
            jnp.where(is_early, first.before, before),
            jnp.where(is_early, after, second.after),
        )

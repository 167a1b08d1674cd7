"""Kinetic (underdamped) Langevin dynamics by exponential integrators.

The convention and the exact increments are those of `ornstein_uhlenbeck`.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from driftbridge.runtime.batching import outlined_alone
from driftbridge.samplers.base import Facts, Info, Point, Sampler, unadjusted_info
from driftbridge.samplers.noise import coarse_uniform, normals, normals_and_uniforms
from driftbridge.samplers.ornstein_uhlenbeck import (
    FreeFlight,
    ballistic,
    compose,
    free_flight,
    normals_of,
    ou_noise,
)
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


class KineticState(NamedTuple):
    """Position and velocity, which is infinite until a first step has drawn it."""

    position: Float[Array, " dim"]
    velocity: Float[Array, " dim"]


class KineticScoreState(NamedTuple):
    """Position, velocity (infinite until it is drawn) and the score at the position."""

    position: Float[Array, " dim"]
    velocity: Float[Array, " dim"]
    score: Float[Array, " dim"]


def unset(position: Float[Array, "..."]) -> Float[Array, "..."]:
    """The velocity of a state whose first step is to draw it.

    No dynamics leads to an infinite velocity, so it needs no flag beside it, which would be one
    more array that the compiled loop carries from step to step.
    """
    return jnp.full_like(position, jnp.inf)


def is_unset(velocity: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a velocity is still to be drawn, by coordinate."""
    return jnp.isinf(velocity)


class Kinetic(Sampler):
    """What the unadjusted kinetic methods share: three numbers and the first velocity.

    **Arguments:**

    - `step_size`: `h > 0`, time.
    - `friction`: `γ > 0`, per unit time. `2 sqrt(m)` damps critically the slowest mode, of
      curvature `m`.
    - `u`: `> 0`, variance of the velocity in equilibrium (inverse mass).

    The velocity is unset (infinite) after `init` and after a refused step. The next step takes
    `sqrt(u)` times its first normal as velocity, and acts without friction, so that no normal is
    used twice.
    """

    in_line: ClassVar[bool] = True  # for the coefficients of the free flow

    step_size: Float[Array, ""] | float = 0.1
    friction: Float[Array, ""] | float = 1.0
    u: Float[Array, ""] | float = 1.0

    def __check_init__(self):
        check_positive(step_size=self.step_size, friction=self.friction, u=self.u)

    def refuse(self, state):
        return state._replace(velocity=unset(state.velocity))

    @property
    def diffusion_time(self) -> Float[Array, ""] | float:
        return self.u * self.step_size**2 / 2

    def velocity(
        self, state: KineticState | KineticScoreState, normal: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        """The state's velocity, or a draw from equilibrium where it is unset."""
        return jnp.where(is_unset(state.velocity), jnp.sqrt(self.u) * normal, state.velocity)

    def flight(self, time: Float[Array, ""] | float) -> FreeFlight:
        """Coefficients of the free flow over `time`."""
        return free_flight(self.friction, time, self.u)


def without_friction_where(
    is_fresh: Bool[Array, " dim"], flight: FreeFlight, time: Float[Array, ""] | float
) -> FreeFlight:
    """The free flow over `time`, without friction where the step drew its velocity."""
    return jax.tree.map(
        lambda without, with_friction: jnp.where(is_fresh, without, with_friction),
        ballistic(time),
        flight,
    )


class KLMC(Kinetic):
    """Kinetic Langevin Monte Carlo: the exponential Euler scheme.

    `x' = x + E1(h) v + u E2(h) s(x) + nx`, `v' = exp(-γh) v + u E1(h) s(x) + nv`, exact for a
    constant force. Leading relative bias of the variance on a Gaussian `huλ/(2γ)`; unstable at
    low friction (`h <= 0.2` at `γ = 0.1` and unit curvature). One gradient a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`. Yu, Karagulyan and Dalalyan have
    `u = γ >= 5M`; Cheng et al. have `γ = 2, u = 1/M`, for curvatures up to `M`.

    Cheng, Chatterji, Bartlett and Jordan (2018), arXiv 1707.03663.
    """

    facts: ClassVar[Facts] = Facts(
        summary="Exponential Euler for kinetic dynamics",
        gradients="1",
        bias="h/(2γ)",
        energy_order=3,
        strong_order=1.0,
        weak_order=1.0,
        kinetic=True,
        source="Cheng et al. 2018, arXiv 1707.03663",
    )

    def init(self, target: Target, position: Float[Array, " dim"]) -> KineticScoreState:
        return KineticScoreState(position, unset(position), target.score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> Float[Array, "2 dim"]:
        return normals(key, (2, *like.shape), like.dtype)

    def step(
        self, target: Target, state: KineticScoreState, noise: Float[Array, "2 dim"]
    ) -> tuple[KineticScoreState, Info]:
        velocity = self.velocity(state, noise[0])
        flight = self.flight(self.step_size)
        flight = without_friction_where(is_unset(state.velocity), flight, self.step_size)
        nx, nv = ou_noise(flight, noise[0], noise[1])
        position = state.position + flight.e1 * velocity + (self.u * flight.e2) * state.score + nx
        velocity = flight.decay * velocity + (self.u * flight.e1) * state.score + nv
        new = KineticScoreState(position, velocity, target.score(position))
        return new, unadjusted_info(position, 1)

    def coarsen(self, first: Float[Array, "2 dim"], second: Float[Array, "2 dim"]):
        h = self.step_size
        flight = self.flight(h)
        whole = compose(ou_noise(flight, *first), ou_noise(flight, *second), flight)
        return jnp.stack(normals_of(self.flight(2 * h), whole))

    def energy_error(self, before: Point, after: Point) -> Float[Array, ""]:
        """The error that the force, frozen over the step, makes in the change of potential.

        `W = U' - U + s . (x' - x)`; on a Gaussian of precision `λ` it is `λ |x' - x|^2 / 2`. In
        equilibrium `|x' - x|^2` has mean `2 d u E2(h)`, so that `W = 2 d γ E2(h) b / h` with
        `b = huλ/(2γ)` the relative bias of the variance. It grows with the dimension itself, so
        what is returned is `E = (4 d b^3)^(1/2)` with `b = |W| h / (2 d γ E2(h))`: then
        `E² / d = 4 b^3`, as for the other methods.
        """
        move = after.position - before.position
        work = before.log_density - after.log_density + jnp.sum(before.score * move)
        # A difference of two log densities is known to some units of rounding; less is nothing.
        rounding = 8 * jnp.finfo(work.dtype).eps * (jnp.abs(before.log_density) + 1)
        work = jnp.where(jnp.abs(work) < rounding, 0, jnp.abs(work))
        h, friction = self.step_size, self.friction
        bias = work * h / (2 * move.size * friction * free_flight(friction, h, self.u).e2)
        return jnp.sqrt(4 * move.size * bias**3)


class RandomizedKineticNoise(NamedTuple):
    """The fraction of the step at which the force is taken, and normals before and after it."""

    uniform: Float[Array, ""]
    before: Float[Array, "2 dim"]
    after: Float[Array, "2 dim"]


class RandomizedMidpointKinetic(Kinetic):
    """Randomized midpoint kinetic Langevin Monte Carlo.

    With one uniform `U` a step and chain, `t = Uh`, `d = h - t`, and one Brownian path,

    `y  = x + E1(t) v + u E2(t) s(x) + nx(t)`,
    `x' = x + E1(h) v + h u E1(d) s(y) + nx(h)`,
    `v' = exp(-γh) v + h u exp(-γd) s(y) + nv(h)`.

    The increments over `h` are composed from those over `t` and `d`: the joint covariance of the
    three is nearly singular and is never factored. Leading relative bias of the variance on a
    Gaussian `(uλ)² h³ / (24γ)`. Two gradients a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`. The authors have `u = γ >= 5M`.

    Yu, Karagulyan and Dalalyan (2024), arXiv 2306.08494; Shen and Lee (2019), arXiv
    1909.05503.
    """

    in_line: ClassVar[bool] = False  # its coefficients change with the midpoint

    facts: ClassVar[Facts] = Facts(
        summary="Kinetic dynamics with the force at a random time of the step",
        gradients="2",
        bias="h³/(24γ)",
        strong_order=1.5,
        weak_order=3.0,
        kinetic=True,
        source="Yu, Karagulyan & Dalalyan 2024, arXiv 2306.08494",
    )

    def init(self, target: Target, position: Float[Array, " dim"]) -> KineticState:
        return KineticState(position, unset(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> RandomizedKineticNoise:
        normals, uniform = normals_and_uniforms(key, (2, 2, *like.shape), like.dtype)
        return RandomizedKineticNoise(uniform, *normals)

    def step(
        self, target: Target, state: KineticState, noise: RandomizedKineticNoise
    ) -> tuple[KineticState, Info]:
        h, u, x = self.step_size, self.u, state.position
        before, after = _flights(self, noise.uniform, is_unset(state.velocity[0]))
        v = self.velocity(state, noise.before[0])
        path_before = ou_noise(before, *noise.before)
        nx, nv = compose(path_before, ou_noise(after, *noise.after), after)
        midpoint = x + before.e1 * v + (u * before.e2) * target.score(x) + path_before[0]
        force = (h * u) * target.score(midpoint)
        # E1(h) = E1(t) + exp(-γt) E1(d): the flow over h is the one over t, then over d.
        position = x + (before.e1 + before.decay * after.e1) * v + after.e1 * force + nx
        velocity = before.decay * after.decay * v + after.decay * force + nv
        return KineticState(position, velocity), unadjusted_info(position, 2)

    def coarsen(
        self, first: RandomizedKineticNoise, second: RandomizedKineticNoise
    ) -> RandomizedKineticNoise:
        # The path in four pieces, of which three are before or after the random time of the two.
        h, a, b = self.step_size, first.uniform, second.uniform
        flights = [self.flight(h * part) for part in (a, 1 - a, b, 1 - b)]
        normals = (first.before, first.after, second.before, second.after)
        pieces = [ou_noise(flight, *z) for flight, z in zip(flights, normals, strict=True)]
        inner = compose(pieces[1], pieces[2], flights[2])
        before = compose(pieces[0], pieces[1], flights[1])
        before = compose(before, pieces[2], flights[2])
        after = compose(inner, pieces[3], flights[3])
        is_early, uniform = coarse_uniform(a, b)
        return RandomizedKineticNoise(
            uniform,
            jnp.where(is_early, first.before, self._normals(h * (1 + b), before)),
            jnp.where(is_early, self._normals(h * (2 - a), after), second.after),
        )

    def _normals(self, time: Float[Array, ""], increments) -> Float[Array, "2 dim"]:
        return jnp.stack(normals_of(self.flight(time), increments))


@outlined_alone
def _flights(
    sampler: RandomizedMidpointKinetic, uniform: Float[Array, ""], is_fresh: Bool[Array, ""]
) -> tuple[FreeFlight, FreeFlight]:
    """The free flights before and after the midpoint."""
    friction = jnp.where(is_fresh, 0.0, sampler.friction)
    time = sampler.step_size * uniform
    rest = sampler.step_size - time
    return _flight(friction, time, sampler.u), _flight(friction, rest, sampler.u)


_flight = outlined_alone(free_flight)

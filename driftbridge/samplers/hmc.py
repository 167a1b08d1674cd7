"""Hamiltonian Monte Carlo with fixed and with jittered trajectory length."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.samplers.base import Facts, Info, Point, Sampler
from driftbridge.samplers.metropolis import (
    MetropolisNoise,
    kinetic_change,
    metropolis,
    metropolis_noise,
)
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive

# A step size that warm-up tries for one transition must not hold all chains up for minutes; as
# many gradients as a tree of depth ten has.
MAX_STEPS = 1024


def leapfrog(
    target: Target,
    start: Point,
    velocity: Float[Array, " dim"],
    step_size: Float[Array, ""],
    num_steps: Int[Array, ""] | int,
) -> tuple[Point, Float[Array, " dim"]]:
    """The end of a trajectory of Hamilton's equations for unit mass, and the velocity there.

    `num_steps >= 1` steps of kick `h/2`, drift `h`, kick `h/2`, neighbouring kicks merged. One
    gradient a step; the log density is evaluated at the end alone.

    Neal (2011), eqs. (2.28)-(2.30).
    """
    velocity = velocity + step_size / 2 * start.score

    def kick_drift(_, carry):
        position, velocity = carry
        velocity = velocity + step_size * target.score(position)
        return position + step_size * velocity, velocity

    position = start.position + step_size * velocity
    position, velocity = lax.fori_loop(1, num_steps, kick_drift, (position, velocity))
    end = Point(position, *target.value_and_score(position))
    return end, velocity + step_size / 2 * end.score


class HMC(Sampler):
    """Hamiltonian trajectories of one length from a fresh velocity, accepted or rejected.

    `v ~ N(0, I)`; `n = ceil(T / h)` leapfrog steps of size `T / n`; accepted with probability
    `min(1, exp(-E))`, `E = U' - U + (|v'|^2 - |v|^2) / 2`. The number of steps is data, not a
    shape: changing it compiles nothing. At most 1024 steps are taken (then of size `h`).

    **Arguments:**

    - `step_size`: `h > 0`, the largest step.
    - `trajectory_length`: `T > 0`, time of a trajectory. On a Gaussian of unit variance `pi / 2`
      gives independent draws, and `pi` never moves the distance from the mode.

    Duane, Kennedy, Pendleton and Roweth (1987); Neal (2011), section 3.
    """

    step_size: Float[Array, ""] | float = 0.1
    trajectory_length: Float[Array, ""] | float = 1.5

    facts: ClassVar[Facts] = Facts(
        summary="leapfrog trajectories of fixed length with a Metropolis step",
        gradients="ceil(T / h)",
        bias="none",
        source="Neal 2011, sec. 3",
        adjusted=True,
        uses_value=True,
        acceptance=0.8,
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size, trajectory_length=self.trajectory_length)

    def init(self, target: Target, position: Float[Array, " dim"]) -> Point:
        return Point(position, *target.value_and_score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> MetropolisNoise:
        return metropolis_noise(key, like.shape, like.dtype)

    def step(self, target: Target, state: Point, noise: MetropolisNoise) -> tuple[Point, Info]:
        num_steps, step_size = self.steps(state.position.dtype)
        end, velocity = leapfrog(target, state, noise.normal, step_size, num_steps)
        # Root mean square errors for d = 1000, ten steps, float32: 6e-6 in this form, 9e-6 for the
        # sum of the work of all kicks (a reduction a step), 5e-5 for the difference of two sums of
        # squares; U' - U is rounded to 6e-5.
        kinetic = jnp.sum(kinetic_change(noise.normal, velocity))
        error = state.log_density - end.log_density + kinetic
        energy = jnp.sum(noise.normal**2) / 2 - state.log_density
        return metropolis(state, end, error, noise.uniform, num_steps, (energy, energy + error))

    def steps(self, dtype) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """Number and size of the leapfrog steps of a trajectory."""
        h = jnp.asarray(self.step_size, dtype)
        length = jnp.asarray(self.trajectory_length, dtype)
        # 0.3 / 0.1 is 3 in exact arithmetic: a ratio above an integer by round-off stays there.
        ratio = length / h * (1 - 4 * jnp.finfo(dtype).eps)
        num_steps = jnp.clip(jnp.ceil(ratio), 1, MAX_STEPS)
        return num_steps.astype(jnp.int32), jnp.minimum(length / num_steps, h)


class JitteredHMC(HMC):
    """Hamiltonian trajectories whose length varies from step to step, the same for all chains.

    At transition `t` the length is `T (1 + j (2 r(t) - 1))`, with `r(t)` the radical inverse of
    `t` in base 2 (van der Corput's sequence, here on midpoints of a grid of 2^23): lengths fill
    `T [1 - j, 1 + j]` evenly and have mean `T`, so no frequency of the target is in resonance
    with every trajectory. Each transition keeps the target whatever its length.

    **Arguments:**

    - `step_size`: `h > 0`, the largest step.
    - `trajectory_length`: `T > 0`, mean time of a trajectory.
    - `jitter`: `j` in (0, 1]; 1/2 unless given, lengths from `T / 2` to `3 T / 2`.

    Hoffman, Radul and Sountsov (2021), section 3.1, there with `j = 1`.
    """

    jitter: Float[Array, ""] | float = 0.5

    facts: ClassVar[Facts] = Facts(
        summary="leapfrog trajectories of jittered length with a Metropolis step",
        gradients="ceil(T / h) on average",
        bias="none",
        source="Hoffman, Radul & Sountsov 2021, sec. 3.1",
        adjusted=True,
        uses_value=True,
        acceptance=0.8,
    )

    def __check_init__(self):
        check_jitter(self.jitter)

    def at_step(self, step: Int[Array, ""]) -> HMC:
        return HMC(self.step_size, self.trajectory_length * jitter_at(self.jitter, step))


class JitteredStepHMC(HMC):
    """Hamiltonian trajectories of a fixed number of steps, whose size varies from step to step.

    At transition `t` the `n = ceil(T / h)` steps have size `T / n (1 + j (2 r(t) - 1))`, `r(t)` as
    in `JitteredHMC`, the same for all chains. Lengths vary little, so that the antithetic draws of
    a trajectory near a right angle stay so, and enough that no frequency is in resonance.

    **Arguments:**

    - `step_size`: `h > 0`.
    - `trajectory_length`: `T > 0`, mean time of a trajectory.
    - `jitter`: `j` in (0, 1].

    Neal (2011), section 3.2, on random step sizes.
    """

    jitter: Float[Array, ""] | float = 0.15

    facts: ClassVar[Facts] = Facts(
        summary="leapfrog trajectories of jittered step size with a Metropolis step",
        gradients="ceil(T / h)",
        bias="none",
        source="Neal 2011, sec. 3.2",
        adjusted=True,
        uses_value=True,
        acceptance=0.8,
    )

    def __check_init__(self):
        check_jitter(self.jitter)

    def at_step(self, step: Int[Array, ""]) -> "JitteredStepHMC":
        # Both are scaled, so that their ratio and with it the number of steps stays.
        scale = jitter_at(self.jitter, step)
        scaled = (self.step_size * scale, self.trajectory_length * scale)
        return eqx.tree_at(lambda s: (s.step_size, s.trajectory_length), self, scaled)


def check_jitter(jitter: Any) -> None:
    """Raise `ValueError` for a jitter outside (0, 1]."""
    check_positive(jitter=jitter)
    if isinstance(jitter, int | float) and jitter > 1:
        raise ValueError(f"jitter must be at most 1; got {jitter}.")


def jitter_at(jitter: Float[Array, ""] | float, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor `1 + j (2 r(t) - 1)` of transition `t`."""
    return 1 + jitter * (2 * radical_inverse(step) - 1)


def radical_inverse(step: Int[Array, ""]) -> Float[Array, ""]:
    """The bits of `step` mirrored at the binary point, in (0, 1): `0.5, 0.25, 0.75, ...` + 2^-24.

    The low 23 bits are reversed as an integer and moved to the middle of their cell, which
    float32 holds exactly; the sequence repeats after 2^23 steps.
    """
    bits = lax.convert_element_type(step, jnp.uint32)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        low = jnp.uint32(mask)
        bits = ((bits >> shift) & low) | ((bits & low) << shift)
    bits = (bits >> 16) | (bits << 16)
    cell = 2 * (bits >> 9) + 1
    return cell.astype(jnp.float32) * jnp.float32(2**-24)

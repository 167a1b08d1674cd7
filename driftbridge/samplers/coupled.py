"""Chains of one method at several step sizes, along one Brownian path."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Noise, Sampler, State, innermost, step_size_of, with_step_size
from driftbridge.samplers.kinetic import Kinetic
from driftbridge.targets.base import Target


def halvings(sampler: Sampler, levels: int) -> tuple[Sampler, ...]:
    """The sampler at its step size `h`, at `h/2`, and so on: `levels` of them."""
    step_size = jnp.asarray(step_size_of(sampler))
    return tuple(with_step_size(sampler, step_size / 2**level) for level in range(levels))


def can_couple(sampler: Sampler) -> bool:
    """Whether a method says how the noise of two steps makes that of a double one."""
    return type(innermost(sampler)).coarsen is not Sampler.coarsen


def check_coupled(sampler: Sampler) -> None:
    """Raise the `TypeError` of `coarsen` for a sampler that cannot be coupled."""
    like = jnp.zeros(1)
    jax.eval_shape(lambda key: sampler.coarsen(*[sampler.noise(key, like)] * 2), jax.random.key(0))


def begin(
    target: Target,
    sampler: Sampler,
    position: Float[Array, " dim"],
    normal: Float[Array, " dim"],
) -> State:
    """A state at `position`; the velocity of kinetic dynamics is drawn from equilibrium.

    It does not depend on the step size: chains of all steps begin with one velocity.
    """
    state, inner = sampler.init(target, position), innermost(sampler)
    if not isinstance(inner, Kinetic):
        return state
    return state._replace(velocity=jnp.sqrt(inner.u).astype(normal.dtype) * normal)


def nested_noise(
    samplers: Sequence[Sampler],
    key: Key[Array, ""],
    step: Int[Array, ""],
    like: Float[Array, " dim"],
) -> list[list[Noise]]:
    """Noise of one step of the first sampler, of two of the second at half the step, and so on.

    `step` counts the steps of the first. All is made from the noise of the last sampler's steps.
    """
    count = 2 ** (len(samplers) - 1)
    noises = [[samplers[-1].noise(fold_in(key, step * count + i), like) for i in range(count)]]
    for sampler in reversed(samplers[1:]):
        finer = noises[0]
        pairs = zip(finer[::2], finer[1::2], strict=True)
        noises.insert(0, [sampler.coarsen(*pair) for pair in pairs])
    return noises

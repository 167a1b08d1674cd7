"""Chains of one method at several step sizes, along one Brownian path."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Noise, Sampler, State, innermost, step_size_of, with_step_size
from driftbridge.samplers.kinetic import Kinetic
from driftbridge.samplers.loop import transition
from driftbridge.targets.base import Target

# A run is cut into blocks of equal length: sums within one are in the dtype of the positions.
BLOCKS = 25


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
) -> list[Noise]:
    """Noise of one step of the first sampler, of two of the second at half the step, and so on.

    `step` counts the steps of the first. All is made from the noise of the last sampler's steps.
    Leaves have a leading axis of steps.
    """
    count = 2 ** (len(samplers) - 1)
    numbers = step * count + jnp.arange(count, dtype=jnp.int32)
    noises = [jax.vmap(lambda number: samplers[-1].noise(fold_in(key, number), like))(numbers)]
    for sampler in reversed(samplers[1:]):
        even, odd = (jax.tree.map(lambda leaf, i=i: leaf[i::2], noises[0]) for i in (0, 1))
        noises.insert(0, jax.vmap(sampler.coarsen)(even, odd))
    return noises


class Sums(NamedTuple):
    """Sums over the steps of a block by chain, with leading axes `(blocks, chains)`.

    - `at`, `square`: parameters at `h` less the centre, and their squares.
    - `change1`, `change2`: parameters at `h` less those at `h/2`, and `h/2` less `h/4`.
    - `squares1`, `squares2`: the same for squares of the parameters less the centre.
    - `apart1`, `apart2`: squared distances of the flat positions, by coordinate.
    """

    at: Any
    square: Any
    change1: Any
    change2: Any
    squares1: Any
    squares2: Any
    apart1: Any
    apart2: Any
    num_gradients: Any
    refused: Any


@jax.jit
def run_coupled(
    target: Target,
    samplers: tuple[Sampler, ...],
    positions: Float[Array, "chains dim"],
    keys: Key[Array, " chains"],
    center: Float[Array, " params"],
    length: Int[Array, ""],
) -> Sums:
    """Run the chains of three step sizes; `length` steps of the first in each of the blocks."""
    dtype = positions.dtype
    # Steps are numbered from 0; the number before gives the velocities.
    last = jax.vmap(lambda key: fold_in(key, -1))(keys)
    normals = jax.vmap(lambda key: jax.random.normal(key, positions.shape[1:], dtype))(last)
    states = tuple(
        jax.vmap(partial(begin, target, sampler))(positions, normals) for sampler in samplers
    )
    empty = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(partial(one_step, target, samplers, states, keys, center), jnp.int32(0))[1],
    )

    def add(i, carry):
        states, new = one_step(target, samplers, carry[0], keys, center, i)
        return states, jax.tree.map(jnp.add, carry[1], new)

    def block(states, b):
        return lax.fori_loop(b * length, (b + 1) * length, add, (states, empty))

    return lax.scan(block, states, jnp.arange(BLOCKS, dtype=jnp.int32))[1]


def one_step(target, samplers, states, keys, center, i) -> tuple[tuple[State, ...], Sums]:
    """Step `i` of the first sampler and as many of the others as fill its time."""
    like = states[0].position[0]
    noises = jax.vmap(lambda key: nested_noise(samplers, key, i, like), out_axes=1)(keys)
    moved, infos = [], []
    for sampler, state, steps in zip(samplers, states, noises, strict=True):
        state, info = lax.scan(partial(transition, target, sampler), state, steps)
        moved.append(state)
        infos.append(info)
    gradients = sum(jnp.sum(info.num_gradients, axis=0) for info in infos)
    refused = sum(jnp.sum(info.is_divergent, axis=0, dtype=jnp.int32) for info in infos)
    x = [state.position for state in moved]
    return tuple(moved), jax.vmap(partial(sums_of, target, center))(x, (gradients, refused))


def sums_of(target: Target, center, positions, counts) -> Sums:
    """What one step of one chain adds."""
    flat = [flat_parameters(target, x) - center for x in positions]
    apart = [jnp.square(x - y) for x, y in pairwise(positions)]
    change = [a - b for a, b in pairwise(flat)]
    # a^2 - b^2 without cancelling squares.
    squares = [(a - b) * (a + b) for a, b in pairwise(flat)]
    return Sums(flat[0], jnp.square(flat[0]), *change, *squares, *apart, *counts)


def flat_parameters(target: Target, position: Float[Array, " dim"]) -> Float[Array, " params"]:
    """Scalar parameters in the order of `Draws.names`."""
    values = target.constrain(position).values()
    return jnp.concatenate([jnp.ravel(value).astype(position.dtype) for value in values])

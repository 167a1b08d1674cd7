"""The compiled part of the driver: many transitions of many chains, with noise drawn in blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from driftbridge.runtime.batching import outlined, outlined_alone
from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Info, Sampler, State
from driftbridge.targets.base import Target

# Noise of one block of steps stays within this many bytes, so that it is still in cache when the
# steps read it.
BLOCK_BYTES = 1 << 19
# Beyond some hundred steps a longer block saves nothing, and its unused tail is wasted.
BLOCK_STEPS = 128


class Record(NamedTuple):
    """What is kept of every draw: leading axes `(draws, chains)`.

    `log_density` and the energies are None where the sampler does not compute them.
    """

    position: Float[Array, "draws chains dim"]
    acceptance_rate: Float[Array, "draws chains"]
    is_divergent: Bool[Array, "draws chains"]
    num_gradients: Int[Array, "draws chains"]
    energy_error: Float[Array, "draws chains"] | None
    energy: Float[Array, "draws chains"] | None
    log_density: Float[Array, "draws chains"] | None


class Rows(eqx.Module):
    """Records as the loop writes them: the position and, in its dtype, the statistics behind it.

    Each store of the compiled loop costs about as much as an update of the position; so there is
    one a draw. `columns` names the statistics.
    """

    values: Float[Array, "... width"]
    columns: tuple[str, ...] = eqx.field(static=True)


def pack(record: Record) -> Rows:
    """The record as rows, with any leading axes."""
    present = {k: v for k, v in record._asdict().items() if k != "position" and v is not None}
    dtype = record.position.dtype
    statistics = jnp.stack([jnp.asarray(v, dtype) for v in present.values()], axis=-1)
    return Rows(jnp.concatenate([record.position, statistics], axis=-1), tuple(present))


def unpack(rows: Rows) -> Record:
    """Inverse of `pack`, for NumPy's arrays too; counts are exact up to 2^24 in float32."""
    fields: dict[str, Any] = dict.fromkeys(Record._fields)
    dim = rows.values.shape[-1] - len(rows.columns)
    fields |= {name: rows.values[..., dim + i] for i, name in enumerate(rows.columns)}
    fields["position"] = rows.values[..., :dim]
    fields["is_divergent"] = fields["is_divergent"] > 0
    fields["num_gradients"] = fields["num_gradients"].astype(np.int32)
    return Record(**fields)


def infos_of(rows: Rows) -> Info:
    """The infos of the transitions whose rows these are."""
    record = unpack(rows)._asdict()
    return Info(**{name: record[name] for name in Info._fields})


class Chains(NamedTuple):
    """Everything that a run carries from one chunk to the next."""

    states: State
    sampler: Sampler
    adaptation: PyTree


def over_chains(function: Callable, num_chains: int) -> Callable:
    """`vmap` over the leading axis of every argument, but one chain is never vmapped.

    A batch of one costs about twice a plain call: matrix-vector products become loops.
    """
    if num_chains > 1:
        return jax.vmap(function)

    def alone(*arguments):
        out = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), out)

    return alone


def block_length(
    sampler: Sampler, keys: Key[Array, " chains"], like: Float[Array, "chains dim"]
) -> int:
    """How many steps of noise are drawn at once, bounded by `BLOCK_BYTES` in all."""
    shape = jax.eval_shape(sampler.noise, keys[0], like[0])
    step_bytes = like.shape[0] * sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shape)
    )
    longest = max(1, min(BLOCK_STEPS, BLOCK_BYTES // max(step_bytes, 1)))
    return 1 << (longest.bit_length() - 1)


def block_noise(
    sampler: Sampler,
    keys: Key[Array, " chains"],
    steps: Int[Array, " block"],
    like: Float[Array, "chains dim"],
) -> PyTree:
    """Noise with leading axes `(block, chains)`, a function of (seed, chain, step) alone."""

    def one(key, step):
        return sampler.noise(fold_in(key, step), like[0])

    # Chains are the outer axis while drawing: it may be laid over devices, and steps are many.
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None), out_axes=1)(keys, steps)


@outlined_alone
def finite_or_refused(sampler: Sampler, new: State, state: State) -> tuple[State, Bool[Array, ""]]:
    """The new state if it is finite, else the refused old one; and whether it is."""
    # One sum finds any NaN or infinity; overflow of finite entries is a lost chain too. It is a
    # product, whose operand XLA computes once; for a sum it would compute the whole step again.
    checked = new.position + new.score if "score" in new._fields else new.position
    is_finite = jnp.isfinite(checked @ jnp.ones_like(checked))
    kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, sampler.refuse(state))
    return kept, is_finite


# Traced once for all programs that hold it.
@partial(jax.jit, inline=True)
def transition(
    target: Target, sampler: Sampler, states: State, noise: PyTree
) -> tuple[State, Info]:
    """One step of every chain; a step that is not finite is refused and counted a divergence.

    States without an axis of chains are those of one chain.
    """

    def step(state, noise):
        new, info = sampler.step(target, state, noise)
        if sampler.facts.adjusted:  # the Metropolis decision has refused it already
            return new, info
        kept, is_finite = finite_or_refused(sampler, new, state)
        accepted = jnp.where(is_finite, info.acceptance_rate, 0)
        return kept, info._replace(
            acceptance_rate=accepted, is_divergent=info.is_divergent | ~is_finite
        )

    if states.position.ndim > 1:
        return jax.vmap(step)(states, noise)
    return (step if sampler.in_line else outlined(step))(states, noise)


def record_of(states: State, infos: Info) -> Record:
    """The record of the present draw."""
    return Record(
        position=states.position,
        acceptance_rate=infos.acceptance_rate,
        is_divergent=infos.is_divergent,
        num_gradients=infos.num_gradients,
        energy_error=infos.energy_error,
        energy=infos.energy,
        log_density=states.log_density if "log_density" in states._fields else None,
    )


def merge(earlier: Record, latest: Record, is_first: Bool[Array, ""]) -> Record:
    """Join the records of the transitions between two draws: rates and counts add up.

    Acceptance rates are summed here and divided by `thin` when written.
    """

    def add(old, new):
        return jnp.where(is_first, new, old + new)

    return latest._replace(
        acceptance_rate=add(earlier.acceptance_rate, latest.acceptance_rate),
        is_divergent=latest.is_divergent | (earlier.is_divergent & ~is_first),
        num_gradients=add(earlier.num_gradients, latest.num_gradients),
    )


def _alone(tree: PyTree, axis: int = 0) -> PyTree:
    """Without the axis of chains, of which there is one."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis), tree)


def _batched(tree: PyTree, axis: int = 0) -> PyTree:
    """Inverse of `_alone`."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), tree)


def advance(
    target: Target,
    chains: Chains,
    buffer: Rows,
    keys: Key[Array, " chains"],
    first_step: Int[Array, ""],
    num_steps: Int[Array, ""],
    thin: Int[Array, ""] | None = None,
    adapt: Any = None,
    adapting: Bool[Array, ""] | bool = True,
) -> tuple[Chains, Rows, Int[Array, ""]]:
    """Take `num_steps` transitions and write every `thin`-th state into `buffer`.

    Pure and jittable; `num_steps` and `thin` are data, so one program serves every length up to
    the buffer's (another one serves `thin=None`, which writes every state at less cost). Noise is
    that of the absolute steps `first_step + i`, so results do not depend on how a run is cut into
    chunks.

    **Arguments:**

    - `chains`: states with a leading chain axis, the sampler they share, and the state of `adapt`.
    - `buffer`: `Rows` with leading axes `(capacity, chains)`; written from index 0.
    - `keys`: one key a chain.
    - `thin`: None, or the number of transitions for each row.
    - `adapt`: an `Adaptation` whose `update` is applied after every transition, or None.
    - `adapting`: whether it is; data, so that one program serves warm-up and what follows it.

    **Returns:** the chains after the last transition, the buffer, and the number of transitions:
    fewer than `num_steps` where the adaptation is done before.
    """
    like = chains.states.position
    block = block_length(chains.sampler, keys, like)
    # One chain is carried without its axis: every reshape of the state is a copy in the loop.
    is_one = like.shape[0] == 1
    if is_one:
        chains = chains._replace(states=_alone(chains.states))
        buffer = _alone(buffer, axis=1)

    def step(i, noise_at, chains, buffer, pending):
        noise = noise_at(i)
        sampler = chains.sampler.at_step(first_step + i)
        states, infos = transition(target, sampler, chains.states, noise)
        record = record_of(states, infos)
        row = i
        if thin is not None:
            pending = merge(pending, record, i % thin == 0)
            record = pending._replace(acceptance_rate=pending.acceptance_rate / thin)
            row = i // thin
        buffer = jax.tree.map(
            lambda stack, new: lax.dynamic_update_index_in_dim(stack, new, row, 0),
            buffer,
            pack(record),
        )
        return chains._replace(states=states), buffer, pending

    def update(chains, infos):
        states = chains.states
        if is_one:
            states, infos = _batched((states, infos))
        adaptation, sampler = adapt.update(chains.adaptation, chains.sampler, states, infos)
        states = adapt.repair(adaptation, states)
        return Chains(_alone(states) if is_one else states, sampler, adaptation)

    def run_block(b, carry):
        start = b * block
        noises = block_noise(
            chains.sampler, keys, first_step + start + jnp.arange(block, dtype=jnp.int32), like
        )
        if is_one:
            noises = _alone(noises, axis=1)

        def noise_at(i):
            return jax.tree.map(
                lambda leaf: lax.dynamic_index_in_dim(leaf, i - start, 0, keepdims=False), noises
            )

        def steps(first, end, carry):
            return lax.fori_loop(first, end, lambda i, c: step(i, noise_at, *c), carry)

        end = jnp.minimum(start + block, num_steps)
        if adapt is None:
            return end, steps(start, end, carry)

        def run_group(carry):
            # One step before each update; in a run that has ended warm-up, the whole block.
            first, carry = carry
            last = jnp.minimum(jnp.where(adapting, first + 1, end), end)
            chains, buffer, pending = steps(first, last, carry)
            row = last - 1 if thin is None else (last - 1) // thin
            infos = infos_of(jax.tree.map(lambda stack: stack[row], buffer))
            chains = lax.cond(adapting, update, lambda chains, _: chains, chains, infos)
            return last, (chains, buffer, pending)

        def goes_on(carry):
            return (carry[0] < end) & jnp.logical_not(is_done(carry[1][0]))

        return lax.while_loop(goes_on, run_group, (start, carry))

    def is_done(chains):
        return False if adapt is None else adapting & adapt.is_done(chains.adaptation)

    pending = None
    if thin is not None:
        pending = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), unpack(buffer))
    carry = (jnp.zeros_like(num_steps), (chains, buffer, pending))
    taken, (chains, buffer, _) = lax.while_loop(
        lambda carry: (carry[0] < num_steps) & jnp.logical_not(is_done(carry[1][0])),
        lambda carry: run_block(carry[0] // block, carry[1]),
        carry,
    )
    if is_one:
        chains = chains._replace(states=_batched(chains.states))
        buffer = _batched(buffer, axis=1)
    return chains, buffer, taken

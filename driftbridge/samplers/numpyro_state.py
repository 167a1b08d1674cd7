"""One chain with its own warm-up: the state and the transition that plug-ins are made of."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler, State, has_step_size, step_size_of
from driftbridge.samplers.driver import settle
from driftbridge.samplers.loop import Chains, transition
from driftbridge.samplers.opening import begin
from driftbridge.targets.base import Target


class AdaptState(NamedTuple):
    """What warm-up tells: the step size of the next transition, and its divergent transitions."""

    step_size: Float[Array, ""]
    num_diverging: Int[Array, ""]


class WarmUp(NamedTuple):
    """The adaptation and its state; it ends after `num_warmup` transitions.

    `sampler` and `chain` are those that warm-up steps, where their form is not that of the kept
    draws; None where it is, and those of the `KernelState` serve both.
    """

    num_warmup: Int[Array, ""]
    adapt: Adaptation
    adaptation: PyTree
    sampler: Sampler | None
    chain: State | None


class KernelState(NamedTuple):
    """All that a chain carries. Fields are collected by `extra_fields=("potential_energy", ...)`.

    - `i`: transitions taken, the same for all chains.
    - `z`: the position in unconstrained space, as a dict by site or as `potential_fn` takes it.
    - `chain`: the sampler's own state, whose position is flat.
    - `sampler`: the sampler, tuned from the end of warm-up on.
    - `warmup`: None where nothing is tuned.
    - `potential_energy`: minus the log density at `z`, Jacobian included.
    - `energy`: with that of the velocity; NaN for samplers that do not compute it.
    - `num_steps`: gradients of the last transition.
    - `accept_prob`, `mean_accept_prob`: of the last transition, and on average in this phase.
    - `diverging`: whether the last transition was divergent, or ended or began where the density
      is not finite.
    - `adapt_state`: step size, and divergent transitions of warm-up.
    - `rng_key`: noise is a function of it and of `i`; it stays the same.
    """

    i: Int[Array, ""]
    z: PyTree
    chain: State
    sampler: Sampler
    warmup: WarmUp | None
    potential_energy: Float[Array, ""]
    energy: Float[Array, ""]
    num_steps: Int[Array, ""]
    accept_prob: Float[Array, ""]
    mean_accept_prob: Float[Array, ""]
    diverging: Bool[Array, ""]
    adapt_state: AdaptState
    rng_key: Array


class Told(NamedTuple):
    """What a transition tells of itself."""

    position: Float[Array, " dim"]
    potential_energy: Float[Array, ""]
    energy: Float[Array, ""]
    num_steps: Int[Array, ""]
    accept_prob: Float[Array, ""]
    diverging: Bool[Array, ""]


Split = Callable[[Float[Array, " dim"]], PyTree]


def first_state(
    target: Target,
    split: Split,
    sampler: Sampler,
    adapt: Adaptation | None,
    position: Float[Array, "*chains dim"],
    num_warmup: Int[Array, ""],
    rng_key: Array,
) -> KernelState:
    """The state before the first transition, of one chain or of many that are tuned together.

    `split` gives `z` of a position.
    """
    enter, leave, each = _forms(position)
    chains = kept = begin(target, sampler, adapt, enter(position), num_warmup)
    warmup = None
    if adapt is not None:
        settled = settle(target, adapt, chains)
        warmup = WarmUp(num_warmup, adapt, chains.adaptation, None, None)
        if jax.tree.structure(settled[:2]) != jax.tree.structure(chains[:2]):
            warmup = warmup._replace(sampler=chains.sampler, chain=leave(chains.states))
            kept = settled
    chain = leave(kept.states)
    nan = jnp.full_like(position[..., 0], jnp.nan)
    none = jnp.zeros_like(nan, jnp.int32)
    return KernelState(
        i=none,
        z=each(split)(position),
        chain=chain,
        sampler=kept.sampler,
        warmup=warmup,
        potential_energy=each(partial(_potential, target))(chain),
        energy=nan,
        num_steps=none,
        accept_prob=jnp.zeros_like(nan),
        mean_accept_prob=jnp.zeros_like(nan),
        diverging=jnp.zeros_like(nan, bool),
        adapt_state=AdaptState(_step_size(chains.sampler, nan), none),
        rng_key=rng_key,
    )


def advance(target: Target, split: Split, state: KernelState) -> KernelState:
    """One transition of one chain, or of many that are tuned together."""
    step, warming, is_last = _clock(state)
    enter, leave, each = _forms(state.chain.position)
    key = each(lambda key: fold_in(typed(key), step))(state.rng_key)

    def move(sampler, chain):
        noise = each(sampler.noise)(key, chain.position)
        return transition(target, sampler.at_step(step), chain, noise)

    def tune(warmup, chains, info):
        """The adaptation after a transition, and the chains to keep if warm-up ends with it."""
        states, infos = enter((chains.states, info))
        adaptation, sampler = warmup.adapt.update(chains.adaptation, chains.sampler, states, infos)
        states = warmup.adapt.repair(adaptation, states)
        ends = is_last
        if state.chain.position.ndim > 1:  # the end of warm-up is the same for all chains
            ends = ends | warmup.adapt.is_done(adaptation)
        until = jnp.where(ends, step + 1, warmup.num_warmup)
        return ends, until, Chains(states, sampler, adaptation)

    def settled(warmup, chains):
        end = settle(target, warmup.adapt, chains)
        return leave(end.states), end.sampler

    def warm(state):
        """In warm-up, where its sampler has another form."""
        before = state.warmup
        chain, info = move(before.sampler, before.chain)
        ends, until, chains = tune(before, Chains(chain, before.sampler, before.adaptation), info)
        kept = (state.chain, state.sampler)
        kept = lax.cond(ends, lambda: settled(before, chains), lambda: kept)
        chain = leave(chains.states)
        after = WarmUp(until, before.adapt, chains.adaptation, chains.sampler, chain)
        return *kept, after, each(partial(_told, target))(chain, info)

    def keep(state):
        chain, info = move(state.sampler, state.chain)
        return chain, state.sampler, state.warmup, each(partial(_told, target))(chain, info)

    def same_form(state):
        """One program of the transition for warm-up and what follows it."""
        chain, info = move(state.sampler, state.chain)

        def tuned(chain, sampler, warmup):
            ends, until, chains = tune(warmup, Chains(chain, sampler, warmup.adaptation), info)
            kept = (leave(chains.states), chains.sampler)
            kept = lax.cond(ends, lambda: settled(warmup, chains), lambda: kept)
            return *kept, warmup._replace(num_warmup=until, adaptation=chains.adaptation)

        parts = (chain, state.sampler, state.warmup)
        parts = lax.cond(warming, tuned, lambda *same: same, *parts)
        return *parts, each(partial(_told, target))(parts[0], info)

    if state.warmup is None:
        parts = keep(state)
    elif state.warmup.chain is None:
        parts = same_form(state)
    else:
        parts = lax.cond(warming, warm, keep, state)
    chain, sampler, warmup, told = parts
    moved = state._replace(chain=chain, sampler=sampler, warmup=warmup)
    return _record(moved, each(split)(told.position), told, step, warming)


def refreshed(target: Target, state: KernelState) -> KernelState:
    """The state after the density has changed: what is known at the position is found anew."""
    each = _forms(state.chain.position)[2]

    def renewed(sampler, chain):
        chain = each(partial(_renewed, target, sampler))(chain)
        return chain, each(partial(_potential, target))(chain)

    def keep(state):
        chain, potential = renewed(state.sampler, state.chain)
        return state._replace(chain=chain, potential_energy=potential)

    def warm(state):
        chain, potential = renewed(state.warmup.sampler, state.warmup.chain)
        warmup = state.warmup._replace(chain=chain)
        return state._replace(warmup=warmup, potential_energy=potential)

    if state.warmup is None or state.warmup.chain is None:
        return keep(state)
    return lax.cond(_clock(state)[1], warm, keep, state)


def is_together(state: KernelState) -> bool:
    """Whether the chains of a state share one sampler, tuned from all of them."""
    return state.warmup is not None and state.i.ndim > state.warmup.num_warmup.ndim


def typed(key: Array) -> Array:
    """A typed key of either kind of key."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key, impl="threefry2x32")


@jax.custom_batching.custom_vmap
def common(numbers):
    """Numbers that are the same for all chains, without an axis of chains under `vmap`.

    A branch taken on them stays one, where on a batch of numbers both sides would be computed.
    """
    return numbers


@common.def_vmap
def _(axis_size, in_batched, numbers):
    first = jax.tree.map(lambda x, batched: x[0] if batched else x, numbers, in_batched[0])
    return first, jax.tree.map(lambda _: False, in_batched[0])


def _forms(position):
    """Into a batch and out of it, as an adaptation sees one chain; and what maps over chains."""
    if position.ndim > 1:
        return (lambda tree: tree), (lambda tree: tree), jax.vmap
    return _batched, _alone, lambda function: function


def _clock(state):
    """Number of the next transition, whether it is of warm-up, and whether its last."""
    step = state.i if state.i.ndim == 0 else state.i[0]
    end = jnp.zeros_like(step) if state.warmup is None else state.warmup.num_warmup
    step, end = common((step, end))
    return step, step < end, step + 1 == end


def _told(target, chain, info) -> Told:
    dtype, potential = chain.position.dtype, _potential(target, chain)
    energy = jnp.full((), jnp.nan) if info.energy is None else info.energy
    return Told(
        chain.position,
        potential,
        jnp.asarray(energy, dtype),
        info.num_gradients,
        jnp.asarray(info.acceptance_rate, dtype),
        # An unadjusted chain may move where its score is finite and the density is not.
        info.is_divergent | ~jnp.isfinite(potential),
    )


def _record(state, z, told, step, warming) -> KernelState:
    """The state after a transition, its parts already in place."""
    begun, step_size = jnp.zeros_like(step), _step_size(state.sampler, told.accept_prob)
    if state.warmup is not None:
        end = common(state.warmup.num_warmup)
        begun = jnp.where(warming, 0, end)
        if state.warmup.sampler is not None:
            now = _step_size(state.warmup.sampler, told.accept_prob)
            step_size = jnp.where(step + 1 < end, now, step_size)
    rate = told.accept_prob
    mean = jnp.where(step == begun, 0, state.mean_accept_prob)
    lost = jnp.asarray(warming & told.diverging, jnp.int32)
    return state._replace(
        i=state.i + 1,
        z=z,
        potential_energy=told.potential_energy,
        energy=told.energy,
        num_steps=told.num_steps,
        accept_prob=rate,
        mean_accept_prob=mean + (rate - mean) / jnp.asarray(step + 1 - begun, rate.dtype),
        diverging=told.diverging,
        adapt_state=AdaptState(step_size, state.adapt_state.num_diverging + lost),
    )


def _potential(target, chain):
    """Minus the log density, evaluated where the chain does not hold it."""
    if "log_density" in chain._fields:
        return -chain.log_density
    return target.potential(chain.position)


def _renewed(target, sampler, chain):
    """The chain with its scores and log densities of the target as it is now."""

    def merged(name, old, new):
        if name in ("score", "log_density"):
            return new
        return fields(old, new) if isinstance(old, tuple) else old

    def fields(old: Any, new: Any):
        news = new._asdict()
        parts = {name: merged(name, part, news[name]) for name, part in old._asdict().items()}
        return old._replace(**parts)

    return fields(chain, sampler.init(target, chain.position))


def _step_size(sampler, like):
    """The step size for every chain, NaN for samplers without one."""
    return jnp.full_like(like, step_size_of(sampler) if has_step_size(sampler) else jnp.nan)


def _alone(tree):
    """Without the axis of chains, of which there is one."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)


def _batched(tree):
    """Inverse of `_alone`."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)

"""One chain with its own warm-up: the state and the transition that plug-ins are made of."""

from collections.abc import Callable
from typing import NamedTuple

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
    """State of the adaptation, which ends after `num_warmup` transitions.

    `sampler` and `chain` are those that warm-up steps, where their form is not that of the kept
    draws; None where it is, and those of the `KernelState` serve both.
    """

    num_warmup: Int[Array, ""]
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
    position: Float[Array, " dim"],
    num_warmup: Int[Array, ""],
    rng_key: Array,
) -> KernelState:
    """The state before the first transition; `split` gives `z` of a position."""
    chains = kept = begin(target, sampler, adapt, position[None], num_warmup)
    warmup = None
    if adapt is not None:
        settled = settle(target, adapt, chains)
        warmup = WarmUp(num_warmup, chains.adaptation, None, None)
        if jax.tree.structure(settled[:2]) != jax.tree.structure(chains[:2]):
            warmup = warmup._replace(sampler=chains.sampler, chain=_alone(chains.states))
            kept = settled
    chain = _alone(kept.states)
    nan, zero = jnp.full((), jnp.nan, position.dtype), jnp.zeros((), jnp.int32)
    return KernelState(
        i=zero,
        z=split(position),
        chain=chain,
        sampler=kept.sampler,
        warmup=warmup,
        potential_energy=_potential(target, chain),
        energy=nan,
        num_steps=zero,
        accept_prob=jnp.zeros_like(nan),
        mean_accept_prob=jnp.zeros_like(nan),
        diverging=jnp.zeros((), bool),
        adapt_state=AdaptState(_step_size(chains.sampler, position.dtype), zero),
        rng_key=rng_key,
    )


def advance(
    target: Target, split: Split, adapt: Adaptation | None, state: KernelState
) -> KernelState:
    """One transition."""
    step, warming, is_last = _clock(state)
    key = fold_in(typed(state.rng_key), step)

    def move(sampler, chain):
        noise = sampler.noise(key, chain.position)
        chain, info = transition(target, sampler.at_step(step), chain, noise)
        return chain, info, _told(target, chain, info)

    def tune(chains, info):
        """The adaptation is shown a batch of one."""
        assert adapt is not None  # or there were no warm-up
        states, infos = _batched((chains.states, info))
        adaptation, sampler = adapt.update(chains.adaptation, chains.sampler, states, infos)
        return Chains(states, sampler, adaptation)

    def settled(chains):
        assert adapt is not None
        end = settle(target, adapt, chains)
        return _alone(end.states), end.sampler

    def warm(state):
        """In warm-up, where its sampler has another form."""
        before = state.warmup
        chain, info, told = move(before.sampler, before.chain)
        chains = tune(Chains(chain, before.sampler, before.adaptation), info)
        kept = (state.chain, state.sampler)
        kept = lax.cond(is_last, lambda: settled(chains), lambda: kept)
        warmup = WarmUp(before.num_warmup, chains.adaptation, chains.sampler, chain)
        return *kept, warmup, told

    def keep(state):
        chain, _, told = move(state.sampler, state.chain)
        return chain, state.sampler, state.warmup, told

    def same_form(state):
        """One program of the transition for warm-up and what follows it."""
        chain, info, told = move(state.sampler, state.chain)

        def tuned(chain, sampler, adaptation):
            chains = tune(Chains(chain, sampler, adaptation), info)
            kept = (chain, chains.sampler)
            return *lax.cond(is_last, lambda: settled(chains), lambda: kept), chains.adaptation

        chain, sampler, adaptation = lax.cond(
            warming, tuned, lambda *same: same, chain, state.sampler, state.warmup.adaptation
        )
        return chain, sampler, state.warmup._replace(adaptation=adaptation), told

    if state.warmup is None:
        parts = keep(state)
    elif state.warmup.chain is None:
        parts = same_form(state)
    else:
        parts = lax.cond(warming, warm, keep, state)
    chain, sampler, warmup, told = parts
    state = state._replace(chain=chain, sampler=sampler, warmup=warmup)
    return _record(state, split, told)


def refreshed(target: Target, state: KernelState) -> KernelState:
    """The state after the density has changed: what is known at the position is found anew."""
    if state.warmup is None or state.warmup.chain is None:
        chain = _renewed(target, state.sampler, state.chain)
        return state._replace(chain=chain, potential_energy=_potential(target, chain))

    def warm(state):
        chain = _renewed(target, state.warmup.sampler, state.warmup.chain)
        warmup = state.warmup._replace(chain=chain)
        return state._replace(warmup=warmup, potential_energy=_potential(target, chain))

    def keep(state):
        chain = _renewed(target, state.sampler, state.chain)
        return state._replace(chain=chain, potential_energy=_potential(target, chain))

    return lax.cond(_clock(state)[1], warm, keep, state)


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


def _clock(state):
    """Number of the next transition, whether it is of warm-up, and whether its last."""
    none = jnp.zeros((), jnp.int32)
    step, end = common((state.i, none if state.warmup is None else state.warmup.num_warmup))
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


def _record(state, split, told) -> KernelState:
    """The state after a transition, its parts already in place."""
    step, warming, _ = _clock(state)
    begun = 0 if state.warmup is None else jnp.where(warming, 0, common(state.warmup.num_warmup))
    rate = told.accept_prob
    change = (rate - state.mean_accept_prob) / jnp.asarray(step + 1 - begun, rate.dtype)
    step_size = _step_size(state.sampler, rate.dtype)
    if state.warmup is not None and state.warmup.sampler is not None:
        now = _step_size(state.warmup.sampler, rate.dtype)
        step_size = jnp.where(step + 1 < state.warmup.num_warmup, now, step_size)
    lost = jnp.asarray(warming & told.diverging, jnp.int32)
    return state._replace(
        i=state.i + 1,
        z=split(told.position),
        potential_energy=told.potential_energy,
        energy=told.energy,
        num_steps=told.num_steps,
        accept_prob=rate,
        mean_accept_prob=jnp.where(step == begun, 0, state.mean_accept_prob) + change,
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

    def merged(old, new):
        if not isinstance(old, tuple):
            return old
        known = ("score", "log_density")
        return old._replace(
            **{
                name: getattr(new, name) if name in known else merged(part, getattr(new, name))
                for name, part in old._asdict().items()
            }
        )

    return merged(chain, sampler.init(target, chain.position))


def _step_size(sampler, dtype):
    """The step size, NaN for samplers without one."""
    return jnp.asarray(step_size_of(sampler) if has_step_size(sampler) else jnp.nan, dtype)


def _alone(tree):
    """Without the axis of chains, of which there is one."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)


def _batched(tree):
    """Inverse of `_alone`."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)

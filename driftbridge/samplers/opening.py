"""The opening of a run: usable positions, and what its chains carry there, by one program.

Where the sampler evaluates the density at the first positions, the search for them shares that
evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.initial import ATTEMPTS, Initial, UniformStart, given_positions
from driftbridge.samplers.loop import Chains, over_chains
from driftbridge.targets.base import Target


def begin(
    target: Target,
    sampler: Sampler,
    adapt: Adaptation | None,
    positions: Float[Array, "chains dim"],
    num_warmup: Int[Array, ""],
) -> Chains:
    """States at the given positions, and the adaptation before its first transition."""
    state = None
    if adapt is not None:
        state, sampler = adapt.init(sampler, positions, num_warmup)
    initial = over_chains(lambda p: sampler.init(target, p), positions.shape[0])
    return Chains(initial(positions), sampler, state)


def usable_positions(
    target: Target, positions: Float[Array, "chains dim"]
) -> tuple[Float[Array, " chains"], Bool[Array, " chains"]]:
    """Log density at every position, and whether it and its gradient are finite."""

    def one(position):
        value, score = target.value_and_score(position)
        return value, jnp.isfinite(value) & jnp.all(jnp.isfinite(score))

    return over_chains(one, positions.shape[0])(positions)


def proposals(
    target: Target,
    initial: Initial,
    key: Key[Array, ""],
    chains: Int[Array, " chains"],
    attempt: Int[Array, ""],
    like: Float[Array, " dim"],
) -> Float[Array, "chains dim"]:
    """A candidate for every chain; every attempt of a chain has its own key."""

    def one(chain):
        own = fold_in(key, initial.source(chain))
        return initial.propose(target, fold_in(own, attempt), like)

    return over_chains(one, chains.shape[0])(chains)


class Opening(NamedTuple):
    """One attempt at a start: the chains, log densities, what is usable, and how it went."""

    chains: Chains
    values: Float[Array, " chains"]
    usable: Bool[Array, " chains"]
    repaired: Int[Array, ""]
    gathered: Bool[Array, ""]
    num_gradients: Int[Array, ""]


def _attempt(target, sampler, adapt, initial, key, chains, attempt, positions, good, num_warmup):
    """Chains with new positions where they are not `good`; none is new where that is None."""
    repaired = num_gradients = jnp.zeros((), jnp.int32)
    gathered = jnp.ones((), bool)
    if initial is not None:
        if good is not None:
            proposed = proposals(target, initial, key, chains, attempt, positions[0])
            positions = jnp.where(good[:, None], positions, proposed)
        # No chain has the number -1.
        own = fold_in(fold_in(key, jnp.int32(-1)), attempt)
        started = initial.gather(target, own, positions)
        positions, repaired, gathered = started.position, started.repaired, started.gathered
        num_gradients = started.num_gradients
        if adapt is not None and started.metric is not None:
            sampler = adapt.adopt(sampler, started.metric, started.step_size)
    values, usable = usable_positions(target, positions)
    begun = begin(target, sampler, adapt, positions, num_warmup)
    return Opening(begun, values, usable, repaired, gathered, num_gradients)


_try = jax.jit(_attempt)
# Optimising the code costs a quarter of a second; where the density is evaluated once, that of a
# regression with 500 000 rows loses .02 s without it.
_try_once = jax.jit(_attempt, compiler_options={"xla_backend_optimization_level": 0})


def open_chains(
    target: Target,
    sampler: Sampler,
    adapt: Adaptation | None,
    init: Any,
    key: Key[Array, ""],
    num_chains: int,
    num_warmup: int,
    dtype: np.dtype,
    sharding: Sharding | None = None,
    foreseen: Callable[[Chains], None] = lambda _: None,
) -> Opening:
    """All that a run carries before its first transition, laid out by `sharding`.

    `foreseen` is told the shapes of it before any program is compiled.

    **Raises:** `ValueError` naming the chain and the value where the log density or its gradient
    is not finite.
    """
    searches = init is None or isinstance(init, Initial)
    if searches:
        initial = cast_floating(UniformStart() if init is None else init, dtype)
        positions = np.zeros((num_chains, target.dim), dtype)
    else:
        initial, positions = None, given_positions(target, init, num_chains, dtype)
    chains, count = np.arange(num_chains, dtype=np.int32), np.int32(num_warmup)
    values = usable = np.zeros(num_chains, bool)
    program = _try_once if initial is None or isinstance(initial, UniformStart) else _try
    for attempt in range(ATTEMPTS):
        good = None
        if initial is not None:
            known = initial.known(
                key, np.asarray(initial.source(chains)), attempt, target.dim, dtype
            )
            good = usable if known is None else None
            positions = positions if known is None else np.where(usable[:, None], positions, known)
        laid = jax.device_put((chains, positions, good), sharding)
        arguments = (
            target, sampler, adapt, initial, key, laid[0], np.int32(attempt), *laid[1:], count,
        )  # fmt: skip
        if attempt == 0:
            foreseen(jax.eval_shape(program, *arguments).chains)
        opening = program(*arguments)
        values, usable = opening.values, np.asarray(opening.usable)
        if usable.all():
            return opening
        if not searches:
            break
        positions = opening.chains.states.position
    chain = int(np.argmin(usable))
    if searches:
        raise ValueError(
            f"no start with a finite log density and gradient was found for chain {chain} in "
            f"{ATTEMPTS} draws of {type(initial).__name__}. Give positions by init=..., or "
            "check the density: it may be -inf or NaN where it should not be."
        )
    what = "a gradient that is not finite" if np.isfinite(values[chain]) else "no finite value"
    raise ValueError(
        f"at the start of chain {chain} the log density is {values[chain]} with {what}; start "
        "inside the support of the target, or leave init out to search for a start."
    )

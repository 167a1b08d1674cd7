"""Where chains start."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.threefry import fold_in, unit_floats
from driftbridge.samplers.loop import over_chains
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive

# Draws tried for each chain before a start is given up.
ATTEMPTS = 100


class Initial(eqx.Module):
    """A strategy that gives each chain its start.

    A subclass supplies `propose(target, key, like)`: one candidate position of the shape and dtype
    of `like`. Candidates at which the log density or its gradient is not finite are drawn again,
    at most `ATTEMPTS` times.
    """

    @abc.abstractmethod
    def propose(
        self, target: Target, key: Key[Array, ""], like: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """One candidate."""

    def source(self, chain: Int[Array, ""]) -> Int[Array, ""]:
        """Number of the random stream that chain `chain` takes its start from: its own."""
        return chain


class Grouped(Initial):
    """Neighbouring chains share a start, as the nested R-hat for many short chains wants it.

    **Arguments:**

    - `start`: the strategy that draws the start of each group.
    - `group_size`: chains in a group; divides their number. The nested R-hat needs four groups.

    Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2022), arXiv 2110.13017.
    """

    start: Initial
    group_size: int = eqx.field(static=True)

    def __check_init__(self):
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1; got {self.group_size}.")

    def propose(self, target, key, like):
        return self.start.propose(target, key, like)

    def source(self, chain):
        return self.start.source(chain // self.group_size)


class UniformStart(Initial):
    """Uniform on the cube `[-radius, radius]^dim` of unconstrained space (Stan's rule).

    **Arguments:**

    - `radius`: half the side of the cube, in the units of the unconstrained coordinates.
    """

    radius: Float[Array, ""] | float = 2.0

    def __check_init__(self):
        check_positive(radius=self.radius)

    def propose(self, target, key, like):
        unit = unit_floats(key, like.size, like.dtype).reshape(like.shape)
        return self.radius * (2 * unit - 1)


@jax.jit
def usable_positions(
    target: Target, positions: Float[Array, "chains dim"]
) -> tuple[Float[Array, " chains"], Bool[Array, " chains"]]:
    """Log density at every position, and whether it and its gradient are finite."""

    def one(position):
        value, score = target.value_and_score(position)
        return value, jnp.isfinite(value) & jnp.all(jnp.isfinite(score))

    return over_chains(one, positions.shape[0])(positions)


@jax.jit
def starting_positions(
    target: Target,
    initial: Initial,
    key: Key[Array, ""],
    chains: Int[Array, " chains"],
    like: Float[Array, " dim"],
) -> tuple[Float[Array, "chains dim"], Bool[Array, " chains"]]:
    """A start for every chain, and whether it is usable; every attempt of a chain has its key."""

    def propose(attempt):
        def one(chain):
            own = fold_in(key, initial.source(chain))
            chain_key = fold_in(own, attempt)
            return initial.propose(target, chain_key, like)

        return over_chains(one, chains.shape[0])(chains)

    def body(carry):
        attempt, positions, good = carry
        proposed = jnp.where(good[:, None], positions, propose(attempt))
        _, usable = usable_positions(target, proposed)
        return attempt + 1, proposed, usable

    def unfinished(carry):
        attempt, _, good = carry
        return (attempt < ATTEMPTS) & ~jnp.all(good)

    positions = jnp.zeros((*chains.shape, *like.shape), like.dtype)
    start = (jnp.int32(0), positions, jnp.zeros(chains.shape, bool))
    _, positions, good = lax.while_loop(unfinished, body, start)
    return positions, good


def start(
    target: Target,
    init: Any,
    key: Key[Array, ""],
    num_chains: int,
    dtype: np.dtype,
    sharding: Sharding | None,
) -> Float[Array, "chains dim"]:
    """The first position of every chain, laid out by `sharding`.

    **Raises:** `ValueError` naming the chain and the value where the log density or its gradient
    is not finite.
    """
    if init is None or isinstance(init, Initial):
        initial = cast_floating(UniformStart() if init is None else init, dtype)
        chains = jax.device_put(np.arange(num_chains, dtype=np.int32), sharding)
        like = jax.device_put(np.zeros((target.dim,), dtype))
        positions, good = starting_positions(target, initial, key, chains, like)
        good = np.asarray(good)
        if not good.all():
            chain = int(np.argmin(good))
            raise ValueError(
                f"no start with a finite log density and gradient was found for chain {chain} in "
                f"{ATTEMPTS} draws of {type(initial).__name__}. Give positions by init=..., or "
                "check the density: it may be -inf or NaN where it should not be."
            )
        return positions
    positions = jax.device_put(given_positions(target, init, num_chains, dtype), sharding)
    values, good = (np.asarray(a) for a in usable_positions(target, positions))
    if not good.all():
        chain = int(np.argmin(good))
        what = "a gradient that is not finite" if np.isfinite(values[chain]) else "no finite value"
        raise ValueError(
            f"at the start of chain {chain} the log density is {values[chain]} with {what}; start "
            "inside the support of the target, or leave init out to search for a start."
        )
    return positions


def given_positions(target: Target, init, num_chains: int, dtype) -> np.ndarray:
    """Positions the user gave, as an array `(chains, dim)`.

    **Arguments:**

    - `init`: one position `(dim,)`, one for each chain `(chains, dim)`, or one draw as a dict of
      parameters in the user's names.

    **Raises:** `ValueError` for a wrong shape or a value that is not finite, naming it.
    """
    if isinstance(init, dict):
        init = target.unconstrain(init)
    positions = np.asarray(init, dtype)
    allowed = ((target.dim,), (num_chains, target.dim))
    if positions.shape not in allowed:
        raise ValueError(
            f"init must have shape ({target.dim},) or ({num_chains}, {target.dim}) (one position, "
            f"or one for each of {num_chains} chains); got {positions.shape}."
        )
    positions = np.broadcast_to(positions, allowed[1])
    if not np.all(np.isfinite(positions)):
        chain, index = np.argwhere(~np.isfinite(positions))[0]
        raise ValueError(
            f"init has the value {positions[chain, index]} at coordinate {index} of chain {chain}; "
            "every coordinate must be finite."
        )
    return positions

"""Where chains start."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from driftbridge.runtime.threefry import draws_here, known_unit_floats, unit_floats
from driftbridge.samplers.metric import Metric
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive

# Draws tried for each chain before a start is given up.
ATTEMPTS = 100


Number = Int[Array, ""] | Int[np.ndarray, " chains"]


class Started(NamedTuple):
    """Where chains start, and what was learnt on the way there, if anything.

    `metric` and `step_size` are first guesses for the warm-up; `repaired` counts chains that took
    the place of another one; `gathered` is false where the search ended without success;
    `num_gradients` were evaluated by each chain.
    """

    position: Float[Array, "chains dim"]
    metric: Metric | None
    step_size: Float[Array, ""] | None
    repaired: Int[Array, ""]
    gathered: Bool[Array, ""]
    num_gradients: Int[Array, ""]


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

    def known(
        self,
        key: Key[Array, ""],
        sources: Int[np.ndarray, " chains"],
        attempt: int,
        dim: int,
        dtype,
    ) -> Float[np.ndarray, "chains dim"] | None:
        """What `propose` gives chains of the streams `sources`, drawn on the host.

        None where it takes a program.
        """
        return None

    def gather(
        self, target: Target, key: Key[Array, ""], positions: Float[Array, "chains dim"]
    ) -> Started:
        """What all chains do together from where they were put; nothing here."""
        none = jnp.zeros((), jnp.int32)
        return Started(positions, None, None, none, jnp.ones((), bool), none)

    def source(self, chain: Number) -> Number:
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

    def known(self, key, sources, attempt, dim, dtype):
        return self.start.known(key, sources, attempt, dim, dtype)

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
        return on_cube(self.radius, unit)

    def known(self, key, sources, attempt, dim, dtype):
        if not draws_here(key, dtype):
            return None
        unit = known_unit_floats(key, (sources, attempt), dim, dtype)
        return on_cube(np.asarray(self.radius, dtype), unit)


def on_cube(radius, unit):
    """Numbers on [0, 1) carried to `[-radius, radius)`."""
    return radius * (2 * unit - 1)


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

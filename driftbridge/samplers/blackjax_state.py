"""Trees of parameters and log densities as BlackJAX has them, on the flat vectors of a sampler."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from driftbridge.samplers.base import Info, State
from driftbridge.targets.base import Target


class BlackJAXState(NamedTuple):
    """What BlackJAX reads of a state, and what the sampler goes on from.

    - `position`, `logdensity_grad`: trees of the structure of the position given to `init`.
    - `rest`: the sampler's own state, without position, score and log density.
    - `step`: number of transitions taken, on which schedules (jittered lengths) depend.
    """

    position: PyTree
    logdensity: Float[Array, ""]
    logdensity_grad: PyTree
    rest: PyTree
    step: Int[Array, ""]


class FunctionTarget(Target):
    """A log density of a tree of parameters, on the flat vector of its leaves.

    The function may capture traced values (a temperature): this target lives inside one trace.
    """

    dim: int = eqx.field(static=True)
    fn: Callable = eqx.field(static=True)
    unravel: Callable = eqx.field(static=True)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return jnp.asarray(self.fn(self.unravel(x)), x.dtype)


def flattened(
    logdensity_fn: Callable, position: PyTree
) -> tuple[FunctionTarget, Float[Array, " dim"]]:
    """A log density of trees as a target, and one tree as its position.

    Raises `TypeError` for a leaf that is not floating.
    """
    for path, leaf in jax.tree.leaves_with_path(position):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "the position"
            raise TypeError(f"{name} has dtype {dtype}; give a floating array.")
    flat, unravel = ravel_pytree(position)
    # Of a Python float the array is weakly typed, which a loop does not carry.
    flat = lax.convert_element_type(flat, flat.dtype)
    # A method of a module is a tree of arrays, which a static field must not be.
    return FunctionTarget(flat.size, lambda tree: logdensity_fn(tree), unravel), flat


def to_blackjax(target: FunctionTarget, state: State, step: Int[Array, ""]) -> BlackJAXState:
    """The state as BlackJAX reads it; what the sampler does not keep is computed here.

    Where nothing reads it the compiler drops that, as in the inner kernels of SMC.
    """
    own = state._asdict()
    value, score = own.get("log_density"), own.get("score")
    if value is None or score is None:
        value, score = target.value_and_score(state.position)
    shared = {name: None for name in ("position", "log_density", "score") if name in own}
    return BlackJAXState(
        target.unravel(state.position), value, target.unravel(score), state._replace(**shared), step
    )


def from_blackjax_state(state: BlackJAXState, position: Float[Array, " dim"]) -> State:
    """The sampler's own state, inverse of `to_blackjax`; `position` is the flat one."""
    known = {
        "position": position,
        "log_density": state.logdensity,
        "score": ravel_pytree(state.logdensity_grad)[0],
    }
    own = state.rest._fields
    return state.rest._replace(**{name: value for name, value in known.items() if name in own})


def refusing(new: State, info: Info, old: State) -> tuple[State, Info]:
    """`old` where the new position is not finite, counted as a divergence."""
    is_finite = jnp.isfinite(jnp.sum(new.position))
    state = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)
    return state, info._replace(
        acceptance_rate=jnp.where(is_finite, info.acceptance_rate, 0),
        is_divergent=info.is_divergent | ~is_finite,
    )


def typed(key: Any) -> Key[Array, ""]:
    """The key as a typed one; BlackJAX takes both kinds."""
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if is_typed else jax.random.wrap_key_data(key)

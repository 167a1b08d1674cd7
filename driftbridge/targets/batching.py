"""One helper that gives a target's score its matrix-product form when chains are batched."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float


def batched_score(
    single: Callable[[Any, Float[Array, " dim"]], Any],
    batch: Callable[[Any, Float[Array, "chains dim"]], Any],
) -> Callable[[Any, Float[Array, " dim"]], Any]:
    """A function of `(target, x)` that runs `batch` when exactly `x` is vmapped, else `single`.

    `vmap` of a score for one chain turns a matrix-vector product into a loop of them; `batch` can
    write the same numbers as one matrix product. Every other batching (over data, over both) falls
    back to `vmap(single)`, and derivatives are those of `single`.

    **Arguments:**

    - `single`: `(target, x) -> out` for `x` of shape `(dim,)`; `out` is any pytree of arrays.
    - `batch`: `(target, x) -> out` for `x` of shape `(chains, dim)`; leaves gain a leading axis.

    **Returns:** a function with the signature of `single`.
    """

    @jax.custom_batching.custom_vmap
    def evaluate(target, x):
        return single(target, x)

    @evaluate.def_vmap
    def _(axis_size, in_batched, target, x):
        target_batched, x_batched = in_batched
        if x_batched and not any(jax.tree.leaves(target_batched)) and x.ndim == 2:
            out = batch(target, x)
        else:
            axes = jax.tree.map(lambda b: 0 if b else None, (target_batched, x_batched))
            out = jax.vmap(single, in_axes=axes, axis_size=axis_size)(target, x)
        return out, jax.tree.map(lambda _: True, out)

    # custom_vmap alone has no differentiation rule.
    @jax.custom_jvp
    def function(target, x):
        return evaluate(target, x)

    @function.defjvp
    def _(primals, tangents):
        return jax.jvp(single, primals, tangents)

    return function

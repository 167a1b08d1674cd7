"""How code of one chain is laid out for XLA: matrix products for a batch, one call for a chain."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata
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

    def rule(axis_size, in_batched, target, x):
        target_batched, x_batched = in_batched
        if x_batched and not any(jax.tree.leaves(target_batched)) and x.ndim == 2:
            return batch(target, x)
        return _vmapped(single, axis_size, in_batched, (target, x))

    return _with_rule(single, single, rule)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _vmapped(function, axis_size, in_batched, arguments):
    axes = jax.tree.map(lambda b: 0 if b else None, tuple(in_batched))
    return jax.vmap(function, in_axes=axes, axis_size=axis_size)(*arguments)


def _with_rule(function: Callable, derivable: Callable, rule: Callable) -> Callable:
    """`function` with a rule for `vmap`, and the derivatives of `derivable`."""

    @jax.custom_batching.custom_vmap
    def evaluate(*arguments):
        return function(*arguments)

    @evaluate.def_vmap
    def _(axis_size, in_batched, *arguments):
        out = rule(axis_size, in_batched, *arguments)
        return out, jax.tree.map(lambda _: True, out)

    # custom_vmap alone has no differentiation rule.
    @jax.custom_jvp
    def whole(*arguments):
        return evaluate(*arguments)

    def derivative(primals, tangents):
        # What does not move is a constant: zero times an infinite derivative would be NaN.
        leaves, tree = jax.tree.flatten(primals)
        slopes = jax.tree.leaves(tangents, is_leaf=_is_zero)
        moving = [i for i, slope in enumerate(slopes) if not _is_zero(slope)]

        def of_moving(*moved):
            arguments = list(leaves)
            for i, value in zip(moving, moved, strict=True):
                arguments[i] = value
            return derivable(*jax.tree.unflatten(tree, arguments))

        return jax.jvp(of_moving, [leaves[i] for i in moving], [slopes[i] for i in moving])

    whole.defjvp(derivative, symbolic_zeros=True)
    return whole


def outlined(function: Callable) -> Callable:
    """The function as one operation of the loop it is called in, where programs run on a CPU.

    XLA's runtime for CPUs takes a loop's operations in order as long as there are at most eight,
    and as a graph, some 0.3 us an iteration dearer, where there are more. A function that is kept
    out of line counts as one of them. It must not be batched: a call that is not inlined would
    hide the axis of the chains from the partitioner of a device mesh.
    """

    def inside(*arguments):
        with set_xla_metadata(inlineable="true"):
            return function(*arguments)

    compiled = jax.jit(inside)

    def call(*arguments):
        if jax.default_backend() != "cpu":
            return function(*arguments)
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return call


def outlined_alone(function: Callable) -> Callable:
    """`outlined` for a function of one chain, which is as it is wherever it is batched."""

    def rule(axis_size, in_batched, *arguments):
        return _vmapped(function, axis_size, in_batched, arguments)

    return _with_rule(outlined(function), function, rule)

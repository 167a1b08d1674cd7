"""A target from a user's own log density over any tree of parameters."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from driftbridge.runtime.dtypes import default_dtype
from driftbridge.targets.arguments import Arguments, explaining_traced_arguments
from driftbridge.targets.base import Target
from driftbridge.targets.constraints import Constraint, real
from driftbridge.targets.layout import Layout

# Values typed by hand to four digits are inside: a simplex need not sum to one more closely.
TOLERANCE = 1e-4


class Density(Target):
    """What `from_density` returns: the density of the unconstrained coordinates.

    `log_density(x) = fn(parameters(x), *data) + sum of the constraints' log Jacobians`.
    """

    dim: int = eqx.field(static=True)
    arguments: Arguments
    constraints: tuple[Constraint, ...]
    layout: Layout = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        free = self.layout.split(x).values()
        log_dets = [c.log_det(z) for c, z in zip(self.constraints, free, strict=True)]
        return jnp.asarray(sum(log_dets, start=self._value(x)), x.dtype)

    def _value(self, x):
        """What the user's function returns."""
        fn, data, _ = self.arguments.tree
        return fn(jax.tree.unflatten(self.treedef, list(self.constrain(x).values())), *data)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        """The parameters by name: dotted paths into the tree, or "x" for a bare array."""
        free = self.layout.split(x).items()
        return {n: c.forward(z) for (n, z), c in zip(free, self.constraints, strict=True)}

    def unconstrain(self, parameters: PyTree) -> Float[Array, " dim"]:
        """The position of parameters, given as the user's tree or by name as `constrain` does.

        Raises `ValueError` for missing or unknown names, a wrong shape, or a value outside its
        constraint.
        """
        shapes = dict(zip(self.layout.names, self.shapes, strict=True))
        free = {}
        for c, (name, value) in zip(
            self.constraints, as_arrays(self._by_name(parameters), shapes).items(), strict=True
        ):
            free[name] = c.inverse(value)
            require_inside(name, value, free[name], c)
        return self.layout.join(free)

    def _by_name(self, parameters):
        if jax.tree.structure(parameters) == self.treedef:
            return dict(zip(self.layout.names, jax.tree.leaves(parameters), strict=True))
        given = set(parameters) if isinstance(parameters, Mapping) else {type(parameters).__name__}
        if given != set(self.layout.names):
            raise ValueError(
                f"expected the parameters {', '.join(self.layout.names)} by name, or a tree of the "
                f"structure given to from_density; got {', '.join(sorted(map(str, given)))}."
            )
        return parameters


def from_density(
    fn: Callable[..., Float[Array, ""]],
    like: PyTree,
    *data: Any,
    constraints: Mapping[str, Any] | None = None,
) -> Density:
    """The target of a log density written as a function of parameters and data.

    `log_density(x) = fn(parameters, *data) + log|det d parameters / d x|`, with `x` the flat
    vector of unconstrained coordinates.

    **Arguments:**

    - `fn`: `(parameters, *data) -> log density`, a scalar, up to a constant, in the constrained
      parameters. Another function compiles again, so define it once, at module level.
    - `like`: any tree of floating arrays, floats or `jax.ShapeDtypeStruct`s. It gives the names
      and shapes of `parameters`; its values are ignored.
    - `data`: what else `fn` takes. Arrays and floats may change without compiling again; floating
      ones are computed with in the dtype of the positions, integer ones stay integer. Integers,
      booleans and strings are static. What `fn` captures instead is a constant of the program.
    - `constraints`: by name (dotted path) or nested as `like`; from
      `driftbridge.targets.constraints` or `numpyro.distributions.constraints`. Real unless named.

    **Returns:** a `Density`. Its `constrain` gives the parameters back by name.

    **Raises:** `ValueError` or `TypeError` for an empty `like`, parameters that are not floating,
    unknown names in `constraints`, bounds of a wrong shape, or an `fn` that does not return one
    real number.
    """
    names, shapes, treedef = _structure(like)
    chosen = _constraints(constraints, names)
    free_shapes = []
    for name, shape, constraint in zip(names, shapes, chosen, strict=True):
        try:
            free_shapes.append(tuple(constraint.unconstrained_shape(shape)))
        except ValueError as error:
            raise ValueError(f"parameter {name!r}: {error}") from None
        require_shape(name, shape, constraint, free_shapes[-1])
    layout = Layout(names, tuple(free_shapes))
    target = Density(layout.dim, Arguments(fn, data), chosen, layout, shapes, treedef)
    _require_scalar(target)
    return target


def as_arrays(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float[Array, "..."]]:
    """The values named in `shapes` as arrays of one floating dtype, their shapes checked."""
    arrays = {n: v if isinstance(v := values[n], jax.Array) else np.asarray(v) for n in shapes}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"parameter {name!r} has shape {shape}; got {arrays[name].shape}.")
    dtype = jnp.result_type(float, *arrays.values())
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def require_shape(
    name: str, shape: tuple[int, ...], constraint: Constraint, free: tuple[int, ...]
) -> None:
    """Raise where a constraint makes values of another shape: its bounds have their own."""
    try:
        made = jax.eval_shape(constraint.forward, jax.ShapeDtypeStruct(free, default_dtype())).shape
    except (TypeError, ValueError) as error:  # shapes that do not broadcast
        made = error
    if made != shape:
        found = f"values of shape {made}" if isinstance(made, tuple) else f"an error: {made}"
        raise ValueError(
            f"the constraint of {name!r}, {constraint}, does not fit its shape {shape}: it gives "
            f"{found}. Bounds are numbers, or arrays of the shape of the parameter."
        )


def require_inside(name: str, value: Array, free: Array, constraint: Constraint) -> None:
    """Raise where a known value is not strictly inside its constraint; traced values pass.

    `free` are its unconstrained coordinates: not finite, or not leading back, for a value outside.
    """
    if isinstance(value, Tracer):
        return
    back = np.asarray(constraint.forward(free))
    known = np.asarray(value)
    error = np.abs(back - known) / np.maximum(1, np.max(np.abs(known)))
    if not (np.all(np.isfinite(np.asarray(free))) and np.all(error <= TOLERANCE)):
        raise ValueError(f"parameter {name!r} must lie strictly inside {constraint}; got {known}.")


def _structure(like):
    """Names, shapes and structure of a tree of parameters."""
    paths, treedef = jax.tree.flatten_with_path(like)
    names = tuple(_name(path) for path, _ in paths)
    shapes = tuple(_shape(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True))
    if sum(math.prod(shape) for shape in shapes) == 0:
        raise ValueError(
            "like has no parameters; give an array or float for each, as in {'mu': 0.0}."
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two parameters of like have the name {name!r}; rename one.")
    return names, shapes, treedef


def _name(path):
    """The dotted path of a leaf; "x" for a bare array."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "x"


def _shape(name, leaf):
    """The shape of a floating parameter."""
    if isinstance(leaf, float):
        return ()
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        kind = "an integer" if isinstance(leaf, int) else f"a {type(leaf).__name__}"
        raise TypeError(
            f"parameter {name!r} of like is {kind}; give a float (0.0) or a floating array. "
            "Discrete parameters must be summed out of the density."
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"parameter {name!r} of like has dtype {leaf.dtype}; give a floating array. "
            "Discrete parameters must be summed out of the density."
        )
    return tuple(leaf.shape)


def _constraints(given, names):
    """One constraint for each name."""
    by_name = dict(_flatten(given or {}))
    unknown = [name for name in by_name if name not in names]
    if unknown:
        raise ValueError(
            f"constraints name {', '.join(map(repr, unknown))}; the parameters are "
            f"{', '.join(map(repr, names))}."
        )
    return tuple(_as_constraint(name, by_name.get(name, real)) for name in names)


def _flatten(tree, prefix=""):
    """Pairs of dotted path and leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_constraint(name, constraint):
    """A constraint of ours, or one of NumPyro's as ours."""
    if isinstance(constraint, Constraint):
        return constraint
    if any(base.__module__.split(".")[0] == "numpyro" for base in type(constraint).__mro__):
        from driftbridge.targets.numpyro_constraint import NumPyroConstraint

        return NumPyroConstraint(constraint)
    raise TypeError(
        f"the constraint of {name!r} is a {type(constraint).__name__}; take one of "
        "driftbridge.targets.constraints or numpyro.distributions.constraints."
    )


def _require_scalar(target):
    """Trace the user's function once, without computing, and check what it returns."""
    x = jax.ShapeDtypeStruct((target.dim,), default_dtype())
    with explaining_traced_arguments():
        value = jax.eval_shape(Density._value, target, x)
    if not isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(f"fn must return one number, the log density; it returned {value}.")
    if value.shape != ():
        raise ValueError(
            f"fn must return one number, the log density; it returned shape {value.shape}. "
            "Sum over the observations."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"fn must return a floating number; it returned dtype {value.dtype}.")

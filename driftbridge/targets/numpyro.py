"""A NumPyro model as a target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.targets.arguments import Arguments, explaining_traced_arguments
from driftbridge.targets.base import Observations, Target
from driftbridge.targets.density import as_arrays, require_inside
from driftbridge.targets.layout import Layout
from driftbridge.targets.numpyro_constraint import NumPyroConstraint, permitting


@dataclass(frozen=True)
class Sites:
    """What one abstract trace of a model tells: static facts of its sites, in order.

    - `latent`: names and constrained shapes of the sampled sites.
    - `free_shapes`: their unconstrained shapes.
    - `deterministic`, `observed`: names.
    - `axes`: names of the axes of the sites that are inside plates.
    """

    latent: tuple[tuple[str, tuple[int, ...]], ...]
    free_shapes: tuple[tuple[int, ...], ...]
    deterministic: tuple[str, ...]
    observed: tuple[str, ...]
    axes: tuple[tuple[str, tuple[str, ...]], ...]


class NumPyroModel(Target):
    """What `from_numpyro` returns: a model's log joint density in unconstrained coordinates."""

    dim: int = eqx.field(static=True)
    arguments: Arguments
    layout: Layout = eqx.field(static=True)
    sites: Sites = eqx.field(static=True)

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of sites inside plates: the plates, and `site_dim_i` for the rest."""
        return dict(self.sites.axes)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        inputs = _inputs(self.arguments, x.dtype)
        with permitting(x.dtype) as numpyro:
            potential = numpyro.infer.util.potential_energy(*inputs, self.layout.split(x))
        return jnp.asarray(-potential, x.dtype)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Shaped[Array, "..."]]:
        """Values of the latent sites, constrained, and of the deterministic sites, by name."""
        inputs = _inputs(self.arguments, x.dtype)
        with permitting(x.dtype) as numpyro:
            values = numpyro.infer.util.constrain_fn(
                *inputs, self.layout.split(x), return_deterministic=True
            )
        return {name: jnp.asarray(value) for name, value in values.items()}

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        """The position of constrained values of the latent sites, by name.

        Deterministic sites may be among them and are ignored. Raises `ValueError` for missing or
        unknown names, a wrong shape, or a value outside its support.
        """
        values = self._latent(parameters)
        trace = _run(self.arguments, _given(values), _dtype(values))
        free = {}
        for name, value in values.items():
            support = NumPyroConstraint(trace[name]["fn"].support)
            free[name] = support.inverse(value)
            require_inside(name, value, free[name], support)
        return self.layout.join(free)

    @property
    def observations(self) -> Observations | None:
        """Data, pointwise log likelihood and replicated data of the observed sites."""
        if not self.sites.observed:
            return None
        return Observations(_observed_data(self), self._log_likelihood, self._predict)

    def _latent(self, parameters):
        """The given values of the latent sites, checked by name and shape."""
        names = self.layout.names
        if set(parameters) - set(self.sites.deterministic) != set(names):
            raise ValueError(
                f"expected values of the latent sites {', '.join(names)}; got "
                f"{', '.join(map(str, parameters))}."
            )
        return as_arrays(parameters, dict(self.sites.latent))

    def _log_likelihood(self, parameters):
        values = self._latent(parameters)
        trace = _run(self.arguments, _given(values), _dtype(values))
        sites = {name: trace[name] for name in self.sites.observed}
        with permitting(_dtype(values)):
            return {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}

    def _predict(self, key: Key[Array, ""], parameters):
        values = self._latent(parameters)
        trace = _run(self.arguments, _replicated(values), _dtype(values), key=key)
        return {name: trace[name]["value"] for name in self.sites.observed}


def from_numpyro(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> NumPyroModel:
    """The target of a NumPyro model given its arguments.

    `log_density(x)` is the model's log joint density of latent and observed sites plus the log
    Jacobian of the bijections from `x` to the supports; supports may depend on other sites.

    **Arguments:**

    - `model`: a function of NumPyro primitives, or one wrapped by `numpyro.handlers`. Another
      function compiles again, so define it once, at module level.
    - `args`, `kwargs`: its arguments. Arrays and floats may change without compiling again;
      integers, booleans, strings and None are static and may set shapes and branches.

    **Returns:** a `NumPyroModel`. `constrain` gives latent and deterministic sites by name, `dims`
    the plates as names of their axes, `observations` the data with their predictive laws.
    NumPyro traces the model once here, abstractly: nothing is computed or compiled.

    **Raises:** `ValueError` for a model without latent sites, with discrete latent sites, `Delta`
    latent sites, `param` or `mutable` sites, or subsampling plates; each with its cure.
    """
    arguments = Arguments(model, args, kwargs)
    found = []

    def trace(arguments):
        sites = _run(arguments, _origin, key=jax.random.key(0), checking=True)
        with permitting():
            found.append(_inspect(sites))

    with explaining_traced_arguments():
        jax.eval_shape(trace, arguments)
    sites = found[0]
    layout = Layout(tuple(dict(sites.latent)), sites.free_shapes)
    return NumPyroModel(layout.dim, arguments, layout, sites)


def _run(arguments, substitute, dtype=None, *, key=None, checking=False):
    """One run of the model with values from `substitute(site)`, as NumPyro's trace of its sites."""
    model, args, kwargs = _inputs(arguments, dtype)
    with permitting(dtype, checking=checking) as numpyro:
        handlers = numpyro.handlers
        if key is not None:
            model = handlers.seed(model, key)
        substituted = handlers.substitute(model, substitute_fn=substitute)
        return handlers.trace(substituted).get_trace(*args, **kwargs)


def _inputs(arguments, dtype) -> tuple[Any, tuple, dict[str, Any]]:
    """The model and its arguments, arrays in the precision of `dtype` if there is one."""
    if dtype is None:
        return arguments.tree
    arguments = cast_floating(arguments, dtype)
    if dtype != jnp.float64:
        arguments = jax.tree.map(
            lambda v: jax.lax.convert_element_type(v, jnp.int32) if v.dtype == jnp.int64 else v,
            arguments,
        )
    return arguments.tree


def _dtype(values):
    """The dtype that `as_arrays` gave the values of one draw."""
    return next(iter(values.values())).dtype


def _given(values):
    """Latent sites take the given values."""
    return lambda site: values.get(site["name"]) if site["type"] == "sample" else None


def _replicated(values):
    """Latent sites take the given values; observed sites are drawn, in the shape of the data."""

    def substitute(site):
        if site["type"] != "sample" or site["name"] in values:
            return _given(values)(site)
        if _is_data(site):
            with permitting() as numpyro:
                law, shape = site["fn"], jnp.shape(site["value"])
                batch = shape[: len(shape) - law.event_dim]
                return law.expand(jnp.broadcast_shapes(batch, law.batch_shape)).sample(
                    numpyro.prng_key()
                )
        return None

    return substitute


def _origin(site):
    """Continuous latent sites take the value at the origin of their unconstrained coordinates."""
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    with permitting() as numpyro, numpyro.infer.util.helpful_support_errors(site):
        transform = numpyro.distributions.biject_to(site["fn"].support)
    shape = site["kwargs"]["sample_shape"] + transform.inverse_shape(site["fn"].shape())
    return transform(jnp.zeros(shape))


def _is_data(site):
    """Whether a site holds data, as against a factor."""
    return site["is_observed"] and not site["infer"].get("is_auxiliary", False)


@eqx.filter_jit
def _observed_data(target):
    trace = _run(target.arguments, _origin, key=jax.random.key(0))
    return {name: jnp.asarray(trace[name]["value"]) for name in target.sites.observed}


def _inspect(trace) -> Sites:
    """The static facts of a trace, after refusing what has no density to sample."""
    _refuse_unusable(trace)
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    latent = {name: site for name, site in samples.items() if not site["is_observed"]}
    if not latent:
        raise ValueError("the model has no latent sites: every numpyro.sample is observed.")
    deterministic = {n: site for n, site in trace.items() if site["type"] == "deterministic"}
    shapes = {name: tuple(jnp.shape(site["value"])) for name, site in latent.items()}
    return Sites(
        latent=tuple(shapes.items()),
        free_shapes=tuple(
            tuple(NumPyroConstraint(site["fn"].support).unconstrained_shape(shapes[name]))
            for name, site in latent.items()
        ),
        deterministic=tuple(deterministic),
        observed=tuple(name for name, site in samples.items() if _is_data(site)),
        axes=tuple(
            (name, axes)
            for name, site in (samples | deterministic).items()
            if (axes := _axes(name, site))
        ),
    )


def _axes(name, site):
    """Names of the axes of a site's value: its plates, else as ArviZ names them."""
    shape = jnp.shape(site["value"])
    event_dim = site["fn"].event_dim if site["type"] == "sample" else 0
    axes = [f"{name}_dim_{i}" for i in range(len(shape))]
    named = False
    for frame in site["cond_indep_stack"]:
        axis = len(shape) + frame.dim - event_dim
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            axes[axis], named = frame.name, True
    return tuple(axes) if named else ()


def _refuse_unusable(trace):
    """Raise for sites that have no continuous density, all of one kind named together."""
    latent = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    cures = {
        "discrete latent sites": (
            [n for n, s in latent.items() if s["fn"].support.is_discrete],
            "sum them out, for example with numpyro.distributions.MixtureSameFamily or with "
            "logsumexp in numpyro.factor, or pass them as obs=",
        ),
        "latent sites with a Delta distribution": (
            [n for n, s in latent.items() if type(s["fn"]).__name__ == "Delta"],
            "record them by numpyro.deterministic",
        ),
        "param or mutable sites": (
            [n for n, s in trace.items() if s["type"] in ("param", "mutable")],
            "give them a prior by numpyro.sample, or pass their values as arguments",
        ),
        "subsampling plates": (
            [n for n, s in trace.items() if s["type"] == "plate" and _is_subsampling(*s["args"])],
            "leave out subsample_size, so that the density is that of all the data",
        ),
    }
    for kind, (names, cure) in cures.items():
        if names:
            raise ValueError(f"the model has {kind} {', '.join(names)}: {cure}.")


def _is_subsampling(size, subsample_size):
    return subsample_size is not None and subsample_size != size

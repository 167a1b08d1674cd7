"""Checks of what a user hands to the driver, before anything is compiled for long."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from driftbridge.runtime.dtypes import default_dtype
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler, has_step_size, innermost, step_size_of
from driftbridge.samplers.until import Until
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


def check_counts(num_samples: Any, num_warmup: Any, num_chains: Any, thin: Any) -> None:
    """Raise `ValueError` for a count that is not a sensible integer, or a rule it cannot meet."""
    counts = {"num_warmup": (num_warmup, 0), "num_chains": (num_chains, 1), "thin": (thin, 1)}
    if not isinstance(num_samples, Until):
        counts["num_samples"] = (num_samples, 1)
    for name, (value, least) in counts.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    if num_chains == 1 and isinstance(num_samples, Until) and num_samples.needs_chains:
        raise ValueError(
            "Until(converged=True) compares chains and never holds for num_chains=1. Take four, or "
            "ask for another thing: Until(ess=800)."
        )


def check_kinds(sampler: Any, adapt: Any, mesh: Any) -> None:
    """Raise `TypeError` for a sampler, a warm-up or a mesh that is something else."""
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        name = sampler.__name__
        raise TypeError(f"sampler must be an instance; got the class {name}. Write {name}(...).")
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be an instance of a class of driftbridge.samplers, such as MALA(0.1); "
            f"got {sampler!r}."
        )
    if not isinstance(adapt, Adaptation | None):
        raise TypeError(
            f"adapt must be an Adaptation such as Warmup(), or None to leave the sampler as it is; "
            f"got {adapt!r}."
        )
    if not isinstance(mesh, Mesh | None):
        raise TypeError(
            f'mesh must be a jax.sharding.Mesh, such as jax.make_mesh((4,), ("chains",)), or None; '
            f"got {mesh!r}."
        )


def position_dtype(init: Any) -> np.dtype:
    """The dtype of the run: that of the positions given, or the default one.

    Raises `TypeError` for float64 positions where x64 is off, which JAX would silently round.
    """
    dtype = getattr(init, "dtype", None)
    if dtype is None or not np.issubdtype(dtype, np.floating):
        return default_dtype()
    if isinstance(init, np.ndarray) and np.dtype(dtype).itemsize > default_dtype().itemsize:
        return default_dtype()  # NumPy makes float64 unless told otherwise
    return np.dtype(dtype)


def check_target(target: Any, sampler: Sampler, dtype: np.dtype) -> None:
    """Raise for a target that is none, whose density is no scalar, or that lacks a capability."""
    if not isinstance(target, Target):
        raise TypeError(
            f"target must be a driftbridge Target; got {type(target).__name__}. Make one of a "
            "function by driftbridge.from_density, of a NumPyro model by driftbridge.from_numpyro."
        )
    name = type(innermost(sampler)).__name__
    for need in sampler.facts.needs:
        if getattr(target, need) is None:
            raise TypeError(
                f"{name} needs a target with the capability {need!r}, which "
                f"{type(target).__name__} does not have."
            )
    out, parameters = jax.eval_shape(outputs, target, jax.ShapeDtypeStruct((target.dim,), dtype))
    check_names(target, parameters)
    shape, found = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != ():
        raise ValueError(
            f"the log density must return a scalar; that of {type(target).__name__} returns an "
            f"array of shape {shape}. Sum over observations."
        )
    if found != dtype:
        raise TypeError(
            f"the log density returns {found} for positions of {dtype}. Pass the data as arguments "
            "(their dtype is then that of the positions), or give init= in the dtype you want."
        )
    if has_step_size(sampler):
        check_positive(step_size=step_size_of(sampler))


# Compiled by nobody: JAX keeps the trace for the next run.
@jax.jit
def outputs(target: Target, x: Any) -> Any:
    """What a target makes of a position."""
    return target.log_density(x), target.constrain(x)


def check_names(target: Target, parameters: dict[str, Any]) -> None:
    """Raise `ValueError` for a parameter, or an axis of one, with the name of an axis of draws."""
    axes = (axis for names in target.dims.values() for axis in names)
    for kind, names in {"a parameter": parameters, "an axis": axes}.items():
        if taken := sorted({"chain", "draw"}.intersection(names)):
            raise ValueError(
                f"{kind} of {type(target).__name__} is named "
                f"{taken[0]!r}, as the draws name their axes; give it another name."
            )


def check_mesh(mesh: Any, num_chains: int) -> None:
    """Raise `ValueError` where chains do not divide over the devices."""
    if mesh is not None:
        devices = mesh.shape[mesh.axis_names[0]]
        if num_chains % devices:
            raise ValueError(
                f"num_chains must be a multiple of the {devices} devices along the first axis of "
                f"mesh; got {num_chains}."
            )

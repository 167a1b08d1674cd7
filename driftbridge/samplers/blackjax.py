"""BlackJAX: samplers of this library as its algorithms, and its algorithms as samplers.

BlackJAX is imported here and nowhere else; `import driftbridge` does not load this file.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.samplers.base import Facts, Info, Sampler, innermost
from driftbridge.samplers.blackjax_algorithm import (
    KEYS,
    METRICS,
    FromBlackJAX,
    FromBlackJAXWithStepSize,
    needed,
)
from driftbridge.samplers.blackjax_facts import FACTS
from driftbridge.samplers.blackjax_state import (
    BlackJAXState,
    flattened,
    from_blackjax_state,
    refusing,
    to_blackjax,
    typed,
)
from driftbridge.samplers.low_rank import LowRankMetric
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric, Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.leaves import check_positive

# What BlackJAX's warm-ups tune, in the order in which they hand it to a kernel.
FIRST = ("step_size", "inverse_mass_matrix")
# Arguments of an algorithm that are leaves; all others are static.
NUMBERS = (float, np.generic, np.ndarray, jax.Array)


def as_blackjax(sampler: Any) -> "BlackJAXAlgorithm":
    """A sampler as an algorithm of BlackJAX.

    For `run_inference_algorithm`, `window_adaptation` and its like, and as the inner kernel of
    tempered SMC, persistent sampling and nested sampling (`mcmc_init_fn=algorithm.init`,
    `mcmc_step_fn=algorithm.build_kernel()`). Positions are trees of floating arrays.

    **Arguments:**

    - `sampler`: any sampler of this library. Its numbers are parameters of the kernel by name
      (`step_size`, `friction`, ...) beside `inverse_mass_matrix`, in which it is `Preconditioned`.
      A step size is in the sampler's unit of time: that of overdamped ones is half the square of
      a leapfrog step. BlackJAX's warm-ups tune to an acceptance rate: give them adjusted
      samplers.

    **Returns:** an object with `init`, `build_kernel` and the call `(logdensity_fn, **parameters)`.
    Its infos are the sampler's: `acceptance_rate`, `is_divergent`, `num_gradients`.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be a driftbridge Sampler, such as MALA(0.1); got {sampler!r}."
        )
    return BlackJAXAlgorithm(sampler)


class BlackJAXAlgorithm(eqx.Module):
    """What `as_blackjax` returns: it stands where BlackJAX takes an algorithm of its own."""

    sampler: Sampler

    def init(
        self, position: PyTree, logdensity_fn: Callable, rng_key: Key[Array, ""] | None = None
    ) -> BlackJAXState:
        """The state at a tree of floating arrays.

        The key is not used: the first transition draws the velocity from its own.
        """
        target, flat = flattened(logdensity_fn, position)
        state = cast_floating(self.sampler, flat.dtype).init(target, flat)
        return to_blackjax(target, state, jnp.zeros((), jnp.int32))

    def build_kernel(self) -> Callable[..., tuple[BlackJAXState, Info]]:
        """The kernel `(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, ...)`.

        What is left out, or None, is as in the sampler.
        """
        known = parameters_of(self.sampler)
        names = (*FIRST, *(name for name in known if name not in FIRST))

        def kernel(rng_key, state, logdensity_fn, *values, **parameters):
            parameters |= dict(zip(names, values, strict=False))
            target, flat = flattened(logdensity_fn, state.position)
            sampler = configured(self.sampler, parameters, flat).at_step(state.step)
            before = from_blackjax_state(state, flat)
            new, info = sampler.step(target, before, sampler.noise(typed(rng_key), flat))
            if not sampler.facts.adjusted:
                new, info = refusing(new, info, sampler.refuse(before))
            # Dual averaging in BlackJAX carries the default dtype, whatever the position's is.
            rate = lax.convert_element_type(info.acceptance_rate, default_dtype())
            after = to_blackjax(target, new, state.step + 1)
            return after, info._replace(acceptance_rate=rate)

        # BlackJAX asks a kernel which parameters it takes.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = ("rng_key", "state", "logdensity_fn")
        kernel.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [inspect.Parameter(name, kind) for name in first]
            + [inspect.Parameter(name, kind, default=None) for name in names]
        )
        return kernel

    def __call__(self, logdensity_fn: Callable, **parameters: Any) -> SamplingAlgorithm:
        """The algorithm for one density, with its parameters set."""
        require_known(parameters, self.sampler)
        check_positive(step_size=parameters.get("step_size"))
        kernel = self.build_kernel()

        def init(position, rng_key=None):
            return self.init(position, logdensity_fn, rng_key)

        def step(rng_key, state):
            return kernel(rng_key, state, logdensity_fn, **parameters)

        return SamplingAlgorithm(init, step)


def parameters_of(sampler: Sampler) -> tuple[str, ...]:
    """Names of what a kernel of this sampler takes: numbers, and the inverse mass matrix.

    The first two are those that BlackJAX's warm-ups give without names, if there is a step size.
    """
    bare = innermost(sampler)
    fields = [f.name for f in dataclasses.fields(bare) if not f.metadata.get("static", False)]
    numbers = [name for name in fields if not isinstance(getattr(bare, name), dict)]
    first = [name for name in FIRST if name in numbers or name == "inverse_mass_matrix"]
    return (*first, *(name for name in numbers if name not in FIRST))


def require_known(parameters: Iterable[str], sampler: Sampler) -> None:
    """Raise `TypeError` naming a parameter that the sampler has not, and those that it has."""
    names = parameters_of(sampler)
    for name in parameters:
        if name not in names:
            taker = type(innermost(sampler)).__name__
            raise TypeError(f"{taker} has no parameter {name!r}; it has {', '.join(names)}.")


def configured(sampler: Sampler, parameters: dict, like: Float[Array, " dim"]) -> Sampler:
    """The sampler with these numbers, in the metric of an inverse mass matrix if there is one."""
    given = {name: value for name, value in parameters.items() if value is not None}
    require_known(given, sampler)
    given = cast_floating(given, like.dtype)
    inverse_mass_matrix = given.pop("inverse_mass_matrix", None)
    for name, value in given.items():
        sampler = eqx.tree_at(lambda s, name=name: getattr(innermost(s), name), sampler, value)
    if inverse_mass_matrix is not None:
        inner = sampler.sampler if isinstance(sampler, Preconditioned) else sampler
        sampler = Preconditioned(inner, metric_of(inverse_mass_matrix, like.size))
    return cast_floating(sampler, like.dtype)


def metric_of(inverse_mass_matrix: Any, dim: int | None = None) -> Metric:
    """The metric with `L L^T` an inverse mass matrix in one of BlackJAX's forms of arrays.

    Raises `TypeError` for a metric made of functions, or a number where `dim` is not known.
    """
    if isinstance(inverse_mass_matrix, LowRankInverseMassMatrix):
        sigma, basis, eigenvalues = inverse_mass_matrix
        return LowRankMetric(sigma, basis, jnp.sqrt(eigenvalues))
    if callable(inverse_mass_matrix) or isinstance(inverse_mass_matrix, tuple):
        raise TypeError(
            "inverse_mass_matrix must be a vector of variances, a covariance or a "
            f"LowRankInverseMassMatrix; got a {type(inverse_mass_matrix).__name__}."
        )
    if np.ndim(inverse_mass_matrix) == 2:
        return DenseMetric.from_covariance(inverse_mass_matrix)
    if np.ndim(inverse_mass_matrix) == 0:
        if dim is None:
            raise TypeError(
                "inverse_mass_matrix must be a vector of variances, one for each coordinate, or a "
                f"covariance; got the number {inverse_mass_matrix}."
            )
        inverse_mass_matrix = jnp.broadcast_to(inverse_mass_matrix, (dim,))
    return DiagonalMetric.from_variance(inverse_mass_matrix)


def from_blackjax(
    algorithm: Any,
    *,
    inverse_mass_matrix: Any = None,
    facts: Facts | None = None,
    **parameters: Any,
) -> Sampler:
    """An algorithm of BlackJAX as a sampler: `from_blackjax(blackjax.nuts, step_size=0.1)`.

    It runs in `driftbridge.sample` with its warm-up, store, resume and report. Where the algorithm
    is exact and has a step size, `Warmup` tunes that by the acceptance rate, and the metric.

    **Arguments:**

    - `algorithm`: `blackjax.nuts`, `hmc`, `mclmc`, ...: what in BlackJAX has `init` and
      `build_kernel`, not yet called with a density.
    - `inverse_mass_matrix`: None for the identity; variances `(dim,)`, a covariance `(dim, dim)` or
      a `LowRankInverseMassMatrix`. The sampler is then `Preconditioned`.
    - `facts`: what is to be known of an algorithm that is not BlackJAX's own.
    - `parameters`: what else the kernel or `build_kernel` takes, by name. Floats and arrays are
      leaves; integers, functions, strings and tuples are static. `step_size` is 0.1 unless given.

    **Returns:** a `Sampler`. It counts gradients as BlackJAX's default integrators take them.

    **Raises:** `TypeError` for an algorithm that was called with a density, one that does not
    sample the density alone, and parameters that are missing or unknown.
    """
    name = name_of(algorithm)
    known = FACTS.get(name) if isinstance(name, str) else None
    described = known if facts is None else facts
    if described is None:
        raise TypeError(refusal(algorithm, name))
    accepted = accepted_by(algorithm, parameters)
    takes_step = "step_size" in accepted
    given = ({"step_size": 0.1} if takes_step else {}) | parameters
    if inverse_mass_matrix is not None and not (takes_step or set(METRICS) & accepted.keys()):
        given["inverse_mass_matrix"] = inverse_mass_matrix  # refused with what is unknown
    require_whole(algorithm, name, given, accepted)
    step_size: Any = given.pop("step_size") if takes_step and described.adjusted else None
    numbers = {k: v for k, v in given.items() if isinstance(v, NUMBERS)}
    choices = tuple((k, v) for k, v in given.items() if k not in numbers)
    if step_size is None:
        sampler = FromBlackJAX(name, numbers, choices, described)
    else:
        step_size = float(step_size) if isinstance(step_size, int) else step_size
        sampler = FromBlackJAXWithStepSize(name, numbers, choices, described, step_size)
    if inverse_mass_matrix is None:
        return sampler
    return Preconditioned(sampler, metric_of(inverse_mass_matrix))


def name_of(algorithm: Any) -> Any:
    """The name of an algorithm in `blackjax`, which a store can hold; else the object itself."""
    public = {name: thing for name, thing in vars(blackjax).items() if thing is algorithm}
    own = [name for name in FACTS if name in public]
    return next(iter([*own, *public]), algorithm)


def accepted_by(algorithm: Any, parameters: dict) -> dict[str, inspect.Parameter]:
    """What `build_kernel` and the kernel it builds take, by name."""
    options = inspect.signature(algorithm.build_kernel).parameters
    kernel = algorithm.build_kernel(**{k: v for k, v in parameters.items() if k in options})
    return {**options, **dict(list(inspect.signature(kernel).parameters.items())[3:])}


def require_whole(algorithm: Any, name: Any, given: dict, accepted: dict) -> None:
    """Raise `TypeError` for a parameter that is unknown, and for one that is missing."""
    for parameter in given:
        if parameter not in accepted:
            raise TypeError(f"{name} has no parameter {parameter!r}; it has {', '.join(accepted)}.")
    for parameter, how in accepted.items():
        if how.default is inspect.Parameter.empty and parameter not in {*given, *METRICS}:
            raise TypeError(f"{name} needs {parameter}: write from_blackjax(..., {parameter}=...).")
    for parameter in needed(algorithm.init):
        if parameter not in KEYS:
            raise TypeError(f"the init of {name} needs {parameter!r}, of which a sampler has none.")


def refusal(algorithm: Any, name: Any) -> str:
    """Why an algorithm cannot be a sampler, and what to give instead."""
    if isinstance(algorithm, SamplingAlgorithm):
        return (
            "the algorithm holds a density already, and sample(target) gives a sampler its own: "
            "write from_blackjax(blackjax.nuts, step_size=0.1), not blackjax.nuts(logdensity, ...)."
        )
    if isinstance(name, str):
        return (
            f"blackjax.{name} does not sample a density that is given alone; those that do are "
            f"{', '.join(FACTS)}."
        )
    return f"{algorithm!r} is no algorithm of BlackJAX; say what it is by facts=Facts(...)."

"""BlackJAX: samplers of this library as its algorithms, and its algorithms as samplers.

BlackJAX is imported here and nowhere else; `import driftbridge` does not load this file.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.samplers.base import Info, Sampler, State, innermost
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric, Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive


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


class LowRankMetric(Metric):
    """`L = diag(scale) (I + U diag(roots - 1) U^T)`, `U` with orthonormal columns.

    **Arguments:**

    - `scale`: positive, shape `(dim,)`.
    - `basis`: `U`, shape `(dim, rank)`.
    - `roots`: positive, shape `(rank,)`.
    """

    scale: Float[Array, " dim"]
    basis: Float[Array, "dim rank"]
    roots: Float[Array, " rank"]

    def _stretch(self, x, roots):
        inside = jnp.matmul(x, self.basis, precision=lax.Precision.HIGHEST)
        return x + jnp.matmul(self.basis, (roots - 1) * inside, precision=lax.Precision.HIGHEST)

    def unwhiten(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.scale * self._stretch(z, self.roots)

    def whiten(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretch(x / self.scale, 1 / self.roots)

    def whiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretch(self.scale * score, self.roots)

    def unwhiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretch(score, 1 / self.roots) / self.scale


def metric_of(inverse_mass_matrix: Any, dim: int) -> Metric:
    """The metric with `L L^T` an inverse mass matrix in one of BlackJAX's forms of arrays.

    Raises `TypeError` for a metric made of functions.
    """
    if isinstance(inverse_mass_matrix, LowRankInverseMassMatrix):
        sigma, basis, eigenvalues = inverse_mass_matrix
        return LowRankMetric(sigma, basis, jnp.sqrt(eigenvalues))
    if callable(inverse_mass_matrix) or isinstance(inverse_mass_matrix, tuple):
        raise TypeError(
            "inverse_mass_matrix must be a number, a vector of variances, a covariance or a "
            f"LowRankInverseMassMatrix; got a {type(inverse_mass_matrix).__name__}."
        )
    if np.ndim(inverse_mass_matrix) == 2:
        return DenseMetric.from_covariance(inverse_mass_matrix)
    return DiagonalMetric.from_variance(jnp.broadcast_to(inverse_mass_matrix, (dim,)))


class BlackJAXAlgorithm(eqx.Module):
    """What `as_blackjax` returns: it stands where BlackJAX takes an algorithm of its own.

    `algorithm(logdensity_fn, **parameters)` gives a `SamplingAlgorithm`.
    """

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
        names = parameters_of(self.sampler)

        def kernel(rng_key, state, logdensity_fn, *values, **parameters):
            parameters |= dict(zip(names, values, strict=False))
            target, flat = flattened(logdensity_fn, state.position)
            sampler = configured(self.sampler, parameters, flat).at_step(state.step)
            before = from_state(state, flat)
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
        require_known(parameters, parameters_of(self.sampler), innermost(self.sampler))
        check_positive(step_size=parameters.get("step_size", 1.0))
        kernel = self.build_kernel()

        def init(position, rng_key=None):
            return self.init(position, logdensity_fn, rng_key)

        def step(rng_key, state):
            return kernel(rng_key, state, logdensity_fn, **parameters)

        return SamplingAlgorithm(init, step)


def as_blackjax(sampler: Sampler) -> BlackJAXAlgorithm:
    """A sampler as an algorithm of BlackJAX.

    For `run_inference_algorithm`, `window_adaptation` and `staged_adaptation`, and as the inner
    kernel of tempered SMC, persistent sampling and nested sampling (`mcmc_init_fn=algorithm.init`,
    `mcmc_step_fn=algorithm.build_kernel()`). Positions are trees of floating arrays.

    **Arguments:**

    - `sampler`: any sampler of this library. Its numbers are parameters of the kernel by name
      (`step_size`, `friction`, ...), the first two being `step_size` and `inverse_mass_matrix`;
      with the latter it is `Preconditioned`. A step size is a time of the sampler, which for
      overdamped ones is half the square of a leapfrog step. Adaptations of BlackJAX read an
      acceptance rate: give them adjusted samplers, or `WithEnergyError(sampler)`.

    **Returns:** an object with `init`, `build_kernel` and a call `(logdensity_fn, **parameters)`.
    Infos are those of the sampler: `acceptance_rate`, `is_divergent`, `num_gradients`.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a driftbridge Sampler, such as MALA(0.1); got {sampler}.")
    return BlackJAXAlgorithm(sampler)


def flattened(
    logdensity_fn: Callable, position: PyTree
) -> tuple[FunctionTarget, Float[Array, " dim"]]:
    """A log density of trees as a target, and one tree as its position.

    Raises `TypeError` for a leaf that is not floating.
    """
    for path, leaf in jax.tree.leaves_with_path(position):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path) or "position"
            raise TypeError(f"{name} has dtype {jnp.result_type(leaf)}; give a floating array.")
    flat, unravel = ravel_pytree(position)
    # Of a Python float the array is weakly typed, which a loop does not carry.
    flat = lax.convert_element_type(flat, flat.dtype)
    return FunctionTarget(flat.size, logdensity_fn, unravel), flat


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


def from_state(state: BlackJAXState, flat: Float[Array, " dim"]) -> State:
    """The sampler's own state."""
    known = {"position": flat, "log_density": state.logdensity}
    known["score"] = ravel_pytree(state.logdensity_grad)[0]
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


def parameters_of(sampler: Sampler) -> tuple[str, ...]:
    """Names of what a kernel of this sampler takes: numbers, and the inverse mass matrix."""
    fields = dataclasses.fields(innermost(sampler))
    numbers = [f.name for f in fields if not f.metadata.get("static", False)]
    numbers.insert(1 if numbers[:1] == ["step_size"] else 0, "inverse_mass_matrix")
    return tuple(numbers)


def require_known(parameters: Iterable[str], names: Iterable[str], taker: Any) -> None:
    """Raise `TypeError` naming a parameter that is not taken, and those that are."""
    for name in parameters:
        if name not in names:
            raise TypeError(
                f"{type(taker).__name__} has no parameter {name!r}; it has {', '.join(names)}."
            )


def configured(sampler: Sampler, parameters: dict, like: Float[Array, " dim"]) -> Sampler:
    """The sampler with these numbers, in the metric of an inverse mass matrix if there is one."""
    require_known(parameters, parameters_of(sampler), innermost(sampler))
    given = {name: value for name, value in parameters.items() if value is not None}
    given = cast_floating(given, like.dtype)
    inverse_mass_matrix = given.pop("inverse_mass_matrix", None)
    for name, value in given.items():
        sampler = eqx.tree_at(lambda s, name=name: getattr(innermost(s), name), sampler, value)
    if inverse_mass_matrix is not None:
        inner = sampler.sampler if isinstance(sampler, Preconditioned) else sampler
        sampler = Preconditioned(inner, metric_of(inverse_mass_matrix, like.size))
    return cast_floating(sampler, like.dtype)

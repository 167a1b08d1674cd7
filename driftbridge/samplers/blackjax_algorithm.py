"""An algorithm of BlackJAX as a `Sampler`, made by `from_blackjax`."""

import contextlib
import inspect
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt

from driftbridge.samplers.base import Facts, Info, Sampler
from driftbridge.samplers.blackjax_facts import GRADIENTS
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import check_positive

# What takes the place of a metric in BlackJAX's kernels; here metrics are around samplers.
METRICS = ("inverse_mass_matrix", "momentum_inverse_scale")
# What the `init` of an algorithm may need beside position and density: keys.
KEYS = ("rng_key", "random_generator_arg")


class ValueState(NamedTuple):
    """State of an algorithm without gradients; `rest` is what else BlackJAX's state holds."""

    position: Float[Array, " dim"]
    log_density: Float[Array, ""]
    rest: dict[str, Any]
    is_fresh: Bool[Array, ""]


class GradientState(NamedTuple):
    """State of an algorithm with gradients."""

    position: Float[Array, " dim"]
    log_density: Float[Array, ""]
    score: Float[Array, " dim"]
    rest: dict[str, Any]
    is_fresh: Bool[Array, ""]


class FromBlackJAX(Sampler):
    """An algorithm of BlackJAX without a step size that warm-up could tune.

    The noise of a step is the words of one key, from which BlackJAX draws all that is random in
    it. A velocity (and whatever else a state begins with at random) is unset after `init`; the
    first step draws it.

    **Arguments:**

    - `algorithm`: its name in `blackjax`, or an object with `init` and `build_kernel`.
    - `numbers`: floating arguments of the kernel, or of `build_kernel`, by name.
    - `choices`: the other ones, pairs of name and value.
    - `described`: its `facts`.
    """

    algorithm: Any = eqx.field(static=True)
    numbers: dict[str, Any]
    choices: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    described: Facts = eqx.field(static=True)

    def __check_init__(self):
        for name, choice in (("algorithm", self.algorithm), *self.choices):
            try:
                hash(choice)
            except TypeError:
                raise TypeError(
                    f"{name} must be hashable, as compiled programs are found by it; got "
                    f"{choice!r}. Give a tuple for a list, a module for an object."
                ) from None

    @property
    def facts(self) -> Facts:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.described

    def init(self, target: Target, position: Float[Array, " dim"]) -> ValueState | GradientState:
        example = self._example(position, jnp.zeros(2, jnp.uint32))
        rest, is_fresh = rest_of(example), jnp.ones((), bool)
        if "logdensity_grad" in example._fields:
            return GradientState(position, *target.value_and_score(position), rest, is_fresh)
        return ValueState(position, target.log_density(position), rest, is_fresh)

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> UInt[Array, "2"]:
        return jax.random.bits(key, (2,), jnp.uint32)

    def step(
        self, target: Target, state: ValueState | GradientState, noise: UInt[Array, "2"]
    ) -> tuple[ValueState | GradientState, Info]:
        fresh, key = jax.random.split(jax.random.wrap_key_data(noise, impl="threefry2x32"))
        inner = self._inner(state, jax.random.key_data(fresh))
        with permitting(state.position.dtype):
            kernel, arguments = self._kernel(state.position)
            new, info = kernel(key, inner, density_of(target), **arguments)
        own = {"position": new.position, "log_density": new.logdensity, "rest": rest_of(new)}
        if isinstance(state, GradientState):
            own["score"] = new.logdensity_grad
        is_set = jnp.zeros_like(state.is_fresh)
        return state._replace(is_fresh=is_set, **own), self._info(info, state.position.dtype)

    def _kernel(self, like):
        """The kernel, and its arguments by name: the metric is the identity."""
        given = self.numbers | dict(self.choices)
        build_kernel = found(self.algorithm).build_kernel
        options = inspect.signature(build_kernel).parameters
        kernel = build_kernel(**{k: v for k, v in given.items() if k in options})
        taken = inspect.signature(kernel).parameters
        identity = {name: jnp.ones_like(like) for name in METRICS if name in taken}
        return kernel, identity | {k: v for k, v in given.items() if k not in options}

    def _example(self, position, words):
        """BlackJAX's state at a position but for the density, of which nothing is asked."""
        # A key that a state keeps is kept as its words: a checkpoint holds plain arrays.
        keys = (jax.random.wrap_key_data(words, impl="threefry2x32"), words)
        init = found(self.algorithm).init
        wanted = {k: key for k, key in zip(KEYS, keys, strict=True) if k in needed(init)}
        with permitting(position.dtype):
            return init(position, lambda x: jnp.zeros((), x.dtype), **wanted)

    def _inner(self, state, words):
        """The state as BlackJAX takes it, with what is unset drawn from a key."""
        example = self._example(state.position, words)
        rest = jax.tree.map(
            lambda new, old: jnp.where(state.is_fresh, new, old), rest_of(example), state.rest
        )
        shared = {"position": state.position, "logdensity": state.log_density}
        if isinstance(state, GradientState):
            shared["logdensity_grad"] = state.score
        return example._replace(**shared, **rest)

    def _info(self, info, dtype):
        """What BlackJAX reports, in the terms of this library."""
        told = info._asdict()
        rate = told.get("acceptance_rate", told.get("is_accepted", 1.0))
        each = 0 if self.facts.gradients == "0" else GRADIENTS.get(self.algorithm, 1)
        diverged = told.get("is_divergent", jnp.logical_not(told.get("nonans", True)))
        # The energy of a trajectory's end is not that of the state after a rejection.
        energy = None if "is_accepted" in told else told.get("energy")
        energies = {"energy_error": told.get("energy_change"), "energy": energy}
        return Info(
            acceptance_rate=jnp.asarray(rate, dtype),
            is_divergent=jnp.asarray(diverged, bool),
            num_gradients=jnp.asarray(each * told.get("num_integration_steps", 1), jnp.int32),
            **{k: jnp.asarray(v, dtype) for k, v in energies.items() if v is not None},
        )


class FromBlackJAXWithStepSize(FromBlackJAX):
    """An algorithm of BlackJAX whose `step_size` warm-up tunes."""

    step_size: Float[Array, ""] | float = 0.1

    def __check_init__(self):
        check_positive(step_size=self.step_size)

    def _kernel(self, like):
        kernel, arguments = super()._kernel(like)
        return kernel, arguments | {"step_size": jnp.asarray(self.step_size, like.dtype)}


def found(algorithm: Any) -> Any:
    """The algorithm of a name in `blackjax`, or the object itself."""
    if not isinstance(algorithm, str):
        return algorithm
    import blackjax

    return getattr(blackjax, algorithm)


def needed(init: Any) -> list[str]:
    """What the `init` of an algorithm needs behind `(position, logdensity_fn)`."""
    parameters = list(inspect.signature(init).parameters.values())[2:]
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


def rest_of(state: Any) -> dict[str, Any]:
    """What a state of BlackJAX holds beside position, log density and gradient.

    A dict: preconditioning looks into tuples for positions.
    """
    shared = ("position", "logdensity", "logdensity_grad")
    return {name: value for name, value in state._asdict().items() if name not in shared}


def density_of(target: Target) -> Any:
    """The log density of a target as a function, with the target's own gradient."""

    @jax.custom_jvp
    def log_density(target, x):
        return target.log_density(x)

    @log_density.defjvp
    def _(primals, tangents):
        value, score = primals[0].value_and_score(primals[1])
        return value, jnp.sum(score * tangents[1])

    return lambda x: log_density(target, x)


@contextlib.contextmanager
def permitting(dtype):
    """BlackJAX allowed what it does: rank promotion, warnings, arrays of the default dtype.

    With a `dtype` of 32 bits the default has 32 bits here, whatever it has outside.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.enable_x64(dtype == np.float64))
        yield

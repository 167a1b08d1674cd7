"""Every sampler of the library as a kernel of NumPyro's `MCMC`."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import identity, is_prng_key

from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.runtime.keys import streams
from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.automatic import choose
from driftbridge.samplers.base import Sampler, has_step_size
from driftbridge.samplers.door import check_kinds, check_target
from driftbridge.samplers.ensemble import LEAST_CHAINS, EnsembleWarmup
from driftbridge.samplers.initial import ATTEMPTS, Initial
from driftbridge.samplers.numpyro_coordinates import Coordinates, Potential
from driftbridge.samplers.numpyro_state import (
    KernelState,
    advance,
    first_state,
    is_together,
    refreshed,
    typed,
)
from driftbridge.targets.arguments import Arguments
from driftbridge.targets.base import Target
from driftbridge.targets.numpyro import NumPyroModel, Sites, from_numpyro
from driftbridge.targets.numpyro_constraint import permitting


class StrategyStart(Initial):
    """Starts of a NumPyro model by one of NumPyro's own strategies."""

    strategy: Callable = eqx.field(static=True)

    def propose(self, target: Any, key, like):
        model, args, kwargs = target.arguments.tree
        with permitting(like.dtype) as numpyro:
            seeded = numpyro.handlers.seed(model, key)
            substituted = numpyro.handlers.substitute(seeded, substitute_fn=self.strategy)
            trace = numpyro.handlers.trace(substituted).get_trace(*args, **kwargs)
        values = {name: trace[name]["value"] for name in target.layout.names}
        return jnp.asarray(target.unconstrain(values), like.dtype)


class SamplerKernel(MCMCKernel):
    """A sampler of the library as a kernel of `numpyro.infer.MCMC`.

    `MCMC(SamplerKernel(model), num_warmup=..., num_samples=...)` takes the place of
    `MCMC(NUTS(model), ...)`. Transitions are those of `driftbridge.samplers.run` and depend on
    (key, step) of a chain alone. Each chain is tuned alone, so that all chain methods give the same
    draws; except by `EnsembleWarmup`, for `chain_method="vectorized"`, which tunes all together and
    ends before `num_warmup` where they agree. All that is tuned is in the state (`KernelState`). A
    transition that is not finite is refused and counted as diverging.

    **Arguments:**

    - `model`: a function of NumPyro primitives with continuous latent sites; or None, then
    - `potential_fn`: minus the log density of any tree of floating arrays, of which
      `MCMC.run(..., init_params=...)` gives the start.
    - `sampler`: a sampler on unconstrained space; None takes what `driftbridge.sample` does: from
      16 vectorized chains on `LocalScaleHMC`, tuned together, else `JitteredHMC`.
    - `adapt`: the warm-up; `"auto"` takes the one that suits the sampler, None leaves it as it is.
    - `init_strategy`: where chains of a model start, one of `numpyro.infer.init_to_median` and its
      like; None draws from a cube as `driftbridge.sample` does.

    **Raises:** `ValueError` or `TypeError` for arguments of a wrong kind here; in `MCMC.run` for a
    model that `from_numpyro` refuses (discrete latent sites, named, and others), for an ensemble
    that is none, and for a start without a finite density. Under `pmap`, `vmap` and `shard_map`
    nothing can be raised about numbers: a chain with such a start is diverging at every draw.
    """

    def __init__(
        self,
        model: Any = None,
        sampler: Any = None,
        *,
        potential_fn: Callable[[PyTree], Any] | None = None,
        adapt: Any = "auto",
        init_strategy: Callable | None = None,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError("give one of model and potential_fn: SamplerKernel(model, MALA(0.1)).")
        if isinstance(model, Sampler):
            raise TypeError(
                f"model must be a function of NumPyro primitives; got {type(model).__name__}, a "
                "sampler. Write SamplerKernel(model, sampler)."
            )
        alone = choose(sampler, adapt, None, 1, 1, 0)
        check_kinds(alone.sampler, alone.adapt, None)
        if init_strategy is not None and model is None:
            raise ValueError("init_strategy needs a model; a potential_fn starts at init_params.")
        self._model, self._potential_fn = model, potential_fn
        self._sampler, self._adapt, self._init_strategy = sampler, adapt, init_strategy
        self._coordinates: Coordinates | None = None
        self._sites: Sites | None = None

    @property
    def sample_field(self) -> str:
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z", "diverging")

    @property
    def model(self) -> Callable | None:
        """The model, or None for a kernel of a potential."""
        return self._model

    @property
    def _sample_fn(self):
        # MCMC calls `init` again where this is None.
        return self._coordinates

    def init(
        self,
        rng_key: Any,
        num_warmup: int,
        init_params: PyTree = None,
        model_args: tuple = (),
        model_kwargs: dict | None = None,
    ) -> KernelState:
        """The state before the first transition, of one chain or of one for each of many keys."""
        is_one = is_prng_key(rng_key)
        target = self._found(init_params, is_one, model_args, model_kwargs)
        positions = self._positions(target, init_params, is_one, model_args, model_kwargs)
        dtype = default_dtype() if positions is None else positions.dtype
        strategy = self._init_strategy
        start = None if strategy is None else StrategyStart(strategy)
        sampler, adapt, start = choose(
            self._sampler, self._adapt, start, 1 if is_one else rng_key.shape[0], 1, num_warmup
        )[:3]
        check_target(target, sampler, np.dtype(dtype))
        if isinstance(adapt, EnsembleWarmup) and is_one:
            raise ValueError(
                "EnsembleWarmup tunes all chains together, and sees them only by "
                f'chain_method="vectorized", from {LEAST_CHAINS} chains on. Elsewhere give '
                "adapt=Warmup(), which tunes each chain alone."
            )
        if num_warmup == 0 or not has_step_size(sampler):
            adapt = None
        parts = cast_floating((target, sampler, adapt, start), dtype)
        like = jnp.zeros(target.dim, dtype)
        state, value, usable = _open(
            self._coordinates, *parts, rng_key, positions, like, jnp.int32(num_warmup)
        )
        if not isinstance(usable, Tracer):
            _refuse_start(np.ravel(usable), np.ravel(value), start if positions is None else None)
        return state

    def sample(
        self, state: KernelState, model_args: tuple, model_kwargs: dict | None
    ) -> KernelState:
        """One transition of one chain, or of all where the state has an axis of chains."""
        target = cast_floating(self._target(model_args, model_kwargs), state.chain.position.dtype)
        assert self._coordinates is not None  # `init` has found them
        moved = _over_chains(partial(advance, target, self._coordinates.split), state)
        if is_together(state):
            _tell_unfinished(self._coordinates, state, moved)
        return moved

    def refresh(
        self, state: KernelState, model_args: tuple, model_kwargs: dict | None
    ) -> KernelState:
        """The state at the same position for other arguments, as a block of Gibbs needs it."""
        target = cast_floating(self._target(model_args, model_kwargs), state.chain.position.dtype)
        return _over_chains(partial(refreshed, target), state)

    def get_constrain_fn(self, model_args: tuple, model_kwargs: dict | None) -> Callable:
        """From `z` to constrained values of the latent sites, by the bijections of their supports.

        Gibbs asks for it before it knows the other sites, whose values then do not matter.
        """
        if self._model is None:
            return identity
        return partial(_by_supports, self._model, model_args, model_kwargs or {})

    def wrap_model(self, wrapper: Callable) -> "SamplerKernel":
        """A copy whose model is `wrapper(model)`, as a block of Gibbs."""
        if self._model is None:
            raise ValueError("a kernel of a potential_fn has no model to wrap.")
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._coordinates = kernel._sites = None
        return kernel

    def postprocess_fn(self, model_args: tuple, model_kwargs: dict | None) -> Callable:
        """From `z` to constrained values of the latent and deterministic sites."""
        if self._model is None or self._coordinates is None:
            return identity
        target, coordinates = self._target(model_args, model_kwargs), self._coordinates
        return lambda z: target.constrain(coordinates.join(z))

    def get_diagnostics_str(self, state: KernelState) -> str:
        return (
            f"{state.num_steps} gradients at step size {state.adapt_state.step_size:.2e}, "
            f"acceptance {state.mean_accept_prob:.2f}"
        )

    def _found(self, init_params, is_one, args, kwargs) -> Target:
        """The target, after its layout was found and noted."""
        if self._model is not None:
            found = from_numpyro(self._model, *args, **(kwargs or {}))
            self._coordinates, self._sites = Coordinates.of_model(found.layout), found.sites
            return found
        if init_params is None:
            raise ValueError(
                "a kernel of a potential_fn has no other start than the one given: call "
                "MCMC.run(key, init_params=...), with a leading axis of chains if there are many."
            )
        one = jax.eval_shape(
            lambda z: z if is_one else jax.tree.map(lambda leaf: leaf[0], z), init_params
        )
        self._coordinates = Coordinates.of_tree(one)
        return self._target(args, kwargs)

    def _target(self, args, kwargs) -> Target:
        """The target at some arguments, which may be traced."""
        coordinates = self._coordinates
        assert coordinates is not None  # `init` has found them
        layout = coordinates.layout
        if self._potential_fn is not None:
            return Potential(layout.dim, self._potential_fn, coordinates)
        assert self._sites is not None
        return NumPyroModel(layout.dim, Arguments(self._model, args, kwargs), layout, self._sites)

    def _positions(self, target, init_params, is_one, args, kwargs):
        """Flat positions of given starts, or None."""
        if init_params is None:
            return None
        assert self._coordinates is not None
        join = self._coordinates.join
        if self._model is not None and GIBBS_SITES_KWARG in (kwargs or {}):
            z = self._coordinates.split(jnp.zeros(target.dim))
            _refuse_moving_supports(self._model, args, kwargs, z)
            join = target.unconstrain  # Gibbs gives constrained values
        return join(init_params) if is_one else jax.vmap(join)(init_params)


@partial(jax.jit, static_argnames="coordinates")
def _open(coordinates, target, sampler, adapt, start, keys, positions, like, num_warmup):
    """States, log densities at the start, and whether they and their gradients are finite."""
    each = (lambda function: function) if is_prng_key(keys) else jax.vmap
    keys = each(lambda key: streams(typed(key)))(keys)
    together = isinstance(adapt, EnsembleWarmup)
    if positions is None:
        positions = each(lambda key: _search(target, start, key, like))(keys.start)
        if together:
            # No attempt has this number.
            own = fold_in(keys.start[0], jnp.int32(ATTEMPTS))
            started = start.gather(target, own, positions)
            positions = started.position
            if started.metric is not None:
                sampler = adapt.adopt(sampler, started.metric, started.step_size)

    def begin(position, key):
        return first_state(target, coordinates.split, sampler, adapt, position, num_warmup, key)

    state = (begin if together else each(begin))(positions, keys.steps)
    value, score = each(target.value_and_score)(positions)
    return state, value, jnp.isfinite(value) & jnp.all(jnp.isfinite(score), axis=-1)


def _search(target, start, key, like):
    """The first of the proposed positions with a finite density and gradient."""

    def attempt(carry):
        count, _, _ = carry
        position = start.propose(target, fold_in(key, count), like)
        value, score = target.value_and_score(position)
        return count + 1, position, jnp.isfinite(value) & jnp.all(jnp.isfinite(score))

    def goes_on(carry):
        return (carry[0] < ATTEMPTS) & ~carry[2]

    return lax.while_loop(goes_on, attempt, (jnp.int32(0), like, jnp.zeros((), bool)))[1]


def _over_chains(one, state):
    """Apply `one` to a state: of one chain, of chains each alone, or of chains tuned together."""
    return one(state) if is_prng_key(state.rng_key) or is_together(state) else jax.vmap(one)(state)


def _tell_unfinished(coordinates, before, after):
    """Warn from within the run where the last transition of warm-up leaves chains that differ."""
    adapt, adaptation = before.warmup.adapt, after.warmup.adaptation
    is_last = before.i[0] + 1 == before.warmup.num_warmup

    def warn(worst, drift):
        warnings.warn(
            f"Warm-up ended unfinished: the chains did not agree; {coordinates.label(int(worst))} "
            f"still drifted by {float(drift):.2f} sd. Look at this parameter, reparametrise, or "
            "give a larger num_warmup.",
            stacklevel=2,
        )

    def tell():
        report = adapt.report(adaptation)
        jax.debug.callback(warn, report["worst"], report["drift"])

    lax.cond(is_last & ~adapt.is_done(adaptation), tell, lambda: None)


def _refuse_start(usable, values, start):
    """Raise where the density of a chain is not finite at its start, found by `start` or given."""
    if usable.all():
        return
    chain = int(np.argmin(usable))
    if start is None:
        raise ValueError(
            f"at the init_params of chain {chain} the log density is {values[chain]}, or its "
            "gradient is not finite; start inside the support (init_params are unconstrained)."
        )
    raise ValueError(
        f"no start with a finite log density and gradient was found for chain {chain} in "
        f"{ATTEMPTS} draws of {type(start).__name__}. Give init_params=..., or check the model: "
        "its density may be zero or not a number where it should not be."
    )


def _by_supports(model, args, kwargs, z):
    """Constrained values of the sites in `z`; other latent sites take any value."""

    def value(site):
        if site["name"] in z and site["type"] == "sample":
            return numpyro.distributions.biject_to(site["fn"].support)(z[site["name"]])
        return numpyro.infer.init_to_sample(site)

    with permitting(jnp.result_type(*z.values())) as numpyro:
        seeded = numpyro.handlers.seed(model, jax.random.key(0))
        substituted = numpyro.handlers.substitute(seeded, substitute_fn=value)
        trace = numpyro.handlers.trace(substituted).get_trace(*args, **kwargs)
        return {name: trace[name]["value"] for name in z}


def _refuse_moving_supports(model, args, kwargs, z):
    """Raise where the bijections of a block of Gibbs depend on sites of other blocks.

    Gibbs asks for constrained values before it tells the sites they would depend on.
    """

    def constrained(others):
        return _by_supports(model, args, kwargs | {GIBBS_SITES_KWARG: others}, z)

    others = kwargs[GIBBS_SITES_KWARG]
    jaxpr = jax.make_jaxpr(constrained)(others).jaxpr
    used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    moving = [name for name, uses in zip(sorted(others), used, strict=True) if uses]
    if moving:
        raise ValueError(
            f"the supports of {', '.join(z)} depend on {', '.join(moving)}, of another block "
            "of Gibbs; give these sites to one block."
        )

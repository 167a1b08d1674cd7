"""The kernels of `benchmarks.w2_gradients`, ours and BlackJAX's, with their grids of numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.samplers import (
    KLMC,
    MALA,
    MALT,
    OBABO,
    UBU,
    JitteredHMC,
    LocalScaleHMC,
    RandomizedMidpointKinetic,
    Sampler,
)
from driftbridge.samplers.loop import transition
from driftbridge.targets.base import Target


class Kernel(NamedTuple):
    """Chains of one kernel: `init(target, numbers, positions, key)` gives their states, and
    `step(target, numbers, states, t, key)` the next ones with the mean gradients of a chain."""

    init: Callable
    step: Callable


def of_sampler(target: Target, sampler: Sampler, positions, key) -> Any:
    """The states of a sampler of ours."""
    return jax.vmap(lambda position: sampler.init(target, position))(positions)


def step_of_sampler(target: Target, sampler: Sampler, states, t, key) -> tuple[Any, Any]:
    """One transition of a sampler of ours, as the driver takes it."""
    now, like = sampler.at_step(t), states.position[0]
    keys = jax.random.split(key, len(states.position))
    noise = jax.vmap(lambda key: now.noise(key, like))(keys)
    states, infos = transition(target, now, states, noise)
    return states, jnp.mean(infos.num_gradients.astype(like.dtype))


OURS = Kernel(of_sampler, step_of_sampler)


def nuts(target: Target) -> Kernel:
    """BlackJAX's NUTS at a step size, unit metric."""
    kernel = blackjax.nuts.build_kernel()

    def init(target, numbers, positions, key):
        return jax.vmap(lambda x: blackjax.nuts.init(x, target.log_density))(positions)

    def step(target, numbers, states, t, key):
        def one(state, key):
            unit = jnp.ones(target.dim, state.position.dtype)
            return kernel(key, state, target.log_density, numbers[0], unit)

        states, info = jax.vmap(one)(states, jax.random.split(key, len(states.position)))
        return states, jnp.mean(info.num_integration_steps.astype(numbers[0].dtype))

    return Kernel(init, step)


def mclmc(target: Target) -> Kernel:
    """BlackJAX's MCLMC at a step size and a decoherence length; two gradients a step."""
    kernel = blackjax.mcmc.mclmc.build_kernel()

    def init(target, numbers, positions, key):
        keys = jax.random.split(key, len(positions))
        make = partial(blackjax.mcmc.mclmc.init, logdensity_fn=target.log_density)
        return jax.vmap(lambda x, key: make(position=x, rng_key=key))(positions, keys)

    def step(target, numbers, states, t, key):
        def one(state, key):
            unit = jnp.ones(target.dim, state.position.dtype)
            return kernel(
                rng_key=key, state=state, logdensity_fn=target.log_density,
                inverse_mass_matrix=unit, L=numbers[1], step_size=numbers[0],
            )[0]  # fmt: skip

        states = jax.vmap(one)(states, jax.random.split(key, len(states.position)))
        return states, jnp.full((), 2.0, numbers[0].dtype)

    return Kernel(init, step)


def adjusted_mclmc(target: Target) -> Kernel:
    """BlackJAX's adjusted MCLMC at a step size and a mean number of steps, uniformly jittered."""
    kernel = blackjax.mcmc.adjusted_mclmc_dynamic.build_kernel(
        integration_steps_fn=lambda key, most: jax.random.randint(key, (), 1, most)
    )

    def init(target, numbers, positions, key):
        keys = jax.random.split(key, len(positions))
        make = blackjax.mcmc.adjusted_mclmc_dynamic.init
        return jax.vmap(lambda x, key: make(x, target.log_density, key))(positions, keys)

    def step(target, numbers, states, t, key):
        # Means of 2, 4, 8: uniform on 1 to twice the mean less one.
        most = 2 * numbers[1].astype(jnp.int32)

        def one(state, key):
            return kernel(
                key, state, target.log_density, numbers[0], integration_steps_params=(most,)
            )

        states, info = jax.vmap(one)(states, jax.random.split(key, len(states.position)))
        return states, 2 * jnp.mean(info.num_integration_steps.astype(numbers[0].dtype))

    return Kernel(init, step)


class Method(NamedTuple):
    """A kernel and the numbers to try: step sizes, and one more number of each kernel."""

    kernel: Callable[[Target], Kernel]
    make: Callable[..., Any]
    grid: tuple[tuple[float, ...], ...]


def ours(target: Target) -> Kernel:
    """Every sampler of ours is run in one way."""
    return OURS


def numbers(*values: float) -> tuple[Float[Array, ""], ...]:
    """Numbers of a kernel of BlackJAX."""
    return tuple(jnp.asarray(value, jnp.float32) for value in values)


def spaced(low: float, high: float, count: int = 8) -> tuple[float, ...]:
    """Step sizes evenly spaced in the logarithm."""
    return tuple(np.geomspace(low, high, count).tolist())


FRICTIONS = (0.5, 1.0, 2.0)
LENGTHS = (0.8, 1.6, 3.2)
METHODS: dict[str, Method] = {
    "LocalScaleHMC": Method(ours, partial(LocalScaleHMC, spread=0.0), (spaced(0.03, 0.8), LENGTHS)),
    "JitteredHMC": Method(ours, JitteredHMC, (spaced(0.03, 0.8), LENGTHS)),
    "MALT": Method(ours, partial(MALT, num_steps=6), (spaced(0.03, 0.8), FRICTIONS)),
    "MALA": Method(ours, MALA, (spaced(0.001, 0.2),)),
    "UBU": Method(ours, UBU, (spaced(0.03, 0.8), FRICTIONS)),
    "OBABO": Method(ours, OBABO, (spaced(0.03, 0.8), FRICTIONS)),
    "KLMC": Method(ours, KLMC, (spaced(0.01, 0.4), FRICTIONS)),
    "RandomizedMidpointKinetic": Method(
        ours, RandomizedMidpointKinetic, (spaced(0.03, 0.8), FRICTIONS)
    ),
    "BlackJAX NUTS": Method(nuts, numbers, (spaced(0.03, 0.8),)),
    "BlackJAX MCLMC": Method(mclmc, numbers, (spaced(0.15, 5.0), (3.0, 6.0, 12.0))),
    "BlackJAX adjusted MCLMC": Method(
        adjusted_mclmc, numbers, (spaced(0.15, 5.0), (2.0, 4.0, 8.0))
    ),
}
BIASED = ("UBU", "OBABO", "KLMC", "RandomizedMidpointKinetic", "BlackJAX MCLMC")

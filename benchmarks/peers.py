"""Other libraries' samplers as compiled programs: what `benchmarks.effective` compares with.

Every program draws its own starts, a standard normal, and counts the gradients of all its chains,
warm-up included.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from driftbridge.runtime.compilations import Compilations

START = 1.0


class Run(NamedTuple):
    """Draws `(chains, draws, dim)`, gradients of all chains in all, and seconds.

    `warmup`: gradients of the warm-up, where they are known.
    """

    positions: np.ndarray
    gradients: int
    seconds: float
    warmup: int | None = None


def peer(program: Callable, target) -> Callable[[object, int], Run]:
    """A compiled pipeline `program(target, key) -> (positions, gradients)` as a `Run` by seed."""
    compiled = jax.jit(program)

    def run(_, seed: int) -> Run:
        start = time.perf_counter()
        positions, gradients = jax.block_until_ready(compiled(target, jax.random.key(seed)))
        seconds = time.perf_counter() - start
        return Run(np.asarray(positions), int(gradients), seconds)

    return run


def nuts(target, key, num_chains: int, num_warmup: int, num_samples: int, metric="diagonal"):
    """BlackJAX's NUTS with its window adaptation, chains under `vmap`.

    `metric`: "diagonal", "dense", or "low rank" (`window_adaptation_low_rank`, rank 10).
    """
    if metric == "low rank":
        adaptation = blackjax.window_adaptation_low_rank(blackjax.nuts, target.log_density)
    else:
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, target.log_density, is_mass_matrix_diagonal=metric == "diagonal"
        )

    def chain(key):
        start, warm, sample = jax.random.split(key, 3)
        position = START * jax.random.normal(start, (target.dim,))
        (state, parameters), info = adaptation.run(warm, position, num_steps=num_warmup)
        step = blackjax.nuts(target.log_density, **parameters).step

        def one(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (positions, steps) = jax.lax.scan(one, state, jax.random.split(sample, num_samples))
        return positions, jnp.sum(steps) + jnp.sum(info.info.num_integration_steps)

    positions, gradients = jax.vmap(chain)(jax.random.split(key, num_chains))
    return positions, jnp.sum(gradients)


def chees(target, key, num_chains: int, num_warmup: int, num_samples: int):
    """BlackJAX's ChEES-HMC, its metric diagonal."""
    start, warm, sample = jax.random.split(key, 3)
    positions = START * jax.random.normal(start, (num_chains, target.dim))
    adaptation = blackjax.chees_adaptation(target.log_density, num_chains)
    (states, parameters), info = adaptation.run(warm, positions, 0.1, optax.adam(0.025), num_warmup)
    step = blackjax.dynamic_hmc(target.log_density, **parameters).step

    def one(states, key):
        states, info = jax.vmap(step)(jax.random.split(key, num_chains), states)
        return states, (states.position, info.num_integration_steps)

    _, (positions, steps) = jax.lax.scan(one, states, jax.random.split(sample, num_samples))
    gradients = jnp.sum(steps) + jnp.sum(info.info.num_integration_steps)
    return jnp.swapaxes(positions, 0, 1), gradients


def mclmc(target, key, num_chains: int, num_tuning: int, num_samples: int):
    """BlackJAX's MCLMC with its tuner; two gradients a step."""

    def chain(key):
        start, init, tune, sample = jax.random.split(key, 4)
        position = START * jax.random.normal(start, (target.dim,))
        state = blackjax.mcmc.mclmc.init(
            position=position, logdensity_fn=target.log_density, rng_key=init
        )
        kernel = blackjax.mcmc.mclmc.build_kernel(
            integrator=blackjax.mcmc.integrators.isokinetic_mclachlan
        )
        found = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel, num_steps=num_tuning, state=state, rng_key=tune,
            logdensity_fn=target.log_density,
        )  # fmt: skip
        state, parameters = found[0], found[1]
        step = blackjax.mclmc(
            target.log_density, L=parameters.L, step_size=parameters.step_size,
            inverse_mass_matrix=parameters.inverse_mass_matrix,
        ).step  # fmt: skip

        def one(state, key):
            state, _ = step(key, state)
            return state, state.position

        _, positions = jax.lax.scan(one, state, jax.random.split(sample, num_samples))
        return positions

    positions = jax.vmap(chain)(jax.random.split(key, num_chains))
    return positions, jnp.asarray(2 * num_chains * (num_tuning + num_samples))


def numpyro_nuts(num_chains: int, num_warmup: int, num_samples: int):
    """NumPyro's NUTS on the potential, chains vectorised."""
    from numpyro.infer import MCMC, NUTS

    made: dict[int, MCMC] = {}

    def run(target, seed: int) -> Run:
        mcmc = made.setdefault(
            id(target),
            MCMC(
                NUTS(potential_fn=target.potential),
                num_warmup=num_warmup,
                num_samples=num_samples,
                num_chains=num_chains,
                chain_method="vectorized",
                progress_bar=False,
            ),
        )
        key, start = jax.random.split(jax.random.key(seed))
        positions = START * jax.random.normal(start, (num_chains, target.dim))
        # NumPyro compiles anew in every run without its progress bar, which is slower still.
        watch, begin = Compilations(), time.perf_counter()
        mcmc.run(key, init_params=positions, extra_fields=("num_steps",))
        found = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        seconds = time.perf_counter() - begin - watch.seconds
        # Steps of the warm-up are not kept by NumPyro; they are taken to be like the others.
        steps = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_steps"])
        gradients = int(steps.mean() * num_chains * (num_warmup + num_samples))
        return Run(np.asarray(found), gradients, seconds)

    return run


def nutpie(num_chains: int, num_warmup: int, num_samples: int, low_rank: bool):
    """nutpie's NUTS on a compiled density; its chains are threads that call it from Python."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    made = {}

    def model(target):
        both = jax.jit(jax.value_and_grad(target.log_density))

        def density():
            def call(x):
                value, gradient = both(np.asarray(x, np.float32))
                return float(value), np.asarray(gradient, np.float64)

            return call

        def expand(seed1, seed2, chain):
            return lambda x: {"x": np.asarray(x, np.float64)}

        shape = (target.dim,)
        return from_pyfunc(target.dim, density, expand, [np.dtype(np.float64)], [shape], ["x"])

    def run(target, seed: int) -> Run:
        compiled = made.setdefault(id(target), model(target))
        start = time.perf_counter()
        found: Any = nutpie.sample(
            compiled,
            draws=num_samples,
            tune=num_warmup,
            chains=num_chains,
            seed=seed,
            progress_bar=False,
            low_rank_modified_mass_matrix=low_rank,
        )
        seconds = time.perf_counter() - start
        steps = sum(
            int(np.asarray(group["n_steps"]).sum())
            for group in (found.sample_stats, found.warmup_sample_stats)
        )
        return Run(np.asarray(found.posterior["x"]), steps, seconds)

    return run

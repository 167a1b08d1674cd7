"""Effective draws a second and a gradient, warm-up included: `db.sample(target)` beside its peers.

    python -m benchmarks.effective [--small] [--save] [--strict]

Targets: logistic regression on the breast cancer data (n = 569, d = 31), and a rotated Gaussian
(d = 100, eigenvalues log-uniform from 1 to 1e4). All sides evaluate the same log density with the
same gradient. Every program is compiled by a first run with another seed, and that time is shown
apart; five seeds follow, sides taking turns. `sq` is the least ESS of squared deviations, which
antithetic draws do not raise. A run whose largest rank-normalised R-hat is 1.01 or more, or whose
bulk or tail ESS is below 800, has not converged, and does not count.

Peers run at the number of chains that suits them: NUTS four, ChEES 64 as ours, MCLMC four.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import driftbridge as db
from benchmarks.gradient import data
from benchmarks.timing import machine, options, record, verdict
from driftbridge.runtime.compilations import Compilations
from driftbridge.samplers import diagnostics
from driftbridge.targets import GLM, DenseGaussian

START = 1.0


class Run(NamedTuple):
    """Draws `(chains, draws, dim)`, gradients of all chains in all, and seconds."""

    positions: np.ndarray
    gradients: int
    seconds: float


def ours(target, seed: int) -> Run:
    """`db.sample` and nothing else; it draws until it has converged."""
    start = time.perf_counter()
    draws = db.sample(target, key=seed)
    seconds = time.perf_counter() - start
    facts = draws.metadata
    gradients = facts["gradients_warmup"] + facts["gradients_sampling"]
    return Run(np.asarray(draws.positions), gradients, seconds)


def peer(program: Callable, target) -> Callable[[object, int], Run]:
    """A compiled pipeline `program(target, key) -> (positions, gradients)` as a `Run` by seed."""
    compiled = jax.jit(program)

    def run(_, seed: int) -> Run:
        start = time.perf_counter()
        positions, gradients = jax.block_until_ready(compiled(target, jax.random.key(seed)))
        seconds = time.perf_counter() - start
        return Run(np.asarray(positions), int(gradients), seconds)

    return run


def nuts(target, key, num_chains: int, num_warmup: int, num_samples: int):
    """BlackJAX's NUTS with its window adaptation, a diagonal metric, chains under `vmap`."""

    def chain(key):
        start, warm, sample = jax.random.split(key, 3)
        position = START * jax.random.normal(start, (target.dim,))
        adaptation = blackjax.window_adaptation(blackjax.nuts, target.log_density)
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


def judged(run: Run) -> dict:
    """ESS of the worst coordinate, and whether it has converged."""
    x = np.asarray(run.positions, np.float64)
    squares = (x - x.mean((0, 1))) ** 2
    bulk = float(np.min(diagnostics.ess_bulk(x)))
    tail = float(np.min(diagnostics.ess_tail(x)))
    scale = float(np.max(diagnostics.r_hat(x)))
    return {
        "bulk": bulk,
        "sq": float(np.min(diagnostics.ess_bulk(squares))),
        "r_hat": scale,
        "converged": bool(scale < 1.01 and min(bulk, tail) >= 800),
        "seconds": run.seconds,
        "gradients": run.gradients,
        "draws": x.shape[:2],
    }


def gaussian(dim: int = 100, condition: float = 1e4) -> DenseGaussian:
    """A rotated Gaussian whose eigenvalues are spread evenly in the logarithm."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
    values = np.geomspace(1, condition, dim)
    covariance, precision = (basis * values) @ basis.T, (basis / values) @ basis.T
    return DenseGaussian(
        *(np.asarray(a, np.float32) for a in (np.zeros(dim), covariance, precision))
    )


def sides(target, small: bool) -> dict[str, Callable]:
    """The programs that take turns; peers need a thousand gradients a draw of the Gaussian."""
    k = 10 if small else 1 if isinstance(target, GLM) else 4
    return {
        "driftbridge": ours,
        "BlackJAX ChEES": peer(
            partial(chees, num_chains=64, num_warmup=1000 // k, num_samples=500 // k), target
        ),
        "BlackJAX NUTS": peer(
            partial(nuts, num_chains=4, num_warmup=1000 // k, num_samples=1500 // k), target
        ),
        "BlackJAX MCLMC": peer(
            partial(mclmc, num_chains=4, num_tuning=20_000 // k, num_samples=40_000 // k), target
        ),
        "NumPyro NUTS": numpyro_nuts(4, 1000 // k, 1500 // k),
    }


def compare(name: str, target, seeds: int, small: bool) -> list[dict]:
    """Rows of one target, ours first; medians over seeds."""
    programs, found, compiled = sides(target, small), {}, {}
    for side, program in programs.items():
        begin = time.perf_counter()
        first = program(target, 1000)
        compiled[side] = time.perf_counter() - begin - first.seconds
        again = program(target, 1000)
        compiled[side] += first.seconds - again.seconds
        found[side] = []
    for seed in range(seeds):
        order = list(programs)
        for side in order[seed % len(order) :] + order[: seed % len(order)]:
            found[side].append(judged(programs[side](target, seed)))
    rows = []
    for side, runs in found.items():
        rows.append(
            {
                "target": name,
                "side": side,
                "converged": sum(r["converged"] for r in runs),
                "seeds": seeds,
                "compile": compiled[side],
                "r_hat": float(np.median([r["r_hat"] for r in runs])),
                "draws": runs[0]["draws"],
                **{
                    f"{what} per {unit}": float(
                        np.median([r[what] / r[unit] * factor for r in runs])
                    )
                    for what in ("bulk", "sq")
                    for unit, factor in (("seconds", 1.0), ("gradients", 1000.0))
                },
            }
        )
    return rows


# Ours over the peer: least ratio of bulk and of squares, by seconds or by gradients.
BARS = {
    ("regression", "BlackJAX ChEES"): ("seconds", 8, 5),
    ("regression", "BlackJAX NUTS"): ("seconds", 15, None),
    ("regression", "NumPyro NUTS"): ("seconds", 25, None),
    ("gaussian", "BlackJAX NUTS"): ("gradients", 100, None),
    ("gaussian", "BlackJAX MCLMC"): ("gradients", 25, 10),
}


def main() -> int:
    chosen = options(__doc__)
    X, y = data()
    targets = {"regression": GLM(X, y, "logistic", "gaussian"), "gaussian": gaussian()}
    print(machine(), end="\n\n")
    print(
        "| target | side | chains x draws | converged | R-hat | bulk/s | sq/s | bulk/1k grad | "
        "sq/1k grad | compile s |\n" + "| --- " * 10 + "|"
    )
    rows, met = [], True
    for name, target in targets.items():
        part = compare(name, target, 1 if chosen.small else 5, chosen.small)
        for row in part:
            chains, draws = row["draws"]
            print(
                f"| {name} | {row['side']} | {chains} x {draws} | {row['converged']}/{row['seeds']}"
                f" | {row['r_hat']:.3f} | {row['bulk per seconds']:.0f} | "
                f"{row['sq per seconds']:.0f} | {row['bulk per gradients']:.2f} | "
                f"{row['sq per gradients']:.2f} | {row['compile']:.1f} |",
                flush=True,
            )
        mine = part[0]
        for row in part[1:]:
            if (bar := BARS.get((name, row["side"]))) is None:
                continue
            unit, bulk, squares = bar
            for what, least in (("bulk", bulk), ("sq", squares)):
                if least is not None:
                    ratio = mine[f"{what} per {unit}"] / row[f"{what} per {unit}"]
                    good = ratio >= least and mine["converged"] == mine["seeds"]
                    met &= good
                    row[f"{what} ratio"] = ratio
                    print(
                        f"  {what} per {unit} over {row['side']}: {ratio:.1f}, at least {least}: "
                        f"{verdict(good)}"
                    )
        rows += part
    return record("effective", rows, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

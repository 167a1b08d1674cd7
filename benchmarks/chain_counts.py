"""Kernels of one fixed length against NUTS, from one chain to thousands: sampling alone.

    python -m benchmarks.chain_counts [--small] [--save]

Logistic regression on the breast cancer data (n = 569, d = 31), float32. Chains of NUTS under
`vmap` wait for the longest trajectory of all; those of a fixed length never wait. All kernels come
tuned, with a diagonal metric of their own library's warm-up: `JitteredHMC` whose trajectories have
ten leapfrog steps on average, `MALT` of ten steps and `UBU`, of which every tenth step is kept, in
our driver; BlackJAX's NUTS under `vmap`. All start from the same draws of the posterior. Everything
is compiled by a first run; three rounds (one from 1024 chains on) follow in which the kernels take
turns, and medians are shown.
ESS is the least over coordinates: `bulk`, and `sq` of squared deviations, which antithetic draws do
not raise. UBU is not adjusted: its step size is the one tuned to a bias of 5 % of the variance, and
R-hat does not see it. Where JAX finds a GPU the same command runs there.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import driftbridge as db
from benchmarks.gradient import data
from benchmarks.timing import machine, options, record
from driftbridge.samplers import MALA, MALT, UBU, JitteredHMC, diagnostics
from driftbridge.samplers.automatic import Choice
from driftbridge.samplers.base import Sampler, step_size_of
from driftbridge.samplers.ensemble import trajectory_length_of
from driftbridge.samplers.sample import opened
from driftbridge.samplers.tuned import tune
from driftbridge.targets import GLM

STEPS = 10
# Draws of each chain, of ours and of NUTS: seconds of work and several autocorrelation times, about
# ten draws of ours and one of NUTS.
DRAWS = {1: (4000, 1000), 4: (2000, 1000), 64: (400, 100), 1024: (100, 20), 4096: (100, 20)}
ROUNDS = {1: 3, 4: 3, 64: 3, 1024: 1, 4096: 1}


class Run(NamedTuple):
    """Draws `(chains, draws, dim)`, gradients of all chains in all, and seconds of sampling."""

    positions: np.ndarray
    gradients: int
    seconds: float


def ours(target: GLM, sampler: Sampler, start: np.ndarray, draws: int, thin: int, key: int) -> Run:
    """Draws by the driver, as `db.sample` takes them, without warm-up."""
    counts = {"num_warmup": 0, "num_chains": len(start), "thin": thin}
    choice = Choice(sampler, None, start, len(start), draws, 0)
    run, _ = opened(target, choice, key, counts, "draws", None, None, False)
    run.settle()
    run.advance("sampling", draws, draws)
    positions = run.keeper.draws(sampler, {}).positions
    return Run(positions, run.clock.gradients["sampling"], run.clock.seconds["sampling"])


def nuts(target: GLM) -> Callable[[np.ndarray, int, int], Run]:
    """BlackJAX's NUTS after its window adaptation, chains under `vmap`."""
    adaptation: Any = blackjax.window_adaptation(blackjax.nuts, target.log_density)
    start = jnp.zeros(target.dim)
    (_, parameters), _ = adaptation.run(jax.random.key(0), start, num_steps=1000)
    algorithm: Any = blackjax.nuts(target.log_density, **parameters)

    @jax.jit
    def sample(start, keys):
        def chain(position, keys):
            def one(state, key):
                state, info = algorithm.step(key, state)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(one, algorithm.init(position), keys)[1]

        return jax.vmap(chain)(start, keys)

    def run(start: np.ndarray, draws: int, key: int) -> Run:
        keys = jax.random.split(jax.random.key(key), (len(start), draws))
        jax.block_until_ready(keys)
        begin = time.perf_counter()
        positions, steps = map(np.asarray, sample(jnp.asarray(start), keys))
        return Run(positions, int(steps.sum()), time.perf_counter() - begin)

    return run


def kernels(target: GLM, small: bool) -> dict[str, tuple[Sampler, int]]:
    """Our tuned kernels, each with the transitions for a kept draw."""
    made = {
        "JitteredHMC": (JitteredHMC(), 1),
        "MALT": (MALT(num_steps=STEPS), 1),
        "UBU": (UBU(), STEPS),
    }
    found = {}
    for name, (kernel, thin) in made.items():
        sampler = tune(target, kernel, num_chains=8, num_warmup=150 if small else 1000).sampler
        if name == "JitteredHMC":
            length = STEPS * step_size_of(sampler)
            sampler = eqx.tree_at(trajectory_length_of, sampler, length)
        found[name] = (sampler, thin)
    return found


def measure(target: GLM, small: bool) -> list[dict]:
    """Rows of all chain counts."""
    chosen = {1: (40, 40), 4: (20, 20)} if small else DRAWS
    settings: Any = {"sampler": MALA(), "num_samples": 200} if small else {}
    known = db.sample(target, **settings).positions.reshape(-1, target.dim)
    peer, own = nuts(target), kernels(target, small)
    rows = []
    for chains, draws in chosen.items():
        # Draws of one chain are neighbours: evenly spaced, the starts are of all chains.
        start = known[np.linspace(0, len(known) - 1, chains).astype(int)]

        def program(name, start=start, draws=draws):
            if name == "NUTS":
                return lambda key: peer(start, draws[1], key)
            sampler, thin = own[name]
            return lambda key: ours(target, sampler, start, draws[0], thin, key)

        programs = {name: program(name) for name in [*own, "NUTS"]}
        part = of_count(programs, 1 if small else ROUNDS[chains])
        rows += part
        for row in part:
            print(line(row), flush=True)
    return rows


def of_count(programs: dict[str, Callable], rounds: int) -> list[dict]:
    """Rows of one number of chains, medians over the rounds."""
    compiled, runs = {}, {name: [] for name in programs}
    for name, program in programs.items():
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            program(1000)
            times.append(time.perf_counter() - begin)
        compiled[name] = times[0] - times[1]
    names = list(programs)
    for key in range(rounds):
        for name in names[key % len(names) :] + names[: key % len(names)]:
            runs[name].append(programs[name](key))
    rows = []
    for name, found in runs.items():
        ess = [least_ess(run.positions) for run in found]
        chains, draws = found[0].positions.shape[:2]
        rows.append(
            {
                "chains": chains,
                "kernel": name,
                "draws": draws,
                "gradients_per_draw": found[0].gradients / (chains * draws),
                "bulk": float(np.median([bulk for bulk, _ in ess])),
                "bulk_per_second": rate([bulk for bulk, _ in ess], found),
                "sq_per_second": rate([square for _, square in ess], found),
                "gradients_per_second": rate([run.gradients for run in found], found),
                "compile": compiled[name],
            }
        )
    last = rows[-1]["bulk_per_second"]
    return [{**row, "over_nuts": row["bulk_per_second"] / last} for row in rows]


def rate(amounts: list, runs: list[Run]) -> float:
    """Median amount a second."""
    return float(np.median([a / run.seconds for a, run in zip(amounts, runs, strict=True)]))


def least_ess(positions: np.ndarray) -> tuple[float, float]:
    """Least bulk ESS of the coordinates, and of their squared deviations."""
    x = np.asarray(positions, np.float64)
    squares = (x - x.mean((0, 1))) ** 2
    return float(np.min(diagnostics.ess_bulk(x))), float(np.min(diagnostics.ess_bulk(squares)))


def line(row: dict) -> str:
    """One row of the table."""
    cells = (
        f"{row['chains']}", row["kernel"], f"{row['draws']}", f"{row['gradients_per_draw']:.1f}",
        f"{row['bulk']:.0f}", f"{row['bulk_per_second']:.0f}", f"{row['sq_per_second']:.0f}",
        f"{row['gradients_per_second']:.3g}", f"{row['over_nuts']:.2f}", f"{row['compile']:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> int:
    chosen = options(__doc__)
    X, y = data()
    print(machine(), end="\n\n")
    heads = (
        "chains", "kernel", "draws", "gradients a draw", "bulk", "bulk/s", "sq/s", "gradients/s",
        "bulk/s over NUTS", "compile s",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    rows = measure(GLM(X, y, "logistic", "gaussian"), chosen.small)
    return record("chain_counts", rows, True, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

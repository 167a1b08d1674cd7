"""One line changed in a NumPyro script: `SamplerKernel(model)` for `NUTS(model)`.

    python -m benchmarks.swap [--small] [--save] [--strict] [--data FOLDER]

The NumPyro models of `examples.posteriors` whose data are in the repository; with `--data` (as for
`python -m examples.posteriors`) the others too. Both kernels run in `numpyro.infer.MCMC` as their
constructors make them, NUTS as 4 chains one after another, 4 vectorised and 64 vectorised (starts
from the cube that the posterior's case asks for), ours as 64 vectorised chains, which tune
themselves together. A run is the whole of `MCMC.run` and `get_samples` inside one `jax.jit`,
compiled by a first run whose time is shown apart; seconds are of start, warm-up and draws. Every
setting begins with a short warm-up and few draws (NUTS 300, and 1000 of 4 chains or 200 of 64; ours
96 and 200), doubled until two of three pilot seeds have R-hat below 1.008 and bulk and tail ESS of
1000 for every entry of every site; five other seeds follow, the settings taking turns. A
setting that needs more than five seconds is not doubled and runs with two seeds.

A run with rank-normalised R-hat of 1.01 or more, or bulk or tail ESS below 800, has not converged;
its ESS a second counts as 0 in the median over seeds. ESS is the least bulk ESS. `z` is the largest
difference of the two sides' posterior means, over all sites and pooled seeds, in combined Monte
Carlo standard errors. Ratios of ESS a second: the best setting of ours over the best of NUTS
(geometric mean of the models at least 1.5, the least at least 0.7), and the same where both have
64 chains (geometric mean at least 2).
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_uniform

from benchmarks.timing import machine, options, record, verdict
from driftbridge.samplers import diagnostics
from driftbridge.samplers.numpyro import SamplerKernel
from examples.posteriors.cases import CASES, Case
from examples.posteriors.reference import load

PILOTS = (1000, 1001, 1002)
PILOT_R_HAT, PILOT_ESS = 1.008, 1000
DOUBLINGS = 3
# A setting that is this slow is not doubled, for it could not win, and runs with fewer seeds.
SLOW_SECONDS = 5.0
SEEDS, FEW_SEEDS = 5, 2
AGREE_WITHIN = 4.0
MEAN_BAR, LEAST_BAR, MANY_BAR = 1.5, 0.7, 2.0


@dataclass(frozen=True)
class Setting:
    """How one side runs."""

    side: str
    chains: int
    method: str
    warmup: int
    draws: int


SETTINGS = (
    Setting("NUTS", 4, "sequential", 300, 1000),
    Setting("NUTS", 4, "vectorized", 300, 1000),
    Setting("NUTS", 64, "vectorized", 300, 200),
    Setting("driftbridge", 64, "vectorized", 96, 200),
)


class Run(NamedTuple):
    """What a run gave: entries of all sites `(chains, draws, entries)`, and how it went."""

    values: np.ndarray
    seconds: float
    finished: bool

    @property
    def judged(self) -> dict[str, float]:
        """The worst R-hat and the least ESS over all entries."""
        return {
            "r_hat": float(np.max(diagnostics.r_hat(self.values))),
            "bulk": float(np.min(diagnostics.ess_bulk(self.values))),
            "tail": float(np.min(diagnostics.ess_tail(self.values))),
        }


class Problem(NamedTuple):
    """A model with its arguments, and the case it belongs to."""

    case: Case
    model: Callable
    args: tuple
    kwargs: dict[str, Any]


def program(problem: Problem, setting: Setting) -> Callable[[int], Run]:
    """A whole `MCMC.run` as a function of the seed, compiled by its first call."""

    @jax.jit
    def whole(key):
        if setting.side == "NUTS":
            start = init_to_uniform(radius=problem.case.radius)  # pyright: ignore[reportArgumentType]
            kernel = NUTS(problem.model, init_strategy=start)
        else:
            kernel = SamplerKernel(problem.model)
        mcmc = MCMC(
            kernel,
            num_warmup=setting.warmup,
            num_samples=setting.draws,
            num_chains=setting.chains,
            chain_method=setting.method,
            progress_bar=False,
        )
        mcmc.run(key, *problem.args, **problem.kwargs)
        warmup = getattr(mcmc.last_state, "warmup", None)
        agreed = True
        if warmup is not None:
            agreed = warmup.adapt.report(warmup.adaptation)["agreed"]
        return mcmc.get_samples(group_by_chain=True), agreed

    def run(seed: int) -> Run:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            # That chains did not agree is in `finished`; NumPyro tells of few devices each time.
            warnings.simplefilter("ignore")
            sites, agreed = jax.block_until_ready(whole(jax.random.key(seed)))
        seconds = time.perf_counter() - begin
        flat = [np.asarray(v, float).reshape(*v.shape[:2], -1) for _, v in sorted(sites.items())]
        return Run(np.concatenate(flat, axis=-1), seconds, bool(agreed))

    return run


class Tried(NamedTuple):
    """A setting as the pilot left it, compiled."""

    setting: Setting
    run: Callable[[int], Run]
    compile: float
    seeds: int


def is_enough(found: dict[str, float]) -> bool:
    """Whether a pilot has converged with something to spare."""
    return found["r_hat"] < PILOT_R_HAT and min(found["bulk"], found["tail"]) >= PILOT_ESS


def majority(answers: list[bool]) -> bool:
    """What most of them say."""
    return sum(answers) > len(answers) / 2


def piloted(problem: Problem, setting: Setting, doublings: int) -> Tried:
    """The setting with the shortest warm-up and draws that most pilot seeds converge with."""
    for left in reversed(range(doublings + 1)):
        run = program(problem, setting)
        pilots = [run(seed) for seed in PILOTS[:2]]
        seconds = pilots[1].seconds
        is_slow = seconds > SLOW_SECONDS
        tried = Tried(setting, run, pilots[0].seconds - seconds, FEW_SEEDS if is_slow else SEEDS)
        if is_slow or not left:
            return tried
        pilots.append(run(PILOTS[2]))
        enough = majority([is_enough(pilot.judged) for pilot in pilots])
        finished = majority([pilot.finished for pilot in pilots])
        if enough and finished:
            return tried
        # Draws are doubled where it is draws that are missing; NUTS does not tell.
        tells = setting.side != "NUTS"
        warmup = setting.warmup if tells and finished else 2 * setting.warmup
        draws = setting.draws if enough else 2 * setting.draws
        setting = replace(setting, warmup=warmup, draws=draws)
    raise AssertionError("the last round returns")


def measured(problem: Problem, small: bool) -> tuple[list[dict], float]:
    """The rows of one model, and `z` of its two sides."""
    settings, most = (SETTINGS[1:2] + SETTINGS[3:], 1) if small else (SETTINGS, SEEDS)
    tried = [piloted(problem, setting, 0 if small else DOUBLINGS) for setting in settings]
    runs: list[list[Run]] = [[] for _ in tried]
    for seed in range(most):
        for i in np.roll(np.arange(len(tried)), -seed):
            if seed < tried[i].seeds:
                runs[i].append(tried[i].run(seed))
    rows = [row_of(problem, one, found) for one, found in zip(tried, runs, strict=True)]
    ours = len(tried) - 1
    theirs = max(range(ours), key=lambda i: (rows[i]["converged"], rows[i]["ess_per_second"]))
    return rows, difference(runs[ours], runs[theirs])


def row_of(problem: Problem, tried: Tried, runs: list[Run]) -> dict:
    """Medians over seeds."""
    found = [run.judged for run in runs]
    good = [one["r_hat"] < 1.01 and min(one["bulk"], one["tail"]) >= 800 for one in found]
    rates = [ok * one["bulk"] / run.seconds for ok, one, run in zip(good, found, runs, strict=True)]
    return {
        "model": problem.case.name.partition("-")[0],
        **vars(tried.setting),
        "seeds": len(runs),
        "converged": sum(good),
        "unfinished": sum(not run.finished for run in runs),
        **{name: float(np.median([one[name] for one in found])) for name in found[0]},
        "seconds": float(np.median([run.seconds for run in runs])),
        "ess_per_second": float(np.median(rates)),
        "compile": tried.compile,
    }


def difference(ours: list[Run], theirs: list[Run]) -> float:
    """The largest difference of posterior means in combined standard errors, seeds pooled."""

    def pooled(runs):
        means = np.mean([run.values.mean((0, 1)) for run in runs], axis=0)
        errors = np.stack([diagnostics.mcse_mean(run.values) for run in runs])
        return means, np.sqrt(np.sum(errors**2, axis=0)) / len(runs)

    (a, own), (b, other) = pooled(ours), pooled(theirs)
    # An entry without spread (a site that the data fix) has no error and must be the same.
    error = np.maximum(np.hypot(own, other), np.finfo(np.float32).eps * np.abs(a))
    return float(np.max(np.abs(a - b) / np.maximum(error, np.finfo(float).tiny)))


def ratios(rows: list[dict], z: float) -> dict:
    """Ours over NUTS in one model: best over best, and 64 chains over 64."""
    ours = next(row for row in rows if row["side"] != "NUTS")
    nuts = [row for row in rows if row["side"] == "NUTS"]
    many = [row for row in nuts if row["chains"] == ours["chains"]]

    def over(peers):
        best = max((row["ess_per_second"] for row in peers), default=0.0)
        return ours["ess_per_second"] / best if best else float("nan")

    return {"model": ours["model"], "best": over(nuts), "many": over(many), "z": z}


def judged(compared: list[dict]) -> list[tuple[str, float, str, bool]]:
    """What is asked of all models together: label, value, bar, whether it is met.

    Models that NUTS fails have no ratio and are left out.
    """

    def mean(name):
        known = [row[name] for row in compared if np.isfinite(row[name])]
        if not known:
            return float("nan")
        return float(np.exp(np.mean(np.log(known)))) if min(known) > 0 else 0.0

    best, many = mean("best"), mean("many")
    least = min((row["best"] for row in compared if np.isfinite(row["best"])), default=np.nan)
    worst = max(row["z"] for row in compared)
    return [
        ("geometric mean, best over best", best, f">= {MEAN_BAR}", best >= MEAN_BAR),
        ("least, best over best", least, f">= {LEAST_BAR}", least >= LEAST_BAR),
        ("geometric mean, 64 chains each", many, f">= {MANY_BAR}", many >= MANY_BAR),
        ("largest z", worst, f"<= {AGREE_WITHIN:g}", worst <= AGREE_WITHIN),
    ]


def problems(folder: Path | None, small: bool) -> list[tuple[Case, Problem | None]]:
    """The models, None for one whose data are not at hand."""
    found = []
    for case in CASES[:1] if small else CASES:
        posterior = load(case.name, folder)
        if posterior is None:
            found.append((case, None))
            continue
        with jax.enable_x64(case.float64):
            target: Any = case.target(posterior.data)
            found.append((case, Problem(case, *target.arguments.tree)))
    return found


def line(row: dict) -> str:
    """One row of the table."""
    unfinished = f", {row['unfinished']} unfinished" if row["unfinished"] else ""
    cells = (
        row["model"], row["side"], f"{row['chains']} {row['method']}", row["warmup"], row["draws"],
        f"{row['converged']}/{row['seeds']}{unfinished}", f"{row['r_hat']:.4f}",
        f"{row['bulk']:.0f}", f"{row['tail']:.0f}", f"{row['seconds']:.3f}",
        f"{row['ess_per_second']:.0f}", f"{row['compile']:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    own, rest = parser.parse_known_args()
    chosen = options(__doc__, rest)
    print(machine(), end="\n\n")
    heads = (
        "model", "kernel", "chains", "warm-up", "draws", "converged", "R-hat", "bulk", "tail", "s",
        "ESS/s", "compile s",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    rows, compared = [], []
    for case, problem in problems(own.data, chosen.small):
        if problem is None:
            print(f"{case.name} left out: its data are not in the repository; give --data FOLDER.")
            continue
        with jax.enable_x64(case.float64):
            part, z = measured(problem, chosen.small)
        for row in part:
            print(line(row), flush=True)
        rows += part
        compared.append(ratios(part, z))
    print("\n| model | best over best | 64 chains each | z |\n| --- | --- | --- | --- |")
    for row in compared:
        cells = (f"{row[name]:.2f}" for name in ("best", "many", "z"))
        print(f"| {row['model']} | {' | '.join(cells)} |")
    print()
    verdicts = judged(compared)
    for label, value, bar, met in verdicts:
        print(f"{label}: {value:.2f}, {bar}: {verdict(met)}")
    return record("swap", [*rows, *compared], all(met for *_, met in verdicts), chosen)


if __name__ == "__main__":
    raise SystemExit(main())

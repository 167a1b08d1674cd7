"""Effective draws a second and a gradient, warm-up included: `db.sample(target)` beside its peers.

    python -m benchmarks.effective [--rows NAME ...] [--small] [--save] [--strict]

Targets: logistic regression on the breast cancer data (n = 569, d = 31) and on 50 000 simulated
rows; rotated Gaussians (d = 100: eigenvalues log-uniform from 1 to 1e4, or ones with ten outliers;
d = 1000: ones with eight outliers up to 1e6); eight schools, centred and not; a regression with a
horseshoe prior (d = 63); a regression with an effect of each of 303 districts (d = 317); a Brownian
motion observed with noise. `--rows` takes some of them. All sides evaluate the same log density
with the same gradient. Every program is compiled by a first run with another seed, and that time is
shown apart; seeds follow, sides taking turns. `sq` is the least ESS of squared deviations, which
antithetic draws do not raise. A run whose largest rank-normalised R-hat is 1.01 or more, or whose
bulk or tail ESS is below 800, has not converged, and does not count.

Peers run at the number of chains that suits them: NUTS four, ChEES 64 as ours, MCLMC four.
"""

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import driftbridge as db
from benchmarks.gaussians import rotated
from benchmarks.gradient import data
from benchmarks.peers import Run, chees, mclmc, numpyro_nuts, nutpie, nuts, peer
from benchmarks.timing import machine, parser_of, record, verdict
from driftbridge.samplers import diagnostics
from driftbridge.targets import (
    GLM,
    BrownianMotion,
    DenseGaussian,
    EightSchools,
    EightSchoolsNonCentered,
    Target,
    log_sigmoid,
)
from driftbridge.targets.constraints import positive


def ours(target, seed: int) -> Run:
    """`db.sample` and nothing else; it draws until it has converged."""
    start = time.perf_counter()
    draws = db.sample(target, key=seed)
    seconds = time.perf_counter() - start
    facts = draws.metadata
    gradients = facts["gradients_warmup"] + facts["gradients_sampling"]
    return Run(np.asarray(draws.positions), gradients, seconds, facts["gradients_warmup"])


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
        "warmup": None if run.warmup is None else run.warmup / len(x),
        "draws": x.shape[:2],
    }


def outliers(dim: int, count: int, largest: float) -> DenseGaussian:
    """A rotated Gaussian of unit variances but for `count` of 100 to `largest`."""
    return rotated(np.concatenate([np.ones(dim - count), np.geomspace(100, largest, count)]))


def much_data(n: int = 50_000, d: int = 31) -> GLM:
    """A logistic regression on simulated data, neighbouring predictors correlated by 0.5."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    for j in range(1, d):
        X[:, j] = 0.5 * X[:, j - 1] + np.sqrt(0.75) * X[:, j]
    X[:, 0] = 1
    chance = 1 / (1 + np.exp(-X @ rng.normal(size=d) / np.sqrt(d)))
    return GLM(X.astype(np.float32), (rng.random(n) < chance).astype(np.float32), "logistic")


def school_districts(parameters, X, passed, tested):
    """A binomial regression with an effect of each district: statsmodels' `star98`, d = 317."""
    logits = parameters["intercept"] + X @ parameters["coefficients"]
    logits = logits + parameters["scale"] * parameters["effects"]
    likelihood = passed * log_sigmoid(logits) + (tested - passed) * log_sigmoid(-logits)
    prior = (
        jnp.sum(parameters["effects"] ** 2)
        + jnp.sum(parameters["coefficients"] ** 2)
        + parameters["intercept"] ** 2
        + parameters["scale"] ** 2
    )
    return jnp.sum(likelihood) - prior / 2


def random_effects() -> Target:
    """303 districts of California: how many pupils passed a test, by what is known of each."""
    from statsmodels.datasets import star98

    table = star98.load_pandas().data
    X = table[list(table.columns[2:14])].to_numpy(float)
    X = (X - X.mean(0)) / X.std(0)
    passed, failed = table["NABOVE"].to_numpy(float), table["NBELOW"].to_numpy(float)
    n, d = X.shape
    like = {
        "coefficients": np.zeros(d), "effects": np.zeros(n), "intercept": 0.0, "scale": 1.0
    }  # fmt: skip
    numbers = (np.asarray(a, np.float32) for a in (X, passed, passed + failed))
    return db.from_density(school_districts, like, *numbers, constraints={"scale": positive})


class Case(NamedTuple):
    """A target, who runs on it beside us, and how much the peers' runs are shortened."""

    target: Callable[[], Target]
    peers: tuple[str, ...]
    shorter: int = 1
    seeds: int = 5


NUTS, DENSE, LOW_RANK = (f"BlackJAX NUTS{m}" for m in ("", ", dense", ", low rank"))
CASES = {
    "regression": Case(
        lambda: GLM(*data(), "logistic", "gaussian"),
        (NUTS, "BlackJAX ChEES", "BlackJAX MCLMC", "NumPyro NUTS", "nutpie"),
    ),
    "n = 50000": Case(much_data, (NUTS, "BlackJAX ChEES", "NumPyro NUTS"), 4, 2),
    "gaussian": Case(
        lambda: rotated(np.geomspace(1, 1e4, 100)),
        (NUTS, DENSE, LOW_RANK, "BlackJAX MCLMC", "nutpie", "nutpie, low rank"),
        4,
    ),
    "outliers": Case(
        lambda: outliers(100, 10, 1e4),
        (NUTS, DENSE, LOW_RANK, "BlackJAX MCLMC", "nutpie", "nutpie, low rank"),
        4,
    ),
    "d = 1000": Case(lambda: outliers(1000, 8, 1e6), (LOW_RANK, "nutpie, low rank"), 10, 2),
    "schools, centred": Case(EightSchools, (NUTS, "NumPyro NUTS"), 1, 3),
    "schools, non-centred": Case(EightSchoolsNonCentered, (NUTS, "NumPyro NUTS"), 1, 3),
    "sparse regression": Case(
        lambda: GLM(*data(), "logistic", "horseshoe"), (NUTS, "nutpie"), 1, 2
    ),
    "random effects": Case(random_effects, (NUTS, "nutpie"), 2, 3),
    "brownian": Case(BrownianMotion, (NUTS, "NumPyro NUTS"), 1, 3),
}


def programs(case: Case, target: Target, small: bool) -> dict[str, Callable]:
    """The programs that take turns, each at the number of chains that suits it."""
    k = 20 if small else case.shorter

    def runs_nuts(metric):
        return peer(
            partial(nuts, num_chains=4, num_warmup=1000 // k, num_samples=1500 // k, metric=metric),
            target,
        )

    many = {"num_chains": 64, "num_warmup": 1000 // k, "num_samples": 500 // k}
    long = {"num_chains": 4, "num_tuning": 20_000 // k, "num_samples": 40_000 // k}
    makers = {
        NUTS: lambda: runs_nuts("diagonal"),
        DENSE: lambda: runs_nuts("dense"),
        LOW_RANK: lambda: runs_nuts("low rank"),
        "BlackJAX ChEES": lambda: peer(partial(chees, **many), target),
        "BlackJAX MCLMC": lambda: peer(partial(mclmc, **long), target),
        "NumPyro NUTS": lambda: numpyro_nuts(4, 1000 // k, 1500 // k),
        "nutpie": lambda: nutpie(4, 1000 // k, 1500 // k, low_rank=False),
        "nutpie, low rank": lambda: nutpie(4, 1000 // k, 1500 // k, low_rank=True),
    }
    has_nutpie = importlib.util.find_spec("nutpie") is not None
    peers = [p for p in case.peers if has_nutpie or not p.startswith("nutpie")]
    return {"driftbridge": ours} | {name: makers[name]() for name in peers}


def compare(name: str, case: Case, small: bool) -> list[dict]:
    """Rows of one target, ours first; medians over seeds."""
    target, seeds = case.target(), 1 if small else case.seeds
    sides, found, compiled = programs(case, target, small), {}, {}
    for side, program in sides.items():
        begin = time.perf_counter()
        first = program(target, 1000)
        compiled[side] = time.perf_counter() - begin - first.seconds
        again = program(target, 1000)
        compiled[side] += first.seconds - again.seconds
        found[side] = []
    for seed in range(seeds):
        order = list(sides)
        for side in order[seed % len(order) :] + order[: seed % len(order)]:
            found[side].append(judged(sides[side](target, seed)))
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
                "warmup": [r["warmup"] for r in runs],
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
    **{
        ("gaussian", side): ("gradients", 1, None)
        for side in (DENSE, LOW_RANK, "nutpie", "nutpie, low rank")
    },
}

# Most gradients a chain that our warm-up may take, with any seed.
WARMUP = {"regression": 300}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", nargs="*", choices=list(CASES), help="some targets; all if none")
    chosen = parser.parse_args()
    names = chosen.rows or list(CASES)
    print(machine(), end="\n\n")
    print(
        "| target | side | chains x draws | converged | R-hat | bulk/s | sq/s | bulk/1k grad | "
        "sq/1k grad | compile s |\n" + "| --- " * 10 + "|"
    )
    rows, met = [], True
    for name in names:
        part = compare(name, CASES[name], chosen.small)
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
        gradients = np.array(mine["warmup"])
        line = (
            f"  warm-up: {np.median(gradients):.0f} gradients a chain in the median over seeds, "
            f"{gradients.min():.0f} to {gradients.max():.0f}"
        )
        if name in WARMUP:
            good = bool(gradients.max() <= WARMUP[name])
            met &= good
            line += f", at most {WARMUP[name]}: {verdict(good)}"
        print(line)
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

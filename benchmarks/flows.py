"""Flows between laws in the plane and between digits, beside one trained with PyTorch.

    python -m benchmarks.flows [--rows NAME] [--seeds N] [--small] [--save] [--strict]

In the plane, 10 000 points a side to train on and 1000 to test, fresh for every seed. Ours is
`Flow()` at its defaults, the peer a plain OT flow matching: the same pairs, as many steps and the
same batch, its usual optimiser. Shown:

- path energy against the population's squared distance, `|E int |v|^2 dt - W2^2| / W2^2` (NPE), on
  20 000 fresh sources and the distance that `benchmarks.population_cost` stored;
- the papers' NPE, against the distance of the 1000 test points, and what a flow of exactly the
  population's energy would score there: the noise of that number;
- W2 from the image of the test sources to the test targets, and its floor, between two fresh sets.

Digits: a flow on top of the affine map beside that map, in the errors of `benchmarks.maps`.
"""

import json
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import driftbridge as db
from benchmarks import map_problems, maps, torch_flow
from benchmarks.plane import PLANE, Plane
from benchmarks.timing import RESULTS, machine, parser_of, record, verdict
from driftbridge.transport import DataWarning, MinibatchOT, wasserstein

TRAIN, TEST, MANY = 10_000, 1000, 20_000
# Steps of the solution on which energies are measured.
STEPS = 100
# Bars: NPE against the population, the papers' NPE, W2.
BARS = {
    "normal to eight Gaussians": (0.01, 0.035, None),
    "moons to eight Gaussians": (0.02, 0.055, None),
    "normal to moons": (None, None, 0.239),
}
DIGITS = ("digits, blurred", "digits 3 to 8")
# What a flow may add to the affine map's error.
FLOW_OVER_AFFINE = 1.2
SEEDS = 5


class Score(NamedTuple):
    """What one flow reached on one seed."""

    population: float
    official: float
    distance: float
    seconds: float


class Noise(NamedTuple):
    """What the numbers of a seed are worth: of an exact energy, and of fresh points."""

    official: float
    distance: float


def population() -> dict[str, float]:
    """The stored squared distances by problem."""
    path = RESULTS / "population_cost.json"
    if not path.is_file():
        return {}
    return {row["problem"]: row["cost"] for row in json.loads(path.read_text())["rows"]}


def energy(field: Callable[[float, np.ndarray], Any], x: np.ndarray) -> tuple[np.ndarray, float]:
    """Where a field carries points, and the mean of `int |v|^2 dt`, by Heun's method."""
    total, h = 0.0, 1 / STEPS
    for k in range(STEPS):
        first = np.asarray(field(k * h, x))
        second = np.asarray(field((k + 1) * h, x + h * first))
        total += h * float(np.mean(np.sum(first**2, axis=1) + np.sum(second**2, axis=1))) / 2
        x = x + h * (first + second) / 2
    return x, total


def scored(field, seconds: float, many, test, exact: float, whole: float) -> Score:
    image, official = energy(field, test[0])
    _, spent = energy(field, many)
    return Score(
        abs(spent - whole) / whole,
        abs(official - exact) / exact,
        float(wasserstein(image, test[1])),
        seconds,
    )


def on_plane(problem: Plane, whole: float, seed: int) -> tuple[dict[str, Score], Noise]:
    """Both flows on one seed."""
    rng = np.random.default_rng([seed, 7])
    x, y = problem.source(rng, TRAIN), problem.target(rng, TRAIN)
    test = problem.source(rng, TEST), problem.target(rng, TEST)
    many, fresh = problem.source(rng, MANY), problem.target(rng, TEST)
    exact = float(wasserstein(*test)) ** 2
    start = time.perf_counter()
    ours = db.fit_map(x, y, "flow", seed)
    found = {
        "driftbridge": scored(ours.velocity, time.perf_counter() - start, many, test, exact, whole)
    }
    try:
        start = time.perf_counter()
        pool = MinibatchOT(x, y, key=seed)
        pairs = x[np.asarray(pool.pool_rows)], y[np.asarray(pool.pool_columns)]
        model, run = torch_flow.steps(pairs, 256, seed)
        run(dict(ours.fit.numbers)["num_steps"])
        seconds = time.perf_counter() - start
        field = torch_flow.velocity(model)
        found["torch"] = scored(field, seconds, many, test, exact, whole)
    except ImportError:
        print("torch is not installed: make bench, or pip install 'driftbridge[bench]'")
    noise = Noise(abs(whole - exact) / exact, float(wasserstein(fresh, test[1])))
    return found, noise


def plane(name: str, seeds: int) -> tuple[dict, bool]:
    """The row of a problem in the plane, and whether its bars are met."""
    whole = population().get(name)
    if whole is None:
        raise SystemExit("no stored distances: python -m benchmarks.population_cost --save")
    runs = [on_plane(PLANE[name], whole, seed) for seed in range(seeds)]
    noise = np.mean([run[1] for run in runs], axis=0)
    print(f"{name}: population W2^2 {whole:.4f}; noise of the papers' NPE {noise[0]:.4f}, "
          f"floor of W2 {noise[1]:.3f}")  # fmt: skip
    row: dict[str, Any] = {"row": name, "population": whole, "noise": noise.tolist()}
    means, met = {}, True
    for method in runs[0][0]:
        values = np.array([run[0][method] for run in runs])
        means[method] = values
        error = values.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.full(4, np.nan)
        row[method] = {"mean": values.mean(axis=0).tolist(), "error": error.tolist()}
        shown = [f"{m:.4f} ± {e:.4f}" for m, e in zip(values.mean(axis=0), error, strict=True)]
        print(f"  {method:12s} NPE {shown[0]}, papers' NPE {shown[1]}, W2 {shown[2]}, "
              f"{np.median(values[:, 3]):.1f} s")  # fmt: skip
    for k, (label, bar) in enumerate(zip(("NPE", "papers' NPE", "W2"), BARS[name], strict=True)):
        mean = means["driftbridge"][:, k].mean()
        if bar is not None:
            met &= bool(mean <= bar)
            row[f"{label} at most {bar}"] = bool(mean <= bar)
            print(f"  {label} at most {bar}: {verdict(bool(mean <= bar))}")
        if "torch" in means and seeds > 1:
            paired = means["driftbridge"][:, k] - means["torch"][:, k]
            error = paired.std(ddof=1) / np.sqrt(seeds)
            fine = bool(paired.mean() <= error)
            met &= fine
            row[f"{label} less torch's"] = [float(paired.mean()), float(error), fine]
            print(f"  {label} less torch's {paired.mean():+.4f} ± {error:.4f}: {verdict(fine)}")
    print(flush=True)
    return row, met


def digits(name: str, seeds: int) -> tuple[dict, bool]:
    """The row of a problem of `benchmarks.maps`, flow beside static maps."""
    methods = ("affine", "auto", "corrected", "flow")
    errors: dict[str, list[float]] = {method: [] for method in methods}
    steps = []
    for seed in range(seeds):
        problem = map_problems.PROBLEMS[name](seed)
        x, y, test = (d.astype(np.float32) for d in (problem.x, problem.y, problem.x_test))
        for method in methods:
            fitted = db.fit_map(x, y, method, seed)
            errors[method].append(maps.error(problem, np.asarray(fitted(test))))
            if method == "flow":
                steps.append(dict(fitted.fit.numbers)["best_step"])
    print(f"{name}: floor {np.mean([maps.floor(map_problems.PROBLEMS[name](0))]):.4g}")
    for method, values in errors.items():
        error = np.std(values, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        print(f"  {method:12s} {np.mean(values):.4g} ± {error:.2g}")
    ratio = float(np.mean(errors["flow"]) / np.mean(errors["affine"]))
    met = ratio <= FLOW_OVER_AFFINE
    print(f"  flow over affine {ratio:.3f}, at most {FLOW_OVER_AFFINE}: {verdict(met)}; "
          f"best steps {steps}\n", flush=True)  # fmt: skip
    return {"row": name, **{m: float(np.mean(v)) for m, v in errors.items()}}, met


def main() -> int:
    parser = parser_of(__doc__)
    names = [*PLANE, *DIGITS]
    parser.add_argument("--rows", action="append", choices=names, help="a row; repeat for more")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    seeds = 1 if chosen.small else chosen.seeds
    rows, met = [], True
    print(f"{machine()}\n\nMeans over {seeds} seeds, standard errors, median seconds.\n")
    for name in chosen.rows or (names[:1] if chosen.small else names):
        row, fine = plane(name, seeds) if name in PLANE else digits(name, seeds)
        rows.append(row)
        met &= fine
    return record("flows", rows, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

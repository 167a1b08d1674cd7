"""Processes through snapshots of cells, at a time that was left out.

    python -m benchmarks.snapshots --data FILE [--seeds N] [--small] [--save] [--strict]

FILE is an `.npz` with `points` `(n, dim)` and `group` `(n,)`: embryoid body cells in five
collections (Moon et al. 2019), five principal components, 300 cells a collection; it is not ours to
hand on. Collections 1 and 3 are left out in turn. Shown is the W2 distance (exact assignment of 300
to 300) to the cells left out:

- of what needs no training: the collections before and after, the midpoint of their optimal pairs;
- of the path's marginal, its flow from the collection before, and from the one after;
- of paths with straight means: flow matching, in a metric of the data too, and action matching;

and its floor, W2 between random halves of the cells left out, 150 against 150.
"""

import warnings
from pathlib import Path

import numpy as np

import driftbridge as db
from benchmarks.timing import machine, parser_of, record, verdict
from driftbridge.transport import (
    DataWarning,
    Land,
    PathAction,
    PathFlow,
    Training,
    optimal_coupling,
    wasserstein,
)

LEFT_OUT = (1, 3)
# W2 at most: of the default path's flow, and of others in units of the midpoint's.
BARS, OTHERS = {1: 0.88, 3: 1.11}, 1.03
SEEDS = 5


def midpoint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = optimal_coupling(x, y, certificate=False)
    return (x[found.rows] + y[found.columns]) / 2


def floor(points: np.ndarray) -> float:
    """Between random halves, the mean over ten splits."""
    found = []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(points))
        half = len(points) // 2
        found.append(wasserstein(points[order[:half]], points[order[half : 2 * half]]))
    return float(np.mean(found))


def extrapolated(half: float, dim: int) -> float:
    """The floor of twice as many points: W2 of samples falls as `n^{-1/dim}`."""
    return half * 2 ** (-1 / dim)


def learned(groups: list[np.ndarray], out: int, seed: int, small: bool) -> dict[str, float]:
    """Distances of what is fitted to the other collections."""
    data = {float(k): points for k, points in enumerate(groups) if k != out}
    training = Training(num_steps=200) if small else Training(num_steps=6000)
    found, truth = {}, groups[out]
    methods = {
        "spline": PathFlow(training=training),
        "straight": PathFlow(means="polygon", training=training),
        "straight, metric": PathFlow(means="polygon", metric=Land(), training=training),
        "straight, action": PathAction(means="polygon", training=training),
    }
    for label, method in methods.items():
        path = db.fit_path(data, method, seed)
        found[f"{label}, marginal"] = np.asarray(path.marginal(seed, float(out), len(truth)))
        for name, start in (("before", out - 1), ("after", out + 1)):
            found[f"{label}, flow from {name}"] = path(groups[start], float(start), float(out))
    return {name: float(wasserstein(points, truth)) for name, points in found.items()}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the file of cells")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of pairs and training")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    with np.load(chosen.data) as stored:
        points, group = stored["points"], stored["group"]
    groups = [points[group == k] for k in range(group.max() + 1)]
    seeds = 1 if chosen.small else chosen.seeds
    print(f"{machine()}\n\nW2 to the cells left out, means over {seeds} seeds\n")
    rows, met = [], True
    for out in LEFT_OUT:
        truth, before, after = groups[out], groups[out - 1], groups[out + 1]
        known = {
            "before": float(wasserstein(before, truth)),
            "after": float(wasserstein(after, truth)),
            "midpoint": float(wasserstein(midpoint(before, after), truth)),
        }
        runs = [learned(groups, out, seed, chosen.small) for seed in range(seeds)]
        half = floor(truth)
        whole = extrapolated(half, truth.shape[1])
        print(f"collection {out}: floor {half:.3f} between halves, {whole:.3f} at their double")
        for name, value in known.items():
            print(f"  {name:28s} {value:.3f}")
        row = {"left out": out, "floor": half, "floor of all": whole, **known}
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            error = values.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
            row[name], row[f"{name}, error"] = float(values.mean()), float(error)
            print(f"  {name:28s} {values.mean():.3f} ± {error:.3f}")
        fine = row["spline, flow from before"] <= BARS[out]
        bound = OTHERS * known["midpoint"]
        others = [name for name in row if name.startswith("straight") and name.endswith("before")]
        near = all(row[name] <= bound for name in others)
        met &= fine and near
        row["default path"], row["others"] = bool(fine), bool(near)
        print(f"  default path at most {BARS[out]}: {verdict(fine)}; flows with straight means at "
              f"most {OTHERS} times the midpoint, {bound:.3f}: {verdict(near)}")  # fmt: skip
        best = min(known, key=known.__getitem__)
        if known[best] < row["spline, flow from before"]:
            print(f"  closer than any of these: the collection {best}, {known[best]:.3f}")
        print(flush=True)
        rows.append(row)
    return record("snapshots", rows, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

"""Rectified flows between Gaussians whose covariances do not commute: exact moments and training.

    python -m benchmarks.rectified [--seeds N] [--small] [--save] [--strict]

`N(0, diag(1, .2))` to `N(0, [[1, .9], [.9, 1.5]])` from independent pairs, which cost 3.7. The
least cost `W2²` is .8413520505. With exact moments a plain rectified flow stops at .9938839 from
its first round on, and the rounds of c-rectified flow tend to the least cost.

Then both are trained on 10 000 points of each, over seeds: on top of the affine map, which here is
the answer, and from the means alone (`translation`). Shown are the mean of `|T(x) - x|²` over
20 000 new points, the standard error of that mean, the share of it that exchanges of images would
save (`optimality_gap`, of new points), and the distance of the image's mean and covariance to the
target's (Bures); beside them the least cost between the two samples' Gaussians.
"""

import time

import numpy as np

import driftbridge as db
from benchmarks.timing import machine, parser_of, record, verdict
from driftbridge.runtime.training import Training
from driftbridge.transport import gaussian_wasserstein
from driftbridge.transport.c_rectified import CRectified
from driftbridge.transport.couplings import Independent
from driftbridge.transport.gaussian_rectified import c_rectified_gaussians, rectified_gaussians
from driftbridge.transport.mccann import mccann
from driftbridge.transport.optimality import optimality_gap
from driftbridge.transport.rectified import Rectified, translation

SOURCE, TARGET = np.diag([1.0, 0.2]), np.array([[1.0, 0.9], [0.9, 1.5]])
LEAST = 0.8413520505
POINTS, NEW, SEEDS, ROUNDS, STEPS = 10_000, 20_000, 3, 3, 3000


def independent(x, y, key=0, source_weights=None, target_weights=None):
    return Independent(x, y, source_weights, target_weights)


def points(covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return (z @ np.linalg.cholesky(covariance).T).astype(np.float32)


def by_exact_moments() -> tuple[list[dict], bool]:
    """Costs of rounds with exact moments, and whether they are the known ones."""
    plain = [r.cost for r in rectified_gaussians(SOURCE, TARGET, 6)]
    ours = [r.cost for r in c_rectified_gaussians(SOURCE, TARGET, 6)]
    print("Exact moments, cost of each round")
    for name, costs in (("rectified", plain), ("c_rectified", ours)):
        print(f"  {name:12s} " + " ".join(f"{cost:.8f}" for cost in costs))
    bars = {
        "plain stops at .993884": np.allclose(plain, 0.9938839, atol=1e-6),
        "c-rectified within 1e-6 of .841352 by round 4": abs(ours[3] - LEAST) < 1e-6,
    }
    for name, met in bars.items():
        print(f"  {name}: {verdict(met)}")
    return [{"plain": plain, "c_rectified": ours}], all(bars.values())


def trained(seeds: int, num_points: int, num_steps: int) -> tuple[list[dict], bool]:
    """Rows of the table of trained flows, and whether the bars are met."""
    rows, met = [], True
    print(f"\nTrained, {num_points} points, {ROUNDS} rounds of {num_steps} steps")
    print("  method       base         seed   cost    error   least    gap    law    s")
    for method in (Rectified, CRectified):
        for base in (mccann, translation):
            for seed in range(seeds):
                x, y = (points(c, num_points, 2 * seed + i) for i, c in enumerate((SOURCE, TARGET)))
                start = time.perf_counter()
                fitted = db.fit_map(x, y, method(
                    coupling=independent, rounds=ROUNDS, base=base,
                    training=Training(num_steps=num_steps),
                ), seed)  # fmt: skip
                seconds = time.perf_counter() - start
                new = points(SOURCE, NEW, 1000 + seed)
                image, cost = fitted(new), fitted.cost(new)
                row = {
                    "method": method.name,
                    "base": base.__name__,
                    "seed": seed,
                    "cost": cost.mean,
                    "error": cost.error,
                    "least": gaussian_wasserstein(x, y) ** 2,
                    "gap": optimality_gap(new, image),
                    "law": gaussian_wasserstein(image, points(TARGET, NEW, 2000 + seed)),
                    "seconds": seconds,
                }
                rows.append(row)
                numbers = [row[k] for k in ("cost", "error", "least", "gap", "law", "seconds")]
                print(
                    f"  {row['method']:12s} {row['base']:12s} {seed:4d} "
                    + " ".join(f"{number:7.4f}" for number in numbers),
                    flush=True,
                )
    for base in ("mccann", "translation"):
        ours = [r for r in rows if r["method"] == "c_rectified" and r["base"] == base]
        theirs = [r for r in rows if r["method"] == "rectified" and r["base"] == base]
        bars = {
            "c-rectified below .90": all(r["cost"] < 0.90 for r in ours),
            "within 5 % of the samples' least cost": all(
                abs(r["cost"] / r["least"] - 1) < 0.05 for r in ours
            ),
            "plain above .95": all(r["cost"] > 0.95 for r in theirs),
        }
        for name, is_met in bars.items():
            print(f"  {base}: {name}: {verdict(is_met)}")
        met &= all(bars.values())
    return rows, met


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    chosen = parser.parse_args()
    print(machine(), "\n")
    first, met = by_exact_moments()
    sizes = (1, 1000, 300) if chosen.small else (chosen.seeds, POINTS, STEPS)
    second, also = trained(*sizes)
    return record("rectified", first + second, met and also, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

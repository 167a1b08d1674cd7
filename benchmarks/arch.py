"""Two toys of the literature: points that live on an arch, and couplings to a checkerboard.

    python -m benchmarks.arch [--small] [--save] [--strict]

**Arch** (Kapusniak et al., 2024, arXiv 2405.14780). Source and target are half normals of scale
`1 / 2 pi` from both ends of `[0, 1]`, 5000 points each; the law half-way has the means of pairs of
them. All are bent on a half circle of radius 1 with normal noise of .1 in the radius. A flow from
source to target is fitted without the law half-way; the number is the exact W1 between the source
carried to `t = 1/2`, by Euler's method in 50 steps, and the 5000 points half-way. This much is as
in the authors' code, LAND with bandwidth .125 and floor .001 too; so are paths that bend by a
parabola. Ours: three hidden layers of 64, batches of 256, training of the paths until their energy
no longer falls, the metric in units in which it does not depend on the number of points, and no
noise on the paths but in the rows that say so, where it is as theirs. Theirs trains paths at a rate
of 1e-4 with a patience of five epochs, pairs batches of 128, and their number is the mean of an
unknown number of seeds (their files have one).
Their pairs half-way are not optimal ones, though their code calls an optimal sampler: it is given
one point of 5000 dimensions. We do as it does.

**Checkerboard** (Pooladian et al., 2023, arXiv 2304.14772). The loss of flow matching at
convergence, `E|v(t, x_t) - (x1 - x0)|^2` summed over coordinates, on fresh pairs of each coupling;
what an exact velocity leaves is the variance of paths that cross. Source `N(0, I)`, target uniform
on eight squares of side 2 in `[-4, 4]^2`, 20 000 points of each, batches of 256. The paper's
scale of the board, batch and source are not known to us, so its losses are to be compared as shares
of that of independent pairs.
"""

import time
from typing import Any

import numpy as np

import driftbridge as db
from benchmarks.timing import machine, options, record
from driftbridge.runtime.training import Training
from driftbridge.transport import Independent, MinibatchOT, wasserstein
from driftbridge.transport.data_metric import Land, RadialBasis
from driftbridge.transport.flow import Flow
from driftbridge.transport.integration import Euler
from driftbridge.transport.metric_flow import MetricFlow

PUBLISHED_ARCH = {"I-CFM": 0.612, "OT-CFM": 0.608, "I-MFM": 0.121, "OT-MFM": 0.081}
PUBLISHED_BOARD = {
    "CondOT": 10.72, "Stable": 1.60, "Heuristic": 1.56, "BatchEOT": 0.57, "BatchOT": 0.24,
}  # fmt: skip
# A twentieth of the mean cost |x - y|^2 / 2 on the checkerboard.
EPSILON = 0.3


def independent(x: Any, y: Any, key: Any, source_weights: Any = None, target_weights: Any = None):
    """Pairs at random."""
    return Independent(x, y, source_weights, target_weights)


def entropic(x: Any, y: Any, key: Any, source_weights: Any = None, target_weights: Any = None):
    """Pairs of the entropic plan of batches of 256."""
    return MinibatchOT(x, y, 256, EPSILON, pool=200, key=key)


def arch(n: int, random: np.random.Generator) -> list[np.ndarray]:
    """Source, half-way and target."""
    start, end = np.abs(random.normal(0, 1 / (2 * np.pi), size=(2, n)))
    out = []
    for place in (start, (start + 1 - end) / 2, 1 - end):
        angle, radius = np.pi * (1 - place), 1 + random.normal(0, 0.1, size=n)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        out.append(points.astype(np.float32))
    return out


def checkerboard(n: int, random: np.random.Generator) -> np.ndarray:
    """Points on the eight squares whose numbers have an even sum."""
    first = random.integers(0, 4, size=n)
    second = 2 * random.integers(0, 2, size=n) + first % 2
    corner = 2 * np.stack([first, second], axis=1) - 4
    return (corner + 2 * random.random((n, 2))).astype(np.float32)


def arch_rows(small: bool) -> list[dict]:
    n, seeds = (400, 1) if small else (5000, 2)
    training = Training(num_steps=100 if small else 6000)
    paths = Training(num_steps=100 if small else 3000, learning_rate=1e-3)
    bent: dict[str, Any] = {"training": training, "path_training": paths}
    methods = {
        "I-CFM": Flow(independent, training=training),
        "OT-CFM": Flow(training=training),
        "I-MFM": MetricFlow(Land(0.125), independent, **bent),
        "OT-MFM": MetricFlow(Land(0.125), **bent),
        "I-MFM, noise .1": MetricFlow(Land(0.125), independent, noise=0.1, **bent),
        "OT-MFM, noise .1": MetricFlow(Land(0.125), noise=0.1, **bent),
        "OT-MFM, RBF": MetricFlow(RadialBasis(), **bent),
    }
    if small:
        methods = {name: methods[name] for name in ("OT-CFM", "OT-MFM")}
    found: dict[str, list] = {name: [] for name in ("floor", *methods)}
    seconds = dict.fromkeys(found, 0.0)
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        x, middle, y = arch(n, random)
        found["floor"].append(wasserstein(arch(n, random)[1], middle, p=1))
        for name, method in methods.items():
            start = time.perf_counter()
            fitted: Any = db.fit_map(x, y, method, key=seed)
            seconds[name] = time.perf_counter() - start
            path = type(fitted)(fitted.fit, fitted.field, fitted.like, 100, Euler())
            half = np.asarray(path.trajectory(x, [0.5]))[0]
            found[name].append(wasserstein(half, middle, p=1))
    return [
        {
            "toy": "arch",
            "row": name,
            "ours": float(np.mean(values)),
            "spread": float(np.std(values)),
            "published": PUBLISHED_ARCH.get(name),
            "seconds": seconds[name],
        }
        for name, values in found.items()
    ]


def board_rows(small: bool) -> list[dict]:
    n = 1000 if small else 20_000
    training = Training(num_steps=100 if small else 12_000, patience=0)
    random = np.random.default_rng(0)
    (x, y), (new_x, new_y) = (
        (random.normal(size=(n, 2)).astype(np.float32), checkerboard(n, random)) for _ in range(2)
    )
    couplings = {"CondOT": independent, "BatchEOT": entropic, "BatchOT": MinibatchOT}
    rows = []
    for name, coupling in list(couplings.items())[: 1 if small else None]:
        start = time.perf_counter()
        fitted: Any = db.fit_map(x, y, Flow(coupling, training=training))
        seconds = time.perf_counter() - start
        first, second = (np.asarray(side) for side in coupling(new_x, new_y, key=1).pairs(2, n))
        t = random.random(n).astype(np.float32)
        place = first + t[:, None] * (second - first)
        error = np.asarray(fitted.velocity(t, place)) - (second - first)
        loss = float(np.mean(np.sum(error**2, axis=1)))
        rows.append(
            {
                "toy": "checkerboard",
                "row": name,
                "ours": loss,
                "share": loss / rows[0]["ours"] if rows else 1.0,
                "published": PUBLISHED_BOARD[name],
                "published_share": PUBLISHED_BOARD[name] / PUBLISHED_BOARD["CondOT"],
                "seconds": seconds,
            }
        )
    return rows


def main() -> int:
    chosen = options(__doc__)
    print(machine(), "\n\n| arch | W1 at t = 1/2 | published | s of a fit |\n|---|---|---|---|")
    first = arch_rows(chosen.small)
    for row in first:
        published = "" if row["published"] is None else row["published"]
        print(
            f"| {row['row']} | {row['ours']:.3f} ± {row['spread']:.3f} | {published} | "
            f"{row['seconds']:.1f} |"
        )
    print("\n| checkerboard | loss | of CondOT | published | of CondOT | s |")
    print("|---|---|---|---|---|---|")
    second = board_rows(chosen.small)
    for row in second:
        print(
            f"| {row['row']} | {row['ours']:.3f} | {row['share']:.3f} | {row['published']} | "
            f"{row['published_share']:.3f} | {row['seconds']:.1f} |"
        )
    return record("arch", first + second, True, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

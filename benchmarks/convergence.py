"""Distance of what interpolants generate to the target, against steps and against training size.

    python -m benchmarks.convergence [--small] [--save] [--strict]

*Steps*: fields of mixtures on the line are known, so all that is wrong is the scheme. A flow on the
line is monotone: its images of the source's quantiles are the quantiles of the law it makes. The
law of a noisy scheme is carried on a grid. Neither has a draw in it. Volatilities are ours, twice
those of the papers.

`overlapping` has modes that overlap. `separate` is the pair of the literature, whose modes do not:
mass `m` on the wrong side of a gap of width `g` is `m g` of W1, but `sqrt(m) g` of W2, which there
falls with half of the order until less mass is wrong than the gap itself has. So orders are judged
by W1, by W2 where modes overlap, and W2 of the others is shown.

*Training size*: a learned interpolant's flow and its draws, beside the distance of as many points
of the target as it was trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import driftbridge as db
from benchmarks.line_laws import Mixture, distances, generated
from benchmarks.timing import machine, options, record, verdict
from driftbridge.runtime.training import Training
from driftbridge.transport.gammas import Brownian, Gamma, NoNoise
from driftbridge.transport.gaussian_fields import MixtureField
from driftbridge.transport.integration import Euler, Heun, RungeKutta4, integrate
from driftbridge.transport.interpolant import Interpolant
from driftbridge.transport.one_dimensional import wasserstein_1d
from driftbridge.transport.schedules import Linear
from driftbridge.transport.stochastic_integration import EulerMaruyama, StochasticHeun

PROBLEMS = {
    "overlapping": (
        Mixture((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5)),
        Mixture((1 / 3, 1 / 3, 1 / 3), (-2.0, 0.0, 2.0), (1.0, 0.66, 1.0)),
    ),
    "separate": (
        Mixture((0.5, 0.5), (-3.0, 3.0), (0.25, 0.25)),
        Mixture((1 / 3, 1 / 3, 1 / 3), (-6.0, 0.0, 6.0), (0.5, 0.33, 0.5)),
    ),
}
GAMMAS: dict[str, Gamma] = {"0": NoNoise(), "sqrt(t (1 - t))": Brownian()}
FLOWS = {"Euler": Euler(), "Heun": Heun(), "RungeKutta4": RungeKutta4()}
DIFFUSIONS = {"EulerMaruyama": EulerMaruyama(), "StochasticHeun": StochasticHeun()}
VOLATILITIES = (1.0, 10.0)
# Points of a flow's law.
QUANTILES = 4000
# Errors below are not fitted: rounding of a flow, and of the law on a grid.
FLOOR_OF_FLOWS, FLOOR_OF_DIFFUSIONS = 1e-11, 1e-4
# How far below the order a slope may be, and how many of the smallest errors it is fitted to.
SHORT, FITTED = 0.15, 4
TESTED = 20_000


def flow_errors(problem: str, gamma: Gamma, scheme, counts) -> list[tuple[float, float]]:
    """W1 and W2 for each number of steps."""
    source, target = PROBLEMS[problem]
    field = MixtureField(*source.parts, *target.parts, Linear(), gamma)
    x, y = jnp.asarray(source.quantiles(QUANTILES))[:, None], target.quantiles(QUANTILES)
    found = []
    for count in counts:
        solve = jax.jit(lambda x, n=count: integrate(field.velocity, x, 0, 1, n, scheme))
        off = np.sort(np.asarray(solve(x))[:, 0]) - y
        found.append((float(np.mean(np.abs(off))), float(np.sqrt(np.mean(off**2)))))
    return found


def diffusion_errors(problem: str, epsilon: float, scheme, counts) -> list[tuple[float, float]]:
    """W1 and W2 for each number of steps."""
    source, target = PROBLEMS[problem]
    field = MixtureField(*source.parts, *target.parts, Linear(), Brownian())

    def drift(epsilon, t, x):
        return field.velocity(t, x) + epsilon / 2 * field.score(t, x)

    laws = (generated(source, drift, epsilon, scheme, count) for count in counts)
    return [distances(law, target) for law in laws]


def slope(counts, errors, floor: float) -> float:
    """The power of the step with which the last errors above the floor fall, NaN of one."""
    counts, errors = np.asarray(counts), np.asarray(errors)
    used = np.flatnonzero(errors > floor)[-FITTED:]
    if len(used) < 2:
        return float("nan")
    return -float(np.polyfit(np.log(counts[used]), np.log(errors[used]), 1)[0])


def judged(label: str, problem: str, order: int, counts, errors, floor: float) -> dict:
    """A row: slopes of both distances, and whether they are those of the scheme."""
    first, second = zip(*errors, strict=True)
    slopes = [slope(counts, e, floor) for e in (first, second)]
    bars = slopes if problem == "overlapping" else slopes[:1]
    return {
        "problem": problem, "scheme": label, "order": order, "steps": list(counts),
        "w1": list(first), "w2": list(second), "slope_w1": slopes[0], "slope_w2": slopes[1],
        "met": all(found >= order - SHORT for found in bars),
    }  # fmt: skip


def against_steps(small: bool) -> list[dict]:
    """The rows of both tables of steps, printed as they come."""
    print("\n| modes | scheme | order | steps | W1 | W2 | slope of W1 | of W2 | |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []

    def add(row):
        ends = [f"{row[w][0]:.2g} to {row[w][-1]:.2g}" for w in ("w1", "w2")]
        print(
            f"| {row['problem']} | {row['scheme']} | {row['order']} | {row['steps'][0]} to "
            f"{row['steps'][-1]} | {ends[0]} | {ends[1]} | {row['slope_w1']:.2f} | "
            f"{row['slope_w2']:.2f} | {verdict(row['met'])} |",
            flush=True,
        )
        rows.append(row)

    doubled = [20, 40, 80] if small else [20, 40, 80, 160, 320, 640]
    noisy = [10, 20, 40] if small else [10, 20, 40, 80, 160]
    for problem in ("overlapping",) if small else PROBLEMS:
        for gamma, form in list(GAMMAS.items())[: 1 if small else None]:
            for name, scheme in FLOWS.items():
                errors = flow_errors(problem, form, scheme, doubled)
                label = f"{name}, gamma {gamma}"
                add(judged(label, problem, scheme.order, doubled, errors, FLOOR_OF_FLOWS))
        for epsilon in VOLATILITIES[:1] if small else VOLATILITIES:
            for name, scheme in DIFFUSIONS.items():
                errors = diffusion_errors(problem, epsilon, scheme, noisy)
                label = f"{name}, epsilon {epsilon:g}"
                add(judged(label, problem, scheme.weak_order, noisy, errors, FLOOR_OF_DIFFUSIONS))
    return rows


def against_size(small: bool) -> list[dict]:
    """Mean distances over seeds for each number of training points."""
    source, target = PROBLEMS["overlapping"]
    sizes, seeds = ((500,), 1) if small else ((500, 2000, 8000, 32_000), 3)
    method = Interpolant(training=Training(num_steps=200 if small else 4000))
    x, y = source.quantiles(QUANTILES)[:, None].astype(np.float32), target.quantiles(QUANTILES)
    print("\n| points | W1 of the flow | of draws, epsilon 1 | of the points |\n|---|---|---|---|")
    rows = []
    for n in sizes:
        found = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            pair = (law.draw(n, random).astype(np.float32) for law in (source, target))
            first, second = pair
            fitted = db.fit_map(first, second, method, key=seed)
            start = source.draw(TESTED, random).astype(np.float32)
            draws = dataclasses.replace(fitted, epsilon=1.0).sample(seed, start)[:, 0]
            images = (np.asarray(fitted(x)), draws, second)
            found.append([wasserstein_1d(image, y[:, None], 1) for image in images])
        flow, drawn, points = (float(value) for value in np.mean(found, axis=0))
        print(f"| {n:,} | {flow:.4f} | {drawn:.4f} | {points:.4f} |", flush=True)
        rows.append({"points": n, "flow": flow, "draws": drawn, "sample": points})
    floor = np.mean(
        [
            wasserstein_1d(target.draw(TESTED, np.random.default_rng(100 + i)), y[:, None], 1)
            for i in range(10)
        ]
    )
    print(f"\n{TESTED:,} draws of the target itself are {floor:.4f} away")
    return rows


def main() -> int:
    chosen = options(__doc__)
    print(machine())
    with jax.enable_x64(True):
        rows = against_steps(chosen.small)
    sizes = against_size(chosen.small)
    return record("convergence", rows + sizes, all(row["met"] for row in rows), chosen)


if __name__ == "__main__":
    raise SystemExit(main())

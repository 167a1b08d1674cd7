"""Pictures of flows: trajectories, a triangle of three data sets, and cells over time.

    python examples/flow_gallery.py --out FOLDER [--cells FILE]

FILE is the one of `benchmarks.snapshots`; without it the third picture is left out.
"""

import argparse
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import driftbridge as db
from driftbridge import path_plots
from driftbridge.plot_elements import CHAINS, STYLE

POINTS = 4000


def moons(rng: np.random.Generator, n: int) -> np.ndarray:
    angle, side = np.pi * rng.uniform(size=n), rng.choice([0.0, 1.0], size=n)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    shifted = np.where(side[:, None] > 0, [1.0, 0.5] - upper, upper)
    return 6 * (shifted - [0.5, 0.25] + 0.06 * rng.normal(size=(n, 2)))


def ring(rng: np.random.Generator, n: int) -> np.ndarray:
    angle = rng.integers(8, size=n) * (np.pi / 4)
    return 9 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(size=(n, 2))


def cross(rng: np.random.Generator, n: int) -> np.ndarray:
    along, across = rng.uniform(-7, 7, size=n), 0.5 * rng.normal(size=n)
    points = np.stack([along, across], axis=1)
    return np.where(rng.uniform(size=(n, 1)) < 0.5, points, points[:, ::-1])


def trajectories(out: Path, rng: np.random.Generator) -> None:
    """Moons to eight Gaussians, still and as a film."""
    x, y = moons(rng, POINTS), ring(rng, POINTS)
    fitted = db.fit_map(x, y, "flow")
    places = fitted.trajectory(moons(rng, 1000), np.linspace(0, 1, 41))
    path_plots.trajectories(places, y, "Moons to eight Gaussians").savefig(
        out / "flow.png", dpi=100
    )
    path_plots.animate(places, out / "flow.gif", y)


def triangle(out: Path, rng: np.random.Generator) -> None:
    """Three data sets, and the laws half way along the edges, of one network."""
    laws = (moons, ring, cross)
    field = db.transport.fit_multimarginal([law(rng, POINTS) for law in laws])
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.7]])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.4))
        for k, law in enumerate(laws):
            end = (k + 1) % 3
            drawn = law(rng, 1500)
            half = field.map_between(k, end).trajectory(drawn, [0.0, 0.5])[1]
            middle = (corners[k] + corners[end]) / 2
            for at, points, colour in (
                (corners[k], drawn, CHAINS[k]),
                (middle, np.asarray(half), "grey"),
            ):
                left, low = 0.02 + 0.37 * at[0], 0.02 + 0.4 * at[1]
                axes = figure.add_axes((left, low, 0.24, 0.27))
                axes.scatter(*points.T, s=2, color=colour, linewidths=0)
                axes.set(xlim=(-12, 12), ylim=(-12, 12), aspect="equal")
                axes.axis("off")
    figure.savefig(out / "triangle.png", dpi=100)


def cells(out: Path, file: Path) -> None:
    """Embryoid body cells at their five times and between, in two principal components."""
    with np.load(file) as stored:
        points, group = stored["points"], stored["group"]
    path = db.fit_path({float(k): points[group == k] for k in range(group.max() + 1)})
    shown = {t: path.marginal(0, t, 1000) for t in np.linspace(0, 4, 9)}
    path_plots.snapshots(shown, "Cells over time").savefig(out / "cells.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--cells", type=Path, help="the file of cells")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", db.transport.DataWarning)
    rng = np.random.default_rng(0)
    trajectories(chosen.out, rng)
    triangle(chosen.out, rng)
    if chosen.cells is None:
        print("no --cells: the picture of cells over time is left out")
    else:
        cells(chosen.out, chosen.cells)
    print(f"pictures in {chosen.out}")


if __name__ == "__main__":
    main()

"""Figures of flows and paths: trajectories, laws over time, and an animation.

Each function returns a matplotlib `Figure` that belongs to no window:
`path_plots.trajectories(places).savefig("flow.png")`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from driftbridge.plot_elements import CHAINS, LINE, MUTED, STYLE, heading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Places = Float[np.ndarray, "times n dim"] | Float[Array, "times n dim"]

START, END = CHAINS[1], CHAINS[0]
# Lines that a panel holds before they hide one another, and points of a frame.
LINES, POINTS = 300, 1500


def trajectories(places: Places, target: Any = None, title: str = "Trajectories") -> "Figure":
    """Paths of points from where they start to where they end, in their first two coordinates.

    **Arguments:**

    - `places`: `(times, n, dim)`, as `T.trajectory(x, times)` and `P.trajectory(x, times)` return.
    - `target`: points `(m, dim)` to show behind.
    - `title`: heading.

    **Raises:** `ValueError` for fewer than two coordinates.
    """
    import matplotlib
    from matplotlib.figure import Figure

    places = _plane(places)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.0), layout="constrained")
        axes = figure.add_subplot()
        if target is not None:
            at = np.asarray(target)[:POINTS, :2]
            axes.scatter(*at.T, s=5, color=LINE, linewidths=0)
        for k in range(min(LINES, places.shape[1])):
            axes.plot(*places[:, k].T, color=MUTED, linewidth=0.5, alpha=0.5)
        axes.scatter(*places[0, :LINES].T, s=7, color=START, linewidths=0, zorder=3)
        axes.scatter(*places[-1, :LINES].T, s=7, color=END, linewidths=0, zorder=3)
        axes.set_aspect("equal")
        key = [("start", START), ("end", END)]
        heading(figure, title, key if target is None else [*key, ("target", MUTED)])
    return figure


def snapshots(clouds: Mapping[float, Any], title: str = "Over time") -> "Figure":
    """Points at several times beside each other, in their first two coordinates.

    **Arguments:** `clouds`: points `(n, dim)` by their time; `title`: heading.
    """
    import matplotlib
    from matplotlib.figure import Figure

    sets = {t: np.asarray(points)[:POINTS, :2] for t, points in clouds.items()}
    low, high = (f(np.concatenate(list(sets.values())), axis=0) for f in (np.min, np.max))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(sets) + 0.4, 3.0), layout="constrained")
        for k, (t, points) in enumerate(sets.items()):
            axes = figure.add_subplot(1, len(sets), k + 1)
            axes.scatter(*points.T, s=4, color=CHAINS[k % len(CHAINS)], linewidths=0)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
            axes.set_title(f"t = {t:.3g}", fontsize=9)
        heading(figure, title, [])
    return figure


def animate(
    places: Places, path: str | os.PathLike, target: Any = None, frames_per_second: int = 20
) -> Path:
    """Write points on their way as an animated GIF.

    **Arguments:** `places`, `target`: as of `trajectories`; `path`: the file;
    `frames_per_second`: one frame for each time.

    **Returns:** the path.
    """
    import matplotlib
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    places, path = _plane(places)[:, :POINTS], Path(path)
    behind = np.zeros((0, 2)) if target is None else np.asarray(target)[:POINTS, :2]
    every = np.concatenate([places.reshape(-1, 2), behind])
    low, high = every.min(axis=0), every.max(axis=0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        axes.scatter(*behind.T, s=4, color=LINE, linewidths=0)
        moving = axes.scatter(*places[0].T, s=5, color=END, linewidths=0)

        def show(frame):
            moving.set_offsets(places[frame])
            return (moving,)

        film = FuncAnimation(figure, show, frames=len(places))
        film.save(path, writer=PillowWriter(fps=frames_per_second))
    return path


def _plane(places: Any) -> np.ndarray:
    places = np.asarray(places, np.float64)
    if places.ndim != 3 or places.shape[2] < 2:
        raise ValueError(
            "places must have shape (times, n, dim) with at least two coordinates; got "
            f"{places.shape}."
        )
    return places[:, :, :2]

"""Figures of a map: where points were, where they go, and what the target looks like.

Each function takes a `MapReport` and returns a matplotlib `Figure` that belongs to no window:
`map_plots.clouds(T.report(x, y)).savefig("map.png")`.
"""

from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbridge.plot_elements import (
    CHAINS,
    LINE,
    MUTED,
    STYLE,
    filled_density,
    heading,
    limits,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from driftbridge.transport.report import MapReport

SOURCE, IMAGE, TARGET = CHAINS[1], CHAINS[0], CHAINS[2]
KEY = [("source", SOURCE), ("image", IMAGE), ("target", TARGET)]
# Arrows that a panel holds before they hide one another.
ARROWS = 150
POINTS = 800
COLUMNS = 6
LOSSES = 3


def _styled(figure):
    @wraps(figure)
    def wrapper(report: "MapReport", *args: Any, **kwargs: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return figure(report, *args, **kwargs)

    return wrapper


def _plane(report: "MapReport") -> tuple[list[np.ndarray], tuple[str, str]]:
    """Source, image and target in two coordinates: their own, or the first principal axes.

    The axes are those of source and target together, so that what moves is seen.
    """
    sets = [np.asarray(s, np.float64) for s in (report.source, report.image, report.target)]
    names = report.fit.columns
    if sets[0].shape[1] == 2:
        return sets, (names[0], names[1]) if names else ("coordinate 0", "coordinate 1")
    pooled = np.concatenate([sets[0], sets[2]])
    centre = pooled.mean(axis=0)
    axes = np.linalg.svd(pooled - centre, full_matrices=False)[2][:2].T
    return [(s - centre) @ axes for s in sets], ("first principal axis", "second principal axis")


@_styled
def clouds(report: "MapReport") -> "Figure":
    """Source and target, image and target, and the displacement of single points.

    In more than two dimensions the plane is that of the first principal axes of source and target
    together; in one dimension densities are shown, and the map as a graph.
    """
    if report.source.shape[1] == 1:
        return _graph(report)
    (source, image, target), labels = _plane(report)
    figure = new_figure(3.7)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    panels = (("before", ((target, TARGET), (source, SOURCE))),)
    panels += (("after", ((target, TARGET), (image, IMAGE))),)
    for axis, (name, layers) in zip(axes, panels, strict=False):
        axis.set_title(name)
        for points, colour in layers:
            shown = _spread(points, POINTS)
            axis.scatter(*shown.T, s=8, color=colour, alpha=0.5, lw=0)
    axes[2].set_title("displacement")
    start, end = _spread(source, ARROWS), _spread(image, ARROWS)
    for a, b in zip(start, end, strict=True):
        axes[2].plot(*zip(a, b, strict=True), color=LINE, lw=0.8, zorder=1)
    axes[2].scatter(*start.T, s=7, color=SOURCE, lw=0, zorder=2)
    axes[2].scatter(*end.T, s=7, color=IMAGE, lw=0, zorder=3)
    everything = np.concatenate([source, image, target])
    axes[0].set_xlim(*limits(everything[:, 0]))
    axes[0].set_ylim(*limits(everything[:, 1]))
    axes[0].set_ylabel(labels[1])
    for axis in axes:
        axis.set_xlabel(labels[0])
    heading(figure, "", KEY)
    return figure


def _graph(report: "MapReport") -> "Figure":
    source, image, target = (
        np.ravel(s).astype(np.float64) for s in (report.source, report.image, report.target)
    )
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    for values, (_, colour) in zip((source, image, target), KEY, strict=True):
        filled_density(left, values, colour)
    left.set_title("densities")
    order = np.argsort(source)
    right.plot(source[order], image[order], color=IMAGE, lw=1.4)
    right.plot(source[order], source[order], color=MUTED, lw=0.7, ls=":")
    right.set_title("map")
    right.set_xlabel("source")
    heading(figure, "", KEY)
    return figure


def _spread(points: np.ndarray, most: int) -> np.ndarray:
    return points[np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]


@_styled
def distances(report: "MapReport") -> "Figure":
    """Each distance to the target before and after, on the scale of its floor.

    The band is the floor, what two samples of the target's law show, with two of its standard
    deviations on either side.
    """
    rows = (
        ("W2", report.before, report.after),
        ("energy distance", report.energy_before, report.energy_after),
    )
    figure = new_figure(1.5)
    for axis, (name, before, after) in zip(figure.subplots(1, 2), rows, strict=True):
        low = max(after.floor - 2 * after.floor_spread, 0.0)
        axis.axvspan(low, after.floor + 2 * after.floor_spread, color=TARGET, alpha=0.25, lw=0)
        axis.axvline(after.floor, color=TARGET, lw=1.0)
        axis.plot([after.value, before.value], [0, 0], color=LINE, lw=1.2, zorder=1)
        axis.scatter([before.value], [0], s=45, color=SOURCE, lw=0, zorder=2)
        axis.scatter([after.value], [0], s=45, color=IMAGE, lw=0, zorder=3)
        axis.set_xlim(0, 1.08 * max(before.value, after.value, after.floor))
        axis.set_ylim(-1, 1)
        axis.set_yticks([])
        axis.set_title(name)
    heading(figure, "", [("source", SOURCE), ("image", IMAGE), ("floor", TARGET)])
    return figure


@_styled
def losses(report: "MapReport") -> "Figure":
    """Losses against steps, on the steps and held out, of each training of a learned map."""
    curves = report.fit.curves
    if not curves:
        raise ValueError(f"{report.fit.method} maps are not trained, so there are no losses.")
    shown = curves if len(curves) <= LOSSES else (*curves[: LOSSES - 1], curves[-1])
    figure = new_figure(1.9)
    for axis, (name, curve) in zip(figure.subplots(1, LOSSES).ravel(), shown, strict=False):
        steps = np.asarray(curve.steps)
        axis.plot(steps, curve.losses, color=MUTED, lw=1.0)
        axis.plot(steps, curve.held_out, color=IMAGE, lw=1.4)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("steps")
    for axis in figure.axes[len(shown) :]:
        axis.set_visible(False)
    more = len(curves) - len(shown)
    text = f"{len(shown)} of {len(curves)} trainings" if more else ""
    heading(figure, text, [("training", MUTED), ("held out", IMAGE)])
    return figure


@_styled
def columns(report: "MapReport", count: int = COLUMNS) -> "Figure":
    """Densities of single coordinates: those in which source and target differ most."""
    source, image, target = (
        np.asarray(s, np.float64) for s in (report.source, report.image, report.target)
    )
    names = report.fit.columns or tuple(f"coordinate {i}" for i in range(source.shape[1]))
    probabilities = np.linspace(0.02, 0.98, 49)
    quantiles = [np.quantile(s, probabilities, axis=0) for s in (source, target)]
    scale = np.maximum(target.std(axis=0), 1e-300)
    gap = np.mean(np.abs(quantiles[0] - quantiles[1]), axis=0) / scale
    shown = np.sort(np.argsort(-gap)[:count])
    rows = -(-len(shown) // 3)
    figure = new_figure(1.6 * rows + 0.5)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for axis, i in zip(axes, shown, strict=False):
        for values, (_, colour) in zip((source, image, target), KEY, strict=True):
            filled_density(axis, values[:, i], colour, unit_height=True)
        axis.set_title(names[i])
        axis.set_yticks([])
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    more = len(names) - len(shown)
    text = f"The {len(shown)} of {len(names)} coordinates that differ most" if more else ""
    heading(figure, text, KEY)
    return figure

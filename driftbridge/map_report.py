"""One self-contained HTML page about a map."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbridge import map_plots
from driftbridge.pages import Page, Tile, figure, seconds, write_page

if TYPE_CHECKING:
    from driftbridge.transport.report import MapReport


def write(report: "MapReport", path: str | os.PathLike, title: str | None = None) -> Path:
    """Write the report of a map: verdict, distances with their floors, pictures, facts of the fit.

    **Arguments:**

    - `report`: what `T.report(x, y)` returns.
    - `path`: the HTML file; it needs nothing beside it, and no network.
    - `title`: heading of the page; the method if None.

    **Returns:** the path.
    """
    fit = report.fit
    page = Page(
        title=title or f"A map by the {fit.method} method",
        kicker=f"{fit.num_source:,} to {fit.num_target:,} points in {report.source.shape[1]} "
        f"dimensions, tested on {report.num_source:,} and {report.num_target:,}",
        tone=_tone(report),
        verdict=escape(report.sentence),
        findings=fit.messages,
        tiles=_tiles(report),
        body=_distances(report) + _pictures(report) + _training(report),
        about="How the map was fitted.",
        facts=_facts(report),
    )
    return write_page(page, path)


def _tone(report: "MapReport") -> str:
    if not report.fit.converged or not report.is_better:
        return "bad"
    return "good" if report.is_at_floor else "warn"


def _tiles(report: "MapReport") -> tuple[Tile, ...]:
    low, high = report.optimal
    tiles = [
        Tile("W2 to the target", f"{report.after.value:.3g}", f"{report.before.value:.3g} before"),
        Tile("Floor of W2", f"{report.after.floor:.3g}", "two samples of one law"),
        Tile("Moved", f"{np.sqrt(report.cost.mean):.3g}", "root mean square distance"),
        Tile(
            "Above the least cost",
            f"{100 * max(report.cost_there / max(low, 1e-300) - 1, 0):.2g} %",
            f"certified within {100 * max(high - low, 0.0) / max(high, 1e-300):.1g} %",
        ),
    ]
    if report.round_trip is not None:
        tiles.append(Tile("Round trip", f"{report.round_trip:.1g}", "of the source's spread"))
    if report.motion is not None:
        steps = report.motion.steps
        tiles.append(Tile("Curvature", f"{report.motion.curvature:.2g}", "0 for straight paths"))
        tiles.append(Tile("Rotation", f"{report.motion.rotation:.2g}", "0 for gradient fields"))
        tiles.append(Tile("Steps to 1 %", "many" if steps is None else str(steps), "of the solver"))
    return tuple(tiles)


def _distances(report: "MapReport") -> str:
    rows = (
        ("Wasserstein-2", report.before, report.after),
        ("Energy distance", report.energy_before, report.energy_after),
    )
    head = "".join(f"<th>{h}</th>" for h in ("", "before", "after", "floor", "p after"))
    body = ""
    for name, before, after in rows:
        p = "–" if np.isnan(after.p_value) else f"{after.p_value:.2g}"
        cells = (f"{before.value:.4g}", f"{after.value:.4g}", f"{after.floor:.4g}", p)
        body += f"<tr><td>{name}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
    text = (
        "The floor is what two samples of the target's own law show at the same sizes: no map can "
        "be seen to do better. p is the chance that samples of one law differ as much as image and "
        "target do."
    )
    return (
        f"<h2>Distances to the target</h2><p>{text}</p>"
        + figure(map_plots.distances(report), "distances")
        + f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _pictures(report: "MapReport") -> str:
    parts = figure(map_plots.clouds(report), "clouds", "Before, after, and where single points go.")
    if report.source.shape[1] > 1:
        parts += figure(
            map_plots.columns(report), "columns", "Each coordinate by itself: image on target."
        )
    return f"<h2>Points</h2><p>Test points, at most 2000 of each.</p>{parts}"


def _training(report: "MapReport") -> str:
    if not report.fit.curves:
        return ""
    held_out = any(np.isfinite(curve.held_out).any() for _, curve in report.fit.curves)
    text = f"The loss of the steps{', and that of points held out' * held_out}."
    return f"<h2>Training</h2><p>{text}</p>{figure(map_plots.losses(report), 'losses')}"


def _facts(report: "MapReport") -> tuple[Mapping[str, Any], ...]:
    fit, low, high = report.fit, *report.optimal
    method: dict[str, Any] = {
        "Method": fit.method,
        "Why": fit.reason or None,
        "Converged": "yes" if fit.converged else "no",
        "Fitting": seconds(fit.seconds),
    }
    known = ((name, value) for name, value in fit.numbers if value == value)  # no NaN
    method |= {name.replace("_", " "): _number(value) for name, value in known}
    cost = {
        "Mean squared distance moved": f"{report.cost.mean:.5g} ± {report.cost.error:.2g}",
        "Of the points compared": f"{report.cost_there:.5g}",
        "Least for their image": f"between {low:.5g} and {high:.5g}",
    }
    return {k: v for k, v in method.items() if v is not None}, cost


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"

"""One self-contained HTML page about some draws."""

import os
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbridge import plots
from driftbridge.pages import Page, Tile, figure, seconds, write_page
from driftbridge.samplers.diagnostics import COLUMNS, ESS_AT_LEAST, R_HAT_BELOW, r_hat_text

if TYPE_CHECKING:
    from driftbridge.samplers.draws import Draws

# Beyond this many parameters the table shows the worst, and all of them on request.
ROWS = 40
WORST = 20

SECTIONS: tuple[tuple[str, str, tuple[tuple[Callable[..., Any], str], ...]], ...] = (
    (
        "Mixing",
        "Chains that sample the same law look alike, at every time and in every part of it.",
        (
            (
                plots.trace,
                "Draws against time and their density. Chains should overlap and show no trend; "
                "red ticks are divergent draws.",
            ),
            (
                plots.rank,
                "How often each chain visits each twentieth of all draws, sorted by rank. A tilt "
                "is a chain that sits too low or too high, a hump or a bowl one that is too narrow "
                "or too wide.",
            ),
        ),
    ),
    (
        "Geometry",
        "Narrow or curved joint shapes are where samplers struggle; divergent draws point at them.",
        (
            (plots.pair, "Draws of pairs of parameters, with their correlations."),
            (
                plots.energy,
                "The energy over all draws beside its change in one draw. If the change is much "
                "narrower, tails are reached slowly.",
            ),
        ),
    ),
)


def write(draws: "Draws", path: str | os.PathLike, title: str | None = None) -> Path:
    """Write the report of some draws: verdict, findings, estimates, figures and run facts.

    **Arguments:**

    - `path`: the HTML file; it needs nothing beside it, and no network.
    - `title`: heading of the page; the names of target and sampler if None.

    **Returns:** the path.
    """
    tone, verdict = _verdict(draws)
    page = Page(
        title=title or f"{type(draws.target).__name__}, sampled by {draws.sampler_name}",
        kicker=f"{len(draws.names)} parameters, {draws.num_chains} × {draws.num_draws} draws",
        tone=tone,
        verdict=verdict,
        findings=tuple(f.message for f in draws.warnings if f.name != "not_converged"),
        tiles=_tiles(draws),
        body=_estimates(draws) + "".join(_section(draws, *section) for section in SECTIONS),
        about="The sampler as it was after warm-up, and what the run cost.",
        facts=_facts(draws),
    )
    return write_page(page, path)


def _verdict(draws: "Draws") -> tuple[str, str]:
    """A tone for the eye, and one sentence."""
    messages = {f.name: escape(f.message) for f in draws.warnings}
    if not draws.convergence.converged:
        default = f"Not converged: {escape(draws.convergence.sentence)}."
        head, _, rest = messages.get("not_converged", default).partition(":")
        return "bad", f"<strong>{head}:</strong>{rest}"
    sentence = escape(draws.convergence.sentence)
    doubts = [name for name in messages if name != "bias"]
    if doubts:
        seen = "what is listed below needs attention first"
        return "warn", f"<strong>Converged by the numbers</strong> ({sentence}), but {seen}."
    if messages:
        law = "to the law of an unadjusted kernel, whose bias is described below"
        return "warn", f"<strong>Converged</strong> {law}: {sentence}."
    return "good", f"<strong>Converged:</strong> {sentence}."


def _tiles(draws: "Draws") -> tuple[Tile, ...]:
    c = draws.convergence
    varies = np.isfinite(c.ess_bulk)
    tiles = []
    if np.isfinite(c.r_hat).any():
        tiles.append(
            ("Largest R-hat", r_hat_text(np.nanmax(c.r_hat)), f"below {R_HAT_BELOW} wanted")
        )
    if varies.any():
        for what, ess in (("bulk", c.ess_bulk), ("tail", c.ess_tail)):
            tiles.append(
                (f"Least {what} ESS", f"{np.nanmin(ess):,.0f}", f"{ESS_AT_LEAST:.0f} wanted")
            )
    divergent = draws.stats.get("is_divergent")
    if divergent is not None and divergent.size:
        share = f"{100 * divergent.mean():.2g} % of draws"
        tiles.append(("Divergent draws", f"{int(divergent.sum()):,}", share))
    rate = draws.stats.get("acceptance_rate")
    if rate is not None and rate.size and draws.tuned is not None and draws.tuned.facts.adjusted:
        least = f"least chain {rate.mean(1).min():.2f}"
        tiles.append(("Acceptance", f"{rate.mean():.2f}", least))
    seconds = draws.metadata.get("seconds_sampling")
    if seconds and varies.any():
        tiles.append(
            ("ESS per second", f"{np.nanmin(c.ess_bulk) / seconds:,.0f}", "least bulk ESS")
        )
    return tuple(Tile(*tile) for tile in tiles)


def _estimates(draws: "Draws") -> str:
    names = list(draws.names)
    head = "<h2>Estimates</h2><p>Digits stop where the Monte Carlo error begins.{}</p>"
    if len(names) <= ROWS:
        table = f'<div class="panel">{_table(draws, names)}</div>'
        return head.format("") + _figure(draws, plots.intervals, "") + table
    worst = draws.worst(WORST)
    return (
        head.format(f" The table shows the {len(worst)} of {len(names)} furthest from convergence.")
        + _figure(draws, plots.intervals, "")
        + f'<div class="panel">{_table(draws, worst)}</div>'
        + f"<details><summary>All {len(names)} parameters</summary>"
        + f'<div class="panel">{_table(draws, names)}</div></details>'
    )


def _table(draws: "Draws", names: list[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("parameter", *COLUMNS))
    where = {name: i for i, name in enumerate(draws.names)}
    rows = "".join(_row(draws, name, where[name]) for name in names)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(draws: "Draws", name: str, i: int) -> str:
    values = {column: float(draws.statistics[column][i]) for column in COLUMNS}
    fails = {
        "r_hat": values["r_hat"] >= R_HAT_BELOW,
        "ess_bulk": values["ess_bulk"] < ESS_AT_LEAST,
        "ess_tail": values["ess_tail"] < ESS_AT_LEAST,
    }
    cells = "".join(
        f"<td{' class=cause' if fails.get(column) else ''} data-value={value}>"
        f"{_number(column, value, values['mcse_mean'])}</td>"
        for column, value in values.items()
    )
    mark = ' class="fails"' if any(fails.values()) else ""
    reason = draws.convergence.reasons[i]
    note = f" <small>({reason})</small>" if reason and reason != "one chain" else ""
    return f"<tr{mark}><td data-value={i}>{escape(name)}{note}</td>{cells}</tr>"


def _number(column: str, value: float, error: float) -> str:
    """A number with the digits that its Monte Carlo error leaves."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "∞"
    if column == "r_hat":
        return r_hat_text(value)
    if column.startswith("ess"):
        return f"{value:,.0f}"
    if column.startswith("mcse"):
        return f"{value:#.2g}".rstrip(".")
    exact = not (np.isfinite(error) and error > 0)
    decimals = 0 if exact else int(max(0, -np.floor(np.log10(error))))
    plain = exact or decimals > 6 or abs(value) >= 1e7
    return (f"{value:.4g}" if plain else f"{value:.{decimals}f}").replace("-", "−")


def _section(draws: "Draws", name: str, text: str, figures) -> str:
    shown = "".join(_figure(draws, plot, caption) for plot, caption in figures)
    return f"<h2>{name}</h2><p>{text}</p>{shown}" if shown else ""


def _figure(draws: "Draws", plot: Callable[..., Any], caption: str) -> str:
    if draws.num_draws < 4 or not draws.worst(1):
        return ""
    return figure(plot(draws), plot.__name__, caption)


def _facts(draws: "Draws") -> tuple[Mapping[str, Any], ...]:
    run = draws.metadata
    known = {
        "Chains": draws.num_chains,
        "Warm-up steps": run.get("num_warmup"),
        "Draws a chain": draws.num_draws,
        "Steps a draw": run.get("thin"),
        "Seed": run.get("seed"),
        "Compiling": seconds(run.get("seconds_compile")),
        "Warm-up": seconds(run.get("seconds_warmup")),
        "Sampling": seconds(run.get("seconds_sampling")),
        "Gradients, warm-up": _count(run.get("gradients_warmup")),
        "Gradients, sampling": _count(run.get("gradients_sampling")),
        "Bulk ESS per 1000 gradients": _efficiency(draws),
    }
    tuned = {name: _tuned(value) for name, value in draws.tuned_numbers.items()}
    versions = run.get("versions", {})
    return (
        {"Sampler": draws.sampler_name} | tuned,
        {name: value for name, value in known.items() if value is not None},
        dict(versions) if isinstance(versions, Mapping) else {"versions": versions},
    )


def _count(value: float | int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _efficiency(draws: "Draws") -> str | None:
    gradients, bulk = draws.metadata.get("gradients_sampling"), draws.convergence.ess_bulk
    if not gradients or not np.isfinite(bulk).any():
        return None
    return f"{1000 * np.nanmin(bulk) / gradients:.3g} (least over parameters)"


def _tuned(value: np.ndarray) -> str:
    if value.size == 1:
        return f"{value.item():.4g}"
    low, middle, high = np.quantile(value, (0, 0.5, 1))
    shape = " × ".join(map(str, value.shape))
    return f"{shape} numbers from {low:.3g} to {high:.3g}, median {middle:.3g}"

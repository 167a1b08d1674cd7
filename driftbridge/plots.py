"""Single figures of draws: trace, ranks, pairs, energy, intervals.

Each function takes `Draws` and returns a matplotlib `Figure` that belongs to no window:
`plots.trace(draws).savefig("trace.png")`. Where there are more parameters than a figure can show,
it shows those furthest from convergence and its title says so; `names` chooses others.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbridge.plot_elements import (
    ALERT,
    CHAINS,
    INK,
    LINE,
    MAIN,
    MUTED,
    PAPER,
    STYLE,
    chain_key,
    choose,
    density,
    fails,
    filled_density,
    heading,
    index,
    limits,
    new_figure,
    numbers,
    selection,
    title,
)
from driftbridge.samplers.diagnostics import e_bfmi
from driftbridge.samplers.findings import E_BFMI_BELOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from driftbridge.samplers.draws import Draws

# Probabilities of the ends of the central 94 % and 50 %, and the median.
CENTRAL = (0.03, 0.25, 0.5, 0.75, 0.97)
# Bins of pooled ranks.
BINS = 20


def _styled(figure: Callable) -> Callable:
    @wraps(figure)
    def wrapper(draws: Any, *args: Any, **kwargs: Any) -> Any:
        import matplotlib

        if draws.num_draws < 4:
            raise ValueError(f"a figure needs at least 4 draws a chain; got {draws.num_draws}.")
        with matplotlib.rc_context(STYLE):
            return figure(draws, *args, **kwargs)

    return wrapper


@_styled
def trace(draws: "Draws", names: Sequence[str] | None = None, count: int = 6) -> "Figure":
    """Draws against time, with their density; up to eight chains as lines.

    More chains are shown as the band that holds 90 % of them, half of them (darker), their median,
    and the chain furthest from the others. Ticks below mark divergent draws.
    """
    shown = choose(draws, names, count)
    figure = new_figure(1.25 * len(shown) + 0.6)
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(6, 1), sharey="row")
    few = draws.num_chains <= len(CHAINS)
    for (left, right), name in zip(axes, shown, strict=True):
        values = draws.column(name).astype(np.float64)
        (_trace_lines if few else _trace_band)(left, right, values)
        _divergence_ticks(left, draws)
        left.set_ylim(*limits(values))
        left.set_xlim(0, draws.num_draws - 1)
        title(left, name, numbers(draws, name))
        right.set_axis_off()
    for left in axes[:-1, 0]:
        left.tick_params(labelbottom=False)
    axes[-1, 0].set_xlabel("draw")
    band = [("90 %, 50 % and median of all chains", MAIN), ("the furthest chain", CHAINS[1])]
    heading(figure, selection(draws, shown, names), chain_key(draws) if few else band)
    return figure


@_styled
def rank(draws: "Draws", names: Sequence[str] | None = None, count: int = 6) -> "Figure":
    """How often each chain visits each part of the pooled draws, sorted into 20 bins by rank.

    Chains that agree stay within the grey band, which holds 95 % of bins of exact draws at the
    chain's effective size. Beyond eight chains each is a row, and bins are coloured where they are
    more than two standard errors from what is expected.
    """
    shown = choose(draws, names, count)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    few = draws.num_chains <= len(CHAINS)
    figure = new_figure(rows * (1.9 if few else 2.3) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axis, name in zip(axes.flat, shown, strict=False):
        share = _rank_shares(draws.column(name))
        effective = _effective_draws(draws, name)
        if few:
            _rank_lines(axis, share, effective)
        else:
            image = _rank_rows(axis, share, effective)
        title(axis, name, numbers(draws, name, ess=False))
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("rank among all draws")
    for axis in axes[:, 0]:
        axis.set_ylabel("visits / expected" if few else "chain")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.01)
        bar.set_label("visits less expected, in standard errors")
        bar.outline.set_visible(False)
    heading(figure, selection(draws, shown, names), chain_key(draws) if few else [])
    return figure


@_styled
def pair(draws: "Draws", names: Sequence[str] | None = None, count: int = 5) -> "Figure":
    """Draws of each parameter against each other, divergent ones marked, with correlations."""
    shown = choose(draws, names, count)
    values = [draws.column(name).astype(np.float64).ravel() for name in shown]
    divergent = np.ravel(draws.stats.get("is_divergent", np.zeros(values[0].shape, bool)))
    dots = np.linspace(0, values[0].size - 1, min(2500, values[0].size)).astype(int)
    marked = np.flatnonzero(divergent)[:2500]
    dot = float(np.clip(110 / np.sqrt(len(dots)), 2.2, 4.0))
    ranges = [limits(value) for value in values]
    size = len(shown)
    figure = new_figure(min(10.0, 1.75 * size + 0.6))
    axes = figure.subplots(size, size, squeeze=False)
    for i, j in np.ndindex(size, size):
        axis: Any = axes[i, j]
        axis.set_xlim(*ranges[j])
        if i == j:
            filled_density(axis, values[i], MAIN)
            axis.spines["left"].set_visible(False)
            axis.set_yticks([])
            axis.set_title(shown[i])
        elif i > j:
            axis.plot(values[j][dots], values[i][dots], ".", color=MAIN, ms=dot, mew=0, alpha=0.45)
            axis.plot(values[j][marked], values[i][marked], "o", color=ALERT, ms=2.8, mew=0)
            axis.lines[0].set_rasterized(True)
            axis.set_ylim(*ranges[i])
        else:
            _correlation(axis, values[j], values[i])
            continue
        axis.locator_params(nbins=4)
        axis.tick_params(labelbottom=i == size - 1, labelleft=i > j == 0)
    count = int(divergent.sum())
    note = [(f"{count} divergent draws", ALERT)] if count else [("no divergent draws", MUTED)]
    heading(figure, selection(draws, shown, names), note)
    return figure


@_styled
def energy(draws: "Draws") -> "Figure":
    """How the energy varies over all draws, beside how much one step changes it, at one height.

    Where the second is much narrower, a chain moves slowly between energy levels; E-BFMI is the
    ratio of the variances. A sampler that records no energy gets its potential instead.
    """
    recorded = draws.stats.get("energy")
    values = np.asarray(-draws.log_density if recorded is None else recorded, np.float64)
    what = "potential" if recorded is None else "energy"
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    finite = np.where(np.isfinite(values), values, np.nan)
    centred, change = (finite - np.nanmean(finite)).ravel(), np.diff(finite, axis=1).ravel()
    both = np.concatenate([centred, change])
    left.set_xlim(*limits(both))
    for part, colour, label in (
        (centred, MAIN, f"{what}, less its mean"),
        (change, CHAINS[1], "change in one draw"),
    ):
        filled_density(left, part, colour, unit_height=True)
        left.plot([], [], color=colour, lw=6, alpha=0.5, label=label)
    left.legend(frameon=False, loc="upper right", handlelength=1, labelcolor=MUTED)
    left.spines["left"].set_visible(False)
    left.set_yticks([])
    left.set_title(f"Distribution of the {what}")
    share = e_bfmi(values)
    low = (share < E_BFMI_BELOW) & (recorded is not None)
    right.scatter(
        np.arange(len(share)), share, s=18, color=np.where(low, ALERT, MAIN).tolist(), zorder=3
    )
    right.set_ylim(0, max(1.2, 1.1 * np.nan_to_num(share).max()))
    right.set_xlim(-0.6, len(share) - 0.4)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("chain")
    if recorded is None:
        right.set_title("Variance of the change / variance, by chain")
    else:
        right.axhline(E_BFMI_BELOW, color=MUTED, lw=0.8, ls=(0, (3, 3)))
        right.set_title(f"E-BFMI by chain; below {E_BFMI_BELOW} is slow")
    return figure


@_styled
def intervals(draws: "Draws", names: Sequence[str] | None = None, count: int = 40) -> "Figure":
    """Median and central 50 % and 94 % of every parameter.

    Parameters of similar scale share an axis. Those that have not converged are marked.
    """
    varying = draws.worst(len(draws.names))
    shown = list(names or (draws.names if len(draws.names) <= count else varying[:count]))
    shown = [n for n in draws.names if n in set(shown) & set(varying)] if names is None else shown
    ends = np.quantile([draws.column(n).ravel().astype(float) for n in shown], CENTRAL, axis=1).T
    panels = _panels(ends, shown)
    figure = new_figure(0.23 * len(shown) + 0.42 * len(panels) + 0.5)
    axes = figure.subplots(
        len(panels), 1, squeeze=False, height_ratios=[len(p) + 1 for p in panels]
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for y, i in enumerate(panel):
            colour = ALERT if fails(draws, shown[i]) else MAIN
            low, left, middle, right, high = ends[i]
            axis.plot([low, high], [y, y], color=colour, lw=1.2, alpha=0.7)
            axis.plot([left, right], [y, y], color=colour, lw=3.6)
            axis.plot([middle], [y], "o", color=PAPER, mec=colour, ms=4.4, mew=1.3, zorder=3)
        axis.set_yticks(range(len(panel)), [shown[i] for i in panel], color=INK)
        axis.set_ylim(len(panel) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color=LINE, lw=0.6)
        axis.set_axisbelow(True)
        if ends[panel][:, 0].min() < 0 < ends[panel][:, 4].max():
            axis.axvline(0, color=MUTED, lw=0.8)
    failing = any(fails(draws, name) for name in shown)
    note = [("not converged", ALERT)] if failing else []
    heading(figure, selection(draws, shown, names), [("median, 50 % and 94 %", MAIN), *note])
    return figure


def _trace_lines(left, right, values: np.ndarray) -> None:
    draws = np.arange(values.shape[1])
    step = max(1, values.shape[1] // 1000)
    left.set_rasterization_zorder(0)  # all lines below it make one picture
    for colour, chain in zip(CHAINS, values, strict=False):
        left.plot(draws[::step], chain[::step], color=colour, lw=0.55, alpha=0.75, zorder=-1)
        x, y = density(chain)
        right.plot(y, x, color=colour, lw=1.1)


def _trace_band(left, right, values: np.ndarray) -> None:
    length = values.shape[1]
    bins = min(150, length // 2)
    edges = np.linspace(0, length, bins + 1).astype(int)
    parts = [values[:, a:b].ravel() for a, b in pairwise(edges)]
    ends = np.array([np.quantile(part, (0.05, 0.25, 0.5, 0.75, 0.95)) for part in parts]).T
    middle = (edges[:-1] + edges[1:] - 1) / 2
    left.fill_between(middle, ends[0], ends[4], color=MAIN, alpha=0.22, lw=0)
    left.fill_between(middle, ends[1], ends[3], color=MAIN, alpha=0.3, lw=0)
    left.plot(middle, ends[2], color=MAIN, lw=1)
    far = int(np.argmax(np.abs(values.mean(1) - np.median(values.mean(1)))))
    step = max(1, length // 500)
    left.plot(
        np.arange(length)[::step], values[far, ::step], color=CHAINS[1], lw=0.5, rasterized=True
    )
    filled_density(right, values.ravel(), MAIN, vertical=True)
    x, y = density(values[far])
    right.plot(y, x, color=CHAINS[1], lw=1.1)
    right.annotate(
        f"chain {far}",
        (1, 0),
        xycoords="axes fraction",
        color=CHAINS[1],
        size=7.5,
        ha="right",
        va="bottom",
    )


def _divergence_ticks(axis, draws: "Draws") -> None:
    divergent = draws.stats.get("is_divergent")
    if divergent is not None and divergent.any():
        at = np.flatnonzero(divergent.any(0))
        axis.plot(
            at,
            np.full(len(at), 0.02),
            "|",
            color=ALERT,
            ms=5,
            mew=0.9,
            transform=axis.get_xaxis_transform(),
        )


def _rank_shares(values: np.ndarray) -> np.ndarray:
    """Visits of each chain to each of `BINS` bins of pooled ranks, over the number expected."""
    order = np.argsort(values, axis=None, kind="stable")
    rank = np.empty(values.size, int)
    rank[order] = np.arange(values.size)
    bins = (rank * BINS // values.size).reshape(values.shape)
    counts = np.array([np.bincount(chain, minlength=BINS) for chain in bins])
    return counts * BINS / values.shape[1]


def _effective_draws(draws: "Draws", name: str) -> float:
    """Effective draws of one chain."""
    return float(np.nan_to_num(draws.convergence.ess_bulk[index(draws, name)])) / draws.num_chains


def _share_error(effective: float) -> float:
    """Standard error of a share of visits: its count is binomial with the effective draws."""
    return float(np.sqrt((BINS - 1) / max(effective, 1)))


def _rank_lines(axis, share: np.ndarray, effective: float) -> None:
    spread = 1.96 * _share_error(effective)
    axis.axhspan(max(0, 1 - spread), 1 + spread, color=LINE, alpha=0.6, lw=0)
    edges = np.linspace(0, 1, BINS + 1)
    for colour, chain in zip(CHAINS, share, strict=False):
        axis.stairs(chain, edges, color=colour, lw=1.1, baseline=None)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, max(2.0, axis.get_ylim()[1], 1.08 * share.max()))


def _rank_rows(axis, share: np.ndarray, effective: float):
    from matplotlib.colors import LinearSegmentedColormap

    # Clear in the middle, so that it looks right on any page and noise does not show.
    ends = [MAIN, MAIN + "00", ALERT + "00", ALERT]
    shades = LinearSegmentedColormap.from_list(
        "visits", list(zip((0, 0.3, 0.7, 1), ends, strict=True))
    )
    axis.set_facecolor(LINE + "40")
    axis.spines[["left", "bottom"]].set_visible(False)
    return axis.imshow(
        (share - 1) / _share_error(effective),
        cmap=shades,
        vmin=-5,
        vmax=5,
        aspect="auto",
        interpolation="nearest",
        extent=(0, 1, len(share) - 0.5, -0.5),
    )


def _correlation(axis, x: np.ndarray, y: np.ndarray) -> None:
    axis.set_axis_off()
    correlation = np.corrcoef(x, y)[0, 1]
    axis.text(
        0.5,
        0.5,
        f"{correlation:+.2f}".replace("-", "−"),
        ha="center",
        va="center",
        transform=axis.transAxes,
        color=INK if abs(correlation) > 0.5 else MUTED,
        size=8 + 5 * abs(correlation),
    )


def _panels(ends: np.ndarray, names: list[str]) -> list[list[int]]:
    """Neighbouring rows that share an axis: entries of one parameter, or others of like width.

    The axis may be 40 times the narrowest interval within a parameter, 4 times across parameters.
    """
    variables = [name.split("[")[0] for name in names]
    panels: list[list[int]] = []
    for i in range(len(ends)):
        group = [*panels[-1], i] if panels else [i]
        span = ends[group][:, 4].max() - ends[group][:, 0].min()
        ratio = 40 if len({variables[j] for j in group}) == 1 else 4
        if panels and span <= ratio * (ends[group][:, 4] - ends[group][:, 0]).min():
            panels[-1].append(i)
        else:
            panels.append([i])
    return panels

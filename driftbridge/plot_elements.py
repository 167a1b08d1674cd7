"""Colours and parts that the figures of `plots` share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbridge.samplers.diagnostics import ESS_AT_LEAST, R_HAT_BELOW, r_hat_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from driftbridge.samplers.draws import Draws

INK, MUTED, LINE, PAPER = "#1f2630", "#6b7686", "#d5dbe3", "#fefefe"
# Distinct in hue and lightness for colour-blind readers, on white and on black.
CHAINS = ("#4c86c6", "#d9a441", "#b8577a", "#3fa796", "#8c7bc8", "#a3a847", "#cf7b4b", "#7a8da6")
MAIN, ALERT = CHAINS[0], "#d5503c"

STYLE: Any = {
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlepad": 4,
    "axes.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.color": INK,
    "text.parse_math": False,
    "font.size": 8.5,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
}


def new_figure(height: float) -> "Figure":
    """An empty figure ten inches wide, outside pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(10, height), layout="constrained")


def choose(draws: "Draws", names: Sequence[str] | None, count: int) -> list[str]:
    if names is not None:
        return list(names)
    worst = draws.worst(count)
    if not worst:
        raise ValueError("no parameter varies, so there is nothing to draw.")
    varying = draws.worst(len(draws.names))
    return worst if len(varying) > count else [n for n in draws.names if n in worst]


def selection(draws: "Draws", shown: list[str], names: Sequence[str] | None) -> str:
    total = len(draws.worst(len(draws.names)))
    if names is not None or len(shown) >= total:
        return ""
    return f"The {len(shown)} of {total} parameters that are furthest from convergence"


def heading(figure: "Figure", text: str, key: Sequence[tuple[str, str]]) -> None:
    """One line above the axes: what is shown, then coloured words in place of a legend."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    words = ([(text, MUTED)] if text else []) + list(key)
    if not words:
        return
    areas: list[Any] = [
        TextArea(word, textprops={"color": colour, "size": 8.5}) for word, colour in words
    ]
    figure.suptitle(" ", size=12)  # keeps room for the line in the constrained layout
    box = AnchoredOffsetbox(
        "upper left",
        child=HPacker(children=areas, sep=14, pad=0, align="baseline"),
        frameon=False,
        pad=0.3,
        bbox_to_anchor=(0, 1),
        bbox_transform=figure.transFigure,
    )
    box.set_in_layout(False)
    figure.add_artist(box)


def chain_key(draws: "Draws") -> list[tuple[str, str]]:
    return [(f"chain {i}", CHAINS[i]) for i in range(draws.num_chains)]


def title(axis, name: str, numbers: str) -> None:
    title = axis.set_title(name)
    axis.annotate(
        numbers,
        xy=(1, 0),
        xycoords=title,
        xytext=(8, 0),
        textcoords="offset points",
        color=MUTED,
        size=7.5,
        va="bottom",
    )


def index(draws: "Draws", name: str) -> int:
    return draws.names.index(name)


def numbers(draws: "Draws", name: str, ess: bool = True) -> str:
    c, i = draws.convergence, index(draws, name)
    if np.isnan(c.ess_bulk[i]):
        return c.reasons[i]
    scale = "" if np.isnan(c.r_hat[i]) else f"R-hat {r_hat_text(c.r_hat[i])}"
    sizes = f"ESS {c.ess_bulk[i]:.0f} bulk, {c.ess_tail[i]:.0f} tail" if ess else ""
    return " · ".join(filter(None, (scale, sizes)))


def fails(draws: "Draws", name: str) -> bool:
    c, i = draws.convergence, index(draws, name)
    passes = min(c.ess_bulk[i], c.ess_tail[i]) >= ESS_AT_LEAST and not c.r_hat[i] >= R_HAT_BELOW
    return not passes


def limits(values: np.ndarray) -> tuple[float, float]:
    """A range that holds 99.8 % of the finite values, a little widened."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, (0.001, 0.999))
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian kernel density on 200 points, reflected at the ends of the values."""
    low, high = limits(values)
    inside = values[(values >= low) & (values <= high)]
    if inside.size < 2 or np.ptp(inside) == 0:
        return np.zeros(0), np.zeros(0)
    mass, edges = np.histogram(inside, 200)
    spread = min(inside.std(), np.subtract(*np.quantile(inside, (0.75, 0.25))) / 1.34 or np.inf)
    width = max(1.0, 1.1 * spread * inside.size**-0.2 / (edges[1] - edges[0]))
    kernel = np.exp(-0.5 * (np.arange(-199, 200) / width) ** 2)
    padded = np.concatenate([mass[::-1], mass, mass[::-1]]).astype(float)
    smooth = np.convolve(padded, kernel / kernel.sum(), "same")[200:400]
    return (edges[:-1] + edges[1:]) / 2, smooth / (smooth.sum() * (edges[1] - edges[0]))


def filled_density(
    axis, values: np.ndarray, colour: str, vertical: bool = False, unit_height: bool = False
) -> None:
    """Draw a density with its area tinted."""
    x, y = density(values)
    if unit_height:
        y = y / y.max(initial=1e-300)
    if vertical:
        axis.fill_betweenx(x, 0, y, color=colour, alpha=0.25, lw=0)
        axis.plot(y, x, color=colour, lw=1.1)
    else:
        axis.fill_between(x, 0, y, color=colour, alpha=0.25, lw=0)
        axis.plot(x, y, color=colour, lw=1.1)
        axis.set_ylim(0, 1.05 * y.max(initial=1e-300))

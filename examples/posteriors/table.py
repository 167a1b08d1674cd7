"""The table of the comparison, a line for each posterior and kernel."""

from dataclasses import dataclass

import numpy as np

import driftbridge as db
from examples.posteriors.compare import Comparison, Gap

# A chain in which more steps than these are refused is lost (as in the findings of a run).
LOST_ABOVE = 0.01

HEADINGS = (
    "posterior",
    "kernel",
    "step size",
    "accepted",
    "divergent",
    "ESS",
    "mean off by (sd)",
    "sd off by (%)",
    "quantile off by (sd)",
    "",
)

NOTES = """
Adjusted kernels must have a bulk and tail ESS of 4000 for every parameter, means within 0.1
reference sd + 3 standard errors, sds within 15 %, and 5, 50 and 95 % quantiles of the scales
within 0.1 reference sd + 3 standard errors (the reference's included). Of each kind the line shows
the gap that comes closest to its limit.

Unadjusted kernels have a bias at their tuned step size: the line shows the largest gaps, ± their
Monte Carlo error (the reference's included). "bias" where one exceeds four errors, "none seen"
elsewhere; "unstable" where a chain has left for infinity and its steps are refused. Divergent is
the share of steps refused.

Starts, metric: JitteredHMC and HMC start from `Approach()` (low_dim_gauss_mix from a cube of half
side 0.5, not 2) and keep the diagonal metric of warm-up; the other kernels start from draws of
JitteredHMC, in the metric of their covariance. Tuning: to the standard goals, but to an acceptance
rate of 0.9 on eight_schools and 0.95 on the Brownian posterior, and to a relative bias of 0.01
instead of 0.05 on these two, which are funnels. Kept draws: every one of trajectories, every fourth
elsewhere; of MALA, KLMC and kernels without a velocity every 16th on eight_schools and every 32nd
on the Brownian posterior. Precision: float32, but gp_pois_regr float64, as its kernel matrix is
nearly singular. Coordinates: eight_schools non-centred, kidiq with orthogonal predictors (QR),
gp_pois_regr whitened by a Gaussian approximation, Brownian in the noises where there are data;
models.py says why.
"""


@dataclass(frozen=True)
class Line:
    """One run in the table; `verdict` is "pass" or "FAIL", "bias", "none seen" or "unstable"."""

    cells: tuple[str, ...]
    verdict: str


def line(posterior: str, kernel: str, draws: db.Draws, found: Comparison) -> Line:
    """The line of one run."""
    adjusted = draws.tuned.facts.adjusted
    choose = closest if adjusted else largest
    mean, deviation, quantile = map(choose, (found.means, found.deviations, found.quantiles))
    cells = (
        short(posterior),
        kernel,
        f"{float(draws.tuned_numbers['step_size']):.3g}",
        f"{draws.stats['acceptance_rate'].mean():.2f}" if adjusted else "",
        f"{100 * draws.stats['is_divergent'].mean():.2g} %",
        f"{found.ess:.0f}",
        written(mean, 1, 3),
        written(deviation, 100, 1),
        written(quantile, 1, 3),
    )
    if adjusted:
        return Line(cells, "pass" if found.passes else "FAIL")
    lost = int(np.sum(draws.stats["is_divergent"].mean(axis=1) > LOST_ABOVE))
    if lost:
        told = f"{lost} of {draws.num_chains} chains lost"
        return Line((*cells[:5], "-", told, "-", "-"), "unstable")
    gaps = found.means + found.deviations + found.quantiles
    return Line(cells, "bias" if any(gap.is_seen for gap in gaps) else "none seen")


def line_of_failure(posterior: str, kernel: str, adjusted: bool) -> Line:
    """The line of a run in which every chain failed."""
    cells = (short(posterior), kernel, *("-" for _ in HEADINGS[3:]))
    return Line(cells, "FAIL" if adjusted else "unstable")


def short(posterior: str) -> str:
    """The name of a posterior without that of its model."""
    return posterior.partition("-")[0].partition("_unknown")[0]


def closest(gaps: list[Gap]) -> Gap | None:
    """The gap that is nearest to its limit or furthest beyond it."""
    return max(gaps, key=lambda gap: abs(gap.value) / gap.allowed, default=None)


def largest(gaps: list[Gap]) -> Gap | None:
    """The largest gap."""
    return max(gaps, key=lambda gap: abs(gap.value), default=None)


def written(gap: Gap | None, unit: float, digits: int) -> str:
    """A gap with its error and parameter."""
    if gap is None:
        return "-"
    return f"{unit * gap.value:+.{digits}f} ± {unit * gap.error:.{digits}f} {gap.what}"


def table(lines: list[Line]) -> str:
    """All lines under their headings, columns aligned."""
    rows = [HEADINGS, *((*line.cells, line.verdict) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    written_rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([written_rows[0], "-" * max(map(len, written_rows)), *written_rows[1:]])

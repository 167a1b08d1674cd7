"""The table of the comparison, a line for each posterior and kernel."""

from dataclasses import dataclass

import driftbridge as db
from examples.posteriors.compare import Comparison, Gap

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

Unadjusted kernels have a bias at their tuned step size: the line shows the largest gaps, +- their
Monte Carlo error (the reference's included). "bias" where one exceeds four errors, "none seen"
elsewhere. Divergent is the share of steps refused.

JitteredHMC and HMC start from `Approach()` and keep the diagonal metric of the standard warm-up.
The other kernels start from draws of JitteredHMC and use the metric of their covariance. On the
Brownian posterior adjusted kernels are tuned to an acceptance rate of 0.95. MALA keeps every
eighth draw, unadjusted kernels every fourth. Everything is float32 except gp_pois_regr (float64:
its kernel matrix is nearly singular). Coordinates: eight_schools non-centred, kidiq with
orthogonal predictors (QR), gp_pois_regr whitened by a Gaussian approximation, Brownian in the
noises where there are data; models.py says why.
"""


@dataclass(frozen=True)
class Line:
    """One run in the table; `verdict` is "pass", "FAIL", "bias" or "none seen"."""

    cells: tuple[str, ...]
    verdict: str


def line(posterior: str, kernel: str, draws: db.Draws, found: Comparison) -> Line:
    """The line of one run."""
    adjusted = draws.tuned.facts.adjusted
    if adjusted:
        worst = [closest(gaps) for gaps in (found.means, found.deviations, found.quantiles)]
        verdict = "pass" if found.passes else "FAIL"
    else:
        worst = [largest(gaps) for gaps in (found.means, found.deviations, found.quantiles)]
        gaps = found.means + found.deviations + found.quantiles
        verdict = "bias" if any(gap.is_seen for gap in gaps) else "none seen"
    mean, deviation, quantile = worst
    cells = (
        posterior.partition("-")[0].partition("_unknown")[0],
        kernel,
        f"{float(draws.tuned_numbers['step_size']):.3g}",
        f"{draws.stats['acceptance_rate'].mean():.2f}" if adjusted else "",
        f"{100 * draws.stats['is_divergent'].mean():.2g} %",
        f"{found.ess:.0f}",
        written(mean, 1, 3),
        written(deviation, 100, 1),
        written(quantile, 1, 3),
    )
    return Line(cells, verdict)


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

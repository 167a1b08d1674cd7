"""Draws against a reference: gaps, their errors, and the bar that adjusted kernels must pass."""

from dataclasses import dataclass

import numpy as np

import driftbridge as db
from driftbridge.samplers import diagnostics
from examples.posteriors.reference import PROBABILITIES, Reference

ESS_AT_LEAST = 4000
MEAN_WITHIN = 0.1  # reference standard deviations, to which 3 standard errors are added
DEVIATION_WITHIN = 0.15
# Of the some hundred gaps in the table one in ten thousand is larger by chance.
NOISE = 4.0


@dataclass(frozen=True)
class Gap:
    """One difference from the reference.

    - `what`: parameter, and the probability of a quantile.
    - `value`, `error`: in reference standard deviations for means and quantiles, as a fraction for
      standard deviations; the error is that of the draws and of the reference together.
    - `allowed`: what an adjusted kernel may differ by.
    """

    what: str
    value: float
    error: float
    allowed: float

    @property
    def passes(self) -> bool:
        """Whether the gap is within the bar; NaN is not."""
        return abs(self.value) <= self.allowed

    @property
    def is_seen(self) -> bool:
        """Whether the gap stands out of the Monte Carlo error."""
        return not abs(self.value) <= NOISE * self.error


@dataclass(frozen=True)
class Comparison:
    """All gaps of one run, and its least bulk or tail effective sample size."""

    means: list[Gap]
    deviations: list[Gap]
    quantiles: list[Gap]
    ess: float

    @property
    def passes(self) -> bool:
        """Whether the run clears the bar."""
        gaps = self.means + self.deviations + self.quantiles
        return self.ess >= ESS_AT_LEAST and all(gap.passes for gap in gaps)


def compare(draws: db.Draws, reference: Reference, scales: tuple[str, ...]) -> Comparison:
    """Compare all parameters of the reference, `scales` by their quantiles too."""
    names = reference.parameters
    values = np.stack([column(draws, name) for name in names], axis=-1).astype(float)
    mean, deviation = np.array(reference.mean), np.array(reference.standard_deviation)
    own, theirs = diagnostics.mcse_mean(values) / deviation, reference.mean_error / deviation
    means = zip(
        names,
        (values.mean(axis=(0, 1)) - mean) / deviation,
        np.hypot(own, theirs),
        MEAN_WITHIN + 3 * own,
        strict=True,
    )
    error = np.hypot(diagnostics.mcse_sd(values), reference.standard_deviation_error) / deviation
    relative = values.std(axis=(0, 1)) / deviation - 1
    deviations = zip(names, relative, error, np.full(len(names), DEVIATION_WITHIN), strict=True)
    return Comparison(
        [Gap(*row) for row in means],
        [Gap(*row) for row in deviations],
        [
            gap
            for name in scales
            for gap in quantile_gaps(values[..., names.index(name)], reference, name)
        ],
        float(min(diagnostics.ess_bulk(values).min(), diagnostics.ess_tail(values).min())),
    )


def quantile_gaps(values: np.ndarray, reference: Reference, name: str) -> list[Gap]:
    """Gaps of the quantiles of one parameter; none where the reference has no draws."""
    deviation = reference.standard_deviation[reference.parameters.index(name)]
    gaps = []
    for probability, place, theirs in zip(
        PROBABILITIES,
        reference.quantiles.get(name, ()),
        reference.quantile_errors.get(name, ()),
        strict=False,
    ):
        own = diagnostics.mcse_quantile(values, probability)
        error = float(np.hypot(own, theirs)) / deviation
        value = (np.quantile(values, probability) - place) / deviation
        what = f"{name} at {100 * probability:.0f} %"
        gaps.append(Gap(what, value, error, MEAN_WITHIN + 3 * error))
    return gaps


def column(draws: db.Draws, name: str) -> np.ndarray:
    """One scalar parameter `(chains, draws)` by the reference's name, entries counted from 1."""
    site, _, entry = name.partition("[")
    values = draws.parameters[site]
    return values[..., int(entry[:-1]) - 1] if entry else values

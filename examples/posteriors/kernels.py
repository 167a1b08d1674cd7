"""How each kernel is run on each posterior."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import driftbridge as db
from driftbridge import samplers
from driftbridge.samplers import (
    Approach,
    DenseMetric,
    DualAveraging,
    EnergyRule,
    Preconditioned,
    Sampler,
    Warmup,
)
from examples.posteriors.cases import Case
from examples.posteriors.compare import ESS_AT_LEAST

CHAINS = 16  # adjusted kernels: R-hat needs some 200 effective draws of each
# A run that cannot reach the bar ends all the same, and misses it.
ENOUGH = db.Until(ess=ESS_AT_LEAST, max_draws=40_000, seconds=120.0)
UNADJUSTED_CHAINS = 32
THIN = 4  # transitions for each kept draw, but for those that are whole trajectories
# Kernels that move little in a step, as they have no velocity or their bias is of first order.
SLOW = ("MALA", "LMC", "RandomizedMidpoint", "PoissonMidpoint", "KLMC")

# By themselves: from starts of their own, with the diagonal metric of warm-up.
ALONE: dict[str, Callable[[], Sampler]] = {
    "JitteredHMC": samplers.JitteredHMC,
    "HMC": samplers.HMC,
}
# From draws of the first kernel, in the metric of their covariance.
ADJUSTED: dict[str, Callable[[], Sampler]] = {"MALT": samplers.MALT, "MALA": samplers.MALA}
UNADJUSTED: dict[str, Callable[[], Sampler]] = {
    "LMC": samplers.LMC,
    "RandomizedMidpoint": samplers.RandomizedMidpoint,
    "PoissonMidpoint": samplers.PoissonMidpoint,
    "KLMC": samplers.KLMC,
    "RandomizedMidpointKinetic": samplers.RandomizedMidpointKinetic,
    "OBABO": samplers.OBABO,
    "BAOAB": samplers.BAOAB,
    "ABOBA": samplers.ABOBA,
    "UBU": samplers.UBU,
    "BUB": samplers.BUB,
}
QUICK = ("JitteredHMC", "OBABO")


@dataclass(frozen=True)
class Effort:
    """Which kernels run, and for how many kept draws a chain the unadjusted ones."""

    kernels: tuple[str, ...]
    draws: int


WHOLE = Effort((*ALONE, *ADJUSTED, *UNADJUSTED), draws=1024)
SHORT = Effort(QUICK, draws=512)


def runs(
    case: Case, target: db.Target, effort: Effort
) -> Iterator[tuple[str, db.Draws | db.SamplingError]]:
    """Sample a target with every kernel of the effort; the first stands alone, others start at it.

    A run in which every chain fails gives its error.
    """
    first = None
    for key, name in enumerate(effort.kernels):
        try:
            if name in ALONE:
                draws = alone(case, target, name, key)
            else:
                draws = started(case, target, name, key, first, effort)
        except db.SamplingError as error:
            yield name, error
            continue
        if first is None:
            first = draws.positions.reshape(-1, target.dim)
        yield name, draws


def alone(case: Case, target: db.Target, name: str, key: int) -> db.Draws:
    """A run from starts of its own."""
    return db.sample(
        target,
        ALONE[name](),
        key=key,
        num_chains=CHAINS,
        num_samples=ENOUGH,
        init=Approach(samplers.UniformStart(case.radius)),
        adapt=Warmup(DualAveraging(case.acceptance)),
    )


def started(
    case: Case, target: db.Target, name: str, key: int, first: np.ndarray, effort: Effort
) -> db.Draws:
    """A run from draws that are known, in the metric of their covariance."""
    rule, chains, number = DualAveraging(case.acceptance), CHAINS, ENOUGH
    if name in UNADJUSTED:
        rule, chains, number = EnergyRule(case.bias), UNADJUSTED_CHAINS, effort.draws
    return db.sample(
        target,
        Preconditioned((ADJUSTED | UNADJUSTED)[name](), metric_of(first)),
        key=key,
        num_chains=chains,
        num_samples=number,
        thin=thinning(name, case),
        init=spread(first, chains),
        adapt=Warmup(rule),
    )


def thinning(name: str, case: Case) -> int:
    """Transitions for each kept draw."""
    if name in ("MALT", *ALONE):
        return 1
    return THIN * case.patience if name in SLOW else THIN


def metric_of(positions: np.ndarray) -> DenseMetric:
    """The metric of the covariance of some draws."""
    covariance = np.cov(positions, rowvar=False, dtype=np.float64)
    return DenseMetric.from_covariance(covariance.astype(positions.dtype))


def spread(pool: np.ndarray, count: int) -> np.ndarray:
    """So many draws, evenly spaced."""
    return pool[np.linspace(0, len(pool) - 1, count).astype(int)]

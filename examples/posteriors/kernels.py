"""How each kernel is run on each posterior."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import driftbridge as db
from driftbridge import samplers
from driftbridge.samplers import DenseMetric, DualAveraging, Preconditioned, Sampler, Warmup
from driftbridge.samplers.approach import Approach
from examples.posteriors.cases import Case
from examples.posteriors.compare import ESS_AT_LEAST

CHAINS = 16  # adjusted kernels: R-hat needs some 200 effective draws of each
MAX_DRAWS = 40_000
UNADJUSTED_CHAINS = 32

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
# Transitions a kept draw: kernels that move little in each keep fewer.
THIN = {"MALA": 8}
QUICK = ("JitteredHMC", "OBABO")


@dataclass(frozen=True)
class Effort:
    """Which kernels run, and how long the unadjusted ones do: draws a chain and steps a draw."""

    kernels: tuple[str, ...]
    draws: int
    thin: int


WHOLE = Effort((*ALONE, *ADJUSTED, *UNADJUSTED), draws=2048, thin=4)
SHORT = Effort(QUICK, draws=1024, thin=2)


def runs(case: Case, target: db.Target, effort: Effort) -> Iterator[tuple[str, db.Draws]]:
    """Sample a target with every kernel of the effort, one after another, the first one alone."""
    adapt = Warmup() if case.acceptance is None else Warmup(DualAveraging(case.acceptance))
    until = db.Until(ess=ESS_AT_LEAST, max_draws=MAX_DRAWS)
    metric, pool = None, np.zeros((0, target.dim))
    for key, name in enumerate(effort.kernels):
        if name in ALONE:
            draws = db.sample(
                target,
                ALONE[name](),
                key=key,
                num_chains=CHAINS,
                num_samples=until,
                init=Approach(),
                adapt=adapt,
            )
            if metric is None:
                pool = draws.positions.reshape(-1, target.dim)
                metric = metric_of(pool)
        elif name in ADJUSTED:
            draws = db.sample(
                target,
                Preconditioned(ADJUSTED[name](), metric),
                key=key,
                num_chains=CHAINS,
                num_samples=until,
                thin=THIN.get(name, 1),
                init=spread(pool, CHAINS),
                adapt=adapt,
            )
        else:
            draws = db.sample(
                target,
                Preconditioned(UNADJUSTED[name](), metric),
                key=key,
                num_chains=UNADJUSTED_CHAINS,
                num_samples=effort.draws,
                thin=effort.thin,
                init=spread(pool, UNADJUSTED_CHAINS),
            )
        yield name, draws


def metric_of(positions: np.ndarray) -> DenseMetric:
    """The metric of the covariance of some draws."""
    covariance = np.cov(positions, rowvar=False, dtype=np.float64)
    return DenseMetric.from_covariance(covariance.astype(positions.dtype))


def spread(pool: np.ndarray, count: int) -> np.ndarray:
    """So many draws, evenly spaced."""
    return pool[np.linspace(0, len(pool) - 1, count).astype(int)]

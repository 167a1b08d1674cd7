"""The samplers under law: one line each."""

from collections.abc import Callable

from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.high_order import ALIGN, QUICSORT, ShOULD
from driftbridge.samplers.hmc import HMC, JitteredHMC, JitteredStepHMC
from driftbridge.samplers.kinetic import KLMC, RandomizedMidpointKinetic
from driftbridge.samplers.langevin import LMC, RandomizedMidpoint
from driftbridge.samplers.local_scale import LocalScaleHMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.poisson_midpoint import PoissonMidpoint
from driftbridge.samplers.splitting import ABOBA, BAOAB, BUB, OBABO, UBU, Splitting

# Constructors that take `step_size` and may take other keywords.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "LMC": LMC,
    "RandomizedMidpoint": RandomizedMidpoint,
    "PoissonMidpoint": lambda step_size=0.1: PoissonMidpoint(step_size, num_substeps=3),
    "KLMC": KLMC,
    "RandomizedMidpointKinetic": RandomizedMidpointKinetic,
    "OBABO": OBABO,
    "BAOAB": BAOAB,
    "ABOBA": ABOBA,
    "UBU": UBU,
    "BUB": BUB,
    "BUBUB": lambda step_size=0.1, **numbers: Splitting("BUBUB", step_size, **numbers),
    "OABAO": lambda step_size=0.1, **numbers: Splitting("OABAO", step_size, **numbers),
    "BOBA": lambda step_size=0.1, **numbers: Splitting("BOBA", step_size, **numbers),
    "ALIGN": ALIGN,
    "ShOULD": ShOULD,
    "QUICSORT": QUICSORT,
    "MALA": MALA,
    "AdjustedKinetic": AdjustedKinetic,
    "HMC": HMC,
    "JitteredHMC": JitteredHMC,
    "JitteredStepHMC": JitteredStepHMC,
    "LocalScaleHMC": LocalScaleHMC,
    "MALT": MALT,
}


def named(condition: Callable[[Sampler], bool]) -> list[str]:
    """Names of the samplers that satisfy `condition`."""
    return [name for name, make in SAMPLERS.items() if condition(make())]


UNADJUSTED = named(lambda sampler: not sampler.facts.adjusted)
KINETIC = named(lambda sampler: sampler.facts.kinetic and not sampler.facts.adjusted)

"""Samplers of densities, and the driver that runs them."""

from driftbridge.samplers import diagnostics as diagnostics
from driftbridge.samplers.adaptation import Adaptation as Adaptation
from driftbridge.samplers.adaptation import Warmup as Warmup
from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic as AdjustedKinetic
from driftbridge.samplers.approach import Approach as Approach
from driftbridge.samplers.base import Facts as Facts
from driftbridge.samplers.base import Info as Info
from driftbridge.samplers.base import Sampler as Sampler
from driftbridge.samplers.base import Wrapper as Wrapper
from driftbridge.samplers.base import unadjusted_info as unadjusted_info
from driftbridge.samplers.energy_error import WithEnergyError as WithEnergyError
from driftbridge.samplers.ensemble import EnsembleWarmup as EnsembleWarmup
from driftbridge.samplers.fisher import fisher_metric as fisher_metric
from driftbridge.samplers.gathering import Gathering as Gathering
from driftbridge.samplers.high_order import ALIGN as ALIGN
from driftbridge.samplers.high_order import QUICSORT as QUICSORT
from driftbridge.samplers.high_order import ShOULD as ShOULD
from driftbridge.samplers.hmc import HMC as HMC
from driftbridge.samplers.hmc import JitteredHMC as JitteredHMC
from driftbridge.samplers.hmc import JitteredStepHMC as JitteredStepHMC
from driftbridge.samplers.initial import Grouped as Grouped
from driftbridge.samplers.initial import Initial as Initial
from driftbridge.samplers.initial import UniformStart as UniformStart
from driftbridge.samplers.kinetic import KLMC as KLMC
from driftbridge.samplers.kinetic import RandomizedMidpointKinetic as RandomizedMidpointKinetic
from driftbridge.samplers.langevin import LMC as LMC
from driftbridge.samplers.langevin import RandomizedMidpoint as RandomizedMidpoint
from driftbridge.samplers.local_scale import LocalScaleHMC as LocalScaleHMC
from driftbridge.samplers.mala import MALA as MALA
from driftbridge.samplers.malt import MALT as MALT
from driftbridge.samplers.metric import DenseMetric as DenseMetric
from driftbridge.samplers.metric import DiagonalMetric as DiagonalMetric
from driftbridge.samplers.metric import Metric as Metric
from driftbridge.samplers.metropolis import metropolis as metropolis
from driftbridge.samplers.poisson_midpoint import PoissonMidpoint as PoissonMidpoint
from driftbridge.samplers.preconditioned import Preconditioned as Preconditioned
from driftbridge.samplers.reducers import Covariance as Covariance
from driftbridge.samplers.reducers import Mean as Mean
from driftbridge.samplers.reducers import Mixing as Mixing
from driftbridge.samplers.reducers import Quantiles as Quantiles
from driftbridge.samplers.reducers import Reducer as Reducer
from driftbridge.samplers.run import run as run
from driftbridge.samplers.splitting import ABOBA as ABOBA
from driftbridge.samplers.splitting import BAOAB as BAOAB
from driftbridge.samplers.splitting import BUB as BUB
from driftbridge.samplers.splitting import OBABO as OBABO
from driftbridge.samplers.splitting import UBU as UBU
from driftbridge.samplers.splitting import Splitting as Splitting
from driftbridge.samplers.stein_discrepancy import KSD as KSD
from driftbridge.samplers.stein_discrepancy import (
    kernel_stein_discrepancy as kernel_stein_discrepancy,
)
from driftbridge.samplers.step_size import DualAveraging as DualAveraging
from driftbridge.samplers.step_size import EnergyRule as EnergyRule

"""What `sample` does about everything it was not told."""

from typing import Any, NamedTuple

import jax
import numpy as np

from driftbridge.samplers.adaptation import Warmup
from driftbridge.samplers.base import Sampler, innermost
from driftbridge.samplers.ensemble import LEAST_CHAINS, WINDOW, EnsembleWarmup
from driftbridge.samplers.gathering import Gathering
from driftbridge.samplers.hmc import JitteredHMC
from driftbridge.samplers.initial import UniformStart
from driftbridge.samplers.local_scale import LocalScaleHMC
from driftbridge.samplers.until import Until

# Chains of an ensemble: batches of this size cost little more than one chain on a CPU, and four
# times as many still leave an accelerator idle.
CHAINS_ON_CPU, CHAINS_ON_ACCELERATOR = 64, 256
MOST_WINDOWS = 40
MOST_DRAWS = 10_000


class Choice(NamedTuple):
    """Every setting of a run."""

    sampler: Any
    adapt: Any
    init: Any
    num_chains: Any
    num_samples: Any
    num_warmup: Any


# The types are `Any`: nothing has been checked yet, and what is wrong gets its own message later.
def choose(
    sampler: Any, adapt: Any, init: Any, num_chains: Any, num_samples: Any, num_warmup: Any
) -> Choice:
    """The settings given, and for those that are None (`adapt`: "auto") what suits the others."""
    if num_chains is None and len(getattr(init, "shape", ())) == 2:
        num_chains = init.shape[0]
    is_local = isinstance(sampler, Sampler) and isinstance(innermost(sampler), LocalScaleHMC)
    takes_many = sampler is None or is_local
    if takes_many and num_chains is None:
        on_cpu = jax.default_backend() == "cpu"
        num_chains = CHAINS_ON_CPU if on_cpu else CHAINS_ON_ACCELERATOR
    is_many = takes_many and isinstance(num_chains, int | np.integer) and num_chains >= LEAST_CHAINS
    if sampler is None:
        sampler = LocalScaleHMC(spread=0.0) if is_many else JitteredHMC()
    if isinstance(adapt, str) and adapt == "auto":
        adapt = EnsembleWarmup() if is_many else Warmup()
    ensemble = isinstance(adapt, EnsembleWarmup)
    if init is None:
        init = Gathering() if ensemble else UniformStart()
    if num_chains is None:
        num_chains = 4
    if num_samples is None:
        num_samples = Until(max_draws=MOST_DRAWS) if ensemble else 1000
    if num_warmup is None:
        num_warmup = MOST_WINDOWS * WINDOW if ensemble else 1000
    return Choice(sampler, adapt, init, num_chains, num_samples, num_warmup)

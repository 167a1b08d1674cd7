"""Rules that end a run by what has been drawn, on a fixed grid of draws."""

from dataclasses import dataclass

import numpy as np

from driftbridge.samplers import diagnostics
from driftbridge.samplers.diagnosis import Diagnosis


@dataclass(frozen=True)
class Until:
    """Draw until every condition given holds, or a limit is reached.

    Conditions are looked at after 128, 256, 384, 512, 768, 1024, 1408, ... draws a chain (multiples
    of 128 that grow by a quarter), whatever the chunks, so the same run ends at the same draw.

    **Arguments:**

    - `converged`: R-hat below 1.01 and bulk and tail ESS of at least 800 for every parameter, which
      takes more than one chain. None asks for it unless another condition is given.
    - `ess`: least bulk and tail ESS over parameters.
    - `mcse`: largest Monte Carlo standard error of a mean, in posterior standard deviations.
    - `seconds`: limit on the wall time of sampling, compilation apart. A run ended by it depends on
      the machine.
    - `max_draws`: limit on the draws of each chain.
    """

    converged: bool | None = None
    ess: float | int | None = None
    mcse: float | int | None = None
    seconds: float | int | None = None
    max_draws: int = 100_000

    def __post_init__(self):
        for name in ("ess", "mcse", "seconds", "max_draws"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}.")
        if not isinstance(self.max_draws, int):
            raise ValueError(f"max_draws must be an integer; got {self.max_draws!r}.")
        others = (self.ess, self.mcse, self.seconds)
        if self.converged is False and others == (None, None, None):
            raise ValueError("Until needs a condition: converged, ess, mcse or seconds.")

    @property
    def wants_convergence(self) -> bool:
        """Whether convergence is a condition."""
        if self.converged is None:
            return self.ess is None and self.mcse is None
        return self.converged

    @property
    def needs_chains(self) -> bool:
        """Whether it waits for convergence, which one chain cannot show, without end."""
        return self.wants_convergence and (self.converged is True or self.seconds is None)

    def next_look(self, done: int, grid: int) -> int:
        """The draws at which to look next, after `done` of them."""
        look = (int(done * 1.25) // grid + 1) * grid
        return min(max(look, grid), self.max_draws)

    def unmet(self, diagnosis: Diagnosis) -> str | None:
        """The first condition that does not hold yet, in words; None where all do."""
        names = diagnosis.names
        ess = np.minimum(diagnosis.ess_bulk, diagnosis.ess_tail)
        checks = []
        if self.wants_convergence:
            checks.append(("R-hat", -diagnosis.r_hat, -diagnostics.R_HAT_BELOW))
            checks.append(("ESS", ess, diagnostics.ESS_AT_LEAST))
        if self.ess is not None:
            checks.append(("ESS", ess, self.ess))
        if self.mcse is not None:
            checks.append(("Monte Carlo error of the mean (in sd)", -diagnosis.error, -self.mcse))
        if not checks:
            return "the time given is not over"
        for what, values, least in checks:
            # A NaN is the worst of all: what cannot be judged has not converged.
            worst = int(np.argmin(np.where(np.isnan(values), -np.inf, values))) if names else -1
            if worst >= 0 and not values[worst] >= least:
                return f"{what} of {names[worst]} is {abs(values[worst]):.4g}, not {abs(least):g}"
        return None

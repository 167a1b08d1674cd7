"""The result of a run whose draws were reduced as they came."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from driftbridge.samplers import diagnostics
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.diagnosis import Diagnosis
from driftbridge.samplers.diagnostics import Convergence
from driftbridge.samplers.draws import Draws
from driftbridge.targets.base import Target

NOT_KEPT = 'the draws were reduced, not kept; sample with keep="draws" (or a store) to have them.'


class ReducedDraws(Draws):
    """What reducers kept of the draws: the same table and findings, without the draws.

    R-hat is that of split chains on values, ESS that of batch means (it stands for bulk and tail
    alike); what no reducer gives is NaN in the table.

    **Arguments:**

    - `names`: labels of all scalar parameters.
    - `diagnosis`: mixing of every parameter that is not constant.
    - `reductions`: results by name of the reducer.
    - `sums`: sums over draws of `acceptance_rate`, `is_divergent`, `num_gradients`, `(chains,)`.
    - `num_draws`: draws of each chain that were reduced.
    """

    def __init__(
        self,
        target: Target,
        *,
        names: tuple[str, ...],
        diagnosis: Diagnosis,
        reductions: Mapping[str, Mapping[str, np.ndarray]],
        sums: Mapping[str, np.ndarray],
        num_draws: int,
        tuned: Sampler | None,
        metadata: Mapping[str, Any],
    ):
        chains = next(iter(sums.values())).shape[0] if sums else 0
        empty = np.zeros((chains, 0, target.dim), np.float32)
        super().__init__(target, empty, {}, tuned=tuned, metadata=metadata)
        self.reductions = {name: dict(result) for name, result in reductions.items()}
        self.diagnosis = diagnosis
        self._names = names
        self.sums = dict(sums)
        self.num_draws = num_draws

    @property
    def positions(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ValueError(f"there are no positions: {NOT_KEPT}")

    @property
    def parameters(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        raise ValueError(f"there are no parameters: {NOT_KEPT}")

    def position_blocks(self, length: int = 4096):
        return iter(())

    @cached_property
    def names(self) -> tuple[str, ...]:
        return self._names

    @cached_property
    def _varies(self) -> np.ndarray:
        return np.isin(self.names, self.diagnosis.names)

    @cached_property
    def stats(self) -> dict[str, np.ndarray]:
        """Means over draws of the sampler's statistics, shape `(chains, 1)` each."""
        return {name: total[:, None] / self.num_draws for name, total in self.sums.items()}

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        table = {name: np.full(len(self.names), np.nan) for name in diagnostics.COLUMNS}
        for result in self.reductions.values():
            for name in table.keys() & result.keys():
                table[name] = result[name]
        if "Covariance" in self.reductions:
            table["sd"] = np.sqrt(np.diag(self.reductions["Covariance"]["covariance"]))
        for name in ("r_hat", "ess_bulk", "ess_tail"):
            table[name] = np.full(len(self.names), np.nan)
            table[name][self._varies] = getattr(self.diagnosis, name)
        with np.errstate(divide="ignore"):
            table["mcse_mean"] = table["sd"] / np.sqrt(table["ess_bulk"])
        return table

    @cached_property
    def convergence(self) -> Convergence:
        table = self.statistics
        short = np.isnan(table["r_hat"]) & self._varies
        reasons = np.where(short, diagnostics.TOO_SHORT, "")
        reasons = np.where(self._varies, reasons, diagnostics.CONSTANT)
        return diagnostics.judge(
            self.names,
            table["r_hat"],
            table["ess_bulk"],
            table["ess_tail"],
            tuple(map(str, reasons)),
        )

    def __repr__(self) -> str:
        verdict = "converged" if self.convergence.converged else "NOT CONVERGED"
        return (
            f"Draws by {self.sampler_name}, reduced to {', '.join(self.reductions)}\n"
            f"  {self.num_chains} chains of {self.num_draws} draws, {len(self.names)} parameters\n"
            f"  {verdict}: {self.convergence.sentence}"
        )

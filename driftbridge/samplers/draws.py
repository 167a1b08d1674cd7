"""The result of sampling: draws in the user's names, with what is known about their quality."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.store import StoredArrays
from driftbridge.samplers import diagnostics, exports
from driftbridge.samplers.base import Sampler, Wrapper
from driftbridge.samplers.constrained import constrained, log_densities
from driftbridge.samplers.diagnostics import Convergence
from driftbridge.samplers.findings import Finding, findings
from driftbridge.targets.base import Target

if TYPE_CHECKING:
    import arviz
    import pandas
    import xarray

    from driftbridge.samplers.bias import Bias
    from driftbridge.samplers.stein_discrepancy import KSD


class Draws:
    """Draws from a target by one run of a sampler.

    Everything derived is computed when first asked for and kept.

    **Arguments:**

    - `target`: what was sampled.
    - `positions`: shape `(chains, draws, dim)`, anything `numpy.asarray` takes.
    - `stats`: arrays `(chains, draws)` by the names of `Info`: `acceptance_rate`, `is_divergent`,
      `num_gradients`, and where known `energy_error`, `energy`, `log_density`.
    - `tuned`: the sampler after warm-up, ready for the next run; None if it is not known.
    - `warnings`: findings of the driver; those that the draws themselves give follow them.
    - `metadata`: facts of the run that JSON can hold: `num_samples` (draws asked for),
      `interrupted`, `unmet` (what a stopping rule still missed, in words), `num_groups` (groups
      of neighbouring chains with one start each), `sampler`, `seed`,
      `num_warmup`, `thin`, `seconds_compile`, `seconds_warmup`, `seconds_sampling`,
      `gradients_warmup`, `gradients_sampling`, `versions`; every one may be missing.
    - `warmup`: draws of the warm-up, if they were kept.
    - `parameters`: the constrained draws, if they are at hand.
    - `mixing`: `diagnostics.mixing` of every one of their blocks, if it is known.

    **Raises:** `ValueError` if shapes do not agree.
    """

    def __init__(
        self,
        target: Target,
        positions: Any,
        stats: Mapping[str, Any],
        *,
        tuned: Sampler | None,
        warnings: Sequence[Finding] = (),
        metadata: Mapping[str, Any] | None = None,
        warmup: "Draws | None" = None,
        parameters: Mapping[str, Any] | None = None,
        mixing: Sequence[np.ndarray] | None = None,
    ):
        shape = tuple(np.shape(positions))
        if len(shape) != 3 or shape[2] != target.dim:
            raise ValueError(
                f"positions must have shape (chains, draws, {target.dim}); got {shape}."
            )
        for name, value in stats.items():
            if np.shape(value) != shape[:2]:
                raise ValueError(f"stats[{name!r}] must be {shape[:2]}; got {np.shape(value)}.")
        self.target = target
        self.tuned = tuned
        self.metadata = dict(metadata or {})
        self.warmup = warmup
        self.num_chains, self.num_draws, self.dim = shape
        self._positions, self._stats = positions, stats
        self._warnings, self._parameters = tuple(warnings), parameters
        self._mixing = mixing

    def position_blocks(self, length: int = 4096) -> Iterator[np.ndarray]:
        """Positions in parts of `length` draws, each with the last draw of the part before."""
        for start in range(0, self.num_draws, length):
            yield np.asarray(self._positions[:, max(start - 1, 0) : start + length])

    @cached_property
    def positions(self) -> np.ndarray:
        """Flat unconstrained draws, shape `(chains, draws, dim)`."""
        return np.asarray(self._positions)

    @cached_property
    def stats(self) -> dict[str, np.ndarray]:
        """Statistics of the sampler by name, shape `(chains, draws)` each."""
        return {name: np.asarray(value) for name, value in self._stats.items()}

    @cached_property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """Draws in the user's names and domains, each `(chains, draws, *event)`.

        Those of a stored run are read from disk when they are asked for.
        """
        if isinstance(self._parameters, StoredArrays):
            return self._parameters
        if self._parameters is not None:
            return {name: np.asarray(value) for name, value in self._parameters.items()}
        return constrained(self.target, self.positions)

    @cached_property
    def log_density(self) -> np.ndarray:
        """Log density of the target at every draw, shape `(chains, draws)`."""
        if "log_density" in self.stats:
            return self.stats["log_density"]
        return log_densities(self.target, self.positions)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Labels of all scalar parameters, in the order of `summary`."""
        return tuple(self._places)

    def column(self, name: str) -> np.ndarray:
        """One scalar parameter by its label, shape `(chains, draws)`."""
        if name not in self._places:
            raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.names)}.")
        parameter, index = self._places[name]
        return self.parameters[parameter].reshape(self.num_chains, self.num_draws, -1)[..., index]

    @cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        dims, coords = self.target.dims, self.target.coords
        return {
            label: (name, index)
            for name, shape in self._shapes.items()
            for index, label in enumerate(
                diagnostics.labels(name, shape[2:], dims.get(name), coords)
            )
        }

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if isinstance(self.parameters, StoredArrays):
            return self.parameters.shapes()
        return {name: value.shape for name, value in self.parameters.items()}

    def blocks(self) -> Iterator[np.ndarray]:
        """All parameters `(chains, draws, *event)` in the order of `names`, in parts that fit in
        memory."""
        if isinstance(self.parameters, StoredArrays):
            for name in self.parameters:
                yield from self.parameters.blocks(name)
        else:
            yield from self.parameters.values()

    def save(self, path: str | os.PathLike) -> None:
        """Write the draws to a new folder, which `driftbridge.load` reads.

        **Raises:** `StoreError` if the folder holds something, or cannot be written.
        """
        from driftbridge.samplers.saved import save

        save(self, path)

    @cached_property
    def statistics(self) -> dict[str, Float[np.ndarray, " params"]]:
        """The columns of `summary` as arrays in the order of `names`."""
        if not self.num_draws:
            return {name: np.full(len(self.names), np.nan) for name in diagnostics.COLUMNS}
        tables = [
            diagnostics.summarise(block, ranks)
            for block, ranks in zip(self.blocks(), self.mixing, strict=True)
        ]
        return {c: np.concatenate([np.ravel(t[c]) for t in tables]) for c in diagnostics.COLUMNS}

    @cached_property
    def mixing(self) -> Sequence[np.ndarray]:
        """Bulk ESS, tail ESS and rank-normalised R-hat of every block, rows of one array."""
        if self._mixing is not None:
            return self._mixing
        return [diagnostics.mixing(block) for block in self.blocks()]

    @cached_property
    def convergence(self) -> Convergence:
        """Whether the draws have converged, by every scalar parameter."""
        groups = self.metadata.get("num_groups")
        if not self.num_draws:
            unknown = np.full(len(self.names), np.nan)
            reasons = (diagnostics.TOO_SHORT,) * len(self.names)
            return diagnostics.judge(self.names, unknown, unknown, unknown, reasons)
        ranks = np.concatenate([m.reshape(3, -1) for m in self.mixing], axis=1)
        if groups is not None:
            flat, _ = diagnostics.flatten(self.parameters)
            return diagnostics.convergence(flat, groups, self.names, ranks)
        bulk, tail, scale = ranks
        reasons = [r for b in self.blocks() for r in np.ravel(diagnostics.reasons(b)).tolist()]
        return diagnostics.judge(self.names, scale, bulk, tail, tuple(reasons))

    def worst(self, count: int) -> list[str]:
        """Labels of the parameters furthest from convergence, worst first, constants left out."""
        c = self.convergence
        distance = diagnostics.severity(c.r_hat, c.ess_bulk, c.ess_tail, c.reasons)
        order = np.argsort(-distance, kind="stable")[:count]
        return [self.names[i] for i in order if distance[i] > -np.inf]

    @cached_property
    def warnings(self) -> tuple[Finding, ...]:
        """What a reader of these draws must know, most serious first; empty is good news."""
        given = {finding.name for finding in self._warnings}
        return self._warnings + tuple(f for f in findings(self) if f.name not in given)

    @property
    def tuned_numbers(self) -> dict[str, np.ndarray]:
        """Numbers of the tuned sampler by name, those of wrapped samplers without their path."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.tuned)
        names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
        return {
            name.replace("sampler.", ""): np.asarray(leaf)
            for name, (_, leaf) in zip(names, leaves, strict=True)
        }

    @property
    def sampler_name(self) -> str:
        """Class of the sampler, with those of its wrappers around it."""
        if self.tuned is None:
            return str(self.metadata.get("sampler", "unknown sampler"))
        return _nested_name(self.tuned)

    def summary(self) -> "pandas.DataFrame":
        """ArviZ's table, one row for each scalar parameter, not rounded.

        Mean, sd, ends of the shortest interval holding 94 %, Monte Carlo errors of mean and sd,
        bulk and tail ESS, rank-normalised split R-hat. Diagnostics of constants are NaN.
        """
        import pandas

        return pandas.DataFrame(self.statistics, index=pandas.Index(self.names))

    def stein_discrepancy(self, max_draws: int = 2000, key: int | Key[Array, ""] = 0) -> "KSD":
        """Kernel Stein discrepancy of the draws from the target, with the test that it is zero.

        `kernel_stein_discrepancy` of at most `max_draws` draws, evenly spaced in every chain, each
        coordinate measured in its standard deviation over the draws. It needs no other draws to
        compare with, and sees the bias of unadjusted kernels.

        **Arguments:**

        - `max_draws`: `>= 2`; the time grows with its square.
        - `key`: seed of the bootstrap.
        """
        from driftbridge.samplers.stein_discrepancy import of_draws

        return of_draws(self, max_draws, key)

    def bias(self, *, num_steps: int | None = None, key: int | Key[Array, ""] = 0) -> "Bias":
        """Estimate the bias that the step size of an unadjusted kernel gives these draws.

        A computation of its own, about seven times the gradients of the draws; see
        `driftbridge.samplers.estimate_bias`, which takes the same arguments.
        """
        from driftbridge.samplers.bias import estimate_bias

        return estimate_bias(self, num_steps=num_steps, key=key)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row a draw: columns `chain`, `draw` and one for each scalar parameter."""
        return exports.to_dataframe(self)

    def to_xarray(
        self, predictive: bool = False, key: int | Key[Array, ""] = 0
    ) -> "xarray.DataTree":
        """A tree of data sets named as in ArviZ's schema.

        Groups `posterior` and `sample_stats`, `warmup_*` where the warm-up was kept, and where the
        target has observations `observed_data`.

        **Arguments:**

        - `predictive`: add `posterior_predictive` and `log_likelihood`, which costs a simulation
          and a pointwise log likelihood for every draw.
        - `key`: seed of the replicated data.
        """
        return exports.to_xarray(self, predictive, key)

    def to_arviz(
        self, predictive: bool = False, key: int | Key[Array, ""] = 0
    ) -> "arviz.InferenceData | xarray.DataTree":
        """The groups of `to_xarray` as ArviZ's `InferenceData`; from ArviZ 1.0 the tree itself."""
        return exports.to_arviz(self, predictive, key)

    def __repr__(self) -> str:
        items = list(self._shapes.items())
        shapes = [name + (str(list(s[2:])) if s[2:] else "") for name, s in items[:12]]
        verdict = "converged" if self.convergence.converged else "NOT CONVERGED"
        lines = [
            f"Draws of {', '.join(shapes + ['...'] * (len(items) > 12))} by {self.sampler_name}",
            f"  {self.num_chains} chains of {self.num_draws} draws, {len(self.names)} parameters",
            f"  {verdict}: {self.convergence.sentence}",
            *(f"  {finding.name}: {finding.message}" for finding in self.warnings),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return exports.to_html(self)


def _nested_name(sampler: Sampler) -> str:
    name = type(sampler).__name__
    return f"{name}({_nested_name(sampler.sampler)})" if isinstance(sampler, Wrapper) else name

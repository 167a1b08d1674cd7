"""Where draws go: memory, a store, or reducers."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from driftbridge.runtime.dtypes import default_dtype
from driftbridge.runtime.store import GRID, DrawStore, StoreError
from driftbridge.samplers import diagnostics
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.constrained import constrained, parameter_shapes
from driftbridge.samplers.diagnosis import Diagnosis
from driftbridge.samplers.draws import Draws
from driftbridge.samplers.reduced_draws import ReducedDraws
from driftbridge.samplers.reducers import Mean, Mixing, Reducer
from driftbridge.targets.base import Target

Stats = Mapping[str, np.ndarray]

# Statistics of which reducers keep the sums.
SUMMED = ("acceptance_rate", "is_divergent", "num_gradients")
# Parameters that a first glance takes in.
GLANCED = 1
# Numbers of a chunk that are worked on at once.
PIECE = 1 << 18


def diagnose(
    blocks: Iterable[np.ndarray],
    names: Sequence[str],
    num_groups: int | None,
    ranks: Iterable[np.ndarray | None] | None = None,
    with_error: bool = True,
) -> Diagnosis:
    """Diagnosis of draws that come in blocks `(chains, draws, *event)`; constants are left out.

    `names` are labels of all entries of all blocks, in order. R-hat is nested for groups of chains.
    `ranks` is `diagnostics.mixing` of each block, where it is known. Errors are NaN if not wanted:
    they take a sixth of the time.
    """
    kept_names: list[str] = []
    columns: list[np.ndarray] = []
    start = 0
    for block, known in zip(blocks, repeat(None) if ranks is None else ranks, strict=False):
        flat: np.ndarray = np.reshape(block, (*block.shape[:2], -1)).astype(np.float64)
        marks, start = names[start : start + flat.shape[2]], start + flat.shape[2]
        keep = diagnostics.reasons(flat) != diagnostics.CONSTANT
        if not keep.any():
            continue
        kept_names += [mark for mark, kept in zip(marks, keep, strict=True) if kept]
        flat = flat[..., keep]
        known = None if known is None else np.reshape(known, (3, -1))[:, keep]
        state = diagnostics.convergence(flat, num_groups, ranks=known)
        error = np.full(flat.shape[2], np.nan)
        if with_error:
            error = diagnostics.mcse_mean(flat) / flat.std(axis=(0, 1))
        columns.append(np.stack([state.r_hat, state.ess_bulk, state.ess_tail, error]))
    return Diagnosis(
        tuple(kept_names), *(np.concatenate(columns, axis=1) if columns else np.zeros((4, 0)))
    )


def pieces(positions: np.ndarray) -> Iterator[slice]:
    """Slices of the draws of a chunk, so small that arrays of their size do not count."""
    chains, draws, *event = positions.shape
    length = GRID * max(1, PIECE // (GRID * chains * int(np.prod(event))))
    for start in range(0, draws, length):
        yield slice(start, min(start + length, draws))


class Keeper(abc.ABC):
    """Takes draws chunk by chunk; arrays have axes `(chains, draws, ...)`.

    `add` puts draws of one phase ("warmup" or "sampling") behind those it has and `count` tells how
    many. `state` gives the arrays that a checkpoint must hold, `restore` takes them back with the
    counts of that moment and forgets what came after.
    """

    @abc.abstractmethod
    def add(self, phase: str, positions: np.ndarray, stats: Stats) -> None:
        """Take one chunk."""

    @abc.abstractmethod
    def count(self, phase: str) -> int:
        """Draws of a phase so far."""

    def state(self) -> list[np.ndarray]:
        """Arrays for a checkpoint, beyond what is on disk already."""
        return []

    @abc.abstractmethod
    def restore(self, arrays: list[np.ndarray], counts: Mapping[str, int]) -> None:
        """Go back to the moment of a checkpoint."""

    @abc.abstractmethod
    def diagnose(self, with_error: bool = True) -> Diagnosis:
        """Mixing of the kept draws, parameter by parameter; with the errors of means if wanted."""

    def glance(self, with_error: bool = True) -> Diagnosis | None:
        """Mixing of a few parameters, those likeliest to fail; None where it costs that of all."""
        return None

    @abc.abstractmethod
    def draws(self, tuned: Sampler, metadata: dict[str, Any]) -> Draws:
        """The result."""


class InMemory(Keeper):
    """Draws as arrays in memory."""

    def __init__(self, target: Target, num_groups: int | None = None):
        self.target = target
        self.num_groups = num_groups
        self._positions: dict[str, list[np.ndarray]] = {"warmup": [], "sampling": []}
        self._stats: dict[str, list[Stats]] = {"warmup": [], "sampling": []}
        # The draws of the last look: what is known of them is not computed again.
        self._seen: Draws | None = None

    def add(self, phase, positions, stats):
        self._positions[phase].append(positions)
        self._stats[phase].append(stats)

    def count(self, phase):
        return sum(part.shape[1] for part in self._positions[phase])

    def restore(self, arrays, counts):
        raise TypeError("draws in memory end with their process; give the run a store to resume it")

    def glance(self, with_error=True):
        flat, names = diagnostics.flatten(self._look().parameters)
        scale = diagnostics.split_r_hat(flat)
        few = np.argsort(np.where(np.isnan(scale), -np.inf, scale))[-GLANCED:]
        some = [names[i] for i in few]
        return diagnose([flat[..., few]], some, self.num_groups, with_error=with_error)

    def _look(self) -> Draws:
        positions, seen = self.positions("sampling"), self._seen
        if seen is None:
            seen = Draws(self.target, positions, {}, tuned=None)
        elif seen.num_draws != positions.shape[1]:
            new = constrained(self.target, positions[:, seen.num_draws :])
            parameters = {
                name: np.concatenate([old, new[name]], axis=1)
                for name, old in seen.parameters.items()
            }
            seen = Draws(self.target, positions, {}, tuned=None, parameters=parameters)
        self._seen = seen
        return seen

    def diagnose(self, with_error=True):
        seen = self._look()
        return diagnose(seen.blocks(), seen.names, self.num_groups, seen.mixing, with_error)

    def draws(self, tuned, metadata):
        phases = [(self.positions(phase), self.stats(phase)) for phase in ("warmup", "sampling")]
        (before, before_stats), (positions, stats) = phases
        warmup = None
        if before.size:
            warmup = Draws(self.target, before, before_stats, tuned=None)
        known = {}
        if self._seen is not None and self._seen.num_draws == positions.shape[1]:
            known = {"parameters": self._seen.parameters, "mixing": self._seen.mixing}
        return Draws(
            self.target, positions, stats, tuned=tuned, metadata=metadata, warmup=warmup, **known
        )

    def positions(self, phase: str) -> np.ndarray:
        """All positions of a phase, `(chains, draws, dim)`."""
        # One array from now on: a second reader does not join the parts again.
        if self._positions[phase]:
            self._positions[phase] = [np.concatenate(self._positions[phase], axis=1)]
            return self._positions[phase][0]
        return np.zeros((0, 0, 0))

    def stats(self, phase: str) -> dict[str, np.ndarray]:
        """All statistics of a phase, `(chains, draws)` each."""
        parts = self._stats[phase]
        if not parts:
            return {}
        return {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}


class OnDisk(Keeper):
    """Draws in a `DrawStore`; memory holds one chunk."""

    GROUPS = ("posterior", "sample_stats", "unconstrained_posterior")

    def __init__(self, target: Target, store: DrawStore, num_groups: int | None = None):
        self.target = target
        self.store = store
        self.num_groups = num_groups

    @staticmethod
    def group(phase: str, name: str) -> str:
        """Name of a group of the store for a phase."""
        return f"warmup_{name}" if phase == "warmup" else name

    def add(self, phase, positions, stats):
        at = self.count(phase)
        labels = (self.target.dims, self.target.coords)
        for part in pieces(positions):
            parameters = constrained(self.target, positions[:, part])
            self.store.append(self.group(phase, "posterior"), parameters, at + part.start, *labels)
        self.store.append(self.group(phase, "sample_stats"), dict(stats), at)
        last = self.group(phase, "unconstrained_posterior")
        self.store.append(last, {"position": positions}, at)

    def count(self, phase):
        return self.store.length(self.group(phase, "unconstrained_posterior"))

    def restore(self, arrays, counts):
        for phase, count in counts.items():
            for name in self.GROUPS:
                group = self.group(phase, name)
                if self.store.length(group) < count:
                    raise StoreError(
                        f"{self.store.path} holds {self.store.length(group)} draws of {group}, but "
                        f"its checkpoint speaks of {count}: the store was changed by hand."
                    )
                self.store.truncate(group, count)

    def diagnose(self, with_error=True):
        arrays = self.store.arrays("posterior")
        blocks = (block for name in arrays for block in arrays.blocks(name))
        return diagnose(blocks, names_of(self.target), self.num_groups, with_error=with_error)

    def draws(self, tuned, metadata):
        return stored_draws(self.store, self.target, tuned, metadata)


def stored_draws(
    store: DrawStore, target: Target, tuned: Sampler | None, metadata: dict[str, Any]
) -> Draws:
    """The draws of a store, which stay on disk until they are read."""

    def of(phase: str, **more) -> Draws | None:
        groups = [OnDisk.group(phase, name) for name in OnDisk.GROUPS]
        draws = min(map(store.length, groups))
        if not draws:
            return None
        posterior, stats, positions = (store.arrays(group, draws) for group in groups)
        return Draws(
            target,
            positions.handles["position"],
            stats.handles,
            parameters=posterior,
            **more,
        )

    kept = of("sampling", tuned=tuned, metadata=metadata, warmup=of("warmup", tuned=None))
    if kept is None:
        raise StoreError(
            f"{store.path} holds no draws: the run has not left its warm-up, or it kept reducers "
            "instead of draws. Go on with driftbridge.resume(path), which returns what it kept."
        )
    return kept


class Reduced(Keeper):
    """Reducers of the kept draws, and of their statistics the sums over draws.

    Parameters are flattened in the order of `names`. Draws wait until a block of `GRID` is full.
    """

    def __init__(
        self,
        target: Target,
        reducers: Sequence[Reducer],
        num_chains: int,
        num_groups: int | None = None,
    ):
        if not any(isinstance(reducer, Mixing) for reducer in reducers):
            reducers = (*reducers, Mixing(num_groups))  # convergence is always told
        self.target = target
        self.reducers = tuple(reducers)
        self.names = names_of(target)
        params = len(self.names)
        self._states = [reducer.empty(num_chains, params) for reducer in self.reducers]
        self._waiting = np.zeros((num_chains, 0, params))
        self._counts = {"warmup": 0, "sampling": 0}
        self._sums: dict[str, np.ndarray] = {}

    def add(self, phase, positions, stats):
        self._counts[phase] += positions.shape[1]
        if phase == "warmup":
            return
        for name in SUMMED:
            total = np.asarray(stats[name], float).sum(axis=1)
            self._sums[name] = self._sums.get(name, 0.0) + total
        for part in pieces(positions):
            self._reduce(constrained(self.target, positions[:, part]))

    def _reduce(self, parameters: Mapping[str, np.ndarray]) -> None:
        flat = [np.reshape(v, (*v.shape[:2], -1)) for v in parameters.values()]
        values = np.concatenate([self._waiting, np.concatenate(flat, axis=2)], axis=1)
        while values.shape[1] >= GRID:
            block, values = values[:, :GRID], values[:, GRID:]
            self._states = [
                reducer.update(state, block)
                for reducer, state in zip(self.reducers, self._states, strict=True)
            ]
        self._waiting = values.copy()  # a view would keep all the values

    def count(self, phase):
        return self._counts[phase]

    def state(self):
        lengths = np.array([len(state) for state in self._states])
        sums = [self._sums[name] for name in SUMMED if name in self._sums]
        return [lengths, self._waiting, *sums, *(a for state in self._states for a in state)]

    def restore(self, arrays, counts):
        self._counts = dict(counts)
        lengths, self._waiting, *rest = arrays
        if counts["sampling"]:
            self._sums = dict(zip(SUMMED, rest[: len(SUMMED)], strict=True))
            rest = rest[len(SUMMED) :]
        self._states = []
        for length in lengths:
            self._states.append(tuple(rest[:length]))
            rest = rest[length:]

    def diagnose(self, with_error=True):
        found = {}
        for reducer, state in zip(self.reducers, self._states, strict=True):
            if isinstance(reducer, Mixing | Mean):
                found.update(reducer.result(state))
        varies = ~found["is_constant"]
        r_hat = found.get("nested_r_hat", found["r_hat"])[varies]
        ess = found["ess"][varies]
        with np.errstate(divide="ignore"):
            error = 1 / np.sqrt(ess)
        names = tuple(np.asarray(self.names, object)[varies])
        return Diagnosis(names, r_hat, ess, ess, error)

    def draws(self, tuned, metadata):
        return ReducedDraws(
            self.target,
            names=self.names,
            diagnosis=self.diagnose(),
            reductions=self.results(),
            sums=dict(self._sums),
            num_draws=self._counts["sampling"],
            tuned=tuned,
            metadata=metadata,
        )

    def results(self) -> dict[str, dict[str, np.ndarray]]:
        """Results of every reducer, by the reducer's name.

        Moments and quantiles take in the draws that wait for a full block; `Mixing` does not.
        """
        out = {}
        for reducer, state in zip(self.reducers, self._states, strict=True):
            if self._waiting.shape[1] and not isinstance(reducer, Mixing):
                state = reducer.update(state, self._waiting)
            out[type(reducer).__name__] = dict(reducer.result(state))
        return out


def names_of(target: Target) -> tuple[str, ...]:
    """Labels of all entries of all parameters, in the order of `constrain`."""
    return tuple(
        label
        for name, leaf in parameter_shapes(target, default_dtype()).items()
        for label in diagnostics.labels(name, leaf.shape, target.dims.get(name), target.coords)
    )

"""The host's part of a run: chunk after chunk, kept, reported, checkpointed."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from driftbridge.runtime.compilations import Compilations, CompiledAhead, Signatures
from driftbridge.runtime.keys import Streams, chain_keys
from driftbridge.runtime.progress import Callback, Progress
from driftbridge.runtime.store import GRID
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler, has_step_size, innermost, step_size_of
from driftbridge.samplers.energy_error import EnergyState
from driftbridge.samplers.keeping import Keeper
from driftbridge.samplers.loop import (
    Chains,
    Record,
    Rows,
    advance,
    over_chains,
    pack,
    record_of,
    transition,
    unpack,
)
from driftbridge.targets.base import Target

# A buffer of draws stays within this many bytes.
BUFFER_BYTES = 1 << 23
# A chunk is planned to take this long.
CHUNK_SECONDS = 1.0
# Draws of a chunk whose density is looked at where the sampler does not know it.
LOOKS = 256


class SamplingError(RuntimeError):
    """A run that cannot go on; the message says what to try."""


@jax.jit
def settle(target, adapt, chains: Chains) -> Chains:
    """The chains in the form the kept draws use: nothing adapts from here on.

    Velocities are drawn afresh, under the final metric. States of the form that the tuned sampler
    has are kept, as after a step it refuses; others begin anew at their positions. Where nothing
    else changes its form, the adaptation stays too: the program of warm-up serves what follows.
    """
    sampler = adapt.finish(chains.adaptation, chains.sampler)
    states = chains.states.inner if isinstance(chains.states, EnergyState) else chains.states
    num_chains = states.position.shape[0]
    initial = over_chains(lambda p: sampler.init(target, p), num_chains)
    form = jax.tree.structure(jax.eval_shape(initial, states.position))
    if jax.tree.structure(states) == form:
        states = over_chains(sampler.refuse, num_chains)(states)
    else:
        states = initial(states.position)
    same = Chains(states, sampler, chains.adaptation)
    is_same = jax.tree.structure(same) == jax.tree.structure(chains)
    return same if is_same else same._replace(adaptation=None)


@jax.jit
def log_densities(target: Target, positions):
    """Log densities of positions `(n, dim)`."""
    return jax.vmap(target.log_density)(positions)


def chunk_program(num_chains: int) -> Any:
    """`advance`, compiled, for the present backend.

    On a CPU many chains are compiled at level 2 of XLA's optimiser, where compilation takes 3/4 to
    9/10 of the time, and HMC, MALA, KLMC, UBU and the default sampler on five targets run as fast
    as at level 3 in the median (.91 to 1.09). One chain is not: of a step of ten microseconds the
    small operations beside the gradient are a part that level 3 makes smaller, by 4 to 10 % of the
    step for kernels with a Metropolis decision.
    """
    return _chunk_program(jax.default_backend() == "cpu" and num_chains > 1)


@cache
def _chunk_program(at_level_2: bool) -> Any:
    options = {"xla_backend_optimization_level": 2} if at_level_2 else None
    return jax.jit(advance, donate_argnames=("buffer",), compiler_options=options)


@dataclass
class Clock:
    """Seconds and gradients spent, and divergences met, by phase.

    Of the kept draws of an unadjusted sampler, `looked_at` had their log density evaluated, and it
    was not finite for `outside` of them.
    """

    compile: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"warmup": 0.0, "sampling": 0.0})
    gradients: dict[str, int] = field(default_factory=lambda: {"warmup": 0, "sampling": 0})
    divergences: dict[str, int] = field(default_factory=lambda: {"warmup": 0, "sampling": 0})
    looked_at: int = 0
    outside: int = 0


@dataclass
class Run:
    """One run in progress: where its chains are, and how to go on.

    `step` counts transitions from the first of warm-up, which may end before `num_warmup` of them
    (`is_tuned`). From the end of warm-up on `is_settled`,
    and `adapt` does nothing, or is None.
    """

    target: Target
    adapt: Adaptation | None
    chains: Chains
    keys: Streams
    chain_keys: Any
    keeper: Keeper
    thin: int
    num_warmup: int
    step: int = 0
    is_settled: bool = False
    is_tuned: bool = False
    report: Callback = lambda _: None
    mesh: Mesh | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    ahead: CompiledAhead | None = None
    after_chunk: Callable[["Run"], None] = lambda _: None
    _buffer: Rows | None = None
    _rate: float | None = None
    _last: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """Chains of the run."""
        return self.chains.states.position.shape[0]

    def advance(self, phase: str, draws: int, total: int | None) -> None:
        """Take and keep `draws` more draws of a phase, in chunks of about a second."""
        thin = 1 if phase == "warmup" else self.thin
        end = self.keeper.count(phase) + draws
        while (done := self.keeper.count(phase)) < end:
            if phase == "warmup" and self.is_tuned:
                return
            buffer = self._take_buffer()
            chunk = min(end - done, self._chunk_draws(buffer))
            self._one_chunk(phase, buffer, chunk, thin)
            self.tell(phase, total)
            self.after_chunk(self)

    def settle(self) -> None:
        """End warm-up, however many transitions it had."""
        if self.adapt is not None and not self.is_settled:
            watch = Compilations()
            self.chains = settle(self.target, self.adapt, self.chains)
            self.clock.compile += watch.seconds
            if self.chains.adaptation is None:
                self.adapt = self._buffer = None
        self.is_settled, self._rate = True, None

    def told(self) -> dict[str, Any]:
        """What the adaptation has to tell."""
        if self.adapt is None:
            return {}
        told = self.adapt.report(self.chains.adaptation)
        return {name: np.asarray(value).item() for name, value in told.items()}

    def _chunk_draws(self, buffer: Rows) -> int:
        capacity = buffer.values.shape[0]
        if self._rate is None:
            return GRID
        planned = int(self._rate * CHUNK_SECONDS) // GRID * GRID
        return max(GRID, min(planned, capacity))

    def _take_buffer(self) -> Rows:
        if self._buffer is None:
            self._buffer = new_buffer(self.target, self.chains, self.chain_keys, self.mesh)
        buffer, self._buffer = self._buffer, None
        return buffer

    def _one_chunk(self, phase: str, buffer: Rows, draws: int, thin: int) -> None:
        programs = 0
        if self.ahead is not None:
            self.clock.compile += self.ahead.wait()
            programs, self.ahead = self.ahead.programs, None
        watch, start = Compilations(), time.perf_counter()
        chains, buffer, taken = chunk_program(self.num_chains)(
            self.target,
            self.chains,
            buffer,
            self.chain_keys,
            np.int32(self.step),
            np.int32(draws * thin),
            None if thin == 1 else np.int32(thin),
            self.adapt,
            np.bool_(not self.is_settled),
        )
        asked, transitions = draws * thin, int(taken)
        draws = transitions // thin
        record = unpack(jax.tree.map(partial(to_host, draws=draws), buffer))
        elapsed = time.perf_counter() - start - watch.seconds
        if watch.programs or programs:
            tell_recompilation(phase, self.target, self.chains, self.adapt)
        self.chains, self._buffer = chains, buffer
        self.step += transitions
        # Only an adaptation that is done takes fewer transitions than it may.
        self.is_tuned = transitions < asked
        self.clock.compile += watch.seconds
        if not transitions:
            return
        self._rate = draws / max(elapsed, 1e-6)
        self.clock.seconds[phase] += elapsed
        self.clock.gradients[phase] += int(record.num_gradients.sum())
        self.clock.divergences[phase] += int(record.is_divergent.sum())
        if phase == "sampling":
            refuse_failure(record, self.chains.sampler, transitions)
            if record.log_density is None:
                self._look_outside(np.asarray(record.position))
        stats = {name: v for name, v in record._asdict().items() if v is not None}
        self._last = stats
        self.keeper.add(phase, stats.pop("position"), stats)

    def _look_outside(self, positions: np.ndarray) -> None:
        # Nothing in an unadjusted step asks for the density, so some draws are looked at here.
        watch = Compilations()
        num_chains, draws, dim = positions.shape
        rows = np.linspace(0, draws - 1, max(1, LOOKS // num_chains)).astype(int)
        values = np.asarray(log_densities(self.target, positions[:, rows].reshape(-1, dim)))
        self.clock.looked_at += values.size
        self.clock.outside += int(np.sum(~np.isfinite(values)))
        self.clock.compile += watch.seconds

    def tell(self, phase: str, total: int | None) -> None:
        """Report where the phase stands; at `total` it has ended."""
        done = self.keeper.count(phase)
        rate = self._rate or 0.0
        eta = None if total is None or rate == 0 else (total - done) / rate
        notes = []
        if self.chains.sampler.facts.adjusted and self._last:
            notes.append(f"acceptance {float(self._last['acceptance_rate'].mean()):.2f}")
        if divergent := self.clock.divergences[phase]:
            notes.append(f"{divergent} divergent")
        name = {"warmup": "warm-up", "sampling": "sampling"}[phase]
        self.report(Progress(name, done, total, rate, eta, ", ".join(notes)))


def compile_ahead(
    target: Target, adapt: Adaptation | None, keys: Any, thin: int, chains: Chains
) -> CompiledAhead:
    """The program of the first chunk, for chains of the shapes of `chains`."""

    def lower():
        rows = row_shapes(target, chains, keys)
        capacity = capacity_of(rows)
        buffer = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((capacity, *leaf.shape), leaf.dtype), rows
        )
        return chunk_program(chains.states.position.shape[0]).lower(
            target, chains, buffer, keys, np.int32(0), np.int32(0),
            None if thin == 1 else np.int32(thin), adapt, np.bool_(True),
        )  # fmt: skip

    return CompiledAhead(lower)


_signatures = Signatures()


def tell_recompilation(phase: str, target: Target, chains: Chains, adapt) -> None:
    """Say on standard error why a program for the same classes was compiled again."""
    kind = f"{phase} of {type(target).__name__} by {type(innermost(chains.sampler)).__name__}"
    whole = {"target": target, "chains": chains._asdict(), "adapt": adapt}
    if reason := _signatures.reason(kind, whole):
        print(f"driftbridge: compiled {kind} again: {reason}.", file=sys.stderr)


def refuse_failure(record: Record, sampler: Sampler, transitions: int) -> None:
    """Raise `SamplingError` where no transition of a whole chunk was accepted by any chain.

    A refused step of an unadjusted kernel, one that is not finite, has acceptance rate 0 too.
    Fewer than 100 transitions prove nothing.
    """
    if transitions < 100 or record.acceptance_rate.max() > 0:
        return
    name = type(innermost(sampler)).__name__
    size = f" at step size {float(step_size_of(sampler)):.3g}" if has_step_size(sampler) else ""
    raise SamplingError(
        f"every chain of {name} failed{size}: no transition of the last {transitions} was "
        "accepted or finite. Try a smaller step size or a longer warm-up, start where the density "
        "is not extreme (init=Approach()), and check the density and its gradient for NaN there."
    )


def to_host(leaf, draws: int) -> np.ndarray:
    """The first `draws` rows of a buffer as `(chains, draws, ...)` on the host."""
    return np.ascontiguousarray(np.swapaxes(np.asarray(leaf)[:draws], 0, 1))


# Compiled by nobody: JAX keeps the trace, which takes longer than all else of a second run's start.
@jax.jit
def one_row(target: Target, chains: Chains, keys) -> Rows:
    """The rows of one transition, `(chains, ...)` each."""
    number = chains.states.position.shape[0]
    noise = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (number, *leaf.shape)),
        chains.sampler.noise(keys[0], chains.states.position[0]),
    )
    sampler = chains.sampler.at_step(jnp.int32(0))
    return pack(record_of(*transition(target, sampler, chains.states, noise)))


def row_shapes(target: Target, chains: Chains, keys) -> Rows:
    """Shapes of the rows of one draw, `(chains, ...)` each; of `chains` only shapes are read."""
    return jax.eval_shape(one_row, target, chains, keys)


def empty_rows(target: Target, chains: Chains, keys, capacity: int) -> Rows:
    """Rows for `capacity` draws, traced or not."""
    shapes = row_shapes(target, chains, keys)
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)


def new_buffer(target: Target, chains: Chains, keys, mesh: Mesh | None) -> Rows:
    """Empty rows for as many draws as `BUFFER_BYTES` hold, a multiple of `GRID`."""
    shapes = row_shapes(target, chains, keys)
    capacity = capacity_of(shapes)
    sharding = None
    if mesh is not None:
        sharding = sharding_of(mesh, PartitionSpec(None, mesh.axis_names[0]))
    return jax.tree.map(
        # NumPy's zeros compile nothing.
        lambda leaf: jax.device_put(np.zeros((capacity, *leaf.shape), leaf.dtype), sharding),
        shapes,
    )


def capacity_of(rows: Rows) -> int:
    """As many draws as `BUFFER_BYTES` hold, a multiple of `GRID`."""
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows))
    return GRID * max(1, min(64, BUFFER_BYTES // (row * GRID)))


def keys_of_chains(keys: Streams, num_chains: int, mesh: Mesh | None):
    """The key of every chain, laid out over the devices of `mesh`."""
    return jax.device_put(chain_keys(keys.steps, np.arange(num_chains)), over_devices(mesh))


def over_devices(mesh: Mesh | None) -> NamedSharding | None:
    """Chains along the first axis of the mesh."""
    return None if mesh is None else sharding_of(mesh, PartitionSpec(mesh.axis_names[0]))


def sharding_of(mesh: Mesh, spec: PartitionSpec) -> NamedSharding:
    """A layout on the devices of the mesh that the compiler propagates.

    The axes of `jax.make_mesh` are explicit unless told otherwise: they would be part of the types
    of all arrays, and every operation of a target would have to agree.
    """
    return NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec)

"""Time of a step over what the step must do: its gradients, and its random numbers in bulk.

Logistic regression on the breast cancer data (n = 569, d = 31, float32). A kernel is timed in the
driver's own compiled loop, warm, with a fixed step size, every draw recorded. It is divided by a
bare loop of as many evaluations of the same score on positions that change (one of them with the
log density, where the kernel needs it), and of as many random numbers drawn in blocks; evaluations
and numbers are counted from the kernel itself. BlackJAX's kernels run on the same log density.

    python -m benchmarks.steps [--kernels NAME ...] [--chains C ...] [--small] [--save] [--strict]
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gradient import data
from benchmarks.timing import (
    Row,
    at_most,
    count_for,
    finish,
    paired,
    parser_of,
    unjudged,
)
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import chain_keys
from driftbridge.samplers import (
    ABOBA,
    BAOAB,
    BUB,
    HMC,
    KLMC,
    LMC,
    MALA,
    MALT,
    OBABO,
    UBU,
    AdjustedKinetic,
    DiagonalMetric,
    JitteredHMC,
    JitteredStepHMC,
    LocalScaleHMC,
    PoissonMidpoint,
    Preconditioned,
    RandomizedMidpoint,
    RandomizedMidpointKinetic,
    Sampler,
)
from driftbridge.samplers.driver import chunk_program, new_buffer
from driftbridge.samplers.high_order import ALIGN, QUICSORT, ShOULD
from driftbridge.samplers.loop import BLOCK_BYTES, over_chains, unpack
from driftbridge.samplers.opening import begin
from driftbridge.targets import GLM

STEP = 0.02
SCALES = np.linspace(0.5, 1.5, 31)
KERNELS: dict[str, Sampler] = {
    "LMC": LMC(STEP**2),
    "RandomizedMidpoint": RandomizedMidpoint(STEP**2),
    "PoissonMidpoint": PoissonMidpoint(STEP**2),
    "KLMC": KLMC(STEP),
    "RandomizedMidpointKinetic": RandomizedMidpointKinetic(STEP),
    "OBABO": OBABO(STEP),
    "BAOAB": BAOAB(STEP),
    "ABOBA": ABOBA(STEP),
    "UBU": UBU(STEP),
    "BUB": BUB(STEP),
    "ALIGN": ALIGN(STEP),
    "ShOULD": ShOULD(STEP),
    "QUICSORT": QUICSORT(STEP),
    "MALA": MALA(STEP**2),
    "AdjustedKinetic": AdjustedKinetic(STEP),
    "HMC": HMC(STEP, 9.9 * STEP),
    "JitteredHMC": JitteredHMC(STEP, 20 * STEP),
    "JitteredStepHMC": JitteredStepHMC(STEP, 9.9 * STEP),
    "LocalScaleHMC": LocalScaleHMC(STEP, 9.9 * STEP),
    "MALT": MALT(STEP, num_steps=10),
    "Preconditioned(MALA)": Preconditioned(MALA(STEP**2), DiagonalMetric(SCALES)),
    "Preconditioned(JitteredHMC)": Preconditioned(
        JitteredHMC(STEP, 20 * STEP), DiagonalMetric(SCALES)
    ),
}
SMALL = ("LMC", "MALA")


class Work(NamedTuple):
    """What a step must do: score evaluations, whether one has the value, normals and uniforms."""

    gradients: float
    with_value: bool
    normals: int
    uniforms: int


class Kernel:
    """Steps of one sampler as the driver takes them; `run(count)` blocks."""

    def __init__(self, target: GLM, sampler: Sampler, positions: jax.Array):
        num_chains = positions.shape[0]
        self.target = target
        self.keys = chain_keys(jax.random.key(1), jnp.arange(num_chains, dtype=jnp.int32))
        sampler = cast_floating(sampler, positions.dtype)
        self.chains = jax.jit(begin)(target, sampler, None, positions, jnp.int32(0))
        self.buffer = new_buffer(target, self.chains, self.keys, None)
        self.capacity = self.buffer.values.shape[0]
        self.step = 0

    def run(self, count: int) -> None:
        """Take `count` steps, in chunks of the buffer's capacity."""
        while count > 0:
            chunk = min(count, self.capacity)
            self.chains, self.buffer, _ = chunk_program(len(self.keys))(
                self.target,
                self.chains,
                self.buffer,
                self.keys,
                jnp.asarray(self.step, jnp.int32),
                jnp.asarray(chunk, jnp.int32),
                None,
                None,
            )
            count, self.step = count - chunk, self.step + chunk
        jax.block_until_ready(self.buffer)

    def work(self) -> Work:
        """Gradients as executed on average, and the numbers in the noise."""
        self.run(self.capacity)
        gradients = float(np.asarray(unpack(self.buffer).num_gradients, float).mean())
        if not np.isfinite(self.buffer.values).all():
            raise ValueError(f"{self.chains.sampler} has left the numbers; take a smaller step.")
        sampler = self.chains.sampler
        like = jax.ShapeDtypeStruct((self.target.dim,), np.float32)
        noise = jax.eval_shape(sampler.noise, jax.random.key(0), like)
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(noise)]
        normals = sum(size for size in sizes if size % self.target.dim == 0)
        return Work(gradients, sampler.facts.uses_value, normals, sum(sizes) - normals)


def must_do(target: GLM, positions: jax.Array, work: Work) -> Callable[[int], None]:
    """`run(count)`: the work of `count` steps and nothing else.

    A gradient moves the position a little, so that nothing is hoisted. The numbers of a block of
    steps are drawn at once, uniforms as normals, and shift the position that a step begins at.
    """
    num_chains, dim = positions.shape
    numbers = work.normals + work.uniforms
    block = max(1, min(1024, BLOCK_BYTES // (4 * num_chains * numbers)))
    over = partial(over_chains, num_chains=num_chains)

    @jax.jit
    def loop(target, start, key, count):
        def gradient(_, x):
            return start + 1e-6 * over(target.score)(x)

        def last(x):
            value, score = over(target.value_and_score)(x)
            return start + 1e-6 * score + 1e-9 * value[:, None]

        def gradients(i, x):
            if work.gradients in range(1, 13):
                for _ in range(int(work.gradients) - work.with_value):
                    x = gradient(0, x)
            else:  # a mean of 2.7 is 2, 3, 3, 2, 3, ...
                done, soon = (work.gradients * n.astype(jnp.float32) for n in (i, i + 1))
                number = (jnp.floor(soon) - jnp.floor(done)).astype(jnp.int32)
                x = lax.fori_loop(0, number - work.with_value, gradient, x)
            return last(x) if work.with_value else x

        def run_block(b, x):
            first = b * block
            shape = (block, num_chains, numbers)
            noise = jax.random.normal(jax.random.fold_in(key, b), shape, x.dtype)

            def step(i, x):
                shift = lax.dynamic_index_in_dim(noise, i - first, 0, keepdims=False)
                return gradients(i, x + 1e-6 * shift[:, :dim])

            return lax.fori_loop(first, jnp.minimum(first + block, count), step, x)

        return lax.fori_loop(0, (count + block - 1) // block, run_block, start)

    key = jax.random.key(2)
    return lambda count: jax.block_until_ready(loop(target, positions, key, jnp.int32(count)))


class Peer(NamedTuple):
    """A kernel of BlackJAX, the work it declares, and our kernel of the same method."""

    make: Callable[[Callable], tuple[Callable, Callable]]
    work: Work
    ours: str | None


def with_key(algorithm):
    return algorithm.init, algorithm.step


def without_key(algorithm):
    return lambda position, key: algorithm.init(position), algorithm.step


PEERS = {
    "MALA": Peer(lambda f: without_key(blackjax.mala(f, STEP**2)), Work(1, True, 31, 1), "MALA"),
    "HMC-10": Peer(
        lambda f: without_key(blackjax.hmc(f, STEP, jnp.ones(31), 10)),
        Work(10, True, 31, 1),
        "HMC",
    ),
    "GHMC": Peer(
        lambda f: with_key(blackjax.ghmc(f, STEP, jnp.ones(31), 0.1, 0.1)),
        Work(1, True, 31, 1),
        "AdjustedKinetic",
    ),
    "Barker": Peer(lambda f: without_key(blackjax.barker(f, STEP)), Work(1, True, 31, 32), None),
    "MCLMC": Peer(
        lambda f: with_key(blackjax.mclmc(f, L=10 * STEP, step_size=STEP)),
        Work(2, False, 31, 0),
        None,
    ),
}


def peer_steps(target: GLM, positions: jax.Array, peer: Peer) -> Callable[[int], None]:
    """`run(count)`: steps of a BlackJAX kernel, its positions recorded as its tutorials do."""
    num_chains = positions.shape[0]
    over = partial(over_chains, num_chains=num_chains)
    capacity = 4096

    @jax.jit
    def loop(target, states, key, count, record):
        _, step = peer.make(target.log_density)

        def body(i, carry):
            states, record = carry
            keys = jax.random.split(jax.random.fold_in(key, i), num_chains)
            states, _ = over(step)(keys, states)
            record = lax.dynamic_update_index_in_dim(record, states.position, i % capacity, 0)
            return states, record

        return lax.fori_loop(0, count, body, (states, record))

    key = jax.random.key(3)
    keys = jax.random.split(key, num_chains)
    states = jax.jit(
        lambda target: over(lambda p, k: peer.make(target.log_density)[0](p, k))(positions, keys)
    )(target)
    record = jnp.zeros((capacity, *positions.shape), positions.dtype)
    return lambda count: jax.block_until_ready(loop(target, states, key, jnp.int32(count), record))


def bar(name: str, num_chains: int) -> float:
    """The bound of the table: 1.05 for HMC with ten gradients or more, else 1.15 or 1.10."""
    if name.endswith(("HMC", "HMC)")):
        return 1.05
    return 1.15 if num_chains == 1 else 1.10


def measure(num_chains: int, kernels, peers, pairs: int, seconds: float) -> Iterator[Row]:
    """The rows of one number of chains, as they are timed."""
    X, y = data()
    target = GLM(X, y, "logistic", "gaussian")
    positions = 0.1 * jax.random.normal(jax.random.key(0), (num_chains, target.dim))
    for name in kernels:
        kernel = Kernel(target, KERNELS[name], positions)
        work = kernel.work()
        runs = {name: kernel.run, "must do": must_do(target, positions, work)}
        if (peer := next((p for p in peers if PEERS[p].ours == name), None)) is not None:
            runs[f"BlackJAX {peer}"] = peer_steps(target, positions, PEERS[peer])
        yield from compare(runs, num_chains, work, pairs, seconds)
    for peer in peers:
        if PEERS[peer].ours is None:
            work = PEERS[peer].work
            runs = {
                f"BlackJAX {peer}": peer_steps(target, positions, PEERS[peer]),
                "must do": must_do(target, positions, work),
            }
            yield from compare(runs, num_chains, work, pairs, seconds)


def compare(runs, num_chains: int, work: Work, pairs: int, seconds: float) -> list[Row]:
    """The row of every program over what must be done."""
    count = count_for(list(runs.values()), seconds)
    timings = paired(
        {name: partial(run, count) for name, run in runs.items()}, pairs, control="must do"
    )
    rows = []
    for name in runs:
        label = f"C = {num_chains}: {name} ({work.gradients:.3g})"
        if name == "must do":
            continue
        if name.startswith("BlackJAX") or num_chains not in (1, 64):
            rows.append(unjudged(label, timings, name, "must do", count))
        else:
            bound = bar(name, num_chains)
            rows.append(at_most(bound, label, timings, name, "must do", count))
    return rows


def main() -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--kernels", nargs="*", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--chains", nargs="*", type=int, default=[1, 4, 64])
    chosen = parser.parse_args()
    chains, kernels, pairs, seconds = chosen.chains, chosen.kernels, 11, 3e-2
    peers = list(PEERS) if len(kernels) == len(KERNELS) else []
    if chosen.small:
        chains, kernels, peers, pairs, seconds = [1, 4], SMALL, ["MALA"], 3, 2e-3
    print("In brackets: gradients a step. Times are of one step of all chains.\n")
    rows = []
    for num_chains in chains:
        for row in measure(num_chains, kernels, peers, pairs, seconds):
            print(f"{row.label}: {row.ratio.median:.3g}", flush=True)
            rows.append(row)
    return finish("steps", rows, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

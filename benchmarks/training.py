"""What a step of training costs, and a fit in a fresh process, on one thread.

    python -m benchmarks.training [--small] [--save] [--strict]

- `driftbridge.runtime.training` over a bare `lax.scan` of the same step (batch, loss and gradient,
  clipping, Adam, average), written out with optax on the network's tree;
- PyTorch's fused Adam over ours: three hidden layers of 64 SELU units, batch 256, plane data;
- a fresh process that fits `Flow()` to 2 x 10 000 points in two dimensions, imports and compilation
  included.
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial

# Before JAX counts the threads.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import torch_flow
from benchmarks.plane import PLANE
from benchmarks.timing import at_least, at_most, machine, options, paired, record, table, verdict
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import ADAM, Training, _chunk, _initial, _schedule
from driftbridge.transport import MLP, MinibatchOT
from driftbridge.transport.affine import gaussians
from driftbridge.transport.flow import FlowMatching
from driftbridge.transport.mccann import mccann
from driftbridge.transport.points import Sample

SCAN_BAR, TORCH_BAR, FIT_SECONDS = 1.05, 3.0, 10.0
BATCH, RATE, CLIP, KEPT = 256, 3e-3, 1.0, 0.999

FRESH = """
import numpy as np
import driftbridge as db
from benchmarks.plane import PLANE
rng = np.random.default_rng(0)
problem = PLANE["normal to eight Gaussians"]
T = db.fit_map(problem.source(rng, 10_000), problem.target(rng, 10_000), "flow")
print(dict(T.fit.numbers)["num_steps"], T(problem.source(rng, 1000)).shape)
"""


def data() -> tuple[np.ndarray, np.ndarray]:
    rng, problem = np.random.default_rng(0), PLANE["normal to eight Gaussians"]
    return problem.source(rng, 10_000), problem.target(rng, 10_000)


def ours(objective: FlowMatching, network, count: int):
    """`count` steps of the library's training."""
    training = Training(num_steps=10**6, batch_size=BATCH, learning_rate=RATE)
    schedule, key = _schedule(training, jnp.float32), as_key(0)
    state = _initial(network, ADAM)

    def run():
        until = np.int32(count)
        found = _chunk(state, network, objective, schedule, key, until, ADAM, BATCH)
        return jax.block_until_ready(found[1])

    return run


def bare(objective: FlowMatching, network, count: int):
    """The same step in a scan, as one would write it."""
    optimiser = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
    key = as_key(0)

    @jax.jit
    def loop(network):
        def step(carry, k):
            network, state, average = carry
            batch = objective.batch(fold_in(key, k), BATCH)
            loss, gradient = jax.value_and_grad(objective.loss)(network, batch)
            change, state = optimiser.update(gradient, state, network)
            network = optax.apply_updates(network, change)
            average = jax.tree.map(lambda a, p: KEPT * a + (1 - KEPT) * p, average, network)
            return (network, state, average), loss

        start = network, optimiser.init(network), network
        return lax.scan(step, start, jnp.arange(count))[1][-1]

    return lambda: jax.block_until_ready(loop(network))


def main() -> int:
    chosen = options(__doc__)
    count, rounds = (20, 2) if chosen.small else (1000, 7)
    x, y = data()
    equal = np.full(len(x), 1 / len(x))
    pool = MinibatchOT(x, y, pool=20 if chosen.small else 200)
    base = mccann(*gaussians(Sample(x, equal), Sample(y, equal)), np.float32)
    objective = FlowMatching(pool, base, jnp.float32(1.0))
    silu, selu = (
        MLP(activation=name).build(as_key(1), 2, 2, np.float32) for name in ("silu", "selu")
    )
    programs = {
        "ours": ours(objective, silu, count),
        "scan": bare(objective, silu, count),
        "ours, selu": ours(objective, selu, count),
    }
    has_torch = True
    try:
        pairs = x[np.asarray(pool.pool_rows)], y[np.asarray(pool.pool_columns)]
        programs["torch"] = partial(torch_flow.steps(pairs, BATCH, 0)[1], count)
    except ImportError:
        has_torch = False
        print("torch is not installed: make bench, or pip install 'driftbridge[bench]'")
    timings = paired(programs, rounds, control="scan")
    rows = [at_most(SCAN_BAR, "training over a bare scan", timings, "ours", "scan", count)]
    if has_torch:
        label = "torch's fused Adam over training"
        rows.append(at_least(TORCH_BAR, label, timings, "torch", "ours, selu", count))
    print(machine(), table(rows), sep="\n\n")
    found = [asdict(row) for row in rows]
    met = all(row.met is not False for row in rows)
    if not chosen.small:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", FRESH], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        fine = seconds <= FIT_SECONDS
        met &= fine
        print(f"\na fresh process fits a flow in {seconds:.1f} s, bar {FIT_SECONDS:g}: "
              f"{verdict(fine)}")  # fmt: skip
        found.append({"label": "fresh process", "seconds": seconds})
    return record("training", found, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

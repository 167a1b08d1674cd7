"""Steps of training a second at large batches, and their share of the machine's matrix rate.

    python -m benchmarks.training_rate [--small] [--save]

`Flow`'s network and one eight times as wide, at batches of 4096 and 65 536, on the device that JAX
takes: a GPU where there is one. The rate of a step counts the products of matrices alone, six
numbers' worth for each weight and point: forward, and two backward. It is set against that of one
product of large square matrices in the same precision, measured in the same run.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.plane import PLANE
from benchmarks.timing import machine, options, record
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.products import product
from driftbridge.runtime.training import ADAM, Training, _chunk, _initial, _schedule
from driftbridge.transport import MLP, Independent
from driftbridge.transport.affine import gaussians
from driftbridge.transport.flow import FlowMatching
from driftbridge.transport.mccann import mccann
from driftbridge.transport.points import Sample

WIDTHS, BATCHES, POINTS = (64, 512), (4096, 65_536), 100_000
# Seconds that a measurement should take, and how many there are.
SECONDS, ROUNDS = 1.0, 5
SIDE = 8192


def median_seconds(run) -> float:
    """Of a blocking call, compiled before."""
    run()
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def matrix_rate(side: int) -> float:
    """Operations a second of a product of square matrices."""
    a = jax.random.normal(jax.random.key(0), (side, side))
    multiply = jax.jit(product)
    return 2 * side**3 / median_seconds(lambda: multiply(a, a).block_until_ready())


def step_seconds(objective: FlowMatching, network, batch: int, seconds: float) -> float:
    """Of one step of training."""
    training = Training(num_steps=10**7, batch_size=batch)
    schedule, key, state = _schedule(training, jnp.float32), as_key(0), _initial(network, ADAM)

    def steps(count: int) -> float:
        def run():
            until = np.int32(count)
            found = _chunk(state, network, objective, schedule, key, until, ADAM, batch)
            jax.block_until_ready(found[1])

        return median_seconds(run) / count

    return steps(max(3, round(seconds / steps(3))))


def main() -> int:
    chosen = options(__doc__)
    batches, side = ((256, 1024), 512) if chosen.small else (BATCHES, SIDE)
    rng, problem = np.random.default_rng(0), PLANE["normal to eight Gaussians"]
    x, y = problem.source(rng, POINTS), problem.target(rng, POINTS)
    base = mccann(*(gaussians(*(Sample(p, np.full(POINTS, 1 / POINTS)) for p in (x, y)))),
                  np.float32)  # fmt: skip
    objective = FlowMatching(Independent(x, y), base, jnp.float32(1.0))
    rate = matrix_rate(SIDE if jax.default_backend() != "cpu" else min(side, 2048))
    print(f"{machine()}\n\nmatrix products: {rate / 1e12:.3g} TFLOP/s\n")
    print("| width | batch | steps/s | points/s | TFLOP/s | share |\n|---|---|---|---|---|---|")
    rows = []
    for width in WIDTHS:
        network = MLP(width=width).build(as_key(1), 2, 2, np.float32)
        weights = sum(weight.size for weight in network.layers.weights)
        for batch in batches:
            spent = step_seconds(objective, network, batch, 0.05 if chosen.small else SECONDS)
            flops = 6 * weights * batch / spent
            print(f"| {width} | {batch:,} | {1 / spent:,.0f} | {batch / spent:.2e} | "
                  f"{flops / 1e12:.3g} | {100 * flops / rate:.0f} % |", flush=True)  # fmt: skip
            rows.append({"width": width, "batch": batch, "steps_per_second": 1 / spent,
                         "flops": flops, "matrix_rate": rate})  # fmt: skip
    return record("training_rate", rows, True, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

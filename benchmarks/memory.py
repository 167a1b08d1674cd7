"""Memory against the number of draws: flat with reducers or a store, whatever that number is.

Each run is a fresh process that samples a standard normal law in 100 dimensions with LMC, and tells
its peak resident memory, the bytes of all live device arrays after each chunk, and what XLA set
aside for the compiled chunk. Draws kept in memory are shown for contrast.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import machine, options, record, verdict

DIM, CHAINS = 100, 4
# Working arrays have a bound (buffer of a chunk 8 MB, blocks of 2 million numbers in the summary)
# that a short run does not reach; beyond it only the sketch of `Quantiles` grows, with log n.
FLAT = 1.2


def child(keep: str, num_samples: int) -> dict:
    """Sample in this process and measure it."""
    import resource

    import jax
    import numpy as np

    import driftbridge as db
    from driftbridge.samplers import LMC, Covariance, Mean, Quantiles, driver
    from driftbridge.targets import DiagonalGaussian

    live, compiled = [], []
    whole = driver.Run._one_chunk

    def observed(run, phase, buffer, draws, thin):
        if not compiled:
            lowered = driver.chunk_program(run.num_chains).lower(
                run.target, run.chains, buffer, run.chain_keys, np.int32(0), np.int32(1), None, None
            )
            sizes = lowered.compile().memory_analysis()
            compiled.append(sizes.temp_size_in_bytes + sizes.output_size_in_bytes)
        whole(run, phase, buffer, draws, thin)
        live.append(sum(array.nbytes for array in jax.live_arrays()))

    driver.Run._one_chunk = observed
    target = DiagonalGaussian(np.zeros(DIM), np.ones(DIM))
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "draws": {},
            "store": {"store": Path(folder) / "run"},
            "reducers": {"keep": (Mean(), Covariance(), Quantiles())},
        }[keep]
        db.sample(
            target, LMC(0.1), num_samples=num_samples, num_warmup=0, num_chains=CHAINS, **settings
        )
    # In kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak": peak, "live": max(live), "chunk": compiled[0]}


def measure(keep: str, num_samples: int) -> dict:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", keep, str(num_samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    if "--child" in sys.argv:
        keep, num_samples = sys.argv[-2:]
        print(json.dumps(child(keep, int(num_samples))))
        return 0
    chosen = options(__doc__)
    sizes = (500, 2000) if chosen.small else (1000, 10_000, 100_000)
    print(machine(), f"{CHAINS} chains in {DIM} dimensions, megabytes", sep="\n\n", end="\n\n")
    print("| kept | draws a chain | peak of the process | live arrays | compiled chunk |")
    print("| --- | --- | --- | --- | --- |")
    rows, met = [], True
    for keep in ("reducers", "store", "draws"):
        peaks = []
        for num_samples in sizes:
            found = measure(keep, num_samples)
            rows.append({"keep": keep, "num_samples": num_samples, **found})
            peaks.append(found["peak"])
            numbers = " | ".join(f"{found[name] / 2**20:.1f}" for name in found)
            print(f"| {keep} | {num_samples} | {numbers} |", flush=True)
        growth = peaks[-1] / peaks[0]
        if keep != "draws":
            met &= growth <= FLAT
        bar = "" if keep == "draws" else f"; bar: at most {FLAT}, {verdict(growth <= FLAT)}"
        print(f"| {keep} | growth | {growth:.3f}{bar} | | |", flush=True)
    return record("memory", rows, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

"""Run every benchmark, one after another: `python -m benchmarks [--small]`."""

import subprocess
import sys

NAMES = (
    "gradient", "steps", "first_draws", "effective", "reliability", "calibration", "w2_gradients",
    "bias", "swap", "chain_counts", "memory", "kills", "devices",
    "maps", "entropic_maps", "sinkhorn", "apply",
    "population_cost", "flows", "convergence", "rectified", "arch", "training", "training_rate",
)  # fmt: skip

if __name__ == "__main__":
    failed = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        takes = sys.argv[1:] if name != "devices" else []
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *takes]).returncode:
            failed.append(name)
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)

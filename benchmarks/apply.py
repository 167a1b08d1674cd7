"""Memory and time of applying a map to many rows, and of a second fit.

    python -m benchmarks.apply [--small] [--save] [--strict]

A corrected map between 2000 points in three dimensions carries 1e4, 1e5 and 1e6 rows, each count in
a fresh process. Shown is the peak of the resident memory beyond that of the rows themselves, in and
out, which a map that streams keeps flat; and how many programs a second fit and call of the same
size buckets compile.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks.timing import machine, options, record, verdict

POINTS, DIM = 2000, 3
# Growth of the memory from the least to the largest number of rows that counts as flat.
BOUND = 1.2


def points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def child(rows: int) -> None:
    """Fit, apply, and print what it took as JSON."""
    import driftbridge as db
    from driftbridge.runtime.compilations import Compilations

    fitted = db.fit_map(points(POINTS, 0), np.exp(points(POINTS, 1)), "corrected")
    many = points(rows, 2)
    fitted(many[:4])
    fitted(many)
    start = time.perf_counter()
    fitted(many)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    watch = Compilations()
    second = db.fit_map(points(POINTS - 40, 3), np.exp(points(POINTS - 20, 4)), "corrected")
    second(many)
    # Two results of the calls above are alive at the peak, beside the rows.
    found = {
        "rows": rows,
        "bytes": peak - 3 * many.nbytes,
        "seconds": seconds,
        "programs": watch.programs,
    }
    print(json.dumps(found))


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        child(int(sys.argv[2]))
        return 0
    chosen = options(__doc__)
    counts = (1000, 4000) if chosen.small else (10_000, 100_000, 1_000_000)
    found = []
    for rows in counts:
        command = [sys.executable, "-m", "benchmarks.apply", "--child", str(rows)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    print(machine(), "\n\n| rows | MiB beyond the rows | s | us a row | programs of a second fit |")
    print("|---|---|---|---|---|")
    for row in found:
        size, took = row["bytes"] / 2**20, row["seconds"]
        print(
            f"| {row['rows']:,} | {size:.0f} | {took:.2f} | {1e6 * took / row['rows']:.2f} | "
            f"{row['programs']} |"
        )
    growth = found[-1]["bytes"] / found[0]["bytes"]
    met = growth <= BOUND and all(row["programs"] == 0 for row in found)
    print(f"\nmemory grows by {growth:.2f} (bar {BOUND}), {verdict(met)}")
    return record("apply", found, met, chosen)


if __name__ == "__main__":
    raise SystemExit(main())

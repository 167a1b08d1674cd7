"""Kill a stored run at random moments, resume it, and compare with the run that never stopped.

    python -m benchmarks.kills [--small]

Each of twenty processes is killed by SIGKILL at a moment spread over its life (start, warm-up,
sampling, writes) and resumed to its end in another process. Draws of warm-up and sampling, and the
tuned sampler, must be those of the uninterrupted run bit for bit. A run killed before its first
checkpoint must say so when it is resumed.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import driftbridge as db
from driftbridge.runtime.store import CHECKPOINT

PROGRAM = [sys.executable, "-m", "benchmarks.stored_run"]


def same(a: db.Draws, b: db.Draws) -> bool:
    """Whether two runs agree in every bit: draws, warm-up, statistics, tuned sampler."""
    leaves = zip(jax.tree.leaves(a.tuned), jax.tree.leaves(b.tuned), strict=True)
    assert a.warmup is not None and b.warmup is not None
    return (
        np.array_equal(a.positions, b.positions)
        and np.array_equal(a.warmup.positions, b.warmup.positions)
        and all(np.array_equal(a.stats[name], b.stats[name]) for name in a.stats)
        and all(np.array_equal(x, y) for x, y in leaves)
    )


def killed(folder: Path, num_samples: int, after: float) -> tuple[str, bool]:
    """Kill a run `after` seconds from its start; what it last reported, and if it had ended."""
    command = [*PROGRAM, str(folder), str(num_samples)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.wait(after)
        ended = True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        ended = False
    lines = process.communicate()[0].splitlines()
    return (lines[-1] if lines else "start"), ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="three kills of a short run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    kills, num_samples = (3, 4000) if options.small else (20, 20_000)
    rng = random.Random(options.seed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        subprocess.run([*PROGRAM, str(root / "whole"), str(num_samples)], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        life = time.perf_counter() - start
        whole = db.load(root / "whole")
        print(f"uninterrupted: {life:.1f} s, {whole.num_draws} draws of {whole.num_chains} chains")
        for i in range(kills):
            # One moment in each of `kills` equal parts of the run's life.
            after = life * (i + rng.random()) / kills
            run = root / f"run{i}"
            at, ended = killed(run, num_samples, after)
            if not (run / CHECKPOINT).exists():
                verdict = before_checkpoint(run, num_samples)
            else:
                subprocess.run([*PROGRAM, str(run), str(num_samples), "resume"], check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
                verdict = "identical" if same(whole, db.load(run)) else "DIFFERENT"
            failures += verdict not in ("identical", "nothing to resume, and says so")
            state = "had ended" if ended else f"killed at {at}"
            print(f"  {i + 1:2d}  {after:6.1f} s  {state:<28} {verdict}", flush=True)
    print(f"{kills - failures} of {kills} as they should be")
    return int(failures > 0)


def before_checkpoint(run: Path, num_samples: int) -> str:
    """The verdict on a run that was killed before it had written anything to resume."""
    try:
        db.resume(run, num_samples=num_samples)
    except db.StoreError as error:
        clear = "no checkpoint" in str(error) or "holds no run" in str(error)
        return "nothing to resume, and says so" if clear else f"UNCLEAR: {error}"
    return "RESUMED FROM NOTHING"


if __name__ == "__main__":
    raise SystemExit(main())

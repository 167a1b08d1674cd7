"""Every benchmark runs; what it measures is not asserted here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("gradient", "C = 1"),
        ("steps", "C = 4: MALA (1)"),
        ("memory", "draws"),
        ("bias", "| log cosh | UBU |"),
        ("kills", "of 3"),
        ("swap", "| eight_schools | driftbridge |"),
        ("chain_counts", "| 4 | MALT |"),
        ("apply", "| 4,000 |"),
        ("maps", "driftbridge auto"),
        ("population_cost", "proved"),
        ("convergence", "| overlapping | Heun"),
        ("rectified", "c_rectified"),
        ("arch", "| OT-MFM |"),
        ("training_rate", "| 512 | 1,024 |"),
    ],
)
def test_small_benchmark_prints_its_table(name, shows):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--small"]
    # Type checks at run time would be timed too.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shows in done.stdout

"""From `python script.py` to 1000 draws: whole processes, imports included.

    python -m benchmarks.first_draws [--small] [--save] [--strict]

Logistic regression of the breast-cancer data (n = 569, d = 31), the same posterior on both sides: a
round counts where every script has 1000 draws with a bulk ESS of at least 400 and means within 0.3
posterior sd of one another. Scripts take turns, ours against NumPyro's with a potential function
(bar 1/2) and with a model (bar 1/3), NumPyro with its progress bar on and off, of which the better
counts. The script of the peer runs twice a round, for the ratio of a program with itself.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import machine, options, record, verdict

SCRIPTS = Path(__file__).parent / "first_draws_scripts"
# Ours, its peer, and the largest ratio.
PAIRS = (
    ("density", "numpyro_potential", 1 / 2),
    ("glm", "numpyro_potential", 1 / 2),
    ("model", "numpyro_model", 1 / 3),
)
LEAST_ESS = 400


def data(path: Path) -> None:
    """The standardised measurements with an intercept, and who had a malignant tumour."""
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    X = np.column_stack([np.ones(len(X)), (X - X.mean(0)) / X.std(0)])
    np.savez(path, X=X.astype(np.float32), y=(1 - y).astype(np.float32))


def timed(script: str, path: Path, *more: str) -> tuple[float, dict]:
    """Seconds from the start of a fresh process to its draws, and what they are."""
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), str(path), *more]
    # Everybody's bytecode is kept, as an installed package's is.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    facts = json.loads(done.stdout.splitlines()[-1])
    return facts["time"] - start, facts


def compare(ours: str, peer: str, bound: float, rounds: int, path: Path) -> dict:
    """One row: median ratio, quartiles, and the peer against itself."""
    ratios, control, times, least = [], [], [], []
    for i in range(rounds):
        order = [(ours,), (peer,), (peer, "bar"), (peer,)]
        found = {}
        for k in np.roll(range(4), i):  # no script is always first
            name, *more = order[k]
            found[k] = timed(name, path, *more)
        (seconds, facts), (quiet, other), (loud, _), (again, _) = (found[k] for k in range(4))
        check(ours, facts, peer, other)
        ratios.append(seconds / min(quiet, loud))
        control.append(again / quiet)
        times.append((seconds, min(quiet, loud)))
        least.append(facts["ess_bulk"])
    quartiles = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    return {
        "ours": ours,
        "peer": peer,
        "seconds": [statistics.median(t) for t in zip(*times, strict=True)],
        "ratio": quartiles[1],
        "quartiles": [quartiles[0], quartiles[2]],
        "peer / itself": statistics.median(control),
        "bound": bound,
        "met": quartiles[1] <= bound,
        "least ess": min(least),
        "rounds": rounds,
    }


def check(ours: str, facts: dict, peer: str, other: dict) -> None:
    """Raise where a script has too few effective draws, or the posteriors differ."""
    for name, found in ((ours, facts), (peer, other)):
        if found["draws"] < 1000 or found["ess_bulk"] < LEAST_ESS:
            raise RuntimeError(f"{name}: {found['draws']} draws, ESS {found['ess_bulk']:.0f}")
    gap = np.abs(np.subtract(facts["mean"], other["mean"])) / other["sd"]
    # Five standard errors of a difference of two means, each of ESS 400, are .35 sd.
    if gap.max() > 0.35:
        raise RuntimeError(f"{ours} and {peer}: means apart by {gap.max():.2f} sd")


def main() -> int:
    chosen = options(__doc__)
    rounds = 1 if chosen.small else 10
    rows = []
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        data(path)
        for ours, peer, bound in PAIRS:
            row = compare(ours, peer, bound, rounds, path)
            rows.append(row)
            low, high = row["quartiles"]
            mine, theirs = row["seconds"]
            print(
                f"{ours:<8} {mine:6.2f} s  {peer:<18} {theirs:6.2f} s  ratio {row['ratio']:.2f} "
                f"({low:.2f} to {high:.2f})  peer / itself {row['peer / itself']:.2f}  "
                f"at most {bound:.2f}  {verdict(row['met'])}  ESS {row['least ess']:.0f}",
                flush=True,
            )
    return record("first_draws", rows, all(row["met"] for row in rows), chosen)


if __name__ == "__main__":
    raise SystemExit(main())

"""One stored run of a small regression, as a program that can be killed: the subject of `kills`.

python -m benchmarks.stored_run FOLDER NUM_SAMPLES [resume]
"""

import sys

import numpy as np

import driftbridge as db
from driftbridge.samplers import MALA

NUM_WARMUP, NUM_CHAINS = 20_000, 4


def target() -> db.GLM:
    """A logistic regression with ten coefficients on simulated data."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 10))
    return db.GLM(X, (rng.uniform(size=400) < 0.5).astype(float), "logistic")


def main(folder: str, num_samples: int, resumed: bool) -> db.Draws:
    """Start the run, or go on with it."""
    if resumed:
        return db.resume(folder, num_samples=num_samples)
    return db.sample(
        target(),
        MALA(),
        num_samples=num_samples,
        num_warmup=NUM_WARMUP,
        num_chains=NUM_CHAINS,
        thin=4,
        store=folder,
        progress=lambda at: print(at.phase, at.done, flush=True),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "resume" in sys.argv[3:])

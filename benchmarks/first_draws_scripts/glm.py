"""The regression as a generalised linear model, by driftbridge."""

import sys

import numpy as np

import driftbridge as db
from driftbridge.samplers import JitteredHMC

data = np.load(sys.argv[1])

target = db.GLM(data["X"], data["y"], "logistic", "gaussian")
draws = db.sample(
    target, JitteredHMC(trajectory_length=2.0), num_warmup=300, num_samples=250, num_chains=4
)
positions = draws.parameters["coefficients"]

if __name__ == "__main__":
    from report import report

    report(positions)

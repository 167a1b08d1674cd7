"""A user's own log density, by driftbridge."""

import sys

import jax.numpy as jnp
import numpy as np

import driftbridge as db
from driftbridge.samplers import JitteredHMC
from driftbridge.targets import log_sigmoid

data = np.load(sys.argv[1])


def log_density(beta, X, y):
    return jnp.sum(log_sigmoid((2 * y - 1) * (X @ beta))) - jnp.sum((beta / 2.5) ** 2) / 2


target = db.from_density(log_density, jnp.zeros(31), data["X"], data["y"])
draws = db.sample(
    target, JitteredHMC(trajectory_length=2.0), num_warmup=300, num_samples=250, num_chains=4
)
positions = draws.parameters["x"]

if __name__ == "__main__":
    from report import report

    report(positions)

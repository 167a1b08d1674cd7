"""A NumPyro model, by driftbridge."""

import sys

import numpy as np
import numpyro
import numpyro.distributions as dist

import driftbridge as db
from driftbridge.samplers import JitteredHMC

data = np.load(sys.argv[1])


def model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2.5).expand([31]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


target = db.from_numpyro(model, data["X"], data["y"])
draws = db.sample(
    target, JitteredHMC(trajectory_length=2.0), num_warmup=300, num_samples=250, num_chains=4
)
positions = draws.parameters["beta"]

if __name__ == "__main__":
    from report import report

    report(positions)

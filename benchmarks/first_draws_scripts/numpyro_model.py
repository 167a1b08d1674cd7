"""A NumPyro model, by NumPyro; its progress bar is on where a second argument is given."""

import sys

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

data = np.load(sys.argv[1])


def model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2.5).expand([31]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000, progress_bar=len(sys.argv) > 2)
mcmc.run(jax.random.key(0), data["X"], data["y"])
positions = mcmc.get_samples(group_by_chain=True)["beta"]

if __name__ == "__main__":
    from report import report

    report(positions)

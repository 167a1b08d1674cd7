"""A user's own potential, by NumPyro; its progress bar is on where a second argument is given."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS

data = np.load(sys.argv[1])
X, y = jnp.asarray(data["X"]), jnp.asarray(data["y"])


def potential(beta):
    return jnp.sum(jax.nn.softplus(-(2 * y - 1) * (X @ beta))) + jnp.sum((beta / 2.5) ** 2) / 2


mcmc = MCMC(
    NUTS(potential_fn=potential),
    num_warmup=500,
    num_samples=1000,
    progress_bar=len(sys.argv) > 2,
)
mcmc.run(jax.random.key(0), init_params=jnp.zeros(31))
positions = mcmc.get_samples(group_by_chain=True)

if __name__ == "__main__":
    from report import report

    report(positions)

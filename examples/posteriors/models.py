"""Six posteriors as NumPyro models, written from their mathematics.

What the references report is a sampled or a deterministic site under the reference's name. Sites
that end in `_raw` are coordinates chosen so that the posterior is easy to sample in them; each
model says which and why.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints


def eight_schools(y, sigma):
    """Effects of coaching in eight schools; non-centred, `theta = mu + tau theta_raw`."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    raw = numpyro.sample("theta_raw", standard_normals(len(y)))
    theta = numpyro.deterministic("theta", mu + tau * raw)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def regression(y, design, back):
    """A linear regression with flat slopes `beta = back beta_raw`.

    The columns of `design` are those of the predictors made orthogonal (a QR decomposition), so
    that nearly collinear predictors cost nothing; the map is linear and its Jacobian constant.
    """
    raw = numpyro.sample("beta_raw", flat(constraints.real_vector, back.shape[0]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.deterministic("beta", back @ raw)
    numpyro.sample("y", dist.Normal(design @ raw, sigma), obs=y)


def autoregression(y, order: int):
    """A series on its own last `order` values."""
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([order]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    past = jnp.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


def normal_mixture(y):
    """Two normal components in order of their means; which one a point came from is summed out."""
    mu = numpyro.sample("mu", flat(constraints.ordered_vector, 2))
    numpyro.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def poisson_process(x, k):
    """Counts `k` with a log intensity `f` from a Gaussian process with kernel `K = L L^T`.

    With `f = L z` the prior of `z` is standard normal. Were `log k` normal data of variance `1/k`,
    its posterior would have precision `R R^T = I + L^T diag(k) L` and mean `m`; the coordinates
    are `f_raw = R^T (z - m)`, nearly standard normal whatever `rho` and `alpha`. In `z` itself the
    scale of the posterior depends on `alpha`: a funnel. For float64, as `K` is nearly singular.

    Murray and Adams (2010), "Slice sampling covariance hyperparameters", section 3.
    """
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    identity = jnp.eye(len(x), dtype=x.dtype)
    distance = (x[:, None] - x[None, :]) / rho
    lower = jnp.linalg.cholesky(alpha**2 * jnp.exp(-(distance**2) / 2) + 1e-10 * identity)
    root = jnp.linalg.cholesky(identity + lower.T @ (k[:, None] * lower))
    pull = solve_triangular(root, lower.T @ (k * jnp.log(k)), lower=True)
    raw = numpyro.sample("f_raw", flat(constraints.real_vector, len(x)))
    z = solve_triangular(root.T, raw + pull, lower=False)
    numpyro.factor("z", standard_normals(len(x)).log_prob(z) - jnp.log(jnp.diag(root)).sum())
    f = numpyro.deterministic("f", lower @ z)
    numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def brownian_motion(before, after, missing: int):
    """A random walk seen through noise `before` and `after` a gap of `missing` times.

    Where there are data the coordinates are the noises, `locs = data - b noise_raw`: their normal
    law is the likelihood, and the moves of the walk between them are the factors. In the gap they
    are moves in units of `a`. With moves for coordinates everywhere the posterior is a funnel as
    `b` tends to zero; with `locs` it is one in both scales.
    """
    a = numpyro.sample("innovation_noise_scale", dist.LogNormal(0, 2))
    b = numpyro.sample("observation_noise_scale", dist.LogNormal(0, 2))
    noise = numpyro.sample("noise_raw", standard_normals(len(before) + len(after)))
    moves = numpyro.sample("moves_raw", standard_normals(missing))
    first = before - b * noise[: len(before)]
    gap = first[-1] + a * jnp.cumsum(moves)
    last = after - b * noise[len(before) :]
    walk = dist.Normal(0, a)
    numpyro.factor("before", walk.log_prob(jnp.diff(first, prepend=0)).sum())
    numpyro.factor("after", walk.log_prob(jnp.diff(last, prepend=gap[-1])).sum())
    numpyro.deterministic("locs", jnp.concatenate([first, gap, last]))


def standard_normals(count: int):
    """A vector of independent standard normals."""
    return dist.Normal(0, 1).expand([count]).to_event(1)


def flat(support, count: int):
    """The improper uniform law on vectors in `support`."""
    return dist.ImproperUniform(support, (), (count,))

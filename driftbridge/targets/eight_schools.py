"""The eight schools: a hierarchical normal model with eight groups, in both parametrisations."""

import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.targets.base import Observations, Target, Truth
from driftbridge.targets.gaussian import log_standard_normal
from driftbridge.targets.leaves import Leaf, check_finite, check_positive, exact, floating
from driftbridge.targets.quadrature import LineLaw, tabulate

# Estimated effects of coaching on test scores and their standard errors: Rubin (1981), table 1.
EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
SCHOOLS = ("A", "B", "C", "D", "E", "F", "G", "H")

# Scales of the priors of mu and tau.
PRIOR = 5.0


class SchoolsModel(Target):
    """What both parametrisations share: data, names and predictive laws."""

    effects: eqx.AbstractVar[Float[Leaf, " schools"]]
    errors: eqx.AbstractVar[Float[Leaf, " schools"]]

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"theta": ("school",)}

    @property
    def coords(self) -> dict[str, tuple[str, ...]]:
        count = self.dim - 2
        return {"school": SCHOOLS if count == len(SCHOOLS) else tuple(map(str, range(count)))}

    @property
    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Exact posterior mean and standard deviation of each parameter that `constrain` names."""
        posterior = _posterior(self)
        mean, covariance = posterior.centred
        deviation = np.sqrt(np.diag(covariance))
        tau = np.exp(posterior.log_tau.nodes)
        first, second = posterior.log_tau.expectation(np.stack([tau, tau**2], axis=1))
        return {
            "theta": (mean[:-2], deviation[:-2]),
            "mu": (np.asarray(mean[-2]), np.asarray(deviation[-2])),
            "tau": (np.asarray(first), np.asarray(np.sqrt(second - first**2))),
        }

    @property
    def observations(self) -> Observations:
        effects, errors = jnp.asarray(self.effects), jnp.asarray(self.errors)

        def log_likelihood(parameters):
            standard = (effects - parameters["theta"]) / errors
            return {"y": -(standard**2) / 2 - jnp.log(errors) - math.log(2 * math.pi) / 2}

        def predict(key, parameters):
            theta = parameters["theta"]
            return {"y": theta + errors * jax.random.normal(key, theta.shape, theta.dtype)}

        return Observations({"y": effects}, log_likelihood, predict)


class EightSchools(SchoolsModel):
    """The centred form: positions are `(theta_1, ..., theta_J, mu, log tau)`.

    `mu ~ Normal(0, 5)`, `tau ~ HalfCauchy(5)`, `theta_j ~ Normal(mu, tau)`,
    `y_j ~ Normal(theta_j, sigma_j)`. The density of the position includes the Jacobian `tau` and
    all constants, so the normaliser is the evidence `p(y)`.

    **Arguments:**

    - `effects`: `y`, shape `(J,)`; Rubin's eight unless given.
    - `errors`: `sigma`, positive, shape `(J,)`.

    `truth`: moments and evidence by quadrature over `log tau` with the rest integrated exactly
    (relative error below 1e-10), computed at first use. Draws are exact but for the table of
    `log tau` (cells of 0.004). The score has no second moment: `1 / tau` is too heavy in the neck.

    Rubin (1981); Gelman et al. (2013), section 5.5.
    """

    effects: Float[Leaf, " schools"]
    errors: Float[Leaf, " schools"]
    dim: int = eqx.field(static=True)

    def __init__(self, effects=EFFECTS, errors=ERRORS):
        self.effects, self.errors, self.dim = _data(effects, errors)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        theta, mu, log_tau = x[:-2], x[-2], x[-1]
        groups = log_standard_normal((theta - mu) * jnp.exp(-log_tau)) - (self.dim - 2) * log_tau
        return groups + _priors(mu, log_tau) + _likelihood(self, theta)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        return {"theta": x[:-2], "mu": x[-2], "tau": jnp.exp(x[-1])}

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        tail = jnp.stack([parameters["mu"], jnp.log(parameters["tau"])])
        return jnp.concatenate([parameters["theta"], tail])

    @property
    def truth(self) -> Truth:
        def sample(key, n):
            z, mu, log_tau = _draws(self, key, n)
            theta = mu[:, None] + jnp.exp(log_tau)[:, None] * z
            return jnp.concatenate([theta, mu[:, None], log_tau[:, None]], axis=1)

        return Truth.of_moments(_posterior(self).centred, _posterior(self).log_evidence, sample)


class EightSchoolsNonCentered(SchoolsModel):
    """The non-centred form: positions are `(z_1, ..., z_J, mu, log tau)`, `theta = mu + tau z`.

    The model, arguments and names of the parameters are those of `EightSchools`; `z_j` is standard
    normal under the prior, which removes the funnel.

    Papaspiliopoulos, Roberts and Sköld (2007), section 2.
    """

    effects: Float[Leaf, " schools"]
    errors: Float[Leaf, " schools"]
    dim: int = eqx.field(static=True)

    def __init__(self, effects=EFFECTS, errors=ERRORS):
        self.effects, self.errors, self.dim = _data(effects, errors)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        z, mu, log_tau = x[:-2], x[-2], x[-1]
        theta = mu + jnp.exp(log_tau) * z
        return log_standard_normal(z) + _priors(mu, log_tau) + _likelihood(self, theta)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        tau = jnp.exp(x[-1])
        return {"theta": x[-2] + tau * x[:-2], "mu": x[-2], "tau": tau}

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        mu, tau = parameters["mu"], parameters["tau"]
        z = (parameters["theta"] - mu) / tau
        return jnp.concatenate([z, jnp.stack([mu, jnp.log(tau)])])

    @property
    def truth(self) -> Truth:
        def sample(key, n):
            z, mu, log_tau = _draws(self, key, n)
            return jnp.concatenate([z, mu[:, None], log_tau[:, None]], axis=1)

        return Truth.of_moments(_posterior(self).non_centred, _posterior(self).log_evidence, sample)


def _data(effects, errors):
    effects, errors = floating(effects), floating(errors)
    if effects.ndim != 1 or effects.shape != errors.shape:
        raise ValueError(
            f"effects and errors must have one shape (J,); got {effects.shape} and {errors.shape}."
        )
    check_finite(effects=effects)
    check_positive(errors=errors)
    return effects, errors, effects.shape[0] + 2


def _priors(mu, log_tau):
    location = -((mu / PRIOR) ** 2) / 2 - math.log(PRIOR * math.sqrt(2 * math.pi))
    scaled = log_tau - math.log(PRIOR)
    return location + math.log(2 / math.pi) + scaled - jnp.logaddexp(0.0, 2 * scaled)


def _likelihood(target, theta):
    errors = jnp.asarray(target.errors, theta.dtype)
    standard = (jnp.asarray(target.effects, theta.dtype) - theta) / errors
    return log_standard_normal(standard) - jnp.sum(jnp.log(errors))


class _Posterior(NamedTuple):
    """Law of `log tau`, and mean and covariance of positions in both parametrisations."""

    log_tau: LineLaw
    log_evidence: float
    centred: tuple[np.ndarray, np.ndarray]
    non_centred: tuple[np.ndarray, np.ndarray]


def _posterior(target) -> _Posterior:
    effects, errors = exact(target.effects), exact(target.errors)
    return _integrate(tuple(effects.tolist()), tuple(errors.tolist()))


@functools.lru_cache(maxsize=8)
def _integrate(effects: tuple[float, ...], errors: tuple[float, ...]) -> _Posterior:
    """Quadrature over `t = log tau`; given t everything is jointly normal.

    `y ~ N(0, V)`, `V = 25 11^T + diag(sigma^2 + tau^2)`; for a latent vector `u` with covariance
    `P` and cross-covariance `G` to `y`, `E u = G V^{-1} y`, `Cov u = P - G V^{-1} G^T`.
    """
    y, sigma, count = np.array(effects), np.array(errors), len(effects)

    def covariances(t):
        noise = (sigma**2 + np.exp(2 * t)[:, None])[..., None] * np.eye(count)
        return PRIOR**2 + noise

    def log_density(t):
        v = covariances(t)
        scaled = t - np.log(PRIOR)
        prior = np.log(2 / np.pi) + scaled - np.logaddexp(0, 2 * scaled)
        fit = np.einsum("i,tij,j->t", y, np.linalg.inv(v), y) + np.linalg.slogdet(2 * np.pi * v)[1]
        return prior - fit / 2

    law = tabulate(log_density, -40.0, 25.0)
    used = law.mass > 1e-25
    t, mass = law.nodes[used], law.mass[used]
    tau = np.exp(t)
    inverse = np.linalg.inv(covariances(t))
    eye, ones = np.eye(count), np.ones(count)

    def moments(group, with_location, cross):
        """`group` is `Cov theta` or `Cov z` given mu = 0, the others those with `mu` and `y`."""
        prior = np.zeros((len(t), count + 1, count + 1))
        prior[:, :count, :count] = group
        prior[:, :count, count] = prior[:, count, :count] = with_location
        prior[:, count, count] = PRIOR**2
        g = np.concatenate([cross, np.broadcast_to(PRIOR**2 * ones, (len(t), 1, count))], axis=1)
        gain = g @ inverse
        given = np.concatenate([gain @ y, t[:, None]], axis=1)
        mean = mass @ given
        centred = given - mean
        covariance = (centred.T * mass) @ centred
        covariance[:-1, :-1] += np.tensordot(mass, prior - gain @ np.swapaxes(g, 1, 2), axes=1)
        return mean, covariance

    theta = PRIOR**2 + tau[:, None, None] ** 2 * eye
    centred = moments(theta, PRIOR**2, theta)
    non_centred = moments(eye, 0.0, tau[:, None, None] * eye)
    return _Posterior(law, law.log_normaliser, centred, non_centred)


def _draws(target, key, n):
    """Exact draws of `(z, mu, log tau)`: `log tau`, then `mu` given it, then `z` given both."""
    effects, errors = jnp.asarray(exact(target.effects)), jnp.asarray(exact(target.errors))
    scale, location, group = jax.random.split(key, 3)
    log_tau = _posterior(target).log_tau.sample(scale, n)
    tau = jnp.exp(log_tau)[:, None]
    weights = 1 / (errors[None] ** 2 + tau**2)
    precision = jnp.sum(weights, axis=1) + PRIOR**-2
    mu = jnp.sum(weights * effects[None], axis=1) / precision
    mu = mu + jax.random.normal(location, (n,), mu.dtype) / jnp.sqrt(precision)
    pull = tau / errors[None] ** 2
    spread = 1 / (1 + tau * pull)
    z = spread * pull * (effects[None] - mu[:, None])
    z = z + jnp.sqrt(spread) * jax.random.normal(group, z.shape, z.dtype)
    return z, mu, log_tau

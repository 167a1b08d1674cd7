"""Mixtures of Gaussians and of Student distributions."""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.batching import batched_score
from driftbridge.targets.base import Target, Truth
from driftbridge.targets.leaves import Leaf, check_finite, check_positive, exact, floating


def _one(target, x):
    value, score = _many(target, x[None])
    return value[0], score[0]


def _many(target, x):
    logs, score = target.components(x)
    log_weights = jnp.log(jnp.asarray(target.weights, x.dtype))
    logs = logs + (log_weights - logsumexp(log_weights))[None]
    value = logsumexp(logs, axis=1)
    return value, score(jnp.exp(logs - value[:, None]))


_value_and_score = batched_score(_one, _many)


class Mixture(Target):
    """A mixture whose score is the responsibilities times the pulls of its components.

    `log_density(x) = log sum_k w_k p_k(x)` with normalised `p_k` and `w`, so that the normaliser is
    one; `score(x) = sum_k r_k(x) grad log p_k(x)` with `r_k = w_k p_k / sum_j w_j p_j`.

    A subclass supplies the fields below, `component_covariances` and

    - `components(x)`: for positions `(n, dim)`, the log densities `(n, components)` and the
      function that turns responsibilities `(n, components)` into scores `(n, dim)`;
    - `offsets(key, component)`: draws of `x - mean` for the given components.
    """

    means: eqx.AbstractVar[Float[Leaf, "components dim"]]
    weights: eqx.AbstractVar[Float[Leaf, " components"]]

    @abc.abstractmethod
    def components(
        self, x: Float[Array, "n dim"]
    ) -> tuple[Float[Array, "n components"], Callable[[Array], Array]]:
        """Log densities of the components and the score as a function of responsibilities."""

    @abc.abstractmethod
    def offsets(self, key: Key[Array, ""], component: Int[Array, " n"]) -> Float[Array, "n dim"]:
        """Draws of `x - mean` for an array of component numbers."""

    @abc.abstractmethod
    def component_covariances(self) -> np.ndarray | None:
        """Covariance of each component, or None where it does not exist."""

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return _value_and_score(self, x)[0]

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return _value_and_score(self, x)[1]

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        return _value_and_score(self, x)

    @property
    def modes(self) -> Float[Array, "components dim"]:
        """The means; the modes themselves where components are well apart."""
        return jnp.asarray(self.means)

    @property
    def truth(self) -> Truth:
        means, weights = exact(self.means), exact(self.weights)
        weights = weights / np.sum(weights)

        def sample(key, n):
            which, offset = jax.random.split(key)
            logits = jnp.log(jnp.asarray(weights))
            component = jax.random.categorical(which, logits, shape=(n,))
            return jnp.asarray(means)[component] + self.offsets(offset, component)

        known = Truth(
            log_normaliser=jnp.asarray(0.0), sample=sample, mode_weights=jnp.asarray(weights)
        )
        within = self.component_covariances()
        if within is None:
            return known
        mean = weights @ means
        centred = means - mean
        covariance = np.einsum("k,kij->ij", weights, within) + (centred.T * weights) @ centred
        return known._replace(
            mean=jnp.asarray(mean),
            variance=jnp.asarray(np.diag(covariance)),
            covariance=jnp.asarray(covariance),
        )


def _weights(weights, count):
    weights = floating(np.ones(count) if weights is None else weights)
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), one a mean; got {weights.shape}.")
    check_positive(weights=weights)
    return weights


def _spread(numbers, shape, name):
    """`numbers` for each component, given for each or once for all."""
    numbers = floating(numbers)
    if numbers.shape not in (shape, shape[1:]):
        raise ValueError(f"{name} must have shape {shape[1:]} or {shape}; got {numbers.shape}.")
    ones = np.ones(shape[:1] + (1,) * (len(shape) - 1), numbers.dtype)
    return numbers if numbers.shape == shape else numbers[None] * ones


def _squared_offsets(target, x):
    # Differences, not |x|^2 - 2 x.m + |m|^2, which loses float32 digits far from the origin.
    offsets = jnp.asarray(target.means, x.dtype)[None] - x[:, None]
    return jnp.sum(offsets**2, axis=2)


def _weighted_pull(target, x, strengths):
    """`sum_k strengths_k (mean_k - x)` as one matrix product."""
    pull = strengths @ jnp.asarray(target.means, x.dtype)
    return pull - x * jnp.sum(strengths, axis=1, keepdims=True)


class GaussianMixture(Mixture):
    """A mixture of isotropic Gaussians, `p_k = N(means_k, scales_k^2 I)`.

    **Arguments:**

    - `means`: shape `(components, dim)`.
    - `scales`: standard deviations, shape `(components,)` or one number for all.
    - `weights`: positive, shape `(components,)`, normalised here; equal unless given.

    `truth` is complete and in closed form; the mass of a mode is the weight of its component.
    """

    means: Float[Leaf, "components dim"]
    scales: Float[Leaf, " components"]
    weights: Float[Leaf, " components"]
    dim: int = eqx.field(static=True)

    def __init__(self, means, scales=1.0, weights=None):
        self.means = floating(means)
        self.scales = _spread(scales, self.means.shape[:1], "scales")
        self.weights = _weights(weights, self.means.shape[0])
        self.dim = self.means.shape[1]
        check_finite(means=self.means)
        check_positive(scales=self.scales)

    def components(self, x):
        scales = jnp.asarray(self.scales, x.dtype)
        logs = -_squared_offsets(self, x) / (2 * scales**2)[None]
        logs = logs - self.dim * (jnp.log(scales) + math.log(2 * math.pi) / 2)[None]
        return logs, lambda r: _weighted_pull(self, x, r / (scales**2)[None])

    def offsets(self, key, component):
        scales = jnp.asarray(exact(self.scales))
        normal = jax.random.normal(key, (component.shape[0], self.dim), scales.dtype)
        return scales[component][:, None] * normal

    def component_covariances(self) -> np.ndarray:
        return exact(self.scales)[:, None, None] ** 2 * np.eye(self.dim)


class DenseGaussianMixture(Mixture):
    """A mixture of Gaussians of any shape, `p_k = N(means_k, covariances_k)`.

    **Arguments:**

    - `means`: shape `(components, dim)`.
    - `covariances`: shape `(components, dim, dim)`, or `(dim, dim)` shared by all.
    - `weights`: positive, shape `(components,)`, normalised here; equal unless given.

    The leaves of the density are `means`, `weights` and `whiteners`, with
    `whiteners_k^T whiteners_k` the inverse of `covariances_k`, made at construction.
    `truth` is complete and in closed form.
    """

    means: Float[Leaf, "components dim"]
    covariances: Float[Leaf, "components dim dim"]
    whiteners: Float[Leaf, "components dim dim"]
    weights: Float[Leaf, " components"]
    dim: int = eqx.field(static=True)

    def __init__(self, means, covariances, weights=None):
        self.means = floating(means)
        count, self.dim = self.means.shape
        self.covariances = _spread(covariances, (count, self.dim, self.dim), "covariances")
        self.weights = _weights(weights, count)
        check_finite(means=self.means, covariances=self.covariances)
        self.whiteners = _whiteners(exact(self.covariances))

    def components(self, x):
        whiteners = jnp.asarray(self.whiteners, x.dtype)
        offsets = jnp.asarray(self.means, x.dtype)[None] - x[:, None]
        white = jnp.einsum("kij,nkj->nki", whiteners, offsets)
        log_det = jnp.sum(jnp.log(jnp.diagonal(whiteners, axis1=1, axis2=2)), axis=1)
        logs = -jnp.sum(white**2, axis=2) / 2
        logs = logs + (log_det - self.dim * math.log(2 * math.pi) / 2)[None]
        return logs, lambda r: jnp.einsum("nk,nki,kij->nj", r, white, whiteners)

    def offsets(self, key, component):
        factors = jnp.asarray(np.linalg.cholesky(exact(self.covariances)))
        normal = jax.random.normal(key, (component.shape[0], self.dim), factors.dtype)
        return jnp.einsum("nij,nj->ni", factors[component], normal)

    def component_covariances(self) -> np.ndarray:
        return exact(self.covariances)


def _whiteners(covariances: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(np.linalg.cholesky(covariances))
    except np.linalg.LinAlgError as error:
        least = np.min(np.linalg.eigvalsh(covariances), axis=1)
        number = int(np.argmin(least))
        raise ValueError(
            f"covariances must be positive definite; number {number} has the eigenvalue "
            f"{least[number]:.3g}."
        ) from error


class StudentMixture(Mixture):
    """A mixture of isotropic multivariate Student distributions.

    `p_k(x) ∝ (1 + |x - means_k|^2 / (df scales_k^2))^{-(df + dim) / 2}`.

    **Arguments:**

    - `means`: shape `(components, dim)`.
    - `scales`: shape `(components,)` or one number for all.
    - `df`: degrees of freedom, one number.
    - `weights`: positive, shape `(components,)`, normalised here; equal unless given.

    `truth` has the mean for `df > 1` and the variance `scales_k^2 df / (df - 2)` within a component
    for `df > 2`; below, the moments do not exist and the fields are None.
    """

    means: Float[Leaf, "components dim"]
    scales: Float[Leaf, " components"]
    df: Float[Leaf, ""]
    weights: Float[Leaf, " components"]
    dim: int = eqx.field(static=True)

    def __init__(self, means, scales=1.0, df=3.0, weights=None):
        self.means = floating(means)
        self.scales = _spread(scales, self.means.shape[:1], "scales")
        self.df = floating(df)
        self.weights = _weights(weights, self.means.shape[0])
        self.dim = self.means.shape[1]
        check_finite(means=self.means)
        check_positive(scales=self.scales, df=self.df)

    def components(self, x):
        scales, df = jnp.asarray(self.scales, x.dtype), jnp.asarray(self.df, x.dtype)
        squares = _squared_offsets(self, x)
        width = (df * scales**2)[None]
        logs = -(df + self.dim) / 2 * jnp.log1p(squares / width)
        constant = jax.lax.lgamma((df + self.dim) / 2) - jax.lax.lgamma(df / 2)
        logs = logs + (constant - self.dim / 2 * jnp.log(math.pi * df * scales**2))[None]
        return logs, lambda r: _weighted_pull(self, x, r * (df + self.dim) / (width + squares))

    def offsets(self, key, component):
        scales, df = jnp.asarray(exact(self.scales)), jnp.asarray(exact(self.df))
        shape, direction = jax.random.split(key)
        n = component.shape[0]
        normal = jax.random.normal(direction, (n, self.dim), scales.dtype)
        precision = 2 * jax.random.gamma(shape, df / 2, (n,), scales.dtype) / df
        return (scales[component] / jnp.sqrt(precision))[:, None] * normal

    def component_covariances(self) -> np.ndarray | None:
        df = float(exact(self.df))
        if df <= 2:
            return None
        scales = exact(self.scales)
        return df / (df - 2) * scales[:, None, None] ** 2 * np.eye(self.dim)

    @property
    def truth(self) -> Truth:
        known = super().truth
        if known.mean is not None or float(exact(self.df)) <= 1:
            return known
        weights = exact(self.weights)
        return known._replace(mean=jnp.asarray(weights @ exact(self.means) / np.sum(weights)))


def gaussian_grid(
    side: int = 3, spacing: float = 5.0, scale: float = math.sqrt(0.3)
) -> GaussianMixture:
    """Equal isotropic Gaussians on a square grid of `side^2` means in the plane, centred at zero.

    With the defaults, the nine-mode target of the diffusion samplers: means in `{-5, 0, 5}^2`,
    variance 0.3; each coordinate has the standard deviation `sqrt(50 / 3 + 0.3) = 4.119`.

    Zhang and Chen (2022), experiments.
    """
    line = spacing * (np.arange(side) - (side - 1) / 2)
    return GaussianMixture(
        np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), scale
    )


def forty_gaussians() -> GaussianMixture:
    """Forty equal Gaussians with means in `[-40, 40]^2` and standard deviation `softplus(1)`.

    The setting of Midgley et al. (2023), section 4.1, with means that any language reproduces: the
    congruential generator `s <- 48271 s mod (2^31 - 1)` of Park, Miller and Stockmeyer (1993),
    started at `s = 123456789`, gives eighty numbers `80 s / (2^31 - 1) - 40` in order: first and
    second coordinate of the first mean, of the second, and so on. (The means of that paper and of
    its successors are draws of particular library versions, and differ among them.)
    """
    numbers, state = [], 123456789
    for _ in range(80):
        state = 48271 * state % (2**31 - 1)
        numbers.append(80 * state / (2**31 - 1) - 40)
    return GaussianMixture(np.reshape(numbers, (40, 2)), math.log1p(math.e))

"""Gaussian targets: diagonal, dense, and rotated with chosen eigenvalues."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.batching import batched_score
from driftbridge.targets.base import Target, Truth
from driftbridge.targets.leaves import (
    Leaf,
    check_finite,
    check_positive,
    exact,
    floating,
    is_concrete,
)


class DiagonalGaussian(Target):
    """Independent normals, `log_density(x) = -sum_i ((x_i - mean_i) / scale_i)^2 / 2`.

    **Arguments:**

    - `mean`: shape `(dim,)`.
    - `scale`: standard deviations, shape `(dim,)` or one number for all.

    `truth` is complete and in closed form.
    """

    mean: Float[Leaf, " dim"]
    scale: Float[Leaf, " dim"]
    dim: int = eqx.field(static=True)

    def __init__(self, mean, scale=1.0):
        self.mean = floating(mean)
        scale = floating(scale)
        # Adding zeros broadcasts a NumPy or a JAX scalar alike.
        self.scale = scale + np.zeros(self.mean.shape, scale.dtype) if scale.ndim == 0 else scale
        self.dim = self.mean.shape[0]
        check_finite(mean=self.mean)
        check_positive(scale=self.scale)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return self.value_and_score(x)[0]

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.value_and_score(x)[1]

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        scale = jnp.asarray(self.scale, x.dtype)
        standard = (jnp.asarray(self.mean, x.dtype) - x) / scale
        return -jnp.sum(standard**2) / 2, standard / scale

    @property
    def truth(self) -> Truth:
        mean, scale = exact(self.mean), exact(self.scale)

        def sample(key, n):
            normal = jax.random.normal(key, (n, self.dim), jnp.result_type(float))
            return jnp.asarray(mean)[None] + jnp.asarray(scale)[None] * normal

        return Truth(
            mean=jnp.asarray(mean),
            variance=jnp.asarray(scale**2),
            covariance=jnp.asarray(np.diag(scale**2)),
            log_normaliser=jnp.asarray(self.dim / 2 * np.log(2 * np.pi) + np.sum(np.log(scale))),
            sample=sample,
        )


def log_standard_normal(z: Float[Array, " n"]) -> Float[Array, ""]:
    """Log density of independent standard normals at `z`."""
    return -jnp.sum(z**2) / 2 - z.shape[0] / 2 * math.log(2 * math.pi)


def _one(target, x):
    offset = jnp.asarray(target.mean, x.dtype) - x
    pull = jnp.asarray(target.precision, x.dtype) @ offset
    return -jnp.sum(pull * offset) / 2, pull


def _many(target, x):
    offset = jnp.asarray(target.mean, x.dtype)[None] - x
    pull = offset @ jnp.asarray(target.precision, x.dtype)
    return -jnp.sum(pull * offset, axis=1) / 2, pull


_value_and_score = batched_score(_one, _many)


class DenseGaussian(Target):
    """A multivariate normal, `log_density(x) = -(x - mean)^T precision (x - mean) / 2`.

    The score is one matrix-vector product, and one matrix product for a batch of chains.

    **Arguments:**

    - `mean`: shape `(dim,)`.
    - `covariance`: symmetric positive definite, shape `(dim, dim)`.
    - `precision`: its inverse, where it is known better than by inverting `covariance`. The density
      depends on `mean` and `precision`; `truth` on `mean` and `covariance`.

    `truth` is complete and in closed form.
    """

    mean: Float[Leaf, " dim"]
    covariance: Float[Leaf, "dim dim"]
    precision: Float[Leaf, "dim dim"]
    dim: int = eqx.field(static=True)

    def __init__(self, mean, covariance, precision=None):
        self.mean = floating(mean)
        self.covariance = floating(covariance)
        self.dim = self.mean.shape[0]
        check_finite(mean=self.mean, covariance=self.covariance)
        if precision is None:
            precision = _inverse(self.covariance)
        self.precision = floating(precision)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return _value_and_score(self, x)[0]

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return _value_and_score(self, x)[1]

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        return _value_and_score(self, x)

    @property
    def truth(self) -> Truth:
        mean, covariance = exact(self.mean), exact(self.covariance)
        factor = np.linalg.cholesky(covariance)
        log_det = 2 * np.sum(np.log(np.diag(factor)))

        def sample(key, n):
            normal = jax.random.normal(key, (n, self.dim), jnp.result_type(float))
            return jnp.asarray(mean)[None] + normal @ jnp.asarray(factor).T

        return Truth(
            mean=jnp.asarray(mean),
            variance=jnp.asarray(np.diag(covariance)),
            covariance=jnp.asarray(covariance),
            log_normaliser=jnp.asarray((self.dim * np.log(2 * np.pi) + log_det) / 2),
            sample=sample,
        )


def _inverse(covariance):
    """Symmetric inverse by Cholesky, in NumPy where the numbers are concrete."""
    if not is_concrete(covariance):
        inverse = jnp.linalg.inv(covariance)
        return (inverse + inverse.T) / 2
    covariance = exact(covariance)
    if np.max(np.abs(covariance - covariance.T)) > 1e-6 * np.max(np.abs(covariance)):
        raise ValueError("covariance must be symmetric; pass (C + C.T) / 2.")
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError as error:
        least = np.linalg.eigvalsh(covariance)[0]
        raise ValueError(
            f"covariance must be positive definite; its least eigenvalue is {least:.3g}."
        ) from error
    return inverse.T @ inverse


def rotated_gaussian(
    dim: int, condition_number: float, *, seed: int = 0, outliers: Sequence[float] = ()
) -> DenseGaussian:
    """A centred Gaussian whose covariance has chosen eigenvalues in a random basis.

    The variances along the axes are evenly spaced in the logarithm from 1 to `condition_number`,
    after the `outliers`; the basis is uniform over the orthogonal group. Covariance and precision
    are both made from the eigenvalues, so neither loses digits to an inversion.

    **Arguments:**

    - `dim`: at least 1, and at least the number of outliers.
    - `condition_number`: at least 1.
    - `seed`: of NumPy's frozen `RandomState`, hence the same matrix in every version.
    - `outliers`: variances of directions outside the range.
    """
    if dim < max(1, len(outliers)):
        raise ValueError(f"dim must be at least 1 and the number of outliers; got {dim}.")
    if not condition_number >= 1:
        raise ValueError(f"condition_number must be at least 1; got {condition_number}.")
    check_positive(
        condition_number=condition_number, **{f"outliers[{i}]": v for i, v in enumerate(outliers)}
    )
    bulk = np.geomspace(1.0, condition_number, dim - len(outliers))
    variances = np.concatenate([np.asarray(outliers, np.float64), bulk])
    basis, triangle = np.linalg.qr(np.random.RandomState(seed).standard_normal((dim, dim)))
    # The signs of the triangle's diagonal make the factor uniform (Mezzadri 2007, section 5).
    basis = basis * np.sign(np.diag(triangle))
    return DenseGaussian(
        np.zeros(dim), (basis * variances) @ basis.T, (basis / variances) @ basis.T
    )

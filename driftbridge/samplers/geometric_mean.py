"""The geometric mean of a positive definite matrix and the inverse of another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.runtime.products import product

# Eigenvalues of a new metric relative to the largest; float32 carries no smaller ones.
EIGENVALUE_FLOOR = 1e-6


def geometric_mean(
    a: Float[Array, "dim dim"], b: Float[Array, "dim dim"]
) -> Float[Array, "dim dim"]:
    """`M` with `M b M = a`: `L^-T (L^T a L)^(1/2) L^-1` for `b = L L^T`, both positive definite."""
    factor = jnp.linalg.cholesky(b)
    values, vectors = jnp.linalg.eigh(product(product(factor.T, a), factor))
    roots = jnp.sqrt(jnp.maximum(values, EIGENVALUE_FLOOR**2 * values[-1]))
    # Q = L^-T V: M = Q diag(root) Q^T.
    basis = jax.scipy.linalg.solve_triangular(factor, vectors, lower=True, trans=1)
    return product(basis * roots[None], basis.T)

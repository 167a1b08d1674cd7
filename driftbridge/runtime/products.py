"""Matrix products in the whole precision of their factors."""

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, ArrayLike, Float


def product(a: Float[ArrayLike, "..."], b: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """`a @ b`; a GPU would otherwise round float32 factors to TF32, ten bits."""
    return jnp.matmul(a, b, precision=Precision.HIGHEST)

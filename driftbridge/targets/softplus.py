"""Softplus and log-sigmoid whose derivative is a sigmoid, for densities of users' own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Value, slope and curvature are functions of exp(-|x|) alone, which the compiler then computes
# once; a gradient without the value never pays for the logarithm.


@jax.custom_jvp
def sigmoid(x: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """`1 / (1 + exp(-x))`, with a derivative `sigmoid(x) sigmoid(-x)` that keeps its relative
    precision in both tails (`s (1 - s)` is zero in float32 from `x = 17` on)."""
    tail = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1, tail) / (1 + tail)


@sigmoid.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """`log(1 + exp(x))`, elementwise, without overflow; the derivative is `sigmoid(x)`.

    `jax.nn.softplus` has the same values, but its derivative evaluates it again, logarithm
    included, which doubles the cost of the score of a logistic regression.

    **Arguments:**

    - `x`: floating array of any shape.

    **Returns:** an array of the shape and dtype of `x`.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


def log_sigmoid(x: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """`-log(1 + exp(-x))`, elementwise, without overflow; the derivative is `sigmoid(-x)`.

    The log likelihood of a logistic regression with outcomes `y` in {0, 1} and linear predictor
    `eta` is `sum(y * eta - softplus(eta))`, or `sum(log_sigmoid(eta))` with the signs of `y`
    absorbed in `eta`.
    """
    return -softplus(-x)

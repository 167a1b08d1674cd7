"""A convex function made of a quadratic and soft maxima of affine functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.convex import newton_length
from driftbridge.transport.gradient_map import second_moments

# Gradients that differ by this, in units of the largest, are equal in float32.
CLOSE = 1e-6


class SoftMaxima(eqx.Module):
    """`phi(x) = x . Q x / 2 + share sum_g t_g log sum_j exp((a_gj . x + c_gj) / t_g)`.

    The gradient is `Q x` and `share` times the sum over groups of the mean of `a_gj` under the
    softmax: two matrix products. Soft maxima of affine functions come as close as one likes to any
    convex function on a compact set; many small groups do so with fewer of them than one large.

    Calafiore, Gaubert and Possieri (2020), arXiv 1806.07850, theorem 2.

    - `points`: `a`, the members of a group apart, so that sums over them run along groups;
      `offsets`: `c`; `temperatures`: `t > 0`.
    - `matrix`: `Q`, symmetric and positive definite.
    """

    points: Float[Array, "members groups dim"]
    offsets: Float[Array, "members groups"]
    temperatures: Float[Array, " groups"]
    matrix: Float[Array, "dim dim"]
    share: Float[Array, ""]

    def logits(self, x: Float[Array, "n dim"]) -> Float[Array, "n members groups"]:
        values = product(x, self._flat.T).reshape(-1, *self.offsets.shape) + self.offsets[None]
        return values / self.temperatures[None, None]

    def value(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        maxima = jax.nn.logsumexp(self.logits(x), axis=1) * self.temperatures[None]
        quadratic = jnp.sum(x * product(x, self.matrix), axis=1) / 2
        return quadratic + self.share * jnp.sum(maxima, axis=1)

    def gradient(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._combined(jax.nn.softmax(self.logits(x), axis=1), x)

    def hessian_product(
        self, p: Float[Array, "n members groups"], v: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        """The Hessian times `v`, at points with softmax `p`."""
        along = product(v, self._flat.T).reshape(p.shape)
        along = along - jnp.sum(p * along, axis=1, keepdims=True)
        return self._combined(p * along / self.temperatures[None, None], v)

    def hessian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        """`Q + share sum_g Cov_p(a_g) / t_g`."""
        p = jax.nn.softmax(self.logits(x), axis=1)
        root = jnp.sqrt(self.share / self.temperatures)
        means = jnp.einsum("njg,jgd->ngd", p, self.points * root[None, :, None])
        weights = (p * root[None, None] ** 2).reshape(len(x), -1)
        second = second_moments(weights, self._flat)
        return self.matrix[None] + second - product(jnp.swapaxes(means, 1, 2), means)

    @property
    def _flat(self) -> Float[Array, "m dim"]:
        return self.points.reshape(-1, self.points.shape[-1])

    def _combined(
        self, p: Float[Array, "n members groups"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        return product(x, self.matrix) + self.share * product(p.reshape(len(x), -1), self._flat)


def conjugate_points(
    phi: SoftMaxima, y: Float[Array, "n dim"], num_steps: int, num_products: int
) -> Float[Array, "n dim"]:
    """Points at which `x . y - phi(x)` is largest, by at most `num_steps` Newton steps from `y`.

    `inverse_gradient` with directions from `num_products` products of conjugate gradients, without
    dense Hessians, for points that are asked for at every step of a training.
    """
    scale, nothing_done = jnp.max(jnp.abs(y)), jnp.zeros(len(y), bool)

    def step(state):
        count, x, residual = state
        p = jax.nn.softmax(phi.logits(x), axis=1)
        direction = _conjugate_gradients(phi, p, residual, num_products)
        length = newton_length(phi.gradient, y, x, residual, direction, nothing_done)
        x = x - length[:, None] * direction
        return count + 1, x, phi.gradient(x) - y

    def goes_on(state):
        return (state[0] < num_steps) & (jnp.max(jnp.abs(state[2])) > CLOSE * scale)

    start = jnp.zeros((), jnp.int32), y, phi.gradient(y) - y
    return lax.while_loop(goes_on, step, start)[1]


def _conjugate_gradients(phi: SoftMaxima, p: Array, target: Array, count: int) -> Array:
    """The Newton direction of every row, `count` products."""
    tiny = jnp.finfo(target.dtype).tiny

    def iterate(_, state):
        solution, residual, direction, rho = state
        image = phi.hessian_product(p, direction)
        alpha = rho / jnp.maximum(jnp.sum(direction * image, axis=1), tiny)
        residual = residual - alpha[:, None] * image
        new = jnp.sum(residual**2, axis=1)
        beta = new / jnp.maximum(rho, tiny)
        solution = solution + alpha[:, None] * direction
        return solution, residual, residual + beta[:, None] * direction, new

    start = jnp.zeros_like(target), target, target, jnp.sum(target**2, axis=1)
    return lax.fori_loop(0, count, iterate, start)[0]

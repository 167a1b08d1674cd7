"""A convex function made of a quadratic and soft maxima of affine functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product

# Most bisections of the length of a Newton step, and the share of the first slope that ends them.
HALVINGS, CURVATURE = 20, 0.5
# Gradients that differ by this, in units of the largest, are equal in float32.
CLOSE = 1e-6
# Products of coordinates of all points that are held at once: 64 MiB in float32.
MOST_PRODUCTS = 1 << 24


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
        flat = self.points.reshape(-1, self.points.shape[-1])
        values = product(x, flat.T).reshape(-1, *self.offsets.shape) + self.offsets[None]
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
        flat = self.points.reshape(-1, self.points.shape[-1])
        along = product(v, flat.T).reshape(p.shape)
        along = along - jnp.sum(p * along, axis=1, keepdims=True)
        return self._combined(p * along / self.temperatures[None, None], v)

    def hessian(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim dim"]:
        """`Q + share sum_g Cov_p(a_g) / t_g`."""
        p = jax.nn.softmax(self.logits(x), axis=1)
        root = jnp.sqrt(self.share / self.temperatures)
        means = jnp.einsum("njg,jgd->ngd", p, self.points * root[None, :, None])
        flat = self.points.reshape(-1, self.points.shape[-1])
        weights = (p * root[None, None] ** 2).reshape(len(x), -1)
        if flat.size * flat.shape[1] <= MOST_PRODUCTS:
            products = (flat[:, :, None] * flat[:, None, :]).reshape(len(flat), -1)
            second = product(weights, products).reshape(-1, *self.matrix.shape)
        else:  # row by row, without an array of all products of coordinates
            second = lax.map(lambda row: product((flat * row[:, None]).T, flat), weights)
        return self.matrix[None] + second - product(jnp.swapaxes(means, 1, 2), means)

    def _combined(
        self, p: Float[Array, "n members groups"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        flat = self.points.reshape(-1, self.points.shape[-1])
        return product(x, self.matrix) + self.share * product(p.reshape(len(x), -1), flat)


def conjugate_points(
    phi: SoftMaxima, y: Float[Array, "n dim"], num_steps: int, num_products: int
) -> Float[Array, "n dim"]:
    """Points at which `x . y - phi(x)` is largest, by at most `num_steps` Newton steps from `y`.

    Each takes a direction from `num_products` products of conjugate gradients, without a dense
    Hessian, and bisects its length until the slope along it has fallen by half.
    """
    scale = jnp.max(jnp.abs(y))

    def step(state):
        count, x, residual = state
        p = jax.nn.softmax(phi.logits(x), axis=1)
        direction = _conjugate_gradients(phi, p, residual, num_products)
        x = x - _length(phi, x, y, residual, direction)[:, None] * direction
        return count + 1, x, phi.gradient(x) - y

    def goes_on(state):
        return (state[0] < num_steps) & (jnp.max(jnp.abs(state[2])) > CLOSE * scale)

    start = jnp.zeros((), jnp.int32), y, phi.gradient(y) - y
    return lax.while_loop(goes_on, step, start)[1]


def _length(phi: SoftMaxima, x: Array, y: Array, residual: Array, direction: Array) -> Array:
    """How far each row goes along its direction, 1 where the slope there has fallen by half."""
    slope = jnp.sum(direction * residual, axis=1)

    def bisect(state):
        count, low, high, length, is_found = state
        at = jnp.sum(direction * (phi.gradient(x - length[:, None] * direction) - y), axis=1)
        is_far, is_short = at < -CURVATURE * slope, at > CURVATURE * slope
        high = jnp.where(is_far & ~is_found, length, high)
        low = jnp.where(is_short & ~is_found, length, low)
        is_found = is_found | ~(is_far | is_short) | (low >= 1)
        return count + 1, low, high, jnp.where(is_found, length, (low + high) / 2), is_found

    one = jnp.ones_like(slope)
    start = jnp.zeros((), jnp.int32), 0 * one, one, one, one < 0
    return lax.while_loop(lambda state: (state[0] < HALVINGS) & ~jnp.all(state[4]), bisect, start)[
        3
    ]


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

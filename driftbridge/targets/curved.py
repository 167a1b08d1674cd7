"""Curved targets in closed form: funnel, banana, ring and two moons."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.targets.base import Target, Truth
from driftbridge.targets.leaves import check_positive
from driftbridge.targets.quadrature import LineLaw, tabulate

Number = Float[Array, ""] | float

# Widths beyond which a Gaussian profile is below 1e-30 of its top.
REACH = 12.0


def _radius(x: Float[Array, " dim"]) -> Float[Array, ""]:
    """Euclidean norm with gradient zero, not NaN, at the origin."""
    square = jnp.sum(x**2)
    is_origin = square == 0
    return jnp.where(is_origin, 0, jnp.sqrt(jnp.where(is_origin, 1, square)))


class NealFunnel(Target):
    """`x_0 ~ N(0, scale^2)` and `x_i ~ N(0, exp(x_0))` for `i = 1, ..., dim - 1`.

    The density is normalised. `Var x_i = exp(scale^2 / 2)`: 90.0 for `scale = 3`.

    **Arguments:**

    - `dim`: at least 2.
    - `scale`: standard deviation of the log variance.

    `truth` is complete and in closed form.

    Neal (2003), section 8.
    """

    dim: int = eqx.field(static=True, default=10)
    scale: Number = 3.0

    def __check_init__(self):
        check_positive(scale=self.scale)
        if self.dim < 2:
            raise ValueError(f"dim must be at least 2; got {self.dim}.")

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        scale = jnp.asarray(self.scale, x.dtype)
        rest = self.dim - 1
        neck = -((x[0] / scale) ** 2) / 2 - jnp.log(scale)
        body = -jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) / 2 - rest * x[0] / 2
        return neck + body - self.dim / 2 * math.log(2 * math.pi)

    @property
    def truth(self) -> Truth:
        scale = float(self.scale)
        variance = np.full(self.dim, math.exp(scale**2 / 2))
        variance[0] = scale**2

        def sample(key, n):
            normal = jax.random.normal(key, (n, self.dim), jnp.result_type(float))
            neck = scale * normal[:, :1]
            return jnp.concatenate([neck, jnp.exp(neck / 2) * normal[:, 1:]], axis=1)

        return Truth(
            mean=jnp.zeros(self.dim),
            variance=jnp.asarray(variance),
            covariance=jnp.asarray(np.diag(variance)),
            log_normaliser=jnp.asarray(0.0),
            sample=sample,
        )


class Banana(Target):
    """A Gaussian bent by a parabola.

    `x_0 = scale z_0`, `x_1 = z_1 + curvature (x_0^2 - scale^2)`, and `x_i = z_i` beyond, with `z`
    standard normal. The density is normalised; the mean is zero, the coordinates uncorrelated, and
    `Var x_1 = 1 + 2 curvature^2 scale^4`.

    **Arguments:**

    - `dim`: at least 2.
    - `scale`: standard deviation of the first coordinate; 10 in the source.
    - `curvature`: 0.03 in the source (0.1 for its stronger twist).

    `truth` is complete and in closed form.

    Haario, Saksman and Tamminen (1999), section 4.
    """

    dim: int = eqx.field(static=True, default=2)
    scale: Number = 10.0
    curvature: Number = 0.03

    def __check_init__(self):
        check_positive(scale=self.scale)
        if self.dim < 2:
            raise ValueError(f"dim must be at least 2; got {self.dim}.")

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        scale = jnp.asarray(self.scale, x.dtype)
        straight = x[1] - self.curvature * (x[0] ** 2 - scale**2)
        square = (x[0] / scale) ** 2 + straight**2 + jnp.sum(x[2:] ** 2)
        return -square / 2 - jnp.log(scale) - self.dim / 2 * math.log(2 * math.pi)

    @property
    def truth(self) -> Truth:
        scale, curvature = float(self.scale), float(self.curvature)
        variance = np.ones(self.dim)
        variance[:2] = scale**2, 1 + 2 * curvature**2 * scale**4

        def sample(key, n):
            normal = jax.random.normal(key, (n, self.dim), jnp.result_type(float))
            first = scale * normal[:, 0]
            second = normal[:, 1] + curvature * (first**2 - scale**2)
            return jnp.concatenate([first[:, None], second[:, None], normal[:, 2:]], axis=1)

        return Truth(
            mean=jnp.zeros(self.dim),
            variance=jnp.asarray(variance),
            covariance=jnp.asarray(np.diag(variance)),
            log_normaliser=jnp.asarray(0.0),
            sample=sample,
        )


def _radial_law(radius: float, width: float) -> LineLaw:
    """The law `∝ r exp(-(r - radius)^2 / (2 width^2))` of a distance from the origin."""

    def log_density(r):
        return np.log(np.maximum(r, np.finfo(float).tiny)) - ((r - radius) / width) ** 2 / 2

    return tabulate(log_density, max(0.0, radius - REACH * width), radius + REACH * width)


def _on_circle(angle: Float[Array, "*n"], r: Float[Array, "*n"]) -> Float[Array, "*n 2"]:
    return r[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Ring(Target):
    """A ring in the plane, `log_density(x) = -(|x| - radius)^2 / (2 width^2)`.

    **Arguments:**

    - `radius`, `width`: of the ring; 2.5 and 0.5 give the "donut" `-2 (|x| - 2.5)^2`.

    `truth` is complete. With `J_k = ∫_0^∞ r^k exp(-(r - radius)^2 / (2 width^2)) dr` the normaliser
    is `2π J_1` and the variance of a coordinate `J_3 / (2 J_1)`, in closed form by
    `J_k = radius J_{k-1} + (k - 1) width^2 J_{k-2}`. Draws invert the distribution function of the
    radius on 2^14 cells (error below 1e-6 in probability).
    """

    radius: Number = 2.5
    width: Number = 0.5
    dim: int = eqx.field(static=True, default=2, init=False)

    def __check_init__(self):
        check_positive(radius=self.radius, width=self.width)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return -(((_radius(x) - self.radius) / self.width) ** 2) / 2

    @property
    def truth(self) -> Truth:
        radius, width = float(self.radius), float(self.width)
        zeroth = width * math.sqrt(2 * math.pi) * (1 + math.erf(radius / width / math.sqrt(2))) / 2
        first = radius * zeroth + width**2 * math.exp(-((radius / width) ** 2) / 2)
        second = radius * first + width**2 * zeroth
        third = radius * second + 2 * width**2 * first
        variance = np.full(2, third / first / 2)

        def sample(key, n):
            along, across = jax.random.split(key)
            angle = jax.random.uniform(along, (n,), jnp.result_type(float), maxval=2 * math.pi)
            return _on_circle(angle, _radial_law(radius, width).sample(across, n))

        return Truth(
            mean=jnp.zeros(2),
            variance=jnp.asarray(variance),
            covariance=jnp.asarray(np.diag(variance)),
            log_normaliser=jnp.asarray(math.log(2 * math.pi * first)),
            sample=sample,
        )


class TwoMoons(Target):
    """Two crescents in the plane facing each other.

    `log_density(x) = -((|x| - radius) / width)^2 / 2
    + log(exp(-((x_0 - radius) / spread)^2 / 2) + exp(-((x_0 + radius) / spread)^2 / 2))`.

    **Arguments:**

    - `radius`, `width`: of the ring on which the moons lie.
    - `spread`: of each moon along the first axis.

    `truth`: normaliser and covariance by a product rule in polar coordinates (400 Gauss-Legendre
    nodes in the radius, 4000 trapezoidal in the angle, relative error below 1e-12 at the default
    arguments). Draws by rejection from the ring, exact but for the radius (see `Ring`).
    `modes` are at `(±radius, 0)` up to `exp(-2 (radius / spread)^2)`, with half the mass each.

    Rezende and Mohamed (2015), table 1, first potential.
    """

    radius: Number = 2.0
    width: Number = 0.4
    spread: Number = 0.6
    dim: int = eqx.field(static=True, default=2, init=False)

    def __check_init__(self):
        check_positive(radius=self.radius, width=self.width, spread=self.spread)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        ring = -(((_radius(x) - self.radius) / self.width) ** 2) / 2
        right = -(((x[0] - self.radius) / self.spread) ** 2) / 2
        left = -(((x[0] + self.radius) / self.spread) ** 2) / 2
        return ring + jnp.logaddexp(right, left)

    @property
    def modes(self) -> Float[Array, "2 2"]:
        radius = float(self.radius)
        return jnp.asarray([[radius, 0.0], [-radius, 0.0]])

    @property
    def truth(self) -> Truth:
        radius, width, spread = float(self.radius), float(self.width), float(self.spread)
        normaliser, variance = _moon_moments(radius, width, spread)
        return Truth(
            mean=jnp.zeros(2),
            variance=jnp.asarray(variance),
            covariance=jnp.asarray(np.diag(variance)),
            log_normaliser=jnp.asarray(math.log(normaliser)),
            sample=lambda key, n: _moon_draws(key, n, radius, width, spread),
            mode_weights=jnp.asarray([0.5, 0.5]),
        )


def _moon_moments(radius: float, width: float, spread: float) -> tuple[float, np.ndarray]:
    """Integral of the density and variances of both coordinates."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    lower, upper = max(0.0, radius - REACH * width), radius + REACH * width
    r = (lower + upper) / 2 + (upper - lower) / 2 * nodes
    angle = 2 * np.pi * np.arange(4000) / 4000
    x, y = np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))
    moons = np.exp(-(((x - radius) / spread) ** 2) / 2) + np.exp(
        -(((x + radius) / spread) ** 2) / 2
    )
    along = weights * (upper - lower) / 2 * r * np.exp(-(((r - radius) / width) ** 2) / 2)
    mass = along[:, None] * moons * (2 * np.pi / 4000)
    normaliser = float(np.sum(mass))
    return normaliser, np.array([np.sum(mass * x**2), np.sum(mass * y**2)]) / normaliser


def _moon_draws(key, n: int, radius: float, width: float, spread: float) -> Float[Array, "n 2"]:
    """Points of the ring kept with probability proportional to the factor in `x_0`."""
    law = _radial_law(radius, width)
    # For x_0 >= 0 the far moon's factor is at most its value at 0; likewise for x_0 < 0.
    bound = 1 + math.exp(-((radius / spread) ** 2) / 2)

    def propose(key):
        across, along, accept = jax.random.split(key, 3)
        dtype = jnp.result_type(float)
        angle = jax.random.uniform(along, (), dtype, maxval=2 * math.pi)
        point = _on_circle(angle, law.quantile(jax.random.uniform(across, (), dtype)))
        offsets = jnp.stack([point[0] - radius, point[0] + radius])
        factor = jnp.sum(jnp.exp(-((offsets / spread) ** 2) / 2))
        return point, jax.random.uniform(accept, (), dtype) * bound < factor

    def draw(key):
        def again(carry):
            key, _, _ = carry
            key, use = jax.random.split(key)
            return key, *propose(use)

        first = again((key, None, None))
        return jax.lax.while_loop(lambda carry: ~carry[2], again, first)[1]

    return jax.vmap(draw)(jax.random.split(key, n))

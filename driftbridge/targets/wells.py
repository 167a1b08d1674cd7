"""Double wells with known normaliser, moments and mass of each well, and products of them."""

import functools
import itertools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.targets.base import Target, Truth
from driftbridge.targets.leaves import check_positive
from driftbridge.targets.quadrature import LineLaw, tabulate

Number = Float[Array, ""] | float

# 2^16 modes are still listed one by one; beyond, their weights are products of those of one well.
MAX_LISTED_WELLS = 16


class QuarticLaw(NamedTuple):
    """The law `∝ exp(-quartic x^4 + quadratic x^2 + tilt x)` on the line.

    `modes` are its local maxima in ascending order and `weights` the mass up to and beyond the
    minimum between them (one mode of weight 1 where the tilt leaves only one).
    """

    line: LineLaw
    log_normaliser: float
    mean: float
    variance: float
    modes: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=32)
def quartic_law(quartic: float, quadratic: float, tilt: float) -> QuarticLaw:
    """Tabulate the law; relative error of the trapezoidal rule below 1e-12.

    Without tilt the normaliser is the closed form of `log_normaliser_untilted`.
    """

    def log_density(x):
        return -quartic * x**4 + quadratic * x**2 + tilt * x

    stationary = np.roots([4 * quartic, 0.0, -2 * quadratic, -tilt])
    # A double root comes with a rounding error of the root of the machine precision.
    stationary = np.sort(stationary.real[np.abs(stationary.imag) < 1e-7 * np.max(abs(stationary))])
    end = np.max(np.abs(stationary))
    top = np.max(log_density(stationary))
    while max(log_density(end), log_density(-end)) > top - 80:
        end *= 1.05
    line = tabulate(log_density, -end, end)
    mean = float(line.expectation(line.nodes))
    variance = float(line.expectation((line.nodes - mean) ** 2))
    if tilt == 0:
        log_normaliser = log_normaliser_untilted(quartic, quadratic)
    else:
        log_normaliser = line.log_normaliser
    modes, weights = stationary[[-1]] if tilt > 0 else stationary[[0]], np.ones(1)
    if len(stationary) == 3:
        below = tabulate(log_density, -end, stationary[1], 2**18).log_normaliser
        left = math.exp(below - log_normaliser)
        modes, weights = stationary[[0, 2]], np.array([left, 1 - left])
    return QuarticLaw(line, log_normaliser, mean, variance, modes, weights)


def log_normaliser_untilted(quartic: float, quadratic: float) -> float:
    """Log of the integral of `exp(-quartic x^4 + quadratic x^2)` over the line.

    `(π / 2) sqrt(b / (2 a)) e^z (I_{1/4}(z) + I_{-1/4}(z))` with `z = b^2 / (8 a)` for
    `a = quartic`, `b = quadratic > 0` and `I` the modified Bessel function.

    Gradshteyn and Ryzhik (2007), 3.469.1, with `K_{1/4}` and the sign of `b` continued.
    """
    from scipy.special import ive

    z = quadratic**2 / (8 * quartic)
    bessel = ive(0.25, z) + ive(-0.25, z)
    return 2 * z + math.log(math.pi / 2 * math.sqrt(quadratic / (2 * quartic)) * bessel)


def _check_wells(quartic: Number, quadratic: Number) -> None:
    check_positive(quartic=quartic, quadratic=quadratic)


class DoubleWell(Target):
    """Two wells on the line, `log_density(x) = -quartic x^4 + quadratic x^2 + tilt x`.

    The wells without tilt are at `±sqrt(quadratic / (2 quartic))`, the barrier between them is
    `quadratic^2 / (4 quartic)` high. `-(x^2 - d)^2` is `quadratic = 2 d` less the constant `d^2`.

    **Arguments:**

    - `quartic`, `quadratic`: positive; 1 and 6 in the source.
    - `tilt`: any number; 0.5 in the source, where 84.4 % of the mass is on the right.

    `truth`: the normaliser in closed form (Bessel functions, see `log_normaliser_untilted`) for
    `tilt = 0`; else, and the moments and `mode_weights` (mass on either side of the local minimum
    of the density, in the order of `modes`), by trapezoidal quadrature to a relative 1e-12. Draws
    invert the distribution function on 2^14 cells (error below 1e-6 in probability).

    Noé, Olsson, Köhler and Wu (2019), supplement.
    """

    quartic: Number = 1.0
    quadratic: Number = 6.0
    tilt: Number = 0.5
    dim: int = eqx.field(static=True, default=1, init=False)

    def __check_init__(self):
        _check_wells(self.quartic, self.quadratic)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return _wells(self, x)

    @property
    def modes(self) -> Float[Array, "modes 1"]:
        """Local maxima, in ascending order."""
        return jnp.asarray(_law(self).modes[:, None])

    @property
    def truth(self) -> Truth:
        law = _law(self)
        return Truth(
            mean=jnp.asarray([law.mean]),
            variance=jnp.asarray([law.variance]),
            covariance=jnp.asarray([[law.variance]]),
            log_normaliser=jnp.asarray(law.log_normaliser),
            sample=lambda key, n: law.line.sample(key, n)[:, None],
            mode_weights=jnp.asarray(law.weights),
        )


class ManyWell(Target):
    """Independent double wells in the first coordinates, standard normals in the others.

    `log_density(x) = sum_{i < num_wells} (-quartic x_i^4 + quadratic x_i^2 + tilt x_i)
    - sum_{i >= num_wells} x_i^2 / 2`, with `2^num_wells` modes.

    **Arguments:**

    - `num_wells`: at least 1. `num_normals`: at least 0. 16 and 16 make the 32-dimensional target
      of the source (which interleaves them).
    - `quartic`, `quadratic`, `tilt`: of each well, as in `DoubleWell`.

    `truth`: sums and products of those of `DoubleWell`. `modes` and `mode_weights` list the modes
    with the last well running fastest, each from left to right; None beyond 16 wells.

    Midgley et al. (2023), section 4.2.
    """

    num_wells: int = eqx.field(static=True, default=16)
    num_normals: int = eqx.field(static=True, default=16)
    quartic: Number = 1.0
    quadratic: Number = 6.0
    tilt: Number = 0.5

    def __check_init__(self):
        _check_wells(self.quartic, self.quadratic)
        if self.num_wells < 1 or self.num_normals < 0:
            raise ValueError(
                "num_wells must be at least 1 and num_normals at least 0; "
                f"got {self.num_wells} and {self.num_normals}."
            )

    @property
    def dim(self) -> int:
        return self.num_wells + self.num_normals

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return _wells(self, x[: self.num_wells]) - jnp.sum(x[self.num_wells :] ** 2) / 2

    @property
    def modes(self) -> Float[Array, "modes dim"] | None:
        """Local maxima; the last well runs fastest."""
        if self.num_wells > MAX_LISTED_WELLS:
            return None
        places = itertools.product(_law(self).modes, repeat=self.num_wells)
        wells = np.asarray(list(places))
        return jnp.asarray(np.pad(wells, ((0, 0), (0, self.num_normals))))

    @property
    def truth(self) -> Truth:
        law, wells, normals = _law(self), self.num_wells, self.num_normals
        variance = np.r_[np.full(wells, law.variance), np.ones(normals)]
        log_normaliser = wells * law.log_normaliser + normals / 2 * math.log(2 * math.pi)
        weights = None
        if wells <= MAX_LISTED_WELLS:
            weights = jnp.asarray(functools.reduce(np.kron, [law.weights] * wells))

        def sample(key, n):
            curved, straight = jax.random.split(key)
            first = law.line.sample(curved, n * wells).reshape(n, wells)
            rest = jax.random.normal(straight, (n, normals), first.dtype)
            return jnp.concatenate([first, rest], axis=1)

        return Truth(
            mean=jnp.asarray(np.r_[np.full(wells, law.mean), np.zeros(normals)]),
            variance=jnp.asarray(variance),
            covariance=jnp.asarray(np.diag(variance)),
            log_normaliser=jnp.asarray(log_normaliser),
            sample=sample,
            mode_weights=weights,
        )


def _wells(target: DoubleWell | ManyWell, x: Float[Array, " wells"]) -> Float[Array, ""]:
    squares = x**2
    return jnp.sum(squares * (target.quadratic - target.quartic * squares) + target.tilt * x)


def _law(target: DoubleWell | ManyWell) -> QuarticLaw:
    return quartic_law(float(target.quartic), float(target.quadratic), float(target.tilt))

"""The exact Ornstein-Uhlenbeck increment and the primitives A, B, O, U of kinetic dynamics.

All kinetic methods share the convention

`dx = v dt,  dv = -friction v dt + u score(x) dt + sqrt(2 friction u) dW`,

whose invariant law is `exp(log_density(x) - |v|^2 / (2u))`. The law of the positions depends on
`(friction, u, h)` only through `friction h` and `u h^2`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Vector = Float[Array, "..."]
Number = Float[Array, "..."] | float

# (eta - 2 tanh(eta/2)) / eta^3 in powers of eta^2, and (eta + expm1(-eta)) / eta^2 in powers of
# -eta: both differences cancel at small eta.
_RESIDUAL_SERIES = (1 / 12, -1 / 120, 17 / 20160, -31 / 362880, 691 / 79833600)
_FACTORIALS = (2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800, 39916800)
_SECOND_SERIES = tuple(1 / factorial for factorial in _FACTORIALS)


class FreeFlight(NamedTuple):
    """Coefficients of the dynamics without force over a time `t`, with `eta = friction t`.

    - `decay`: `exp(-eta)`.
    - `e1`: `E1 = (1 - exp(-eta)) / friction`, position gained for each unit of velocity, and
      velocity for each unit of constant acceleration.
    - `e2`: `E2 = (t - E1) / friction`, position gained for each unit of constant acceleration.
    - `velocity_noise`: standard deviation of the velocity's increment.
    - `slope`: regression coefficient of the position's increment on the velocity's.
    - `position_noise`: standard deviation of the position's increment given the velocity's.
    """

    decay: Number
    e1: Number
    e2: Number
    velocity_noise: Number
    slope: Number
    position_noise: Number


def _polynomial(coefficients: Sequence[float], x: Number) -> Number:
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = coefficient + x * value
    return value


def free_flight(friction: Number, time: Number, u: Number = 1.0) -> FreeFlight:
    """Coefficients of the exact flow without force, without cancellation, right as friction -> 0.

    `Var v = u (1 - exp(-2 eta))`, `Cov(x, v) = (u / friction) (1 - exp(-eta))^2`, and
    `x | v` has mean `tanh(eta/2) / friction v` and variance
    `2 u (eta - 2 tanh(eta/2)) / friction^2`. The textbook variance of `x` loses all its digits in
    float32 at `eta = 0.01`; here the differences are series below `eta = 0.5` (float32) or `0.1`
    (float64), where their truncation and the rounding of the direct form meet.

    **Arguments:**

    - `friction`: `>= 0`, per unit time.
    - `time`: `t >= 0`.
    - `u`: `> 0`, variance of the velocity in equilibrium.
    """
    eta = jnp.asarray(friction * time)
    is_small = eta < (0.5 if jnp.finfo(eta.dtype).bits <= 32 else 0.1)
    # Both branches are evaluated: the direct one at a harmless value where it is not used.
    large = jnp.where(is_small, 1.0, eta)
    second = _polynomial(_SECOND_SERIES, -eta)
    residual = _polynomial(_RESIDUAL_SERIES, eta**2)
    lost = jnp.expm1(-large)
    phi1 = jnp.where(is_small, 1 - eta * second, -lost / large)
    phi2 = jnp.where(is_small, second, (large + lost) / large**2)
    half = -lost / (2 + lost)  # tanh(large / 2)
    slope = jnp.where(is_small, 0.5 - eta**2 * residual / 2, half / large)
    residual = jnp.where(is_small, residual, (large - 2 * half) / large**3)
    return FreeFlight(
        decay=jnp.exp(-eta),
        e1=time * phi1,
        e2=time * time * phi2,
        velocity_noise=jnp.sqrt(-u * jnp.expm1(-2 * eta)),
        slope=time * slope,
        position_noise=time * jnp.sqrt(2 * u * eta * residual),
    )


def ballistic(time: Number) -> FreeFlight:
    """The flow without force and without friction: `x + t v`."""
    return FreeFlight(1.0, time, time * time / 2, 0.0, time / 2, 0.0)


def ou_noise(flight: FreeFlight, z1: Vector, z2: Vector) -> tuple[Vector, Vector]:
    """Increments of position and velocity, from two independent standard normals each."""
    velocity = flight.velocity_noise * z1
    return flight.slope * velocity + flight.position_noise * z2, velocity


def normals_of(flight: FreeFlight, increments: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    """Inverse of `ou_noise` for a time that is not zero."""
    position, velocity = increments
    rest = position - flight.slope * velocity
    return velocity / flight.velocity_noise, rest / flight.position_noise


def compose(
    first: tuple[Vector, Vector], second: tuple[Vector, Vector], flight: FreeFlight
) -> tuple[Vector, Vector]:
    """Increments over two consecutive times, `flight` being that of the second.

    `nx = nx_a + E1(t) nv_a + nx_b`, `nv = exp(-friction t) nv_a + nv_b`: the semigroup law, which
    couples steps of different sizes to one Brownian path.
    """
    return first[0] + flight.e1 * first[1] + second[0], flight.decay * first[1] + second[1]


def drift(position: Vector, velocity: Vector, time: Number) -> Vector:
    """A: the position after uniform motion."""
    return position + time * velocity


def kick(velocity: Vector, score: Vector, time: Number, u: Number = 1.0) -> Vector:
    """B: the velocity after a constant force."""
    return velocity + (time * u) * score


def refresh(velocity: Vector, flight: FreeFlight, normal: Vector) -> Vector:
    """O: the velocity after friction and noise at rest."""
    return flight.decay * velocity + flight.velocity_noise * normal


def fly(
    position: Vector, velocity: Vector, flight: FreeFlight, z1: Vector, z2: Vector
) -> tuple[Vector, Vector]:
    """U: position and velocity after the exact flow without force."""
    nx, nv = ou_noise(flight, z1, z2)
    return position + flight.e1 * velocity + nx, flight.decay * velocity + nv

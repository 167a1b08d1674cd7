"""Paths of interpolants: how much of the source and of the target a point holds at a time.

`x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z`. A schedule of one's own is a subclass with `alpha`
and `beta`; their derivatives are taken by differentiation.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.gammas import Gamma, NoNoise
from driftbridge.transport.points import traced

Time = Float[Array, "..."]

# How far from 0 and 1 the coefficients at the ends of a path may be.
ENDS = 1e-5


class Schedule(eqx.Module):
    """The coefficients of source and target, functions of times of any shape, applied to each.

    A subclass implements `alpha`, with `alpha(0) = 1` and `alpha(1) = 0`, and `beta`, with
    `beta(0) = 0` and `beta(1) = 1`.
    """

    ends: ClassVar[tuple[tuple[float, float], tuple[float, float]]] = ((1.0, 0.0), (0.0, 1.0))
    needs_noise: ClassVar[str | None] = None

    @abc.abstractmethod
    def alpha(self, t: Time) -> Time:
        """The coefficient of the source."""

    @abc.abstractmethod
    def beta(self, t: Time) -> Time:
        """The coefficient of the target."""

    def coefficients(self, t: Time) -> tuple[Time, Time]:
        """`alpha(t)` and `beta(t)`."""
        return self.alpha(t), self.beta(t)

    def rates(self, t: Time) -> tuple[Time, Time]:
        """Their derivatives."""
        return derivative(self.alpha, t), derivative(self.beta, t)


class OneSided(Schedule):
    """A path whose source is a standard normal independent of the target, and plays the noise.

    Its score is `-E[x0 | x_t] / alpha(t)`, and a function of the velocity: with
    `w = beta alpha' - alpha beta'`, `E[x0 | x_t = x] = (beta b(t, x) - beta' x) / w`.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 3.2.
    """


class Linear(Schedule):
    """`alpha = 1 - t`, `beta = t`."""

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def beta(self, t: Time) -> Time:
        return t


class Trigonometric(Schedule):
    """`(alpha, beta) = sqrt(1 - gamma^2) (cos(pi t / 2), sin(pi t / 2))`.

    Whitened and independent source and target keep their covariance along it.

    **Arguments:** `gamma`: that of the interpolant, at most 1; without noise the root is 1.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 4.

    **Raises:** `ValueError` for a `gamma` that exceeds 1.
    """

    gamma: Gamma = NoNoise()

    def __check_init__(self):
        t = np.linspace(0, 1, 129, dtype=np.float32)[1:-1]
        found = self.gamma.squared(jax.device_put(t))
        if not traced(found) and not float(found.max()) < 1:
            raise ValueError(
                f"gamma must stay below 1 on a Trigonometric path; {self.gamma} reaches "
                f"{float(found.max()) ** 0.5:.3g}."
            )

    def alpha(self, t: Time) -> Time:
        return jnp.sqrt(1 - self.gamma.squared(t)) * jnp.cos(np.pi / 2 * t)

    def beta(self, t: Time) -> Time:
        return jnp.sqrt(1 - self.gamma.squared(t)) * jnp.sin(np.pi / 2 * t)


class EncodingDecoding(Schedule):
    """`cos^2(pi t)`, for the source to `t = 1/2` and for the target after it.

    Points lose their source before they learn of their target: what they are half-way is noise
    alone, so that no pairing matters, and without noise a single point.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 4.
    """

    needs_noise: ClassVar[str | None] = "all points meet in one at t = 1/2"

    def alpha(self, t: Time) -> Time:
        return jnp.where(t <= 0.5, jnp.cos(np.pi * t) ** 2, 0)

    def beta(self, t: Time) -> Time:
        return jnp.where(t > 0.5, jnp.cos(np.pi * t) ** 2, 0)


class OneSidedLinear(Linear, OneSided):
    """`x_t = (1 - t) z + t x1`."""


class OneSidedTrigonometric(OneSided):
    """`x_t = cos(pi t / 2) z + sin(pi t / 2) x1`."""

    def alpha(self, t: Time) -> Time:
        return jnp.cos(np.pi / 2 * t)

    def beta(self, t: Time) -> Time:
        return jnp.sin(np.pi / 2 * t)


class Mirror(Schedule):
    """`x_t = x1 + gamma(t) z`: from the target to itself, the source being of the same law.

    The flow is the identity; what the stochastic process makes of a point is a new draw near it.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 3.3.
    """

    ends: ClassVar[tuple[tuple[float, float], tuple[float, float]]] = ((0.0, 0.0), (1.0, 1.0))
    needs_noise: ClassVar[str | None] = "nothing moves"

    def alpha(self, t: Time) -> Time:
        return jnp.zeros_like(t)

    def beta(self, t: Time) -> Time:
        return jnp.ones_like(t)


def derivative(f: Callable[[Time], Time], t: Time) -> Time:
    """`f'(t)` of a function applied to each time."""
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def check_path(schedule: Schedule, gamma: Gamma) -> None:
    """Refuse a path that does not begin in the source and end in the target, or has no density.

    **Raises:** `ValueError` naming the coefficient, its value and what it must be.
    """
    t = jax.device_put(np.asarray([0.0, 1.0], np.float32))
    inside = jax.device_put(np.linspace(0, 1, 65, dtype=np.float32)[1:-1])
    noise, squares = gamma.squared(t), gamma.squared(inside)
    found = (schedule.alpha(t), schedule.beta(t))
    if any(traced(value) for value in (noise, squares, *found)):
        return
    for name, values, ends in zip(("alpha", "beta"), found, schedule.ends, strict=True):
        for time, value, end in zip((0, 1), values, ends, strict=True):
            if not abs(float(value) - end) <= ENDS:
                raise ValueError(
                    f"{name}({time}) of {type(schedule).__name__} must be {end:g}; it is "
                    f"{float(value):.3g}, so that the path misses "
                    f"{'the source' if time == 0 else 'the target'}."
                )
    for time, value in zip((0, 1), noise, strict=True):
        if not abs(float(value)) <= ENDS**2:
            raise ValueError(
                f"gamma({time}) of {type(gamma).__name__} must be 0; its square is "
                f"{float(value):.3g}, so that the path misses "
                f"{'the source' if time == 0 else 'the target'}."
            )
    has_noise = not isinstance(gamma, NoNoise)
    if has_noise and not bool((squares > 0).all()):
        raise ValueError(f"gamma of {type(gamma).__name__} must be positive inside (0, 1).")
    if has_noise and isinstance(schedule, OneSided):
        raise ValueError(
            f"{type(schedule).__name__} has its noise in the source: its gamma is NoNoise(), not "
            f"{type(gamma).__name__}."
        )
    if schedule.needs_noise is not None and not has_noise:
        raise ValueError(
            f"{type(schedule).__name__} needs a gamma such as Brownian(); without noise "
            f"{schedule.needs_noise}."
        )

"""What the velocity, the score and the denoiser of an interpolant minimise.

All are quadratic in the model, and each is written without the part of the square that does not
depend on it: that part is infinite where `gamma'` or `1 / gamma` is.
"""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Objective
from driftbridge.transport.conditions import drawn_with_codes
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.fields import Field, column
from driftbridge.transport.frames import Frame
from driftbridge.transport.gammas import Gamma, NoNoise
from driftbridge.transport.resampling import even_times, normals
from driftbridge.transport.schedules import OneSided, Schedule

# Times nearer to an end are taken as this far from it: nearer, float32 cannot tell the antithetic
# points apart, and the score is a small number over a small one.
NEAR = 1e-3


class Interpolated(NamedTuple):
    """Points of a batch: times, the path without noise, its derivative, and the noise."""

    t: Float[Array, " n"]
    path: Float[Array, "n dim"]
    moving: Float[Array, "n dim"]
    z: Float[Array, "n dim"]
    condition: Float[Array, "n k"] | None


class InterpolantObjective(Objective):
    """Batches of `I_t = alpha x0 + beta x1` with its derivative and a normal `z`, in a frame.

    The source of a one-sided path is drawn, not taken from the pairs. A model is called with times,
    points and conditions, and is what is added to the field `base`.
    """

    coupling: Coupling
    frame: Frame
    base: Field

    @property
    def schedule(self) -> Schedule:
        return self.base.schedule

    @property
    def gamma(self) -> Gamma:
        return self.base.gamma

    def batch(self, key: Key[Array, ""], n: int) -> Interpolated:
        x, y, condition = drawn_with_codes(self.coupling, fold_in(key, 0), n)
        zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
        x0, x1 = self.frame.enter(zero, x), self.frame.enter(one, y)
        t = inside(even_times(fold_in(key, 1), n, x.dtype))
        z = normals(fold_in(key, 2), x.shape, x.dtype)
        if isinstance(self.schedule, OneSided):
            x0 = z
        alpha, beta = (column(c) for c in self.schedule.coefficients(t))
        d_alpha, d_beta = (column(c) for c in self.schedule.rates(t))
        return Interpolated(t, alpha * x0 + beta * x1, d_alpha * x0 + d_beta * x1, z, condition)

    @abc.abstractmethod
    def known(self, t: Float[Array, " n"], x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """What of the base the model is added to."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Interpolated) -> Float[Array, ""]:
        """The mean loss of a coordinate."""

    def value(
        self, model: Any, t: Float[Array, " n"], x: Float[Array, "n dim"], condition: Any
    ) -> Float[Array, "n dim"]:
        """What the base and a model are together."""
        return self.known(t, x) + model(t, x, condition)

    def pair(self, model: Any, batch: Interpolated) -> tuple[Array, Array]:
        """The value at the antithetic points `I + gamma z` and `I - gamma z`."""
        noise = column(self.gamma(batch.t)) * batch.z
        both = jnp.concatenate([batch.path + noise, batch.path - noise])
        condition = batch.condition
        if condition is not None:
            condition = jnp.concatenate([condition, condition])
        found = self.value(model, jnp.concatenate([batch.t, batch.t]), both, condition)
        return found[: len(batch.t)], found[len(batch.t) :]


class VelocityLoss(InterpolantObjective):
    """`E |b - I'|^2 - 2 E gamma' z . b` at `I + gamma z`, in the mean with the antithetic point.

    The second term is `gamma' z . (b(I + gamma z) - b(I - gamma z))`, which stays finite where
    `gamma'` is not. Without noise it is the loss of flow matching.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), sections 2.2 and 6.1.
    """

    def known(self, t: Float[Array, " n"], x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.base.velocity(t, x)

    def loss(self, model: Any, batch: Interpolated) -> Float[Array, ""]:
        if isinstance(self.gamma, NoNoise):
            found = self.value(model, batch.t, batch.path, batch.condition)
            return jnp.mean((found - batch.moving) ** 2)
        rate = column(self.gamma.product(batch.t) / self.gamma(batch.t))
        plus, minus = self.pair(model, batch)
        squares = ((plus - batch.moving) ** 2 + (minus - batch.moving) ** 2) / 2
        return jnp.mean(squares - rate * batch.z * (plus - minus))


class ScoreLoss(InterpolantObjective):
    """`E |s|^2 + 2 E z . s / gamma` at `I + gamma z`, in the mean with the antithetic point.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 2.2.
    """

    def known(self, t: Float[Array, " n"], x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.base.score(t, x)

    def loss(self, model: Any, batch: Interpolated) -> Float[Array, ""]:
        plus, minus = self.pair(model, batch)
        across = batch.z * (plus - minus) / column(self.gamma(batch.t))
        return jnp.mean((plus**2 + minus**2) / 2 + across)


class DenoiserLoss(InterpolantObjective):
    """`E |eta - z|^2` at `I + gamma z`, whose minimiser is `E[z | x_t] = -gamma s`.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 2.2.
    """

    def known(self, t: Float[Array, " n"], x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.base.denoiser(t, x)

    def loss(self, model: Any, batch: Interpolated) -> Float[Array, ""]:
        noisy = batch.path + column(self.gamma(batch.t)) * batch.z
        found = self.value(model, batch.t, noisy, batch.condition)
        return jnp.mean((found - batch.z) ** 2)


def inside(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Times at least `1e-3` from both ends."""
    return jnp.clip(t, NEAR, 1 - NEAR)

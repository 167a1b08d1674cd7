"""Learned fields of interpolants: networks for the velocity and for what gives the score."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.transport.base import Times
from driftbridge.transport.fields import Field, column
from driftbridge.transport.gammas import Gamma
from driftbridge.transport.interpolant_losses import (
    DenoiserLoss,
    InterpolantObjective,
    ScoreLoss,
    inside,
)
from driftbridge.transport.schedules import Schedule


class ScoreModel(eqx.Module):
    """What a second network learns, and the score that it gives."""

    @property
    @abc.abstractmethod
    def objective(self) -> type[InterpolantObjective]:
        """Its loss."""

    @abc.abstractmethod
    def score(
        self, value: Float[Array, "n dim"], gamma: Float[Array, "_ 1"]
    ) -> Float[Array, "n dim"]:
        """The score, of the network's value and of `gamma(t)`."""


class Denoiser(ScoreModel):
    """The network learns `E[z | x_t]`; the score is that over `-gamma`.

    At times within `1e-3` of 0 and 1, where `gamma` vanishes, it is that of `1e-3` from them.
    """

    @property
    def objective(self) -> type[InterpolantObjective]:
        return DenoiserLoss

    def score(
        self, value: Float[Array, "n dim"], gamma: Float[Array, "_ 1"]
    ) -> Float[Array, "n dim"]:
        return -value / gamma


class Score(ScoreModel):
    """The network learns the score, from antithetic pairs."""

    @property
    def objective(self) -> type[InterpolantObjective]:
        return ScoreLoss

    def score(
        self, value: Float[Array, "n dim"], gamma: Float[Array, "_ 1"]
    ) -> Float[Array, "n dim"]:
        return value


# Noise in a point above which a learned score is trusted in full.
TRUSTED = 0.25


class Learned(Field):
    """A learned field. An error of a learned denoiser is one of the score over the noise."""

    def trust(self, t: Times) -> Float[Array, "..."]:
        """`(noise / .25)^2`, at most 1, by which the volatility is multiplied."""
        return jnp.minimum((self.noise(t) / TRUSTED) ** 2, 1)


class Velocity(eqx.Module):
    """A learned velocity alone: of an interpolant without noise, which has no score."""

    network: Any
    schedule: Schedule
    gamma: Gamma

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.network(t, x, None)

    def __call__(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.velocity(t, x)


class VelocityAndScore(Learned):
    """A learned velocity, and a learned score or denoiser."""

    network: Any
    second: Any
    model: ScoreModel
    schedule: Schedule
    gamma: Gamma

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.network(t, x, None)

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        t = inside(t)
        return self.model.score(self.second(t, x, None), column(self.gamma(t)))


class OneSidedVelocity(Learned):
    """A learned velocity of a one-sided path, which gives the score: see `OneSided`.

    At times within `1e-3` of 0 and 1 the score is that of `1e-3` from them.
    """

    network: Any
    schedule: Schedule
    gamma: Gamma

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.network(t, x, None)

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        t = inside(t)
        alpha, beta = (column(c) for c in self.schedule.coefficients(t))
        d_alpha, d_beta = (column(c) for c in self.schedule.rates(t))
        along = beta * self.velocity(t, x) - d_beta * x
        return -along / (alpha * (beta * d_alpha - alpha * d_beta))

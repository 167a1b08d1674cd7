"""The field between standard normals: what an interpolant of whitened laws has before it learns."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.fields import Field, column
from driftbridge.transport.gammas import Gamma
from driftbridge.transport.schedules import Schedule


class WhitenedField(Field):
    """The field between two standard normals with a symmetric cross covariance `Q diag(k) Q'`.

    Along the axes `Q` the variance of `x_t` is `S = alpha^2 + beta^2 + 2 alpha beta k + gamma^2`,
    the score `-x / S` and the velocity `S' x / (2 S)`, whose flow is the identity: `S(0) = S(1)`.
    """

    axes: Float[Array, "dim dim"]
    correlations: Float[Array, " dim"]
    schedule: Schedule
    gamma: Gamma

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        alpha, beta = (column(c) for c in self.schedule.coefficients(t))
        d_alpha, d_beta = (column(c) for c in self.schedule.rates(t))
        k = self.correlations[None]
        growth = alpha * d_alpha + beta * d_beta + (d_alpha * beta + alpha * d_beta) * k
        return self._along((growth + column(self.gamma.product(t))) / self._variances(t), x)

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return -self._along(1 / self._variances(t), x)

    def _variances(self, t: Times) -> Float[Array, "_ dim"]:
        alpha, beta = (column(c) for c in self.schedule.coefficients(t))
        k = self.correlations[None]
        return alpha**2 + beta**2 + 2 * alpha * beta * k + column(self.gamma.squared(t))

    def _along(
        self, factors: Float[Array, "_ dim"], x: Float[Array, "n dim"]
    ) -> Float[Array, "n dim"]:
        return product(product(x, self.axes) * factors, self.axes.T)


def whitened_field(
    cross: Float[np.ndarray, "dim dim"], schedule: Schedule, gamma: Gamma, dtype: Any
) -> WhitenedField:
    """The field of the symmetric part of a cross covariance, its eigenvalues kept in [0, 1].

    Below 0, laws would all but vanish half-way; pairs that are better than random have none there.
    """
    values, axes = np.linalg.eigh((cross + cross.T) / 2)
    return WhitenedField(
        axes=as_dtype(axes, dtype),
        correlations=as_dtype(np.clip(values, 0, 1), dtype),
        schedule=schedule,
        gamma=gamma,
    )

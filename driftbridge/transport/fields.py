"""What moves the law of an interpolant, and the field from a normal law to data, which is known.

Known fields are models that need no training: each makes a map, and learned ones are compared with
them.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import Fit, Times, as_dtype
from driftbridge.transport.gammas import Gamma, NoNoise
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.interpolant_map import StochasticInterpolantMap
from driftbridge.transport.points import as_weights
from driftbridge.transport.resampling import as_table
from driftbridge.transport.schedules import OneSided, Schedule, check_path

# Below it the law of an interpolant that ends in data is not told from the data.
LEAST_ALPHA = 1e-3
FLOW = RungeKutta4()


class Field(eqx.Module):
    """What moves the law of an interpolant `x_t = alpha x0 + beta x1 + gamma z`.

    A subclass has `schedule` and `gamma` and implements `velocity`, `b = E[dx_t / dt | x_t]`, and
    `score`, the gradient of the log density of `x_t`. Times are `()` or `(n,)`, points `(n, dim)`.
    """

    schedule: eqx.AbstractVar[Schedule]
    gamma: eqx.AbstractVar[Gamma]

    @abc.abstractmethod
    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`b(t, x)`."""

    @abc.abstractmethod
    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`s(t, x)`."""

    def trust(self, t: Times) -> Float[Array, "..."]:
        """How much of the volatility asked for is used, in [0, 1]: all, of a score that
        is known."""
        return jnp.ones_like(t)

    def denoiser(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`E[z | x_t = x] = -gamma s`; of a one-sided path, whose noise is `x0`, `-alpha s`."""
        return -column(self.noise(t)) * self.score(t, x)

    def noise(self, t: Times) -> Float[Array, "..."]:
        """The amount of normal noise in `x_t`: `gamma(t)`, or `alpha(t)` of a one-sided path."""
        one_sided = isinstance(self.schedule, OneSided)
        return self.schedule.alpha(t) if one_sided else self.gamma(t)

    def v(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`E[alpha' x0 + beta' x1 | x_t = x] = b + gamma gamma' s`."""
        return self.velocity(t, x) + column(self.gamma.product(t)) * self.score(t, x)

    def __call__(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.velocity(t, x)


class KnownField(Field):
    """A field in closed form. A subclass has `like`, a point of the space."""

    @property
    @abc.abstractmethod
    def like(self) -> Float[Array, " dim"]:
        """Any point, for its dimension and dtype."""

    def map(
        self, epsilon: Any = 1.0, num_steps: int = 100, scheme: Scheme = FLOW
    ) -> StochasticInterpolantMap:
        """The map of the field, in the user's coordinates.

        **Arguments:** `epsilon`, `num_steps`, `scheme`: as of `StochasticInterpolantMap`.
        """
        fit = Fit(type(self).__name__, reason="in closed form")
        return StochasticInterpolantMap(fit, self, self.like, num_steps, scheme, epsilon=epsilon)


class EmpiricalField(KnownField):
    """The field from a standard normal to data: `x_t = alpha z + beta x_j`, `j` drawn by weight.

    `E[x1 | x_t = x]` is the mean of the data with weights proportional to
    `w_j exp(-|x - beta x_j|^2 / (2 alpha^2))`. The flow ends in the data themselves, and its
    velocity grows there as `1 / alpha`: Euler's scheme on a linear path ends in them exactly, where
    schemes that look at time 1 do worse. An `alpha` below `1e-3` is taken as `1e-3`. With noise let
    it die out, as by `epsilon=lambda t: 1 - t`.

    **Arguments:** `points`: `(n, dim)`; `schedule`: a one-sided one; `weights`: of points, None for
    equal ones.

    **Raises:** `ValueError` for a schedule that is not one-sided.
    """

    points: Float[Array, "n dim"]
    log_weights: Float[Array, " n"]
    schedule: Schedule
    gamma: Gamma

    def __init__(self, points: Any, schedule: Schedule, weights: Any = None):
        if not isinstance(schedule, OneSided):
            raise ValueError(
                f"data as a model need a one-sided schedule, such as OneSidedLinear(); got "
                f"{type(schedule).__name__}."
            )
        check_path(schedule, NoNoise())
        table = as_table(points, "points")
        with np.errstate(divide="ignore"):
            weights = np.log(as_weights(weights, len(table), "points"))
        self.points = jax.device_put(table)
        self.log_weights = as_dtype(weights, table.dtype)
        self.schedule, self.gamma = schedule, NoNoise()

    @property
    def like(self) -> Float[Array, " dim"]:
        return self.points[0]

    def target(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """`E[x1 | x_t = x]`."""
        alpha, beta = self._coefficients(t)
        squares = jnp.sum(self.points**2, axis=1)[None]
        logits = (beta * product(x, self.points.T) - beta**2 * squares / 2) / alpha**2
        return product(jax.nn.softmax(logits + self.log_weights[None], axis=1), self.points)

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        alpha, beta = self._coefficients(t)
        d_alpha, d_beta = (column(c) for c in self.schedule.rates(t))
        target = self.target(t, x)
        return d_alpha * (x - beta * target) / alpha + d_beta * target

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        alpha, beta = self._coefficients(t)
        return (beta * self.target(t, x) - x) / alpha**2

    def _coefficients(self, t: Times) -> tuple[Array, Array]:
        alpha, beta = (column(c) for c in self.schedule.coefficients(t))
        return jnp.maximum(alpha, LEAST_ALPHA), beta


def column(value: Float[Array, "..."]) -> Float[Array, "_ 1"]:
    """A number of each time as a column, one row where there is one time."""
    return jnp.reshape(value, (-1, 1))

"""The maps that a fitted or a known interpolant makes: by its flow, and by diffusions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.dtypes import default_dtype
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Stochastic, Times, as_dtype
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.frames import Frame, Unmoved
from driftbridge.transport.points import as_rows, traced
from driftbridge.transport.stochastic_integration import (
    StochasticHeun,
    StochasticScheme,
    noise_of,
    simulate,
)
from driftbridge.transport.streaming import rows_of_block

# Number of the key of draws that run back.
BACKWARD = 2**32 - 1


class InterpolantMap(FlowMap):
    """The flow of an interpolant, `dx/dt = b(t, x)`, solved in a moving frame.

    `field` is the velocity in the coordinates of `frame`, `x = m_t + A_t u`.
    """

    frame: Frame = Unmoved()

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._leave(1, super()._transport(self._enter(0, x)))

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._leave(0, super()._inverse(self._enter(1, y)))

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        return super()._log_det(self._enter(0, x)) + self.frame.log_det()

    def _trajectory(
        self, x: Float[Array, "n dim"], times: tuple[float, ...]
    ) -> Float[Array, "n times dim"]:
        inner = super()._trajectory(self._enter(0, x), times)
        places = [self._leave(time, inner[:, i]) for i, time in enumerate(times)]
        return jnp.stack(places, axis=1)

    def _velocity(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, "n dim"]:
        u = self.frame.enter(t, x)
        moving = jnp.ones_like(t), self.field.velocity(t, u)
        return jax.jvp(self.frame.leave, (t, u), moving)[1]

    def _enter(self, t: Any, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.frame.enter(jnp.asarray(t, self.dtype), x)

    def _leave(self, t: Any, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self.frame.leave(jnp.asarray(t, self.dtype), u)


class Varying(eqx.Module):
    """A volatility that is a function of time."""

    function: Any = eqx.field(static=True)

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        return self.function(t)


def as_volatility(epsilon: Any) -> Any:
    """A number `>= 0` as an array, or a function of time as a module."""
    if callable(epsilon):
        return epsilon if isinstance(epsilon, eqx.Module) else Varying(epsilon)
    if traced(epsilon):
        return epsilon
    value = np.asarray(epsilon, np.float64)
    if value.shape != () or not 0 <= value < np.inf:
        raise ValueError(f"epsilon must be a number of at least 0 or a function of t; got {value}.")
    return as_dtype(value, default_dtype())


class StochasticInterpolantMap(InterpolantMap, Stochastic):
    """The flow of an interpolant, and the diffusions that have its laws.

    In the coordinates `u` of `frame`, for every volatility `epsilon(t) >= 0`,

    `du = (b + epsilon s / 2) dt + sqrt(epsilon) dW` from time 0 on, and
    `du = (b - epsilon s / 2) dt + sqrt(epsilon) dW` from time 1 back

    have the law of the interpolant at every time, as the flow `du/dt = b` has. `T(x)` is the flow's
    image, not the mean of the draws. `epsilon` and the scheme are no part of the fit:
    `dataclasses.replace(T, epsilon=4.0)`, or `epsilon=lambda t: 1 - t`.

    - `epsilon`: a number, or a function of `t`, in the units of the frame: of a fitted map, whose
      source has unit covariance there, it is of the order of 1.
    - `num_noisy_steps`, `noisy_scheme`: of the solution with noise.

    Where the score is learned, and the noise in `x_t` small, an error of what the network learns is
    divided by that noise. There the volatility used is `epsilon` times the square of four times
    the noise, until it is 1/4: no law depends on it.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), section 2.3; their epsilon is half this
    one.
    """

    epsilon: Any = eqx.field(default=1.0, converter=as_volatility)
    num_noisy_steps: int = eqx.field(static=True, default=100)
    noisy_scheme: StochasticScheme = eqx.field(static=True, default=StochasticHeun())

    def score(self, t: Any, x: Any) -> Any:
        """The gradient of the log density of `x_t`, in the coordinates of `x`.

        **Arguments:** `t`: a time in [0, 1], or one for each point; `x`: points `(n, dim)`.

        **Raises:** `ValueError` for times outside [0, 1].
        """
        return self._at_times("_score", t, x)

    def sample_backward(self, key: int | Key[Array, ""], y: Any, n: int = 1) -> Any:
        """`n` draws of the source given each point of the target: `(points, n, dim)`."""
        rows = as_rows(y, "y", self.dim, self.fit.columns)
        # Other noise than on the way forward, which a round trip with one key would cancel.
        key = fold_in(as_key(key), BACKWARD)
        return self._of_rows("_sample_backward", np.atleast_2d(rows), key, static=(n,))

    def _score(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, "n dim"]:
        u, pull = jax.vjp(lambda x: self.frame.enter(t, x), x)
        return pull(self.field.score(t, u))[0]

    def _sample(
        self, x: Float[Array, "n dim"], keys: Key[Array, " n"], n: int
    ) -> Float[Array, "n draws dim"]:
        return self._diffused(x, keys, n, 0, 1)

    def _sample_backward(
        self, y: Float[Array, "n dim"], keys: Key[Array, " n"], n: int
    ) -> Float[Array, "n draws dim"]:
        return self._diffused(y, keys, n, 1, 0)

    def _diffused(self, x, keys, n: int, start: int, end: int):
        """Draws in groups, so that no more points are held than of a block of rows."""
        rows, dim = x.shape
        together = max(1, min(n, rows_of_block(self.row_floats) // rows))
        sign = 1 if end > start else -1

        def drift(t, u):
            noise = self._volatility(t) / 2
            return self.field.velocity(t, u) + sign * noise * self.field.score(t, u)

        def group(number):
            draws = number * together + jnp.arange(together)
            each = jax.vmap(lambda key: fold_in(key, draws))(keys).reshape(-1)
            u = jnp.repeat(self._enter(start, x), together, axis=0)
            u = simulate(
                drift, self._volatility, u, noise_of(each, dim, self.dtype), start, end,
                self.num_noisy_steps, self.noisy_scheme,
            )  # fmt: skip
            return self._leave(end, u).reshape(rows, together, dim)

        groups = lax.map(group, jnp.arange(-(-n // together)))
        return jnp.moveaxis(groups, 0, 1).reshape(rows, -1, dim)[:, :n]

    def _volatility(self, t: Float[Array, ""]) -> Float[Array, ""]:
        found = self.epsilon(t) if callable(self.epsilon) else self.epsilon
        return jnp.asarray(found, self.dtype) * self.field.trust(t)

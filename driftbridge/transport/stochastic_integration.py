"""Solutions of stochastic differential equations with additive noise, a batch of points at once."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.resampling import normals

# `drift(t, x)` at one time for all.
Drift = Callable[[Float[Array, ""], Float[Array, "n dim"]], Float[Array, "n dim"]]
# `noise(k)`: standard normals of step `k`, one row for each point.
Noise = Callable[[Int[Array, ""]], Float[Array, "n dim"]]
# `volatility(t)`.
Volatility = Callable[[Float[Array, ""]], Float[Array, ""]]


class StochasticScheme(eqx.Module):
    """A one-step method. Its error in law falls with the step to the power `weak_order`."""

    weak_order: ClassVar[int]

    @abc.abstractmethod
    def step(self, drift: Drift, t: Array, x: Array, h: Array, noise: Array) -> Array:
        """The state at `t + h`; `noise` is that of the whole step, with its variance."""


class EulerMaruyama(StochasticScheme):
    """`x + h f(t, x) + noise`."""

    weak_order: ClassVar[int] = 1

    def step(self, drift: Drift, t: Array, x: Array, h: Array, noise: Array) -> Array:
        return x + h * drift(t, x) + noise


class StochasticHeun(StochasticScheme):
    """`x + h (f(t, x) + f(t + h, x + h f(t, x) + noise)) / 2 + noise`.

    As the noise does not depend on `x`, its expansion has all terms of the weak Taylor scheme of
    order two, whose double integral of noise and time is replaced by its mean given the noise.

    Kloeden and Platen (1992), section 15.1, equation 1.1.
    """

    weak_order: ClassVar[int] = 2

    def step(self, drift: Drift, t: Array, x: Array, h: Array, noise: Array) -> Array:
        first = drift(t, x)
        second = drift(t + h, x + h * first + noise)
        return x + h / 2 * (first + second) + noise


def simulate(
    drift: Drift,
    volatility: Volatility,
    x: Float[Array, "n dim"],
    noise: Noise,
    start: Any,
    end: Any,
    num_steps: int,
    scheme: StochasticScheme,
) -> Float[Array, "n dim"]:
    """`dx = drift dt + sqrt(volatility) dW` from `start` to `end`, by `num_steps` equal steps.

    Where `end < start` the process runs back, and `dt` is negative. The noise of a step has the
    volatility of its middle.
    """
    dtype = x.dtype
    start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    h = (end - start) / num_steps

    def step(x, k):
        t = start + k.astype(dtype) * h
        spread = jnp.sqrt(jnp.abs(h) * jnp.asarray(volatility(t + h / 2), dtype))
        return scheme.step(drift, t, x, h, spread * noise(k)), None

    return lax.scan(step, x, jnp.arange(num_steps))[0]


def noise_of(keys: Key[Array, " n"], dim: int, dtype: Any) -> Noise:
    """Noise of a key for each row, so that a path does not depend on the rows beside it."""

    def noise(k: Int[Array, ""]) -> Float[Array, "n dim"]:
        return jax.vmap(lambda key: normals(fold_in(key, k), (dim,), dtype))(keys)

    return noise

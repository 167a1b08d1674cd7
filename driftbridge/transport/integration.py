"""Solutions of ordinary differential equations by fixed steps, a batch of points at once."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# `velocity(t, state)` at one time for all; a state is any tree of arrays.
Velocity = Callable[[Float[Array, ""], Any], Any]


class Scheme(eqx.Module):
    """A one-step method. Its error falls with the step to the power `order`."""

    order: ClassVar[int]

    @abc.abstractmethod
    def step(self, velocity: Velocity, t: Array, x: Any, h: Array) -> Any:
        """The state at `t + h`."""


class Euler(Scheme):
    """`x + h v(t, x)`."""

    order: ClassVar[int] = 1

    def step(self, velocity: Velocity, t: Array, x: Any, h: Array) -> Any:
        return _moved(x, (h, velocity(t, x)))


class Heun(Scheme):
    """`x + h (k1 + k2) / 2`, `k2` at the end of an Euler step."""

    order: ClassVar[int] = 2

    def step(self, velocity: Velocity, t: Array, x: Any, h: Array) -> Any:
        first = velocity(t, x)
        second = velocity(t + h, _moved(x, (h, first)))
        return _moved(x, (h / 2, first), (h / 2, second))


class RungeKutta4(Scheme):
    """The classical method of order four."""

    order: ClassVar[int] = 4

    def step(self, velocity: Velocity, t: Array, x: Any, h: Array) -> Any:
        first = velocity(t, x)
        second = velocity(t + h / 2, _moved(x, (h / 2, first)))
        third = velocity(t + h / 2, _moved(x, (h / 2, second)))
        fourth = velocity(t + h, _moved(x, (h, third)))
        return _moved(x, (h / 6, first), (h / 3, second), (h / 3, third), (h / 6, fourth))


def integrate(
    velocity: Velocity, x: Any, start: Any, end: Any, num_steps: int, scheme: Scheme
) -> Any:
    """The state at time `end` that begins as `x` at `start`, by `num_steps` equal steps.

    Backwards where `end < start`.
    """
    dtype = jax.tree.leaves(x)[0].dtype
    start, end = jnp.asarray(start, dtype), jnp.asarray(end, dtype)
    h = (end - start) / num_steps

    def step(x, k):
        return scheme.step(velocity, start + k * h, x, h), None

    return lax.scan(step, x, jnp.arange(num_steps, dtype=dtype))[0]


def _moved(x: Any, *terms: tuple[Array, Any]) -> Any:
    """`x` and multiples of directions."""
    for share, direction in terms:
        x = jax.tree.map(lambda a, b, s=share: a + s * b, x, direction)
    return x

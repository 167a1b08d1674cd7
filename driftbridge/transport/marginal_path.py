"""Paths of laws from source to target, known by draws at given times."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.transport.couplings import Coupling

Weighted = tuple[Float[Array, "n dim"], Float[Array, " n"]]


class MarginalPath(eqx.Module):
    """Laws of all times in [0, 1], positive measures of any mass."""

    @abc.abstractmethod
    def at(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Weighted:
        """A draw at each time, `(n, dim)`, and its weight `(n,)`.

        The mean of `w f(x)` is the integral of `f` by the law of the time. One key should give
        neighbouring draws at neighbouring times, so that differences in time have little noise.
        """


class Lines(MarginalPath):
    """`x_t = (1 - t) x0 + t x1` between the pairs of a coupling, of mass `ratio^t`."""

    coupling: Coupling
    ratio: Float[Array, ""]

    def at(self, key: Key[Array, ""], t: Float[Array, " n"]) -> Weighted:
        x, y = self.coupling.pairs(key, t.shape[0])
        return x + t[:, None] * (y - x), jnp.power(self.ratio, t)

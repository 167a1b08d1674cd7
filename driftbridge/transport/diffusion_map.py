"""The map of a process with noise: draws of its end, and their mean."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Learned, Stochastic, Times
from driftbridge.transport.resampling import normals
from driftbridge.transport.stochastic_integration import (
    Noise,
    StochasticHeun,
    noise_of,
    simulate,
)

# Draws of which the mean is an image.
NUM_DRAWS = 64


class DiffusionMap(Learned, Stochastic):
    """`dX = drift(t, X) dt + sqrt(epsilon) dW` from time 0 to time 1.

    `T.sample(key, x, n)` draws the end of paths that start at `x`: these have the law of the
    target. `T(x)` is the mean of 64 draws, the same noise for all points; **means do not have the
    law of the target**, they lie closer together.

    - `field`: the drift, a module of `(t, x)`; `drift(t, x)` calls it.
    - `num_steps`: of Heun's scheme with additive noise, of weak order two.
    """

    field: Any
    like: Float[Array, " dim"]
    epsilon: Float[Array, ""]
    num_steps: int = eqx.field(static=True, default=20)

    @property
    def row_floats(self) -> int:
        return 64 * NUM_DRAWS * max(self.dim, 16)

    def drift(self, t: Any, x: Any) -> Any:
        """The drift at times in [0, 1], one or one for each point, and points `(n, dim)`."""
        return self._at_times("_drift", t, x)

    def _drift(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, "n dim"]:
        return self.field(t, x)

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        half = NUM_DRAWS // 2

        def noise(k: Array) -> Float[Array, "rows dim"]:
            drawn = normals(fold_in(as_key(0), k), (half, self.dim), self.dtype)
            return jnp.tile(jnp.concatenate([drawn, -drawn]), (x.shape[0], 1))

        return jnp.mean(self._ends(x, NUM_DRAWS, noise), axis=1)

    def _sample(
        self, x: Float[Array, "n dim"], key: Key[Array, " n"], n: int
    ) -> Float[Array, "n draws dim"]:
        each = jax.vmap(lambda own: fold_in(own, jnp.arange(n)))(key).reshape(-1)
        return self._ends(x, n, noise_of(each, self.dim, self.dtype))

    def _ends(self, x: Float[Array, "n dim"], draws: int, noise: Noise) -> Float[Array, "n _ dim"]:
        """Ends of so many paths from each point."""
        start = jnp.repeat(x, draws, axis=0)
        ends = simulate(
            self.field, lambda t: self.epsilon, start, noise, 0, 1, self.num_steps, StochasticHeun()
        )
        return ends.reshape(-1, draws, self.dim)

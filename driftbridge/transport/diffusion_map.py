"""The map of a process with noise: draws of its end, and their mean."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import Stochastic, Times, check_times
from driftbridge.transport.points import as_rows, like_rows, traced
from driftbridge.transport.resampling import normals

# Draws of which the mean is an image.
NUM_DRAWS = 64


class DiffusionMap(Stochastic):
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
    def dim(self) -> int:
        return self.like.shape[0]

    @property
    def dtype(self) -> Any:
        return self.like.dtype

    @property
    def row_floats(self) -> int:
        return 64 * NUM_DRAWS * max(self.dim, 16)

    def drift(self, t: Any, x: Any) -> Any:
        """The drift at times in [0, 1], one or one for each point, and points `(n, dim)`."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        batch = rows if rows.ndim > 1 else rows[None]
        if not (traced(t) or traced(rows)):
            check_times(t)
        found = _drift(self.field, jnp.asarray(t, self.dtype), jnp.asarray(batch, self.dtype))
        return like_rows(found if rows.ndim > 1 else found[0], x, self.fit.columns)

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        key, half = as_key(0), NUM_DRAWS // 2

        def shared(k: Array) -> Float[Array, "draws dim"]:
            noise = normals(fold_in(key, k), (half, self.dim), self.dtype)
            return jnp.concatenate([noise, -noise])

        def noise(k: Array) -> Float[Array, "n draws dim"]:
            return jnp.broadcast_to(shared(k)[None], (x.shape[0], NUM_DRAWS, self.dim))

        return jnp.mean(self._ends(x, NUM_DRAWS, noise), axis=1)

    def _sample(
        self, x: Float[Array, "n dim"], key: Key[Array, " n"], n: int
    ) -> Float[Array, "n draws dim"]:
        def noise(k: Array) -> Float[Array, "n draws dim"]:
            each = jax.vmap(lambda own: normals(fold_in(own, k), (n, self.dim), self.dtype))
            return each(key)

        return self._ends(x, n, noise)

    def _ends(
        self, x: Float[Array, "n dim"], draws: int, noise: Any
    ) -> Float[Array, "n draws dim"]:
        """Paths from each point, with `noise(k)` the normals of step `k`."""
        rows, h = x.shape[0], 1 / self.num_steps
        size = jnp.sqrt(self.epsilon * h)

        def velocity(t: Times, places: Array) -> Array:
            return self.field(t, places.reshape(rows * draws, self.dim)).reshape(places.shape)

        def step(places: Array, k: Array) -> tuple[Array, None]:
            t = k.astype(x.dtype) * h
            shaken = places + size * noise(k)
            first = velocity(t, places)
            second = velocity(t + h, shaken + h * first)
            return shaken + h / 2 * (first + second), None

        start = jnp.broadcast_to(x[:, None, :], (rows, draws, self.dim))
        return lax.scan(step, start, jnp.arange(self.num_steps))[0]


@eqx.filter_jit
def _drift(field: Any, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
    return field(t, x)

"""Maps that jump from time to time by one evaluation of a network each, and how they are judged."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.training import Objective
from driftbridge.transport.base import Learned, Times
from driftbridge.transport.batch_distances import distances
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.flow_map import Residual
from driftbridge.transport.mccann import McCann

# Rows of source and of target between which the held-out distance is taken.
JUDGED = 1024


class Jump(eqx.Module):
    """A learned jump on top of the affine map's: `x_t = G_{s,t}(x_s) + (t - s) scale net(s, t, u)`.

    `G` moves points along the straight paths of the affine map, and `u` is where on the source they
    came from along these, whitened. The network takes `s` as its time and `t` as its condition; one
    that is zero leaves the affine map.
    """

    base: McCann
    network: Any
    scale: Float[Array, ""]

    def __call__(self, s: Times, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        s, t = (jnp.broadcast_to(time, (x.shape[0],)) for time in (s, t))
        start = self.base.start_of(s, x)
        learned = self.network(s, self.base.whitened(start), t[:, None])
        slope = self.base.velocity_of(start) + self.scale * learned
        return x + (t - s)[:, None] * slope


class StraightJump(eqx.Module):
    """`x_t = x_s + (t - s) v(s, x_s)`: right where the velocity is constant along its own path."""

    field: Residual

    def __call__(self, s: Times, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        s, t = (jnp.broadcast_to(time, (x.shape[0],)) for time in (s, t))
        return x + (t - s)[:, None] * self.field(s, x)


class FewStepMap(Learned):
    """`T(x)` after `num_steps` equal jumps from time 0 to time 1, one evaluation each.

    It has no density and no inverse: nothing makes a jump invertible.

    - `jump`: a module of `(s, t, x)`.
    - `num_steps`: another number of jumps is `dataclasses.replace(T, num_steps=...)`; a map with
      `multiple` segments takes multiples of it.
    """

    jump: Any
    like: Float[Array, " dim"]
    num_steps: int = eqx.field(static=True, default=1)
    multiple: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.num_steps < 1 or self.num_steps % self.multiple:
            raise ValueError(
                f"num_steps must be a positive multiple of {self.multiple}, the number of segments "
                f"of the map; got {self.num_steps}."
            )

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return jumped(self.jump, x, self.num_steps)


def jumped(jump: Any, x: Float[Array, "n dim"], num_steps: int) -> Float[Array, "n dim"]:
    """Points of time 0 after `num_steps` jumps to time 1."""
    for k in range(num_steps):
        s, t = (jnp.asarray(i / num_steps, x.dtype) for i in (k, k + 1))
        x = jump(s, t, x)
    return x


class ImageDistance(Objective):
    """The energy distance between images of held-out source points and held-out target points.

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|` over the scale, of at most 1024 rows of each: what a map of
    few steps is for. The losses that train one compare it with itself, so they cannot tell which of
    two is better.
    """

    coupling: Coupling
    trained: Objective
    num_steps: int = eqx.field(static=True)

    def batch(self, key: Key[Array, ""], n: int) -> Any:
        return self.coupling.pairs(key, min(n, JUDGED))

    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        x, y = batch
        trained: Any = self.trained
        image = jumped(trained.jump(model), x, self.num_steps)
        between = 2 * distances(image, y).mean()
        within = distances(image, image).mean() + distances(y, y).mean()
        return (between - within) / (trained.scale * np.sqrt(x.shape[1]))

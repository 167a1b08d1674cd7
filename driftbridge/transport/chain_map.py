"""Maps one after another, each near the identity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.affine import AffineMap
from driftbridge.transport.base import Invertible
from driftbridge.transport.energies import Gaussian

# Iterations of a fixed point, and its residual, in units of the spread, that counts as reached.
FIXED_POINT, REACHED = 200, 1e-4


class Displacement(eqx.Module):
    """`u -> net(u) + A u + b`, all of it zero at first.

    What maps between Gaussians add to points is in its class without the network.
    """

    network: Any
    matrix: Float[Array, "dim dim"]
    shift: Float[Array, " dim"]

    def __call__(self, u: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        zero = jnp.zeros((), u.dtype)
        return self.network(zero, u, None) + product(u, self.matrix) + self.shift[None]


class Move(eqx.Module):
    """`x -> x + R d(u)`, `u` the whitened `x` and `R` the root of its covariance."""

    reference: Gaussian
    displacement: Displacement

    def __call__(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        moved = self.displacement(self.reference.whitened(x))
        return x + product(moved, self.reference.root)


class ChainMap(Invertible):
    """`T = T_K o ... o T_1`, after an affine map where there is one.

    The inverse of a step is the limit of `x <- x + y - T_k(x)`, which exists where the step moves
    points by less than a contraction; where it does not, `inverse` says so.

    - `start`: an `AffineMap`, or None.
    - `moves`: a `Move` whose arrays have the steps as their first axis.
    """

    start: AffineMap | None
    moves: Move

    @property
    def num_moves(self) -> int:
        return self.moves.displacement.shift.shape[0]

    @property
    def dim(self) -> int:
        return self.moves.displacement.shift.shape[1]

    @property
    def dtype(self) -> Any:
        return self.moves.displacement.shift.dtype

    @property
    def row_floats(self) -> int:
        return 64 * max(self.dim, 16)

    def stages(self, x: Any) -> Float[Array, "moves n dim"]:
        """Places of points before the first step and after each: `(K + 1, n, dim)`."""
        return jnp.moveaxis(jnp.asarray(self._of_rows("_stages", x)), 1, 0)

    def _stages(self, x: Float[Array, "n dim"]) -> Float[Array, "n moves dim"]:
        def move(x, arrays):
            x = eqx.combine(arrays, rest)(x)
            return x, x

        arrays, rest = eqx.partition(self.moves, eqx.is_array)
        x = x if self.start is None else self.start._transport(x)
        places = lax.scan(move, x, arrays)[1]
        return jnp.moveaxis(jnp.concatenate([x[None], places]), 0, 1)

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._stages(x)[:, -1]

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        def back(y, arrays):
            move = eqx.combine(arrays, rest)
            x = lax.fori_loop(0, FIXED_POINT, lambda _, x: x + y - move(x), y)
            spread = jnp.sqrt(jnp.mean(move.reference.root**2) * self.dim)
            rounding = 16 * jnp.finfo(y.dtype).eps * jnp.max(jnp.abs(y), axis=1)
            missed = jnp.max(jnp.abs(move(x) - y), axis=1)
            return jnp.where((missed < REACHED * spread + rounding)[:, None], x, jnp.nan), None

        arrays, rest = eqx.partition(self.moves, eqx.is_array)
        x = lax.scan(back, y, arrays, reverse=True)[0]
        return x if self.start is None else self.start._inverse(x)


def stacked(moves: list[Move]) -> Move:
    """Moves of one structure as one, on the host, where nothing compiles."""
    parts = [eqx.partition(move, eqx.is_array) for move in moves]
    arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *(arrays for arrays, _ in parts))
    return eqx.combine(jax.device_put(arrays), parts[0][1])

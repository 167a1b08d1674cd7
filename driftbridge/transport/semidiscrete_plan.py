"""The result of a semidiscrete problem: a plan held as one potential."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.products import product
from driftbridge.transport.account import Account
from driftbridge.transport.laguerre import probabilities, scores_of
from driftbridge.transport.marginal_error import MarginalError


@dataclass(frozen=True, eq=False)
class Solve(Account):
    """How a potential was found.

    - `num_points`: without those that fill a size up.
    - `status`: "converged", "max_iterations" or "not_finite".
    - `iterations`, `batch_size`: steps of stochastic ascent, and draws of each.
    - `history`: `(iteration, chi2, chi2_error)` of every check, the last one last.
    - `error`: from draws that neither a step nor a check has seen.
    - `seconds`: wall time.
    """

    num_points: int
    status: str
    iterations: int
    batch_size: int
    history: tuple[tuple[int, float, float], ...]
    error: MarginalError
    seconds: float


class SemidiscretePlan(eqx.Module):
    """A transport plan from a law with a density to finitely many points.

    Given `x`, the target is `y_j` with the probability
    `p_j(x) = softmax_j(log b_j + (g_j - |x - y_j|^2 / 2) / epsilon)`; for `epsilon = 0` it is
    `argmin_j |x - y_j|^2 / 2 - g_j`, in whose Laguerre cell `x` lies.

    Arrays are filled up to a size for which programs are compiled, with points of weight zero.

    - `points`: `y_j - centre`; `centre` is their mean, which keeps the digits of products.
    - `weights`: `b_j`.
    - `potential`: `g_j`, with `sum_j b_j g_j = 0`.
    - `epsilon`: of the cost `|x - y|^2 / 2`.
    - `is_hard`: whether `epsilon = 0`.
    - `solve`: how the potential was found.
    """

    points: Float[Array, "n dim"]
    centre: Float[Array, " dim"]
    weights: Float[Array, " n"]
    potential: Float[Array, " n"]
    epsilon: Float[Array, ""]
    is_hard: bool = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    @property
    def g(self) -> Float[np.ndarray, " n"]:
        """The potential at the points that were given."""
        return np.asarray(self.potential)[: self.solve.num_points]

    @property
    def y(self) -> Float[np.ndarray, "n dim"]:
        """The points that were given."""
        return np.asarray(self.points + self.centre[None])[: self.solve.num_points]

    @property
    def status(self) -> str:
        return self.solve.status

    @property
    def converged(self) -> bool:
        return self.solve.status == "converged"

    def assign(self, x: Float[Array, "m dim"]) -> Int[Array, " m"]:
        """The point in whose Laguerre cell each `x` lies; for `epsilon > 0` the likeliest one."""
        return jnp.argmax(self._scores(x), axis=1).astype(jnp.int32)

    def probabilities(self, x: Float[Array, "m dim"]) -> Float[Array, "m n"]:
        """The conditional law of the target given each `x`."""
        return probabilities(self._scores(x), self.epsilon, self.is_hard)

    def draw_rows(self, key: Key[Array, ""], x: Float[Array, "m dim"]) -> Int[Array, " m"]:
        """A row of the points for each `x`, drawn from its conditional law."""
        if self.is_hard:
            return self.assign(x)
        drawn = jax.random.categorical(key, self._scores(x) / self.epsilon, axis=1)
        return drawn.astype(jnp.int32)

    def draw_each(
        self, keys: Key[Array, " m"], x: Float[Array, "m dim"], n: int
    ) -> Int[Array, "m n"]:
        """`n` rows of the points for each `x`, with a key for each."""
        if self.is_hard:
            return jnp.broadcast_to(self.assign(x)[:, None], (x.shape[0], n))
        logits = self._scores(x) / self.epsilon
        draw = jax.vmap(lambda key, row: jax.random.categorical(key, row, shape=(n,)))
        return draw(keys, logits).astype(jnp.int32)

    def barycentre(self, x: Float[Array, "m dim"]) -> Float[Array, "m dim"]:
        """The mean of the conditional law given each `x`."""
        if self.is_hard:
            return (self.points + self.centre[None])[self.assign(x)]
        return self.centre[None] + product(self.probabilities(x), self.points)

    def _scores(self, x: Float[Array, "m dim"]) -> Float[Array, "m n"]:
        scores = scores_of(self.points, self.weights, self.epsilon, self.is_hard)
        return scores(self.potential, x - self.centre[None])

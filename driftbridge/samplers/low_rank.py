"""A diagonal metric with a few directions stretched."""

from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.samplers.metric import Metric


class LowRankMetric(Metric):
    """`L = diag(scale) (I + U diag(stretch - 1) U^T)`, with orthonormal columns in `U`.

    `L L^T = diag(scale) (I + U diag(stretch² - 1) U^T) diag(scale)`; each product costs
    `2 dim rank` multiplications.

    **Arguments:**

    - `scale`: positive, shape `(dim,)`.
    - `basis`: `U`, shape `(dim, rank)`.
    - `stretch`: positive, shape `(rank,)`.
    """

    scale: Float[Array, " dim"]
    basis: Float[Array, "dim rank"]
    stretch: Float[Array, " rank"]

    def unwhiten(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.scale * self._stretched(z, self.stretch)

    def whiten(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretched(x / self.scale, 1 / self.stretch)

    def whiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretched(self.scale * score, self.stretch)

    def unwhiten_score(self, score: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._stretched(score, 1 / self.stretch) / self.scale

    def _stretched(self, x, factors):
        return x + product((factors - 1) * product(x, self.basis), self.basis.T)

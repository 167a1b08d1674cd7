"""The map of a flow whose points also gain or lose weight."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.base import Times
from driftbridge.transport.flow_map import FlowMap
from driftbridge.transport.integration import integrate
from driftbridge.transport.points import as_rows, like_rows
from driftbridge.transport.resampling import systematic

# Share of the points of which the effective number, below it, is said.
FEW = 0.5


class WeightedFlowMap(FlowMap):
    """A flow with growth: `dx/dt = v(t, x)`, `d log w/dt = g(t, x)`.

    `T(x)` are places alone. **Their law is that of the target only with the weights
    `exp(T.log_weights(x))`**, or drawn by them: `T.resampled(key, x)`. `T.log_prob` is that of the
    weighted law, whose mass is that of the target over that of the source.

    - `field`: a module of `(t, x)`, the velocity; its `rates(t, x)` are velocity `(n, dim)` and
      growth `(n,)`.
    """

    def growth(self, t: Any, x: Any) -> Any:
        """The growth `g(t, x)`, a rate: `(n,)`.

        **Arguments:** `t`: a time in [0, 1], or one for each point; `x`: points `(n, dim)`.

        **Raises:** `ValueError` for times outside [0, 1].
        """
        return self._at_times("_growth", t, x)

    def log_weights(self, x: Any) -> Any:
        """`log w` at time 1 of points that start with weight 1: the mass that ends at `T(x)` over
        that at `x`.

        **Arguments:** `x`: points `(n, dim)`. **Returns:** `(n,)`.
        """
        return self._of_rows("_log_weights", as_rows(x, "x", self.dim, self.fit.columns))

    def mass(self, x: Any) -> float:
        """The mean weight over points of the source: the mass of the target for a source of 1."""
        return float(np.mean(np.exp(np.asarray(self.log_weights(x), np.float64))))

    def effective_share(self, x: Any) -> float:
        """Effective number of weighted points over their number, `(sum w)^2 / (n sum w^2)`."""
        weights = self._relative_weights(x)
        return float(np.sum(weights) ** 2 / (len(weights) * np.sum(weights**2)))

    def resampled(self, key: int | Key[Array, ""], x: Any) -> Any:
        """As many points as `x` has, of equal weight, with the law of the target.

        Images of rows drawn by their weights, each as often as its weight says up to one
        (systematic resampling). The flow has no noise, so that one draw at the end is as good as
        draws on the way.

        **Arguments:** `key`: seed or typed key; `x`: points of the source `(n, dim)`.
        """
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        return like_rows(self(rows[self._drawn(key, rows)]), x, self.fit.columns)

    def log_prob(self, y: Any, base: Any) -> Any:
        """Log density at `y` of the weighted law: `log p0(x) + log w(x) - log |det dT/dx|`.

        It integrates to the mass of the target over that of the source. Arguments as of other maps.
        """
        x = self.inverse(as_rows(y, "y", self.dim, self.fit.columns))
        return base(x) + self.log_weights(x) - self.log_det(x)

    def report(self, x: Any, y: Any, key: int | Key[Array, ""] = 0) -> Any:
        """What the map does to points it has not seen, the source drawn by its weights: see
        `MapReport`."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        return super().report(rows[self._drawn(key, rows)], y, key)

    def _drawn(self, key: int | Key[Array, ""], rows: Any) -> np.ndarray:
        weights = self._relative_weights(rows)
        return systematic(weights, len(weights), host_generator(as_key(key)))

    def _relative_weights(self, x: Any) -> Float[np.ndarray, " n"]:
        values = np.asarray(self.log_weights(x), np.float64)
        return np.exp(values - values.max())

    def _growth(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, " n"]:
        return self.field.rates(t, x)[1]

    def _log_weights(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        def rates(t, state):
            return self.field.rates(t, state[0])

        start = x, jnp.zeros(x.shape[0], x.dtype)
        return integrate(rates, start, 0, 1, self.num_steps, self.scheme)[1]


def weight_messages(found: WeightedFlowMap, x: Float[np.ndarray, "n dim"]) -> tuple[str, ...]:
    """What must be said of the weights of points."""
    share = found.effective_share(x)
    if share >= FEW:
        return ()
    return (
        f"weights vary: {len(x)} held-out points count as {share * len(x):.0f}; use as many more "
        "points of the source",
    )

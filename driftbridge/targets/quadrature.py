"""A law on the line tabulated on a grid: its normaliser, moments and exact draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


class LineLaw(NamedTuple):
    """A density on a uniform grid.

    - `nodes`: the grid.
    - `mass`: probability of each node under the trapezoidal rule; sums to one.
    - `cdf`: cumulative trapezoidal probability at the nodes, from 0 to 1.
    - `log_normaliser`: log of the integral.
    """

    nodes: np.ndarray
    mass: np.ndarray
    cdf: np.ndarray
    log_normaliser: float

    def expectation(self, values: np.ndarray) -> np.ndarray:
        """Integral of `values` at the nodes (leading axis) against the law."""
        return np.tensordot(self.mass, values, axes=1)

    def quantile(self, uniform: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Inverse of the distribution function, linear between nodes.

        That is the inverse of a density constant on each cell; its error in probability is
        `O(spacing^2)`.
        """
        cdf = jnp.asarray(self.cdf, uniform.dtype)
        return jnp.interp(uniform, cdf, jnp.asarray(self.nodes, uniform.dtype))

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, " n"]:
        """Independent draws by `quantile`."""
        return self.quantile(jax.random.uniform(key, (n,), jnp.result_type(float)))


def tabulate(
    log_density: Callable[[np.ndarray], np.ndarray], lower: float, upper: float, num: int = 2**14
) -> LineLaw:
    """Tabulate a density that is negligible (or vanishes) outside `[lower, upper]`.

    The trapezoidal rule converges faster than any power of the spacing for a smooth density that
    vanishes with its derivatives at both ends.

    **Arguments:**

    - `log_density`: NumPy function of the nodes, up to a constant.
    - `lower`, `upper`: ends of the grid.
    - `num`: number of cells.

    Trefethen and Weideman (2014), theorem 5.1.
    """
    nodes = np.linspace(lower, upper, num + 1)
    logs = log_density(nodes)
    top = np.max(logs)
    values = np.exp(logs - top)
    spacing = (upper - lower) / num
    cells = np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2)])
    total = cells[-1]
    mass = values / total
    mass[[0, -1]] /= 2
    return LineLaw(nodes, mass, cells / total, float(top + np.log(total * spacing)))

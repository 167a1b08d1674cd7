"""An entropic transport problem as the solvers take it: padded, centred, of one dtype."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.costs import Cost, cost_matrix

# Stands for log 0: it loses against every logarithm of a weight, and makes no NaN.
LOG_ZERO = -1e30
# Bytes of a block of rows: it stays in cache between its two uses.
BLOCK_BYTES = 1 << 22
# Rows of a block at least: a product of fewer takes longer to lay out its columns than to multiply.
LEAST_ROWS = 32
# Dimensions up to which products of coordinates are added one by one, beside the exponential.
ADDED = 4


class Problem(eqx.Module):
    """Minimise `<C, P> + epsilon KL(P | a b)` over plans `P` with marginals `a` and `b`.

    The plan of potentials `f`, `g` is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)`. Rows
    with weight zero are padding or the user's own; they change nothing.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "m dim"]
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    cost: Cost = eqx.field(static=True)

    @property
    def rows_of_block(self) -> int:
        """Rows of a block, a power of two that divides their number."""
        n, m = self.x.shape[0], self.y.shape[0]
        wanted = max(LEAST_ROWS, BLOCK_BYTES // (m * self.x.dtype.itemsize))
        size = 1
        while n % (2 * size) == 0 and 2 * size <= wanted:
            size *= 2
        return size

    def transposed(self) -> "Problem":
        """The problem with the roles of rows and columns exchanged."""
        cost = self.cost
        swapped = None if cost is None else Swapped(cost)
        return Problem(self.y, self.x, self.b, self.a, self.epsilon, swapped)


class Swapped(eqx.Module):
    """The cost `c(y, x)`; equal for equal costs, so that it compiles once."""

    cost: Cost = eqx.field(static=True)

    def __call__(self, x: Array, y: Array) -> Array:
        assert self.cost is not None
        return self.cost(y, x)


def in_blocks(problem: Problem, *rows: Array) -> tuple[Array, ...]:
    """Arrays over rows as arrays over blocks of rows."""
    size = problem.rows_of_block
    return tuple(array.reshape(-1, size, *array.shape[1:]) for array in rows)


def exponents(cost: Cost, x, f, y, g, epsilon) -> Float[Array, "block m"]:
    """`(f_i + g_j - C_ij) / epsilon` for a block of rows.

    For the squared distance the squares join the potentials, and both join the coordinates as
    two more columns: one product for each entry. With few coordinates a matrix product would take
    as long as the rest, so that they are added one by one.
    """
    if cost is not None:
        return (f[:, None] + g[None, :] - cost_matrix(cost, x, y)) / epsilon
    left = (f - jnp.sum(x**2, axis=1) / 2) / epsilon
    right = (g - jnp.sum(y**2, axis=1) / 2) / epsilon
    scaled = x / epsilon
    if x.shape[1] > ADDED:
        columns = jnp.column_stack([scaled, left, jnp.ones_like(left)])
        return product(columns, jnp.vstack([y.T, jnp.ones_like(right), right]))
    # Coordinates one behind the other: a loop over columns would stride through `y` itself.
    rows = lax.optimization_barrier(y.T)
    sums = left[:, None] + right[None, :]
    for k in range(x.shape[1]):
        sums = sums + scaled[:, k, None] * rows[None, k]
    return sums


def log_weights(weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """`log weights`, with `LOG_ZERO` for zero."""
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), LOG_ZERO)


def mean_cost(problem: Problem) -> Float[Array, ""]:
    """`sum a_i b_j C_ij / (sum a sum b)` of |x - y|^2 / 2, the scale of epsilon.

    Of another cost, which may have any sign, what it is above its least, over 512 rows and columns.
    """
    if problem.cost is None:
        return mean_half_square(problem.x, problem.a, problem.y, problem.b)
    x, a = _some(problem.x, problem.a)
    y, b = _some(problem.y, problem.b)
    weights = a[:, None] * b[None, :]
    costs = cost_matrix(problem.cost, x, y)
    costs = costs - jnp.min(jnp.where(weights > 0, costs, jnp.inf))
    return jnp.sum(jnp.where(weights > 0, weights * costs, 0)) / (jnp.sum(a) * jnp.sum(b))


def mean_half_square(x: Any, a: Any, y: Any, b: Any) -> Any:
    """The mean of `|x - y|^2 / 2`, of arrays of JAX or of NumPy."""
    both = (x, a), (y, b)
    means = [(w[:, None] * z).sum(axis=0) / w.sum() for z, w in both]
    squares = [(w * (z**2).sum(axis=1)).sum() / w.sum() for z, w in both]
    return (squares[0] + squares[1]) / 2 - (means[0] * means[1]).sum()


def _some(points: Array, weights: Array) -> tuple[Array, Array]:
    """Points at equal steps of the cumulated weight, with equal weights."""
    if len(points) <= 512:
        return points, weights
    levels = (jnp.arange(512, dtype=weights.dtype) + 0.5) / 512 * jnp.sum(weights)
    rows = jnp.minimum(jnp.searchsorted(jnp.cumsum(weights), levels), len(points) - 1)
    return points[rows], jnp.ones_like(levels)


def logsumexp_rows(exponent: Float[Array, "block m"]) -> Float[Array, " block"]:
    """`log sum_j exp` with the largest exponent taken out."""
    largest = jnp.max(exponent, axis=1)
    return largest + jnp.log(jnp.sum(jnp.exp(exponent - largest[:, None]), axis=1))


def map_rows(problem: Problem, function, *rows: Array):
    """`function` of each block of `rows`, results joined along the rows."""
    results = jax.lax.map(lambda block: function(*block), in_blocks(problem, *rows))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

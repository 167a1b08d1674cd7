"""Sums of a kernel over pairs of points, by blocks of matrix products."""

from functools import partial
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.padding import bucket, padded

KERNELS = ("gaussian", "laplace", "energy")
# Rows and columns of a block: a megabyte in float32, which stays in cache.
BLOCK = 512
# Points whose matrix is formed at once: 32 MiB.
ON_HOST = 2048
# Dimensions up to which coordinates are subtracted, which then costs no more than a product.
SUBTRACTED = 4


def kernel_of_squares(kernel: str, q: Float[Array, "..."], bandwidth) -> Float[Array, "..."]:
    """`exp(-q / (2 h^2))`, `exp(-sqrt(q) / h)` or `-sqrt(q)` of squared distances `q`."""
    if kernel == "gaussian":
        return jnp.exp(q * (-0.5 / bandwidth**2))
    if kernel == "laplace":
        return jnp.exp(-jnp.sqrt(q) / bandwidth)
    return -jnp.sqrt(q)


def off_diagonal_forms(
    points: Float[np.ndarray, "n dim"],
    weights: Float[np.ndarray, "n vectors"],
    kernel: str,
    bandwidth: float = 1.0,
) -> Float[np.ndarray, " vectors"]:
    """`sum_{i != j} w_i w_j k(z_i, z_j)` for each vector of weights.

    Up to 2048 points the matrix is formed on the host in float64, where nothing is compiled. Of
    more, half of the blocks are computed, one at a time, in the dtype of the points, and their sums
    are added in float64: time grows as `n^2 (dim + vectors)`, memory as `n (dim + vectors)`.

    **Arguments:**

    - `points`: `z`, `(n, dim)`.
    - `weights`: one vector to a column.
    - `kernel`: "gaussian", "laplace" or "energy".
    - `bandwidth`: `h > 0`; nothing for "energy".
    """
    if len(points) <= ON_HOST:
        return _host_forms(np.asarray(points, np.float64), weights, kernel, bandwidth)
    dtype = jax.dtypes.canonicalize_dtype(points.dtype)
    size = bucket(len(points))
    # Distances come from products of positions: centring keeps their digits.
    centred = (points - points.mean(0, dtype=np.float64)).astype(dtype)
    sums = _block_sums(
        padded(centred, size),
        padded(weights.astype(dtype), size),
        np.asarray(bandwidth, dtype),
        kernel=kernel,
    )
    return np.asarray(sums, np.float64).sum(0)


def _host_forms(points, weights, kernel: str, bandwidth: float) -> Float[np.ndarray, " vectors"]:
    from scipy.spatial.distance import pdist, squareform

    # Distances of pairs: each once, from differences.
    values = pdist(points, "sqeuclidean" if kernel == "gaussian" else "euclidean")
    if kernel != "energy":
        values *= -0.5 / bandwidth**2 if kernel == "gaussian" else -1 / bandwidth
        np.exp(values, out=values)
    matrix = squareform(values, checks=False)
    sums = np.sum(weights * (matrix @ weights), axis=0)
    return -sums if kernel == "energy" else sums


@partial(jax.jit, static_argnames="kernel")
def _block_sums(z, weights, bandwidth, *, kernel: str) -> Float[Array, "pairs vectors"]:
    n, dim = z.shape
    block = gcd(n, BLOCK)
    blocks = n // block
    first, second = np.triu_indices(blocks)
    z, weights = z.reshape(blocks, block, dim), weights.reshape(blocks, block, -1)

    def pair(at):
        i, j = at
        values = kernel_of_squares(kernel, squared_distances(z[i], z[j]), bandwidth)
        values = jnp.where((i == j) & jnp.eye(block, dtype=bool), 0, values)
        return jnp.where(i == j, 1, 2) * jnp.sum(weights[i] * product(values, weights[j]), axis=0)

    return lax.map(pair, (first, second))


def squared_distances(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, "n m"]:
    """`|x_i - y_j|^2`, zero for equal points.

    Few coordinates are subtracted one by one. Of more, the product loses the digits of distances
    below `eps^{1/2} |x|`, where points count as equal: among independent ones they are too rare to
    be missed, and equal ones are not to be told apart.
    """
    if x.shape[1] <= SUBTRACTED:
        return sum(
            ((x[:, k][:, None] - y[:, k][None]) ** 2 for k in range(x.shape[1])),
            start=jnp.zeros((), x.dtype),
        )
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]
    q = squares - 2 * product(x, y.T)
    return jnp.where(q > 8 * jnp.finfo(x.dtype).eps * squares, q, 0)

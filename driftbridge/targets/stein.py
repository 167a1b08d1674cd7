"""The kernel Stein discrepancy of points with their scores."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.products import product
from driftbridge.runtime.spread import median_distance
from driftbridge.targets.base import Target

KERNELS = ("imq", "gaussian")
# Fewer random signs have too few values for a p-value.
LEAST_BLOCKS = 20


class KSD(NamedTuple):
    """A kernel Stein discrepancy and how surprising it is.

    - `value`: the discrepancy, root of `v_statistic`.
    - `u_statistic`: unbiased for the squared discrepancy of the law of independent draws; it may
      be negative.
    - `v_statistic`: squared discrepancy of the empirical law, `>= 0`.
    - `p_value`: of the hypothesis that the draws are from the target; NaN where there are fewer
      than 20 blocks of dependent draws.
    - `num_draws`: how many draws were compared with one another.
    - `scale`: length scale of the kernel.
    - `block_length`: successive draws that share a sign of the bootstrap.
    """

    value: float
    u_statistic: float
    v_statistic: float
    p_value: float
    num_draws: int
    scale: float
    block_length: int


def stein_statistics(
    z: Float[np.ndarray, "n dim"],
    scores: Float[np.ndarray, "n dim"],
    *,
    kernel: str,
    beta: float,
    scale: float | None,
    num_bootstrap: int,
    chunk: int,
    key: int | Key[Array, ""],
    num_chains: int = 1,
    block_length: int = 1,
) -> KSD:
    """The discrepancy of positions with their scores, in whatever coordinates both are given.

    **Arguments:**

    - `z`, `scores`: `(n, dim)`, one chain after the other.
    - `num_chains`: chains of equal length; a block of signs does not reach over two.
    - `block_length`: successive draws that share a sign.
    """
    scale = median_distance(z) if scale is None else float(scale)
    length = len(z) // num_chains
    block_length = min(int(block_length), length)
    signs, num_blocks = _signs(as_key(key), num_chains, length, block_length, num_bootstrap)
    sums = np.asarray(
        _quadratic_forms(z, scores, signs, (scale, beta), kernel=kernel, chunk=chunk), np.float64
    ).sum(0)
    # On the diagonal u = |s|^2 - 2 dim phi'(0).
    slope = float(_radial(kernel, np.zeros(()), scale, beta)[1])
    diagonal = float(np.sum(np.square(scores, dtype=np.float64)) - 2 * z.size * slope)
    n = len(z)
    v_statistic = max((sums[0] + diagonal) / n**2, 0.0)
    exceed = np.sum(sums[1:] >= sums[0])
    is_tested = num_blocks >= LEAST_BLOCKS
    return KSD(
        value=float(np.sqrt(v_statistic)),
        u_statistic=float(sums[0] / (n * (n - 1))),
        v_statistic=float(v_statistic),
        p_value=float((1 + exceed) / (1 + num_bootstrap)) if is_tested else float("nan"),
        num_draws=n,
        scale=scale,
        block_length=block_length,
    )


def check(kernel, beta, scale, block_length, num_bootstrap, chunk) -> None:
    """**Raises:** `ValueError` for arguments of a discrepancy outside their range."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}.")
    if not -1 < beta < 0:
        raise ValueError(f"beta must lie in (-1, 0); got {beta}.")
    if scale is not None and not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, or None; got {scale}.")
    counts = {"block_length": block_length, "num_bootstrap": num_bootstrap, "chunk": chunk}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")


def centred_and_scores(
    target: Target, positions: Float[np.ndarray, "n dim"], chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions less their mean, whose distances keep their digits, and scores, all finite."""
    dtype = jax.dtypes.canonicalize_dtype(positions.dtype)
    scores = np.asarray(_scores(cast_floating(target, dtype), jnp.asarray(positions, dtype), chunk))
    for name, array in (("position", positions), ("score", scores)):
        if not np.all(np.isfinite(array)):
            row, index = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"the {name} of draw {row} is {array[row, index]} at coordinate {index}; leave "
                "out draws outside the support, or declare the constraint."
            )
    centred = (positions - positions.mean(0, dtype=np.float64)).astype(dtype)
    return centred, scores


@partial(jax.jit, static_argnames="chunk")
def _scores(target: Target, positions: Float[Array, "n dim"], chunk: int):
    return lax.map(target.score, positions, batch_size=min(chunk, len(positions)))


def _signs(key, num_chains: int, length: int, block_length: int, count: int):
    """Ones, then `count` vectors of signs constant on blocks of a chain; the number of blocks."""
    blocks = -(-length // block_length)
    signs = jax.random.rademacher(key, (num_chains, blocks, count), jnp.int8)
    signs = np.repeat(np.asarray(signs), block_length, axis=1)[:, :length].reshape(-1, count)
    return np.concatenate([np.ones((len(signs), 1), np.int8), signs], axis=1), num_chains * blocks


def _radial(kernel: str, q, scale, beta) -> tuple[Any, Any, Any]:
    """`phi` and its first two derivatives in the squared distance."""
    if kernel == "gaussian":
        rate = -1 / (2 * scale**2)
        value = jnp.exp(rate * q)
        return value, rate * value, rate**2 * value
    base = 1 + q / scale**2
    value = base**beta
    first = beta / scale**2 * value / base
    return value, first, (beta - 1) / scale**2 * first / base


@partial(jax.jit, static_argnames=("kernel", "chunk"))
def _quadratic_forms(
    z: Float[Array, "n dim"],
    scores: Float[Array, "n dim"],
    signs,
    numbers: tuple[Any, Any],
    *,
    kernel: str,
    chunk: int,
) -> Float[Array, "blocks vectors"]:
    """`sum_{i != j} w_i w_j u(x_i, x_j)` for each vector of signs, in parts over blocks of rows."""
    n, dim = z.shape
    scale, beta = (jnp.asarray(number, z.dtype) for number in numbers)
    signs = signs.astype(z.dtype)
    chunk = min(chunk, n)
    squares, work = jnp.sum(z**2, axis=1), jnp.sum(z * scores, axis=1)

    def rows(block):
        at, z_at, score_at, signs_at, squares_at, work_at = block
        q = squares_at[:, None] + squares[None] - 2 * product(z_at, z.T)
        value, first, second = _radial(kernel, jnp.maximum(q, 0), scale, beta)
        # (s(y) - s(x)) . (x - y), x along rows.
        pull = product(z_at, scores.T) + product(score_at, z.T) - work[None] - work_at[:, None]
        u = product(score_at, scores.T) * value + 2 * first * (pull - dim) - 4 * second * q
        u = jnp.where(at[:, None] == jnp.arange(n)[None], 0, u)
        return jnp.sum(signs_at * product(u, signs), axis=0)

    def in_blocks(leaf):  # rows that fill the last block have no sign and count nothing
        padded = jnp.pad(leaf, [(0, -n % chunk)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, chunk, *leaf.shape[1:])

    return lax.map(rows, jax.tree.map(in_blocks, (jnp.arange(n), z, scores, signs, squares, work)))

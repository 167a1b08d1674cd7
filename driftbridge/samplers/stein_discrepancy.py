"""The kernel Stein discrepancy: how far draws are from a target, from its score alone."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.products import product
from driftbridge.samplers import diagnostics
from driftbridge.samplers.metric import DiagonalMetric, Metric
from driftbridge.targets.base import Target

if TYPE_CHECKING:
    from driftbridge.samplers.draws import Draws

KERNELS = ("imq", "gaussian")
# Draws whose distances give the median.
MEDIAN_OF = 1000
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


def kernel_stein_discrepancy(
    target: Target,
    positions: Any,
    *,
    kernel: str = "imq",
    beta: float = -0.5,
    scale: float | None = None,
    metric: Metric | None = None,
    block_length: int | None = None,
    num_bootstrap: int = 500,
    chunk: int = 512,
    key: int | Key[Array, ""] = 0,
) -> KSD:
    """Kernel Stein discrepancy between draws and a target, with a test of their equality.

    `KSD^2 = E u(x, y)` over independent `x`, `y` of the law of the draws, with `s` the score and

    `u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + div_x grad_y k`, `k = phi(|x - y|^2)`.

    Here `phi(q) = (1 + q / scale^2)^beta` ("imq"), for which a discrepancy that tends to zero means
    weak convergence for a target with Lipschitz score and dissipative tails, or
    `phi(q) = exp(-q / (2 scale^2))` ("gaussian"), which from three dimensions on overlooks draws
    that escape to infinity. Mass missing from a far mode is seen by neither.

    The p-value is that of the wild bootstrap: `V` against `sum_ij w_i w_j u_ij / n^2` with random
    signs `w`, one for each block of successive draws of a chain. The metric and the scale are taken
    as given, also where they come from the draws. Time grows as `n^2`, memory as `n chunk`.

    **Arguments:**

    - `positions`: draws `(n, dim)` or `(chains, draws, dim)`, in the order in which they were
      taken.
    - `kernel`: "imq" or "gaussian".
    - `beta`: in (-1, 0), for "imq".
    - `scale`: `> 0`, in the coordinates of `metric`. None is the median distance of draws that
      differ.
    - `metric`: coordinates `z`, `x = L z`, in which distances are taken; None for the user's.
    - `block_length`: `>= 1`. None is what suits the autocorrelation of positions and scores.
    - `num_bootstrap`: random vectors of signs; the least p-value is `1 / (num_bootstrap + 1)`.
    - `chunk`: rows of the matrix `u` held at once.
    - `key`: seed of the signs.

    **Returns:** a `KSD`.

    **Raises:** `ValueError` for arguments outside their range, fewer than two draws, draws that are
    all equal, or a position or score that is not finite.

    Gorham and Mackey (2017), arXiv 1703.01717, eq. (4) and theorem 8; Chwialkowski, Strathmann and
    Gretton (2016), arXiv 1602.02964, section 4.
    """
    _check(kernel, beta, scale, block_length, num_bootstrap, chunk)
    chains = _as_chains(target, positions)
    num_chains, length, dim = chains.shape
    z, scores = _whitened(target, chains.reshape(-1, dim), metric, chunk)
    scale = _median_distance(z) if scale is None else float(scale)
    if block_length is None:
        both = np.concatenate([z, scores], axis=1).reshape(num_chains, length, -1)
        block_length = _block_length(both)
    block_length = min(int(block_length), length)
    signs, num_blocks = _signs(as_key(key), num_chains, length, block_length, num_bootstrap)
    sums = np.asarray(
        _quadratic_forms(z, scores, signs, (scale, beta), kernel=kernel, chunk=chunk), np.float64
    ).sum(0)
    # On the diagonal u = |s|^2 - 2 dim phi'(0).
    slope = float(_radial(kernel, np.zeros(()), scale, beta)[1])
    diagonal = float(np.sum(np.square(scores, dtype=np.float64)) - len(z) * 2 * dim * slope)
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


def of_draws(draws: "Draws", max_draws: int = 2000, key: int | Key[Array, ""] = 0) -> KSD:
    """See `Draws.stein_discrepancy`."""
    if max_draws < 2:
        raise ValueError(f"max_draws must be at least 2; got {max_draws}.")
    chains = np.linspace(0, draws.num_chains - 1, min(draws.num_chains, max_draws)).astype(int)
    kept = max(1, min(draws.num_draws, max_draws // len(chains)))
    # The last draw of each part: what was drawn first is furthest from equilibrium.
    rows = (np.arange(1, kept + 1) * draws.num_draws) // kept - 1
    positions = draws.positions[np.ix_(chains, rows)]
    deviation = positions.reshape(-1, draws.dim).std(0, dtype=np.float64)
    if not np.all(deviation > 0):
        index = int(np.argmin(deviation))
        raise ValueError(
            f"coordinate {index} has standard deviation {deviation[index]} over the draws: they "
            "are too few or stuck, and nothing can be compared."
        )
    return kernel_stein_discrepancy(
        draws.target, positions, metric=DiagonalMetric(deviation.astype(positions.dtype)), key=key
    )


def _check(kernel, beta, scale, block_length, num_bootstrap, chunk) -> None:
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


def _as_chains(target: Target, positions: Any) -> np.ndarray:
    positions = np.asarray(positions)
    if not np.issubdtype(positions.dtype, np.floating):
        positions = positions.astype(default_dtype())
    chains = positions[None] if positions.ndim == 2 else positions
    if chains.ndim != 3 or chains.shape[2] != target.dim:
        raise ValueError(
            f"positions must have shape (n, {target.dim}) or (chains, draws, {target.dim}); got "
            f"{positions.shape}."
        )
    if chains.shape[0] * chains.shape[1] < 2:
        raise ValueError(f"a discrepancy needs at least two draws; got {positions.shape}.")
    return chains


def _whitened(
    target: Target, positions: np.ndarray, metric: Metric | None, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions, centred, and scores in the coordinates of the metric."""
    dtype = jax.dtypes.canonicalize_dtype(positions.dtype)
    scores = np.asarray(_scores(cast_floating(target, dtype), jnp.asarray(positions, dtype), chunk))
    for name, array in (("position", positions), ("score", scores)):
        if not np.all(np.isfinite(array)):
            row, index = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"the {name} of draw {row} is {array[row, index]} at coordinate {index}; leave "
                "out draws outside the support, or declare the constraint."
            )
    # Distances come from products of positions: centring keeps their digits.
    centred = (positions - positions.mean(0, dtype=np.float64)).astype(dtype)
    if metric is None:
        return centred, scores
    metric = cast_floating(metric, dtype)
    return (
        np.asarray(jax.vmap(metric.whiten)(jnp.asarray(centred))),
        np.asarray(jax.vmap(metric.whiten_score)(jnp.asarray(scores))),
    )


@partial(jax.jit, static_argnames="chunk")
def _scores(target: Target, positions: Float[Array, "n dim"], chunk: int):
    return lax.map(target.score, positions, batch_size=min(chunk, len(positions)))


def _median_distance(z: np.ndarray) -> float:
    from scipy.spatial.distance import pdist

    rows = np.unique(np.linspace(0, len(z) - 1, MEDIAN_OF).astype(int))
    distances = pdist(z[rows].astype(np.float64))
    if not np.any(distances > 0):
        raise ValueError(f"all {len(rows)} draws looked at are equal: give `scale`, or more draws.")
    return float(np.median(distances[distances > 0]))


def _block_length(values: np.ndarray) -> int:
    """`(2 r / (1 - r^2))^(2/3) n^(1/3)` for draws with the lag-one correlation `r`.

    It minimises the error of the variance of a mean over blocks of an autoregression (Carlstein
    1986, section 5); `r` is that of the autoregression whose effective size is the least found.
    """
    num_chains, length, _ = values.shape
    found = diagnostics.ess_mean(values)
    if np.all(np.isnan(found)):
        return 1 if length < 4 and num_chains > 1 else length
    time = max(num_chains * length / float(np.nanmin(found)), 1.0)
    r = (time - 1) / (time + 1)
    return int(np.clip((2 * r / (1 - r**2)) ** (2 / 3) * length ** (1 / 3), 1, length))


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

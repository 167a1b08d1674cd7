"""The kernel Stein discrepancy: how far draws are from a target, from its score alone."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.samplers import diagnostics
from driftbridge.samplers.metric import DiagonalMetric, Metric
from driftbridge.targets.base import Target
from driftbridge.targets.stein import KSD, centred_and_scores, check, stein_statistics

if TYPE_CHECKING:
    from driftbridge.samplers.draws import Draws


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
    check(kernel, beta, scale, block_length, num_bootstrap, chunk)
    chains = _as_chains(target, positions)
    num_chains, length, dim = chains.shape
    z, scores = centred_and_scores(target, chains.reshape(-1, dim), chunk)
    if metric is not None:
        z, scores = _whitened(cast_floating(metric, z.dtype), z, scores)
    if block_length is None:
        both = np.concatenate([z, scores], axis=1).reshape(num_chains, length, -1)
        block_length = _block_length(both)
    return stein_statistics(
        z, scores, kernel=kernel, beta=beta, scale=scale, num_chains=num_chains,
        block_length=block_length, num_bootstrap=num_bootstrap, chunk=chunk, key=key,
    )  # fmt: skip


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


def _whitened(metric: Metric, z: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores in the coordinates of the metric."""
    return (
        np.asarray(jax.vmap(metric.whiten)(jnp.asarray(z))),
        np.asarray(jax.vmap(metric.whiten_score)(jnp.asarray(scores))),
    )


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

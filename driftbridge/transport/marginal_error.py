"""How far the masses of a semidiscrete plan are from the weights of its points."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.transport.base import as_dtype
from driftbridge.transport.laguerre import mean_probabilities, scores_of, soft_maximum

# Independent groups of draws, whose differences give standard errors.
GROUPS = 32
# Entries of one matrix of scores, and draws of one estimate.
BLOCK, LEAST_DRAWS, MOST_DRAWS = 1 << 22, 1 << 13, 1 << 18


class MarginalError(NamedTuple):
    """Distances between the masses `m_j` that points get and their weights `b_j`.

    - `chi2`: unbiased estimate of `sum_j (m_j - b_j)^2 / b_j`, so it may be negative.
    - `chi2_error`: its standard error (jackknife over 32 groups of draws; for exact masses twice
      too large in the square).
    - `l1`: estimate of `sum_j |m_j - b_j|`, at most too large by `l1_floor`, which is what exact
      masses would give on average.
    - `dual`, `dual_error`: the dual objective and its standard error. Without regularisation it is
      in the mean a lower bound on `min E |x - y|^2 / 2`.
    - `num_draws`: how many draws it is from.
    """

    chi2: float
    chi2_error: float
    l1: float
    l1_floor: float
    dual: float
    dual_error: float
    num_draws: int


def marginal_error(
    problem: Any,
    g: Float[Array, " n"],
    epsilon: float,
    tolerance: float,
    key: Key[Array, ""],
) -> MarginalError:
    """Estimate the error of a potential from draws made for this alone.

    They are as many as tell `tolerance` from zero: the error of `chi2` is about
    `sqrt(2 n) / draws` for `n` points.

    **Arguments:** `problem` has centred `points`, `weights` and `draw(key, n)`.
    """
    size = problem.points.shape[0]
    wanted = np.clip(8 * np.sqrt(2 * size) / tolerance, LEAST_DRAWS, MOST_DRAWS)
    rows = max(1, min(int(wanted) // GROUPS, BLOCK // size))
    blocks = -(-int(wanted) // (GROUPS * rows))
    values = as_dtype(epsilon, problem.points.dtype)
    masses, duals = _groups(problem, g, values, key, rows, blocks, epsilon == 0)
    return _summary(
        np.asarray(masses, np.float64), np.asarray(duals, np.float64),
        np.asarray(problem.weights, np.float64), GROUPS * rows * blocks,
    )  # fmt: skip


@eqx.filter_jit
def _groups(problem, g, epsilon, key, rows: int, blocks: int, is_hard: bool):
    """Masses and dual value of each group of `rows * blocks` draws."""
    scores = scores_of(problem.points, problem.weights, epsilon, is_hard)
    linear = jnp.sum(problem.weights * g)

    def block(total, number):
        x = problem.draw(fold_in(key, number), rows)
        s = scores(g, x)
        value = jnp.mean(jnp.sum(x**2, axis=1) / 2 - soft_maximum(s, epsilon, is_hard))
        masses = mean_probabilities(s, epsilon, is_hard)
        return (total[0] + masses / blocks, total[1] + (value + linear) / blocks), None

    def group(numbers):
        start = jnp.zeros_like(g), jnp.zeros((), g.dtype)
        return jax.lax.scan(block, start, numbers)[0]

    return jax.lax.map(group, jnp.arange(GROUPS * blocks).reshape(GROUPS, blocks))


def _summary(masses, duals, weights, num_draws: int) -> MarginalError:
    k = len(masses)
    given = weights > 0
    masses, weights = masses[:, given], weights[given]
    # Products of different groups have no bias: each is sum_j m_j m'_j / b_j - 1 in the mean.
    excess = masses - weights
    gram = (excess / weights) @ excess.T
    others = gram.sum(axis=1) - np.diag(gram)
    total = others.sum()
    chi2 = total / (k * (k - 1))
    without = (total - 2 * others) / ((k - 1) * (k - 2))
    chi2_error = np.sqrt((k - 1) / k * np.sum((without - without.mean()) ** 2))
    deviation = masses.std(axis=0, ddof=1) / np.sqrt(k)
    return MarginalError(
        chi2=float(chi2),
        chi2_error=float(chi2_error),
        l1=float(np.abs(masses.mean(axis=0) - weights).sum()),
        l1_floor=float(np.sqrt(2 / np.pi) * deviation.sum()),
        dual=float(duals.mean()),
        dual_error=float(duals.std(ddof=1) / np.sqrt(k)),
        num_draws=num_draws,
    )

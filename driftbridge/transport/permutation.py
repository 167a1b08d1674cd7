"""Permutation tests of the equality of two laws."""

import numpy as np
from jaxtyping import Float

from driftbridge.transport.kernel_sums import off_diagonal_forms
from driftbridge.transport.sliced import sorted_powers


def kernel_p_value(
    x: Float[np.ndarray, "n dim"],
    y: Float[np.ndarray, "m dim"],
    kernel: str,
    bandwidth: float,
    rng: np.random.Generator,
    num_permutations: int,
) -> float:
    """p-value of the squared kernel discrepancy (V-statistic) among its permutations.

    The statistic is `w' K w` with `w = 1/n` on `x` and `-1/m` on `y`; all permutations of `w` are
    the columns of one matrix product with the pooled kernel, of which a block is held at a time.
    Its diagonal is the same for all of them.
    """
    n, m = len(x), len(y)
    labels = np.repeat([1 / n, -1 / m], [n, m])
    columns = [labels, *(rng.permutation(labels) for _ in range(num_permutations))]
    forms = off_diagonal_forms(np.concatenate([x, y]), np.stack(columns, axis=1), kernel, bandwidth)
    # Sums differ by rounding where permutations only exchange equal points.
    rounding = 4 * np.finfo(x.dtype).eps * np.max(np.abs(forms))
    return rank_p_value(forms[0], forms[1:] + rounding)


def sliced_p_value(
    x: Float[np.ndarray, "n lines"],
    y: Float[np.ndarray, "m lines"],
    p: float | int,
    rng: np.random.Generator,
    num_permutations: int,
) -> float:
    """p-value of the sliced Wasserstein distance among its permutations.

    **Arguments:**

    - `x`, `y`: projections, one direction to a column. They are sorted once; a permutation picks
      its points from the sorted ones.
    """
    n, m = len(x), len(y)
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, axis=0, kind="stable").T
    ordered = np.take_along_axis(pooled.T, order, axis=1)

    def statistic(is_x):
        picked = is_x[order]
        first = ordered[picked].reshape(-1, n)
        second = ordered[~picked].reshape(-1, m)
        return float(np.mean(sorted_powers(first.T, second.T, p)))

    is_x = np.arange(n + m) < n
    observed = statistic(is_x)
    permuted = np.array([statistic(rng.permutation(is_x)) for _ in range(num_permutations)])
    return rank_p_value(observed, permuted * (1 + 4 * np.finfo(pooled.dtype).eps))


def rank_p_value(observed: float, permuted: Float[np.ndarray, " permutations"]) -> float:
    """`(1 + #{permuted >= observed}) / (1 + permutations)`; NaN without permutations.

    At most `alpha` with probability at most `alpha` for exchangeable values, at any number of
    permutations (Phipson and Smyth 2010, equation 2).
    """
    if len(permuted) == 0:
        return float("nan")
    return float((1 + np.sum(permuted >= observed)) / (1 + len(permuted)))

"""R-hat, effective sample size and Monte Carlo errors of blocks of parameters.

Here `x` has shape `(params, chains, draws)`, is finite, and no parameter is constant; a function
gives one number for each parameter. `x` is of float64; what takes ranks alone takes any dtype. V21
is Vehtari et al. (2021), cited in `diagnostics`.
"""

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


def split(x: np.ndarray) -> np.ndarray:
    """Halves of every chain as chains of their own (V21, section 3.1)."""
    params, chains, draws = x.shape
    half = draws // 2
    if draws % 2:
        x = np.concatenate([x[:, :, :half], x[:, :, -half:]], axis=2)
    return x.reshape(params, 2 * chains, half)


def squares(x: np.ndarray) -> np.ndarray:
    """Squared deviations from the mean of all draws."""
    return np.square(x - x.mean((1, 2), keepdims=True))


def sorted_scores(ordered: np.ndarray) -> np.ndarray:
    """Normal quantiles of `(rank - 3/8) / (size + 1/4)` of one sorted row, ties at mean ranks."""
    table = score_table(len(ordered))
    scores = table[::2]
    ties = np.flatnonzero(ordered[1:] == ordered[:-1])
    if ties.size:
        scores = scores.copy()
        first = ties[np.diff(ties, prepend=-2) > 1]
        last = ties[np.diff(ties, append=len(ordered)) > 1] + 1
        tied = np.zeros(len(ordered), bool)
        tied[ties] = tied[ties + 1] = True
        scores[tied] = np.repeat(table[first + last], last - first + 1)
    return scores


@lru_cache(maxsize=8)
def score_table(size: int) -> np.ndarray:
    """Scores of all mean ranks: twice one is an integer, from 2 to `2 size`."""
    return normal_quantiles((np.arange(2, 2 * size + 1) / 2 - 0.375) / (size + 0.25))


def normal_quantiles(probability: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal law; scipy's would double the time of a short run's end."""
    return np.fromiter(map(NormalDist().inv_cdf, probability.tolist()), float, len(probability))


class Scores(NamedTuple):
    """Normal scores of values and of their distances from the median; the values in order."""

    bulk: np.ndarray
    folded: np.ndarray
    ordered: np.ndarray


def normal_scores(x: np.ndarray) -> Scores:
    """Scores of the shape of `x`, and `(params, size)` values in order, sorting once."""
    flat = x.reshape(len(x), -1)
    bulk, fold, ordered = (np.empty(flat.shape) for _ in Scores._fields)
    middle = flat.shape[1] // 2
    # Row by row, as all that is done with one stays in cache.
    for i, row in enumerate(flat):
        order = np.argsort(row)
        ordered[i] = increasing = row[order].astype(np.float64)
        bulk[i, order] = sorted_scores(increasing)
        # Falling, then rising: a merge sort takes it in one pass.
        distance = np.abs(increasing - (increasing[middle] + increasing[-1 - middle]) / 2)
        again = np.argsort(distance, kind="stable")
        fold[i, order[again]] = sorted_scores(distance[again])
    return Scores(bulk.reshape(x.shape), fold.reshape(x.shape), ordered)


def ratio(between: np.ndarray, within: np.ndarray) -> np.ndarray:
    """A quotient that is infinite or NaN, quietly, where a parameter stands still."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return between / within


def r_hat(x: np.ndarray) -> np.ndarray:
    """R-hat of values, chains as given (V21, eq. 1 to 5)."""
    draws = x.shape[2]
    between = x.mean(2).var(1, ddof=1)
    within = x.var(2, ddof=1).mean(1)
    return np.sqrt(ratio(between, within) + (draws - 1) / draws)


def rank_r_hat(x: np.ndarray) -> np.ndarray | float:
    return larger_r_hat(normal_scores(split(x))) if x.shape[1] > 1 else np.nan


def larger_r_hat(scores: Scores) -> np.ndarray:
    return np.fmax(r_hat(scores.bulk), r_hat(scores.folded))


def rank_diagnostics(x: np.ndarray) -> np.ndarray:
    """Bulk ESS, tail ESS and R-hat, rows of one array."""
    scores = normal_scores(split(x))
    scale = larger_r_hat(scores) if x.shape[1] > 1 else np.full(len(x), np.nan)
    # Halves of an odd number of draws lack the middle one.
    ordered = scores.ordered if x.shape[2] % 2 == 0 else None
    return np.stack([ess(scores.bulk), tail_ess(x, ordered), scale])


def nested(x: np.ndarray, num_groups: int) -> np.ndarray:
    params, chains, draws = x.shape
    if num_groups < 2 or chains % num_groups:
        raise ValueError(f"num_groups must be at least 2 and divide {chains}; got {num_groups}.")
    x = x.reshape(params, num_groups, -1, draws)
    means = x.mean(3)
    chain_variance = means.var(2, ddof=1) if means.shape[2] > 1 else np.zeros(means.shape[:2])
    within = (chain_variance + x.var(3, ddof=1).mean(2)).mean(1)
    return np.sqrt(1 + ratio(means.mean(2).var(1, ddof=1), within))


def nested_rank_r_hat(x: np.ndarray, num_groups: int) -> np.ndarray:
    scores = normal_scores(x)
    return np.fmax(nested(scores.bulk, num_groups), nested(scores.folded, num_groups))


@lru_cache(maxsize=64)
def fast_length(least: int) -> int:
    """The smallest product of powers of 2, 3 and 5 that is not below `least`."""
    odd = (3**i * 5**j for i in range(24) for j in range(16))
    return min(factor << max(0, (-(-least // factor) - 1).bit_length()) for factor in odd)


def autocovariance(x: np.ndarray) -> np.ndarray:
    """Mean over chains of the autocovariance at every lag, shape `(params, draws)`."""
    draws = x.shape[2]
    length = fast_length(2 * draws)
    spectrum = np.fft.rfft(x - x.mean(2, keepdims=True), length, axis=2)
    parts = spectrum.real, spectrum.imag
    power = sum(np.einsum("pcf,pcf->pf", part, part) for part in parts) / x.shape[1]
    return np.fft.irfft(power, length, axis=1)[:, :draws] / draws


def ess(x: np.ndarray) -> np.ndarray:
    """ESS by Geyer's initial monotone sequence over the chains together (V21, section 3.2)."""
    _, chains, draws = x.shape
    covariance = autocovariance(x)
    within = covariance[:, 0] * draws / (draws - 1)
    total = covariance[:, 0] + (x.mean(2).var(1, ddof=1) if chains > 1 else 0)
    constant = np.ptp(x, axis=(1, 2)) == 0
    total = np.where(constant, 1, total)
    rho = 1 - (within[:, None] - covariance) / total[:, None]
    rho[:, 0] = 1
    count = max(1, (draws - 1) // 2)
    even, pairs = rho[:, 0 : 2 * count : 2], rho[:, : 2 * count].reshape(-1, count, 2).sum(2)
    stop = np.where((pairs <= 0).any(1), np.argmax(pairs <= 0, axis=1), count - 1)[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    tau = -1 + 2 * np.where(np.arange(count) < stop, monotone, 0).sum(1)
    # The even lag after the last pair counts once where it, or its pair, is positive.
    tail, tail_pair = (np.take_along_axis(a, stop, 1)[:, 0] for a in (even, pairs))
    tau += np.where((tail > 0) | (tail_pair >= 0), tail, 0)
    size = chains * draws
    return np.where(constant, size, size / np.maximum(tau, 1 / np.log10(size)))


def quantile(x: np.ndarray, probability: float, ordered: np.ndarray | None = None) -> np.ndarray:
    """Interpolated order statistics (type 7 of Hyndman & Fan 1996), shape `(params, 1, 1)`.

    `ordered` has the values of each parameter in order, where they are known.
    """
    flat = x.reshape(len(x), -1)
    size = flat.shape[1]
    place = size * probability + 1 - probability
    below = int(np.clip(np.floor(place), 1, size - 1))
    if ordered is None:
        ordered = np.partition(flat, (below - 1, below), axis=1)
    low, high = ordered[:, below - 1 : below + 1].T.astype(np.float64)
    return (low + np.clip(place - below, 0, 1) * (high - low))[:, None, None]


def quantile_ess(
    x: np.ndarray, probability: float, ordered: np.ndarray | None = None
) -> np.ndarray:
    return ess(split((x <= quantile(x, probability, ordered)).astype(np.float64)))


def tail_ess(x: np.ndarray, ordered: np.ndarray | None = None) -> np.ndarray:
    return np.minimum(quantile_ess(x, 0.05, ordered), quantile_ess(x, 0.95, ordered))


def mean_error(x: np.ndarray) -> np.ndarray:
    return x.std((1, 2), ddof=1) / np.sqrt(ess(split(x)))


def sd_error(x: np.ndarray) -> np.ndarray:
    deviation = squares(x)
    variance = deviation.mean((1, 2))
    error = (np.square(deviation).mean((1, 2)) - variance**2) / ess(split(deviation))
    return np.sqrt(np.maximum(error, 0) / variance / 4)


def quantile_error(x: np.ndarray, probability: float) -> np.ndarray:
    from scipy.special import betaincinv

    ordered = np.sort(x.reshape(len(x), -1), axis=1)
    size = ordered.shape[1]
    count = quantile_ess(x, probability)
    ends = np.array([[0.1586553], [0.8413447]])
    place = betaincinv(count * probability + 1, count * (1 - probability) + 1, ends) * size - 1
    low = np.floor(np.maximum(place[0], 0)).astype(int)
    high = np.ceil(np.minimum(place[1], size - 1)).astype(int)
    low, high = (np.take_along_axis(ordered, i[:, None], 1)[:, 0] for i in (low, high))
    return (high - low) / 2


def shortest(x: np.ndarray, probability: float) -> np.ndarray:
    ordered = np.sort(x.reshape(len(x), -1), axis=1)
    span = min(int(np.floor(probability * ordered.shape[1])), ordered.shape[1] - 1)
    start = np.argmin(ordered[:, span:] - ordered[:, : ordered.shape[1] - span], axis=1)[:, None]
    ends = (np.take_along_axis(ordered, start + step, 1)[:, 0] for step in (0, span))
    return np.stack(list(ends))

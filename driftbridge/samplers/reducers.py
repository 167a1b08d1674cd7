"""Reducers: what can be kept of draws in memory that does not grow with their number.

They work on the host in float64, on parameters in the user's names, in blocks of `GRID` draws, so
their results do not depend on how a run is cut into chunks or interrupted.
"""

import abc
from collections.abc import Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Float

from driftbridge.runtime.store import GRID

Arrays = tuple[np.ndarray, ...]


class Reducer(eqx.Module):
    """A statistic of draws that is updated block by block.

    A subclass supplies `empty(chains, params)`, the arrays it holds; `update(state, block)` for a
    block `(chains, draws, params)`; and `result(state)`, arrays by name.
    """

    @abc.abstractmethod
    def empty(self, chains: int, params: int) -> Arrays:
        """State before the first block."""

    @abc.abstractmethod
    def update(self, state: Arrays, block: Float[np.ndarray, "chains draws params"]) -> Arrays:
        """State after one more block."""

    @abc.abstractmethod
    def result(self, state: Arrays) -> Mapping[str, np.ndarray]:
        """Statistics by name, leading axes as documented by the reducer."""


class Mean(Reducer):
    """`mean` and `sd` of every parameter, shape `(params,)`.

    Blocks are centred before they are squared and merged by Chan, Golub and LeVeque (1983),
    eq. (2.1), so nothing cancels however long the run.
    """

    def empty(self, chains, params):
        return np.zeros(()), np.zeros(params), np.zeros(params)

    def update(self, state, block):
        flat = block.reshape(-1, block.shape[2])
        mean = mean_of(flat, axis=0)
        return merged(state, (len(flat), mean, np.square(flat - mean).sum(axis=0)), np.square)

    def result(self, state):
        count, mean, squares = state
        return {"mean": mean, "sd": np.sqrt(squares / max(float(count) - 1, 1))}


class Covariance(Reducer):
    """`mean`, shape `(params,)`, and `covariance`, `(params, params)`, merged as in `Mean`."""

    def empty(self, chains, params):
        return np.zeros(()), np.zeros(params), np.zeros((params, params))

    def update(self, state, block):
        flat = block.reshape(-1, block.shape[2])
        mean = mean_of(flat, axis=0)
        centred = flat - mean
        return merged(state, (len(flat), mean, centred.T @ centred), lambda d: np.outer(d, d))

    def result(self, state):
        count, mean, squares = state
        return {"mean": mean, "covariance": squares / max(float(count) - 1, 1)}


def mean_of(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis; exactly the value itself where it is constant, which sums round."""
    first = np.take(values, 0, axis=axis)
    return first + (values - np.expand_dims(first, axis)).mean(axis=axis)


def merged(state: Arrays, block: tuple, square) -> Arrays:
    """Count, mean and sum of squared deviations of two groups together."""
    (n, mean, squares), (m, block_mean, block_squares) = state, block
    shift = block_mean - mean
    total = n + m
    return (
        np.asarray(total, float),
        mean + shift * (m / total),
        squares + block_squares + square(shift) * (n * m / total),
    )


class Quantiles(Reducer):
    """Quantiles from a sketch: `quantiles`, shape `(probabilities, params)`, and `rank_error`.

    Levels of buffers; a full buffer of weight `w` is sorted and every second entry goes up with
    weight `2w`, even and odd ones in turn. One such step moves the rank of any number by at most
    `w`; `rank_error`, the sum of these over the total weight, bounds the error of a probability.
    With the default size it stays below 1 % up to 10^9 draws; what is met is usually far less.

    **Arguments:**

    - `probabilities`: in (0, 1).
    - `size`: entries of a buffer, even.

    The scheme is that of Manku, Rajagopalan and Lindsay (1998).
    """

    probabilities: tuple[float, ...] = eqx.field(static=True, default=(0.05, 0.25, 0.5, 0.75, 0.95))
    size: int = eqx.field(static=True, default=2048)

    LEVELS = 32

    def __check_init__(self):
        if not all(0 < p < 1 for p in self.probabilities):
            raise ValueError(f"probabilities must lie between 0 and 1; got {self.probabilities}.")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"size must be even and at least 2; got {self.size}.")

    def empty(self, chains, params):
        # A level above another is filled by halves, so only levels in use are allocated.
        return (np.zeros(self.LEVELS, np.int64), np.zeros(self.LEVELS, np.int64))

    def update(self, state, block):
        fill, steps = state[0].copy(), state[1].copy()
        levels = [level.copy() for level in state[2:]]
        flat = block.reshape(-1, block.shape[2])
        while len(flat):
            part, flat = flat[: self.size - fill[0]], flat[self.size - fill[0] :]
            self._put(levels, fill, steps, 0, part)
        return (fill, steps, *levels)

    def _put(self, levels, fill, steps, level, part) -> None:
        if level == len(levels):
            levels.append(np.zeros((self.size, part.shape[1])))
        levels[level][fill[level] : fill[level] + len(part)] = part
        fill[level] += len(part)
        if fill[level] == self.size:
            kept = np.sort(levels[level], axis=0)[steps[level] % 2 :: 2]
            fill[level] = 0
            steps[level] += 1
            self._put(levels, fill, steps, level + 1, kept)

    def result(self, state):
        fill, steps, *levels = state
        parts = [level[:n] for level, n in zip(levels, fill, strict=False) if n]
        weights = [np.full(n, 2.0**i) for i, n in enumerate(fill[: len(levels)]) if n]
        if not parts:
            return {}
        values, weight = np.concatenate(parts), np.concatenate(weights)
        order = np.argsort(values, axis=0)
        values = np.take_along_axis(values, order, axis=0)
        rank = np.cumsum(weight[order], axis=0) / weight.sum()
        out = [
            [np.interp(p, rank[:, j], values[:, j]) for j in range(values.shape[1])]
            for p in self.probabilities
        ]
        error = np.sum(steps * 2.0 ** np.arange(self.LEVELS)) / weight.sum()
        return {"quantiles": np.asarray(out), "rank_error": np.asarray(error)}


class Mixing(Reducer):
    """`r_hat` on split chains, `nested_r_hat` on groups of chains, and `ess` by batch means.

    `is_constant` says of which parameters no draw differs from another: they have no `r_hat`.

    A chain is held as at most 64 batches (mean and squares of each); when they are full, neighbours
    merge and batches are twice as long. With `b` batches of length `L`,
    `ess = n var / (L var(batch means))`, relative error about `sqrt(2 / (b chains))`. The R-hats
    are of values, not ranks: heavy tails can hide in them. NaN below four batches.

    **Arguments:**

    - `num_groups`: for the nested R-hat; groups of neighbouring chains, each started from one
      point. None leaves it out.

    Flegal and Jones (2010) for batch means; arXiv 2110.13017 for the nested R-hat.
    """

    num_groups: int | None = eqx.field(static=True, default=None)

    BATCHES = 64

    def empty(self, chains, params):
        shape = (chains, self.BATCHES, params)
        # Batches in use; blocks in a batch; blocks in the open batch; means; squares.
        return np.zeros(3, np.int64) + np.array([0, 1, 0]), np.zeros(shape), np.zeros(shape)

    def update(self, state, block):
        (used, length, filled), means, squares = state
        means, squares = means.copy(), squares.copy()
        mean = mean_of(block, axis=1)
        square = np.square(block - mean[:, None]).sum(axis=1)
        draws = block.shape[1]
        old = (np.asarray(filled * draws), means[:, used], squares[:, used])
        _, means[:, used], squares[:, used] = merged(old, (draws, mean, square), np.square)
        filled += 1
        if filled == length:
            used, filled = used + 1, 0
        if used == self.BATCHES:
            used, length = self.BATCHES // 2, length * 2
            a, b = means[:, 0::2], means[:, 1::2]
            joined = squares[:, 0::2] + squares[:, 1::2] + np.square(b - a) * (length * draws / 4)
            means[:, :used], squares[:, :used] = (a + b) / 2, joined
            means[:, used:] = squares[:, used:] = 0
        return np.array([used, length, filled]), means, squares

    def result(self, state):
        (used, length, _), means, squares = state
        return mixing(means[:, :used], squares[:, :used], int(length) * GRID, self.num_groups)


def mixing(
    means: np.ndarray, squares: np.ndarray, length: int, num_groups: int | None
) -> dict[str, np.ndarray]:
    """Diagnostics from batches `(chains, batches, params)` of `length` draws each."""
    batches = means.shape[1]
    nothing = np.full(means.shape[2], np.nan)
    is_constant = np.all((means == means[:1, :1]) & (squares == 0), axis=(0, 1)) & (batches > 0)
    out = {"r_hat": nothing, "ess": nothing, "is_constant": is_constant}
    if num_groups is not None:
        out["nested_r_hat"] = nothing
    if batches < 4:
        return out
    varies = ~is_constant
    found = mixing_of_varying(means[..., varies], squares[..., varies], length, num_groups)
    for name, values in found.items():
        out[name] = nothing.copy()
        out[name][varies] = values
    return out


def mixing_of_varying(
    means: np.ndarray, squares: np.ndarray, length: int, num_groups: int | None
) -> dict[str, np.ndarray]:
    """Diagnostics of parameters that are not constant, from four batches or more."""
    chains, batches, params = means.shape
    out = {}
    half = batches // 2
    halves = np.concatenate([means[:, :half], means[:, batches - half :]])
    half_squares = np.concatenate([squares[:, :half], squares[:, batches - half :]])
    mean, variance = pooled(halves, half_squares, length)
    n = half * length
    within = variance.mean(axis=0)
    between = mean.var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out["r_hat"] = np.sqrt((n - 1) / n + between / within)
        grand = means.mean(axis=(0, 1))
        spread = np.square(means - grand).sum(axis=(0, 1)) / (chains * batches - 1)
        _, whole = pooled(means.reshape(1, -1, params), squares.reshape(1, -1, params), length)
        out["ess"] = chains * batches * whole[0] / spread
        if num_groups is not None:
            chain_mean, chain_variance = pooled(means, squares, length)
            grouped = chain_mean.reshape(num_groups, -1, params)
            inside = chain_variance.reshape(num_groups, -1, params).mean(axis=1)
            if grouped.shape[1] > 1:
                inside = inside + grouped.var(axis=1, ddof=1)
            group_between = grouped.mean(axis=1).var(axis=0, ddof=1)
            out["nested_r_hat"] = np.sqrt(1 + group_between / inside.mean(axis=0))
    return out


def pooled(means: np.ndarray, squares: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each row of batches `(rows, batches, params)`."""
    mean = means.mean(axis=1)
    total = squares.sum(axis=1) + length * np.square(means - mean[:, None]).sum(axis=1)
    return mean, total / (means.shape[1] * length - 1)

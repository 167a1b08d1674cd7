"""Couplings by optimal transport between minibatches, solved once and drawn from afterwards."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.batched import sinkhorn_batch
from driftbridge.transport.couplings import TableCoupling, tables
from driftbridge.transport.points import as_weights
from driftbridge.transport.resampling import as_draw, as_table, systematic

# Batches solved by one call.
TOGETHER = 64


class Pool(TableCoupling):
    """Pairs of rows that are made once and drawn with replacement.

    A subclass has `x`, `y` and the rows of the pairs, `pool_rows` of `x` and `pool_columns` of `y`.
    """

    pool_rows: eqx.AbstractVar[Int[Array, " pairs"]]
    pool_columns: eqx.AbstractVar[Int[Array, " pairs"]]

    def split(
        self, rows: Int[np.ndarray, " k"], columns: Int[np.ndarray, " l"]
    ) -> tuple["Pool", "Pool"]:
        """The pairs without, and those with, certain rows of `x` or of `y`: to train on, to test.

        **Arguments:** `rows`, `columns`: numbers of points that training must not see.
        """
        held = np.isin(np.asarray(self.pool_rows), rows)
        held |= np.isin(np.asarray(self.pool_columns), columns)
        share = (1 - len(rows) / len(self.x)) * (1 - len(columns) / len(self.y))
        first, second = (self._with(chosen) for chosen in separated(held, share))
        return first, second

    def _with(self, chosen: Int[np.ndarray, " pairs"]) -> "Pool":
        pairs = (np.asarray(pool)[chosen] for pool in (self.pool_rows, self.pool_columns))
        rows, columns = (indices(numbers) for numbers in pairs)
        return eqx.tree_at(lambda c: (c.pool_rows, c.pool_columns), self, (rows, columns))

    def _rows(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        at = jax.random.randint(key, (n,), 0, len(self.pool_rows))
        return self.pool_rows[at], self.pool_columns[at]


class MinibatchOT(Pool):
    """Optimal pairs within random batches of source and target.

    Batches of rows are paired optimally for the cost `|x - y|^2 / 2`, each on its own, when the
    object is made; pairs are then taken from this pool. The marginals are those of the data for
    every size of batch; the mean cost falls to that of optimal transport as the batch grows.

    Rows come in random order without replacement, so that each is used equally often (to one).

    **Arguments:**

    - `x`, `y`: points `(n, dim)` and `(m, dim)`; either may be a function `(key, n) -> (n, dim)`.
    - `batch_size`: pairs in a batch.
    - `epsilon`: 0 for an optimal assignment, `> 0` for pairs drawn from the entropic plan of the
      batch.
    - `pool`: batches that are paired; 1000 batches of 256 take some seconds.
    - `source_weights`, `target_weights`: of points, None for equal ones.
    - `key`: seed of the batches.

    `cost` is the mean of `|x - y|^2` over the pool, and `status` "converged" if every batch was
    solved.

    Pooladian et al. (2023), arXiv 2304.14772; Tong et al. (2023), arXiv 2302.00482.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "m dim"]
    pool_rows: Int[Array, " pairs"]
    pool_columns: Int[Array, " pairs"]
    status: str = eqx.field(static=True)

    def __init__(
        self,
        x: Any,
        y: Any,
        batch_size: int = 256,
        epsilon: float = 0.0,
        *,
        pool: int = 200,
        source_weights: Any = None,
        target_weights: Any = None,
        key: int | Key[Array, ""] = 0,
    ):
        check_batches(batch_size, pool, epsilon)
        first, second, third = jax.random.split(as_key(key), 3)
        count = pool * batch_size
        x, rows = pool_of(x, "x", source_weights, count, first)
        y, columns = pool_of(y, "y", target_weights, count, second)
        self.x, self.y = tables(x, y)
        left = x[rows].reshape(pool, batch_size, -1)
        right = y[columns].reshape(pool, batch_size, -1)
        unsolved = 0
        if epsilon > 0:
            chosen, unsolved = draw_entropic(left, right, epsilon, host_generator(third))
        else:
            pairs = zip(left, right, strict=True)
            chosen = np.stack([assign(squared_distances(*pair)) for pair in pairs])
        columns = np.take_along_axis(columns.reshape(pool, batch_size), chosen, axis=1)
        self.pool_rows, self.pool_columns = indices(rows), indices(columns.reshape(-1))
        self.status = f"{unsolved} of {pool} batches stalled" if unsolved else "converged"

    @property
    def cost(self) -> float:
        moved = np.asarray(self.x)[self.pool_rows] - np.asarray(self.y)[self.pool_columns]
        return float(np.mean(np.sum(np.square(moved, dtype=np.float64), axis=1)))


def separated(
    held: Bool[np.ndarray, " pairs"], share: float
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """Numbers of the pairs that are not held out, and of those that are.

    `share` is how many of them are not, in the mean over data. Sizes are those of the mean, so that
    programs serve other data: some pairs stand twice, or are left out.
    """
    size = round(share * len(held))
    kept = np.resize(np.flatnonzero(~held), size)
    return kept, np.resize(np.flatnonzero(held), len(held) - size)


def check_batches(batch_size: int, pool: int, epsilon: float) -> None:
    if batch_size < 1 or pool < 1:
        raise ValueError(f"batch_size and pool must be at least 1; got {batch_size} and {pool}.")
    if not 0 <= epsilon < np.inf:
        raise ValueError(f"epsilon must be finite and at least 0; got {epsilon}.")


def draw_entropic(
    x: Float[np.ndarray, "pool n dim"],
    y: Float[np.ndarray, "pool n dim"],
    epsilon: float,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "pool n"], int]:
    """For each row of `x` one of `y` from the batch's entropic plan, and how many plans stalled."""
    chosen, unsolved = [], 0
    for start in range(0, len(x), TOGETHER):
        part = slice(start, start + TOGETHER)
        plans = sinkhorn_batch(x[part], y[part], epsilon=epsilon)
        for plan, left, right in zip(plans, x[part], y[part], strict=True):
            scores = np.asarray(plan.g, np.float64)[None] - squared_distances(left, right) / 2
            noise = rng.gumbel(size=scores.shape)
            chosen.append(np.argmax(scores / epsilon + noise, axis=1))
            unsolved += not plan.converged
    return np.stack(chosen), unsolved


def indices(rows: Int[np.ndarray, " n"]) -> Int[Array, " n"]:
    return jnp.asarray(rows.astype(np.int32))


def stream(
    weights: Float[np.ndarray, " n"] | None, n: int, count: int, rng: np.random.Generator
) -> Int[np.ndarray, " count"]:
    """`count` rows in random order, each as often as its weight says, up to one.

    Equal weights give one permutation after another, so that batches rarely hold a row twice.
    """
    if weights is None:
        rounds = -(-count // n)
        return np.concatenate([rng.permutation(n) for _ in range(rounds)])[:count]
    return rng.permutation(systematic(weights, count, rng))


def pool_of(source, name, weights, count, key) -> tuple[np.ndarray, np.ndarray]:
    """A table, and the rows of it that the batches hold one after another."""
    if callable(source):
        draw, _ = as_draw(source, name, weights)
        return np.asarray(draw(key, count)), np.arange(count)
    table = as_table(source, name)
    if weights is not None:
        weights = as_weights(weights, len(table), name)
    return table, stream(weights, len(table), count, host_generator(key))

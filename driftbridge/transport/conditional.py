"""Minibatch optimal transport that keeps the source independent of the condition."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from driftbridge.runtime.keys import as_key
from driftbridge.transport.assignment import assign, squared_distances
from driftbridge.transport.conditions import Classes, Numbers, as_condition, encoding_of
from driftbridge.transport.couplings import tables
from driftbridge.transport.minibatch import Pool, check_batches, indices, pool_of

# Pairs of a pilot batch from which the weight of the condition is chosen, and halvings to find it.
PILOT, HALVINGS = 512, 40


class ConditionalOT(Pool):
    """Minibatch optimal transport with the condition of the target in the cost.

    Optimal transport that ignores a condition sends a part of the source to each condition, so that
    a model trained on its pairs meets, given a condition, a source that it is never shown again
    when one samples. Here each source point is given a condition too, and the cost is

    `|x - y|^2 + w d(c, c')`, `d(c, c') = |c - c'|^2` of standardised conditions, or `1[c != c']` of
    classes, for which `w` is infinite: each class is assigned on its own.

    - `weight`, `w`: at 0 this is `MinibatchOT`; as it grows, the law of the source given the
      condition tends to the law of the source.

    **Arguments:**

    - `x`: source points `(n, dim)`, or a function `(key, n) -> (n, dim)`.
    - `y`, `condition`: target points `(m, dim)` and their conditions: `(m,)` of integers, booleans
      or strings for classes, `(m,)` or `(m, k)` of floats for numbers.
    - `source_condition`: conditions `(n,)` or `(n, k)` of the source points. None where the source
      has none: each source point takes that of a random target point of its batch.
    - `weight`: `>= 0`. None for infinity with classes; with numbers for that at which a share of
      `share` of the candidates costs a source point no more than the one whose condition it took.
    - `share`: in (0, 1), of candidates; a smaller one keeps the source less dependent on the
      condition, and the paths longer.
    - `source_weights`, `target_weights`, `batch_size`, `pool`, `key`: as for `MinibatchOT`.

    **Raises:** `ValueError` for arguments that do not fit one another.

    Cheng and Schwing (2025), arXiv 2503.10636.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "m dim"]
    condition: Shaped[Array, "m ..."]
    pool_rows: Int[Array, " pairs"]
    pool_columns: Int[Array, " pairs"]
    weight: float = eqx.field(static=True)
    classes: tuple[Any, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        x: Any,
        y: Any,
        condition: Any,
        source_condition: Any = None,
        *,
        weight: float | None = None,
        share: float = 0.05,
        source_weights: Any = None,
        target_weights: Any = None,
        batch_size: int = 256,
        pool: int = 200,
        key: int | Key[Array, ""] = 0,
    ):
        check_batches(batch_size, pool, 0.0)
        if weight is not None and not weight >= 0:
            raise ValueError(f"weight must be at least 0; got {weight}.")
        if not 0 < share < 1:
            raise ValueError(f"share must lie in (0, 1); got {share}.")
        first, second = jax.random.split(as_key(key))
        count = batch_size * pool
        x, rows = pool_of(x, "x", source_weights, count, first)
        y, columns = pool_of(y, "y", target_weights, count, second)
        self.x, self.y = tables(x, y)
        values = as_condition(condition, len(y), "condition")
        encoding = encoding_of(values)
        codes, own = _compared(values, encoding, "condition"), None
        if source_condition is not None:
            of_source = as_condition(source_condition, len(x), "source_condition")
            own = _compared(of_source, encoding, "source_condition")
        self.classes = encoding.classes if isinstance(encoding, Classes) else None
        held = values if self.classes is None else codes
        self.condition = jnp.asarray(held.astype(jax.dtypes.canonicalize_dtype(held.dtype)))

        def conditions(i, j):
            return codes[j] if own is None else own[i]

        if weight is None:
            weight = np.inf
            if self.classes is None:
                pilot = slice(0, min(count, PILOT))
                i, j = rows[pilot], columns[pilot]
                weight = _weight(x[i], y[j], conditions(i, j), codes[j], share)
        self.weight = float(weight)
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            i, j = rows[part], columns[part]
            costs = squared_distances(x[i], y[j])
            apart = _apart(conditions(i, j), codes[j], self.classes)
            columns[part] = j[assign(_total(costs, apart, self.weight))]
        self.pool_rows, self.pool_columns = indices(rows), indices(columns)

    def pairs_and_condition(
        self, key: int | Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n dim"], Float[Array, "n dim"], Shaped[Array, "n ..."]]:
        """Pairs as `pairs` gives them, and the condition of the target point of each.

        Classes come as integers, positions in `classes`.
        """
        i, j = self._rows(as_key(key), n)
        return self.x[i], self.y[j], self.condition[j]


def _compared(values: np.ndarray, encoding: Classes | Numbers, name: str) -> np.ndarray:
    """What conditions are compared by: positions of classes `(n,)`, standardised numbers `(n, k)`.

    **Raises:** `ValueError` for another number of numbers, or a class that no target has.
    """
    if values.shape[1:] != encoding.shape:
        raise ValueError(
            f"{name} must have shape {(len(values), *encoding.shape)}; got {values.shape}."
        )
    if isinstance(encoding, Classes):
        return encoding.numbers(values, name)
    return encoding.codes(values, name)


def _apart(first, second, classes) -> Float[np.ndarray, "n n"]:
    if classes is None:
        return squared_distances(first, second)
    return (first[:, None] != second[None]).astype(np.float64)


def _total(costs, apart, weight: float) -> Float[np.ndarray, "n n"]:
    """The whole cost. An infinite weight is one that no sum of costs outweighs."""
    if np.isfinite(weight):
        return costs + weight * apart
    least = np.min(np.where(apart > 0, apart, np.inf))
    finite = len(costs) * (costs.max() - min(costs.min(), 0) + 1) / least
    return costs + finite * apart if np.isfinite(finite) else costs


def _weight(x, y, first, second, share: float) -> float:
    """The weight at which a share of the candidates costs no more than the point's own."""
    costs, apart = squared_distances(x, y), squared_distances(first, second)
    own, distance = np.diag(costs)[:, None], np.diag(apart)[:, None]
    others = ~np.eye(len(x), dtype=bool)

    def cheaper(weight):
        return np.mean((costs + weight * apart <= own + weight * distance)[others])

    low, high = 0.0, costs.mean() / max(apart.mean(), np.finfo(np.float64).tiny)
    if cheaper(low) <= share:
        return low
    for _ in range(HALVINGS):
        if cheaper(high) <= share:
            break
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cheaper(middle) <= share else (middle, high)
    return float(high)

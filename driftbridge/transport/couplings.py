"""Couplings: joint laws of a source and a target point, from which pairs are drawn.

Every coupling has the laws of the source and of the target as its marginals; what differs is which
points go together. `coupling.pairs(key, n)` is a pure function of the key, and can be traced.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.threefry import fold_in
from driftbridge.transport import plan_products
from driftbridge.transport.entropic_plan import EntropicPlan
from driftbridge.transport.points import as_weights
from driftbridge.transport.resampling import Draw, Rows, as_draw, as_table, normals
from driftbridge.transport.semidiscrete import semidiscrete
from driftbridge.transport.semidiscrete_plan import SemidiscretePlan
from driftbridge.transport.sinkhorn import sinkhorn

Pairs = tuple[Float[Array, "n dim"], Float[Array, "n dim"]]


class Coupling(eqx.Module):
    """A joint law of source and target points. A subclass implements `_pairs`."""

    def pairs(self, key: int | Key[Array, ""], n: int) -> Pairs:
        """`n` independent pairs.

        **Arguments:** `key`: seed or typed key; `n`: how many.

        **Returns:** source points and target points, both `(n, dim)`.
        """
        return self._pairs(as_key(key), n)

    @abc.abstractmethod
    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        """Pairs from a typed key."""


class TableCoupling(Coupling):
    """A coupling of rows of two tables. A subclass has `x`, `y` and implements `_rows`."""

    x: eqx.AbstractVar[Float[Array, "n dim"]]
    y: eqx.AbstractVar[Float[Array, "m dim"]]

    @abc.abstractmethod
    def _rows(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        """Row numbers from a typed key."""

    def rows(self, key: int | Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        """The rows of `x` and of `y` that `pairs` of the same key returns: other columns of the
        two tables go with them."""
        return self._rows(as_key(key), n)

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        i, j = self._rows(key, n)
        return self.x[i], self.y[j]


class Independent(Coupling):
    """The product law: source and target are drawn each on its own.

    **Arguments:** `x`, `y`: points `(n, dim)`, drawn with replacement, or functions
    `(key, n) -> (n, dim)`; `source_weights`, `target_weights`: of points, None for equal ones.
    """

    source: Draw
    target: Draw

    def __init__(self, x: Any, y: Any, source_weights: Any = None, target_weights: Any = None):
        self.source, first = as_draw(x, "x", source_weights)
        self.target, second = as_draw(y, "y", target_weights)
        _same_dim(first.shape[0], second.shape[0])

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        first, second = fold_in(key, 0), fold_in(key, 1)
        return self.source(first, n), self.target(second, n)


class Paired(TableCoupling):
    """The coupling that the data came with: row `i` of `x` goes with row `i` of `y`.

    **Arguments:** `x`, `y`: points `(n, dim)`; `weights`: of rows, None for equal ones.

    **Raises:** `ValueError` for tables of different lengths.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "n dim"]
    drawn: Rows

    def __init__(self, x: Any, y: Any, weights: Any = None):
        self.x, self.y = tables(x, y)
        if len(self.x) != len(self.y):
            raise ValueError(
                f"x and y must be paired row by row; got {len(self.x)} and {len(self.y)} rows."
            )
        self.drawn = Rows(as_weights(weights, len(self.x), "x"))

    def _rows(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        i = self.drawn(key, n)
        return i, i


class GlobalSinkhorn(TableCoupling):
    """The entropic plan between two whole tables.

    A source row is drawn with its weight and a target row from the plan's conditional law, at
    `n m` operations for `n` pairs: `Pooled` draws them once.

    **Arguments:**

    - `x`, `y`: points `(n, dim)` and `(m, dim)`.
    - `epsilon`: `> 0`, of the cost `|x - y|^2 / 2`.
    - `source_weights`, `target_weights`: None for equal ones.
    - `tolerance`, `max_iterations`: of `sinkhorn`; the law of the targets is off by the error in
      L1 that is left, `coupling.plan.error`.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "m dim"]
    plan: EntropicPlan

    def __init__(
        self,
        x: Any,
        y: Any,
        epsilon: float,
        source_weights: Any = None,
        target_weights: Any = None,
        *,
        tolerance: float = 1e-3,
        max_iterations: int = 10_000,
    ):
        self.x, self.y = tables(x, y)
        self.plan = sinkhorn(
            self.x, self.y, epsilon=epsilon, a=source_weights, b=target_weights,
            tolerance=tolerance, max_iterations=max_iterations,
        )  # fmt: skip

    @property
    def status(self) -> str:
        return self.plan.status

    def _rows(self, key: Key[Array, ""], n: int) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        return plan_products.draw(self.plan.problem, self.plan.centred_g, key, n)


class SemidiscreteCoupling(Coupling):
    """Fresh draws of the source, each with the point of the target that transport sends it to.

    The source has a density, or a table stands for one: every pair costs one pass over the
    target's points, and no source point needs to have been seen before. For `epsilon = 0` the
    target is a function of the source; else it is drawn from the entropic plan.

    **Arguments:** those of `semidiscrete`. The law of the targets is off by
    `coupling.plan.solve.error`.

    Mousavi-Hosseini, Zhang, Klein and Cuturi (2025), arXiv 2509.25519.
    """

    source: Draw
    plan: SemidiscretePlan

    def __init__(self, x: Any, y: Any, epsilon: float = 0.0, **arguments: Any):
        self.source, _ = as_draw(x, "x", arguments.pop("source_weights", None))
        self.plan = semidiscrete(self.source, y, epsilon=epsilon, **arguments)

    @property
    def status(self) -> str:
        return self.plan.status

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        first, second = fold_in(key, 0), fold_in(key, 1)
        x = self.source(first, n)
        rows = self.plan.draw_rows(second, x)
        return x, self.plan.points[rows] + self.plan.centre[None]


class Corruption(Coupling):
    """The target and a corruption of it: `x1 = y_j`, `x0 = m(x1) + sigma z`, `z` standard normal.

    The source is the law of the corrupted data, so the map undoes the corruption. With `m` the
    identity `E |x1 - x0|^2 = dim sigma^2`; drawn independently, `2 E |x1 - E x1|^2` more.

    **Arguments:**

    - `y`: points `(n, dim)`, or a function `(key, n) -> (n, dim)`.
    - `m`: a function of one point `(dim,)` that returns one of the same shape.
    - `sigma`: `> 0`: without noise `x0` lies on the image of `m`, where no density exists.
    - `weights`: of points, None for equal ones.

    Albergo, Goldstein, Boffi, Ranganath and Vanden-Eijnden (2023), arXiv 2310.03725.
    """

    target: Draw
    m: Callable[[Float[Array, " dim"]], Float[Array, " dim"]]
    sigma: Float[Array, ""]

    def __init__(self, y: Any, m: Callable, sigma: float, weights: Any = None):
        self.target, like = as_draw(y, "y", weights)
        if not 0 < sigma < np.inf:
            raise ValueError(
                f"sigma must be positive and finite; got {sigma}. Without noise the corrupted "
                "points have no density, and no velocity is defined off their image."
            )
        image = jax.eval_shape(m, like)
        if image.shape != like.shape:
            raise ValueError(
                f"m must keep the shape of a point, {like.shape}; it returned {image.shape}."
            )
        self.m = m
        self.sigma = jnp.asarray(sigma, like.dtype)

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        first, second = fold_in(key, 0), fold_in(key, 1)
        x1 = self.target(first, n)
        noise = normals(second, x1.shape, x1.dtype)
        return jax.vmap(self.m)(x1) + self.sigma * noise, x1


class Pooled(Coupling):
    """Pairs of another coupling, drawn once and then taken from with replacement.

    **Arguments:** `coupling`: any; `num_pairs`: how many are kept; `key`: with which they are
    drawn; `batch`: how many are drawn at once.
    """

    x: Float[Array, "n dim"]
    y: Float[Array, "n dim"]

    def __init__(
        self,
        coupling: Coupling,
        num_pairs: int,
        key: int | Key[Array, ""] = 0,
        batch: int = 256,
    ):
        if num_pairs < 1 or batch < 1:
            raise ValueError(
                f"num_pairs and batch must be at least 1; got {num_pairs} and {batch}."
            )
        draw = eqx.filter_jit(lambda held, k: held.pairs(k, min(batch, num_pairs)))
        keys = jax.random.split(as_key(key), -(-num_pairs // batch))
        parts = [jax.tree.map(np.asarray, draw(coupling, k)) for k in keys]
        x, y = (np.concatenate(side)[:num_pairs] for side in zip(*parts, strict=True))
        self.x, self.y = jnp.asarray(x), jnp.asarray(y)

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        i = jax.random.randint(key, (n,), 0, len(self.x))
        return self.x[i], self.y[i]


def tables(x: Any, y: Any) -> tuple[Float[Array, "n dim"], Float[Array, "m dim"]]:
    """Two tables of points of one dimension and one dtype."""
    first, second = as_table(x, "x"), as_table(y, "y")
    _same_dim(first.shape[1], second.shape[1])
    dtype = np.result_type(first.dtype, second.dtype)
    return jnp.asarray(first.astype(dtype)), jnp.asarray(second.astype(dtype))


def _same_dim(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"x and y must have one dimension; got {first} and {second}.")

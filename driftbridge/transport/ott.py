"""What is taken from ott-jax: low-rank Sinkhorn and Gromov-Wasserstein."""

import warnings
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.products import product
from driftbridge.transport.measures import device_dtype, two_samples


class LowRankPlan(NamedTuple):
    """The plan `Q diag(1 / g) R^T`, rounded so that it has the marginals.

    - `q`, `r`: `(n, rank)` and `(m, rank)`; `g`: `(rank,)`.
    - `row_deficit`, `column_deficit`: what the product lacks of `a` and `b` after rounding; the
      plan is the product plus `row_deficit column_deficit^T / sum`.
    - `error`: L1 error of both marginals as the solver returned them.
    - `cost`: `<C, P>` of the rounded plan, `C = |x - y|^2 / 2`: an upper bound of the least cost.
    - `status`: "converged" or "max_iterations".
    """

    q: Float[Array, "n rank"]
    r: Float[Array, "m rank"]
    g: Float[Array, " rank"]
    row_deficit: Float[Array, " n"]
    column_deficit: Float[Array, " m"]
    error: float
    cost: float
    status: str

    def pull(self, values: Float[Array, "m k"]) -> Float[Array, "n k"]:
        """`P v`."""
        missing = jnp.maximum(jnp.sum(self.column_deficit), jnp.finfo(self.q.dtype).tiny)
        fill = product(self.column_deficit, values) / missing
        inner = product(self.r.T, values) / self.g[:, None]
        return product(self.q, inner) + self.row_deficit[:, None] * fill[None, :]


class GromovPlan(NamedTuple):
    """A plan between two spaces, rounded so that it has the marginals.

    - `matrix`: `(n, m)`.
    - `error`: L1 error of both marginals as the solver returned them.
    - `cost`: `sum (c(x, x') - c(y, y'))^2 P(x, y) P(x', y')` of `matrix`, `c = |x - x'|^2 / 2`. The
      problem is not convex: another start may give less.
    - `status`: "converged" or "max_iterations".
    """

    matrix: Float[Array, "n m"]
    error: float
    cost: float
    status: str


def low_rank_sinkhorn(
    x: Any,
    y: Any,
    *,
    rank: int,
    epsilon: SupportsFloat = 0.0,
    a: Any = None,
    b: Any = None,
    step_size: float = 10.0,
    tolerance: float = 1e-3,
    max_iterations: int = 2000,
    key: Any = 0,
) -> LowRankPlan:
    """A plan of low non-negative rank that makes `<C, P>` small, `C = |x - y|^2 / 2`.

    Time and memory grow as `(n + m) rank`. A low rank blurs: the plan is not the one of `sinkhorn`,
    and its cost approaches the least one from above as the rank grows.

    **Arguments:**

    - `rank`: `>= 1`, at most the smaller number of points.
    - `epsilon`: `>= 0`, regularisation of the factors, in the units of the cost.
    - `step_size`: of the mirror descent, over the largest gradient.
    - `tolerance`: of the change of the factors; `key`: of the random start.
    - others: as of `sinkhorn`.

    **Raises:** `ValueError` for arguments outside their range, and `ImportError` without ott-jax.

    Scetbon, Cuturi and Peyré (2021), arXiv 2103.04737, algorithm 3.
    """
    (x, y), (a, b) = _inputs(x, y, a, b, same_space=True)
    if not 1 <= rank <= min(len(x), len(y)):
        raise ValueError(f"rank must lie in [1, {min(len(x), len(y))}]; got {rank}.")
    if not float(epsilon) >= 0:
        raise ValueError(f"epsilon must be at least 0; got {epsilon}.")
    _imported()
    with jax.numpy_rank_promotion("allow"):
        from ott.geometry import pointcloud
        from ott.initializers.linear.initializers_lr import RandomInitializer
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn_lr

        # Points over sqrt(2) have our cost as their squared distance.
        geometry = pointcloud.PointCloud(x / np.sqrt(2), y / np.sqrt(2))
        solver = sinkhorn_lr.LRSinkhorn(
            rank=rank,
            gamma=step_size,
            epsilon=float(epsilon),
            threshold=tolerance,
            max_iterations=max_iterations,
            initializer=RandomInitializer(rank),
        )
        problem = linear_problem.LinearProblem(geometry, a, b)
        out = jax.jit(lambda problem, key: solver(problem, rng=key))(problem, as_key(key))
    q, r, g = out.q, out.r, out.g
    rows = product(q / g[None, :], jnp.sum(r, axis=0))
    columns = product(r / g[None, :], jnp.sum(q, axis=0))
    error = float(jnp.sum(jnp.abs(rows - a)) + jnp.sum(jnp.abs(columns - b)))
    q = q * jnp.minimum(1, a / rows)[:, None]
    columns = product(r / g[None, :], jnp.sum(q, axis=0))
    r = r * jnp.minimum(1, b / columns)[:, None]
    row_deficit = jnp.maximum(a - product(q / g[None, :], jnp.sum(r, axis=0)), 0)
    column_deficit = jnp.maximum(b - product(r / g[None, :], jnp.sum(q, axis=0)), 0)
    missing = jnp.maximum(jnp.sum(column_deficit), jnp.finfo(q.dtype).tiny)
    squares = jnp.sum(a * jnp.sum(x**2, axis=1)) + jnp.sum(b * jnp.sum(y**2, axis=1))
    inner = jnp.sum(product(x.T, q / g[None, :]) * product(y.T, r))
    inner += jnp.sum(product(row_deficit, x) * product(column_deficit, y)) / missing
    status = "converged" if bool(out.converged) else "max_iterations"
    cost = float(squares / 2 - inner)
    return LowRankPlan(q, r, g, row_deficit, column_deficit, error, cost, status)


def gromov_wasserstein(
    x: Any,
    y: Any,
    *,
    epsilon: SupportsFloat,
    a: Any = None,
    b: Any = None,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> GromovPlan:
    """A plan between points of two spaces that keeps distances within each.

    A stationary point of `E(P) + 2 epsilon KL(P | a b)` with
    `E(P) = sum (c(x, x') - c(y, y'))^2 P(x, y) P(x', y')` and `c = |x - x'|^2 / 2`: the entropic
    plan for the cost `sum (c(x, x') - c(y, y'))^2 P(x', y')` that it makes itself.

    **Arguments:**

    - `x`, `y`: points `(n, dim)` and `(m, other dim)`.
    - `epsilon`: `> 0`, in the units of the squared cost.
    - `tolerance`, `max_iterations`: of the outer iteration.

    **Raises:** `ValueError` for arguments outside their range, and `ImportError` without ott-jax.

    Peyré, Cuturi and Solomon (2016), Gromov-Wasserstein averaging, algorithm 1.
    """
    (x, y), (a, b) = _inputs(x, y, a, b, same_space=False)
    if not float(epsilon) > 0:
        raise ValueError(f"epsilon must be above 0; got {epsilon}.")
    _imported()
    with jax.numpy_rank_promotion("allow"):
        from ott.geometry import pointcloud
        from ott.problems.quadratic import quadratic_problem
        from ott.solvers.linear import sinkhorn
        from ott.solvers.quadratic import gromov_wasserstein as ott_gromov

        solver = ott_gromov.GromovWasserstein(
            sinkhorn.Sinkhorn(),
            epsilon=float(epsilon),
            threshold=tolerance,
            max_iterations=max_iterations,
        )
        problem = quadratic_problem.QuadraticProblem(
            pointcloud.PointCloud(x / np.sqrt(2)), pointcloud.PointCloud(y / np.sqrt(2)), a=a, b=b
        )
        out = jax.jit(solver)(problem)
        matrix = out.matrix
    rows, columns = jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0)
    error = float(jnp.sum(jnp.abs(rows - a)) + jnp.sum(jnp.abs(columns - b)))
    matrix = _rounded(matrix, a, b)
    within_x, within_y = _costs(x), _costs(y)
    rows, columns = jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0)
    cost = rows @ product(within_x**2, rows) + columns @ product(within_y**2, columns)
    cost -= 2 * jnp.sum(product(within_x, product(matrix, within_y)) * matrix)
    status = "converged" if bool(out.converged) else "max_iterations"
    return GromovPlan(matrix, error, float(cost), status)


def _rounded(matrix, a, b) -> Array:
    """The nearest plan with the marginals: Altschuler et al. (2017), algorithm 2."""
    rows = jnp.sum(matrix, axis=1)
    matrix = (
        matrix * jnp.where(rows > 0, jnp.minimum(1, a / jnp.where(rows > 0, rows, 1)), 1)[:, None]
    )
    columns = jnp.sum(matrix, axis=0)
    kept = jnp.where(columns > 0, jnp.minimum(1, b / jnp.where(columns > 0, columns, 1)), 1)
    matrix = matrix * kept[None, :]
    row_deficit = jnp.maximum(a - jnp.sum(matrix, axis=1), 0)
    column_deficit = jnp.maximum(b - jnp.sum(matrix, axis=0), 0)
    missing = jnp.maximum(jnp.sum(row_deficit), jnp.finfo(matrix.dtype).tiny)
    return matrix + row_deficit[:, None] * (column_deficit / missing)[None, :]


def _costs(points) -> Array:
    squares = jnp.sum(points**2, axis=1)
    return (squares[:, None] + squares[None, :]) / 2 - product(points, points.T)


def _inputs(x, y, a, b, same_space: bool):
    """Points about their mean and weights, as arrays of one dtype."""
    samples = two_samples(x, y, a, b, vectors=False, same_dim=same_space)
    dtype = device_dtype(samples[0].points)
    centres = [sample.weights @ np.asarray(sample.points, np.float64) for sample in samples]
    if same_space:
        centres = [(centres[0] + centres[1]) / 2] * 2
    centred = [s.points - centre for s, centre in zip(samples, centres, strict=True)]
    return (
        [jnp.asarray(points, dtype) for points in centred],
        [jnp.asarray(s.weights, dtype) for s in samples],
    )


def _imported() -> None:
    """Import ott-jax, whose dependency jaxopt warns of its own end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import ott  # noqa: F401
    except ImportError as error:
        raise ImportError("low-rank and Gromov plans need ott-jax: pip install ott-jax.") from error

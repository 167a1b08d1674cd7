"""Exact optimal couplings of two weighted samples, each with a proof of its optimality."""

import importlib.util
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from driftbridge.transport.c_transform import c_transform, completed
from driftbridge.transport.exact_solvers import (
    Problem,
    Solution,
    assignment,
    linear_program,
    monotone,
    network_simplex,
)
from driftbridge.transport.measures import two_samples
from driftbridge.transport.one_dimensional import check_power

METHODS = ("auto", "monotone", "assignment", "network_simplex", "linear_program")
# From this dimension on the assignment is as fast as the network simplex.
ASSIGNMENT_DIM = 10
# Below this size the assignment takes less time than importing POT.
ASSIGNMENT_POINTS = 500
# The general linear program takes about four seconds at this many entries.
LINEAR_PROGRAM_ENTRIES = 250_000
NEEDS_POT = (
    "the network simplex is that of POT, which is not installed: pip install 'driftbridge[pot]'."
)
# Memory of each solver in bytes for each entry of the cost matrix, as measured.
BYTES = {"assignment": 12, "network_simplex": 52, "linear_program": 1500}


class OptimalCoupling(eqx.Module):
    """An optimal coupling of two samples as a sparse plan, with its certificate.

    - `rows`, `columns`, `mass`: the plan puts `mass[k] > 0` on the pair `(rows[k], columns[k])`.
    - `cost`: `sum_k mass[k] |x[rows[k]] - y[columns[k]]|^p`.
    - `lower`: dual value of feasible potentials, `<=` every coupling's cost; NaN if no certificate
      was asked for.
    - `potentials`: `f` and `g` with `f_i + g_j <= |x_i - y_j|^p` for all pairs, or None.
    - `p`: power of the cost.
    - `method`: the solver that ran, and `reason`: why that one.
    - `status`: "optimal", or what the solver said instead.
    """

    rows: Int[np.ndarray, " k"]
    columns: Int[np.ndarray, " k"]
    mass: Float[np.ndarray, " k"]
    potentials: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None
    cost: float
    lower: float
    shape: tuple[int, int] = eqx.field(static=True)
    p: float = eqx.field(static=True)
    method: str = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    status: str = eqx.field(static=True)

    @property
    def distance(self) -> float:
        """`W_p = cost^(1/p)`, in the units of the data."""
        return float(self.cost ** (1 / self.p))

    @property
    def gap(self) -> float:
        """`cost - lower`: how far from optimal the plan can be; rounding may make it negative."""
        return self.cost - self.lower

    def dense(self) -> Float[np.ndarray, "n m"]:
        """The plan as a matrix."""
        plan = np.zeros(self.shape)
        np.add.at(plan, (self.rows, self.columns), self.mass)
        return plan


def optimal_coupling(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    p: float | int = 2,
    *,
    method: str = "auto",
    certificate: bool = True,
    max_bytes: float = 2.0**32,
) -> OptimalCoupling:
    """A coupling of least cost between two weighted samples, solved exactly in float64.

    `min sum_ij P_ij |x_i - y_j|^p` over plans `P >= 0` with row sums `a` and column sums `b`. With
    its certificate comes the dual value `a.f + b.g`, whose potentials are made feasible by
    c-transforms whatever the solver returned, so that `lower <= min <= cost` is checked and not
    believed.

    The solvers: "monotone" sorts (one dimension); "assignment" is that of SciPy, for equal weights
    and sizes; "network_simplex" is that of POT (extra `pot`), for any weights, the faster one below
    ten dimensions; "linear_program" is HiGHS, for small problems. "auto" takes the first that fits
    and says in `reason` which and why.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`; a vector is one column.
    - `a`, `b`: weights `(n,)` and `(m,)`, each summing to one; equal if None.
    - `p`: `>= 1`.
    - `method`: one of the names above.
    - `certificate`: whether to compute the potentials. After an assignment they are shortest paths
      by Bellman and Ford, which take about as long as the assignment.
    - `max_bytes`: memory that the solver may use.

    **Returns:** an `OptimalCoupling`.

    **Raises:** `ValueError` for arguments outside their range and a method that does not fit;
    `MemoryError` naming the memory that a problem needs beyond `max_bytes`; `ImportError` naming
    the extra where only POT can solve it.

    Peyre and Cuturi (2019), Computational Optimal Transport, arXiv 1803.00567, section 3.
    """
    check_power(p)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    source, target = two_samples(x, y, a, b)
    shape = len(source.points), len(target.points)
    # Points without mass play no part in the plan; c-transforms give them their potentials.
    kept = np.flatnonzero(source.weights), np.flatnonzero(target.weights)
    problem = Problem(
        np.asarray(source.points[kept[0]], np.float64),
        np.asarray(target.points[kept[1]], np.float64),
        source.weights[kept[0]],
        target.weights[kept[1]],
        float(p),
    )
    method, reason = _choice(problem, method)
    if method == "monotone":
        found, cost = monotone(problem, certificate), None
    else:
        _check_memory(problem, method, max_bytes)
        cost = problem.cost
        solve = {
            "assignment": assignment,
            "network_simplex": network_simplex,
            "linear_program": linear_program,
        }[method]
        found = solve(problem, cost, certificate)
    differences = np.linalg.norm(problem.x[found.rows] - problem.y[found.columns], axis=1)
    potentials, lower = None, float("nan")
    if found.potential is not None:
        f, g = _feasible(problem, cost, found)
        lower = float(problem.a @ f + problem.b @ g)
        potentials = _whole(f, g, kept, source.points, target.points, problem.p)
    return OptimalCoupling(
        rows=kept[0][found.rows],
        columns=kept[1][found.columns],
        mass=found.mass,
        potentials=potentials,
        cost=float(found.mass @ differences**p),
        lower=lower,
        shape=shape,
        p=float(p),
        method=method,
        reason=reason,
        status=found.status,
    )


def _choice(problem: Problem, method: str) -> tuple[str, str]:
    """The solver, and why it."""
    n, m, dim = len(problem.x), len(problem.y), problem.x.shape[1]
    is_equal = n == m and _is_constant(problem.a) and _is_constant(problem.b)
    if method == "monotone" and dim != 1:
        raise ValueError(f"method 'monotone' is for one dimension; got {dim}.")
    if method == "assignment" and not is_equal:
        raise ValueError(
            f"method 'assignment' is for equal weights and sizes; got {n} and {m} points. "
            "method='network_simplex' takes any."
        )
    if method == "network_simplex" and not _has_pot():
        raise ImportError(NEEDS_POT)
    if method != "auto":
        return method, "asked for"
    if dim == 1:
        return "monotone", "one dimension"
    if is_equal and n <= ASSIGNMENT_POINTS:
        return "assignment", f"equal weights, {n} points"
    if is_equal and dim >= ASSIGNMENT_DIM:
        return "assignment", f"equal weights, {dim} dimensions"
    if _has_pot():
        return "network_simplex", f"{'equal' if is_equal else 'general'} weights, {dim} dimensions"
    if is_equal:
        return "assignment", "equal weights; the faster network simplex needs the extra 'pot'"
    if n * m <= LINEAR_PROGRAM_ENTRIES:
        return "linear_program", "general weights; the network simplex needs the extra 'pot'"
    raise ImportError(f"{n} x {m} points with weights or sizes that differ: {NEEDS_POT}")


def _has_pot() -> bool:
    return importlib.util.find_spec("ot") is not None


def _is_constant(weights: Float[np.ndarray, " n"]) -> bool:
    return bool(np.ptp(weights) <= 1e-12 * weights[0])


def _check_memory(problem: Problem, method: str, max_bytes: float) -> None:
    n, m = len(problem.x), len(problem.y)
    needed = BYTES[method] * n * m
    if needed > max_bytes:
        raise MemoryError(
            f"an exact coupling of {n} x {m} points by '{method}' needs about "
            f"{needed / 2**30:.1f} GiB, more than max_bytes = {max_bytes / 2**30:.1f} GiB. Raise "
            "max_bytes, take fewer points, or use sinkhorn."
        )


def _feasible(problem: Problem, cost: Any, found: Solution):
    """Feasible potentials from any `f`: `g = f^c`, then `f = g^c`, which only raise the dual.

    On the line the stairs give both, feasible because convex costs of sorted points are a Monge
    array; comparing all pairs would take longer than sorting.
    """
    f = found.potential
    assert f is not None
    if cost is not None:
        g = c_transform(cost.T, f)
        return c_transform(cost, g), g
    g = np.full(len(problem.y), np.nan)
    tight = np.abs(problem.x[found.rows, 0] - problem.y[found.columns, 0]) ** problem.p
    g[found.columns] = tight - f[found.rows]
    # Points of less mass than the rounding of the sums are on no stair.
    return completed(f, g, problem.x, problem.y, problem.p)


def _whole(f, g, kept, x, y, p):
    """Potentials of all points, those without mass included."""
    whole = np.full(len(x), np.nan), np.full(len(y), np.nan)
    whole[0][kept[0]], whole[1][kept[1]] = f, g
    return completed(*whole, np.asarray(x, np.float64), np.asarray(y, np.float64), p)

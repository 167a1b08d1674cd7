"""The solvers of exact transport: sorting, assignment, network simplex, linear program."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from driftbridge.transport.assignment import assign
from driftbridge.transport.c_transform import c_transform, power_cost
from driftbridge.transport.one_dimensional import staircase

PIVOTS = 1_000_000_000
SWEEPS = 2000


class Problem(NamedTuple):
    x: Float[np.ndarray, "n dim"]
    y: Float[np.ndarray, "m dim"]
    a: Float[np.ndarray, " n"]
    b: Float[np.ndarray, " m"]
    p: float

    @property
    def cost(self) -> Float[np.ndarray, "n m"]:
        return power_cost(self.x, self.y, self.p)


class Solution(NamedTuple):
    rows: Int[np.ndarray, " k"]
    columns: Int[np.ndarray, " k"]
    mass: Float[np.ndarray, " k"]
    potential: Float[np.ndarray, " n"] | None
    status: str = "optimal"


def monotone(problem: Problem, certificate: bool) -> Solution:
    """Sorted against sorted; potentials follow from the staircase, on which all pairs are tight."""
    order = (
        np.argsort(problem.x[:, 0], kind="stable"),
        np.argsort(problem.y[:, 0], kind="stable"),
    )
    at = staircase(problem.a[order[0]], problem.b[order[1]])
    rows, columns = order[0][at.rows], order[1][at.columns]
    f = None
    if certificate:
        # f_i + g_j = c_ij along the stairs. Where both ranks change at once, a step of no mass
        # stands between: to the new row first, then to the new column.
        x, y = problem.x[rows, 0], problem.y[columns, 0]
        step = np.abs(x[1:] - y[:-1]) ** problem.p - np.abs(x[:-1] - y[:-1]) ** problem.p
        f = np.full(len(problem.x), np.nan)
        f[rows] = np.concatenate([[0.0], np.cumsum(step)])
    return Solution(rows, columns, at.mass, f)


def assignment(problem: Problem, cost: Any, certificate: bool) -> Solution:
    columns = assign(cost)
    rows = np.arange(len(columns))
    f = _assignment_potential(cost, columns) if certificate else None
    return Solution(rows, columns, problem.a.copy(), f)


def _assignment_potential(
    cost: Float[np.ndarray, "n n"], columns: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Potentials of an optimal assignment: shortest paths over its exchanges, by Bellman and Ford.

    The least `f <= 0` with `f_i + g_j <= c_ij` and equality on the assignment is the limit of
    `g = c - f` on the assignment, `f_i = min_j (c_ij - g_j)`. There is no negative cycle when the
    assignment is optimal, and stopped early the c-transform still gives a lower bound.
    """
    n = len(cost)
    tight = cost[np.arange(n), columns]
    f, g = np.zeros(n), np.empty(n)
    rounding = 1e-14 * (np.max(tight) + 1e-300)
    for _ in range(SWEEPS):
        g[columns] = tight - f
        better = c_transform(cost, g)
        if np.max(f - better) <= rounding:
            break
        f = better
    return f


def network_simplex(problem: Problem, cost: Any, certificate: bool) -> Solution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot

        plan, log = ot.emd(problem.a, problem.b, cost, numItermax=PIVOTS, log=True)
    plan = np.asarray(plan)
    rows, columns = np.nonzero(plan)
    f = np.asarray(log["u"], np.float64) if certificate else None
    return Solution(rows, columns, plan[rows, columns], f, str(log["warning"] or "optimal"))


def linear_program(problem: Problem, cost: Any, certificate: bool) -> Solution:
    from scipy import sparse
    from scipy.optimize import linprog

    n, m = cost.shape
    sums = sparse.vstack(
        [
            sparse.kron(sparse.eye_array(n), np.ones((1, m))),
            sparse.kron(np.ones((1, n)), sparse.eye_array(m)),
        ]
    )
    # One of the sums follows from the others; left in, rounding could make them contradict.
    found = linprog(
        cost.ravel(),
        A_eq=sparse.csr_array(sums)[:-1],
        b_eq=np.concatenate([problem.a, problem.b])[:-1],
        method="highs",
    )
    if found.x is None:
        raise RuntimeError(f"the linear program of {n} x {m} points failed: {found.message}")
    plan = np.maximum(found.x.reshape(n, m), 0)
    rows, columns = np.nonzero(plan)
    f = np.asarray(found.eqlin.marginals[:n], np.float64) if certificate else None
    return Solution(
        rows, columns, plan[rows, columns], f, "optimal" if found.status == 0 else found.message
    )

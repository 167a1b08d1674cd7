"""A certified interval of the transport cost without regularisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.costs import cost_matrix
from driftbridge.transport.entropic_problem import LOG_ZERO, Problem, exponents, in_blocks

# Larger exponents would overflow in float32; no plan near the marginals has them.
LARGEST = 80.0


class Certificate(NamedTuple):
    """`lower <= min <C, P> <= upper` over all plans with the marginals, up to rounding.

    - `lower`: value of the dual at potentials that satisfy `f_i + g_j <= C_ij`.
    - `upper`: cost of a plan that has the marginals.
    """

    lower: float
    upper: float


@jax.jit
def certified(problem: Problem, f: Array, g: Array) -> tuple[Array, Array]:
    """Bounds from the plan of `f`, `g`, rounded, and from their c-transforms.

    Rounding: rows of the plan are scaled down to at most `a`, then columns to at most `b`, and what
    is missing is filled with the product of the two deficits. Three passes over blocks of rows.

    Altschuler, Weed and Rigollet (2017), arXiv 1705.09634, algorithm 2.
    """
    return lower_bound(problem, f, g), rounded_cost(problem, f, g)


def lower_bound(problem: Problem, f: Array, g: Array) -> Float[Array, ""]:
    """`<a, g^c> + <b, g^cc>`, with `g^c_i = min_j C_ij - g_j` and back: feasible for any `g`."""
    a, b = problem.a, problem.b
    # Rows and columns without mass bind nothing.
    no_row, no_column = jnp.where(a > 0, 0, jnp.inf), jnp.where(b > 0, 0, jnp.inf)

    def block(best, rows):
        x, no_row = rows
        costs = cost_matrix(problem.cost, x, problem.y)
        first = jnp.min(costs - g[None, :] + no_column[None, :], axis=1)
        second = jnp.min(costs - first[:, None] + no_row[:, None], axis=0)
        return jnp.minimum(best, second), first

    start = jnp.full_like(g, jnp.inf)
    second, first = lax.scan(block, start, in_blocks(problem, problem.x, no_row))
    return jnp.sum(a * first.reshape(-1)) + jnp.sum(b * second)


def rounded_cost(problem: Problem, f: Array, g: Array) -> Float[Array, ""]:
    """Cost of the plan of `f` and `g` rounded to feasibility."""
    a, b, epsilon = problem.a, problem.b, problem.epsilon

    g = jnp.where(b > 0, g, LOG_ZERO)

    def density(x, f):
        exponent = exponents(problem.cost, x, f, problem.y, g, epsilon)
        return jnp.exp(jnp.minimum(exponent, LARGEST))

    def shrink_rows(t, rows):
        x, f, a = rows
        K = density(x, f)
        kept = 1 / jnp.maximum(product(K, b), 1)
        return t + product(a * kept, K), kept

    t, kept = lax.scan(shrink_rows, jnp.zeros_like(g), in_blocks(problem, problem.x, f, a))
    kept_columns = 1 / jnp.maximum(t, 1)
    missing_columns = b * (1 - t * kept_columns)

    def cost_of(carry, rows):
        x, f, a, kept = rows
        costs = cost_matrix(problem.cost, x, problem.y)
        K = density(x, f) * (kept[:, None] * kept_columns[None, :])
        missing = a * (1 - product(K, b))
        plan_cost, fill_cost, total = carry
        carried = jnp.sum(a * product(K * costs, b))
        filled = jnp.sum(jnp.maximum(missing, 0) * product(costs, missing_columns))
        return (plan_cost + carried, fill_cost + filled, total + jnp.sum(missing)), None

    zero = jnp.zeros_like(epsilon)
    rows = in_blocks(problem, problem.x, f, a, kept.reshape(-1))
    (plan_cost, fill_cost, _), _ = lax.scan(cost_of, (zero, zero, zero), rows)
    missing = jnp.sum(missing_columns)
    return plan_cost + jnp.where(missing > 0, fill_cost / jnp.where(missing > 0, missing, 1), 0)

"""Products with an entropic plan, a block of rows at a time."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from driftbridge.runtime.exponential import exponential
from driftbridge.runtime.products import product
from driftbridge.transport.entropic_problem import (
    LOG_ZERO,
    Problem,
    exponents,
    in_blocks,
    log_weights,
    logsumexp_rows,
    map_rows,
)


def _density(problem: Problem, x, f, g):
    # A column without mass has no density, whatever its potential: zero times infinity is no zero.
    g = jnp.where(problem.b > 0, g, LOG_ZERO)
    return exponential(exponents(problem.cost, x, f, problem.y, g, problem.epsilon))


@jax.jit
def marginals(problem: Problem, f: Array, g: Array) -> tuple[Array, Array]:
    """Row and column sums of the plan."""

    def block(t, rows):
        x, f, a = rows
        density = _density(problem, x, f, g)
        return t + product(a, density), a * product(density, problem.b)

    t, s = lax.scan(block, jnp.zeros_like(g), in_blocks(problem, problem.x, f, problem.a))
    return s.reshape(-1), problem.b * t


@jax.jit
def pull(problem: Problem, f: Array, g: Array, values: Float[Array, "m k"]):
    """`P v`."""
    weighted = problem.b[:, None] * values
    return map_rows(
        problem,
        lambda x, f, a: a[:, None] * product(_density(problem, x, f, g), weighted),
        problem.x,
        f,
        problem.a,
    )


@jax.jit
def push(problem: Problem, f: Array, g: Array, values: Float[Array, "n k"]):
    """`P^T v`."""

    def block(total, rows):
        x, f, weighted = rows
        return total + product(_density(problem, x, f, g).T, weighted), None

    weighted = problem.a[:, None] * values
    start = jnp.zeros((problem.y.shape[0], values.shape[1]), values.dtype)
    total, _ = lax.scan(block, start, in_blocks(problem, problem.x, f, weighted))
    return problem.b[:, None] * total


@jax.jit
def softmin(problem: Problem, g: Array) -> Float[Array, " n"]:
    """`f_i = -epsilon log sum_j b_j exp((g_j - C_ij) / epsilon)` at the rows of the problem."""
    log_b = log_weights(problem.b)

    def block(x):
        zero = jnp.zeros(x.shape[0], x.dtype)
        exponent = exponents(problem.cost, x, zero, problem.y, g, problem.epsilon)
        return -problem.epsilon * logsumexp_rows(exponent + log_b[None, :])

    return map_rows(problem, block, problem.x)


@jax.jit
def conditional_mean(problem: Problem, g: Array, values: Float[Array, "m k"]):
    """`sum_j w_j v_j` with weights `w` proportional to `b_j exp((g_j - C_ij) / epsilon)`."""
    log_b = log_weights(problem.b)

    def block(x):
        zero = jnp.zeros(x.shape[0], x.dtype)
        exponent = exponents(problem.cost, x, zero, problem.y, g, problem.epsilon)
        return product(jax.nn.softmax(exponent + log_b[None, :], axis=1), values)

    return map_rows(problem, block, problem.x)


@partial(jax.jit, static_argnames="size")
def draw(problem: Problem, g: Array, key: Array, size: int):
    """Rows by their weights, then columns by the conditional law of each row, by inversion."""
    levels = jax.random.uniform(key, (2, size), problem.x.dtype)
    log_b = log_weights(problem.b)
    cumulated = jnp.cumsum(problem.a)
    rows = jnp.searchsorted(cumulated, levels[0] * cumulated[-1], side="right")
    # A level that rounds up to the whole mass would fall on padding.
    rows = jnp.minimum(rows, jnp.max(jnp.where(problem.a > 0, jnp.arange(len(problem.a)), 0)))
    last = jnp.max(jnp.where(problem.b > 0, jnp.arange(len(problem.b)), 0))
    x, m = problem.x[rows], len(problem.b)
    picked = Problem(x, problem.y, levels[1], problem.b, problem.epsilon, problem.cost)

    def block(x, level):
        zero = jnp.zeros(x.shape[0], x.dtype)
        exponent = exponents(problem.cost, x, zero, problem.y, g, problem.epsilon)
        mass = jnp.cumsum(jax.nn.softmax(exponent + log_b[None, :], axis=1), axis=1)
        below = jnp.sum(mass <= (level * mass[:, m - 1])[:, None], axis=1)
        return jnp.minimum(below, last)

    return rows, map_rows(picked, block, x, levels[1])


@jax.jit
def matrix(problem: Problem, f: Array, g: Array) -> Float[Array, "n m"]:
    """The plan."""
    density = _density(problem, problem.x, f, g)
    return problem.a[:, None] * density * problem.b[None, :]

"""Entropic transport as a pure function: inside `jit` and `vmap`, and differentiable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from driftbridge.transport.blocked import iterate_blocked
from driftbridge.transport.costs import Cost
from driftbridge.transport.driving import STORED
from driftbridge.transport.entropic_problem import Problem, exponents, in_blocks, mean_cost
from driftbridge.transport.iterate import (
    ANNEAL_BELOW,
    ANNEAL_FROM,
    RUNNING,
    STAGE_TOLERANCE,
    Iterate,
    Settings,
)
from driftbridge.transport.newton import columns_of, finish
from driftbridge.transport.padding import bucket
from driftbridge.transport.plan_products import softmin
from driftbridge.transport.scaling import iterate_stored

# Relative accuracy of the linear solve behind a derivative, and its products at most.
DERIVATIVE_TOLERANCE, DERIVATIVE_PRODUCTS = 1e-6, 1000


class Potentials(NamedTuple):
    """Potentials of `P_ij = a_i b_j exp((f_i + g_j - c(x_i, y_j)) / epsilon)`.

    - `error`: `sum_j |sum_i P_ij - b_j|`; the rows are exact.
    - `status`: 1 converged, 2 stalled, 3 at the most iterations.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    error: Float[Array, ""]
    num_iterations: Int[Array, ""]
    status: Int[Array, ""]


def entropic_potentials(
    x: Float[ArrayLike, "n dim"],
    y: Float[ArrayLike, "m dim"],
    *,
    epsilon: ArrayLike,
    a: Float[ArrayLike, " n"] | None = None,
    b: Float[ArrayLike, " m"] | None = None,
    cost: Cost = None,
    tolerance: ArrayLike = 1e-3,
    max_iterations: int = 10_000,
) -> Potentials:
    """Potentials of the entropic plan between two weighted sets of points, as a pure function.

    Arguments as of `sinkhorn`, which checks them and does not compile again for another number of
    points; nothing is checked here, weights that do not sum to one among it. Batches are `vmap`.

    Derivatives with respect to points, weights and epsilon are those of the implicit function
    `c(g) = b`, `c` the column sums of the plan of `g` with exact rows, by conjugate gradients;
    those with respect to weights are in directions that sum to zero. They are as accurate as
    `tolerance`.
    """
    problem, centres = _problem(x, y, a, b, epsilon, cost)
    iterate = _solved(lax.stop_gradient(problem), tolerance, max_iterations)
    g = _implicit(problem, lax.stop_gradient(iterate.g))
    delta = centres[0] - centres[1]
    f = softmin(problem, g) + problem.x @ delta
    g = g - problem.y @ delta
    shift = (jnp.sum(problem.b * g) - jnp.sum(problem.a * f)) / 2
    half = jnp.sum(delta**2) / 4
    n, m = jnp.shape(x)[0], jnp.shape(y)[0]
    return Potentials(
        (f + shift + half)[:n],
        (g - shift + half)[:m],
        iterate.error,
        iterate.iterations,
        iterate.status,
    )


def entropic_cost(
    x: Float[ArrayLike, "n dim"],
    y: Float[ArrayLike, "m dim"],
    *,
    epsilon: ArrayLike,
    a: Float[ArrayLike, " n"] | None = None,
    b: Float[ArrayLike, " m"] | None = None,
    cost: Cost = None,
    tolerance: ArrayLike = 1e-3,
    max_iterations: int = 10_000,
) -> Float[Array, ""]:
    """The least value of `<C, P> + epsilon KL(P | a b)`, as the value of its dual.

    `D(f, g) = <a, f> + <b, g> - epsilon (sum_ij a_i b_j exp((f_i + g_j - C_ij) / epsilon) - 1)`.

    Arguments as of `entropic_potentials`. The value is off by the square of the marginal error, its
    derivative with respect to points, weights and epsilon, that of `D` at fixed potentials, by the
    error itself. Derivatives of second order are not those of the cost: take derivatives of
    `entropic_potentials`.
    """
    problem, centres = _problem(x, y, a, b, epsilon, cost)
    iterate = lax.stop_gradient(_solved(lax.stop_gradient(problem), tolerance, max_iterations))
    f, g = iterate.f, jnp.where(problem.b > 0, iterate.g, 0)

    @jax.checkpoint
    def block(mass, rows):
        x, f, a = rows
        inside = jnp.where(problem.b > 0, 0, -jnp.inf)
        exponent = exponents(problem.cost, x, f, problem.y, g, problem.epsilon)
        density = jnp.exp(exponent + inside[None, :])
        return mass + jnp.sum(a * jnp.sum(density * problem.b[None, :], axis=1)), None

    blocks = in_blocks(problem, problem.x, f, problem.a)
    mass, _ = lax.scan(block, jnp.zeros_like(problem.epsilon), blocks)
    delta = centres[0] - centres[1]
    linear = jnp.sum(problem.a * (f + problem.x @ delta))
    linear += jnp.sum(problem.b * (g - problem.y @ delta))
    return linear + jnp.sum(delta**2) / 2 - problem.epsilon * (mass - 1)


def _problem(x, y, a, b, epsilon, cost) -> tuple[Problem, tuple[Array, Array]]:
    """The padded problem about fixed centres."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    dtype = jnp.result_type(x, y)
    pairs = []
    for points, weights in ((x, a), (y, b)):
        n = points.shape[0]
        weights = jnp.full(n, 1 / n, dtype) if weights is None else jnp.asarray(weights, dtype)
        mean = jnp.sum(weights[:, None] * points, axis=0)
        centre = lax.stop_gradient(mean) if cost is None else jnp.zeros_like(mean)
        short = bucket(n) - n
        centred = jnp.pad(points.astype(dtype) - centre[None, :], ((0, short), (0, 0)))
        pairs.append((centred, jnp.pad(weights, (0, short)), centre))
    (x, a, x0), (y, b, y0) = pairs
    return Problem(x, y, a, b, jnp.asarray(epsilon, dtype), cost), (x0, y0)


@jax.jit
def _solved(problem: Problem, tolerance, max_iterations) -> Iterate:
    """Scaling, and Newton's method where epsilon is small or scaling has not reached the end."""
    epsilon, mean = problem.epsilon, mean_cost(problem)
    stored = len(problem.a) * len(problem.b) <= STORED
    tolerance = jnp.asarray(tolerance, epsilon.dtype)
    is_small = epsilon < ANNEAL_BELOW * mean
    loose = jnp.where(is_small, jnp.maximum(tolerance, STAGE_TOLERANCE), tolerance)
    settings = Settings(loose, jnp.asarray(max_iterations, jnp.int32))
    infinite, zero = jnp.full_like(epsilon, jnp.inf), jnp.zeros_like(epsilon, jnp.int32)
    start = Iterate(
        jnp.zeros_like(problem.a),
        jnp.zeros_like(problem.b),
        jnp.where(is_small, jnp.maximum(ANNEAL_FROM * mean, epsilon), epsilon),
        infinite,
        infinite,
        infinite,
        zero,
        zero,
        zero,
        jnp.full_like(zero, not stored, bool),
        jnp.ones_like(epsilon),
    )
    if stored:
        iterate = iterate_stored(problem, start, settings)
    else:
        iterate = iterate_blocked(problem, start, settings, always_log=False)
    iterate = iterate._replace(status=jnp.full_like(iterate.status, RUNNING))
    return finish(problem, iterate, settings._replace(tolerance=tolerance), stored)


def _implicit(problem: Problem, g: Array) -> Array:
    """`g`, with the derivative of the solution of `c(g) = b`."""
    b = problem.b

    def residual(g):
        return columns_of(problem, g).c - b

    def solve(linear, target):
        inverse = jnp.where(b > 0, 1 / jnp.where(b > 0, b, 1), 0)

        def balanced(v):
            return jnp.where(b > 0, v - jnp.sum(b * v) / jnp.sum(b), 0)

        # The constants are the kernel; what the target has outside of the range is left out.
        target = jnp.where(b > 0, target - b * jnp.sum(target) / jnp.sum(b), 0)
        solution, _ = jax.scipy.sparse.linalg.cg(
            linear,
            target,
            tol=DERIVATIVE_TOLERANCE,
            maxiter=DERIVATIVE_PRODUCTS,
            M=lambda v: balanced(inverse * v),
        )
        return solution

    def tangent_solve(linear, target):
        return lax.custom_linear_solve(linear, target, solve, symmetric=True)

    return lax.custom_root(residual, g, lambda _, g: g, tangent_solve)

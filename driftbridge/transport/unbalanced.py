"""Entropic transport that may leave mass behind: relaxed marginals, or a given share of mass."""

import dataclasses
import functools
from typing import Any, NamedTuple, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from driftbridge.transport.blocked import log_sweep
from driftbridge.transport.costs import Cost
from driftbridge.transport.entropic_plan import EntropicPlan, Solved
from driftbridge.transport.entropic_problem import Problem
from driftbridge.transport.iterate import (
    ANNEALING,
    CONVERGED,
    MAX_ITERATIONS,
    RUNNING,
    STAGE_ITERATIONS,
    STAGE_TOLERANCE,
    STALLED,
    first_stage,
)
from driftbridge.transport.plan_products import softmin
from driftbridge.transport.prepared import Prepared, prepared

# Iterations over which the error must fall by a hundredth, or it has stalled.
WINDOW, PROGRESS = 500, 0.99
# Halvings of the bracket of a multiplier: to the last digit of float64.
BISECTIONS = 60


class UnbalancedPlan(EntropicPlan):
    """A plan `P_ij = a_i b_j exp((f_i + g_j - c(x_i, y_j)) / epsilon)` with marginals of its own.

    - `error`: L1 change of row and column sums that a further iteration would make.
    - `value`: of the dual, at most the least value of the problem that was solved.
    """

    value: Float[Array, ""]

    @functools.cached_property
    def mass(self) -> float:
        """`sum_ij P_ij`."""
        return float(np.sum(self._marginals[0], dtype=np.float64))

    @property
    def dual(self) -> float:
        """`value`, as of a balanced plan."""
        return float(self.value)

    @property
    def certificate(self):
        raise AttributeError(
            "an unbalanced plan has no certificate: it bounds the cost of plans with given "
            "marginals. Read `value` and `mass`."
        )

    @property
    def cost(self):
        raise AttributeError("an unbalanced plan has no cost of its own: read `value` and `mass`.")


class Relaxed(NamedTuple):
    """State of the iteration: potentials, the multiplier of the mass and what is known of them."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    multiplier: Float[Array, ""]
    error: Float[Array, ""]
    best: Float[Array, ""]
    window_best: Float[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]


def unbalanced_sinkhorn(
    x: Any,
    y: Any,
    *,
    epsilon: SupportsFloat,
    tau_a: SupportsFloat = np.inf,
    tau_b: SupportsFloat = np.inf,
    a: Any = None,
    b: Any = None,
    cost: Cost = None,
    tolerance: SupportsFloat = 1e-3,
    max_iterations: int = 10_000,
) -> UnbalancedPlan:
    """Minimise `<C, P> + epsilon KL(P | a b) + tau_a KL(P 1 | a) + tau_b KL(P^T 1 | b)`.

    `KL(p | q) = sum p log(p / q) - p + q`. An infinite `tau` holds that marginal: with one of them
    the problem is semi-relaxed, with both it is balanced and `sinkhorn` is faster. Mass moves where
    that costs less than about `tau_a + tau_b`.

    **Arguments:**

    - `tau_a`, `tau_b`: in `(0, inf]`, in the units of the cost.
    - `a`, `b`: weights `(n,)` and `(m,)` of any positive sums; None for equal ones that sum to one.
    - others: as of `sinkhorn`; the iteration is in the log domain.

    **Returns:** an `UnbalancedPlan`; read its `status` and `mass`.

    **Raises:** `ValueError` for arguments outside their range, or for two infinite `tau` and
    weights of different sums.

    Chizat et al. (2018), arXiv 1607.05816, algorithm 1; the translation that each iteration adds is
    Séjourné, Vialard and Peyré (2022), arXiv 2201.00730, proposition 2.
    """
    for name, tau in (("tau_a", tau_a), ("tau_b", tau_b)):
        if not float(tau) > 0:
            raise ValueError(f"{name} must be above 0, or infinite; got {tau}.")
    _check(tolerance, max_iterations)
    ready = prepared(x, y, a, b, epsilon, cost, conserved=False)
    masses = [float(np.sum(np.asarray(w, np.float64))) for w in (ready.problem.a, ready.problem.b)]
    if (
        np.isinf(float(tau_a))
        and np.isinf(float(tau_b))
        and abs(masses[0] - masses[1]) > 1e-4 * masses[0]
    ):
        raise ValueError(
            f"both marginals are held, but a sums to {masses[0]:.6g} and b to {masses[1]:.6g}: "
            "make a tau finite."
        )
    reason = f"tau_a = {float(tau_a):g}, tau_b = {float(tau_b):g}"
    program = functools.partial(_relaxed, [_number(ready.problem, tau) for tau in (tau_a, tau_b)])
    state, value = _annealed(program, ready, tolerance, max_iterations)
    return _plan(ready, state, value, Solved("unbalanced", reason))


def partial_sinkhorn(
    x: Any,
    y: Any,
    *,
    epsilon: SupportsFloat,
    mass: SupportsFloat,
    a: Any = None,
    b: Any = None,
    cost: Cost = None,
    tolerance: SupportsFloat = 1e-3,
    max_iterations: int = 10_000,
) -> UnbalancedPlan:
    """Minimise `<C, P> + epsilon KL(P | a b)` with `P 1 <= a`, `P^T 1 <= b` and `sum P = mass`.

    Block ascent of the dual, in which `f, g <= 0` and a multiplier holds the mass: `f`, then `g`
    and the multiplier together. A half of the multiplier is added to each potential returned.

    **Arguments:**

    - `mass`: in `(0, min(sum a, sum b)]`.
    - others: as of `unbalanced_sinkhorn`.

    **Returns:** an `UnbalancedPlan`.

    **Raises:** `ValueError` for arguments outside their range.

    Benamou et al. (2015), arXiv 1412.5154, section 5.1 (the same problem by Dykstra's projections).
    """
    _check(tolerance, max_iterations)
    ready = prepared(x, y, a, b, epsilon, cost, conserved=False)
    sums = [float(np.sum(np.asarray(w, np.float64))) for w in (ready.problem.a, ready.problem.b)]
    # Sums of weights in float32 are one up to this.
    if not 0 < float(mass) <= min(sums) * (1 + 1e-6):
        raise ValueError(
            f"mass must lie in (0, {min(sums):.6g}], the smaller sum of the weights; got {mass}."
        )
    program = functools.partial(_partial, _number(ready.problem, mass))
    state, value = _annealed(program, ready, tolerance, max_iterations)
    return _plan(ready, state, value, Solved("partial", f"mass = {float(mass):g}"))


def _check(tolerance: SupportsFloat, max_iterations: int) -> None:
    if not 0 < float(tolerance) < np.inf:
        raise ValueError(f"tolerance must be positive; got {tolerance}.")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1; got {max_iterations}.")


def _number(problem: Problem, number: SupportsFloat) -> np.ndarray:
    return np.asarray(float(number), problem.x.dtype)


def _annealed(program, ready: Prepared, tolerance: SupportsFloat, max_iterations: int):
    """The state and value at the problem's epsilon, by way of larger ones where it is small."""
    problem = ready.problem
    epsilon, mass = float(problem.epsilon), float(np.sum(np.asarray(problem.a)))
    stage = float(first_stage(epsilon, ready.mean))
    loose, state = max(float(tolerance), STAGE_TOLERANCE * mass), _first(problem)
    # Half of the iterations are kept for the last stage.
    while stage > epsilon and int(state.iterations) < max_iterations // 2:
        most = min(int(state.iterations) + STAGE_ITERATIONS, max_iterations // 2)
        warm = dataclasses.replace(problem, epsilon=jax.device_put(_number(problem, stage)))
        state, _ = program(warm, state, _number(problem, loose), np.int32(most))
        state, stage = _resumed(state), max(stage / ANNEALING, epsilon)
    return program(problem, state, _number(problem, tolerance), np.int32(max_iterations))


def _resumed(state: Relaxed) -> Relaxed:
    """`state` at the begin of a further stage."""
    infinite = jnp.full_like(state.error, jnp.inf)
    return state._replace(
        error=infinite, best=infinite, window_best=infinite, status=jnp.int32(RUNNING)
    )


def _plan(ready, state: Relaxed, value: Array, account: Solved) -> UnbalancedPlan:
    half = state.multiplier / 2
    found = (state.f + half, state.g + half, state.error, state.iterations, state.status)
    return UnbalancedPlan.of(ready, *found, account, value=value)


@jax.jit
def _relaxed(taus, problem: Problem, start: Relaxed, tolerance, max_iterations):
    tau_a, tau_b = taus
    a, b, epsilon = problem.a, problem.b, problem.epsilon
    damping_a, damping_b = 1 / (1 + epsilon / tau_a), 1 / (1 + epsilon / tau_b)
    # Harmonic sum; the larger tau may be infinite.
    small, large = jnp.minimum(tau_a, tau_b), jnp.maximum(tau_a, tau_b)
    both = jnp.where(jnp.isinf(small), 0, small / (1 + small / large))

    def body(state: Relaxed) -> Relaxed:
        soft_f, soft_g = log_sweep(problem, state.g, epsilon, lambda f: damping_a * f)
        f, g = damping_a * soft_f, damping_b * soft_g
        error = _moved(a, state.f, f, soft_f, epsilon) + _moved(b, state.g, g, soft_g, epsilon)
        # The common translation of f and -g that maximises the dual.
        shift = both * (_log_mean_exp(a, -f / tau_a) - _log_mean_exp(b, -g / tau_b))
        return _next(
            state, f + shift, g - shift, state.multiplier, error, tolerance, max_iterations
        )

    state = lax.while_loop(lambda state: state.status == RUNNING, body, start)
    mass = _mass(problem, state)
    value = _penalty(a, state.f, tau_a) + _penalty(b, state.g, tau_b)
    return state, value - epsilon * (mass - jnp.sum(a) * jnp.sum(b))


@jax.jit
def _partial(mass, problem: Problem, start: Relaxed, tolerance, max_iterations):
    a, b, epsilon = problem.a, problem.b, problem.epsilon

    def body(state: Relaxed) -> Relaxed:
        old = state.g + state.multiplier
        soft_f, soft_g = log_sweep(problem, old, epsilon, lambda f: jnp.minimum(f, 0))
        f = jnp.minimum(soft_f, 0)
        multiplier = _multiplier(b, soft_g, epsilon, mass)
        g = jnp.minimum(soft_g - multiplier, 0)
        error = _moved(a, state.f, f, soft_f, epsilon)
        error += _moved(b, old, g + multiplier, soft_g, epsilon)
        return _next(state, f, g, multiplier, error, tolerance, max_iterations)

    state = lax.while_loop(lambda state: state.status == RUNNING, body, start)
    value = jnp.sum(a * state.f) + jnp.sum(b * state.g) + state.multiplier * mass
    return state, value - epsilon * (_mass(problem, state) - jnp.sum(a) * jnp.sum(b))


def _multiplier(b, soft, epsilon, mass) -> Array:
    """The root of `sum_j b_j min(1, exp((multiplier - soft_j) / epsilon)) = mass`, by bisection."""
    high = jnp.max(jnp.where(b > 0, soft, -jnp.inf))
    least = jnp.min(jnp.where(b > 0, soft, jnp.inf))
    low = least + epsilon * (jnp.log(mass) - jnp.log(jnp.sum(b)))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        share = jnp.exp(jnp.minimum(middle - soft, 0) / epsilon)
        is_high = jnp.sum(b * share) > mass
        return jnp.where(is_high, low, middle), jnp.where(is_high, middle, high)

    low, high = lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return (low + high) / 2


def _first(problem: Problem) -> Relaxed:
    infinite = jnp.full_like(problem.epsilon, jnp.inf)
    zero = jnp.int32(0)
    f, g = jnp.zeros_like(problem.a), jnp.zeros_like(problem.b)
    return Relaxed(f, g, jnp.zeros_like(infinite), infinite, infinite, infinite, zero, zero)


def _next(state: Relaxed, f, g, multiplier, error, tolerance, max_iterations) -> Relaxed:
    count = state.iterations + 1
    # The first error compares with no plan.
    error = jnp.where(count == 1, jnp.inf, error)
    window_best = jnp.minimum(state.window_best, error)
    is_full = count % WINDOW == 0
    stalled = is_full & (window_best > PROGRESS * state.best)
    status = jnp.where(count >= max_iterations, MAX_ITERATIONS, RUNNING)
    status = jnp.where(error <= tolerance, CONVERGED, jnp.where(stalled, STALLED, status))
    return Relaxed(
        f,
        g,
        multiplier,
        error,
        jnp.where(is_full, jnp.minimum(state.best, window_best), state.best),
        jnp.where(is_full, jnp.inf, window_best),
        count,
        status.astype(jnp.int32),
    )


def _moved(weights, old, new, soft, epsilon) -> Array:
    """L1 change of the marginal, `w exp((f - soft) / epsilon)`, when `old` becomes `new`."""
    ratio = jnp.exp((old - soft) / epsilon) - jnp.exp((new - soft) / epsilon)
    return jnp.sum(jnp.where(weights > 0, weights * jnp.abs(ratio), 0))


def _log_mean_exp(weights, exponent) -> Array:
    """`log sum w exp`."""
    return jax.scipy.special.logsumexp(jnp.where(weights > 0, exponent, -jnp.inf), b=weights)


def _penalty(weights, f, tau) -> Array:
    """`-KL*`: `tau sum w (1 - exp(-f / tau))`, for infinite `tau` `sum w f`."""
    finite = jnp.where(jnp.isinf(tau), 1, tau)
    return jnp.sum(weights * jnp.where(jnp.isinf(tau), f, -finite * jnp.expm1(-f / finite)))


def _mass(problem: Problem, state: Relaxed) -> Array:
    """The plan's mass: what `g` makes of the softmin of `f`."""
    soft = softmin(problem.transposed(), state.f)
    exponent = (state.g + state.multiplier - soft) / problem.epsilon
    return jnp.sum(problem.b * jnp.exp(exponent))

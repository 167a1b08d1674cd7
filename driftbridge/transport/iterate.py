"""Where an iteration for entropic potentials stands, and when it goes on, anneals or ends."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

RUNNING, CONVERGED, STALLED, MAX_ITERATIONS = 0, 1, 2, 3
STATUS = ("running", "converged", "stalled", "max_iterations")

# A stage of annealing is left at this marginal error: more precision is lost at the next.
STAGE_TOLERANCE = 5e-2
STAGE_ITERATIONS = 200
ANNEALING = 4.0
# Epsilon is annealed below the first share of the mean cost, from the second.
ANNEAL_BELOW, ANNEAL_FROM = 0.02, 0.25
# Iterations over which an error must fall by a hundredth, or it has stalled.
WINDOW = 100
PROGRESS = 0.99
# The largest relaxation, and the error below which there is one.
MOST_RELAXED, RELAX_BELOW = 1.9, 0.5


class Settings(NamedTuple):
    """When to stop; numbers, so that no value compiles anything."""

    tolerance: Float[Array, ""]
    max_iterations: Int[Array, ""]


def settings_of(tolerance: float, max_iterations: int, dtype: Any) -> Settings:
    """Settings on the host, which a program reads."""
    numbers = np.asarray(tolerance, dtype), np.asarray(max_iterations, np.int32)
    return Settings(*numbers)  # pyright: ignore[reportArgumentType]


class Iterate(NamedTuple):
    """Potentials and what is known of them.

    - `epsilon`: of the present stage of annealing.
    - `error`: `sum_i |row sum - a_i|` of the plan of `f` and `g`, whose columns are exact.
    - `best`, `window_best`: the least error before and in the present window of iterations.
    - `since`: iterations since the window, or the stage of annealing, began.
    - `needs_log`: whether the next iteration is to be taken in the log domain.
    - `relaxation`: of the next step of `f`, at least 1.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]
    epsilon: Float[Array, ""]
    error: Float[Array, ""]
    best: Float[Array, ""]
    window_best: Float[Array, ""]
    since: Int[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]
    needs_log: Bool[Array, ""]
    relaxation: Float[Array, ""]


def first_stage(epsilon: Any, mean_cost: Any) -> np.ndarray:
    """The epsilon at which annealing begins: `epsilon` itself unless the mean cost dwarfs it."""
    start = np.maximum(ANNEAL_FROM * np.asarray(mean_cost), epsilon)
    return np.where(np.asarray(epsilon) < ANNEAL_BELOW * np.asarray(mean_cost), start, epsilon)


def first(f: np.ndarray, g: np.ndarray, epsilon: np.ndarray, needs_log: bool) -> Iterate:
    """The start of an iteration at potentials `f`, `g`, on the host, which a program reads."""
    infinite = np.full_like(epsilon, np.inf)
    zero = np.zeros((), np.int32)
    counts = zero, zero, zero, np.bool_(needs_log)
    start = f, g, epsilon, infinite, infinite, infinite, *counts, np.ones_like(epsilon)
    return Iterate(*start)  # pyright: ignore[reportArgumentType]


def stage_tolerance(iterate: Iterate, epsilon: Array, settings: Settings) -> Array:
    """The error at which the present stage ends."""
    last = iterate.epsilon <= epsilon
    return jnp.where(last, settings.tolerance, jnp.maximum(settings.tolerance, STAGE_TOLERANCE))


def judged(iterate: Iterate, epsilon: Array, settings: Settings, count: Array) -> Iterate:
    """`iterate` after the `count` iterations that gave its error, and the next stage chosen."""
    last = iterate.epsilon <= epsilon
    reached = iterate.error <= stage_tolerance(iterate, epsilon, settings)
    iterations, since = iterate.iterations + count, iterate.since + count
    window_best = jnp.minimum(iterate.window_best, iterate.error)
    is_full = since >= WINDOW
    stalled = last & is_full & (window_best > PROGRESS * iterate.best) & (settings.tolerance > 0)
    status = jnp.where(
        last & reached & (settings.tolerance > 0),
        CONVERGED,
        jnp.where(
            stalled,
            STALLED,
            jnp.where(iterations >= settings.max_iterations, MAX_ITERATIONS, RUNNING),
        ),
    ).astype(jnp.int32)
    colder = ~last & (reached | (since >= STAGE_ITERATIONS))
    fresh = colder | (last & is_full)
    infinite = jnp.full_like(iterate.error, jnp.inf)
    return iterate._replace(
        epsilon=jnp.where(
            colder, jnp.maximum(iterate.epsilon / ANNEALING, epsilon), iterate.epsilon
        ),
        best=jnp.where(
            colder,
            infinite,
            jnp.where(fresh, jnp.minimum(iterate.best, window_best), iterate.best),
        ),
        window_best=jnp.where(fresh, infinite, window_best),
        since=jnp.where(fresh, 0, since),
        iterations=iterations,
        status=status,
        needs_log=iterate.needs_log | colder,
        relaxation=jnp.where(colder, 1, iterate.relaxation),
    )


def relaxed(w: Array, count: Array, before: Array, error: Array, settings: Settings) -> Array:
    """The relaxation of the steps to come, where a step with `w` brought `before` to `error`.

    Near the solution an iteration multiplies the error of `f` by a matrix with eigenvalues in
    `[0, e]`, and one with relaxation `w` by eigenvalues in `[1 - w, 1 - w (1 - e)]`: least in size
    for `w = 2 / (2 - e)`. A step that multiplies the error by `r` shows `e = 1 - (1 - r) / w`.
    Every second of `count` is looked at, as the step before it was taken with the present `w`. A
    tolerance of zero asks for Sinkhorn's own iterations.

    Thibault, Chizat, Dossal and Papadakis (2021), arXiv 1711.01851, relax both potentials; here the
    columns stay exact, so that the error of the rows is that of the plan.
    """
    r = error / before
    best = jnp.clip(2 * w / (w + 1 - r), 1, MOST_RELAXED)
    best = jnp.where((r < 1) & (error < RELAX_BELOW), best, 1)
    looks = (count % 2 == 0) & jnp.isfinite(before) & (settings.tolerance > 0)
    return jnp.where(looks, best, w).astype(w.dtype)

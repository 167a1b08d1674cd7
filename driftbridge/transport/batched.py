"""Many small entropic problems solved by one program."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike

from driftbridge.transport import plan_products
from driftbridge.transport.blocked import log_sweep
from driftbridge.transport.costs import Cost
from driftbridge.transport.driving import AIM
from driftbridge.transport.entropic_plan import EntropicPlan, Solved
from driftbridge.transport.entropic_problem import Problem
from driftbridge.transport.iterate import (
    CONVERGED,
    RUNNING,
    STALLED,
    Iterate,
    Settings,
    first,
    first_stage,
    settings_of,
)
from driftbridge.transport.padding import padded
from driftbridge.transport.prepared import Prepared, prepared
from driftbridge.transport.scaling import iterate_stored
from driftbridge.transport.sinkhorn import check

ACCOUNT = Solved("stored", "many problems in one program")


def sinkhorn_batch(
    x: Sequence[Any] | Any,
    y: Sequence[Any] | Any,
    *,
    epsilon: Any,
    a: Sequence[Any] | Any = None,
    b: Sequence[Any] | Any = None,
    cost: Cost = None,
    tolerance: SupportsFloat = 1e-3,
    max_iterations: int = 10_000,
) -> list[EntropicPlan]:
    """The plans of `sinkhorn` for many pairs of sets of points, by one program.

    **Arguments:**

    - `x`, `y`: points `(batch, n, dim)` and `(batch, m, dim)`, or lists of `(n_k, dim)` and
      `(m_k, dim)`; sets of different sizes are padded to the largest.
    - `epsilon`: `> 0`, one for all or `(batch,)`.
    - `a`, `b`: weights, a row or an entry for each problem; None for equal ones.
    - others: as of `sinkhorn`, for each problem; the form is "stored".

    **Returns:** an `EntropicPlan` for each problem, with a status of its own.

    **Raises:** `ValueError` as `sinkhorn` does, and for sides of different lengths.
    """
    check(tolerance, max_iterations, "stored")
    count = len(x)
    for name, side in (("y", y), ("a", a), ("b", b)):
        if side is not None and len(side) != count:
            raise ValueError(
                f"x and {name} must hold an entry for each problem; got {count} and {len(side)}."
            )
    epsilons = np.asarray(epsilon, np.float64)
    if count == 0:
        raise ValueError("there must be at least one problem; got 0.")
    if epsilons.shape not in ((), (count,)):
        raise ValueError(
            f"epsilon must be one number or one for each of {count} problems; got shape "
            f"{epsilons.shape}."
        )
    a, b = ([None] * count if w is None else w for w in (a, b))
    epsilons = np.broadcast_to(epsilons, (count,))
    ready = [prepared(*given, cost) for given in zip(x, y, a, b, epsilons, strict=True)]
    problems, starts = stacked(ready, anneals=float(tolerance) > 0)
    solved = to_tolerance(problems, starts, float(tolerance), int(max_iterations))
    return [plan_of(*each) for each in zip(ready, *solved, strict=True)]


def stacked(ready: list[Prepared], anneals: bool) -> tuple[Problem, Iterate]:
    """Problems as one with a leading axis, padded to the largest, and where each begins."""
    problems = jax.tree.map(together, *(r.problem for r in ready))
    epsilons = np.asarray(problems.epsilon)
    means = np.asarray([r.mean for r in ready])
    begin = first_stage(epsilons, means) if anneals else epsilons
    f, g = (np.zeros(w.shape[1], w.dtype) for w in (problems.a, problems.b))
    iterates = [first(f, g, np.asarray(e, f.dtype), needs_log=False) for e in begin]
    return problems, jax.tree.map(together, *iterates)


def together(*leaves: ArrayLike) -> Array:
    """Arrays along a new axis, their rows padded to the most; on the host, where none compiles.

    Padding of points repeats one of them, where any cost is a number.
    """
    hosts = [np.asarray(leaf) for leaf in leaves]
    if hosts[0].ndim > 0:
        size = max(len(host) for host in hosts)
        hosts = [padded(host, size, host[-1] if host.ndim > 1 else 0.0) for host in hosts]
    return jax.device_put(np.stack(hosts))


def to_tolerance(problems: Problem, iterates: Iterate, tolerance: float, max_iterations: int):
    """Potentials, errors, iterations and statuses of all, on the host."""
    dtype, aim = problems.x.dtype, tolerance
    while True:
        iterates, f, g, error = _solve(problems, iterates, settings_of(aim, max_iterations, dtype))
        status = np.asarray(iterates.status)
        missed = (status == CONVERGED) & (np.asarray(error) > tolerance)
        if not missed.any() or aim < tolerance:
            break
        # Rounding of the potentials has added to the error of the iteration: aim lower, once.
        aim = AIM * tolerance
        again = np.where(missed, RUNNING, status).astype(np.int32)
        iterates = iterates._replace(status=jax.device_put(again))
    status = np.where(missed, STALLED, status).astype(np.int32)
    return *jax.device_get((f, g, error, iterates.iterations)), status


@jax.jit
def _solve(problems: Problem, starts: Iterate, settings: Settings):
    """Iterates at their ends, with potentials, and the errors of those potentials."""

    def one(problem: Problem, start: Iterate):
        end = iterate_stored(problem, start, settings)
        # What ended in a stage of annealing has no plan at the epsilon asked for.
        f, g = lax.cond(
            end.epsilon > problem.epsilon,
            lambda: log_sweep(problem, end.g, problem.epsilon),
            lambda: (end.f, end.g),
        )
        # Columns without mass, which the kernel leaves out.
        g = jnp.where(problem.b > 0, g, plan_products.softmin(problem.transposed(), f))
        shift = (jnp.sum(problem.b * g) - jnp.sum(problem.a * f)) / 2
        f, g = f + shift, g - shift
        rows, columns = plan_products.marginals(problem, f, g)
        errors = jnp.sum(jnp.abs(rows - problem.a)), jnp.sum(jnp.abs(columns - problem.b))
        return end, f, g, jnp.maximum(*errors)

    # Side by side, every problem goes on until the last has ended, and branches are both taken: on
    # two cores that costs 1.4 to 3 times as much, where a GPU is filled by nothing else.
    if jax.default_backend() == "cpu":
        return lax.map(lambda given: one(*given), (problems, starts))
    return jax.vmap(one)(problems, starts)


def plan_of(ready: Prepared, f, g, error, iterations, status) -> EntropicPlan:
    """The plan of one of the problems."""
    f, g = f[: len(ready.problem.a)], g[: len(ready.problem.b)]
    f, g, error, iterations, code = jax.device_put((f, g, error, iterations, status))
    return EntropicPlan.of(ready, f, g, error, iterations, code, ACCOUNT)

"""Pairs of points with masses, from plans of the Wasserstein-Fisher-Rao distance."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.minibatch import stream
from driftbridge.transport.points import Sample
from driftbridge.transport.unbalanced import UnbalancedPlan, unbalanced_sinkhorn

# The cosine below which a pair is out of reach: its cost of 18 is beyond that of no transport, 2.
LEAST_COSINE = 1e-4


class TravellingPairs(NamedTuple):
    """Random pairs of a plan, each with the mass it takes from its source and target point.

    Masses are over the probability with which the pair was drawn: their means are the masses of
    source and target.
    """

    x: Float[np.ndarray, "pairs dim"]
    y: Float[np.ndarray, "pairs dim"]
    source_mass: Float[np.ndarray, " pairs"]
    target_mass: Float[np.ndarray, " pairs"]


def travelling_pairs(
    source: Sample,
    target: Sample,
    num_pairs: int,
    delta: float,
    mass_ratio: float,
    epsilon: float,
    batch_size: int,
    random: np.random.Generator,
) -> tuple[TravellingPairs, int]:
    """Pairs from plans between batches, which use every point of the larger side, and how many of
    the plans did not converge."""
    sides = source, target
    size = min(batch_size, *(len(side.points) for side in sides))
    num_batches = -(-max(len(side.points) for side in sides) // size)
    points = []
    for side in sides:
        weights = side.weights if np.ptp(side.weights) > 0 else None
        rows = stream(weights, len(side.points), num_batches * size, random)
        points.append(side.points[rows].reshape(num_batches, size, -1))
    count = -(-num_pairs // num_batches)
    found, unsolved = [], 0
    for x, y in zip(*points, strict=True):
        plan = reach_plan(x, y, delta, mass_ratio, epsilon)
        unsolved += not plan.converged
        matrix = np.asarray(plan.matrix(), np.float64)
        i, j, *masses = drawn_pairs(matrix, mass_ratio, count, random)
        found.append((x[i], y[j], *masses))
    pairs = TravellingPairs(*(np.concatenate(part) for part in zip(*found, strict=True)))
    return pairs, unsolved


def reach_cost(x: Float[Array, " dim"], y: Float[Array, " dim"]) -> Float[Array, ""]:
    """`-2 log cos(min(|x - y|, pi / 2))`, of points in units of `2 delta`."""
    angle = jnp.minimum(jnp.sqrt(jnp.sum((x - y) ** 2)), np.pi / 2)
    return -2 * jnp.log(jnp.maximum(jnp.cos(angle), LEAST_COSINE))


def reach_plan(
    x: Float[np.ndarray, "n dim"],
    y: Float[np.ndarray, "m dim"],
    delta: float,
    mass_ratio: float,
    epsilon: float,
) -> UnbalancedPlan:
    """The plan that minimises `<C, P> + KL(P 1 | a) + KL(P' 1 | b)`, `sum a = 1`, `sum b = ratio`.

    `2 delta^2` times its value is the squared distance of the two weighted samples; the plan has a
    blur of `epsilon`.

    Liero, Mielke and Savaré (2018), arXiv 1508.07941, theorem 6.3.
    """
    n, m = len(x), len(y)
    return unbalanced_sinkhorn(
        x / (2 * delta), y / (2 * delta), epsilon=epsilon, tau_a=1.0, tau_b=1.0,
        a=np.full(n, 1 / n), b=np.full(m, mass_ratio / m), cost=reach_cost,
    )  # fmt: skip


def drawn_pairs(
    plan: Float[np.ndarray, "n m"], mass_ratio: float, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns, and masses of source and target of random pairs.

    A source point of mass `a` shares it among the pairs of its row as the plan does, a target point
    among those of its column, so that all mass is in some pair whatever marginals the plan has. A
    pair is drawn by the sum of its two masses, which bounds the weights.
    """
    n, m = plan.shape
    # A row that underflowed would lose its mass: it then goes to all pairs alike.
    plan = np.maximum(plan, 1e-30 / (n * m))
    first = plan / plan.sum(axis=1, keepdims=True) / n
    second = plan / plan.sum(axis=0, keepdims=True) * (mass_ratio / m)
    both = (first + second).ravel()
    upper = np.cumsum(both)
    wanted = (random.random() + np.arange(count)) / count * upper[-1]
    drawn = np.minimum(np.searchsorted(upper, wanted, side="right"), n * m - 1)
    weights = upper[-1] / both[drawn]
    return drawn // m, drawn % m, first.ravel()[drawn] * weights, second.ravel()[drawn] * weights

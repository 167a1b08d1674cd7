"""A start that brings a whole ensemble to the bulk of a target, and learns its shape on the way."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.base import Point
from driftbridge.samplers.ensemble import lost_chains, middle, sources
from driftbridge.samplers.fisher import first_metric, fisher_metric
from driftbridge.samplers.initial import Initial, Started, UniformStart
from driftbridge.samplers.loop import over_chains
from driftbridge.samplers.metric import Metric
from driftbridge.samplers.noise import normals_and_uniforms
from driftbridge.targets.base import Target

ROUND = 16
SNAPSHOTS = (7, 11, 15)
MAX_ROUNDS = 40
# Rounds before lost chains are moved, so that late ones are given time.
PATIENCE = 5


class Search(NamedTuple):
    """The ensemble on its way; step sizes are each chain's own."""

    points: Point
    velocity: Float[Array, "chains dim"]
    log_step: Float[Array, " chains"]
    metric: Metric
    round: Int[Array, ""]
    steady: Int[Array, ""]
    potential: Float[Array, ""]
    repaired: Int[Array, ""]


class Gathering(Initial):
    """Moves all chains to the bulk of the target together, in rounds of 16 steps.

    Each step is one leapfrog step of kinetic Langevin dynamics with a Metropolis decision, in the
    present metric and with a step size of the chain's own: `log h` grows by 0.1 on acceptance,
    falls by 0.3 on rejection, and is divided by five where the energy error passes 100; the
    velocity is damped by `exp(-min(h, 0.15))` a step. After each round the metric is the
    `fisher_metric` of three snapshots of the ensemble, and from the sixth round on chains that are
    lost take the place of others. It ends when the median potential has been steady, and its
    median deviation that of a Gaussian, for two rounds, or after 40. One gradient a step: usually
    64 to 160 of them. None of it is exact, and none of it needs to be.

    **Arguments:**

    - `start`: where the chains begin.
    """

    start: Initial = UniformStart(2.0)

    def propose(self, target, key, like):
        return self.start.propose(target, key, like)

    def known(self, key, sources, attempt, dim, dtype):
        return self.start.known(key, sources, attempt, dim, dtype)

    def source(self, chain):
        return self.start.source(chain)

    def gather(
        self,
        target: Target,
        key: Key[Array, ""],
        positions: Float[Array, "chains dim"],
    ) -> Started:
        """The ensemble at the bulk of the target, from positions anywhere."""
        num_chains, dtype = positions.shape[0], positions.dtype
        value_and_score = over_chains(target.value_and_score, num_chains)
        points = Point(positions, *value_and_score(positions))
        zero = jnp.zeros((), jnp.int32)
        search = Search(
            points=points,
            velocity=jnp.zeros_like(positions),
            log_step=jnp.full(num_chains, math.log(0.1), dtype),
            metric=first_metric(positions[0]),
            round=zero,
            steady=zero,
            potential=-middle(points.log_density),
            repaired=zero,
        )

        def one_round(search):
            return self._round(value_and_score, fold_in(key, search.round), search)

        def goes_on(search):
            return (search.round < MAX_ROUNDS) & (search.steady < 2)

        search = lax.while_loop(goes_on, one_round, search)
        return Started(
            search.points.position,
            search.metric,
            jnp.exp(middle(search.log_step)),
            search.repaired,
            search.steady >= 2,
            search.round * ROUND + 1,
        )

    def _round(self, value_and_score, key, search: Search) -> Search:
        num_chains, dim = search.velocity.shape
        dtype = search.velocity.dtype
        scale = math.sqrt(dim / 2)
        normals, uniforms = normals_and_uniforms(
            key, (ROUND, num_chains, dim), dtype, (ROUND, num_chains)
        )

        def step(i, carry):
            points, velocity, log_step, draws, scores = carry
            points, velocity, log_step = one_step(
                value_and_score, search.metric, points, velocity, log_step, normals[i], uniforms[i]
            )
            row = jnp.asarray([SNAPSHOTS.index(k) if k in SNAPSHOTS else 3 for k in range(ROUND)])
            draws = draws.at[row[i]].set(points.position, mode="drop")
            scores = scores.at[row[i]].set(points.score, mode="drop")
            return points, velocity, log_step, draws, scores

        empty = jnp.zeros((len(SNAPSHOTS), num_chains, dim), dtype)
        points, velocity, log_step, draws, scores = lax.fori_loop(
            0, ROUND, step, (search.points, search.velocity, search.log_step, empty, empty)
        )
        lost = lost_chains(points.log_density, dim, jnp.ones(num_chains, dtype))
        included = jnp.ravel(jnp.broadcast_to(~lost, draws.shape[:2]))
        metric = fisher_metric(
            search.metric,
            draws.reshape(-1, dim),
            scores.reshape(-1, dim),
            included,
            jnp.sum(~lost).astype(dtype),
        )
        potential = -middle(points.log_density)
        deviation = middle(jnp.abs(points.log_density + potential))
        is_steady = (
            (jnp.abs(potential - search.potential) < 0.5 * scale)
            & (deviation < 3 * scale)
            & (jnp.mean(lost) < 0.2)
        )
        moves = (search.round >= PATIENCE) & (jnp.mean(lost) <= 0.5)
        moved = lost & moves
        source = sources(moved)
        points, log_step = jax.tree.map(lambda leaf: leaf[source], (points, log_step))
        return Search(
            points=points,
            velocity=jnp.where(moved[:, None], 0, velocity),
            log_step=log_step,
            metric=metric,
            round=search.round + 1,
            steady=jnp.where(is_steady, search.steady + 1, 0),
            potential=potential,
            repaired=search.repaired + jnp.sum(moved, dtype=jnp.int32),
        )


def one_step(value_and_score, metric, points, velocity, log_step, normal, uniform):
    """Refresh, one leapfrog step, decision, and the chain's own step size."""
    h = jnp.exp(log_step)[:, None]
    damping = jnp.exp(-jnp.minimum(h, 0.15))
    velocity = damping * velocity + jnp.sqrt(1 - damping**2) * normal
    kicked = velocity + h / 2 * jax.vmap(metric.whiten_score)(points.score)
    position = points.position + h * jax.vmap(metric.unwhiten)(kicked)
    new = Point(position, *value_and_score(position))
    end = kicked + h / 2 * jax.vmap(metric.whiten_score)(new.score)
    kinetic = jnp.sum((end - velocity) * (end + velocity), axis=1) / 2
    error = points.log_density - new.log_density + kinetic
    # Far out a potential of 1e7 is known to one unit in float32: what is less than its rounding is
    # no error, or no step would be small enough.
    rounding = 8 * jnp.finfo(error.dtype).eps * jnp.abs(points.log_density)
    error = jnp.where(jnp.isfinite(error), error - rounding, jnp.inf)
    accepted = uniform < jnp.exp(-jnp.maximum(error, 0))
    change = jnp.where(accepted, 0.1, jnp.where(error > 100, math.log(0.2), -0.3))
    log_step = jnp.clip(log_step + change, math.log(1e-14), math.log(3.0))

    def keep(new, old):
        return jnp.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    points = jax.tree.map(keep, new, points)
    # A rejected velocity would lead back into the same wall.
    return points, keep(end, normal), log_step

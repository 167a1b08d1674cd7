"""Warm-up from a whole ensemble of chains, which ends when the ensemble agrees."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from driftbridge.runtime.products import product
from driftbridge.samplers.adaptation import Adaptation
from driftbridge.samplers.base import Sampler, innermost, step_size_of, with_step_size
from driftbridge.samplers.fisher import first_metric, fisher_metric
from driftbridge.samplers.local_scale import LocalScaleHMC
from driftbridge.samplers.metric import Metric
from driftbridge.samplers.preconditioned import Preconditioned

# Transitions of a window; the metric comes from the last two.
WINDOW = 16
LEAST_CHAINS = 16
# Of the transitions of two windows, how many count as independent for each chain.
INDEPENDENT = 8.0
ACCEPTANCE = 0.8
SHORTEST, LONGEST = 0.7, 6.3
ROUNDED_DOWN = 0.1
# Spread of local step sizes where the size of the score is this uneven; a Gaussian's is 1, and a
# spread of 0 stands for one step size everywhere.
SPREADS = ((1.2, 0.3), (3.0, 1.0))
# What two windows may differ by in agreement: drift in standard deviations, log of the variance
# ratio, log of the step size.
DRIFT, SPREAD, STEP = 0.15, 0.5, 0.25


class History(NamedTuple):
    """Draws of the last two windows, the present one second."""

    position: Float[Array, "draws chains dim"]
    score: Float[Array, "draws chains dim"]
    log_density: Float[Array, "draws chains"]
    acceptance: Float[Array, "draws chains"]


class EnsembleState(NamedTuple):
    """Where the warm-up stands.

    - `count`: transitions so far; `since`: transitions since the metric last changed.
    - `agreed`: windows in agreement, one after the other; at two the warm-up is over.
    - `lost`: chains that the last window found lost; `repaired`: how many were moved in all.
    - `worst`: the coordinate that drifted most in the last window, `drift` by how much.
    """

    history: History
    count: Int[Array, ""]
    since: Float[Array, ""]
    log_step: Float[Array, ""]
    last_log_step: Float[Array, ""]
    agreed: Int[Array, ""]
    lost: Bool[Array, " chains"]
    repaired: Int[Array, ""]
    worst: Int[Array, ""]
    drift: Float[Array, ""]


class EnsembleWarmup(Adaptation):
    """Step size, trajectory length and metric from all chains, in windows of 16 transitions.

    - *Step size*: `log h += 2 max(4 / (k + 4), 0.1) (a - 0.8)` after each transition, `a` the mean
      acceptance rate of the ensemble, `k` transitions since the metric last changed.
    - *Metric*: `fisher_metric` of the last two windows, at the end of each: dense to 256
      dimensions, beyond them diagonal with 32 directions stretched.
    - *Trajectory length*: `T <- T (π/2) / arccos(r)`, `r` the largest lag-one autocorrelation over
      the coordinates and the leading principal direction of the whitened draws: in one frequency
      `cos` of the angle covered, which is to be a right angle. At most `π/2` times the standard
      deviation of that direction, so that slow mixing that is no oscillation does not drive it.
    - *Local step sizes*, where the size of the whitened score is more uneven than a Gaussian's:
      spread 0.3, and 1 where it is far more so, or where a chain accepts less than 0.4 of its moves
      in a window. Never taken back.
    - *Lost chains* (far below the others in density, or hardly ever accepted) are moved to where
      another chain is, and counted.
    - *The end*: two windows in a row, without lost chains, in which no coordinate and not the
      energy drifts by more than 0.15 standard deviations (paired by chain, |t| > 4), variances
      agree within `exp(0.5)`, the step size within `exp(0.25)`, and moves are accepted.

    For `LocalScaleHMC`, and from 16 chains on (`TypeError` and `ValueError` otherwise).
    """

    def adopt(self, sampler, metric, step_size):
        if isinstance(sampler, Preconditioned):
            return sampler
        return with_step_size(Preconditioned(sampler, metric), step_size)

    def init(self, sampler, positions, num_warmup):
        if not isinstance(innermost(sampler), LocalScaleHMC):
            raise TypeError(
                f"EnsembleWarmup tunes LocalScaleHMC; got {type(innermost(sampler)).__name__}, for "
                "which Warmup() is the warm-up."
            )
        if positions.shape[0] < LEAST_CHAINS:
            raise ValueError(
                f"EnsembleWarmup learns from at least {LEAST_CHAINS} chains; got "
                f"{positions.shape[0]}. Take more, or adapt=Warmup()."
            )
        if not isinstance(sampler, Preconditioned):
            sampler = Preconditioned(sampler, first_metric(positions[0]))
        num_chains, dim = positions.shape
        dtype = positions.dtype
        log_step = jnp.log(jnp.asarray(step_size_of(sampler), dtype))
        zero = jnp.zeros((), jnp.int32)
        rows = jnp.zeros((2 * WINDOW, num_chains), dtype)
        vectors = jnp.zeros((*rows.shape, dim), dtype)
        history = History(vectors, vectors, rows, rows)
        state = EnsembleState(
            history=history,
            count=zero,
            since=jnp.zeros((), dtype),
            log_step=log_step,
            last_log_step=log_step,
            agreed=zero,
            lost=jnp.zeros(num_chains, bool),
            repaired=zero,
            worst=zero,
            drift=jnp.zeros((), dtype),
        )
        return state, sampler

    def update(self, state, sampler, states, infos):
        gain = 2 * jnp.maximum(4 / (state.since + 4), 0.1)
        # By the energy alone: the whole rate of a local scale has no equilibrium in the step size.
        assert infos.energy_error is not None  # `LocalScaleHMC` computes it
        rate = jnp.mean(jnp.exp(-jnp.maximum(infos.energy_error, 0)))
        log_step = state.log_step + gain * (rate - ACCEPTANCE)
        row = WINDOW + state.count % WINDOW
        latest = History(states.position, states.score, states.log_density, infos.acceptance_rate)
        history = jax.tree.map(lambda rows, new: rows.at[row].set(new), state.history, latest)
        state = state._replace(
            history=history,
            count=state.count + 1,
            since=state.since + 1,
            log_step=log_step,
            lost=jnp.zeros_like(state.lost),
        )
        sampler = with_step_size(sampler, jnp.exp(log_step))
        closes = state.count % WINDOW == 0
        return jax.lax.cond(closes, close_window, lambda *same: same, state, sampler)

    def repair(self, state, states):
        source = sources(state.lost)
        return jax.tree.map(lambda leaf: leaf[source], states)

    def is_done(self, state):
        return state.agreed >= 2

    def finish(self, state, sampler):
        # A trajectory slightly longer than n steps takes n of them, a little larger.
        step, length = step_size_of(sampler), trajectory_length_of(sampler)
        num_steps = jnp.maximum(jnp.ceil(length / step - ROUNDED_DOWN), 1)
        return with_step_size(sampler, jnp.maximum(length / num_steps, step))

    def report(self, state):
        return {
            "repaired": state.repaired,
            "agreed": state.agreed >= 2,
            "worst": state.worst,
            "drift": state.drift,
        }


def close_window(
    state: EnsembleState, sampler: Preconditioned
) -> tuple[EnsembleState, Preconditioned]:
    """Learn from the window that ends, and judge it."""
    history = state.history
    is_first = state.count == WINDOW
    lost = lost_chains(
        history.log_density[-1],
        history.position.shape[-1],
        jnp.mean(history.acceptance[WINDOW:], axis=0),
    )
    source = sources(lost)
    history = jax.tree.map(lambda rows: rows[:, source], history)
    valid = (jnp.arange(2 * WINDOW) >= jnp.where(is_first, WINDOW, 0))[:, None]
    included = jnp.ravel(valid & ~lost[None])
    dim = history.position.shape[-1]
    windows = jnp.where(is_first, 0.5, 1.0).astype(history.position.dtype)
    metric = fisher_metric(
        sampler.metric,
        history.position.reshape(-1, dim),
        history.score.reshape(-1, dim),
        included,
        windows * INDEPENDENT * jnp.sum(~lost),
    )
    length = right_angle(metric, history.position[WINDOW:], trajectory_length_of(sampler))
    drift, worst, ratio = disagreement(history)
    agrees = (
        ~is_first
        & ~jnp.any(lost)
        & (drift < DRIFT)
        & (ratio < SPREAD)
        & (jnp.abs(state.log_step - state.last_log_step) < STEP)
        & (jnp.mean(history.acceptance[WINDOW:]) > 0.55)
    )
    spread = jnp.asarray(spread_of(sampler))
    uneven = unevenness(metric, history.score[WINDOW:])
    # A chain at half the acceptance wanted sits where one step size for all is too large.
    slowest = jnp.min(jnp.mean(history.acceptance[WINDOW:], axis=0))
    uneven = jnp.where(slowest < ACCEPTANCE / 2, jnp.inf, uneven)
    wider = spread
    for least, wanted in SPREADS:
        wider = jnp.where(uneven > least, jnp.maximum(wider, wanted), wider)
    switches = wider > spread
    sampler = eqx.tree_at(spread_of, sampler, wider)
    agreed = jnp.where(agrees & ~switches, state.agreed + 1, 0)
    sampler = eqx.tree_at(lambda s: s.metric, sampler, metric)
    sampler = eqx.tree_at(trajectory_length_of, sampler, length)
    state = state._replace(
        history=jax.tree.map(lambda rows: jnp.roll(rows, WINDOW, axis=0), history),
        since=jnp.full_like(state.since, 6),
        last_log_step=state.log_step,
        agreed=agreed,
        lost=lost,
        repaired=state.repaired + jnp.sum(lost, dtype=jnp.int32),
        worst=worst,
        drift=drift,
    )
    return state, sampler


def lost_chains(
    log_density: Float[Array, " chains"], dim: int, acceptance: Float[Array, " chains"]
) -> Bool[Array, " chains"]:
    """Chains far below the others in density, or that accepted hardly anything.

    Far: the potential exceeds its median by 8 median absolute deviations and `3 sqrt(dim / 2)`,
    three standard deviations of the potential of a Gaussian.
    """
    potential = jnp.where(jnp.isfinite(log_density), -log_density, jnp.inf)
    median = middle(potential)
    deviation = middle(jnp.abs(potential - median))
    is_near = potential < median + 8 * deviation + 3 * math.sqrt(dim / 2)
    return ~is_near | (acceptance < 0.05)


def sources(lost: Bool[Array, " chains"]) -> Int[Array, " chains"]:
    """For each chain the one whose place it takes: itself, or where it is lost one that is not."""
    chains = jnp.arange(lost.size, dtype=jnp.int32)
    kept = jnp.maximum(jnp.sum(~lost), 1)
    rank = jnp.sum(~lost[None] & (chains[None] < chains[:, None]), axis=1)
    # Lost chain i takes the place of kept chain number i modulo their number.
    takes = ~lost[None] & (rank[None] == (chains % kept)[:, None])
    place = jnp.sum(jnp.where(takes, chains[None], 0), axis=1, dtype=jnp.int32)
    return jnp.where(lost & ~jnp.all(lost), place, chains)


# XLA needs up to a second to compile a sort for a CPU; counting needs none, and these are few.
def middle(values: Float[Array, " n"]) -> Float[Array, ""]:
    """The lower median, infinities allowed."""
    index = jnp.arange(values.size)
    ties = (values[None] == values[:, None]) & (index[None] < index[:, None])
    rank = jnp.sum((values[None] < values[:, None]) | ties, axis=1)
    return jnp.max(jnp.where(rank == (values.size - 1) // 2, values, -jnp.inf))


def quantile(values: Float[Array, " n"], level: float) -> Float[Array, ""]:
    """The value below which a share `level` of finite values lies, to 2^-20 of their range."""

    def halve(_, bounds):
        low, high = bounds
        centre = (low + high) / 2
        below = jnp.mean(values <= centre) < level
        return jnp.where(below, centre, low), jnp.where(below, high, centre)

    return jax.lax.fori_loop(0, 20, halve, (jnp.min(values), jnp.max(values)))[1]


def right_angle(
    metric: Metric,
    positions: Float[Array, "draws chains dim"],
    trajectory_length: Float[Array, ""],
) -> Float[Array, ""]:
    """The trajectory length at which the slowest direction would turn by a right angle."""
    z = jax.vmap(jax.vmap(metric.whiten))(positions - jnp.mean(positions, axis=(0, 1))[None, None])
    leading = principal_direction(z.reshape(-1, z.shape[-1]))
    along = product(z, leading)
    z = jnp.concatenate([z, along[..., None]], axis=-1)
    moved = jnp.sum(z[1:] * z[:-1], axis=(0, 1))
    still = (jnp.sum(z[1:] ** 2, axis=(0, 1)) + jnp.sum(z[:-1] ** 2, axis=(0, 1))) / 2
    # The largest of d + 1 correlations that are zero, each from n pairs, is about this.
    chance = math.sqrt(2 * math.log(z.shape[-1]) / (z[1:, :, 0].size))
    correlation = jnp.max(moved / jnp.maximum(still, jnp.finfo(z.dtype).tiny)) - chance
    angle = jnp.arccos(jnp.clip(correlation, -0.99, 0.99))
    factor = jnp.clip(math.pi / 2 / angle, 1 / 1.5, 2.0)
    longest = math.pi / 2 * jnp.maximum(jnp.sqrt(jnp.mean(along**2)), 1)
    return jnp.clip(trajectory_length * factor, SHORTEST, jnp.minimum(longest, LONGEST))


def principal_direction(rows: Float[Array, "draws dim"]) -> Float[Array, " dim"]:
    """Leading eigenvector of the second moments, by ten power iterations."""

    def turn(_, v):
        w = jnp.matmul(jnp.matmul(rows, v), rows)
        return w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)

    # The row of largest norm leans towards it more than any fixed vector does.
    largest = rows[jnp.argmax(jnp.sum(rows**2, axis=1))]
    return jax.lax.fori_loop(0, 10, turn, largest)


def disagreement(
    history: History,
) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """How two windows differ: the largest significant drift, where, and the log variance ratio.

    The potential counts as one more coordinate, of which no index is given.
    """
    values = jnp.concatenate([history.position, history.log_density[..., None]], axis=-1)
    before, after = values[:WINDOW], values[WINDOW:]
    by_chain = jnp.mean(after, axis=0) - jnp.mean(before, axis=0)
    drift = jnp.mean(by_chain, axis=0)
    error = jnp.std(by_chain, axis=0) / math.sqrt(by_chain.shape[0])
    variances = [jnp.var(part, axis=(0, 1)) for part in (before, after)]
    tiny = jnp.finfo(values.dtype).tiny
    relative = jnp.abs(drift) / jnp.sqrt(jnp.maximum(variances[1], tiny))
    significant = jnp.where(jnp.abs(drift) > 4 * error, relative, 0)
    spread = jnp.max(jnp.abs(jnp.log((variances[1] + tiny) / (variances[0] + tiny))))
    return jnp.max(significant), jnp.argmax(significant[:-1]).astype(jnp.int32), spread


def unevenness(metric: Metric, scores: Float[Array, "draws chains dim"]) -> Float[Array, ""]:
    """How much further the score's size reaches above its median than that of a Gaussian (1).

    `sqrt(2d) (q99 - q50) / 2.33` of `log(|s|² / d) / 2` in whitened coordinates.
    """
    whitened = jax.vmap(jax.vmap(metric.whiten_score))(scores)
    dim = whitened.shape[-1]
    tiny = jnp.finfo(whitened.dtype).tiny
    size = jnp.log(jnp.maximum(jnp.mean(whitened**2, axis=-1), tiny)) / 2
    size = jnp.ravel(size)
    return math.sqrt(2 * dim) * (quantile(size, 0.99) - quantile(size, 0.5)) / 2.33


def spread_of(sampler: Sampler) -> Any:
    """Spread of the local step sizes."""
    return innermost(sampler).spread  # pyright: ignore[reportAttributeAccessIssue]


def trajectory_length_of(sampler: Sampler) -> Any:
    """Trajectory length of the sampler inside all wrappers."""
    return innermost(sampler).trajectory_length  # pyright: ignore[reportAttributeAccessIssue]

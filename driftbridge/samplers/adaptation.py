"""The contract of warm-up, and the warm-up used unless another is given."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from driftbridge.runtime.products import product
from driftbridge.samplers.base import Info, Sampler, State
from driftbridge.samplers.energy_error import WithEnergyError
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric, Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.samplers.step_size import DualAveraging, EnergyRule, StepSizeRule
from driftbridge.samplers.welford import (
    Moments,
    add_batch,
    no_moments,
    shrunk_covariance,
    shrunk_variance,
)


class Adaptation(eqx.Module):
    """Tunes one sampler shared by a batch of chains.

    A subclass supplies

    - `init(sampler, positions, num_warmup)`: the state before the first transition, and the
      sampler in the form that warm-up steps; every array is in place, so the tree never changes;
    - `update(state, sampler, states, infos)`: after each transition, from the batch of chains;
    - `finish(state, sampler)`: the tuned sampler, in the form that the kept draws use;

    and may supply

    - `adopt(sampler, metric, step_size)`: the sampler with first guesses from the start;
    - `repair(state, states)`: the states to go on from, where some chains are lost;
    - `is_done(state)`: whether the sampler is tuned before the ceiling `num_warmup` is reached;
    - `report(state)`: numbers of the warm-up for the result, by name.

    All are jittable, `num_warmup` is data. Tuning each chain alone is a batch of one under `vmap`.
    """

    @abc.abstractmethod
    def init(
        self, sampler: Sampler, positions: Float[Array, "chains dim"], num_warmup: Int[Array, ""]
    ) -> tuple[PyTree, Sampler]:
        """State and sampler before the first transition."""

    @abc.abstractmethod
    def update(
        self, state: PyTree, sampler: Sampler, states: State, infos: Info
    ) -> tuple[PyTree, Sampler]:
        """State and sampler after one more transition of the batch."""

    @abc.abstractmethod
    def finish(self, state: PyTree, sampler: Sampler) -> Sampler:
        """The tuned sampler."""

    def adopt(self, sampler: Sampler, metric: Metric, step_size: Float[Array, ""]) -> Sampler:
        """The sampler with what the search for a start has learnt, where that is of use."""
        return sampler

    def repair(self, state: PyTree, states: State) -> State:
        """The states to go on from after an update."""
        return states

    def is_done(self, state: PyTree) -> Bool[Array, ""] | bool:
        """Whether warm-up is over."""
        return False

    def report(self, state: PyTree) -> dict[str, Array]:
        """What the result should tell of the warm-up."""
        return {}


KINDS = {"diagonal": DiagonalMetric, "dense": DenseMetric}


class Schedule(NamedTuple):
    """Where warm-up stands: the present window of the metric ends before step `window_end`."""

    step: Int[Array, ""]
    window_start: Int[Array, ""]
    window_end: Int[Array, ""]
    slow_end: Int[Array, ""]


class WarmupState(NamedTuple):
    """State of `Warmup`; `moments` is None where the metric is the user's own."""

    schedule: Schedule
    step_size: Any
    moments: Moments | None


def first_window(num_warmup: Int[Array, ""]) -> Schedule:
    """Stan's buffers: 75 steps to reach the typical set, 50 at the end for the step size, windows
    from 25 steps doubling between; below 150 steps 15 % and 10 % of them.

    Stan Reference Manual, "HMC algorithm parameters, automatic parameter tuning".
    """
    short = num_warmup < 150
    start = jnp.where(short, (15 * num_warmup) // 100, 75)
    slow_end = num_warmup - jnp.where(short, num_warmup // 10, 50)
    schedule = Schedule(jnp.zeros_like(start), start, start + 25, slow_end)
    return schedule._replace(window_end=absorb_tail(schedule))


def absorb_tail(schedule: Schedule) -> Int[Array, ""]:
    """End of the present window; it takes all that is left where the next one would not fit."""
    length = schedule.window_end - schedule.window_start
    next_fits = schedule.window_end + 2 * length <= schedule.slow_end
    return jnp.where(next_fits, schedule.window_end, jnp.maximum(schedule.slow_end, 1))


class Warmup(Adaptation):
    """Step size by dual averaging or the energy-error rule, metric by Welford's moments.

    Adjusted kernels are tuned to an acceptance rate by `DualAveraging`, unadjusted ones to a bias
    by `EnergyRule`. The metric is estimated from all chains together over windows that double; a
    sampler that comes `Preconditioned` with a metric of another kind keeps it.

    **Arguments:**

    - `step_size`: a `StepSizeRule`, or None for the rule that suits the sampler.
    - `metric`: "diagonal", or "dense" for a full covariance, which pays for correlated parameters
      where windows hold several times as many draws of all chains as there are dimensions.

    **Raises:** `ValueError` for another metric.
    """

    step_size: StepSizeRule | None = None
    metric: str = eqx.field(static=True, default="diagonal")

    def __check_init__(self):
        if self.metric not in KINDS:
            raise ValueError(f'metric must be "diagonal" or "dense"; got {self.metric!r}.')

    def _identity(self, like: Float[Array, " dim"]) -> Metric:
        if self.metric == "diagonal":
            return DiagonalMetric(jnp.ones_like(like))
        identity = jnp.eye(like.size, dtype=like.dtype)
        return DenseMetric(identity, identity)

    def rule(self, sampler: Sampler) -> StepSizeRule:
        """The rule in use for `sampler`."""
        if self.step_size is not None:
            return self.step_size
        return DualAveraging() if sampler.facts.adjusted else EnergyRule()

    def init(self, sampler, positions, num_warmup):
        if not isinstance(sampler, Preconditioned):
            sampler = Preconditioned(sampler, self._identity(positions[0]))
        if not sampler.facts.adjusted:
            inner = WithEnergyError(sampler.sampler, jnp.ones((), positions.dtype))
            sampler = Preconditioned(inner, sampler.metric)
        adapts_metric = isinstance(sampler.metric, KINDS[self.metric])
        step_size, sampler = self.rule(sampler).init(sampler)
        state = WarmupState(
            first_window(jnp.asarray(num_warmup, jnp.int32)),
            step_size,
            no_moments(positions.shape[1], positions.dtype, self.metric == "dense")
            if adapts_metric
            else None,
        )
        return state, sampler

    def update(self, state, sampler, states, infos):
        rule = self.rule(sampler)
        step_size, sampler = rule.update(state.step_size, sampler, states, infos)
        assert isinstance(sampler, Preconditioned)  # `init` has made it one
        schedule = state.schedule
        if isinstance(sampler.sampler, WithEnergyError):
            arrived = schedule.step + 1 >= schedule.window_start
            approach = jnp.where(arrived, 0.0, sampler.sampler.approach)
            sampler = eqx.tree_at(lambda s: s.sampler.approach, sampler, approach)
        if state.moments is None:
            schedule = schedule._replace(step=schedule.step + 1)
            return WarmupState(schedule, step_size, None), sampler

        in_window = schedule.step >= schedule.window_start
        moments = add_batch(state.moments, states.position, in_window)
        closes = schedule.step + 1 == schedule.window_end
        metric = jax.lax.cond(closes, learnt, lambda _, metric: metric, moments, sampler.metric)
        sampler = eqx.tree_at(lambda s: s.metric, sampler, metric)
        step_size, sampler = rule.restart(step_size, sampler, closes)
        moments = Moments(*(jnp.where(closes, 0, leaf) for leaf in moments))
        return WarmupState(next_window(schedule, closes), step_size, moments), sampler

    def finish(self, state, sampler):
        final = self.rule(sampler).finish(state.step_size, sampler)
        assert isinstance(final, Preconditioned)
        if isinstance(final.sampler, WithEnergyError):
            return Preconditioned(final.sampler.sampler, final.metric)
        return final


def learnt(moments: Moments, metric: Metric) -> Metric:
    """The metric of the moments, of the kind of the previous one, towards which it is shrunk."""
    if isinstance(metric, DiagonalMetric):
        return DiagonalMetric(jnp.sqrt(shrunk_variance(moments, jnp.square(metric.scale))))
    assert isinstance(metric, DenseMetric)
    factor = jnp.asarray(metric.cholesky)
    previous = product(factor, factor.T)
    found = DenseMetric.from_covariance(shrunk_covariance(moments, previous))
    usable = jnp.all(jnp.isfinite(found.cholesky)) & jnp.all(jnp.isfinite(found.inverse_cholesky))
    return jax.tree.map(lambda new, old: jnp.where(usable, new, old), found, metric)


def next_window(schedule: Schedule, closes) -> Schedule:
    """Advance one step; where a window closes, the next is twice as long."""
    length = schedule.window_end - schedule.window_start
    following = Schedule(
        schedule.step + 1,
        schedule.window_end,
        schedule.window_end + 2 * length,
        schedule.slow_end,
    )
    # After the last window none closes again: its end lies behind.
    last = schedule.window_end >= schedule.slow_end
    following = following._replace(
        window_end=jnp.where(last, 0, absorb_tail(following)),
        window_start=jnp.where(last, jnp.iinfo(jnp.int32).max, following.window_start),
    )
    same = schedule._replace(step=schedule.step + 1)
    return Schedule(
        *(jnp.where(closes, new, old) for new, old in zip(following, same, strict=True))
    )

"""Rules that tune a step size from the batch of chains."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from driftbridge.samplers.base import (
    Info,
    Sampler,
    State,
    Wrapper,
    step_size_of,
    with_step_size,
)
from driftbridge.samplers.energy_error import WithEnergyError


class StepSizeRule(eqx.Module):
    """Tunes `step_size` of the innermost sampler; `restart` where the metric has changed."""

    @abc.abstractmethod
    def init(self, sampler: Sampler) -> tuple[Any, Sampler]:
        """State and sampler before the first transition."""

    @abc.abstractmethod
    def update(
        self, state: Any, sampler: Sampler, states: State, infos: Info
    ) -> tuple[Any, Sampler]:
        """State and sampler after a transition of the batch."""

    @abc.abstractmethod
    def restart(self, state: Any, sampler: Sampler, now: Bool[Array, ""]) -> tuple[Any, Sampler]:
        """Forget what was learnt under another metric, where `now`."""

    @abc.abstractmethod
    def finish(self, state: Any, sampler: Sampler) -> Sampler:
        """The sampler with its final step size."""


class DualAveragingState(NamedTuple):
    """Iterates of Nesterov's scheme in `log h`."""

    count: Float[Array, ""]
    error: Float[Array, ""]
    log_average: Float[Array, ""]
    anchor: Float[Array, ""]


class DualAveraging(StepSizeRule):
    """Drives the mean acceptance rate of the batch to a target.

    `H_m = (1 - 1/(m + t0)) H_{m-1} + (target - a_m)/(m + t0)`,
    `log h_m = anchor - sqrt(m)/gamma H_m`, averaged with weights `m^-kappa`.

    **Arguments:**

    - `target`: acceptance rate in (0, 1); None takes the sampler's own (`facts.acceptance`).

    Hoffman and Gelman (2014), eq. (6), with their gamma = 0.05, t0 = 10, kappa = 0.75 and
    anchor = log(10 h_0).
    """

    target: Float[Array, ""] | float | None = None

    def __check_init__(self):
        if isinstance(self.target, int | float) and not 0 < self.target < 1:
            raise ValueError(f"target must lie between 0 and 1; got {self.target}.")

    def init(self, sampler):
        log_step = jnp.log(jnp.asarray(step_size_of(sampler)))
        zero = jnp.zeros_like(log_step)
        return DualAveragingState(zero, zero, log_step, log_step + jnp.log(10.0)), sampler

    def update(self, state, sampler, states, infos):
        goal = sampler.facts.acceptance if self.target is None else self.target
        rate = jnp.mean(infos.acceptance_rate)
        count = state.count + 1
        weight = 1 / (count + 10)
        error = (1 - weight) * state.error + weight * (goal - rate)
        log_step = state.anchor - jnp.sqrt(count) / 0.05 * error
        eta = count**-0.75
        log_average = eta * log_step + (1 - eta) * state.log_average
        state = DualAveragingState(count, error, log_average, state.anchor)
        return state, with_step_size(sampler, jnp.exp(log_step))

    def restart(self, state, sampler, now):
        # Anchored at twice, not ten times, the present step: the metric changes little by little,
        # and a large first step loses the start of every window to rejections.
        fresh = DualAveragingState(
            jnp.zeros_like(state.count),
            jnp.zeros_like(state.error),
            state.log_average,
            state.log_average + jnp.log(2.0),
        )
        state = DualAveragingState(
            *(jnp.where(now, new, old) for new, old in zip(fresh, state, strict=True))
        )
        step = step_size_of(sampler)
        return state, with_step_size(sampler, jnp.where(now, jnp.exp(fresh.log_average), step))

    def finish(self, state, sampler):
        return with_step_size(sampler, jnp.exp(state.log_average))


class EnergyRuleState(NamedTuple):
    """State of the approach; mean square of energy errors over the goal, each as it would be at
    the present step size; and how many transitions stand behind it."""

    approach: DualAveragingState
    mean: Float[Array, ""]
    count: Float[Array, ""]


class EnergyRule(StepSizeRule):
    """Chooses the step of an unadjusted kernel from the size of its energy error.

    On a Gaussian the mean squared energy error of a step, per dimension, is `4 b^3` to leading
    order, where `b` is the relative bias of the stationary variance of LMC or OBABO (other
    splittings have less). As it grows like `h^p` (`p = facts.energy_order`), an error seen at one
    step size tells that at another; the rule keeps the mean over some hundred transitions at
    `4 b^3`. On the way to the typical set, where errors tell nothing of it, the step is driven to
    an acceptance rate instead. For samplers in `WithEnergyError`.

    **Arguments:**

    - `bias`: `b`, relative bias of the variance to aim at, in (0, 1).

    The criterion is the energy-error variance of the black-box tuner of arXiv 2412.08876.
    """

    bias: Float[Array, ""] | float = 0.05

    # Transitions of the batch after which an error is forgotten; halfway there at the start.
    MEMORY = 200.0

    def __check_init__(self):
        if isinstance(self.bias, int | float) and not 0 < self.bias < 1:
            raise ValueError(f"bias must lie between 0 and 1; got {self.bias}.")

    def init(self, sampler):
        energy_wrapper(sampler)
        approach, sampler = DualAveraging(0.7).init(sampler)
        return EnergyRuleState(approach, *(jnp.zeros_like(approach.count),) * 2), sampler

    def update(self, state, sampler, states, infos):
        approach, approaching = DualAveraging(0.7).update(state.approach, sampler, states, infos)
        step, order = step_size_of(sampler), sampler.facts.energy_order
        assert infos.energy_error is not None  # `init` has asked for it
        goal = 4 * jnp.asarray(self.bias) ** 3 * states.position[0].size
        # Far beyond the goal the h^p law does not hold: the cap still halves the step.
        ratio = jnp.minimum(infos.energy_error**2 / goal, 1e3)
        # One chain that is lost must not choose the step of all: squares of Gaussian errors pass
        # twenty times their median once in 400.
        ratio = jnp.minimum(ratio, 20 * jnp.median(ratio))
        count = state.count + 1
        weight = 1 / jnp.minimum((count + 1) / 2, self.MEMORY)
        mean = state.mean + weight * (jnp.mean(ratio) - state.mean)
        factor = jnp.clip(mean ** (-1 / order), 0.5, 1.5)

        on_the_way = energy_wrapper(sampler).approach > 0
        step = jnp.where(on_the_way, step_size_of(approaching), step * factor)
        arrived = EnergyRuleState(state.approach, mean * factor**order, count)
        new = EnergyRuleState(approach, state.mean, state.count)
        state = jax.tree.map(lambda a, b: jnp.where(on_the_way, a, b), new, arrived)
        return state, with_step_size(sampler, step)

    def restart(self, state, sampler, now):
        # Errors under the old metric say nothing: they grow with a high power of its scale.
        count = jnp.where(now, 0.0, state.count)
        return state._replace(count=count), sampler

    def finish(self, state, sampler):
        return sampler


def energy_wrapper(sampler: Sampler) -> WithEnergyError:
    """The `WithEnergyError` around the innermost sampler."""
    while isinstance(sampler, Wrapper):
        if isinstance(sampler, WithEnergyError):
            return sampler
        sampler = sampler.sampler
    raise TypeError(
        f"EnergyRule reads energy errors of an unadjusted sampler in WithEnergyError; "
        f"got {type(sampler).__name__}, for which DualAveraging is the rule."
    )

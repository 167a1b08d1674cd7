"""The contract of a sampler: a deterministic step driven by explicit noise."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Scalar

from driftbridge.targets.base import Target

State = Any
Noise = PyTree


class Info(NamedTuple):
    """What one step reports, scalars for each chain.

    `energy_error` is the change of total energy that an adjusted kernel accepts or rejects by (or
    that `WithEnergyError` measures), `energy` the total energy of the state after the step, with
    the velocity it was reached with; each is None where it is not computed.
    """

    acceptance_rate: Float[Array, ""]
    is_divergent: Bool[Array, ""]
    num_gradients: Int[Array, ""]
    energy_error: Float[Array, ""] | None = None
    energy: Float[Array, ""] | None = None


def unadjusted_info(position: Float[Array, "..."], num_gradients: int | Int[Array, ""]) -> Info:
    """The info of a step that accepts every move; the driver adds the divergences it refuses."""
    return Info(
        acceptance_rate=jnp.ones((), position.dtype),
        is_divergent=jnp.zeros((), bool),
        num_gradients=jnp.asarray(num_gradients, jnp.int32),
    )


@dataclass(frozen=True)
class Facts:
    """What a user chooses a method by; the tables in the documentation are made of these.

    - `summary`: one line.
    - `gradients`: score evaluations a step, as declared (a number, or a formula in words).
    - `strong_order`: order of the pathwise error in the step size, None where not defined.
    - `weak_order`: order of the error of stationary expectations in the step size, for any smooth
      target (on a Gaussian it may be higher), None where not known.
    - `bias`: leading relative error of the stationary variance on a Gaussian of unit curvature,
      as a formula in the step size `h` and friction `γ`; "none" for exact kernels.
    - `adjusted`: whether a Metropolis step makes the target exactly invariant.
    - `kinetic`: whether the state has a velocity.
    - `uses_value`: whether a step needs the log density itself.
    - `acceptance`: the rate an adjusted kernel is tuned to.
    - `energy_order`: `p` where the mean squared energy error of a step grows as `h^p`.
    - `needs`: names of the target's capabilities the method requires.
    - `source`: paper and equation.
    """

    summary: str
    gradients: str
    bias: str
    source: str
    strong_order: float | None = None
    weak_order: float | None = None
    adjusted: bool = False
    kinetic: bool = False
    uses_value: bool = False
    acceptance: float = 0.8
    energy_order: int = 6
    needs: tuple[str, ...] = ()


class Point(NamedTuple):
    """A position with the value and the gradient of the log density there."""

    position: Float[Array, " dim"]
    log_density: Float[Array, ""]
    score: Float[Array, " dim"]


class Sampler(eqx.Module):
    """A Markov kernel on positions, written for one chain; the driver batches it.

    A subclass supplies

    - `facts`, a class attribute;
    - `init(target, position)`: the state before the first step. It needs no key: a velocity is
      left unset (infinite) and the first step draws it from its own noise;
    - `noise(key, like)`: all that is random in one step. `like` gives the shape and dtype of the
      position, never its value; tuned numbers enter in `step`;
    - `step(target, state, noise)`: the next state and its `Info`. It is deterministic.

    The step of a chain alone is one call in the compiled loop, so that all of it is computed there.
    `in_line` is for methods with coefficients that depend on the sampler alone and are worth being
    computed before the loop: theirs stays a part of it.

    A state is a NamedTuple whose first field is `position`; a field named `score` is the gradient
    of the log density there and `log_density` its value, carried only by methods that reuse them.
    Numbers (step size, friction) are floating leaves; variants are classes.
    """

    facts: ClassVar[Facts]
    in_line: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, target: Target, position: Float[Array, "..."]) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def noise(self, key: Key[Array, ""], like: Float[Array, "..."]) -> Noise:
        """All that is random in one step, for positions shaped like `like`."""

    @abc.abstractmethod
    def step(self, target: Target, state: State, noise: Noise) -> tuple[State, Info]:
        """One transition."""

    def at_step(self, step: Int[Array, ""]) -> "Sampler":
        """The sampler to use at transition number `step`, the same for all chains.

        Methods with a schedule (jittered trajectory lengths) override it; what it changes is not
        batched over chains, so trip counts of inner loops stay common to them.
        """
        return self

    def refuse(self, state: State) -> State:
        """The state to go on from when the step from `state` was not finite."""
        return state

    def coarsen(self, first: Noise, second: Noise) -> Noise:
        """Noise of one step of twice the size, along the Brownian path of two successive steps.

        It has the law of `noise`, and is what couples chains of different steps (`estimate_bias`).
        A method that overrides it follows one path at all steps.

        **Raises** `TypeError` where a method has no such rule.
        """
        raise TypeError(
            f"{type(self).__name__} has no coarsen: it is not known how the noise of two steps "
            "makes that of a double one. Compare with a run at half the step, or take a method "
            "that has it, such as UBU, BAOAB, KLMC or LMC."
        )

    @property
    def diffusion_time(self) -> Float[Array, ""] | float:
        """Time `tau` of the overdamped diffusion in which positions move as far as in one step.

        `step_size` here; methods with another unit of time override it.
        """
        return step_size_of(self)

    def energy_error(self, before: Point, after: Point) -> Float[Array, ""]:
        """Energy error of one step, from its end points alone: what `WithEnergyError` reports.

        `E = U' - U + (s + s') . (x' - x) / 2 + tau (|s'|^2 - |s|^2) / 4`, with the potential `U`,
        the score `s` and `tau = diffusion_time`. For Langevin Monte Carlo it is the log Metropolis
        ratio, for a kick-drift-kick step of kinetic dynamics the error of its energy.
        """
        # |s'|^2 - |s|^2 = (s' + s) . (s' - s): one sum, without cancelling squares.
        move = after.position - before.position
        bent = move + self.diffusion_time / 2 * (after.score - before.score)
        work = jnp.sum((before.score + after.score) * bent) / 2
        return before.log_density - after.log_density + work


class Wrapper(Sampler):
    """A sampler made of another one, held in `sampler`; facts, noise and schedule are shared."""

    sampler: eqx.AbstractVar[Sampler]

    @property
    def facts(self) -> Facts:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sampler.facts

    @property
    def in_line(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sampler.in_line

    def noise(self, key: Key[Array, ""], like: Float[Array, "..."]) -> Noise:
        return self.sampler.noise(key, like)

    def coarsen(self, first: Noise, second: Noise) -> Noise:
        return self.sampler.coarsen(first, second)

    def at_step(self, step: Int[Array, ""]) -> "Wrapper":
        return eqx.tree_at(lambda wrapper: wrapper.sampler, self, self.sampler.at_step(step))

    def refuse(self, state: State) -> State:
        return self.sampler.refuse(state)


def innermost(sampler: Sampler) -> Sampler:
    """The sampler inside all wrappers."""
    while isinstance(sampler, Wrapper):
        sampler = sampler.sampler
    return sampler


def has_step_size(sampler: Sampler) -> bool:
    """Whether the sampler inside all wrappers has a step size."""
    return "step_size" in type(innermost(sampler)).__dataclass_fields__


def step_size_of(sampler: Sampler) -> Any:
    """Step size of the sampler inside all wrappers."""
    return innermost(sampler).step_size  # pyright: ignore[reportAttributeAccessIssue]


def with_step_size(sampler: Sampler, step_size: Scalar) -> Sampler:
    """The same sampler with another step size, through all wrappers."""
    return eqx.tree_at(step_size_of, sampler, step_size)

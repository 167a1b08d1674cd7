"""Couplings: two chains of one kernel with common noise, which approach one another or meet."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from driftbridge.samplers.base import Noise, Sampler, State, innermost
from driftbridge.samplers.hmc import HMC
from driftbridge.samplers.langevin import LMC
from driftbridge.samplers.local_scale import LocalScaleHMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.metric import Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.base import Target
from driftbridge.targets.leaves import is_concrete


class Coupling(eqx.Module):
    """How two chains of one kernel share their noise, each moving by the kernel as it is.

    A subclass supplies

    - `meets`: whether pairs come to be equal;
    - `check(sampler)`: raises `TypeError` for a kernel that it cannot couple;
    - `noise(sampler, key, like)`: all that is random in one transition of a pair;
    - `step(target, sampler, x, y, noise)`: the next states, of which `x` depends on `x` alone.
    """

    meets: ClassVar[bool]

    @abc.abstractmethod
    def check(self, sampler: Sampler) -> None:
        """Raise `TypeError` where the sampler cannot be coupled in this way."""

    @abc.abstractmethod
    def noise(self, sampler: Sampler, key: Key[Array, ""], like: Float[Array, " dim"]) -> Any:
        """The noise of one transition of a pair."""

    @abc.abstractmethod
    def step(
        self, target: Target, sampler: Sampler, x: State, y: State, noise: Any
    ) -> tuple[State, State]:
        """One transition of a pair."""


class Synchronous(Coupling):
    """The same noise for both chains: they approach where the dynamics contract, and never meet.

    For every kernel without a schedule; distances shrink where the log density is concave.
    """

    meets: ClassVar[bool] = False

    def check(self, sampler: Sampler) -> None:
        if type(innermost(sampler)).at_step is not Sampler.at_step:
            raise TypeError(
                f"{type(innermost(sampler)).__name__} changes from step to step, so chains a lag "
                "apart have no common noise; use CommonVelocity()."
            )

    def noise(self, sampler, key, like):
        return sampler.noise(key, like)

    def step(self, target, sampler, x, y, noise):
        return _both(target, sampler, x, y, noise, noise)


class ReflectionNoise(NamedTuple):
    """The noise of the kernel, and the uniform that decides whether proposals coincide."""

    kernel: Noise
    uniform: Float[Array, ""]


class Reflection(Coupling):
    """Proposals that coincide with the largest probability, mirrored where they do not.

    For `x' = x + h s(x) + sqrt(2h) xi`, of `LMC` and `MALA`, preconditioned or not: with
    `z = (m(x) - m(y)) / sqrt(2h)`, `m` the means, the other chain takes `xi + z` with probability
    `min(1, phi(xi + z) / phi(xi))`, else `xi` mirrored at the hyperplane orthogonal to `z`. The
    decision to accept has one uniform for both.

    Bou-Rabee, Eberle and Zimmer (2020), arXiv 1805.00452, section 2.3; Jacob, O'Leary and Atchadé
    (2020), arXiv 1708.03625, section 4.1.
    """

    meets: ClassVar[bool] = True

    def check(self, sampler: Sampler) -> None:
        if type(_inside(sampler)[0]) not in (LMC, MALA):
            raise TypeError(f"Reflection couples LMC and MALA; got {name_of(sampler)}.")

    def noise(self, sampler, key, like):
        kernel, extra = jax.random.split(key)
        return ReflectionNoise(
            sampler.noise(kernel, like), jax.random.uniform(extra, (), like.dtype)
        )

    def step(self, target, sampler, x, y, noise):
        inner, metric = _inside(sampler)
        is_adjusted = inner.facts.adjusted
        normal = noise.kernel.normal if is_adjusted else noise.kernel
        shift = _shift(x, y, inner.step_size, metric)
        other, coincide = reflect(normal, shift, noise.uniform)
        theirs = noise.kernel._replace(normal=other) if is_adjusted else other
        return _both(target, sampler, x, y, noise.kernel, theirs, coincide)


class VelocityNoise(NamedTuple):
    """The noise of the kernel, two uniforms and the number that draws the place in its schedule.

    `short` decides whether the transition has one step, `uniform` whether proposals then coincide.
    """

    kernel: Noise
    short: Float[Array, ""]
    uniform: Float[Array, ""]
    place: Int[Array, ""]


class CommonVelocity(Coupling):
    """One velocity for both chains, and now and then a short trajectory on which they can meet.

    For `HMC`, `JitteredHMC` and `JitteredStepHMC`, preconditioned or not. Trajectories with one
    velocity approach one another and do not meet, so what is coupled, and bounded, is the sampler
    that with probability `share` takes a trajectory of one leapfrog step, which is a `MALA` step of
    `h^2 / 2`, coupled as in `Reflection`. Places in the schedule of jittered lengths are drawn at
    random, one for both chains: the two are a lag apart and must be of one kernel.

    **Arguments:**

    - `share`: in (0, 1).

    Heng and Jacob (2019), arXiv 1709.00404, section 2; there the short move is a random walk.
    """

    share: Float[Array, ""] | float = 0.1

    meets: ClassVar[bool] = True

    def __check_init__(self):
        if is_concrete(self.share) and not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1); got {self.share}.")

    def check(self, sampler: Sampler) -> None:
        inner, _ = _inside(sampler)
        if not isinstance(inner, HMC) or isinstance(inner, LocalScaleHMC):
            raise TypeError(
                f"CommonVelocity couples HMC, JitteredHMC and JitteredStepHMC; got "
                f"{name_of(sampler)}."
            )

    def noise(self, sampler, key, like):
        kernel, extra, place = jax.random.split(key, 3)
        short, uniform = jax.random.uniform(extra, (2,), like.dtype)
        number = jax.random.randint(place, (), 0, 1 << 23, jnp.int32)
        return VelocityNoise(sampler.noise(kernel, like), short, uniform, number)

    def step(self, target, sampler, x, y, noise):
        inner, metric = _inside(sampler.at_step(noise.place))
        h, is_short = inner.step_size, noise.short < self.share
        kernel = HMC(h, jnp.where(is_short, h, inner.trajectory_length))
        normal = noise.kernel.normal
        other, coincide = reflect(normal, _shift(x, y, h**2 / 2, metric), noise.uniform)
        theirs = noise.kernel._replace(normal=jnp.where(is_short, other, normal))
        kernel = kernel if metric is None else Preconditioned(kernel, metric)
        return _both(target, kernel, x, y, noise.kernel, theirs, coincide & is_short)


def reflect(
    normal: Float[Array, " dim"], shift: Float[Array, " dim"], uniform: Float[Array, ""]
) -> tuple[Float[Array, " dim"], Bool[Array, ""]]:
    """Standard normals that are `normal + shift` with the largest probability, else its mirror.

    **Arguments:**

    - `normal`: standard normals `xi`.
    - `shift`: `z`; where it is zero the result is `xi`, bit for bit.
    - `uniform`: in [0, 1).

    **Returns:** the normals, and whether they are `xi + z`.

    Bou-Rabee, Eberle and Zimmer (2020), arXiv 1805.00452, section 2.3.
    """
    square = jnp.sum(shift**2)
    along = jnp.sum(normal * shift)
    coincide = jnp.log(uniform) < -(along + square / 2)
    mirrored = normal - 2 * along / jnp.where(square > 0, square, 1) * shift
    return jnp.where(coincide, normal + shift, mirrored), coincide


def coupling_for(sampler: Sampler) -> Coupling:
    """The coupling that suits a kernel; `TypeError` where none does."""
    inner, _ = _inside(sampler)
    if not inner.facts.adjusted:
        return Synchronous()
    if type(inner) is MALA:
        return Reflection()
    if isinstance(inner, HMC) and not isinstance(inner, LocalScaleHMC):
        return CommonVelocity()
    raise TypeError(
        f"no coupling is known for {name_of(sampler)}; there are those of MALA, HMC, JitteredHMC "
        "and JitteredStepHMC (LocalScaleHMC is that one where its spread is zero), and of all "
        "unadjusted kernels."
    )


def name_of(sampler: Sampler) -> str:
    return type(innermost(sampler)).__name__


def _inside(sampler: Sampler) -> tuple[Any, Metric | None]:
    """The kernel and the metric around it, if there is one."""
    if isinstance(sampler, Preconditioned):
        return sampler.sampler, sampler.metric
    return sampler, None


def _shift(
    x: Any, y: Any, step_size: Float[Array, ""], metric: Metric | None
) -> Float[Array, " dim"]:
    """Distance of the means of two Langevin proposals, in standard deviations."""
    position, score = x.position - y.position, x.score - y.score
    if metric is not None:
        position, score = metric.whiten(position), metric.whiten_score(score)
    return (position + step_size * score) / jnp.sqrt(2 * step_size)


def _both(
    target: Target,
    sampler: Sampler,
    x: State,
    y: State,
    mine: Noise,
    theirs: Noise,
    coincide: Bool[Array, ""] | bool = False,
) -> tuple[State, State]:
    """Both chains after a step; one state where they were together or come to be.

    Coinciding proposals are the same point of two means and two noises, equal but for rounding.
    """
    together = jnp.all(x.position == y.position)
    new_x, info_x = sampler.step(target, x, mine)
    new_y, info_y = sampler.step(target, y, theirs)
    if sampler.facts.adjusted:
        uniform = mine.uniform  # pyright: ignore[reportAttributeAccessIssue]
        both = (uniform < info_x.acceptance_rate) & (uniform < info_y.acceptance_rate)
        meet = together | (coincide & both)
    else:
        meet = jnp.asarray(coincide)
    return new_x, jax.tree.map(lambda a, b: jnp.where(meet, a, b), new_x, new_y)

"""Kinetic dynamics by diffrax's Runge-Kutta methods of strong order two and three."""

import importlib
import importlib.util
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from driftbridge.samplers.base import Facts, Info, unadjusted_info
from driftbridge.samplers.kinetic import Kinetic, KineticScoreState, KineticState, unset
from driftbridge.samplers.noise import normals
from driftbridge.targets.base import Target

# Variances, over the time of the step, of the Brownian increment W, its space-time area H and its
# space-time-time area K (Foster, Lyons and Oberhauser, arXiv 2101.03446).
_VARIANCES = (1.0, 1 / 12, 1 / 720)


class _Increment(eqx.Module):
    """A Brownian path that is known over one step alone."""

    levy: Any

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        return self.levy


class LangevinRungeKutta(Kinetic):
    """A solver of diffrax as a sampler, one step with its own Brownian increments.

    A subclass names the solver, the number of normals a coordinate that it wants, and whether its
    last gradient is the first of the next step. One normal more draws an unset velocity; diffrax's
    coefficients, which have friction in every coordinate, are then the same in all steps and leave
    the compiled loop.

    **Raises** `ImportError` at construction where diffrax is not installed.
    """

    num_normals: ClassVar[int]
    reuses_score: ClassVar[bool]

    def __check_init__(self):
        if importlib.util.find_spec("diffrax") is None:
            raise ImportError(
                f"{type(self).__name__} is a solver of diffrax: pip install 'driftbridge[flows]'."
            )

    def init(
        self, target: Target, position: Float[Array, " dim"]
    ) -> KineticState | KineticScoreState:
        if self.reuses_score:
            return KineticScoreState(position, unset(position), target.score(position))
        return KineticState(position, unset(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> Float[Array, "n dim"]:
        return normals(key, (1 + self.num_normals, *like.shape), like.dtype)

    def step(
        self, target: Target, state: KineticState | KineticScoreState, noise: Float[Array, "n dim"]
    ) -> tuple[KineticState | KineticScoreState, Info]:
        diffrax: Any = importlib.import_module("diffrax")
        position, dtype = state.position, state.position.dtype
        h, friction, u = (
            jnp.asarray(number, dtype) for number in (self.step_size, self.friction, self.u)
        )
        first, *normals = noise
        areas = [jnp.sqrt(h * v) * z for v, z in zip(_VARIANCES, normals, strict=False)]
        kind = (diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)[len(areas) - 2]
        path = _Increment(kind(h, *areas))
        # Coefficients are series below this value of friction times step.
        solver = getattr(diffrax, type(self).__name__)(
            taylor_threshold=0.1 if jnp.finfo(dtype).bits <= 32 else 0.01
        )
        start = position, self.velocity(state, first)

        def terms(gradient):
            return diffrax.MultiTerm(
                diffrax.UnderdampedLangevinDriftTerm(friction, u, gradient),
                diffrax.UnderdampedLangevinDiffusionTerm(friction, u, path),
            )

        def known(x, args):
            return -state.score if isinstance(state, KineticScoreState) else jnp.zeros_like(x)

        with jax.numpy_rank_promotion("allow"):
            # `init` asks for the gradient at the start, which the state has: none is evaluated.
            memory = solver.init(terms(known), 0, h, start, None)
            whole = terms(lambda x, args: -target.score(x))
            (position, velocity), _, _, memory, _ = solver.step(
                whole, 0, h, start, None, memory, False
            )
        new = state._replace(position=position, velocity=velocity)
        if isinstance(new, KineticScoreState):
            new = new._replace(score=-memory.prev_f)
        return new, unadjusted_info(position, int(self.facts.gradients))


class QUICSORT(LangevinRungeKutta):
    """Third-order Runge-Kutta for kinetic dynamics, contractive, with two gradients a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`. Needs diffrax.

    Foster and O'Kane's variant of SORT, definition 1.2 of Foster, Lyons and Oberhauser (2021),
    arXiv 2101.03446, as in diffrax.
    """

    num_normals: ClassVar[int] = 3
    reuses_score: ClassVar[bool] = False

    facts: ClassVar[Facts] = Facts(
        summary="Third-order Runge-Kutta, contractive (diffrax)",
        gradients="2",
        bias="O(h³)",
        strong_order=3.0,
        kinetic=True,
        source="Foster, Lyons & Oberhauser 2021, arXiv 2101.03446",
    )


class ShOULD(LangevinRungeKutta):
    """The shifted-ODE Runge-Kutta method of third order with two gradients a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`. Needs diffrax.

    Foster, Lyons and Oberhauser (2021), arXiv 2101.03446, as in diffrax.
    """

    num_normals: ClassVar[int] = 3
    reuses_score: ClassVar[bool] = True

    facts: ClassVar[Facts] = Facts(
        summary="Shifted-ODE Runge-Kutta of third order (diffrax)",
        gradients="2",
        bias="O(h³)",
        strong_order=3.0,
        kinetic=True,
        source="Foster, Lyons & Oberhauser 2021, arXiv 2101.03446",
    )


class ALIGN(LangevinRungeKutta):
    """The additive-noise Langevin integrator of second order with one gradient a step.

    **Arguments:** `step_size`, `friction`, `u` as in `Kinetic`. Needs diffrax.

    Foster, Lyons and Oberhauser (2021), arXiv 2101.03446, as in diffrax.
    """

    num_normals: ClassVar[int] = 2
    reuses_score: ClassVar[bool] = True

    facts: ClassVar[Facts] = Facts(
        summary="Second-order Langevin integrator (diffrax)",
        gradients="1",
        bias="h²/6",
        strong_order=2.0,
        kinetic=True,
        source="Foster, Lyons & Oberhauser 2021, arXiv 2101.03446",
    )

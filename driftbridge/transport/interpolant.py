"""Stochastic interpolants: a flow and diffusions between two laws, learned from pairs of points."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.runtime.threefry import fold_in
from driftbridge.runtime.training import Trained, Training, train
from driftbridge.transport.affine import gaussians
from driftbridge.transport.base import Fit, Method
from driftbridge.transport.conditions import encoding_of, network_given
from driftbridge.transport.couplings import Coupling
from driftbridge.transport.frames import Whitened, whitened
from driftbridge.transport.gammas import Brownian, Gamma, NoNoise
from driftbridge.transport.integration import RungeKutta4, Scheme
from driftbridge.transport.interpolant_fields import (
    Denoiser,
    Learned,
    OneSidedVelocity,
    ScoreModel,
    Velocity,
    VelocityAndScore,
)
from driftbridge.transport.interpolant_losses import VelocityLoss
from driftbridge.transport.interpolant_map import (
    InterpolantMap,
    StochasticInterpolantMap,
    as_volatility,
)
from driftbridge.transport.learned import account_of
from driftbridge.transport.likeness import check_normal, check_same
from driftbridge.transport.networks import MLP
from driftbridge.transport.pairing import (
    HELD_OUT,
    Parts,
    check_share,
    couplings,
    drawn,
    independent,
)
from driftbridge.transport.points import Sample
from driftbridge.transport.schedules import Linear, Mirror, OneSided, Schedule, check_path
from driftbridge.transport.stochastic_integration import StochasticHeun, StochasticScheme
from driftbridge.transport.whitened_field import WhitenedField, whitened_field


class Interpolant(Method):
    """A stochastic interpolant `x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z`, learned.

    Source and target are whitened, the target after it is pulled back by the affine map; in these
    coordinates a network learns what separates the velocity `b = E[dx_t / dt | x_t]` from that
    between standard normals, and a second one the same of the score. Networks that are zero leave
    the affine map, and the diffusions between Gaussians.

    **Arguments:**

    - `schedule`: a path; or a function of `(points, key=key, weights=weights)`, the target's points
      in the whitened coordinates, that returns one, such as `kinetic_optimal`.
    - `gamma`: the noise. None for `Brownian()`, and for `NoNoise()` on a one-sided path.
    - `coupling`: a function of `(x, y, key=key)` or a `Coupling`, as of `Flow`; None for
      `Independent`, with conditions for `ConditionalOT`. One-sided and mirror paths take none.
    - `score`: `Denoiser()` or `Score()`, what the second network learns where there is noise. A
      one-sided path needs none; without noise there is no score, and the map draws nothing.
    - `held_out`: in `[0, 1)`, share of the points on which early stopping is decided.
    - `network`: an architecture of both networks, or a network for both to start as.
    - `training`: a `Training`, used for each.
    - `epsilon`: the volatility of draws, which can be changed afterwards: see
      `StochasticInterpolantMap`.
    - `num_steps`, `scheme`, `num_noisy_steps`, `noisy_scheme`: of the solutions.

    **Raises:** `ValueError` for a path that does not begin in the source and end in the target, a
    one-sided path whose source is not normal, and a mirror whose source is not like the target.

    Albergo, Boffi and Vanden-Eijnden (2025), "Stochastic interpolants: a unifying framework for
    flows and diffusions", JMLR 26(209), arXiv 2303.08797, sections 2 and 6.
    """

    name: ClassVar[str] = "interpolant"
    takes_condition: ClassVar[bool] = True

    schedule: Schedule | Callable = Linear()
    gamma: Gamma | None = None
    coupling: Coupling | Callable | None = None
    score: ScoreModel = Denoiser()
    held_out: float = eqx.field(static=True, default=HELD_OUT)
    network: Any = MLP()
    training: Training = Training()
    epsilon: Any = eqx.field(default=1.0, converter=as_volatility)
    num_steps: int = eqx.field(static=True, default=20)
    scheme: Scheme = eqx.field(static=True, default=RungeKutta4())
    num_noisy_steps: int = eqx.field(static=True, default=100)
    noisy_scheme: StochasticScheme = eqx.field(static=True, default=StochasticHeun())

    def __check_init__(self):
        check_share(self.held_out)
        if isinstance(self.schedule, Schedule):
            check_path(self.schedule, self._gamma(self.schedule))
            self._check_coupling(self.schedule)

    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> InterpolantMap:
        start = time.perf_counter()
        dtype, dim = source.points.dtype, source.points.shape[1]
        frame = whitened(*gaussians(source, target), dtype)
        schedule = self._schedule(frame, source, target, fold_in(key, 0))
        gamma = self._gamma(schedule)
        random = host_generator(fold_in(key, 1))
        begins, ends = (Parts.of(sample, self.held_out, random) for sample in (source, target))
        coupling = self.coupling
        if coupling is None and target.condition is None:
            coupling = independent
        pairs, held = couplings(begins, ends, coupling, fold_in(key, 1))
        cross = self._cross(pairs, frame, coupling is independent, key)
        base = whitened_field(cross, schedule, gamma, dtype)
        encoding = None if target.condition is None else encoding_of(target.condition)
        network = network_given(encoding, self.network, fold_in(key, 4), dim, dim, dtype)

        def learned(objective, key, training):
            held_out = None if held is None else objective(held, frame, base)
            return train(objective(pairs, frame, base), network, key, training, held_out)

        flow, noise = learned(VelocityLoss, fold_in(key, 5), self.training), None
        if not isinstance(gamma, NoNoise):
            training = self.training.part("score")
            noise = learned(self.score.objective, fold_in(key, 6), training)
        field = self._field(flow, noise, base)
        account = _account(self.name, flow, noise, time.perf_counter() - start)
        solved = (field, frame.base.shift, self.num_steps, self.scheme, frame)
        if not isinstance(field, Learned):
            return InterpolantMap(account, *solved)
        noisy = (self.epsilon, self.num_noisy_steps, self.noisy_scheme)
        return StochasticInterpolantMap(account, *solved, *noisy)

    def _field(self, flow: Trained, noise: Trained | None, base: WhitenedField) -> Velocity:
        """What the networks are together."""
        parts = {"network": flow.model, "base": base}
        path = {"schedule": base.schedule, "gamma": base.gamma}
        if noise is not None:
            return VelocityAndScore(second=noise.model, model=self.score, **parts, **path)
        kind = OneSidedVelocity if isinstance(base.schedule, OneSided) else Velocity
        return kind(**parts, **path)

    def _cross(
        self, coupling: Coupling, frame: Whitened, independent: bool, key: Key[Array, ""]
    ) -> Float[np.ndarray, "dim dim"]:
        """How whitened source and target vary together."""
        if independent:
            dim = frame.unwhitening.shape[0]
            return np.zeros((dim, dim))
        x, y = drawn(coupling, fold_in(key, 7))
        first, second = frame.of_rows(0.0, np.asarray(x)), frame.of_rows(1.0, np.asarray(y))
        return first.T @ second / len(first) - np.outer(first.mean(axis=0), second.mean(axis=0))

    def _schedule(self, frame: Whitened, source: Sample, target: Sample, key) -> Schedule:
        """The path, after a look at whether the data suit it."""
        schedule = self.schedule
        if not isinstance(schedule, Schedule):
            points = frame.of_rows(1.0, target.points)
            schedule = schedule(points, key=key, weights=target.weights)
            check_path(schedule, self._gamma(schedule))
            self._check_coupling(schedule)
        name, key = type(schedule).__name__, fold_in(key, 1)
        starts = (Sample(frame.of_rows(0.0, s.points), s.weights) for s in (source, target))
        if isinstance(schedule, OneSided):
            check_normal(next(starts), name, key)
        if isinstance(schedule, Mirror):
            check_same(*starts, name=name, key=key)
        return schedule

    def _gamma(self, schedule: Schedule) -> Gamma:
        if self.gamma is not None:
            return self.gamma
        return NoNoise() if isinstance(schedule, OneSided) else Brownian()

    def _check_coupling(self, schedule: Schedule) -> None:
        if self.coupling is not None and isinstance(schedule, OneSided | Mirror):
            raise ValueError(
                f"{type(schedule).__name__} pairs nothing: leave the coupling as None, or take a "
                "path such as Linear()."
            )


def _account(name: str, flow: Trained, noise: Trained | None, seconds: float) -> Fit:
    """How both networks came about, the numbers of the second beginning with `score_`."""
    account = account_of(name, flow, seconds)
    if noise is None:
        return account
    second = account_of(name, noise, seconds)
    named = tuple((f"score_{label}", number) for label, number in second.numbers)
    return dataclasses.replace(
        account,
        converged=account.converged and second.converged,
        messages=account.messages + tuple(f"of the score: {text}" for text in second.messages),
        numbers=account.numbers + named,
        curves=(("velocity", flow.curve), ("score", noise.curve)),
    )

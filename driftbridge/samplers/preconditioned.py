"""Any sampler in the coordinates of any metric."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.runtime.batching import outlined_alone
from driftbridge.samplers.base import Info, Noise, Sampler, State, Wrapper
from driftbridge.samplers.metric import Metric
from driftbridge.targets.base import Target


class WhitenedTarget(Target):
    """The target as a function of `z`, where `x = origin + L z`.

    `score` and `value_and_score` call the target's own, so its form for batches of chains is used.
    """

    dim: int = eqx.field(static=True)
    target: Target
    origin: Float[Array, " dim"]
    metric: Metric

    def position(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`x` in the user's coordinates."""
        return self.origin + self.metric.unwhiten(z)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return self.target.log_density(self.position(x))

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.metric.whiten_score(self.target.score(self.position(x)))

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        value, score = self.target.value_and_score(self.position(x))
        return value, self.metric.whiten_score(score)


class Preconditioned(Wrapper):
    """The sampler's dynamics in `z`, where `x = L z`: mass matrix `(L L^T)^-1`.

    For a sampler that uses the position only through the target. Such a sampler does the same
    from every origin, so each step starts at `z = 0` with the origin at the present position: a
    rejected move returns it bit for bit, and no digits are lost where `|x|` is large. In the state
    position and score are in the user's coordinates (they outlive a change of metric), the
    velocity is in `z`; energies are those of the dynamics in `z`.

    **Arguments:**

    - `sampler`: its step size is a time of the dynamics in `z`.
    - `metric`: `L`.
    """

    sampler: Sampler
    metric: Metric

    def init(self, target: Target, position: Float[Array, " dim"]) -> State:
        # Position and score are the user's in either case; the velocity is unset.
        return self.sampler.init(target, position)

    def step(self, target: Target, state: State, noise: Noise) -> tuple[State, Info]:
        whitened = WhitenedTarget(state.position.size, target, state.position, self.metric)
        inner, info = self.sampler.step(whitened, _whitened(self.metric, state), noise)
        return _unwhitened(self.metric, state.position, inner), info


@outlined_alone
def _whitened(metric: Metric, state: State) -> State:
    return map_fields(state, jnp.zeros_like, metric.whiten_score)


@outlined_alone
def _unwhitened(metric: Metric, origin: Float[Array, " dim"], state: State) -> State:
    return map_fields(state, lambda z: origin + metric.unwhiten(z), metric.unwhiten_score)


def map_fields(state: State, position: Callable, score: Callable) -> State:
    """The state with its positions and scores replaced by functions of them, nested states too."""

    def mapped(name, value):
        if name == "position":
            return position(value)
        if name == "score":
            return score(value)
        return map_fields(value, position, score) if isinstance(value, tuple) else value

    return state._replace(**{name: mapped(name, v) for name, v in state._asdict().items()})

"""A sampler that the library does not ship: Heun's method for the overdamped Langevin dynamics.

python examples/own_sampler.py
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

import driftbridge as db
from driftbridge.samplers import Facts, Info, Sampler
from driftbridge.samplers.base import unadjusted_info
from driftbridge.samplers.langevin import ScoreState
from driftbridge.targets.leaves import check_positive


class Heun(Sampler):
    """Heun's method for `dx = s(x) dt + sqrt(2) dW`, weakly of second order.

    `y = x + h s(x) + sqrt(2h) xi`, `x' = x + h (s(x) + s(y)) / 2 + sqrt(2h) xi`. On a Gaussian of
    curvature `λ`, with `a = hλ`, the stationary variance is `(2 - a) / (λ (2 - a + a²/2))`; stable
    for `a < 2`. Two gradients a step.

    **Arguments:**

    - `step_size`: `h > 0`, time of the diffusion.

    Kloeden and Platen (1992), section 15.1.
    """

    step_size: Float[Array, ""] | float = 0.1

    facts: ClassVar[Facts] = Facts(
        summary="Heun's method for the overdamped diffusion",
        gradients="2",
        bias="-h²/4",
        strong_order=1.0,
        energy_order=3,
        source="Kloeden & Platen 1992, sec. 15.1",
    )

    def __check_init__(self):
        check_positive(step_size=self.step_size)

    def init(self, target: db.Target, position: Float[Array, " dim"]) -> ScoreState:
        return ScoreState(position, target.score(position))

    def noise(self, key: Key[Array, ""], like: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return jax.random.normal(key, like.shape, like.dtype)

    def step(
        self, target: db.Target, state: ScoreState, noise: Float[Array, " dim"]
    ) -> tuple[ScoreState, Info]:
        h, x, score = self.step_size, state.position, state.score
        path = jnp.sqrt(2 * h) * noise
        predicted = target.score(x + h * score + path)
        position = x + h / 2 * (score + predicted) + path
        return ScoreState(position, target.score(position)), unadjusted_info(position, 2)


if __name__ == "__main__":
    target = db.targets.DenseGaussian([0.0, 0.0], [[2.0, 0.9], [0.9, 1.0]])
    print(db.sample(target, Heun(), num_samples=20_000))

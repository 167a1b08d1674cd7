"""Starts that have found their way to where the mass is, each chain by itself."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from driftbridge.runtime.threefry import fold_in
from driftbridge.samplers.initial import Grouped, Initial, UniformStart
from driftbridge.samplers.mala import MALA


class Approach(Initial):
    """Draws starts from another strategy and moves each to the bulk of the target by itself.

    Warm-up shares one step size over all chains, and one that suits most of them can never be
    accepted by a chain that starts where the density is far steeper: it stays there, and its
    distance enters the metric of all. Here every chain takes `num_steps` steps of MALA with a step
    size of its own, `log h += rate - 0.574` after each, `rate` being the probability with which
    the move was accepted. Cost: `num_steps` gradients a chain.

    **Arguments:**

    - `start`: the strategy that draws the first positions.
    - `num_steps`: steps of each chain, at least 1.

    The rule for the step size: Andrieu and Thoms (2008), algorithm 4.
    """

    start: Initial = UniformStart(2.0)
    num_steps: int = eqx.field(static=True, default=300)

    def __check_init__(self):
        if isinstance(self.start, Grouped):
            raise ValueError(
                "Approach moves every chain by itself, so groups would not share a start; write "
                "Grouped(Approach(...), group_size)."
            )
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {self.num_steps}.")

    def propose(self, target, key, like):
        first, steps = fold_in(key, 0), fold_in(key, 1)
        goal = MALA.facts.acceptance

        def move(i, carry):
            state, log_step = carry
            sampler = MALA(jnp.exp(log_step))
            noise = sampler.noise(fold_in(steps, i), like)
            state, info = sampler.step(target, state, noise)
            return state, log_step + info.acceptance_rate - goal

        state = MALA().init(target, self.start.propose(target, first, like))
        carry = (state, jnp.log(jnp.full((), 0.1, like.dtype)))
        state, _ = lax.fori_loop(0, self.num_steps, move, carry)
        return state.position

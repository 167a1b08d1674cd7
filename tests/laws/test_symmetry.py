"""Kinetic dynamics depends on (friction, u, step size) through two numbers only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.samplers import KINETIC, SAMPLERS
from tests.laws.targets import LogCosh


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", KINETIC)
def test_rescaled_time_gives_the_same_path(name):
    # (friction, u, h) ~ (c friction, c^2 u, h / c), velocities times c. A power of two changes
    # no mantissa, so what remains is the order of roundings: a few ulp a step, over 50 steps.
    target, c = LogCosh(2), 4.0
    slow = SAMPLERS[name](step_size=0.2, friction=1.5, u=0.8)
    fast = SAMPLERS[name](step_size=0.2 / c, friction=1.5 * c, u=0.8 * c**2)
    start = jnp.asarray([0.5, -2.0])

    def path(sampler):
        keys = jax.random.split(jax.random.key(3), 50)

        def step(state, key):
            state, _ = sampler.step(target, state, sampler.noise(key, start))
            return state, (state.position, state.velocity)

        return jax.jit(lambda: jax.lax.scan(step, sampler.init(target, start), keys)[1])()

    (x, v), (x_fast, v_fast) = path(slow), path(fast)
    np.testing.assert_allclose(x_fast, x, atol=1e-12)
    np.testing.assert_allclose(v_fast / c, v, atol=1e-12)

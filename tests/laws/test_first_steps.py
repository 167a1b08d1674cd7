"""A chain that starts at exact positions keeps their law up to the method's own bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import linear_probe
from tests.laws.linear_probe import probe, push, stationary
from tests.laws.samplers import KINETIC, SAMPLERS
from tests.laws.targets import Quadratic

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", KINETIC)
def test_variance_after_1_3_10_steps(name):
    sampler = SAMPLERS[name](step_size=0.1)
    fresh, later = probe(sampler, is_fresh=True), probe(sampler)
    # The position is exact; the velocity is unset, and must not matter.
    moment, variances = np.diag([1.0, 1e6]), []
    for step in range(10):
        moment = push(*(fresh if step == 0 else later), moment)
        variances.append(moment[0, 0])
    # `S_n = S + A^n (S_0 - S) A^n'`, and `S_0 - S` is minus the bias, correlation of position and
    # velocity included (words that are not palindromes have one); A contracts up to rotations.
    bias = np.max(np.abs(stationary(sampler) - np.eye(2)))
    np.testing.assert_allclose(np.array(variances)[[0, 2, 9]], 1, atol=2 * bias)


@pytest.mark.parametrize("name", KINETIC)
def test_first_velocity_is_a_full_draw_from_equilibrium(name):
    # At a step so small that nothing else happens, the velocity after one step has variance u.
    sampler = SAMPLERS[name](step_size=1e-9, u=2.0)
    moment = push(*probe(sampler, is_fresh=True), np.diag([1.0, 1e6]))
    assert moment[1, 1] == pytest.approx(2.0, abs=1e-8)
    assert moment[0, 0] == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("name", KINETIC)
def test_a_refused_state_draws_its_velocity_again(name):
    sampler, target = SAMPLERS[name](), Quadratic(1.0)
    step = jax.jit(lambda state, noise: sampler.step(target, state, noise)[0])
    state = sampler.init(target, jnp.ones(1))
    assert np.isinf(state.velocity).all()
    noise = sampler.noise(jax.random.key(0), state.position)
    state = step(state, noise)
    assert np.isfinite(state.velocity).all()
    spoiled = sampler.refuse(state._replace(velocity=jnp.full(1, jnp.nan)))
    again = step(spoiled, noise)
    assert np.isfinite(linear_probe.phase_of(again)).all()

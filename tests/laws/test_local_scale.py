"""Local step sizes: an involution of unit volume in position, velocity and the scale's normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.base import Point
from driftbridge.samplers.hmc import JitteredStepHMC
from driftbridge.samplers.local_scale import LocalScaleHMC, LocalScaleNoise, log_scale
from driftbridge.samplers.metropolis import MetropolisNoise
from driftbridge.targets import NealFunnel
from tests.laws.targets import LogCosh

pytestmark = pytest.mark.usefixtures("x64")

SAMPLER = LocalScaleHMC(0.5, 1.4, spread=0.7)


def point(target, x):
    return Point(x, *target.value_and_score(x))


def verlet(target, x, v, h):
    v = v + h / 2 * target.score(x)
    x = x + h * v
    return x, v + h / 2 * target.score(x)


def move(target, x, v, z):
    """Where a transition leads, and the velocity and normal that lead back, by hand."""
    factor = jnp.exp(log_scale(target.score(x)) + SAMPLER.spread * z)
    end, velocity = x, v
    for _ in range(3):  # 1.4 / 0.5 steps
        end, velocity = verlet(target, end, velocity, 1.4 / 3 * factor)
    back = z + (log_scale(target.score(x)) - log_scale(target.score(end))) / SAMPLER.spread
    return end, -velocity, back


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "x"),
    [(LogCosh(3), [2.9, -3.2, 2.5]), (NealFunnel(3), [-2.0, 0.9, 0.7])],
    ids=["LogCosh", "NealFunnel"],
)
def test_a_move_is_an_involution_of_unit_volume_accepted_by_its_energy(target, x):
    # Outside the band of usual sizes, where the scale acts: |s|^2 / d is 4 and more.
    x, v, z = jnp.asarray(x), jnp.asarray([0.3, 0.5, -0.9]), jnp.asarray(0.4)
    assert abs(float(log_scale(target.score(x)))) > 0
    end, back, normal = move(target, x, v, z)
    again = move(target, end, back, normal)
    # Round-off of some tens of operations of size ten.
    for found, expected in zip(again, (x, v, z), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-11)

    def flat(w):
        return jnp.concatenate([jnp.ravel(a) for a in move(target, w[:3], w[3:6], w[6])])

    volume = np.linalg.det(jax.jacfwd(flat)(jnp.concatenate([x, v, z[None]])))
    assert abs(volume) == pytest.approx(1, abs=1e-10)

    def energy(x, v, z):
        return target.potential(x) + v @ v / 2 + z**2 / 2

    # There and back: one of the two is uphill.
    change = float(energy(end, back, normal) - energy(x, v, z))
    assert abs(change) > 1e-3
    for sign, (start, velocity, scale, goal) in zip(
        (1, -1), ((x, v, z, end), (end, back, normal, x)), strict=True
    ):
        noise = LocalScaleNoise(velocity, scale, jnp.zeros(()))
        state, info = SAMPLER.step(target, point(target, start), noise)
        expected = min(1, np.exp(-sign * change))
        assert float(info.acceptance_rate) == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(state.position, goal, atol=1e-11)


def test_without_spread_it_is_one_step_size():
    target, x = LogCosh(3), jnp.asarray([0.3, -1.2, 0.8])
    v, u = jnp.asarray([0.3, 0.5, -0.9]), jnp.asarray(0.5)
    for step in (0, 1, 5):
        local = LocalScaleHMC(0.5, 1.4, 0.3, spread=0.0).at_step(jnp.int32(step))
        plain = JitteredStepHMC(0.5, 1.4, 0.3).at_step(jnp.int32(step))
        ours, _ = local.step(target, point(target, x), LocalScaleNoise(v, jnp.asarray(2.0), u))
        theirs, _ = plain.step(target, point(target, x), MetropolisNoise(v, u))
        # The jitter is a float32 number.
        np.testing.assert_allclose(ours.position, theirs.position, rtol=1e-6)


@pytest.mark.slow
def test_the_scale_of_a_gaussian_is_left_alone():
    # log |s| has standard deviation 1 / sqrt(2 d), so the band of 1.5 / sqrt(d) holds 96.6 % of a
    # normal law; a thousand draws tell a share to 0.6 %, and at d = 100 the law is a little skew.
    scores = jax.random.normal(jax.random.key(0), (1000, 100))
    assert float(jnp.mean(jax.vmap(log_scale)(scores) == 0)) > 0.93
    assert float(log_scale(100 * scores[0])) == pytest.approx(-np.log(100), abs=0.3)

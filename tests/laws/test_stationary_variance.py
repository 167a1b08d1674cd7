"""The linear probe against closed forms: stationary variances and stability of every scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import linear_probe
from tests.laws.closed_forms import CLOSED_FORMS, word
from tests.laws.samplers import KINETIC, SAMPLERS, UNADJUSTED
from tests.laws.targets import Quadratic

pytestmark = pytest.mark.usefixtures("x64")

# (step size, friction, u, curvature): each scheme is stable at all of them.
SETTINGS = [(0.3, 1.0, 1.0, 1.0), (0.1, 3.0, 2.0, 2.5)]


def make(name, step_size, friction=1.0, u=1.0):
    numbers = {"friction": friction, "u": u} if name in KINETIC else {}
    return SAMPLERS[name](step_size=step_size, **numbers)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
def test_stationary_variance(name, setting):
    h, friction, u, curvature = setting
    moment = linear_probe.stationary(make(name, h, friction, u), curvature)
    x, v = CLOSED_FORMS[name](h, friction, u, curvature)
    # Round-off of the Lyapunov solve, whose condition number is about 1 / (contraction) < 1e3.
    assert curvature * moment[0, 0] == pytest.approx(x, rel=1e-10)
    if v is not None:
        assert moment[1, 1] / u == pytest.approx(v, rel=1e-10)


@pytest.mark.parametrize("name", UNADJUSTED)
def test_step_is_the_affine_map(name):
    sampler, target = make(name, 0.3), Quadratic(2.0)
    noise = sampler.noise(jax.random.key(1), jnp.zeros(1))
    drift, spread = jax.jit(lambda noise: linear_probe.affine(sampler, noise, 2.0))(noise)
    phase = jnp.asarray([0.7, -1.1])[: drift.shape[0]]
    state = linear_probe.state_of(sampler, target, phase)
    new = linear_probe.phase_of(jax.jit(sampler.step)(target, state, noise)[0])
    normals, _ = linear_probe.split_noise(noise, 1)
    np.testing.assert_allclose(new, drift @ phase + spread @ normals, atol=1e-13)


def test_merging_the_outer_refreshments_keeps_position_and_velocity_laws():
    # O(h/2) BAB O(h/2) and O(h) BAB have the same stationary law, not only the same positions.
    np.testing.assert_allclose(
        CLOSED_FORMS["OBABO"](0.3, 1.0, 1.0, 1.0), word("OBABO", 0.3, 1.0, 1.0, 1.0), rtol=1e-12
    )
    # For O(h/2) ABA O(h/2) the position's law is the same; the velocity's differs by the half O.
    moment = linear_probe.stationary(make("OABAO", 0.3))
    assert moment[0, 0] == pytest.approx(word("OABAO", 0.3, 1.0, 1.0, 1.0)[0], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "order", "leading"),
    [
        ("LMC", 1, 1 / 2),
        ("RandomizedMidpoint", 3, 1 / 6),
        ("KLMC", 1, 1 / 4),
        ("RandomizedMidpointKinetic", 3, 1 / 48),
        ("OBABO", 2, 1 / 4),
        ("UBU", 2, -1 / 6),
        ("BUB", 2, 1 / 12),
    ],
)
def test_leading_bias_is_as_stated(name, order, leading):
    # At friction 2 and u = λ = 1; the next order is within 5 % of the first at h = 0.02.
    h = 0.02
    bias = linear_probe.stationary(make(name, h, 2.0))[0, 0] - 1
    assert bias / h**order == pytest.approx(leading, rel=0.05)


def edge(name, friction):
    """The largest stable step at unit curvature, by bisection on the mean square rate."""
    low, high = 0.01, 40.0
    for _ in range(12):
        middle = np.sqrt(low * high)
        stable = linear_probe.mean_square_rate(make(name, middle, friction)) < 1
        low, high = (middle, high) if stable else (low, middle)
    return np.sqrt(low * high)


@pytest.mark.parametrize(
    ("name", "friction", "largest"),
    [
        ("LMC", 1.0, 2.0),
        ("KLMC", 0.1, 0.20),
        ("RandomizedMidpointKinetic", 0.1, 1.1),
        ("BAOAB", 0.1, 2.0),
        ("OBABO", 1.0, 2.0),
        ("ABOBA", 10.0, 2.0),
        ("KLMC", 1.0, 3.9),
        ("RandomizedMidpointKinetic", 1.0, 2.5),
        ("UBU", 1.0, 2.35),
        ("BUB", 10.0, 19.9),
        ("RandomizedMidpointKinetic", 10.0, 15.9),
    ],
)
def test_stability_edge(name, friction, largest):
    # Published edges were scanned at a resolution of 2.5 %.
    assert edge(name, friction) == pytest.approx(largest, rel=0.04)

"""Rates at which chains forget their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.linear_probe import mean_square_rate, phase_of, state_of
from tests.laws.samplers import KINETIC, SAMPLERS
from tests.laws.targets import LogCosh

pytestmark = pytest.mark.usefixtures("x64")

WORDS = ("OBABO", "BAOAB", "ABOBA", "UBU", "BUB", "BUBUB", "OABAO", "BOBA")


@pytest.mark.parametrize("name", WORDS)
def test_splittings_contract_volume_exactly(name):
    # B and A keep phase volume, O and U shrink it by exp(-γt): with complex eigenvalues (λ > γ²/4)
    # both have the modulus exp(-γh/2) of the exact flow, at any stable step.
    h, friction, curvature = 0.4, 1.0, 4.0
    rate = mean_square_rate(SAMPLERS[name](step_size=h, friction=friction), curvature)
    assert rate == pytest.approx(np.exp(-friction * h), rel=1e-12)


def randomized(a):
    return (1 - a) ** 2 + a**2 * (1 - a) + a**4 / 3


def poisson(a, k=3):
    i = np.arange(k)
    mean = 1 - a + a**2 * (k - 1) / (2 * k)
    return mean**2 + a**4 * (1 - 1 / k) * np.sum(i**2) / k**3


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("LMC", lambda a: (1 - a) ** 2),
        ("RandomizedMidpoint", randomized),
        ("PoissonMidpoint", poisson),
    ],
)
def test_overdamped_rates(name, rate):
    # E[(1 - a + a² U)²] and the like: x' = (1 - a + a² F) x with F the weighted random times.
    h, curvature = 0.3, 1.5
    measured = mean_square_rate(SAMPLERS[name](step_size=h), curvature)
    assert measured == pytest.approx(rate(h * curvature), rel=1e-12)


@pytest.mark.parametrize("name", KINETIC)
def test_kinetic_rate_approaches_that_of_the_flow(name):
    # Underdamped: the square of the flow contracts as exp(-γt). First-order schemes are off by
    # λh of it (KLMC), the others by h² or less.
    h, friction, curvature = 0.02, 1.0, 2.0
    rate = mean_square_rate(SAMPLERS[name](step_size=h, friction=friction), curvature)
    assert -np.log(rate) / h == pytest.approx(friction, rel=1.1 * curvature * h)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LMC", *KINETIC])
def test_chains_with_common_noise_approach(name):
    # For curvatures in [m, M] = [1, 3] two Langevin diffusions with common noise approach as
    # exp(-m t), two kinetic ones with friction >= sqrt(M + m) as exp(-(m / γ) t) in the norm
    # |v + γ x|² + |v|² (Dalalyan and Riou-Durand 2020, theorem 1), along every path.
    h, friction, steps = 0.05, 3.0, 100
    kinetic = name in KINETIC
    sampler = SAMPLERS[name](step_size=h, **({"friction": friction} if kinetic else {}))
    target = LogCosh(1)

    def distance(a, b):
        gap = phase_of(a) - phase_of(b)
        if not kinetic:
            return jnp.abs(gap[0])
        return jnp.sqrt((gap[1] + friction * gap[0]) ** 2 + gap[1] ** 2)

    def both(phases, key):
        noises = jax.vmap(lambda key: sampler.noise(key, jnp.zeros(1)))(
            jax.random.split(key, steps)
        )
        start = [state_of(sampler, target, phase) for phase in phases]

        def step(pair, noise):
            return [sampler.step(target, state, noise)[0] for state in pair], None

        pair, _ = jax.lax.scan(step, start, noises)
        return distance(*pair) / distance(*start)

    phases = jax.random.normal(jax.random.key(0), (50, 2, 2)) * 3
    ratios = jax.jit(jax.vmap(both))(phases, jax.random.split(jax.random.key(1), 50))
    time = h * steps
    rate = 1 / friction if kinetic else 1.0
    # Nearer the origin the curvature is larger, so the bound of the flow leaves room for h.
    assert np.max(ratios) <= np.exp(-rate * time)

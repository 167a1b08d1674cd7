"""Trajectories of HMC, their lengths, and the kernels that are special cases of one another."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.base import Point
from driftbridge.samplers.hmc import HMC, MAX_STEPS, JitteredHMC, leapfrog, radical_inverse
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.malt import MALT
from driftbridge.samplers.metropolis import MetropolisNoise
from driftbridge.targets.base import Target
from tests.laws.targets import LogCosh, Quadratic


@pytest.mark.usefixtures("x64")
def test_leapfrog_on_a_quadratic_is_its_closed_form():
    # A rotation by n theta in (x, v / sqrt(1 - h^2/4)), with cos theta = 1 - h^2 / 2.
    target, h, n = Quadratic(1.0, 1), 0.7, 9
    start = Point(jnp.asarray([0.8]), *target.value_and_score(jnp.asarray([0.8])))
    end, velocity = jax.jit(leapfrog)(target, start, jnp.asarray([-0.3]), jnp.asarray(h), n)
    angle, stretch = n * math.acos(1 - h**2 / 2), math.sqrt(1 - h**2 / 4)
    x = 0.8 * math.cos(angle) - 0.3 / stretch * math.sin(angle)
    v = -0.3 * math.cos(angle) - 0.8 * stretch * math.sin(angle)
    np.testing.assert_allclose([end.position[0], velocity[0]], [x, v], atol=1e-13)
    np.testing.assert_allclose([end.log_density, end.score[0]], [-(x**2) / 2, -x], atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("step_size", "length", "count"),
    [(0.1, 0.3, 3), (0.1, 0.31, 4), (0.7, 2.1, 3), (0.3, 0.05, 1), (1e-9, 1.0, MAX_STEPS)],
)
def test_steps_fill_the_trajectory(step_size, length, count, dtype):
    with jax.enable_x64(True):
        num_steps, size = HMC(step_size, length).steps(jnp.dtype(dtype))
    assert num_steps == count
    assert size.dtype == dtype
    assert float(size) == pytest.approx(min(length / count, step_size), rel=1e-6)


def test_radical_inverse_reverses_bits():
    steps = np.concatenate([np.arange(64), 2**23 - 1 - np.arange(8), [12_345_678, 2**31 - 1]])
    exact = [int(f"{step % 2**23:023b}"[::-1], 2) / 2**23 + 2**-24 for step in steps]
    inverse = jax.vmap(radical_inverse)(jnp.asarray(steps, jnp.int32))
    np.testing.assert_array_equal(inverse, exact)


def test_jittered_lengths_fill_their_interval_evenly():
    sampler, count = JitteredHMC(0.1, 2.0, 0.5), 64
    lengths = jax.vmap(lambda step: sampler.at_step(step).trajectory_length)(
        jnp.arange(count, dtype=jnp.int32)
    )
    # One length in each of 64 equal cells of [1, 3].
    cells = np.floor((np.asarray(lengths) - 1) / 2 * count)
    np.testing.assert_array_equal(np.sort(cells), np.arange(count))


@pytest.mark.parametrize("jitter", [0.0, 1.5])
def test_jitter_outside_its_range_is_refused(jitter):
    with pytest.raises(ValueError, match=r"jitter must be .*; got"):
        JitteredHMC(jitter=jitter)


class Logarithmic(Target):
    """Its log density takes a logarithm, its score does not."""

    dim: int = eqx.field(static=True, default=3)

    def log_density(self, x):
        return -2 * jnp.sum(jnp.log1p(x**2))

    def score(self, x):
        return -4 * x / (1 + x**2)

    def value_and_score(self, x):
        return self.log_density(x), self.score(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [HMC(), JitteredHMC(), MALT()], ids=lambda sampler: type(sampler).__name__
)
def test_the_loop_of_a_batch_is_shared_and_evaluates_scores_alone(sampler):
    target, positions = Logarithmic(3), jnp.ones((5, 3))
    noise = jax.vmap(lambda key: sampler.noise(key, positions[0]))(
        jax.random.split(jax.random.key(0), 5)
    )
    states = jax.vmap(lambda x: sampler.init(target, x))(positions)

    def step(number, states, noise):
        now = sampler.at_step(number)
        return jax.vmap(lambda state, noise: now.step(target, state, noise))(states, noise)

    program = jax.make_jaxpr(step)(jnp.asarray(3), states, noise).jaxpr
    (loop,) = [e for e in program.eqns if e.primitive.name in ("while", "scan")]
    if loop.primitive.name == "while":
        # A trip count that depended on the chain would have a vector for its predicate.
        condition = loop.params["cond_jaxpr"].jaxpr
        assert [e.primitive.name for e in condition.eqns] == ["lt"]
        body = loop.params["body_jaxpr"]
    else:
        body = loop.params["jaxpr"]
    assert "log1p" not in str(body)
    assert str(program).count("log1p") == 1


def test_energy_errors_are_right_in_float32_in_a_thousand_dimensions():
    # U is about 1700 at both ends, where float32 resolves 1.2e-4; a sum of a thousand terms has
    # an error of some of these.
    target = LogCosh(1000)
    rng = np.random.default_rng(0)
    x, normal = rng.normal(size=(2, 1000)) * [[0.6], [1.0]]
    errors = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(True):
            position = jnp.asarray(x, dtype)
            sampler = HMC(0.2, 2.0)
            noise = MetropolisNoise(jnp.asarray(normal, dtype), jnp.zeros((), dtype))
            step = jax.jit(lambda x, noise, s=sampler: s.step(target, s.init(target, x), noise)[1])
            errors[dtype] = float(step(position, noise).energy_error)
    assert errors["float32"] == pytest.approx(errors["float64"], abs=1e-3)


def end_of(sampler, target, x, normal):
    noise = MetropolisNoise(normal, jnp.zeros(()))
    state, info = jax.jit(lambda x: sampler.step(target, sampler.init(target, x), noise))(x)
    return state.position, info.energy_error, info.energy


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("general", "special", "shape"),
    [
        (MALT(0.4, 1e-14, 5), HMC(0.4, 2.0), (5, 3)),
        (MALT(0.4, 1.0, 1), MALA(0.08), (1, 3)),
        (HMC(0.4, 0.4), MALA(0.08), (3,)),
        (AdjustedKinetic(0.4, 1.0), MALA(0.08), (3,)),
        (AdjustedKinetic(0.2, 1.0, 4.0), MALA(0.08), (3,)),
    ],
)
def test_kernels_contain_one_another(general, special, shape):
    # Without friction MALT is HMC; one step from a fresh velocity is MALA of step size u h^2 / 2.
    # Friction 1e-14 adds noise of size 3e-7 to a velocity.
    tolerance = 1e-5 if shape == (5, 3) else 1e-13
    target, x = LogCosh(3), jnp.asarray([0.4, -1.0, 1.5])
    normal = jax.random.normal(jax.random.key(0), shape)
    first = normal if normal.ndim == 1 else normal[0]
    ends = end_of(general, target, x, normal), end_of(special, target, x, first)
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.mark.parametrize("make", [MALA, HMC, JitteredHMC, MALT, AdjustedKinetic])
def test_a_target_that_is_not_finite_is_refused_and_diverges(make):
    class Wall(LogCosh):
        def log_density(self, x):
            return jnp.where(x[0] > 0, jnp.nan, super().log_density(x))

        def score(self, x):
            return jnp.where(x[0] > 0, jnp.nan, super().score(x))

    sampler, x = make(0.5), jnp.asarray([-1e-3, 0.0, 0.0])
    noise = sampler.noise(jax.random.key(0), x)
    noise = noise._replace(normal=jnp.full_like(noise.normal, 2.0))
    step = jax.jit(lambda x, noise: sampler.step(Wall(3), sampler.init(Wall(3), x), noise))
    state, info = step(x, noise)
    np.testing.assert_array_equal(state.position, x)
    assert bool(info.is_divergent)
    assert info.acceptance_rate == 0
    assert np.isfinite(info.energy)

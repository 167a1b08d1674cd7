"""Metrics, and samplers in their coordinates."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from driftbridge.runtime.batching import batched_score
from driftbridge.samplers.adjusted_kinetic import AdjustedKinetic
from driftbridge.samplers.hmc import HMC
from driftbridge.samplers.langevin import LMC
from driftbridge.samplers.mala import MALA
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.targets.base import Target
from tests.laws.samplers import SAMPLERS
from tests.laws.targets import LogCosh

COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
STEP_SIZE = 0.3


class Gaussian(Target):
    """`N(mean, precision^-1)`."""

    mean: Float[Array, " dim"]
    precision: Float[Array, "dim dim"]
    dim: int = eqx.field(static=True, default=3)

    def log_density(self, x):
        return -(x - self.mean) @ self.precision @ (x - self.mean) / 2


class Shifted(Target):
    """Another target, moved."""

    target: Target
    shift: Float[Array, " dim"]
    dim: int = eqx.field(static=True, default=3)

    def log_density(self, x):
        return self.target.log_density(x - self.shift)


def path(sampler, target, position, count=5):
    """States and infos of some steps."""

    def step(state, t):
        noise = sampler.noise(jax.random.fold_in(jax.random.key(7), t), position)
        state, info = sampler.at_step(t).step(target, state, noise)
        return state, (state, info)

    return jax.lax.scan(step, sampler.init(target, position), jnp.arange(count))[1]


path = eqx.filter_jit(path)


# Every sampler is under these laws; those of one family share what could fail.
QUICK = ("BAOAB", "HMC", "AdjustedKinetic")


@pytest.fixture(
    params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS]
)
def sampler(request):
    return SAMPLERS[request.param](step_size=STEP_SIZE)


@pytest.fixture(params=["diagonal", "dense"])
def metric(request):
    if request.param == "diagonal":
        return DiagonalMetric.from_variance(jnp.asarray(np.diag(COVARIANCE)))
    return DenseMetric.from_covariance(jnp.asarray(COVARIANCE))


def matrix(linear_map):
    return np.asarray(jax.vmap(linear_map)(jnp.eye(3))).T


@pytest.mark.usefixtures("x64")
def test_maps_of_a_metric_are_inverse_and_adjoint(metric):
    lower = matrix(metric.unwhiten)
    expected = np.diag(np.diag(COVARIANCE)) if isinstance(metric, DiagonalMetric) else COVARIANCE
    np.testing.assert_allclose(lower @ lower.T, expected, atol=1e-14)
    np.testing.assert_allclose(lower @ matrix(metric.whiten), np.eye(3), atol=1e-14)
    np.testing.assert_allclose(matrix(metric.whiten_score), lower.T, atol=1e-14)
    np.testing.assert_allclose(lower.T @ matrix(metric.unwhiten_score), np.eye(3), atol=1e-14)


def test_a_metric_refuses_scales_that_are_none():
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        DiagonalMetric(jnp.asarray([1.0, 0.0]))


# Positions over five steps: some hundred roundings of numbers of size one, in float64.
ROUND_OFF = 1e-12


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_sampler_in_the_metric_of_a_gaussian_is_the_whitened_sampler(sampler, metric):
    lower = matrix(metric.unwhiten)
    mean = np.array([1.0, -2.0, 0.5])
    target = Gaussian(jnp.asarray(mean), jnp.asarray(np.linalg.inv(lower @ lower.T)))
    whitened = Gaussian(jnp.zeros(3), jnp.eye(3))
    z = jnp.asarray([0.4, -1.0, 1.5])
    x = jnp.asarray(mean + lower @ np.asarray(z))
    states, infos = path(Preconditioned(sampler, metric), target, x)
    expected, expected_infos = path(sampler, whitened, z)
    positions = mean + np.asarray(expected.position) @ lower.T
    np.testing.assert_allclose(states.position, positions, atol=ROUND_OFF)
    if "velocity" in states._fields:  # stays in z
        np.testing.assert_allclose(states.velocity, expected.velocity, atol=ROUND_OFF)
    if "score" in states._fields:  # is the user's
        np.testing.assert_allclose(
            states.score, jax.vmap(target.score)(states.position), atol=ROUND_OFF
        )
    if infos.energy_error is not None:
        np.testing.assert_allclose(infos.energy_error, expected_infos.energy_error, atol=ROUND_OFF)
        np.testing.assert_allclose(infos.energy, expected_infos.energy, atol=ROUND_OFF)


@pytest.mark.usefixtures("x64")
def test_the_identity_changes_nothing(sampler):
    target, x = LogCosh(3), jnp.asarray([0.4, -1.0, 1.5])
    states, _ = path(Preconditioned(sampler, DiagonalMetric(jnp.ones(3))), target, x)
    expected, _ = path(sampler, target, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ROUND_OFF), states, expected)


@pytest.mark.usefixtures("x64")
def test_samplers_do_the_same_from_every_origin(sampler):
    target, x, shift = LogCosh(3), jnp.asarray([0.4, -1.0, 1.5]), jnp.asarray([3.0, 50.0, -7.0])
    here, _ = path(sampler, target, x)
    there, _ = path(sampler, Shifted(target, shift), x + shift)
    # Rounding of numbers of size 50 rather than one.
    np.testing.assert_allclose(there.position - shift[None], here.position, atol=50 * ROUND_OFF)


@pytest.mark.slow
@pytest.mark.parametrize("make", [MALA, HMC, AdjustedKinetic])
def test_a_rejected_move_returns_the_position_bit_for_bit(make, metric):
    metric = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), metric)
    sampler = Preconditioned(make(1e4), metric)
    x = jnp.asarray([1e3 + 1 / 3, -7.77, 1e-5], jnp.float32)
    states, infos = path(sampler, LogCosh(3), x)
    assert not np.any(infos.acceptance_rate > 0.5)
    np.testing.assert_array_equal(states.position, np.broadcast_to(x, (5, 3)))


@pytest.mark.slow
def test_small_moves_far_from_the_origin_keep_their_digits():
    # A step of 1e-3 from 1000, where float32 resolves 6e-5. From z = L^-1 x the rounding of z, of
    # L z and of the step would each add as much; from the origin there is the last addition alone.
    with jax.enable_x64(False):
        scale = jnp.asarray([3.0, 1 / 7, 11.0])
        target = Shifted(LogCosh(3), jnp.full(3, 1000.0))
        x = jnp.full(3, 1000.0) + jnp.asarray([0.5, -0.25, 1.0])
        sampler = Preconditioned(LMC(1e-7), DiagonalMetric(scale))
        states, _ = path(sampler, target, x, 1)
        noise = sampler.noise(jax.random.fold_in(jax.random.key(7), 0), x)
        z = 1e-7 * np.asarray(scale * target.score(x), float)
        exact = np.asarray(x, float) + np.asarray(scale, float) * (
            z + np.sqrt(2e-7) * np.asarray(noise, float)
        )
        half_ulp = np.spacing(np.float32(1000)) / 2
        np.testing.assert_allclose(states.position[0], exact, rtol=0, atol=1.001 * half_ulp)


class Regression(Target):
    """A least-squares regression with the batched form of its score."""

    design: Float[Array, "n dim"]
    dim: int = eqx.field(static=True, default=3)

    def log_density(self, x):
        return -jnp.sum((self.design @ x - 1) ** 2) / 2

    def score(self, x):
        return _regression_score(self, x)


_regression_score = batched_score(
    lambda target, x: target.design.T @ (1 - target.design @ x),
    lambda target, x: (1 - x @ target.design.T) @ target.design,
)


def products(sampler):
    """Shapes that the matrix products of one step of 7 chains put out."""
    target = Regression(jnp.ones((11, 3)))
    positions = jnp.ones((7, 3))
    states = jax.vmap(lambda x: sampler.init(target, x))(positions)
    noise = jax.eval_shape(lambda x: sampler.noise(jax.random.key(0), x), positions[0])
    noises = jax.tree.map(lambda leaf: jnp.zeros((7, *leaf.shape), leaf.dtype), noise)
    step = jax.vmap(lambda state, noise: sampler.step(target, state, noise)[0])
    # Lowering applies the rule for batches.
    program = jax.jit(step).lower(states, noises).as_text()
    lines = [line for line in program.split("\n") if "dot_general" in line]
    return [line.rsplit("tensor<", 1)[1].split(">")[0] for line in lines]


def test_chains_in_a_metric_use_the_batched_score(metric):
    # A vmapped matrix-vector product would put out (11, 7), the observations first.
    assert products(Preconditioned(LMC(), metric)).count("7x11xf32") == 1


class PlainDim(Target):
    """A target as a user writes it, its dimension a plain field."""

    dim: int = 2

    def log_density(self, x):
        return -jnp.sum(x**2) / 2


def test_a_dimension_that_is_not_static_is_none_of_its_concern():
    sampler = Preconditioned(MALA(0.5), DiagonalMetric(np.ones(2, np.float32)))

    @jax.jit  # warnings are errors
    def step(target, position, key):
        state = sampler.init(target, position)
        return sampler.step(target, state, sampler.noise(key, position))[0].position

    assert step(PlainDim(), jnp.zeros(2), jax.random.key(0)).shape == (2,)

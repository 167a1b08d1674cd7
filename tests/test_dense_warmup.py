"""The full covariance as metric, learnt by Welford's moments."""

import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.samplers import JitteredHMC, Preconditioned, Warmup
from driftbridge.samplers.metric import DenseMetric
from driftbridge.samplers.welford import add_batch, no_moments, shrunk_covariance
from driftbridge.targets import DenseGaussian


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_moments_of_batches_are_those_of_all():
    x = np.random.default_rng(0).normal(size=(20, 4, 3)) + 1e6
    moments = no_moments(3, jnp.zeros(()).dtype, dense=True)
    for i, batch in enumerate(x):
        moments = add_batch(moments, jnp.asarray(batch), jnp.asarray(i != 7))
    kept = np.delete(x, 7, axis=0).reshape(-1, 3)
    found = shrunk_covariance(moments, jnp.eye(3))
    weight = 76 / (76 + 3 + 5)
    expected = weight * np.cov(kept.T) + (1 - weight) * np.eye(3)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
def test_what_does_not_vary_leaves_the_previous_metric():
    moments = add_batch(no_moments(2, jnp.float32, dense=True), jnp.ones((9, 2)), jnp.asarray(True))
    np.testing.assert_array_equal(shrunk_covariance(moments, 3 * jnp.eye(2)), 3 * np.eye(2))


@pytest.mark.slow
def test_a_dense_warmup_whitens_a_correlated_gaussian():
    dim, condition = 6, 1e4
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
    values = np.geomspace(1, condition, dim)
    covariance, precision = (basis * values) @ basis.T, (basis / values) @ basis.T
    target = DenseGaussian(
        *(np.asarray(a, np.float32) for a in (np.zeros(dim), covariance, precision))
    )
    draws = db.sample(
        target, JitteredHMC(), adapt=Warmup(metric="dense"), num_warmup=600, num_samples=400
    )
    assert isinstance(draws.tuned, Preconditioned)
    metric = draws.tuned.metric
    assert isinstance(metric, DenseMetric)
    inverse = np.asarray(metric.inverse_cholesky, np.float64)
    left = np.linalg.eigvalsh(inverse @ covariance @ inverse.T)
    # The last window holds some 400 x 4 draws, whose ESS of at least 200 leaves eigenvalues of a
    # whitened sample covariance within (1 ± sqrt(6 / 200))², a ratio of 2.
    assert left[-1] / left[0] < 4
    assert draws.convergence.converged


def test_the_kind_of_metric_is_checked():
    with pytest.raises(ValueError, match='"diagonal" or "dense"; got \'full\''):
        Warmup(metric="full")


def test_a_dense_metric_that_is_given_is_adapted_only_by_a_dense_warmup():
    identity = jnp.eye(2)
    sampler = Preconditioned(JitteredHMC(), DenseMetric(identity, identity))
    states = {}
    for kind in ("diagonal", "dense"):
        states[kind] = Warmup(metric=kind).init(sampler, jnp.zeros((4, 2)), jnp.asarray(100))[0]
    assert states["diagonal"].moments is None
    assert states["dense"].moments.squares.shape == (2, 2)

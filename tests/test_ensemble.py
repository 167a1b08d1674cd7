"""The warm-up from an ensemble: its metric, its start, its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.samplers import (
    MALA,
    EnsembleWarmup,
    Gathering,
    LocalScaleHMC,
    UniformStart,
    fisher_metric,
)
from driftbridge.samplers.ensemble import lost_chains, middle, quantile, sources
from driftbridge.samplers.fisher import first_metric
from driftbridge.samplers.geometric_mean import geometric_mean
from driftbridge.samplers.metric import DiagonalMetric
from driftbridge.targets import DenseGaussian, NealFunnel

SAMPLE = db.sample.__wrapped__


def rotated(dim, condition, seed=0):
    """Covariance and precision with eigenvalues spread from 1 to `condition`."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    values = np.geomspace(1, condition, dim)
    return (basis * values) @ basis.T, (basis / values) @ basis.T


@pytest.mark.usefixtures("x64")
def test_geometric_mean_is_its_definition():
    a, b = rotated(5, 100.0)[0], rotated(5, 30.0, seed=1)[0]
    mean = geometric_mean(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(mean @ b @ mean, a, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_metric_of_a_gaussian_is_exact_from_few_draws():
    covariance, precision = rotated(8, 1e3)
    # Draws from anywhere: with scores s = -P (x - m) any of them give Σ = P^-1.
    x = 3 + jax.random.normal(jax.random.key(0), (20, 8)) @ rotated(8, 3.0, seed=1)[0]
    included = jnp.arange(20) != 7
    x = x.at[7].set(jnp.nan)
    metric = fisher_metric(first_metric(x[0]), x, -(x - 1) @ precision, included, jnp.asarray(1e12))
    found = metric.cholesky @ metric.cholesky.T
    np.testing.assert_allclose(found, covariance, rtol=0, atol=1e-6 * 1e3)
    np.testing.assert_allclose(metric.cholesky @ metric.inverse_cholesky, np.eye(8), atol=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_diagonal_metric_of_independent_coordinates_is_exact():
    scale = np.geomspace(1e-3, 1e3, 6)
    x = scale[None] * jax.random.normal(jax.random.key(0), (30, 6))
    metric = fisher_metric(
        DiagonalMetric(jnp.ones(6)), x, -x / scale[None] ** 2, jnp.ones(30, bool), jnp.asarray(1e12)
    )
    np.testing.assert_allclose(metric.scale, scale, rtol=1e-6)


@pytest.mark.slow
def test_draws_that_stand_still_leave_the_metric():
    still = jnp.ones((10, 3))
    metric = fisher_metric(first_metric(still[0]), still, still, jnp.ones(10, bool), jnp.ones(()))
    np.testing.assert_allclose(metric.cholesky, np.eye(3), atol=1e-6)


@pytest.mark.slow
def test_order_statistics():
    values = jnp.asarray([3.0, jnp.inf, 1.0, 1.0, 2.0])
    assert float(middle(values)) == 2
    uniform = jax.random.uniform(jax.random.key(0), (4001,))
    expected = np.quantile(uniform, 0.99)
    # Neighbours of 4001 sorted uniforms are 1/4001 apart on average.
    assert float(quantile(uniform, 0.99)) == pytest.approx(expected, abs=5 / 4001)


@pytest.mark.slow
def test_lost_chains_take_the_places_of_others():
    density = jnp.asarray([-1.0, -500.0, -1.5, -0.5, jnp.nan, -1.0])
    lost = lost_chains(density, 2, jnp.ones(6))
    np.testing.assert_array_equal(lost, [0, 1, 0, 0, 1, 0])
    # Kept are 0, 2, 3, 5; numbers 1 and 4 take those with numbers 1 and 0 among them.
    np.testing.assert_array_equal(sources(lost), [0, 2, 2, 3, 0, 5])
    np.testing.assert_array_equal(sources(jnp.ones(6, bool)), np.arange(6))


@pytest.fixture(scope="module")
def gaussian():
    covariance, precision = rotated(10, 1e4)
    single = (np.full(10, 5.0), covariance, precision)
    return DenseGaussian(*(np.asarray(a, np.float32) for a in single))


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.1, 30.0, 1e4])
def test_ensemble_ends_its_warmup_and_draws_the_law(gaussian, radius):
    draws = db.sample(
        gaussian, num_chains=16, num_samples=256, init=Gathering(UniformStart(radius)), key=1
    )
    facts = draws.metadata
    assert facts["agreed"] and facts["gathered"]
    # The warm-up is short of its ceiling of 640 transitions, and counted to the gradient.
    assert facts["num_warmup"] < 320
    assert facts["gradients_warmup"] % 16 == 0
    found = draws.tuned.metric.cholesky
    ratio = np.linalg.eigvals(np.linalg.solve(gaussian.covariance, found @ found.T)).real
    # The metric of a Gaussian is exact up to shrinkage towards the one before.
    assert ratio.min() > 0.5 and ratio.max() < 2
    table = draws.statistics
    sd = np.sqrt(np.diag(gaussian.covariance))
    # Five standard errors: 16 x 256 draws that are worth at least 1000 independent ones.
    assert np.all(table["ess_bulk"] > 1000)
    assert np.all(np.abs(table["mean"] - 5) < 5 * sd / np.sqrt(1000))
    assert np.all(np.abs(table["sd"] / sd - 1) < 5 / np.sqrt(2 * 1000))


def test_a_resumed_ensemble_is_the_whole_one(gaussian, tmp_path):
    settings = {"num_chains": 16, "key": 1}
    whole = db.sample(gaussian, num_samples=256, **settings)
    db.sample(gaussian, num_samples=128, store=tmp_path / "run", **settings)
    resumed = db.resume(tmp_path / "run", num_samples=256)
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    for name in ("agreed", "num_warmup", "repaired", "gradients_warmup"):
        assert resumed.metadata[name] == whole.metadata[name]


def test_a_run_that_died_after_its_warmup_ended_by_itself_goes_on(gaussian, tmp_path):
    whole = db.sample(gaussian, num_chains=16, num_samples=256, key=1)

    def dying(at):
        if at.phase == "sampling":
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        db.sample(
            gaussian, num_chains=16, num_samples=256, key=1, store=tmp_path / "run", progress=dying
        )
    resumed = db.resume(tmp_path / "run")
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    assert resumed.metadata["num_warmup"] == whole.metadata["num_warmup"] < 640


@pytest.mark.slow
def test_an_ensemble_that_does_not_agree_says_so():
    draws = db.sample(NealFunnel(5), num_chains=16, num_samples=128, num_warmup=48, key=0)
    found = {finding.name: finding for finding in draws.warnings}
    assert "did not agree" in found["warmup"].message


def test_who_can_be_tuned_by_an_ensemble(gaussian):
    with pytest.raises(TypeError, match=r"tunes LocalScaleHMC; got MALA.*Warmup\(\)"):
        db.sample(gaussian, MALA(0.1), adapt=EnsembleWarmup(), num_chains=16)
    with pytest.raises(ValueError, match=r"at least 16 chains; got 4"):
        db.sample(gaussian, LocalScaleHMC(), adapt=EnsembleWarmup(), num_chains=4)


def spiked(dim: int, outliers: int, largest: float):
    """Covariance and precision with a few large eigenvalues among ones, in random directions."""
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, outliers)))[0]
    values = np.geomspace(100.0, largest, outliers)
    identity = np.eye(dim)
    return identity + basis * (values - 1) @ basis.T, identity + basis * (1 / values - 1) @ basis.T


@pytest.mark.slow
def test_low_rank_metric_finds_the_outliers_of_a_spectrum():
    dim, draws = 300, 600
    covariance, precision = spiked(dim, 4, 1e5)
    x = np.random.default_rng(2).multivariate_normal(np.zeros(dim), covariance, draws)
    x, scores = (jnp.asarray(a, jnp.float32) for a in (x, -x @ precision))
    metric = first_metric(x[0])
    for _ in range(3):
        metric = fisher_metric(metric, x, scores, jnp.ones(draws, bool), jnp.asarray(draws / 2.0))
    inverse = np.asarray(jax.vmap(metric.whiten)(jnp.eye(dim)), np.float64)
    values = np.linalg.eigvalsh(inverse.T @ covariance @ inverse)
    # Coordinates mix outliers and the rest, so scales fit only on average: what is left of a
    # condition number of 1e5 is their scatter from 300 effective draws, a factor of about 10.
    assert values[-1] / values[0] < 30


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_low_rank_metric_of_scaled_coordinates_is_exact():
    scale = np.geomspace(0.1, 10, 300)
    x = scale[None] * jax.random.normal(jax.random.key(0), (400, 300))
    metric = fisher_metric(
        first_metric(x[0]), x, -x / scale[None] ** 2, jnp.ones(400, bool), jnp.asarray(1e12)
    )
    ratio = jax.vmap(metric.whiten)(jnp.diag(jnp.asarray(scale)))
    # The previous metric has the weight 5e-12, of variances that differ by 1e4.
    np.testing.assert_allclose(ratio @ ratio.T, np.eye(300), atol=1e-8)


@pytest.mark.slow
def test_the_ensemble_samples_outliers_of_many_dimensions():
    dim = 300
    covariance, precision = spiked(dim, 4, 1e5)
    target = DenseGaussian(
        *(np.asarray(a, np.float32) for a in (np.zeros(dim), covariance, precision))
    )
    draws = db.sample(target, num_samples=256)
    x = np.asarray(draws.positions, np.float64).reshape(-1, dim)
    variances = np.einsum("ni,ij,nj->n", x, precision, x)
    # x' P x is chi-squared: mean dim, and 5 standard errors from at least 800 effective draws.
    assert draws.convergence.converged
    assert abs(variances.mean() / dim - 1) < 5 * np.sqrt(2 / dim / 800)

"""The kernel Stein discrepancy against closed forms, its level and its power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import driftbridge as db
from driftbridge.samplers import LMC
from driftbridge.samplers.metric import DenseMetric, DiagonalMetric
from driftbridge.samplers.stein_discrepancy import kernel_stein_discrepancy
from driftbridge.targets import DenseGaussian, DiagonalGaussian
from tests.laws.targets import LogCosh

SCALE = 1.3
STANDARD = DiagonalGaussian(np.zeros(1))


def radial(kernel, beta=-0.5):
    if kernel == "gaussian":
        return lambda q: np.exp(-q / (2 * SCALE**2))
    return lambda q: (1 + q / SCALE**2) ** beta


def population(kernel, shift, beta=-0.5):
    """`KSD^2` of N(shift, 1) for a standard normal: the scores of the two differ by `shift`.

    `KSD^2 = E (s_p - s_q)(x) k(x, y) (s_p - s_q)(y)`, so it is `shift^2 E k`, `x - y ~ N(0, 2)`.
    """
    phi = radial(kernel, beta)
    return (
        shift**2
        * integrate.quad(
            lambda r: phi(r**2) * stats.norm.pdf(r, scale=np.sqrt(2)), -np.inf, np.inf
        )[0]
    )


def stein_matrix(target, x, kernel, beta=-0.5):
    """`u(x_i, x_j)` by automatic differentiation of the kernel."""

    def k(x, y):
        q = jnp.sum((x - y) ** 2)
        return jnp.exp(-q / (2 * SCALE**2)) if kernel == "gaussian" else (1 + q / SCALE**2) ** beta

    def u(x, y):
        mixed = jnp.trace(jax.jacfwd(jax.grad(k, 1), 0)(x, y))
        sx, sy = target.score(x), target.score(y)
        return sx @ sy * k(x, y) + sx @ jax.grad(k, 1)(x, y) + sy @ jax.grad(k, 0)(x, y) + mixed

    return np.asarray(jax.jit(jax.vmap(jax.vmap(u, (None, 0)), (0, None)))(x, x))


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "beta"), [("imq", -0.5), ("imq", -0.8), ("gaussian", -0.5)])
def test_both_statistics_are_those_of_the_matrix(x64, kernel, beta):
    target, n = LogCosh(3), 37
    x = jax.random.normal(jax.random.key(0), (n, 3)) + 0.3
    matrix = stein_matrix(target, x, kernel, beta)
    # Rows in blocks of ten: the last is not full.
    found = kernel_stein_discrepancy(target, x, kernel=kernel, beta=beta, scale=SCALE, chunk=10)
    # Rounding of sums of n^2 terms in float64.
    np.testing.assert_allclose(found.v_statistic, matrix.mean(), rtol=1e-11)
    off = (matrix.sum() - np.trace(matrix)) / (n * (n - 1))
    np.testing.assert_allclose(found.u_statistic, off, rtol=1e-11)
    np.testing.assert_allclose(found.value, np.sqrt(matrix.mean()), rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["imq", "gaussian"])
def test_the_u_statistic_is_unbiased(x64, kernel):
    shift, runs, n = 0.3, 400, 20
    rng = np.random.default_rng(3)
    found = [
        kernel_stein_discrepancy(
            STANDARD, rng.normal(shift, 1, (n, 1)), kernel=kernel, scale=SCALE, num_bootstrap=1
        )
        for _ in range(runs)
    ]
    u, v = (np.array([getattr(f, name) for f in found]) for name in ("u_statistic", "v_statistic"))
    expected, error = population(kernel, shift), u.std() / np.sqrt(runs)
    assert abs(u.mean() - expected) < 5 * error
    # The V-statistic is biased by (E u(x, x) - KSD^2) / n, ten times the tolerance and more.
    assert v.mean() - expected > 10 * error


@pytest.mark.slow
def test_float32_agrees_with_float64_far_from_the_origin(x64):
    # Positions about 1000 with spread 1: uncentred products would lose all digits of distances.
    mean = np.full(5, 1000.0)
    x = np.random.default_rng(1).normal(size=(300, 5)) + mean
    short = x.astype(np.float32)
    found = kernel_stein_discrepancy(DiagonalGaussian(mean.astype(np.float32)), short)
    exact = kernel_stein_discrepancy(DiagonalGaussian(mean), short.astype(np.float64))
    # 2^-24 for each of |s|^2, q and their products, of size dim: below 1e-5 of V.
    np.testing.assert_allclose(found.v_statistic, exact.v_statistic, rtol=1e-5)
    assert found.p_value == pytest.approx(exact.p_value, abs=0.01)


@pytest.mark.slow
def test_a_metric_is_a_change_of_coordinates(x64):
    covariance = np.array([[4.0, 1.0], [1.0, 0.5]])
    z = np.random.default_rng(2).normal(size=(80, 2)) * [1.2, 0.9]
    metric = DenseMetric.from_covariance(covariance)
    x = z @ np.asarray(metric.cholesky).T
    mine = kernel_stein_discrepancy(DenseGaussian(np.zeros(2), covariance), x, metric=metric)
    other = kernel_stein_discrepancy(DiagonalGaussian(np.zeros(2)), z)
    np.testing.assert_allclose(mine.v_statistic, other.v_statistic, rtol=1e-9)
    np.testing.assert_allclose(mine.scale, other.scale, rtol=1e-9)


def autoregression(rng, chains, length, correlation):
    """Stationary chains of standard normals."""
    x = np.empty((chains, length, 1))
    x[:, 0] = rng.normal(size=(chains, 1))
    noise = np.sqrt(1 - correlation**2) * rng.normal(size=x.shape)
    for t in range(1, length):
        x[:, t] = correlation * x[:, t - 1] + noise[:, t]
    return x


@pytest.mark.slow
def test_p_values_are_uniform_under_the_truth():
    rng = np.random.default_rng(5)
    p = np.array(
        [
            kernel_stein_discrepancy(
                STANDARD, rng.normal(size=(100, 1)), scale=SCALE, num_bootstrap=199, key=run,
                block_length=1,
            ).p_value
            for run in range(400)
        ]
    )  # fmt: skip
    # A false alarm once in 1e4 seeds; a constant p-value of 1/2 gives 1e-90.
    assert stats.kstest(p, "uniform").pvalue > 1e-4


@pytest.mark.slow
def test_blocks_keep_the_level_of_dependent_draws():
    rng = np.random.default_rng(6)

    def rejected(block_length):
        found = [
            kernel_stein_discrepancy(
                STANDARD, autoregression(rng, 2, 300, 0.7), scale=SCALE, num_bootstrap=199,
                block_length=block_length, key=run,
            )
            for run in range(200)
        ]  # fmt: skip
        return np.mean([f.p_value <= 0.05 for f in found])

    # 200 runs tell a share of 0.05 to 0.016. Blocks know the long-run variance to some tenths, so
    # the level is kept within a factor of two or three, where signs of single draws lose it.
    assert rejected(None) < 0.15
    assert rejected(1) > 0.3


@pytest.mark.slow
def test_a_large_step_of_langevin_monte_carlo_is_seen():
    # At h = 0.8 the stationary variance is 1 / (1 - 0.4) = 1.67; at h = 0.01 it is 1.005.
    target = DiagonalGaussian(np.zeros(2, np.float32))

    def p_value(step_size, thin):
        draws = db.sample(
            target, LMC(step_size), key=1, num_samples=250, num_warmup=100, num_chains=4,
            thin=thin, adapt=None,
        )  # fmt: skip
        return draws.stein_discrepancy().p_value

    assert p_value(0.8, 4) < 0.01
    assert p_value(0.01, 400) > 0.01


@pytest.mark.slow
def test_draws_are_thinned_to_the_number_asked_for():
    target = DiagonalGaussian(np.array([5.0, 0.0], np.float32), np.array([1e3, 1e-3], np.float32))
    x = np.asarray(target.truth.sample(jax.random.key(0), 3 * 400)).reshape(3, 400, 2)
    draws = db.Draws(target, x, {}, tuned=None)
    found = draws.stein_discrepancy(max_draws=300, key=4)
    assert found.num_draws == 300
    kept = x[:, 3::4]
    deviation = kept.reshape(-1, 2).std(0)
    again = kernel_stein_discrepancy(target, kept, metric=DiagonalMetric(deviation), key=4)
    np.testing.assert_allclose(found.v_statistic, again.v_statistic, rtol=1e-5)
    assert found.p_value > 1e-3


def test_too_few_blocks_give_no_p_value():
    found = kernel_stein_discrepancy(STANDARD, np.linspace(-1, 1, 60)[:, None], block_length=6)
    assert np.isnan(found.p_value) and found.block_length == 6


@pytest.mark.parametrize(
    ("positions", "keywords", "says"),
    [
        (np.zeros((5, 2)), {}, r"\(n, 1\)"),
        (np.zeros((1, 1)), {}, "at least two draws"),
        (np.zeros((5, 1)), {}, "are equal"),
        (np.array([[0.0], [np.nan]]), {}, "position of draw 1 is nan"),
        (np.ones((5, 1)), {"kernel": "rbf"}, "imq, gaussian"),
        (np.ones((5, 1)), {"beta": -1.0}, "beta"),
        (np.ones((5, 1)), {"scale": 0.0}, "scale"),
        (np.ones((5, 1)), {"block_length": 0}, "block_length"),
    ],
)
def test_what_cannot_be_compared_is_refused(positions, keywords, says):
    with pytest.raises(ValueError, match=says):
        kernel_stein_discrepancy(STANDARD, positions, **keywords)

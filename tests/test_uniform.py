"""Maps to the cube: uniform images, exact inverses and densities."""

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.stats.qmc import discrepancy

from driftbridge.transport.saved import load
from driftbridge.transport.uniform import METHODS, to_uniform


def banana(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return np.column_stack([x, x**2 + 0.5 * rng.normal(size=n)])


def correlated(n, seed=0, dim=3):
    return np.random.default_rng(seed).normal(size=(n, dim)) @ np.tril(np.ones((dim, dim)))


def floor(n, dim):
    return ((5 / 4) ** dim - (13 / 12) ** dim) / n


def test_the_floor_is_the_mean_of_independent_uniform_points():
    rng = np.random.default_rng(1)
    found = [discrepancy(rng.uniform(size=(60, 3))) for _ in range(200)]
    error = np.std(found) / np.sqrt(200)
    assert abs(np.mean(found) - floor(60, 3)) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_inverse_and_density_belong_to_the_map(x64, method):
    T = to_uniform(banana(150), method)
    x = banana(20, seed=2)
    u = T(x)
    assert ((u >= 0) & (u <= 1)).all()
    # Halving an interval of 32 to 1e-15, over slopes of 1e-3 and more.
    np.testing.assert_allclose(T.inverse(u), x, atol=1e-9)
    jacobian = jax.vmap(jax.jacfwd(T))(x)
    np.testing.assert_allclose(np.triu(jacobian, 1), 0, atol=1e-14)
    np.testing.assert_allclose(T.log_det(x), np.linalg.slogdet(jacobian)[1], atol=1e-9)


@pytest.mark.slow
def test_columns_that_do_not_depend_on_one_another_are_ranked(x64):
    x = np.random.default_rng(3).normal(size=(2000, 1))
    u = to_uniform(x, "rank")(x)[:, 0]
    ranks = (stats.rankdata(x[:, 0]) - 0.5) / 2000
    # Between knots, 4 n^(1/3) = 51 of them, ranks wander like a bridge over 40 points.
    assert np.abs(u - ranks).max() < 4 * np.sqrt(40) / 2 / 2000
    t = np.linspace(-2, 2, 50)[:, None]
    # The density of a normal law, as a histogram of about 40 points each cell would show it.
    log_density = to_uniform(x, "gaussian").log_det(t)
    assert np.abs(log_density - stats.norm.logpdf(t[:, 0])).mean() < 1 / np.sqrt(40)


def test_new_points_of_a_gaussian_copula_are_uniform():
    T = to_uniform(correlated(800, 4), "gaussian")
    u = np.clip(T(correlated(800, 5)), 0, 1)
    # Both samples show a floor: two in the mean, and 6 at a dozen standard deviations.
    assert discrepancy(u) < 6 * floor(800, 3)
    bare = np.clip(to_uniform(correlated(800, 4), "rank")(correlated(800, 5)), 0, 1)
    assert discrepancy(bare) > 12 * floor(800, 3)


@pytest.mark.slow
def test_the_kernel_map_tends_to_the_conditional_distribution_function():
    t = banana(1000, 5)
    u = np.column_stack([stats.norm.cdf(t[:, 0]), stats.norm.cdf((t[:, 1] - t[:, 0] ** 2) / 0.5)])

    def error(n, method="kernel"):
        found = np.asarray(to_uniform(banana(n, 6), method)(t))
        return np.sqrt(np.mean((found - u) ** 2, axis=0))

    # A distribution function from n points is known to 0.4 / sqrt(n) in the mean.
    assert error(1600)[0] < 3 * 0.4 / 40
    # Ranks of a column know nothing of its dependence: 0.3. A kernel estimate in two dimensions
    # converges like n^(-1/3): by 1.6 from 400 points to 1600.
    assert error(1600, "rank")[1] > 0.25
    assert error(1600)[1] < 0.08 and error(1600)[1] < error(400)[1] / 1.25


@pytest.mark.slow
def test_what_was_chosen_and_how_uniform_it_is_are_recorded():
    T = to_uniform(correlated(300), "kernel")
    assert T.fit.reason == "no kernel estimate is likelier than the normal law"
    numbers = dict(T.fit.numbers)
    assert numbers["width"] == 1.0 and numbers["floor"] == pytest.approx(floor(300, 3))
    # Points of a fit are more even than independent ones.
    assert numbers["discrepancy"] < numbers["floor"]
    assert "likeliest at width" in to_uniform(banana(300)).fit.reason


def test_weights_are_those_of_the_law_made_uniform():
    rng = np.random.default_rng(6)
    x = rng.uniform(size=(4000, 1)).astype(np.float32)
    # Of density 2 x: its distribution function is x^2.
    T = to_uniform(x, "rank", weights=x[:, 0] / x.sum())
    t = np.linspace(0.1, 0.9, 9, dtype=np.float32)[:, None]
    assert T(t).dtype == np.float32
    # A distribution function from 4000 points, of which 3000 are effective.
    np.testing.assert_allclose(T(t), t**2, atol=4 * 0.5 / np.sqrt(3000))
    assert "discrepancy" not in dict(T.fit.numbers)


@pytest.mark.slow
def test_a_saved_map_is_the_same(tmp_path):
    T = to_uniform(banana(100).astype(np.float32))
    x = banana(30, 7).astype(np.float32)
    np.testing.assert_array_equal(load(T.save(tmp_path / "map"))(x), T(x))


@pytest.mark.parametrize(
    ("x", "method", "says"),
    [
        (banana(20), "copula", "method must be one of"),
        (banana(9), "rank", "at least 10"),
        (np.repeat([[0.0], [1.0]], 20, axis=0), "rank", "column 0 has the value 0.0 at 50%"),
        (banana(40)[:, [0, 0]], "gaussian", "linearly dependent"),
        (np.full((20, 2), np.nan), "rank", "NaN in row 0"),
    ],
)
def test_what_cannot_be_made_uniform_is_refused(x, method, says):
    with pytest.raises(ValueError, match=says):
        to_uniform(x, method)

"""The monotone rearrangement and the Knothe-Rosenblatt map against closed forms."""

import jax
import numpy as np
import pytest
from scipy import stats

from driftbridge.runtime.compilations import Compilations
from driftbridge.transport.base import NotSupported
from driftbridge.transport.fit import fit_map
from driftbridge.transport.rearrangement import Rearrangement, quantiles
from driftbridge.transport.saved import load
from driftbridge.transport.triangular import Triangular


def column(values):
    return np.asarray(values)[:, None]


def gumbel_of_normal(t):
    return stats.gumbel_r.ppf(stats.norm.cdf(t)) * 2 + 3


def test_an_increasing_affine_function_of_the_data_is_found(x64):
    # Quantiles commute with it, and so do mean excesses: only rounding is left.
    x = np.random.default_rng(0).exponential(size=(400, 1))
    transport = fit_map(x, 2.5 * x - 1, Rearrangement())
    t = np.linspace(-3, 12, 50)[:, None]
    np.testing.assert_allclose(transport(t), 2.5 * t - 1, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(transport.log_det(t), np.log(2.5), rtol=1e-9)


def test_the_rearrangement_converges_with_its_slopes(x64):
    def errors(n):
        rng = np.random.default_rng(n)
        x, y = rng.normal(size=(n, 1)), gumbel_of_normal(rng.normal(size=(n, 1)))
        transport = fit_map(x, y, Rearrangement())
        t = column(stats.norm.ppf((np.arange(500) + 0.5) / 500))
        true = gumbel_of_normal(t)
        slope = (gumbel_of_normal(t + 1e-5) - gumbel_of_normal(t - 1e-5)) / 2e-5
        value = np.mean((transport(t) - true) ** 2) / np.var(true)
        return value, np.sqrt(np.mean((transport.log_det(t) - np.log(slope[:, 0])) ** 2))

    few, many = errors(1000), errors(64_000)
    # The variance of a quantile falls as 1/n, by 64, and the squared bias faster; their ratio has
    # a relative noise of order one. Slopes err by sqrt(K / n) = n^(-1/3) / 2, which falls by 4.
    assert many[0] < few[0] / 8 and many[0] < 1e-3
    assert many[1] < few[1] / 2 and many[1] < 0.15


def test_weights_are_repetitions(x64):
    rng = np.random.default_rng(1)
    values, counts = rng.normal(size=60), rng.integers(1, 5, size=60)
    levels = np.array([0.2, 0.5, 0.9])
    fine = np.repeat(values + 0.0, counts)
    weighted = quantiles(values, counts / counts.sum(), levels)
    repeated = quantiles(fine, np.full(len(fine), 1 / len(fine)), levels)
    # They differ by the place of a point within its own mass: at most two neighbouring gaps.
    gap = np.max(np.diff(np.sort(values))[5:-5])
    np.testing.assert_allclose(weighted, repeated, atol=2 * gap)


def test_repeated_values_keep_the_map_increasing():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, (300, 1)).astype(float), rng.poisson(3, (300, 1)).astype(float)
    transport = fit_map(x, y, Rearrangement())
    t = np.linspace(-1, 6, 200)[:, None]
    image = transport(t)
    assert np.all(np.diff(image[:, 0]) > 0)
    # Float32: 2^-23 of values below ten, over slopes of at least 0.1.
    np.testing.assert_allclose(transport.inverse(image), t, atol=1e-4)


def test_a_second_rearrangement_of_the_same_size_compiles_nothing():
    rng = np.random.default_rng(3)
    t = rng.normal(size=(64, 1)).astype(np.float32)
    fit_map(rng.normal(size=(500, 1)), rng.normal(size=(400, 1)), Rearrangement())(t)
    compilations = Compilations()
    fit_map(rng.normal(size=(490, 1)), rng.normal(size=(410, 1)), Rearrangement())(t)
    assert compilations.programs == 0


def correlated(n, dim, rng):
    factor = np.tril(np.random.default_rng(9).normal(size=(dim, dim)) * 0.4)
    np.fill_diagonal(factor, 1.0)
    return rng.normal(size=(n, dim)) @ factor.T, factor


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 6])
def test_gaussians_have_the_cholesky_map(x64, dim):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1500, dim))
    y, factor = correlated(1500, dim, rng)
    transport = fit_map(x, y, Triangular())
    t = rng.normal(size=(500, dim))
    error = (
        100
        * np.mean(np.sum((transport(t) - t @ factor.T) ** 2, axis=1))
        / np.trace(factor @ factor.T)
    )
    # Two samples know means and factors to dim^2 / n: 2.4 % at most; quantiles double it.
    assert error < 5
    # One slope errs by sqrt(1 / (n r)), r about .3, on both sides: .07, and dim of them add.
    assert np.sqrt(np.mean(transport.log_det(t) ** 2)) < 0.15 * np.sqrt(dim) + 0.1


@pytest.mark.slow
def test_a_bent_law_is_followed(x64):
    def bent(x):
        return np.stack([x[:, 0], x[:, 0] ** 2 + 0.5 * x[:, 1]], axis=1)

    rng = np.random.default_rng(5)

    def error(n):
        transport = fit_map(rng.normal(size=(n, 2)), bent(rng.normal(size=(n, 2))), Triangular())
        t = rng.normal(size=(1000, 2))
        t = t[np.abs(t[:, 0]) < 2]  # beyond, the data end
        return np.mean(np.sum((transport(t) - bent(t)) ** 2, axis=1)) / 3.25

    # An affine map leaves the variance of x^2, 2 of 3.25.
    few, many = error(400), error(4000)
    assert many < 0.03
    assert many < few


@pytest.fixture(scope="module")
def triangular():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    y = (rng.normal(size=(250, 3)) ** 3 + x[:250, ::-1]).astype(np.float32)
    return fit_map(x, y, Triangular()), x, y


@pytest.mark.slow
def test_the_triangular_map_is_inverted_and_triangular(triangular):
    transport, x, _ = triangular
    image = transport(x)
    # Slopes of conditional distributions reach 1e-3 / 8 in a gap of the data: 2^-23 over that,
    # three times in a row.
    np.testing.assert_allclose(transport.inverse(image), x, atol=1e-2)
    assert np.median(np.abs(transport.inverse(image) - x)) < 1e-6
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda t: transport._transport(t[None])[0])))
    matrices = np.asarray(jacobian(x[:5]))
    slopes = np.diagonal(matrices, axis1=1, axis2=2)
    np.testing.assert_allclose(np.triu(matrices, 1), 0, atol=1e-6)
    assert np.all(slopes > 0)
    # Products of three slopes in float32, themselves quotients of differences of order 1e-3.
    np.testing.assert_allclose(np.log(slopes).sum(axis=1), transport.log_det(x[:5]), atol=1e-3)


@pytest.mark.slow
def test_the_triangular_map_keeps_the_law(triangular):
    transport, x, y = triangular
    image = transport(x)
    for k in range(3):
        # 300 against 250 points, both used in the fit: the two-sample test rejects at 1e-3.
        assert stats.ks_2samp(image[:, k], y[:, k]).pvalue > 1e-3


def test_the_triangular_map_is_saved(triangular, tmp_path):
    transport, x, _ = triangular
    again = load(transport.save(tmp_path / "map.npz"))
    np.testing.assert_array_equal(again(x), transport(x))


@pytest.mark.parametrize(
    ("method", "x", "y", "says"),
    [
        (Rearrangement(), np.zeros((5, 2)), np.zeros((5, 2)), "triangular"),
        (Rearrangement(), np.zeros((5, 1)), np.arange(5.0)[:, None], "source has one value, 0.0"),
        (Triangular(), np.arange(12.0).reshape(6, 2), np.eye(6)[:, :2], "column 1 of the source"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_rearrangement_is_refused(method, x, y, says):
    with pytest.raises(ValueError, match=says):
        fit_map(x, y, method)


def test_settings_are_checked():
    for make, says in (
        (lambda: Rearrangement(1), "num_knots"),
        (lambda: Triangular(bandwidth=0.0), "bandwidth"),
        (lambda: Triangular(max_points=1), "max_points"),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_a_draw_is_asked_of_maps_that_have_one(triangular):
    with pytest.raises(NotSupported):
        triangular[0].sample(0, triangular[1], 2)


@pytest.mark.parametrize("swap", [False, True])
def test_repeated_values_go_to_the_mean_of_where_they_would(swap):
    rng = np.random.default_rng(0)
    x = rng.poisson(1.5, (2000, 1)).astype(float)
    y = rng.poisson(1.5, (2000, 1)) + rng.uniform(-0.5, 0.5, (2000, 1))
    x, y = (y, x) if swap else (x, y)
    image = fit_map(x, y, Rearrangement())(x)
    # Sd 1.2 over sqrt(2000), of both sides: 0.04. Atoms sent to an end of their range miss by 0.4.
    assert abs(image.mean() - y.mean()) < 3 * 0.04

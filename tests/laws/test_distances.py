"""Distances against closed forms, their symmetries and the triangle inequality."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from driftbridge.transport import kernel_sums
from driftbridge.transport.comparison import compare
from driftbridge.transport.distances import (
    bures_wasserstein,
    gaussian_wasserstein,
    sinkhorn_divergence,
    wasserstein,
)
from driftbridge.transport.maximum_mean_discrepancy import (
    energy_distance,
    kernel_discrepancy,
    mmd,
)
from driftbridge.transport.one_dimensional import wasserstein_1d
from driftbridge.transport.sliced import sliced_wasserstein

# Every distance of two weighted samples, with the power of the units that it has.
DISTANCES = {
    "wasserstein": (wasserstein, 1.0),
    "wasserstein_1": (lambda x, y, **w: wasserstein(x, y, 1, **w), 1.0),
    "wasserstein_3": (lambda x, y, **w: wasserstein(x, y, 3, **w), 1.0),
    "sliced": (lambda x, y, **w: sliced_wasserstein(x, y, num_projections=12, **w), 1.0),
    "gaussian": (gaussian_wasserstein, 1.0),
    "energy": (energy_distance, 0.5),
    "mmd": (mmd, 0.0),
    "laplace": (lambda x, y, **w: mmd(x, y, "laplace", **w), 0.0),
}
each = pytest.mark.parametrize("name", DISTANCES)
# float64 rounding under the root of a difference of terms of order one.
ROOT = 2e-7
# Mass of 1e-16 that rounding sends to a neighbour costs the cube root of it.
ZERO = {"wasserstein_3": 1e-5}


def samples(n=17, m=23, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, dim)), 0.7 * rng.normal(size=(m, dim)) + 0.4
    a, b = rng.exponential(size=n), rng.exponential(size=m)
    return x, y, a / a.sum(), b / b.sum()


@each
def test_symmetric_and_blind_to_the_order_of_points(x64, name):
    distance, _ = DISTANCES[name]
    x, y, a, b = samples()
    value = distance(x, y, a=a, b=b)
    np.testing.assert_allclose(distance(y, x, a=b, b=a), value, rtol=1e-11)
    rows, columns = (
        np.random.default_rng(1).permutation(17),
        np.random.default_rng(2).permutation(23),
    )
    moved = distance(x[rows], y[columns], a=a[rows], b=b[columns])
    # The median bandwidth looks at the pooled points, whose order does not matter.
    np.testing.assert_allclose(moved, value, rtol=1e-11)


@each
def test_scales_with_the_units(x64, name):
    distance, power = DISTANCES[name]
    x, y, a, b = samples()
    value = distance(x, y, a=a, b=b)
    np.testing.assert_allclose(distance(9 * x, 9 * y, a=a, b=b), 9**power * value, rtol=1e-10)
    shift = np.array([100.0, -50.0, 3.0])
    np.testing.assert_allclose(distance(x + shift, y + shift, a=a, b=b), value, rtol=1e-9)


@each
@pytest.mark.parametrize(("dim", "on_host"), [(2, 2048), (2, 0), (7, 0)])
def test_zero_for_equal_laws_and_for_split_weights(x64, monkeypatch, name, dim, on_host):
    monkeypatch.setattr(kernel_sums, "ON_HOST", on_host)
    distance, _ = DISTANCES[name]
    x, _, a, _ = samples(dim=dim)
    assert distance(x, x, a=a, b=a) < ROOT
    # One point of weight a is two points of weight a / 2.
    twice = distance(np.concatenate([x, x]), x, a=np.concatenate([a, a]) / 2, b=a)
    assert twice < ZERO.get(name, ROOT)


@each
def test_equal_weights_are_the_default(x64, name):
    distance, _ = DISTANCES[name]
    x, y, _, _ = samples()
    even = distance(x, y, a=np.full(17, 1 / 17), b=np.full(23, 1 / 23))
    np.testing.assert_allclose(distance(x, y), even, rtol=1e-11)


@each
def test_triangle_inequality(x64, name):
    distance, _ = DISTANCES[name]
    x, y, a, b = samples()
    z = np.random.default_rng(3).normal(size=(19, 3)) - 1
    if name in ("mmd", "laplace"):
        kernel = "gaussian" if name == "mmd" else "laplace"
        distance = lambda x, y, **w: mmd(x, y, kernel, 1.5, **w)  # noqa: E731
    direct = distance(x, y, a=a, b=b)
    assert direct <= distance(x, z, a=a) + distance(z, y, b=b) + ROOT


@each
def test_float32_points_give_the_float64_value(x64, monkeypatch, name):
    monkeypatch.setattr(kernel_sums, "ON_HOST", 0)
    distance, _ = DISTANCES[name]
    x, y, _, _ = samples(300, 200, 4)
    short, long = distance(x.astype(np.float32), y.astype(np.float32)), distance(x, y)
    # Squares carry about sqrt(300) roundings of 6e-8; the root halves relative errors, and the
    # distances here are at least a tenth of the spread.
    np.testing.assert_allclose(short, long, rtol=1e-4)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_a_translation_costs_its_length(p):
    x, _, a, _ = samples()
    shift = np.array([0.3, -1.2, 2.0])
    length = np.linalg.norm(shift)
    np.testing.assert_allclose(wasserstein(x, x + shift, p, a=a, b=a), length, rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(x[:, 0], x[:, 0] - 2.5, p, a=a, b=a), 2.5, rtol=1e-12)
    # Orthogonal directions: the mean of (u.shift)^2 over a basis is |shift|^2 / dim.
    sliced = sliced_wasserstein(x, x + shift, num_projections=12, a=a, b=a)
    np.testing.assert_allclose(sliced, length / np.sqrt(3), rtol=1e-7)


@pytest.mark.slow
def test_translations_leave_the_entropic_bias(x64):
    # OT_eps(x, x + s) = OT_eps(x, x) + |s|^2 / 2, so the divergence is exact at any epsilon.
    x, _, a, _ = samples(16)
    shift = np.array([0.3, -1.2, 2.0])
    found = sinkhorn_divergence(x, x + shift, 0.7, a=a, b=a, tolerance=1e-9)
    assert found.converged
    # The dual is off by the square of the marginal error, if that.
    length = np.linalg.norm(shift)
    np.testing.assert_allclose(found.distance, length, rtol=1e-8)
    assert found.lower <= length * (1 + 1e-12) and found.upper >= length * (1 - 1e-12)
    # Of point masses it is their distance.
    found = sinkhorn_divergence(x[:1], x[:1] + shift, 0.1)
    np.testing.assert_allclose([found.distance, found.lower, found.upper], length, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_line_is_the_integral_of_quantiles(p):
    # Quantiles at midpoints: W_p of the grids tends to that of the laws like the tails' share.
    n = 200_000
    u = (np.arange(n) + 0.5) / n
    x, y = stats.norm.ppf(u), 3 * stats.norm.ppf(u) + 1
    exact = np.mean(np.abs(x - y) ** p) ** (1 / p)
    np.testing.assert_allclose(wasserstein_1d(x, y[::-1], p), exact, rtol=1e-12)
    moment = stats.norm(1, 2).expect(lambda z: np.abs(z) ** p)
    # The midpoint rule misses the tails beyond 1/(2n), 4.5 standard deviations: share 1e-4.
    np.testing.assert_allclose(wasserstein_1d(x, y, p), moment ** (1 / p), rtol=1e-4)


def test_weighted_points_on_the_line_agree_with_scipy():
    x, y, a, b = samples(40, 31, 1)
    expected = stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    np.testing.assert_allclose(wasserstein_1d(x, y, 1, a=a, b=b), expected, rtol=1e-12)
    # In the plane, on a line: the general solver against the closed form.
    direction = np.array([[0.6, 0.8]])
    for p in (1, 2, 3):
        plane = wasserstein(x @ direction, y @ direction, p, a=a, b=b)
        np.testing.assert_allclose(plane, wasserstein_1d(x, y, p, a=a, b=b), rtol=1e-11)


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_in_one_dimension_is_the_distance_itself(x64, p):
    x, y, a, b = samples(40, 31, 1)
    found = sliced_wasserstein(x, y, num_projections=3, p=p, a=a, b=b)
    np.testing.assert_allclose(found, wasserstein_1d(x, y, p, a=a, b=b), rtol=1e-12)
    even = sliced_wasserstein(x, y, num_projections=3, p=p)
    np.testing.assert_allclose(even, wasserstein_1d(x, y, p), rtol=1e-12)


def test_sliced_directions_are_uniform(x64):
    # SW_2^2 of two point masses is |s|^2 E u_1^2 = |s|^2 / dim; of order 1, |s| E|u_1|.
    shift, dim = np.array([[2.0, 0, 0, 0, 0]]), 5
    runs = [
        sliced_wasserstein(np.zeros((1, dim)), shift, key=key, num_projections=10, p=1)
        for key in range(40)
    ]
    mean = 2 * stats.beta(0.5, (dim - 1) / 2).expect(np.sqrt)
    error = np.std(runs) / np.sqrt(len(runs))
    assert abs(np.mean(runs) - mean) < 5 * error


def random_covariance(rng, dim):
    factor = rng.normal(size=(dim, dim + 2))
    return factor @ factor.T / dim


def test_bures_against_the_trace_and_commuting_matrices():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(4)
    c0, c1 = random_covariance(rng, 4), random_covariance(rng, 4)
    m0, m1 = rng.normal(size=4), rng.normal(size=4)
    root = sqrtm(c0)
    cross = np.trace(np.real(sqrtm(root @ c1 @ root)))
    squared = np.sum((m0 - m1) ** 2) + np.trace(c0) + np.trace(c1) - 2 * cross
    np.testing.assert_allclose(bures_wasserstein(m0, c0, m1, c1) ** 2, squared, rtol=1e-12)
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 2.0])
    commuting = bures_wasserstein(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b))
    np.testing.assert_allclose(commuting, np.linalg.norm(np.sqrt(a) - np.sqrt(b)), rtol=1e-14)


def test_bures_of_covariances_that_nearly_agree_keeps_its_digits():
    # The trace formula would return a difference of 1e-16: nothing of 1e-18.
    rng = np.random.default_rng(5)
    c0 = random_covariance(rng, 4)
    scaled = bures_wasserstein(np.zeros(4), c0, np.zeros(4), c0 * (1 + 1e-9) ** 2)
    np.testing.assert_allclose(scaled, 1e-9 * np.sqrt(np.trace(c0)), rtol=1e-5)


def test_an_affine_monotone_map_attains_the_bures_distance():
    # y = A x with A symmetric positive definite is optimal for any law, and Gelbrich's bound is
    # then attained by the empirical moments.
    rng = np.random.default_rng(6)
    x, matrix = rng.exponential(size=(60, 3)), random_covariance(rng, 3)
    y = x @ matrix + 1
    exact = wasserstein(x, y)
    np.testing.assert_allclose(exact**2, np.mean(np.sum((x - y) ** 2, axis=1)), rtol=1e-12)
    np.testing.assert_allclose(gaussian_wasserstein(x, y), exact, rtol=1e-10)
    other = rng.normal(size=(60, 3))
    assert gaussian_wasserstein(x, other) <= wasserstein(x, other)


def test_sliced_gaussian_and_exact_are_ordered(x64):
    x, y, a, b = samples()
    exact = wasserstein(x, y, a=a, b=b)
    assert sliced_wasserstein(x, y, a=a, b=b) <= exact
    assert gaussian_wasserstein(x, y, a=a, b=b) <= exact
    assert wasserstein(x, y, 1, a=a, b=b) <= exact <= wasserstein(x, y, 3, a=a, b=b)


def test_energy_distance_on_the_line_is_an_integral_of_cdfs(x64):
    # E^2 = 2 int (F - G)^2, of which SciPy takes the root.
    x, y, a, b = samples(40, 31, 1)
    expected = stats.energy_distance(x[:, 0], y[:, 0], a, b)
    np.testing.assert_allclose(energy_distance(x, y, a=a, b=b), expected, rtol=1e-12)


@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize("on_host", [2048, 0])
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
def test_both_statistics_are_sums_over_pairs(x64, monkeypatch, kernel, on_host, dim):
    monkeypatch.setattr(kernel_sums, "ON_HOST", on_host)
    # More points than a block, and not a multiple of it.
    x, y, a, b = samples(700, 450, dim)
    h = 0.8

    def k(x, y):
        r = cdist(x, y)
        return {"gaussian": np.exp(-(r**2) / (2 * h**2)), "laplace": np.exp(-r / h), "energy": -r}[
            kernel
        ]

    kxx, kyy, kxy = k(x, x), k(y, y), k(x, y)
    found = kernel_discrepancy(x, y, kernel, h, a=a, b=b)
    np.testing.assert_allclose(
        found.v_statistic, a @ kxx @ a + b @ kyy @ b - 2 * a @ kxy @ b, rtol=1e-10
    )
    for matrix in (kxx, kyy):
        np.fill_diagonal(matrix, np.nan)
    unbiased = np.nanmean(kxx) + np.nanmean(kyy) - 2 * np.mean(kxy)
    even = kernel_discrepancy(x, y, kernel, h)
    np.testing.assert_allclose(even.u_statistic, unbiased, rtol=1e-10)


@pytest.mark.parametrize("kernel", ["gaussian", "energy"])
def test_the_u_statistic_estimates_the_distance_of_gaussians(x64, kernel):
    dim, shift, h, runs, n = 2, 0.6, 1.3, 60, 60
    rng = np.random.default_rng(7)
    found = [
        kernel_discrepancy(
            rng.normal(size=(n, dim)), rng.normal([shift, 0], size=(n, dim)), kernel, h
        ).u_statistic
        for _ in range(runs)
    ]
    if kernel == "gaussian":
        # D ~ N(s, 2 I): E exp(-|D|^2 / 2h^2) = (h^2 / (h^2 + 2))^(d/2) exp(-s^2 / 2(h^2 + 2)).
        level = h**dim * (h**2 + 2) ** (-dim / 2)
        expected = 2 * level * (1 - np.exp(-(shift**2) / 2 / (h**2 + 2)))
    else:
        # |X - Y| / sqrt(2) is a Rice variable in the plane.
        def mean(s):
            return np.sqrt(2) * stats.rice(s / np.sqrt(2)).mean() if s else np.sqrt(np.pi)

        expected = 2 * mean(shift) - 2 * mean(0)
    error = np.std(found) / np.sqrt(runs)
    assert abs(np.mean(found) - expected) < 5 * error
    # The V-statistic is higher by (1/n + 1/m) E(k(X, X) - k(X, X')), a third of this and more.
    assert error < 0.2 * expected


def test_point_masses(x64):
    x, y = np.array([0.0]), np.array([1.5])
    np.testing.assert_allclose(energy_distance(x, y), np.sqrt(3.0), rtol=1e-14)
    np.testing.assert_allclose(mmd(x, y, "gaussian", 1.0) ** 2, 2 - 2 * np.exp(-1.125), rtol=1e-14)
    assert np.isnan(kernel_discrepancy(x, y, "energy").u_statistic)


@pytest.mark.parametrize("name", ["energy", "mmd", pytest.param("sliced", marks=pytest.mark.slow)])
def test_p_values_are_uniform_under_equality(name):
    rng, runs, permutations = np.random.default_rng(8), 120, 39
    p = [
        compare(
            rng.normal(size=(20, 2)), rng.normal(size=(30, 2)), name, key=run,
            num_permutations=permutations, num_splits=1,
        ).p_value
        for run in range(runs)
    ]  # fmt: skip
    # P(p <= j / 40) = j / 40 exactly, whatever the law: each tail of the count has mass 1e-5.
    for level in (2 / 40, 10 / 40, 20 / 40, 30 / 40):
        count = np.sum(np.array(p) <= level + 1e-9)
        low, high = stats.binom(runs, level).ppf([1e-5, 1 - 1e-5])
        assert low <= count <= high


@pytest.mark.parametrize("name", ["energy", "mmd", "laplace", "sliced", "wasserstein"])
def test_a_shift_is_seen(name):
    rng = np.random.default_rng(9)
    # The shift of the mean is 0.8 / sqrt(2 / 100) = 5.7 standard errors.
    x, y = rng.normal([0.8, 0], size=(100, 2)), rng.normal(size=(100, 2))
    found = compare(x, y, name)
    assert found.p_value == 1 / 200
    assert found.value > found.floor + 3 * found.floor_spread
    assert not found.is_indistinguishable and "different at n" in found.sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wasserstein", "sliced", "energy", "mmd"])
def test_floors_are_those_of_fresh_samples(name):
    rng, runs, n, m = np.random.default_rng(10), 80, 40, 60

    def fresh(n):
        return rng.exponential(size=(n, 3)) * [1.0, 2.0, 0.5]

    found = [
        compare(fresh(n), fresh(m), name, key=run, num_permutations=0, num_splits=4)
        for run in range(runs)
    ]
    sizes = found[0].sizes
    assert sizes == ((n, m) if name in ("energy", "mmd") else (m // 2, m // 2))
    apart = [
        compare(fresh(sizes[0]), fresh(sizes[1]), name, num_permutations=0, num_splits=1).whole
        for _ in range(runs)
    ]
    floors = np.array([f.floor for f in found])
    error = np.hypot(floors.std(), np.std(apart)) / np.sqrt(runs)
    # Kernel discrepancies are scaled from halves by a law that holds up to terms of order 1 / n.
    bias = 2 / n if name in ("energy", "mmd") else 0.0
    assert abs(floors.mean() - np.mean(apart)) < 4 * error + bias * np.mean(apart)
    values = np.array([f.value for f in found])
    assert abs(values.mean() - floors.mean()) < 4 * error + bias * np.mean(apart)
    # Splits of one target vary less than fresh samples; tails of an exponential cost about half.
    spread = np.mean([f.floor_spread for f in found])
    assert 0.4 < spread / np.std(apart) < 1.2

"""Semidiscrete transport against closed forms, and its account of its own error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from driftbridge.runtime.compilations import Compilations
from driftbridge.transport.base import NotSupported
from driftbridge.transport.fit import fit_map
from driftbridge.transport.resampling import Resampled, Rows, as_draw
from driftbridge.transport.saved import load
from driftbridge.transport.semidiscrete import semidiscrete
from driftbridge.transport.semidiscrete_map import Semidiscrete

WEIGHTS = np.array([0.1, 0.3, 0.05, 0.25, 0.3])
POINTS = np.array([-1.0, -0.2, 0.4, 1.5, 2.0])


def line(key, n):
    return jax.random.normal(key, (n, 1))


def line_potential(y, b):
    """`g` for a standard normal source: cells end at `Phi^-1(b_1 + ... + b_j)`.

    There `c(x, y_j) - g_j` and `c(x, y_j+1) - g_j+1` are equal.
    """
    ends = stats.norm.ppf(np.cumsum(b)[:-1])
    steps = np.diff(y**2 / 2) - ends * np.diff(y)
    g = np.concatenate([[0], np.cumsum(steps)])
    return g - b @ g


@pytest.fixture(scope="module")
def hard():
    return semidiscrete(
        line, POINTS[:, None], target_weights=WEIGHTS, tolerance=1e-4, max_iterations=10_000
    )


@pytest.mark.slow
def test_potentials_on_the_line(hard):
    assert hard.status == "converged"
    # chi2 <= 1e-4 is a mass error of at most 1e-2 sqrt(b) <= .0055 for each point, hence of at most
    # .01 for each end of a cell in probability: .08 in x, where the density is .12 and more; and
    # the potential sums the errors of ends times gaps of 3 in all.
    np.testing.assert_allclose(hard.g, line_potential(POINTS, WEIGHTS), atol=0.08)
    np.testing.assert_allclose(WEIGHTS @ hard.g, 0, atol=1e-6)


def test_cells_on_the_line(hard):
    ends = stats.norm.ppf(np.cumsum(WEIGHTS)[:-1])
    t = np.linspace(-3, 3, 400)
    t = t[np.min(np.abs(t[:, None] - ends[None]), axis=1) > 0.08]
    rows = np.asarray(hard.assign(jnp.asarray(t, jnp.float32)[:, None]))
    np.testing.assert_array_equal(rows, np.searchsorted(ends, t))


def test_the_error_is_what_it_says(hard):
    ends = np.diff(hard.g - POINTS**2 / 2) / -np.diff(POINTS)
    masses = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], ends, [np.inf]])))
    error = hard.solve.error
    chi2 = np.sum((masses - WEIGHTS) ** 2 / WEIGHTS)
    # Five standard errors: the jackknife's are too large rather than too small.
    assert abs(error.chi2 - chi2) < 5 * error.chi2_error
    l1 = np.abs(masses - WEIGHTS).sum()
    assert l1 - error.l1_floor < error.l1 < l1 + 5 * error.l1_floor
    # The dual value is the cost of the optimal plan less what the mass error costs, second order.
    cuts = np.concatenate([[-np.inf], stats.norm.ppf(np.cumsum(WEIGHTS)[:-1]), [np.inf]])
    cross = POINTS @ -np.diff(stats.norm.pdf(cuts))
    cost = (1 + WEIGHTS @ POINTS**2) / 2 - cross
    assert abs(error.dual - cost) < 5 * error.dual_error


def test_the_flag_is_that_of_the_last_error():
    # Below 1e-5, what the draws of a check can tell, nothing is called converged.
    found = semidiscrete(line, POINTS[:, None], tolerance=1e-7, max_iterations=400)
    assert found.status == "max_iterations" and not found.converged
    assert found.solve.iterations == 400
    error = found.solve.error
    assert error.chi2 + 2 * error.chi2_error > 1e-7
    done = semidiscrete(line, POINTS[:, None], tolerance=0.05)
    assert done.converged and done.solve.history[-1][0] == done.solve.iterations
    assert done.solve.error.chi2 + 2 * done.solve.error.chi2_error <= 0.05


@pytest.mark.slow
def test_the_iterates_are_averaged():
    found = [
        semidiscrete(
            line, POINTS[:, None], tolerance=1e-9, max_iterations=1200, batch_size=64, key=key
        ).g
        for key in range(8)
    ]
    # 1100 late steps of 64 draws tell a mass of .2 to .4 / sqrt(70 400) = .0015, a cell's end to
    # .01 at the least density .15, and a potential to three times that. The last iterate alone
    # would hold the noise of some ten steps: .1 and more.
    assert np.std(found, axis=0).max() < 0.04


@pytest.mark.slow
def test_regularised_potentials_are_those_of_quadrature(x64):
    # Sinkhorn on a grid of the normal law gives the entropic potential without any draws.
    epsilon = 0.2
    nodes, masses = np.polynomial.hermite_e.hermegauss(200)
    masses = masses / masses.sum()
    cost = (nodes[:, None] - POINTS[None]) ** 2 / 2
    g = np.zeros(5)
    for _ in range(2000):
        columns = masses @ special.softmax(np.log(WEIGHTS) + (g - cost) / epsilon, axis=1)
        g = g + epsilon * np.log(WEIGHTS / columns)
    found = semidiscrete(
        line, POINTS[:, None], epsilon=epsilon, target_weights=WEIGHTS, tolerance=1e-4
    )
    assert found.converged
    # As for the cells: a mass error of .0055, over a density of points per potential of
    # b / epsilon >= .25.
    np.testing.assert_allclose(found.g, g - WEIGHTS @ g, atol=0.05)
    probabilities = np.asarray(found.probabilities(jnp.asarray(nodes)[:, None]))[:, :5]
    np.testing.assert_allclose(masses @ probabilities, WEIGHTS, atol=0.006)


@pytest.mark.slow
def test_points_far_from_the_origin_keep_their_digits():
    def far(key, n):
        return line(key, n) + 1000

    found = semidiscrete(far, POINTS[:, None] + 1000, target_weights=WEIGHTS, tolerance=1e-3)
    assert found.converged
    np.testing.assert_allclose(found.g, line_potential(POINTS, WEIGHTS), atol=0.2)


@pytest.mark.slow
def test_clusters_of_different_scales_get_their_masses():
    # Distances of neighbours of .001 and .1, and half of the mass at each: one size of step would
    # not do, nor would a fast fall of the regularisation (it ends at chi2 = .012).
    rng = np.random.default_rng(0)
    y = np.concatenate([0.01 * rng.normal(size=(100, 2)), 5 + rng.normal(size=(100, 2))])
    found = semidiscrete(lambda key, n: jax.random.normal(key, (n, 2)), y)
    assert found.converged and found.solve.error.chi2 < 0.01


@pytest.mark.slow
def test_a_point_without_weight_gets_no_mass():
    weights = np.array([0.5, 0.0, 0.5])
    found = semidiscrete(line, np.array([[-1.0], [0.0], [1.0]]), target_weights=weights)
    x = line(jax.random.key(1), 1000)
    assert not np.any(np.asarray(found.assign(x)) == 1)


@pytest.mark.slow
def test_a_second_problem_of_the_same_size_compiles_nothing():
    rng = np.random.default_rng(0)

    def solve(n, m):
        x = rng.normal(size=(512, 2)).astype(np.float32)[:n]
        return semidiscrete(
            Resampled(np.resize(x, (512, 2))), rng.normal(size=(m, 2)), tolerance=0.05
        )

    first = solve(512, 30)
    compilations = Compilations()
    second = solve(512, 25)
    assert compilations.programs == 0
    assert len(first.g) == 30 and len(second.g) == 25


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    return x, (x[::-1] @ np.array([[1.2, 0.3], [0.3, 0.6]], np.float32) + 2)[:200]


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, None])
def test_the_map_goes_onto_the_points(data, epsilon, tmp_path):
    x, y = data
    transport = fit_map(x, y, Semidiscrete(epsilon, tolerance=0.05))
    image = transport(x)
    assert image.shape == x.shape and image.dtype == np.float32
    draws = transport.sample(3, x[:5], 4)
    assert draws.shape == (5, 4, 2)
    drawn = draws.reshape(-1, 2)
    # Points are kept about their mean: rounding of values of order 3.
    nearest = np.min(np.linalg.norm(drawn[:, None] - y[None], axis=2), axis=1)
    assert nearest.max() < 1e-6
    if epsilon == 0.0:
        np.testing.assert_array_equal(draws[:, 0], image[:5])
    np.testing.assert_array_equal(load(transport.save(tmp_path / "map.npz"))(x), image)
    assert transport.fit.converged
    with pytest.raises(NotSupported):
        transport.inverse(image)


@pytest.mark.slow
def test_a_fit_that_stops_early_says_so(data):
    transport = fit_map(*data, Semidiscrete(tolerance=1e-6, max_iterations=400))
    assert not transport.fit.converged
    assert any("chi2" in message for message in transport.fit.messages)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::driftbridge.transport.DataWarning")  # two points, meant
def test_the_entropic_map_has_its_rate_in_ten_dimensions():
    """`E |T_n - T|^2 ~ n^{-1/2}` at `epsilon = n^{-1/2}` times the mean cost.

    Two points `+-e_1` with weights .3 and .7 have half spaces as cells: the map is known.
    """
    dim, weights = 10, np.array([0.7, 0.3])
    points = np.zeros((2, dim), np.float32)
    points[:, 0] = -1, 1
    end = stats.norm.ppf(weights[0])
    sizes, runs = np.array([100, 400, 1600]), 4

    def error(n, seed):
        rng = np.random.default_rng([n, seed])
        x = rng.normal(size=(n, dim)).astype(np.float32)
        ones = rng.binomial(n, weights[1])
        transport = fit_map(
            x, points, Semidiscrete(epsilon=1 / np.sqrt(n), tolerance=1e-4),
            target_weights=np.array([n - ones, ones]) / n,
        )  # fmt: skip
        t = rng.normal(size=(8192, dim)).astype(np.float32)
        true = np.where(t[:, 0] > end, 1.0, -1.0)
        image = transport(t)
        return np.mean((image[:, 0] - true) ** 2 + np.sum(image[:, 1:] ** 2, axis=1))

    errors = np.array([np.mean([error(n, seed) for seed in range(runs)]) for n in sizes])
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # Each mean of four has a relative error of .4 at most, the slope over a factor of 16 one of
    # .2. A rate that depends on the dimension, n^(-1/10), is far.
    assert -0.9 < slope < -0.2
    # T - sign = tanh(s / epsilon) - sign(s), s = x_1 - end: phi(end) epsilon 2 (2 log 2 - 1).
    smoothing = stats.norm.pdf(end) * 2 * (2 * np.log(2) - 1) / np.sqrt(sizes)
    # Masses of source and target are known to (.42 / n)^(1/2), and what is misplaced moves by 2.
    noise = 4 * np.sqrt(2 / np.pi * 2 * np.prod(weights) / sizes)
    assert np.all(smoothing < errors) and np.all(errors < 1.8 * (smoothing + noise))


def test_rows_have_their_probabilities():
    weights = np.array([0.5, 0.0, 0.25, 0.25, 0.0])
    drawn = np.asarray(Rows(weights)(jax.random.key(0), 40_000))
    counts = np.bincount(drawn, minlength=5)
    assert counts[1] == counts[4] == 0
    assert stats.chisquare(counts[[0, 2, 3]], 40_000 * weights[[0, 2, 3]]).pvalue > 1e-4


@pytest.mark.slow
def test_resampled_points_have_their_noise(x64):
    x = np.array([[0.0], [10.0]])
    drawn = np.asarray(Resampled(x, noise=0.5)(jax.random.key(0), 20_000))[:, 0]
    rest = np.where(drawn > 5, drawn - 10, drawn)
    # A standard deviation of n draws is known to 1 / sqrt(2 n).
    assert abs(rest.std() / 0.5 - 1) < 5 / np.sqrt(40_000)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"epsilon": -1.0}, "epsilon"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_iterations": 10}, "max_iterations"),
        ({"batch_size": 0}, "batch_size"),
        ({"target_weights": np.ones(5)}, "sum to 1"),
        ({"source": lambda key, n: jax.random.normal(key, (n, 2))}, "dimension 2 and y 1"),
        ({"source": lambda key, n: jax.random.normal(key, (n,))}, r"shape \(n, dim\)"),
        ({"source": lambda key, n: np.asarray(key)}, "trace it"),
        ({"source": line, "source_weights": np.ones(3) / 3}, "is a function"),
    ],
)
def test_what_cannot_be_solved_is_refused(arguments, says):
    arguments = {"source": line, **arguments}
    source = arguments.pop("source")
    with pytest.raises(ValueError, match=says):
        semidiscrete(source, POINTS[:, None], **arguments)


def test_a_module_is_a_source_with_leaves():
    draw, like = as_draw(np.zeros((3, 2), np.float32), "x")
    assert isinstance(draw, Resampled)
    assert like.shape == (2,) and like.dtype == np.float32

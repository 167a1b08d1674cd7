"""Closed forms and symmetries of the maps between data sets."""

import jax
import numpy as np
import pytest

import driftbridge as db
from driftbridge.transport import Affine, Corrected, Debiased, Entropic, Progressive
from driftbridge.transport.affine import bures

COVARIANCES = (np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[2.0, -0.8], [-0.8, 1.5]]))
METHODS = {
    "affine": Affine(),
    "corrected": Corrected(),
    "entropic": Entropic(),
    "debiased": Debiased(),
    "progressive": Progressive(num_steps=2),
}
INVERTIBLE = ("affine", "corrected")


def clouds(seed=0, n=120, dim=2, shift=3.0):
    """Two clouds that no affine map takes to one another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    y = rng.normal(size=(n + 20, dim))
    return x, shift + y + 0.3 * np.sinh(y)


def exact_gaussians(n=400, seed=0):
    """Two clouds whose sample moments are those of the Gaussians exactly."""
    rng = np.random.default_rng(seed)
    out = []
    for covariance, mean in zip(COVARIANCES, ([0.0, 0.0], [2.0, -1.0]), strict=True):
        z = rng.normal(size=(n, 2))
        z = z - z.mean(axis=0)
        z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, ddof=0))).T
        out.append(np.asarray(mean) + z @ np.linalg.cholesky(covariance).T)
    return out


def test_affine_is_the_map_of_bures(x64):
    x, y = exact_gaussians()
    fitted = db.fit_map(x, y, "affine")
    # A C0 A = C1 with A symmetric positive definite has one solution.
    matrix = np.asarray(fitted.matrix)
    assert np.allclose(matrix @ COVARIANCES[0] @ matrix, COVARIANCES[1], atol=1e-5)
    assert np.allclose(matrix, matrix.T) and np.all(np.linalg.eigvalsh(matrix) > 0)
    image = np.asarray(fitted(x))
    assert np.allclose(image.mean(axis=0), y.mean(axis=0), atol=1e-12)
    # The ridge of 1e-6 is all that separates the covariances.
    assert np.allclose(np.cov(image.T), np.cov(y.T), atol=1e-5)


def test_commuting_covariances_have_the_ratio_of_roots(x64):
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 1.0])
    assert np.allclose(bures(a, b).matrix, np.diag([2.0, 0.5, 1 / 3]), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 5, 8])
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_residual_is_positive_definite(x64, dim, epsilon):
    rng = np.random.default_rng(dim)
    x, y = (rng.normal(size=(60, dim)) @ rng.normal(size=(dim, dim)) for _ in range(2))
    # Sinkhorn's accuracy does not matter: the residual is of the covariances alone.
    fitted = db.fit_map(x, y, Corrected(epsilon=epsilon, max_iterations=20))
    values = np.linalg.eigvalsh(np.asarray(fitted.residual))
    assert values.min() > 0


@pytest.mark.slow
def test_corrected_tends_to_affine_and_to_entropic(x64):
    x, y = clouds()
    large = db.fit_map(x, y, Corrected(share=1e4, tolerance=1e-10))
    affine = db.fit_map(x, y, "affine")
    # The residual G - T_eps is of order (variance / epsilon), here 1e-4 of the spread.
    assert np.allclose(large(x), affine(x), atol=2e-3)
    small = Corrected(share=0.01, tolerance=1e-6)
    plain = Entropic(share=0.01, tolerance=1e-6)
    difference = np.asarray(db.fit_map(x, y, small)(x)) - np.asarray(db.fit_map(x, y, plain)(x))
    # M - G = epsilon / 2 C0^{-1} to first order in epsilon.
    epsilon = dict(db.fit_map(x, y, plain).fit.numbers)["epsilon"]
    first = (x - x.mean(axis=0)) @ np.linalg.inv(np.cov(x.T)) * epsilon / 2
    assert np.allclose(difference, first, atol=0.05 * np.abs(first).max())


@pytest.mark.slow
def test_entropic_map_is_the_closed_form_of_gaussians(x64):
    """One dimension, on a fine grid of quantiles of N(0, 1) and N(1, 4).

    The conditional mean of the entropic plan has slope `(sqrt(4 s0² s1² + e²) - e) / (2 s0²)`.
    """
    from scipy.stats import norm

    n, epsilon = 1200, 0.5
    z = norm.ppf((np.arange(n) + 0.5) / n)[:, None]
    fitted = db.fit_map(z, 1 + 2 * z, Entropic(epsilon=epsilon, tolerance=1e-9))
    slope = (np.sqrt(4 * 4 + epsilon**2) - epsilon) / 2
    inside = np.linspace(-1, 1, 9)[:, None]
    # A grid of n quantiles has a variance short by about 3 / n: 0.25 % of the slope.
    assert np.allclose(fitted(inside), 1 + slope * inside, atol=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_orthogonal_maps_and_scale_go_through(x64, name):
    x, y = clouds()
    turn, scale = np.array([[0.6, -0.8], [0.8, 0.6]]), 3.0
    fitted = db.fit_map(x, y, METHODS[name])
    moved = db.fit_map(scale * x @ turn + 1, scale * y @ turn - 2, METHODS[name])
    new = x[:50] + 0.1
    expected = scale * np.asarray(fitted(new)) @ turn - 2
    # Sinkhorn stops at the same iterate: both compute the same numbers up to rounding, which the
    # sums of an iteration to 1e-3 leave far below this.
    assert np.allclose(moved(scale * new @ turn + 1), expected, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_does_not_matter(x64, name):
    x, y = clouds()
    rng = np.random.default_rng(1)
    shuffled = db.fit_map(rng.permutation(x), rng.permutation(y), METHODS[name])
    assert np.allclose(shuffled(x[:20]), db.fit_map(x, y, METHODS[name])(x[:20]), atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_copies(x64, name):
    """A point of weight 2/n is a point that is there twice."""
    x, y = clouds(n=60)
    twice = np.concatenate([x, x[:10]])
    weights = np.concatenate([np.full(10, 2.0), np.ones(50)]) / 70
    weighted = db.fit_map(x, y, METHODS[name], source_weights=weights)
    whole = db.fit_map(twice, y, METHODS[name])
    # Sinkhorn's iteration to 1e-3 may end a step apart.
    assert np.allclose(weighted(x[:20]), whole(x[:20]), atol=2e-3)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_round_trips(x64, name):
    x, y = clouds()
    fitted = db.fit_map(x, y, METHODS[name])
    far = 5 * x
    assert np.allclose(fitted.inverse(fitted(far)), far, atol=1e-8)
    # Onto: the residual is positive definite, so any point has a source, outside the data too.
    wanted = 10 * y
    assert np.allclose(fitted(fitted.inverse(wanted)), wanted, atol=1e-7)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_log_det_is_that_of_the_jacobian(x64, name):
    x, y = clouds()
    fitted = db.fit_map(x, y, METHODS[name])
    jacobian = jax.vmap(jax.jacfwd(lambda p: fitted(p)))(x[:20])
    assert np.allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-9)
    assert np.all(np.linalg.eigvalsh(jacobian) > 0)
    assert np.allclose(fitted.log_det(x[:20]), np.linalg.slogdet(jacobian)[1], atol=1e-9)


@pytest.mark.slow
def test_density_of_the_image_integrates_to_one(x64):
    x, y = clouds(dim=1)
    fitted = db.fit_map(x, y, "corrected")
    grid = np.linspace(-40, 60, 10_001)[:, None]
    density = np.exp(fitted.log_prob(grid, lambda p: -np.sum(np.asarray(p) ** 2, 1) / 2)) / np.sqrt(
        2 * np.pi
    )
    # The trapezium rule: 1.6e-3 at steps of 0.05, and as the square of the step.
    assert np.trapezoid(density, grid[:, 0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_known_map_on_data(x64):
    """The gradient of a convex function is optimal for its image: identity pairing."""
    x, _ = clouds(n=300)
    truth = x + 0.5 * np.tanh(x)
    target = np.random.default_rng(5).permutation(truth)
    errors = {}
    for name in ("corrected", "entropic", "affine"):
        image = np.asarray(db.fit_map(x, target, METHODS[name])(x))
        errors[name] = np.mean((image - truth) ** 2) / truth.var()
    # Nothing separates source and target but the map, so an entropic map errs by its blur alone,
    # of the order of epsilon: 10 % of the mean cost for `corrected`, whose affine part is exact.
    assert errors["corrected"] < 0.01
    assert errors["corrected"] < errors["entropic"]


def test_draws_have_the_conditional_mean(x64):
    x, y = clouds()
    fitted = db.fit_map(x, y, Entropic(share=0.2))
    draws = np.asarray(fitted.sample(0, x[:5], 4000))
    error = draws.std(axis=1) / np.sqrt(4000)
    # Ten numbers, five standard errors: false alarm below 1e-5.
    assert np.all(np.abs(draws.mean(axis=1) - np.asarray(fitted(x[:5]))) < 5 * error)


def test_steps_of_the_progressive_map_move_on(x64):
    """One step is the entropic map; the image of the source is the recursion of the fit."""
    x, y = clouds()
    one = db.fit_map(x, y, Progressive(num_steps=1, share=0.1))
    assert np.allclose(one(x), db.fit_map(x, y, Entropic(share=0.1))(x), atol=1e-10)
    three = db.fit_map(x, y, Progressive(num_steps=3, share=0.1))
    points = x
    for step, fraction in zip(three.steps, (1 / 3, 1 / 2, 1.0), strict=True):
        points = points + fraction * (np.asarray(step(points)) - points)
    assert np.allclose(three(x), points, atol=1e-10)


@pytest.mark.filterwarnings("ignore::driftbridge.transport.pairs.DataWarning")
def test_directions_without_points_do_not_spoil_the_others(x64):
    """Columns that are constant in the source, under a map that mixes all columns."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    truth = root @ root.T / 6 + 0.2 * np.eye(6)
    x = rng.normal(size=(400, 6)) * [1, 1, 1, 1, 0, 0]
    fitted = db.fit_map(x, x @ truth, "affine")
    # Between the same points the affine map is found up to the ridge of 1e-6 of the variance, over
    # the smallest of the four eigenvalues that the blur leaves: about .05.
    assert np.abs(fitted(x) - x @ truth).max() < 1e-3
    # New points may vary where the old ones did not: they are stretched by ten at most.
    moved = np.asarray(fitted(x + 1e-3 * np.eye(6)[5]) - fitted(x)) / 1e-3
    scale = np.sqrt((x.var(axis=0) + (x @ truth).var(axis=0)) / 2)
    assert np.abs(moved / scale).max() * scale[5] < 10

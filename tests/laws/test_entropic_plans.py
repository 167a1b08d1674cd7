"""Laws of entropic plans: closed forms, duality and symmetries."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from driftbridge.transport.costs import half_squared_distance
from driftbridge.transport.sinkhorn import sinkhorn

# Marginal error of plans that stand for the exact ones, in float64.
TIGHT = 1e-10
FORMS = ("stored", "blocked", "log", "newton")


def clouds(n=30, m=27, dim=2):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(n, dim)), 0.7 * rng.normal(size=(m, dim)) + 1.5
    a, b = rng.uniform(0.5, 1.5, size=n), rng.uniform(0.5, 1.5, size=m)
    return x, y, a / a.sum(), b / b.sum()


def normal_grid(half_width, step, dim):
    """Points and weights of the trapezoidal rule for a standard normal."""
    line = np.arange(-half_width, half_width + step / 2, step)
    points = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = np.exp(-np.sum(points**2, axis=1) / 2)
    return points, weights / weights.sum()


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_gaussians_on_a_line(x64, epsilon):
    # The rule's error for a Gaussian is exp(-2 pi^2 / step^2) of the least width, here 1e-85, and
    # the mass beyond seven deviations, 3e-12, times its squared distance of 49.
    z, weights = normal_grid(7.0, 0.1, 1)
    s0, s1 = 1.0, 0.6
    plan = sinkhorn(s0 * z, s1 * z, epsilon=epsilon, a=weights, b=weights, tolerance=TIGHT)
    covariance = float(np.sum(s0 * z * np.asarray(plan.pull(s1 * z))))
    expected = (np.sqrt(4 * s0**2 * s1**2 + epsilon**2) - epsilon) / 2
    np.testing.assert_allclose(covariance, expected, rtol=1e-8)
    information = -np.log(1 - (expected / (s0 * s1)) ** 2) / 2
    value = (s0**2 + s1**2) / 2 - expected + epsilon * information
    np.testing.assert_allclose(plan.dual, value, rtol=1e-8)


@pytest.mark.slow
def test_gaussians_in_the_plane(x64):
    # As above with the mass beyond six deviations, 4e-9, times 36.
    z, weights = normal_grid(6.0, 0.5, 2)
    c0, c1 = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.6, -0.3], [-0.3, 1.2]])
    x, y = (z @ np.linalg.cholesky(c).T for c in (c0, c1))
    epsilon = 1.0
    plan = sinkhorn(x, y + 3.0, epsilon=epsilon, a=weights, b=weights, tolerance=TIGHT)
    covariance = x.T @ np.asarray(plan.pull(y))
    root = np.real(sqrtm(c0))
    inner = np.real(sqrtm(4 * root @ c1 @ root + epsilon**2 * np.eye(2)))
    expected = (root @ inner @ np.linalg.inv(root) - epsilon * np.eye(2)) / 2
    np.testing.assert_allclose(covariance, expected, atol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("max_iterations", [3, 10_000])
def test_certificate_holds_the_exact_cost(share, max_iterations):
    """Also that of a plan that has not converged, whose own cost may lie below the exact one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 3)).astype("f"), rng.normal(size=(32, 3)).astype("f") + 1
    costs = np.sum((x[:, None] - y[None]) ** 2, axis=2) / 2
    rows, columns = linear_sum_assignment(costs)
    exact = costs[rows, columns].mean()
    mean = costs.mean() - 1.5
    plan = sinkhorn(x, y, epsilon=share * mean, max_iterations=max_iterations)
    lower, upper = plan.certificate
    # Costs of about 5, of products in float32, carry an error of a few times 1e-7.
    assert lower <= exact + 2e-6 and exact <= upper + 2e-6
    assert plan.cost == upper
    if plan.converged:
        # The bias of a plan is at most epsilon times the entropy of an assignment.
        assert upper - lower <= 2 * share * mean * np.log(32) + 1e-3 * costs.max()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_value_lies_below_the_primal(x64, form):
    x, y, a, b = clouds()
    plan = sinkhorn(x, y, epsilon=0.1, a=a, b=b, tolerance=1e-6, method=form)
    matrix = np.asarray(plan.matrix())
    costs = np.sum((x[:, None] - y[None]) ** 2, axis=2) / 2
    primal = np.sum(matrix * costs) + 0.1 * np.sum(matrix * np.log(matrix / np.outer(a, b)))
    # Equal at the optimum; the plan's marginals are off by 1e-6, at costs of at most 15.
    np.testing.assert_allclose(plan.dual, primal, atol=3e-5)
    other = sinkhorn(x, y, epsilon=0.1, a=a, b=b, tolerance=0, max_iterations=2, method="log")
    assert other.dual <= plan.dual


@pytest.mark.parametrize("form", FORMS)
def test_symmetries(x64, form):
    x, y, a, b = clouds()
    rng = np.random.default_rng(1)
    order = rng.permutation(len(x))
    options = {"tolerance": 1e-8, "method": form}
    plan = sinkhorn(x, y, epsilon=0.2, a=a, b=b, **options)
    permuted = sinkhorn(x[order], y, epsilon=0.2, a=a[order], b=b, **options)
    scaled = sinkhorn(3 * x, 3 * y, epsilon=9 * 0.2, a=a, b=b, **options)
    moved = sinkhorn(x + 5, y - 7, epsilon=0.2, a=a, b=b, **options)
    turned = sinkhorn(y, x, epsilon=0.2, a=b, b=a, **options)
    # Entries are at most .1, and a marginal error of 1e-8 moves them by less.
    matrix = np.asarray(plan.matrix())
    np.testing.assert_allclose(permuted.matrix(), matrix[order], atol=1e-8)
    np.testing.assert_allclose(scaled.matrix(), matrix, atol=1e-8)
    np.testing.assert_allclose(moved.matrix(), matrix, atol=1e-8)
    np.testing.assert_allclose(turned.matrix(), matrix.T, atol=1e-8)
    np.testing.assert_allclose(scaled.dual, 9 * plan.dual, rtol=1e-8)


@pytest.mark.slow
def test_a_symmetric_problem_has_one_potential(x64):
    x, _, a, _ = clouds()
    plan = sinkhorn(x, x, epsilon=0.2, a=a, b=a, tolerance=TIGHT)
    np.testing.assert_allclose(plan.f, plan.g, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_potentials_are_softmins_of_one_another(x64, form):
    x, y, a, b = clouds()
    a[4], b[7] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    plan = sinkhorn(x, y, epsilon=0.1, a=a, b=b, tolerance=1e-8, method=form)
    costs = np.sum((x[:, None] - y[None]) ** 2, axis=2) / 2
    f, g = np.asarray(plan.f), np.asarray(plan.g)
    soft = -0.1 * np.log(np.sum(b * np.exp((g[None] - costs) / 0.1), axis=1))
    np.testing.assert_allclose(f, soft, atol=1e-6)
    np.testing.assert_allclose(plan.f_at(x), soft, atol=1e-10)
    soft = -0.1 * np.log(np.sum(a[:, None] * np.exp((f[:, None] - costs) / 0.1), axis=0))
    np.testing.assert_allclose(g, soft, atol=1e-6)
    np.testing.assert_allclose(plan.g_at(y), soft, atol=1e-10)


def test_products_are_those_of_the_matrix(x64):
    x, y, a, b = clouds()
    plan = sinkhorn(x, y, epsilon=0.1, a=a, b=b)
    matrix = np.asarray(plan.matrix())
    rows, columns = plan.marginals()
    np.testing.assert_allclose(rows, matrix.sum(1), rtol=1e-12)
    np.testing.assert_allclose(columns, matrix.sum(0), rtol=1e-12)
    np.testing.assert_allclose(plan.pull(y), matrix @ y, rtol=1e-12)
    np.testing.assert_allclose(plan.push(x[:, 0]), matrix.T @ x[:, 0], rtol=1e-12)
    mean = (matrix @ y) / matrix.sum(1)[:, None]
    np.testing.assert_allclose(plan.barycentric(), mean, rtol=1e-10)
    np.testing.assert_allclose(plan.conditional_mean(x[:5]), mean[:5], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_cost_is_a_function_of_two_points(x64, form):
    x, y, a, b = clouds()
    options = {"epsilon": 0.1, "a": a, "b": b, "tolerance": 1e-8, "method": form}
    plan = sinkhorn(x, y, **options)
    same = sinkhorn(x, y, cost=half_squared_distance, **options)
    np.testing.assert_allclose(same.matrix(), plan.matrix(), atol=1e-8)
    np.testing.assert_allclose(same.dual, plan.dual, rtol=1e-8)
    # A column that is off by 1e-8 of its mass of .02 moves its potential by 5e-7 of epsilon.
    np.testing.assert_allclose(same.g_at(y), same.g, atol=1e-7)
    np.testing.assert_allclose(same.f_at(x), same.f, atol=1e-7)

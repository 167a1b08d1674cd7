"""Balancing weights: known optima, their bounds, and what is refused."""

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.spatial.distance import cdist

from driftbridge.transport.balancing import balance_weights
from driftbridge.transport.distances import sinkhorn_divergence, wasserstein
from driftbridge.transport.entropy_balancing import largest_effective_size, largest_entropy
from driftbridge.transport.maximum_mean_discrepancy import energy_distance, mmd
from driftbridge.transport.simplex import BoundedSimplex, effective_size

METRICS = {
    "mmd": {},
    "gaussian": {"ipm": "mmd", "kernel": "gaussian"},
    "linear": {},
    "w1": {},
    "sinkhorn": {"epsilon": 0.3},
}
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "sinkhorn" else n for n in METRICS]
)


def two(n=40, m=50, dim=2, seed=0, shift=0.4):
    rng = np.random.default_rng(seed)
    return 1.3 * rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) + shift


def balance(name, x, y, **keywords):
    return balance_weights(x, y, **({"ipm": name} | METRICS[name] | keywords))


def of_metric(name, x, y, a=None):
    if name == "linear":
        deviation = np.sqrt((x.var(0) + y.var(0)) / 2)
        mean = x.mean(0) if a is None else a @ x
        return np.linalg.norm((mean - y.mean(0)) / deviation)
    return {
        "mmd": energy_distance,
        "gaussian": mmd,
        "w1": lambda x, y, a: wasserstein(x, y, 1, a=a),
        "sinkhorn": lambda x, y, a: sinkhorn_divergence(x, y, 0.3, a=a).distance,
    }[name](x, y, a=a)


@each
def test_the_metric_falls_to_within_its_bound(x64, name):
    x, y = two()
    found = balance(name, x, y)
    assert found.status == "converged"
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-12)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.ess, effective_size(found.weights), rtol=1e-12)
    assert found.lower - 1e-9 <= found.after <= found.lower + 0.011 * found.before
    # Duals are right to the square of a marginal error of 1e-4.
    rtol = 1e-5 if name == "sinkhorn" else 1e-9
    np.testing.assert_allclose(found.before, of_metric(name, x, y), rtol=rtol)
    after = of_metric(name, x, y, found.weights)
    np.testing.assert_allclose(found.after, after, rtol=rtol, atol=1e-7)
    assert name.replace("gaussian", "mmd") in str(found) and "converged" in str(found)


@each
def test_the_bound_on_the_effective_size_is_kept_and_has_its_price(x64, name):
    x, y = two()
    free = balance(name, x, y)
    least = 0.5 * free.ess + 20
    bounded = balance(name, x, y, ess_min=least) if name != "linear" else free
    assert bounded.ess >= least * (1 - 1e-9) or name == "linear"
    assert bounded.after >= free.lower - 1e-9
    assert bounded.converged
    if name != "linear":
        even = balance(name, x, y, ess_min=len(x))
        np.testing.assert_allclose(even.weights, 1 / len(x), rtol=1e-9)
        np.testing.assert_allclose(even.after, even.before, rtol=1e-5)
        assert bounded.after < even.after


@each
def test_the_target_that_is_a_reweighted_sample_is_found(x64, name):
    x = 3 * np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), axis=-1).reshape(-1, 2)
    b = np.arange(1, 13) / 78
    # Entropic potentials of points that no mass links are known only to the marginal error, and
    # duals to its square, 1e-8: a root of 1e-4.
    keywords = {"epsilon": 5.0} if name == "sinkhorn" else {"tolerance": 1e-3}
    if name == "gaussian":
        keywords["bandwidth"] = 2.0
    found = balance(name, x, x, b=b, **keywords)
    difference = found.weights - b
    if name == "linear":
        np.testing.assert_allclose(found.weights @ x, b @ x, rtol=1e-8)
        return
    assert found.converged
    assert found.after <= (0.02 if name == "sinkhorn" else 2e-3) * found.before
    if name == "w1":
        # Each misplaced unit of mass travels at least from one point of the grid to the next.
        assert np.abs(difference).sum() / 2 * 3 <= found.after + 1e-12
    if name in ("mmd", "gaussian"):
        kernel = -cdist(x, x) if name == "mmd" else np.exp(-cdist(x, x, "sqeuclidean") / 8)
        centre = np.eye(12) - 1 / 12
        least = np.linalg.eigvalsh(centre @ kernel @ centre)[1]
        assert least > 0 and np.sum(difference**2) * least <= found.after**2 + 1e-12


@pytest.mark.parametrize("kernel", ["energy", "gaussian", "laplace"])
def test_two_points_by_hand(kernel):
    # F(w) = -2 w (1 - w) (k0 - k1) + ... is a parabola: its vertex by three values.
    x, y = np.array([0.0, 2.0]), np.array([0.7, 0.9, 1.4])

    def value(w):
        return mmd(x, y, kernel, 1.1, a=[1 - w, w]) ** 2

    low, middle, high = (value(w) for w in (0.0, 0.5, 1.0))
    vertex = 0.5 - (high - low) / (4 * (high + low - 2 * middle))
    found = balance_weights(x, y, kernel=kernel, bandwidth=1.1, tolerance=1e-6)
    # The gap bounds the square of the distance to the vertex; distances are computed in float32.
    np.testing.assert_allclose(found.weights[1], vertex, atol=2e-3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_the_bounded_program_agrees_with_another_solver(share):
    x, y = two(8, 9)
    ess_min = share * 8
    found = balance_weights(x, y, ess_min=ess_min, tolerance=1e-4)
    kxx, kxy = -cdist(x, x), -cdist(x, y).mean(1)
    other = minimize(
        lambda w: w @ kxx @ w - 2 * kxy @ w,
        np.full(8, 1 / 8),
        bounds=[(0, 1)] * 8,
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w: 1 / ess_min - w @ w},
        ],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    expected = np.sqrt(other.fun + cdist(y, y).mean() * -1)
    # `after` is within 1e-4 of `before` of the optimum.
    np.testing.assert_allclose(found.after, expected, atol=2e-4 * found.before)


@pytest.mark.parametrize("moments", [1, 2])
def test_moments_are_matched_exactly(moments):
    x, y = two(200, 100, 3)
    b = np.random.default_rng(2).dirichlet(np.ones(100) * 20)
    found = balance_weights(x, y, "linear", b=b, moments=moments)
    np.testing.assert_allclose(found.weights @ x, b @ y, atol=1e-9)
    if moments == 2:
        np.testing.assert_allclose((x.T * found.weights) @ x, (y.T * b) @ y, atol=1e-8)
    # Of the form exp(affine): log-weights are explained by the moments.
    logs = np.log(found.weights)
    pairs = [x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)] if moments == 2 else []
    basis = np.column_stack([np.ones(200), x, *pairs])
    rest = logs - basis @ np.linalg.lstsq(basis, logs)[0]
    assert np.abs(rest).max() < 1e-8


def test_effective_size_of_exact_balance_is_the_largest():
    x, y = two(60, 50, 2, shift=0.8)
    h = x - y.mean(0)
    entropy, size = largest_entropy(h), largest_effective_size(h)
    assert entropy.status == size.status == "converged"
    assert effective_size(size.weights) > effective_size(entropy.weights)
    # Its weights are the positive part of an affine function: optimal for the quadratic program.
    active = size.weights > 1e-12
    basis = np.column_stack([np.ones(60), h])
    coefficients = np.linalg.lstsq(basis[active], size.weights[active])[0]
    np.testing.assert_allclose(np.maximum(basis @ coefficients, 0), size.weights, atol=1e-12)
    between = (effective_size(size.weights) + effective_size(entropy.weights)) / 2
    found = balance_weights(x, y, "linear", ess_min=between)
    assert found.ess > between and found.after < 1e-9
    with pytest.raises(ValueError, match=r"effective size of at most .* ess_min = 60"):
        balance_weights(x, y, "linear", ess_min=60)


def test_without_a_bound_the_nearest_neighbours_count():
    x, y = two()
    found = balance_weights(x, y, "w1")
    nearest = np.argmin(cdist(x, y), axis=0)
    np.testing.assert_allclose(found.weights, np.bincount(nearest, minlength=40) / 50, atol=1e-15)
    np.testing.assert_allclose(found.after, cdist(x, y).min(0).mean(), rtol=1e-12)
    np.testing.assert_allclose(found.lower, found.after, rtol=1e-12)


def test_the_bound_of_wasserstein_weights_agrees_with_a_linear_program():
    # In place of sum w^2 <= 1 / e, its tangents at the weights found: a relaxation, whose optimum
    # lies between the certified bound and what was reached.
    x, y = two(10, 12)
    found = balance_weights(x, y, "w1", ess_min=8.0)
    cost, w = cdist(x, y), found.weights
    sums = np.kron(np.ones((1, 10)), np.eye(12))
    tangent = np.repeat(2 * w, 12)[None]
    relaxed = linprog(
        cost.ravel(), A_eq=sums, b_eq=np.full(12, 1 / 12), A_ub=tangent, b_ub=[1 / 8 + w @ w]
    )
    assert relaxed.fun <= found.after + 1e-9
    assert found.lower <= found.after and found.after - found.lower < 0.01 * found.before
    # The tangent touches at the optimum, where it is the only constraint that matters.
    assert relaxed.fun > found.lower - 0.01 * found.before


@pytest.mark.parametrize("ess_min", [1.0, 1.7, 3.0, 4.8])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_projections_on_the_bounded_simplex(ess_min, size):
    rng = np.random.default_rng(3)
    allowed = BoundedSimplex(ess_min)
    others = np.concatenate([rng.dirichlet(np.ones(5) * c, 400) for c in (0.3, 1, 10)])
    others = np.array([w for w in others if effective_size(w) >= ess_min])
    for _ in range(20):
        v = size * rng.normal(size=5)
        near, low, tilted = allowed.project(v), allowed.least(v), allowed.tilt(v)
        for w in (near, low, tilted):
            assert effective_size(w) >= ess_min * (1 - 1e-9) and (w >= 0).all()
            np.testing.assert_allclose(w.sum(), 1, rtol=1e-12)
        # Variational inequalities, to rounding.
        assert ((others - near) @ (v - near)).max() < 1e-12
        assert ((others - low) @ v).min() > -1e-12
        assert ((others - tilted) @ (np.log(np.maximum(tilted, 1e-300)) - v)).min() > -1e-7
    np.testing.assert_allclose(BoundedSimplex(5.0).tilt(v), 0.2, rtol=1e-12)
    corner = BoundedSimplex(2.0).least(np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(corner, [0.5, 0.5, 0])


def test_float32_points_and_data_of_one_column():
    x, y = two(30, 20, 1)
    short = balance_weights(x.astype(np.float32), y.astype(np.float32), tolerance=1e-4)
    long = balance_weights(x[:, 0], y[:, 0], tolerance=1e-4)
    assert short.weights.dtype == np.float64
    np.testing.assert_allclose(short.after, long.after, atol=2e-4 * long.before)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"ipm": "tv"}, "ipm must be one of"),
        ({"ess_min": 0.5}, r"\[1, 40\]"),
        ({"ess_min": 41}, r"\[1, 40\]"),
        ({"moments": 3}, "moments"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"kernel": "rbf"}, "kernel must be one of"),
        ({"b": np.ones(50)}, "sum to 50"),
        ({"ipm": "linear", "target": two()[1] + [0, 9]}, "that of column 1 stays"),
        ({"target": np.zeros((3, 3))}, "2 and 3 columns"),
    ],
)
def test_what_cannot_be_balanced_is_refused(keywords, says):
    x, y = two()
    with pytest.raises(ValueError, match=says):
        balance_weights(**({"x": x, "target": y} | keywords))


def test_columns_of_data_frames_are_matched_by_name():
    pandas = pytest.importorskip("pandas")
    x, y = two()
    source = pandas.DataFrame(x, columns=["age", "dose"])
    target = pandas.DataFrame(y[:, ::-1], columns=["dose", "age"])
    found = balance_weights(source, target, "linear")
    expected = balance_weights(x, y, "linear").weights
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="that of dose stays"):
        balance_weights(source, target.assign(dose=9.0), "linear")
    with pytest.raises(ValueError, match=r"only in x: \['dose'\], only in y: \['mass'\]"):
        balance_weights(source, target.rename(columns={"dose": "mass"}), "linear")


def test_constants_are_left_out_only_if_they_agree():
    x, y = two()
    same = np.column_stack([x, np.full(40, 0.1)]), np.column_stack([y, np.full(50, 0.1)])
    found = balance_weights(*same, "linear").weights
    np.testing.assert_allclose(found, balance_weights(x, y, "linear").weights, rtol=1e-9)
    with pytest.raises(ValueError, match="that of column 2 stays"):
        balance_weights(same[0], np.column_stack([y, np.full(50, 3.0)]), "linear")


def test_an_interrupted_solve_says_so():
    x, y = two()
    found = balance_weights(x, y, tolerance=1e-9, max_iterations=3)
    assert found.status == "max_iterations" and not found.converged
    assert found.lower <= found.after


def test_the_moment_that_no_weights_match_is_named():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(70, 3))
    with pytest.raises(ValueError, match="that of column 3 stays"):
        balance_weights(np.c_[x, np.ones(60)], np.c_[y, np.zeros(70)], "linear")

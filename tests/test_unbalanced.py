"""Transport that may leave mass behind."""

import numpy as np
import pytest

from driftbridge.transport import unbalanced
from driftbridge.transport.sinkhorn import sinkhorn
from driftbridge.transport.unbalanced import partial_sinkhorn, unbalanced_sinkhorn

EPSILON = 0.1
# Potentials of a plan whose marginals would move by 1e-9 are off by about as much.
TIGHT = 1e-9


def clouds(masses=True):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(13, 2)), rng.normal(size=(17, 2)) + 2.0
    a, b = rng.uniform(0.1, 1, size=13), rng.uniform(0.1, 1, size=17)
    if not masses:
        a, b = a / a.sum(), b / b.sum()
    return x, y, a, b


def divergence(p, q):
    return np.sum(p * np.log(p / q) - p + q)


def regularised_cost(plan, x, y, a, b):
    matrix = np.asarray(plan.matrix())
    costs = np.sum((x[:, None] - y[None]) ** 2, axis=2) / 2
    return np.sum(costs * matrix) + EPSILON * divergence(matrix, a[:, None] * b[None, :]), matrix


@pytest.mark.parametrize("taus", [(1.0, 1.0), (0.3, 2.0), (50.0, 50.0), (1.0, np.inf)])
def test_primal_equals_dual(x64, taus):
    x, y, a, b = clouds()
    plan = unbalanced_sinkhorn(
        x, y, epsilon=EPSILON, tau_a=taus[0], tau_b=taus[1], a=a, b=b, tolerance=TIGHT
    )
    assert plan.status == "converged"
    primal, matrix = regularised_cost(plan, x, y, a, b)
    for tau, sums, weights in ((taus[0], matrix.sum(1), a), (taus[1], matrix.sum(0), b)):
        if np.isfinite(tau):
            primal += tau * divergence(sums, weights)
        else:
            np.testing.assert_allclose(sums, weights, atol=TIGHT)
    # Strong duality; a held marginal that is off by 1e-9 costs that times the potential.
    np.testing.assert_allclose(plan.dual, primal, rtol=1e-8)
    np.testing.assert_allclose(plan.mass, matrix.sum(), rtol=1e-12)


@pytest.mark.slow
def test_infinite_tau_is_balanced(x64):
    x, y, a, b = clouds(masses=False)
    balanced = sinkhorn(x, y, epsilon=EPSILON, a=a, b=b, tolerance=TIGHT)
    plan = unbalanced_sinkhorn(x, y, epsilon=EPSILON, a=a, b=b, tolerance=TIGHT)
    np.testing.assert_allclose(plan.matrix(), balanced.matrix(), atol=10 * TIGHT)
    np.testing.assert_allclose(plan.dual, balanced.dual, rtol=1e-8)


def test_two_points_far_apart_keep_no_mass_between_them(x64):
    # One atom each: the plan's mass p solves C + eps log p + 2 tau log p = 0.
    tau, distance = 0.7, 2.0
    plan = unbalanced_sinkhorn(
        [[0.0]], [[distance]], epsilon=EPSILON, tau_a=tau, tau_b=tau, tolerance=1e-12
    )
    expected = np.exp(-(distance**2) / 2 / (EPSILON + 2 * tau))
    np.testing.assert_allclose(plan.mass, expected, rtol=1e-10)


@pytest.mark.parametrize("mass", [0.3, 0.9, 1.0])
def test_partial_plan_is_feasible_and_optimal(x64, mass):
    x, y, a, b = clouds(masses=False)
    plan = partial_sinkhorn(x, y, epsilon=EPSILON, mass=mass, a=a, b=b, tolerance=TIGHT)
    assert plan.status == "converged"
    primal, matrix = regularised_cost(plan, x, y, a, b)
    assert np.all(matrix.sum(1) <= a + TIGHT) and np.all(matrix.sum(0) <= b + TIGHT)
    np.testing.assert_allclose(plan.mass, mass, rtol=1e-9)
    np.testing.assert_allclose(plan.dual, primal, rtol=1e-8)


def test_whole_mass_is_balanced(x64):
    x, y, a, b = clouds(masses=False)
    balanced = sinkhorn(x, y, epsilon=EPSILON, a=a, b=b, tolerance=TIGHT)
    plan = partial_sinkhorn(x, y, epsilon=EPSILON, mass=1.0, a=a, b=b, tolerance=TIGHT)
    np.testing.assert_allclose(plan.matrix(), balanced.matrix(), atol=10 * TIGHT)


@pytest.mark.slow
def test_float32_and_its_limits():
    x, y, a, b = clouds()
    plan = unbalanced_sinkhorn(x, y, epsilon=EPSILON, tau_a=1.0, tau_b=1.0, a=a, b=b)
    assert plan.f.dtype == np.float32 and plan.converged
    with pytest.raises(AttributeError, match="no certificate"):
        _ = plan.certificate
    with pytest.raises(AttributeError, match="no cost"):
        _ = plan.cost


def test_bad_input_is_named():
    x, y, a, b = clouds()
    with pytest.raises(ValueError, match=r"tau_a must be above 0, or infinite; got 0\.0"):
        unbalanced_sinkhorn(x, y, epsilon=EPSILON, tau_a=0.0)
    with pytest.raises(ValueError, match="both marginals are held"):
        unbalanced_sinkhorn(x, y, epsilon=EPSILON, a=a, b=b)
    with pytest.raises(ValueError, match="mass must lie in"):
        partial_sinkhorn(x, y, epsilon=EPSILON, mass=1.5)
    with pytest.raises(ValueError, match="row 3 has -1"):
        unbalanced_sinkhorn(x, y, epsilon=EPSILON, tau_a=1.0, a=np.where(np.arange(13) == 3, -1, a))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        partial_sinkhorn(x, y, epsilon=EPSILON, mass=0.5, tolerance=0.0)


@pytest.mark.parametrize("form", ["relaxed", "semi-relaxed", "partial"])
def test_annealing_changes_how_many_iterations_are_taken_and_nothing_else(x64, form, monkeypatch):
    x, y, a, b = clouds()
    taus = {"relaxed": (1.0, 2.0), "semi-relaxed": (1.0, np.inf)}

    def solve():
        if form == "partial":
            mass = 0.7 * a.sum()
            return partial_sinkhorn(x, y, epsilon=0.04, mass=mass, a=a, b=b, tolerance=TIGHT)
        tau_a, tau_b = taus[form]
        return unbalanced_sinkhorn(
            x, y, epsilon=0.04, tau_a=tau_a, tau_b=tau_b, a=a, b=b, tolerance=TIGHT
        )

    annealed = solve()
    monkeypatch.setattr(unbalanced, "first_stage", lambda epsilon, mean: epsilon)
    plain = solve()
    assert annealed.converged and plain.converged
    assert int(annealed.num_iterations) != int(plain.num_iterations)
    np.testing.assert_allclose(annealed.dual, plain.dual, rtol=1e-7)
    np.testing.assert_allclose(annealed.mass, plain.mass, rtol=1e-6)


def test_iterations_are_counted_over_all_stages():
    x, y, a, b = clouds()
    plan = unbalanced_sinkhorn(
        x, y, epsilon=1e-3, tau_a=1.0, tau_b=1.0, a=a, b=b, tolerance=1e-6, max_iterations=20
    )
    assert plan.status == "max_iterations" and int(plan.num_iterations) == 20

"""Exact couplings: marginals, certificates and agreement of the solvers."""

import sys

import numpy as np
import pytest

from driftbridge.transport import exact
from driftbridge.transport.exact import optimal_coupling
from driftbridge.transport.one_dimensional import wasserstein_1d

HAS_POT = exact._has_pot()
METHODS = [
    "linear_program",
    pytest.param(
        "network_simplex",
        marks=pytest.mark.skipif(not HAS_POT, reason="POT is not installed"),
    ),
]


def weights(rng, n):
    w = rng.exponential(size=n)
    return w / w.sum()


def check(found, x, y, a, b, p):
    """Marginals, cost and dual feasibility, each to the rounding of float64."""
    plan = found.dense()
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-14)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-14)
    assert (found.mass > 0).all()
    cost = np.linalg.norm(x[:, None] - y[None], axis=-1) ** p
    f, g = found.potentials
    scale = cost.max()
    # f, g and the cost each carry some roundings of numbers up to the largest cost.
    assert (f[:, None] + g[None] - cost).max() <= 1e-13 * scale
    np.testing.assert_allclose(found.cost, np.sum(plan * cost), rtol=1e-13)
    np.testing.assert_allclose(found.lower, a @ f + b @ g, rtol=1e-12, atol=1e-13 * scale)
    return abs(found.gap) / scale


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("method", METHODS)
def test_weighted_couplings_carry_a_proof(method, p):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(23, 3)), rng.normal(size=(31, 3)) + 0.5
    a, b = weights(rng, 23), weights(rng, 31)
    found = optimal_coupling(x, y, a, b, p, method=method)
    assert check(found, x, y, a, b, p) < 1e-13
    assert (found.method, found.status) == (method, "optimal")
    # A basic solution has at most n + m - 1 pairs.
    assert len(found.mass) <= 23 + 31 - 1


@pytest.mark.parametrize("dim", [2, 12])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_assignment_carries_a_proof(dim, p):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, dim)), rng.normal(size=(80, dim))
    found = optimal_coupling(x, y, p=p)
    assert found.method == "assignment"
    np.testing.assert_array_equal(np.sort(found.columns), np.arange(80))
    even = np.full(80, 1 / 80)
    assert check(found, x, y, even, even, p) < 1e-13
    assert np.isnan(optimal_coupling(x, y, p=p, certificate=False).lower)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_line_is_sorted_and_carries_a_proof(p):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 1)), rng.exponential(size=(27, 1))
    a, b = weights(rng, 40), weights(rng, 27)
    a[[3, 7]], b[5] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    found = optimal_coupling(x, y, a, b, p)
    assert found.method == "monotone"
    assert check(found, x, y, a, b, p) < 1e-13
    other = optimal_coupling(x, y, a, b, p, method="linear_program")
    np.testing.assert_allclose(found.cost, other.cost, rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(x, y, p, a=a, b=b), found.distance, rtol=1e-13)


def test_points_of_no_mass_or_next_to_none_are_harmless():
    x, y = np.array([0.0, 1.0, 5.0]), np.array([2.0, 9.0])
    found = optimal_coupling(x, y, [1.0, 1e-17, 0.0], [1.0, 0.0], p=1)
    assert found.cost == 2.0 and found.gap == 0.0
    f, g = found.potentials
    assert np.all(f[:, None] + g[None] <= np.abs(x[:, None] - y[None]) + 1e-15)
    plane = optimal_coupling(np.c_[x, x], np.c_[y, y], [0.5, 0.5, 0.0], [1.0, 0.0], p=1)
    f, g = plane.potentials
    cost = np.sqrt(2) * np.abs(x[:, None] - y[None])
    assert np.all(f[:, None] + g[None] <= cost + 1e-14)
    np.testing.assert_allclose(plane.cost, 1.5 * np.sqrt(2), rtol=1e-15)


@pytest.mark.skipif(not HAS_POT, reason="POT is not installed")
def test_many_points_of_few_dimensions_go_to_the_network_simplex():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(501, 2)), rng.normal(size=(501, 2))
    found = optimal_coupling(x, y)
    assert found.method == "network_simplex" and "2 dimensions" in found.reason
    other = optimal_coupling(x, y, method="assignment", certificate=False)
    np.testing.assert_allclose(found.cost, other.cost, rtol=1e-12)
    assert abs(found.gap) < 1e-13 * found.cost * 501


def test_without_pot_another_solver_is_named_or_refused(monkeypatch):
    monkeypatch.setattr(exact, "_has_pot", lambda: False)
    monkeypatch.setitem(sys.modules, "ot", None)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(501, 2))
    found = optimal_coupling(x, x + 1, certificate=False)
    assert found.method == "assignment" and "extra 'pot'" in found.reason
    small = optimal_coupling(x[:10], x[:12])
    assert small.method == "linear_program" and "extra 'pot'" in small.reason
    with pytest.raises(ImportError, match=r"501 x 500 .*driftbridge\[pot\]"):
        optimal_coupling(x, x[:500])
    with pytest.raises(ImportError, match=r"driftbridge\[pot\]"):
        optimal_coupling(x[:3], x[:3], method="network_simplex")


def test_float32_points_are_solved_in_float64():
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(30, 4)).astype(np.float32) for _ in range(2))
    found = optimal_coupling(x, y)
    again = optimal_coupling(x.astype(np.float64), y.astype(np.float64))
    assert found.cost == again.cost


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"p": 0.5}, "p must be at least 1"),
        ({"method": "simplex"}, "method must be one of"),
        ({"method": "monotone"}, "one dimension; got 2"),
        ({"method": "assignment"}, "got 4 and 3 points"),
        ({"a": [0.5, 0.5, 0.5, 0.5]}, "sum to 2"),
        ({"a": [1.0]}, "shape"),
        ({"y": np.zeros((3, 3))}, "2 and 3 columns"),
        ({"y": np.zeros((0, 2))}, "at least 1 row"),
        ({"x": np.full((4, 2), np.nan)}, "NaN in row 0"),
    ],
)
def test_what_cannot_be_coupled_is_refused(arguments, says):
    arguments = {"x": np.zeros((4, 2)), "y": np.zeros((3, 2))} | arguments
    with pytest.raises(ValueError, match=says):
        optimal_coupling(**arguments)


def test_a_problem_too_large_names_its_memory():
    x = np.zeros((300, 2))
    with pytest.raises(MemoryError, match=r"300 x 300 points .* GiB, more than max_bytes"):
        optimal_coupling(x, x, method="assignment", max_bytes=1e5)

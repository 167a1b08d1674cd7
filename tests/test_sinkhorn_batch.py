"""Many entropic problems in one program."""

import numpy as np
import pytest

from driftbridge.runtime.compilations import Compilations
from driftbridge.transport.batched import sinkhorn_batch
from driftbridge.transport.sinkhorn import sinkhorn

SIZES = ((20, 30), (40, 25), (33, 33))
EPSILONS = (0.05, 0.2, 0.15)


def problems(seed=0):
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, 2)) for n, _ in SIZES]
    y = [rng.normal(size=(m, 2)) * (k + 1) + k for k, (_, m) in enumerate(SIZES)]
    a = [rng.dirichlet(np.ones(n)) for n, _ in SIZES]
    return x, y, a


def city_block(x, y):
    return abs(x - y).sum()


@pytest.mark.slow
@pytest.mark.parametrize("cost", [None, city_block])
def test_plans_are_those_of_single_problems(x64, cost):
    x, y, a = problems()
    batch = sinkhorn_batch(x, y, epsilon=EPSILONS, a=a, cost=cost, tolerance=1e-9)
    for plan, *given, epsilon in zip(batch, x, y, a, EPSILONS, strict=True):
        single = sinkhorn(
            given[0], given[1], epsilon=epsilon, a=given[2], cost=cost, tolerance=1e-9
        )
        assert plan.converged and float(plan.error) <= 1e-9
        # Each plan is within 1e-9 of its marginals, in the L1 norm.
        np.testing.assert_allclose(plan.matrix(), single.matrix(), atol=1e-8)
        np.testing.assert_allclose(plan.dual, single.dual, rtol=1e-8)
        np.testing.assert_allclose(plan.cost, single.cost, rtol=1e-7)


@pytest.mark.slow
def test_float32_marginals_are_those_that_are_told():
    x, y, a = problems(1)
    for plan in sinkhorn_batch(x, y, epsilon=0.05, a=a):
        rows, columns = plan.marginals()
        error = max(np.abs(rows - plan.a).sum(), np.abs(columns - plan.b).sum())
        assert plan.converged and error <= 1e-3
        # Exponents up to a few hundred are rounded to 1e-5 here and there.
        np.testing.assert_allclose(plan.error, error, atol=1e-5)


def test_each_problem_has_a_status_of_its_own():
    x, y, _ = problems()
    plans = sinkhorn_batch(x, y, epsilon=(1.0, 1e-3, 1.0), max_iterations=60)
    assert [plan.status for plan in plans] == ["converged", "max_iterations", "converged"]
    assert int(plans[1].num_iterations) == 60
    stalled = sinkhorn_batch(x, y, epsilon=0.1, tolerance=1e-9)
    assert {plan.status for plan in stalled} == {"stalled"}  # of float32 not to be had


def test_tolerance_zero_runs_all_iterations():
    x, y, _ = problems()
    plans = sinkhorn_batch(x, y, epsilon=0.1, tolerance=0, max_iterations=25)
    assert [int(plan.num_iterations) for plan in plans] == [25, 25, 25]


def test_points_without_mass_have_the_softmin_as_potential(x64):
    x, y, _ = problems()
    b = [np.where(np.arange(m) == 3, 0.0, 1 / (m - 1)) for _, m in SIZES]
    for plan in sinkhorn_batch(x, y, epsilon=0.2, b=b, tolerance=1e-9):
        np.testing.assert_allclose(plan.g[3], plan.g_at(plan.y[3:4])[0], rtol=1e-9)


def test_new_data_of_the_same_sizes_compile_nothing():
    x, y, _ = problems()
    sinkhorn_batch(x, y, epsilon=0.1)
    x, y, _ = problems(5)
    compilations = Compilations()
    sinkhorn_batch(x, y, epsilon=0.3)
    assert compilations.programs == 0


def test_bad_input_is_named():
    x, y, a = problems()
    with pytest.raises(ValueError, match="an entry for each problem; got 3 and 2"):
        sinkhorn_batch(x, y[:2], epsilon=0.1)
    with pytest.raises(
        ValueError, match="x and a must hold an entry for each problem; got 3 and 1"
    ):
        sinkhorn_batch(x, y, epsilon=0.1, a=a[:1])
    with pytest.raises(ValueError, match="at least one problem; got 0"):
        sinkhorn_batch([], [], epsilon=0.1)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn_batch(x, y, epsilon=(0.1, -0.1, 0.1))
    with pytest.raises(ValueError, match="one for each of 3 problems; got shape"):
        sinkhorn_batch(x, y, epsilon=(0.1, 0.1))
    with pytest.raises(ValueError, match="row 2"):
        sinkhorn_batch(
            [x[0], np.where(np.arange(40)[:, None] == 2, np.nan, x[1]), x[2]], y, epsilon=1
        )

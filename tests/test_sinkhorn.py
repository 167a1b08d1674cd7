"""Sinkhorn: what its result promises, and what it refuses."""

import numpy as np
import pytest

from driftbridge.transport.sinkhorn import sinkhorn


def clouds(n=40, m=50, dim=2, seed=0):
    """Two clouds with different means and widths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), 0.7 * rng.normal(size=(m, dim)) + 1.5


@pytest.mark.parametrize("method", ["stored", "blocked", "log"])
def test_marginals_reach_the_tolerance(method):
    x, y = clouds()
    plan = sinkhorn(x, y, epsilon=0.1, method=method)
    rows, columns = plan.marginals()
    assert plan.converged
    error = np.abs(rows - plan.a).sum() + np.abs(columns - plan.b).sum()
    assert error <= 1e-3
    # Both are sums of 90 numbers in float32.
    np.testing.assert_allclose(plan.error, error, atol=1e-6)

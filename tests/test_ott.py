"""What is taken from ott-jax comes back with marginals, a cost that is one, and our conventions."""

import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.transport.ott import gromov_wasserstein, low_rank_sinkhorn
from driftbridge.transport.sinkhorn import sinkhorn

pytestmark = pytest.mark.slow


def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 2)), 0.7 * rng.normal(size=(27, 2)) + 1


def test_low_rank_plan_is_feasible_and_costs_more():
    x, y = clouds()
    plan = low_rank_sinkhorn(x, y, rank=5)
    matrix = np.asarray(plan.pull(jnp.eye(27)))
    # Sums of 27 numbers of the size of 1/24 in float32.
    np.testing.assert_allclose(matrix.sum(1), 1 / 24, atol=1e-7)
    np.testing.assert_allclose(matrix.sum(0), 1 / 27, atol=1e-7)
    costs = np.sum((x[:, None] - y[None]) ** 2, axis=2) / 2
    np.testing.assert_allclose(plan.cost, np.sum(matrix * costs), rtol=1e-5)
    assert plan.cost >= sinkhorn(x, y, epsilon=0.02).certificate.lower
    assert plan.status == "converged" and plan.error < 1e-2


def test_gromov_plan_is_the_entropic_plan_of_its_own_cost(x64):
    x, y = clouds()
    y = np.concatenate([y, np.zeros((27, 1))], axis=1)
    epsilon = 5.0
    plan = gromov_wasserstein(x, y, epsilon=epsilon, tolerance=1e-9, max_iterations=200)
    matrix = np.asarray(plan.matrix)
    np.testing.assert_allclose(matrix.sum(1), 1 / 24, rtol=1e-12)
    np.testing.assert_allclose(matrix.sum(0), 1 / 27, rtol=1e-12)
    within = [np.sum((z[:, None] - z[None]) ** 2, axis=2) / 2 for z in (x, y)]
    gaps = (within[0][:, None, :, None] - within[1][None, :, None, :]) ** 2
    own = np.einsum("ikjl,jl->ik", gaps, matrix)
    np.testing.assert_allclose(plan.cost, np.sum(own * matrix), rtol=1e-10)

    def centred(values):
        return values - values.mean(0) - values.mean(1)[:, None] + values.mean()

    # log P + cost / epsilon is a sum of a function of rows and one of columns; the plan was rounded
    # at the solver's marginal error of 1e-3, which its logarithm sees at weak rows.
    residual = centred(np.log(matrix)) + centred(own) / epsilon
    assert np.max(np.abs(residual)) < 0.02 * np.max(np.abs(centred(own) / epsilon))


def test_bad_input_is_named():
    x, y = clouds()
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 24\]"):
        low_rank_sinkhorn(x, y, rank=40)
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        gromov_wasserstein(x, y, epsilon=0.0)
    with pytest.raises(ValueError, match="one dimension"):
        low_rank_sinkhorn(x, y[:, :1], rank=2)

"""Laws of every coupling: its marginals, its shapes, and that it is a function of its key."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from driftbridge.transport.conditional import ConditionalOT
from driftbridge.transport.couplings import (
    Corruption,
    GlobalSinkhorn,
    Independent,
    Paired,
    Pooled,
    SemidiscreteCoupling,
)
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.refinement import HierarchicalRefinement

N, DRAWS = 32, 20_000
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)).astype(np.float32)
Y = (RNG.normal(size=(N, 2)) * [1.0, 0.3] + 1).astype(np.float32)
A, B = (RNG.dirichlet(np.full(N, 5.0)) for _ in range(2))
EQUAL = np.full(N, 1 / N)
CLASSES = RNG.integers(0, 3, N)

# Name: constructor, probabilities of the rows of X (None if sources are no rows), and of Y.
COUPLINGS = {
    "independent": (lambda: Independent(X, Y, A, B), A, B),
    "paired": (lambda: Paired(X, Y, A), A, A),
    "minibatch": (lambda: MinibatchOT(X, Y, 16, pool=200), EQUAL, EQUAL),
    "minibatch, weighted": (
        lambda: MinibatchOT(X, Y, 16, pool=200, source_weights=A, target_weights=B),
        A,
        B,
    ),
    "minibatch, entropic": (lambda: MinibatchOT(X, Y, 16, 0.1, pool=40), EQUAL, EQUAL),
    "global": (lambda: GlobalSinkhorn(X, Y, 0.1, A, B), A, B),
    "semidiscrete": (
        lambda: SemidiscreteCoupling(
            X, Y, 0.1, source_weights=A, target_weights=B, tolerance=1e-4
        ),
        A,
        B,
    ),
    "corruption": (lambda: Corruption(Y, lambda y: 0.5 * y, 0.1, B), None, B),
    "refinement": (lambda: HierarchicalRefinement(X, Y, leaf=8, sweeps=1), EQUAL, EQUAL),
    "conditional, classes": (lambda: ConditionalOT(X, Y, CLASSES, batch_size=16), EQUAL, EQUAL),
    "conditional, numbers": (lambda: ConditionalOT(X, Y, Y[:, 0], batch_size=16), EQUAL, EQUAL),
    "pooled": (lambda: Pooled(Independent(X, Y, A, B), 200_000, batch=50_000), A, B),
}  # fmt: skip


@pytest.fixture(scope="module", params=COUPLINGS)
def case(request):
    make, source, target = COUPLINGS[request.param]
    return make(), source, target


def counts(points, table):
    distances = np.linalg.norm(np.asarray(points)[:, None] - table[None], axis=2)
    rows = distances.argmin(axis=1)
    # Points may be kept about a centre: rounding of values of order 3.
    assert distances.min(axis=1).max() < 1e-6
    return np.bincount(rows, minlength=N)


@pytest.mark.slow
def test_marginals(case):
    coupling, source, target = case
    x0, x1 = coupling.pairs(7, DRAWS)
    # Counts of independent draws have the chi^2 law with 31 degrees. What is left of the solvers'
    # errors and of whole counts in a pool shifts the statistic by 20 000 chi2 <= 2, a quarter of
    # its deviation; the entropic pool of 640 columns is itself a draw, and is held to that below.
    for points, table, weights in ((x0, X, source), (x1, Y, target)):
        if weights is not None and not _is_small_pool(coupling):
            found = counts(points, table)
            assert stats.chisquare(found, DRAWS * weights).pvalue > 1e-5


def _is_small_pool(coupling):
    return isinstance(coupling, MinibatchOT) and len(coupling.pool_rows) == 640


@pytest.mark.slow
def test_the_columns_of_an_entropic_pool_are_draws_of_the_target():
    coupling = COUPLINGS["minibatch, entropic"][0]()
    rows = np.bincount(np.asarray(coupling.pool_rows), minlength=N)
    columns = np.bincount(np.asarray(coupling.pool_columns), minlength=N)
    assert np.all(rows == 20)
    # Within a batch the columns are drawn row by row: variance at most that of independent draws.
    assert np.sum((columns - 20) ** 2) / 20 < stats.chi2.ppf(1 - 1e-5, N - 1)


def test_pairs_are_a_function_of_the_key(case):
    coupling, *_ = case
    key = jax.random.key(3)
    first, second = coupling.pairs(3, 64), coupling.pairs(key, 64)
    third = eqx.filter_jit(lambda held, k: held.pairs(k, 64))(coupling, key)
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=1e-6)
    assert not np.array_equal(coupling.pairs(4, 64)[0], first[0])


def test_shapes_and_dtypes_are_those_of_the_data(case, x64):
    coupling, *_ = case
    for points in coupling.pairs(0, 5):
        assert points.shape == (5, 2) and points.dtype == jnp.float32


def test_rows_are_those_of_the_pairs(case):
    coupling, *_ = case
    if hasattr(coupling, "rows"):
        i, j = coupling.rows(5, 50)
        x0, x1 = coupling.pairs(5, 50)
        np.testing.assert_array_equal(X[np.asarray(i)], x0)
        np.testing.assert_array_equal(Y[np.asarray(j)], x1)

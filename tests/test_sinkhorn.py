"""Sinkhorn: what its result promises, what it costs to compile, and what it refuses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.runtime.compilations import Compilations
from driftbridge.transport.batched import sinkhorn_batch
from driftbridge.transport.entropic_cost import entropic_cost, entropic_potentials
from driftbridge.transport.iterate import relaxed, settings_of
from driftbridge.transport.padding import bucket
from driftbridge.transport.sinkhorn import sinkhorn

FORMS = ("stored", "blocked", "log", "newton")


def clouds(n=40, m=50, dim=2, seed=0):
    """Two clouds with different means and widths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), 0.7 * rng.normal(size=(m, dim)) + 1.5


def mean_cost(x, y):
    """The mean of `|x - y|^2 / 2` about both means."""
    return float(np.sum(np.var(x, axis=0)) + np.sum(np.var(y, axis=0))) / 2


@pytest.mark.slow
@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("share", [0.05, 0.005])
def test_marginals_reach_the_tolerance(method, share):
    x, y = clouds()
    plan = sinkhorn(x, y, epsilon=share * mean_cost(x, y), method=method)
    rows, columns = plan.marginals()
    error = max(np.abs(rows - plan.a).sum(), np.abs(columns - plan.b).sum())
    assert plan.converged and error <= 1e-3
    # What rounding may add without being measured is 2 % of the tolerance.
    np.testing.assert_allclose(plan.error, error, atol=2e-5)
    assert plan.f.dtype == np.float32 and plan.method == method


@pytest.mark.slow
@pytest.mark.parametrize("method", FORMS)
def test_small_epsilon_makes_no_nan(method):
    x, y = clouds(200, 180, seed=1)
    x[0] = 30.0  # an outlier, whose kernel row underflows
    plan = sinkhorn(x, y, epsilon=0.001 * mean_cost(x, y), method=method, max_iterations=300)
    assert np.all(np.isfinite(plan.f)) and np.all(np.isfinite(plan.g))
    assert np.all(np.isfinite(plan.certificate)) and np.isfinite(plan.error)


@pytest.mark.slow
def test_a_start_without_annealing_makes_no_nan():
    x, y = clouds(200, 180, seed=1)
    zeros = np.zeros(200), np.zeros(180)
    for method in ("stored", "blocked"):
        plan = sinkhorn(
            x, y, epsilon=1e-3 * mean_cost(x, y), method=method, init=zeros, max_iterations=50
        )
        assert np.all(np.isfinite(plan.f)) and np.isfinite(plan.error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "n", "dim"),
    # In the last case conjugate gradients run out of products, and the matrix is factored.
    [(0.05, 40, 2), (0.005, 40, 2), (0.005, 100, 10)],
)
def test_newton_reaches_nine_digits(x64, share, n, dim):
    x, y = clouds(n, n, dim)
    plan = sinkhorn(x, y, epsilon=share * mean_cost(x, y), tolerance=1e-9)
    assert plan.method == "newton" and plan.converged
    rows, columns = plan.marginals()
    assert max(np.abs(rows - plan.a).sum(), np.abs(columns - plan.b).sum()) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.01])
def test_dual_in_float32_is_that_of_float64(x64, share):
    x, y = clouds(seed=2)
    epsilon = share * mean_cost(x, y)
    exact = sinkhorn(x, y, epsilon=epsilon, tolerance=1e-9).dual
    single = sinkhorn(x.astype("f"), y.astype("f"), epsilon=epsilon, tolerance=1e-5)
    assert single.f.dtype == np.float32 and single.error <= 1e-5
    np.testing.assert_allclose(single.dual, exact, rtol=1e-6)


@pytest.mark.slow
def test_a_stall_ends_the_loop_and_says_so():
    x, y = clouds()
    plan = sinkhorn(x, y, epsilon=0.05 * mean_cost(x, y), tolerance=1e-9, method="stored")
    assert plan.status == "stalled" and not plan.converged
    # Rounding of float32 ends it; sums of 50 potentials of ten epsilon err by less than 1e-5.
    assert plan.num_iterations < 1000 and 1e-9 < plan.error < 1e-5
    newton = sinkhorn(x, y, epsilon=0.05 * mean_cost(x, y), tolerance=1e-9, method="newton")
    assert newton.status == "stalled" and newton.error < 1e-5


@pytest.mark.parametrize("method", FORMS[:3])
def test_zero_tolerance_runs_all_iterations(method):
    x, y = clouds()
    plan = sinkhorn(x, y, epsilon=0.2, tolerance=0, max_iterations=7, method=method)
    assert plan.num_iterations == 7 and plan.status == "max_iterations"
    rows, _ = plan.marginals()
    np.testing.assert_allclose(plan.error, np.abs(rows - plan.a).sum(), rtol=1e-3)


@pytest.mark.slow
def test_new_data_of_a_bucket_compile_nothing():
    def run(n, m, seed, share, tolerance):
        x, y = clouds(n, m, seed=seed)
        weights = np.arange(1.0, n + 1) / np.sum(np.arange(1.0, n + 1))
        epsilon = share * mean_cost(x, y)
        plan = sinkhorn(x, y, epsilon=epsilon, a=weights, tolerance=tolerance)
        _ = plan.certificate, plan.dual, plan.f, plan.g, plan.cost
        plan.barycentric(), plan.push(x), plan.pull(y), plan.sample(0, n), plan.marginals()
        return plan

    run(40, 50, 0, 0.05, 1e-3), run(40, 50, 0, 0.01, 1e-3)
    compilations = Compilations()
    run(38, 49, 1, 0.06, 1e-2), run(41, 51, 2, 0.008, 1e-4)
    assert compilations.programs == 0


def test_a_plan_is_a_warm_start():
    x, y = clouds()
    epsilon = 0.05 * mean_cost(x, y)
    cold = sinkhorn(x, y, epsilon=epsilon)
    warm = sinkhorn(x, y, epsilon=epsilon, init=cold)
    assert warm.num_iterations <= 2 < cold.num_iterations
    given = sinkhorn(x, y, epsilon=epsilon, init=(cold.f, cold.g))
    np.testing.assert_allclose(given.f, warm.f, atol=1e-5)


def test_progress_reports_iterations():
    x, y = clouds()
    seen = []
    plan = sinkhorn(x, y, epsilon=0.05 * mean_cost(x, y), progress=seen.append)
    silent = sinkhorn(x, y, epsilon=0.05 * mean_cost(x, y))
    assert seen[-1].phase == "Sinkhorn" and seen[-1].done == plan.num_iterations
    assert "marginal error" in seen[-1].note
    assert abs(int(plan.num_iterations) - int(silent.num_iterations)) <= len(seen)
    plan = sinkhorn(x, y, epsilon=0.005 * mean_cost(x, y), progress=seen.append)
    silent = sinkhorn(x, y, epsilon=0.005 * mean_cost(x, y))
    assert plan.converged and seen[-1].done == plan.num_iterations and "Newton" in seen[-1].note
    # Newton's own steps are the same; the scaling before may end an iteration later.
    assert abs(int(plan.num_iterations) - int(silent.num_iterations)) <= 50


@pytest.mark.slow
def test_pairs_have_the_law_of_the_plan():
    x, y = clouds(6, 5)
    plan = sinkhorn(x, y, epsilon=1.0)
    n = 20_000
    rows, columns = plan.sample(3, n)
    counts = np.zeros((6, 5))
    np.add.at(counts, (np.asarray(rows), np.asarray(columns)), 1)
    # Pearson's statistic of 30 cells has mean 29 and deviation 7.6: six deviations.
    expected = n * np.asarray(plan.matrix(), np.float64)
    assert np.sum((counts - expected) ** 2 / expected) < 29 + 6 * 7.6


@pytest.mark.slow
def test_gradients_are_finite_differences(x64):
    x, y = (jnp.asarray(points) for points in clouds(13, 17))
    a, b = jnp.full(13, 1 / 13), jnp.full(17, 1 / 17)
    rng = np.random.default_rng(5)
    directions = [jnp.asarray(rng.normal(size=z.shape)) for z in (x, y, a, b)]
    directions[2:] = [1e-2 * (d - d.mean()) for d in directions[2:]]

    @jax.jit
    def moved(t):
        at = [z + t * d for z, d in zip((x, y, a, b), directions, strict=True)]
        options = {"epsilon": 0.1 * (1 + t), "a": at[2], "b": at[3], "tolerance": 1e-11}
        potentials = entropic_potentials(at[0], at[1], **options)
        return entropic_cost(at[0], at[1], **options), potentials.f, potentials.g

    # Central differences at 1e-5 err by 1e-10 of third derivatives, and 1e-11 / 1e-5 of rounding.
    h = 1e-5
    tangents = jax.jvp(moved, (0.0,), (1.0,))[1]
    for ahead, behind, tangent in zip(moved(h), moved(-h), tangents, strict=True):
        np.testing.assert_allclose(tangent, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda t: moved(t)[0] + jnp.sum(moved(t)[1] ** 2)))(0.0)
    expected = tangents[0] + jnp.sum(2 * moved(0.0)[1] * tangents[1])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_batch_is_its_problems(x64):
    x, y = clouds(13, 17)
    stacked = jnp.stack([jnp.asarray(x), jnp.asarray(2 * x), jnp.asarray(x + 3)])
    together = jax.jit(jax.vmap(lambda x: entropic_potentials(x, y, epsilon=0.1)))(stacked)
    for i, points in enumerate(stacked):
        plan = sinkhorn(points, y, epsilon=0.1)
        # Both stop at 1e-3, at iterations of their own.
        alone = entropic_cost(points, y, epsilon=0.1)
        np.testing.assert_allclose(alone, plan.dual, rtol=1e-3)
        np.testing.assert_allclose(together.f[i].mean() + together.g[i].mean(), alone, rtol=1e-3)
    assert np.all(np.asarray(together.status) == 1)


def test_methods_are_chosen_with_a_reason():
    x, y = clouds()
    scale = mean_cost(x, y)
    assert sinkhorn(x, y, epsilon=0.05 * scale).method == "stored"
    plan = sinkhorn(x, y, epsilon=0.005 * scale)
    assert plan.method == "newton" and "0.005 of the mean cost" in plan.reason
    assert sinkhorn(x, y, epsilon=0.05 * scale, method="log").reason == "asked for"


@pytest.mark.parametrize("n", [1, 16, 17, 24, 25, 1000, 4096, 4097, 10_000, 200_000])
def test_buckets_hold_their_sizes(n):
    size = bucket(n)
    assert size >= n and bucket(size) == size
    assert n < 4096 or size <= 1.13 * n


OVER_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from driftbridge.transport.sinkhorn import sinkhorn
rng = np.random.default_rng(0)
x, y = rng.normal(size=(90, 2)), rng.normal(size=(70, 2)) + 1
mesh = jax.make_mesh((4,), ("rows",))
for method, epsilon in (("blocked", 0.1), ("log", 0.1), ("blocked", 0.01)):
    one = sinkhorn(x, y, epsilon=epsilon, method=method)
    four = sinkhorn(x, y, epsilon=epsilon, method=method, mesh=mesh)
    assert four.converged and abs(int(four.num_iterations) - int(one.num_iterations)) <= 1
    # Sums of 90 numbers in another order, in float32, seen through epsilon.
    np.testing.assert_allclose(four.f, one.f, atol=1e-3)
assert four.reason == "rows are spread over devices"
"""


@pytest.mark.slow
def test_rows_are_spread_over_devices():
    done = subprocess.run([sys.executable, "-c", OVER_DEVICES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_bad_input_is_named():
    x, y = clouds()
    for epsilon in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="epsilon must be positive"):
            sinkhorn(x, y, epsilon=epsilon)
    with pytest.raises(ValueError, match="sum to 1; they sum to 2"):
        sinkhorn(x, y, epsilon=0.1, a=np.full(40, 0.05))
    with pytest.raises(ValueError, match="row 2 has -"):
        sinkhorn(x, y, epsilon=0.1, a=np.where(np.arange(40) == 2, -0.1, 1.1 / 39))
    with pytest.raises(ValueError, match="have shape"):
        sinkhorn(x, y, epsilon=0.1, a=np.full(39, 1 / 39))
    with pytest.raises(ValueError, match="at least 1 row and 1 column"):
        sinkhorn(x[:0], y, epsilon=0.1)
    with pytest.raises(ValueError, match="one dimension"):
        sinkhorn(x[:, :1], y, epsilon=0.1)
    with pytest.raises(ValueError, match="row 3"):
        sinkhorn(np.where(np.arange(40)[:, None] == 3, np.nan, x), y, epsilon=0.1)
    with pytest.raises(ValueError, match=r"tolerance must lie in \[0, 2\)"):
        sinkhorn(x, y, epsilon=0.1, tolerance=-1.0)
    with pytest.raises(ValueError, match="max_iterations must be at least 1"):
        sinkhorn(x, y, epsilon=0.1, max_iterations=0)
    with pytest.raises(ValueError, match="method must be one of"):
        sinkhorn(x, y, epsilon=0.1, method="fast")
    with pytest.raises(ValueError, match="init must hold potentials"):
        sinkhorn(x, y, epsilon=0.1, init=(np.zeros(3), np.zeros(50)))


def minus_dot(u, v):
    """The squared distance up to a function of each point alone."""
    return 50 - jnp.dot(u, v)


def cosine(u, v):
    """No number at zero, where padding stands for the squared distance."""
    return 1 - jnp.dot(u, v) / jnp.sqrt(jnp.dot(u, u) * jnp.dot(v, v))


def no_number(u, v):
    """Not a number for half of all pairs."""
    return jnp.sqrt(jnp.sum(u - v))


def test_costs_of_any_sign_and_costs_that_are_no_number_at_zero():
    x, y = clouds()
    epsilon = 0.005 * mean_cost(x, y)
    given, default = (
        sinkhorn(x, y, epsilon=epsilon, cost=minus_dot),
        sinkhorn(x, y, epsilon=epsilon),
    )
    assert given.converged and given.method == default.method == "newton"
    rows = [plan.matrix().sum(1) for plan in (given, default)]
    np.testing.assert_allclose(*rows, atol=2e-3)  # both within the tolerance of 1e-3
    np.testing.assert_allclose(given.matrix(), default.matrix(), atol=2e-3)
    plan = sinkhorn(x, y, epsilon=0.05, cost=cosine)
    assert plan.converged and np.isfinite(plan.certificate.upper)
    batch = sinkhorn_batch([x, x[:20]], [y, y[:17]], epsilon=0.05, cost=cosine)
    assert all(each.converged for each in batch)
    with pytest.raises(ValueError, match="cost is not finite between all points"):
        sinkhorn(x, y, epsilon=0.1, cost=no_number)


def test_the_upper_bound_is_finite_where_epsilon_is_below_the_rounding():
    x, y = clouds()
    far = [np.concatenate([z, z + 1e4]) for z in (x, y)]
    plan = sinkhorn(*far, epsilon=0.05, max_iterations=30)
    assert not plan.converged and np.isfinite(plan.certificate.upper)


def test_relaxation_finds_the_rate_of_a_linear_iteration():
    eigenvalues = np.linspace(0, 0.9, 50)
    error, w, before = np.ones(50), jnp.ones(()), jnp.inf
    settings = settings_of(1e-6, 100, np.float32)
    for count in range(40):
        now = jnp.asarray(0.4 * np.abs(error).mean())
        w = relaxed(w, jnp.asarray(count), jnp.asarray(before), now, settings)
        error, before = error * (1 - float(w) * (1 - eigenvalues)), now
    # The slowest part alone: 0.9^40 = 1.5e-2 as it is, 0.82^40 = 3.3e-4 at w = 2 / 1.1 = 1.82.
    assert abs(float(w) - 1.82) < 0.05
    assert abs(error[-1]) < 1e-3
    assert float(relaxed(w, jnp.asarray(4), now, 1.1 * now, settings)) == 1  # the error has grown
    plain = settings_of(0.0, 100, np.float32)
    assert float(relaxed(jnp.ones(()), jnp.asarray(4), now, 0.9 * now, plain)) == 1

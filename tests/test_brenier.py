"""Maps that are gradients of learned convex functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.runtime.training import Training
from driftbridge.transport import Brenier
from driftbridge.transport.balanced import Balanced
from driftbridge.transport.dual import Dual, Trainable, Weighted
from driftbridge.transport.folds import folds
from driftbridge.transport.points import Sample
from driftbridge.transport.soft_maxima import SoftMaxima, conjugate_points

SHORT = Training(num_steps=200, learning_rate=0.02, averaging=0.95, validate_every=50, patience=2)
METHOD = Brenier(num_groups=16, num_members=4, training=SHORT)


def ridge(x):
    """The gradient of `|x|^2 / 4 + log(1 + exp(4 x_0)) / 2`."""
    return x / 2 + 2 / (1 + np.exp(-4 * x[:, :1])) * np.eye(x.shape[1])[:1]


def data(n=400, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), ridge(rng.normal(size=(n, dim)))


@pytest.fixture(scope="module")
def fitted():
    return db.fit_map(*data(), METHOD)


def potential(dim=3, groups=5, members=4, seed=1):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(dim, dim))
    parts = (
        rng.normal(size=(members, groups, dim)),
        rng.normal(size=(members, groups)),
        0.3 + rng.random(groups),
        matrix @ matrix.T / dim + 0.1 * np.eye(dim),
        1 / groups,
    )
    return SoftMaxima(*(jnp.asarray(part, jnp.result_type(float)) for part in parts))


@pytest.mark.slow
def test_derivatives_are_those_of_the_value(x64):
    phi, x = potential(), jnp.asarray(np.random.default_rng(2).normal(size=(7, 3)))
    gradient = jax.grad(lambda x: jnp.sum(phi.value(x)))(x)
    np.testing.assert_allclose(phi.gradient(x), gradient, atol=1e-12)
    hessian = jax.vmap(jax.hessian(lambda x: phi.value(x[None])[0]))(x)
    np.testing.assert_allclose(phi.hessian(x), hessian, atol=1e-12)
    p, v = jax.nn.softmax(phi.logits(x), axis=1), jnp.cos(x)
    product = jnp.einsum("nde,ne->nd", hessian, v)
    np.testing.assert_allclose(phi.hessian_product(p, v), product, atol=1e-12)


@pytest.mark.slow
def test_conjugate_points_have_the_gradient_asked_for(x64):
    y = jnp.asarray(3 * np.random.default_rng(3).normal(size=(50, 3)))
    found = conjugate_points(potential(), y, 12, 20)
    np.testing.assert_allclose(potential().gradient(found), y, atol=2e-5)


@pytest.mark.slow
def test_the_dual_has_the_derivative_of_its_value(x64):
    """Along a direction of all parameters, by central differences of `E phi + E phi*`."""
    rng = np.random.default_rng(4)
    phi = potential()
    model = Trainable(phi.points, phi.offsets, jnp.log(phi.temperatures), jnp.eye(3))
    sides = [Weighted.of(rng.normal(size=(60, 3)), np.full(60, 1 / 60)) for _ in range(2)]
    dual = Dual(*sides, 12, 20)
    batch = dual.batch(as_key(0), 100)
    along = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), model)
    gradient = jax.grad(dual.loss)(model, batch)
    slope = sum(
        jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
    )

    def value(h):
        return dual.loss(jax.tree.map(lambda p, d: p + h * d, model, along), batch)

    ends = value(-1e-5), value(1e-5)
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-5, rtol=1e-6)


def test_balanced_coordinates_keep_products_and_share_a_covariance():
    x, y = data(500)
    samples = [Sample(points, np.full(500, 1 / 500)) for points in (x, y)]
    balanced = Balanced.of(*samples, shrunk=False)
    u, v = balanced.source(x), balanced.target(y)
    expected = np.sum((x - x.mean(0)) * (y - y.mean(0)), axis=1)
    np.testing.assert_allclose(balanced.scale**2 * np.sum(u * v, axis=1), expected, atol=1e-9)
    # Up to the ridge of 1e-6.
    np.testing.assert_allclose(np.cov(u.T), np.cov(v.T), atol=1e-5)
    np.testing.assert_allclose(np.trace(np.cov(u.T)), 3, rtol=0.01)


@pytest.mark.slow
def test_a_bent_map_is_found(fitted):
    """Held out it errs by less than half of what the best affine map does, the bend."""
    x, y = data()
    test = np.random.default_rng(5).normal(size=(1000, 3))
    affine = db.fit_map(x, y, "affine")
    errors = [np.mean((T(test) - ridge(test)) ** 2) for T in (fitted, affine)]
    assert errors[0] < errors[1] / 2
    numbers = dict(fitted.fit.numbers)
    assert numbers["held_out_gain"] > 3 * numbers["gain_error"]
    assert [name for name, _ in fitted.fit.curves] == [f"fold {k}" for k in (1, 2, 3, 4)]


@pytest.mark.slow
def test_it_has_an_inverse_and_a_determinant(fitted):
    test = np.random.default_rng(6).normal(size=(200, 3)).astype(np.float32)
    np.testing.assert_allclose(fitted.inverse(fitted(test)), test, atol=1e-4)
    jacobian = jax.vmap(jax.jacfwd(lambda x: fitted._transport(x[None])[0]))(test)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-5)
    np.testing.assert_allclose(
        fitted.log_det(test), np.linalg.slogdet(np.asarray(jacobian, np.float64))[1], atol=1e-4
    )


def test_it_comes_back_from_a_file(fitted, tmp_path):
    test = np.random.default_rng(7).normal(size=(50, 3))
    again = db.load(fitted.save(tmp_path / "map.npz"))
    np.testing.assert_array_equal(again(test), fitted(test))


@pytest.mark.slow
def test_folds_that_gain_nothing_are_the_affine_map(fitted, tmp_path):
    x, y = (side.astype(np.float32) for side in data())
    samples = [Sample(points, np.full(len(points), 1 / len(points))) for points in (x, y)]
    parts = folds(*samples, host_generator(as_key(0)))
    members = [member._replace(gain=-1.0) for member in METHOD.members(parts, as_key(0))]
    found, affine = METHOD.joined(members, *samples, 0.0), db.fit_map(x, y, "affine")
    assert dict(found.fit.numbers)["folds_used"] == 0
    assert "affine map, which this is" in found.fit.messages[0]
    for transport in (found, db.load(found.save(tmp_path / "map.npz"))):
        np.testing.assert_allclose(transport(x), affine(x), atol=1e-4)
        np.testing.assert_allclose(transport.inverse(affine(x)), x, atol=1e-3)
        np.testing.assert_allclose(transport.log_det(x), affine.log_det(x), atol=1e-4)
    # Two used and two not: their mean, in the shape of any other.
    learned = METHOD.members(parts, as_key(0))
    half = [learned[0], learned[1], members[2], members[3]]
    mean = METHOD.joined(half, *samples, 0.0)
    each = [METHOD.joined([member] * 4, *samples, 0.0)(x) for member in half]
    np.testing.assert_allclose(mean(x), np.mean(each, axis=0), atol=1e-4)
    assert mean.potential.points.shape == fitted.potential.points.shape


@pytest.mark.slow
def test_where_the_affine_map_is_right_little_is_added():
    """The affine map errs by a covariance of 800 points, `sqrt(2 / 800) = .05`, on each side."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(800, 2)), 1 + rng.normal(size=(800, 2)) * [0.5, 2.0]
    found, affine = db.fit_map(x, y, METHOD), db.fit_map(x, y, "affine")
    test = rng.normal(size=(500, 2))
    apart = np.sqrt(np.mean((found(test) - affine(test)) ** 2) / np.mean(affine(test) ** 2))
    assert apart < 0.1


@pytest.mark.slow
def test_draws_are_by_weight_and_never_padding():
    weights = np.where(np.arange(50) < 25, 3.0, 1.0) / 100
    sample = Weighted.of(np.arange(1.0, 51.0, dtype=np.float32)[:, None], weights)
    points, shares = jax.vmap(lambda key: sample.batch(key, 20))(jax.random.split(as_key(1), 500))
    drawn = np.asarray(points)[..., 0].ravel()
    assert drawn.min() >= 1 and np.allclose(shares, 1 / 20)
    # Even draws: three quarters fall on the first half, in every batch up to one point.
    assert np.all(np.abs(np.mean(np.asarray(points)[..., 0] <= 25, axis=1) - 0.75) <= 0.05)
    every, shares = sample.batch(as_key(2), 100)
    np.testing.assert_allclose(
        np.sum(shares * every[:, 0]), np.sum(weights * np.arange(1, 51)), rtol=1e-6
    )


@pytest.mark.slow
def test_divergence_is_told_and_a_checkpoint_goes_on(tmp_path):
    wild = Training(num_steps=60, learning_rate=1e9, validate_every=20)
    found = db.fit_map(*data(100), Brenier(4, 3, wild))
    if not found.fit.converged:
        assert "diverged" in found.fit.messages[0]
    assert np.all(np.isfinite(found(data(100)[0])))
    kept = Training(num_steps=60, validate_every=20, checkpoint=tmp_path / "run")
    first, again = (db.fit_map(*data(100), Brenier(4, 3, kept)) for _ in range(2))
    assert len(list(tmp_path.glob("run.fold*"))) == 4
    np.testing.assert_array_equal(first(data(100)[0]), again(data(100)[0]))


@pytest.mark.slow
def test_other_data_of_a_bucket_compile_nothing(fitted):
    compilations = Compilations()
    again = db.fit_map(*data(390, seed=10), METHOD)
    assert compilations.programs == 0
    assert again.fit.converged


@pytest.mark.slow
def test_float64_and_float32_find_the_same_map(fitted, x64):
    test = np.random.default_rng(11).normal(size=(200, 3))
    double = db.fit_map(*data(), METHOD)
    assert double(test).dtype == np.float64
    single = db.fit_map(*(side.astype(np.float32) for side in data()), METHOD)
    assert single(test.astype(np.float32)).dtype == np.float32
    assert np.mean((double(test) - single(test)) ** 2) < 0.01


@pytest.mark.slow
def test_frames_keep_their_columns(fitted):
    pandas = pytest.importorskip("pandas")
    x, y = (pandas.DataFrame(side, columns=["a", "b", "c"]) for side in data())
    moved = db.fit_map(x, y, METHOD)(x[["c", "a", "b"]])
    assert list(moved.columns) == ["c", "a", "b"]
    np.testing.assert_allclose(moved[["a", "b", "c"]], fitted(x.to_numpy()), atol=1e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"at least 16 points on each side.*got 10.*Take 'affine'"):
        db.fit_map(*data(10), METHOD)
    with pytest.raises(ValueError, match="num_members must be at least 2; got 1"):
        Brenier(num_members=1)
    with pytest.raises(ValueError, match="num_groups must be at least 1; got 0"):
        Brenier(num_groups=0)

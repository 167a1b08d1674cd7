"""Maps given a condition: their laws, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.transport import Flow, Interpolant, Training
from driftbridge.transport.conditional import ConditionalOT
from driftbridge.transport.couplings import Independent
from driftbridge.transport.minibatch import MinibatchOT
from driftbridge.transport.networks import MLP

# Steps and width at which one fit takes some seconds; the errors that are allowed are those seen at
# them, .03 to .06 over keys, and a half.
QUICK = Training(num_steps=1500, batch_size=256)
SMALL = MLP(width=32, depth=2)
ALLOWED = 0.1
NAMES = np.array(["a", "b", "c"])
MEANS, SCALES = np.array([[3.0, 0], [-3, 0], [0, 4]]), np.array([0.5, 1, 0.25])


def classes(n, seed):
    """A standard normal, and Gaussians whose mean and scale depend on a class."""
    rng = np.random.default_rng(seed)
    which = rng.integers(3, size=n)
    y = MEANS[which] + SCALES[which, None] * rng.normal(size=(n, 2))
    return rng.normal(size=(n, 2)), y, NAMES[which]


def off(image, x, k):
    """Root mean square from the exact map of a class."""
    return np.sqrt(np.mean((np.asarray(image) - MEANS[k] - SCALES[k] * x) ** 2))


@pytest.fixture(scope="module")
def flow():
    x, y, names = classes(3000, 0)
    return db.fit_map(x, y, Flow(network=SMALL, training=QUICK), condition=names)


@pytest.fixture
def points():
    return np.random.default_rng(5).normal(size=(500, 2)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("k", range(3))
def test_each_class_has_its_optimal_map(flow, points, k):
    assert off(flow.given(NAMES[k])(points), points, k) < ALLOWED


@pytest.mark.slow
def test_pairs_that_ignore_the_condition_miss_its_law(points):
    x, y, names = classes(3000, 0)

    def blind(x, y, key, condition, source_condition, **weights):
        return MinibatchOT(x, y, key=key, **weights)

    method = Flow(coupling=blind, network=SMALL, training=QUICK)
    T = db.fit_map(x, y, method, condition=names)
    assert max(off(T.given(name)(points), points, k) for k, name in enumerate(NAMES)) > 3 * ALLOWED


def test_rows_with_their_own_conditions_are_carried_as_given_them(flow, points):
    which = np.arange(500) % 3
    image = np.asarray(flow(points, condition=NAMES[which]))
    for k, name in enumerate(NAMES):
        alone = np.asarray(flow.given(name)(points[which == k]))
        np.testing.assert_allclose(image[which == k], alone, atol=1e-5)
    np.testing.assert_allclose(flow(points, condition="b"), flow.given("b")(points), atol=1e-5)
    back = flow.inverse(image, condition=NAMES[which])
    np.testing.assert_allclose(back, points, atol=1e-3)


def test_density_given_a_class(flow):
    y = MEANS[1] + np.random.default_rng(2).normal(size=(200, 2))
    found = flow.given("b").log_prob(y, lambda x: -np.sum(x**2, axis=1) / 2 - np.log(2 * np.pi))
    exact = -np.sum((y - MEANS[1]) ** 2, axis=1) / 2 - np.log(2 * np.pi)
    # A map that is ALLOWED away has log densities off by about that times |z|, 1.25 in the mean.
    assert np.abs(np.asarray(found) - exact).mean() < 2 * ALLOWED


@pytest.mark.slow
def test_numbers_as_conditions_between_those_seen(points):
    rng = np.random.default_rng(1)
    c = rng.uniform(-1, 1, size=(3000, 1))
    y = np.concatenate([3 * c, -2 * c], axis=1) + 0.5 * rng.normal(size=(3000, 2))
    x = rng.normal(size=(3000, 2))
    T = db.fit_map(x, y, Flow(network=SMALL, training=QUICK), condition=c)
    exact = np.array([1.5, -1.0]) + 0.5 * points
    assert np.sqrt(np.mean((np.asarray(T.given([0.5])(points)) - exact) ** 2)) < 2 * ALLOWED


@pytest.mark.slow
def test_a_source_that_has_the_condition_too(points):
    x, y, names = classes(3000, 3)
    x = x - MEANS[np.searchsorted(NAMES, names)]
    order = np.random.default_rng(4).permutation(3000)
    T = db.fit_map(
        x[order], y, Flow(network=SMALL, training=QUICK), condition=names,
        source_condition=names[order],
    )  # fmt: skip
    for k, name in enumerate(NAMES):
        assert off(T.given(name)(points - MEANS[k]), points, k) < 2 * ALLOWED


@pytest.mark.slow
def test_draws_of_an_interpolant_given_a_class(points):
    x, y, names = classes(3000, 0)
    method = Interpolant(network=SMALL, training=QUICK)
    T = db.fit_map(x, y, method, condition=names)
    draws = np.asarray(T.given("a").sample(0, points, 2)).reshape(-1, 2)
    np.testing.assert_allclose(draws.mean(axis=0), MEANS[0], atol=ALLOWED)
    np.testing.assert_allclose(draws.std(axis=0), SCALES[0], atol=ALLOWED)
    assert T.given("a").score(0.5, points).shape == points.shape


def test_a_conditional_map_is_read_as_it_was(flow, points, tmp_path):
    read = db.load(flow.save(tmp_path / "map"))
    np.testing.assert_array_equal(read(points, condition="c"), flow(points, condition="c"))
    assert dict(read.given("c").fit.numbers)["condition"] == "c"


def test_a_map_that_needs_a_condition_says_so(flow, points):
    for use in (flow, flow.inverse, flow.cost, lambda x: flow.report(x, x)):
        with pytest.raises(ValueError, match=r"fitted with a condition \(classes a, b, c\)"):
            use(points)
    with pytest.raises(AttributeError, match=r"T.given\(c\).log_prob"):
        flow.log_prob(points, None)
    with pytest.raises(ValueError, match="has d, which is none of the classes a, b, c"):
        flow.given("d")
    with pytest.raises(ValueError, match=r"\(500,\) for one of each row; got \(2,\)"):
        flow(points, condition=["a", "b"])


@pytest.mark.parametrize(
    ("method", "named", "message"),
    [
        ("affine", {"condition": np.zeros(60)}, "affine takes no condition; flow, interpolant do"),
        ("rectified", {"condition": np.zeros(60)}, "rectified takes no condition"),
        ("flow", {"condition": np.zeros(3)}, "condition must have shape"),
        ("flow", {"condition": np.r_[np.nan, np.zeros(59)]}, "not finite in row 0"),
        ("flow", {"source_condition": np.zeros(60)}, "needs the condition of the target"),
        (
            "flow",
            {"condition": np.arange(60) % 2, "source_condition": np.arange(60) % 3},
            "source_condition has 2, which is none of the classes 0, 1",
        ),
        (
            Flow(coupling=Independent(*np.random.default_rng(0).normal(size=(2, 60, 2)))),
            {"condition": np.arange(60) % 2},
            "must pair rows of the target's 60 points",
        ),
    ],
)
def test_bad_conditions_are_named(method, named, message):
    x, y = np.random.default_rng(0).normal(size=(2, 60, 2))
    with pytest.raises(ValueError, match=message):
        db.fit_map(x, y, method, **named)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(3))
def test_a_class_that_is_rare_is_not_lost_where_points_are_held_out(key):
    x, y = np.random.default_rng(0).normal(size=(2, 200, 2))
    names = np.repeat(["a", "b", "c"], [99, 99, 2])
    few = Training(num_steps=2, batch_size=16)
    T = db.fit_map(x, y, Flow(network=SMALL, training=few), key, condition=names)
    assert T.given("c")(x).shape == x.shape


@pytest.mark.slow
def test_whole_numbers_are_numbers(points):
    x, y = np.random.default_rng(0).normal(size=(2, 100, 2))
    few = Training(num_steps=2, batch_size=16)
    T = db.fit_map(x, y, Flow(network=SMALL, training=few), condition=np.arange(100) % 2 + 0.0)
    np.testing.assert_array_equal(T.given(1)(points), T.given(1.0)(points))
    with pytest.raises(ValueError, match="must hold numbers"):
        T.given("a")
    with pytest.raises(ValueError, match="not finite in row 1"):
        T(points[:2], condition=[0.0, np.nan])
    with pytest.raises(ValueError, match=r"traced.*T.given\(c\)"):
        jax.jit(lambda x, c: T(x, condition=c))(points, 1.0)
    inside = jax.jit(lambda x: T(x, condition=1.0))(points)
    np.testing.assert_allclose(inside, T(points, condition=1.0), atol=1e-5)
    with pytest.raises(ValueError, match="rescale"):
        db.fit_map(x, y, "flow", condition=np.linspace(0, 1e300, 100))


@pytest.mark.slow
def test_whole_numbers_are_vectors_of_numbers_too(points):
    x, y, c = np.random.default_rng(0).normal(size=(3, 100, 2))
    few = Training(num_steps=2, batch_size=16)
    T = db.fit_map(x, y, Flow(network=SMALL, training=few), condition=c)
    np.testing.assert_array_equal(T.given([1, 0])(points), T.given([1.0, 0.0])(points))


def test_an_inverse_that_is_not_reached_is_named(flow):
    lost = eqx.tree_at(lambda T: T.model.field.scale, flow, jnp.float32(np.nan))
    with pytest.raises(ValueError, match="no point was found whose image is row 0"):
        lost.inverse(np.zeros((2, 2), np.float32), condition="a")


def test_auto_takes_a_method_that_can(monkeypatch):
    seen = []
    monkeypatch.setattr(Flow, "fit", lambda self, source, target, key: seen.append(target) or 1 / 0)
    x, y, names = classes(300, 0)
    with pytest.raises(ZeroDivisionError):
        db.fit_map(x, y, condition=names)
    assert (seen[0].condition == names).all()


def test_weights_of_points_with_conditions():
    x, y, names = classes(200, 0)
    weights = np.where(names == "a", 0.0, 1.0)
    pairs = ConditionalOT(x, y, names, target_weights=weights / weights.sum(), batch_size=50)
    *_, condition = pairs.pairs_and_condition(0, 500)
    assert set(np.unique(condition)) == {1, 2}

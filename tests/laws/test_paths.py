"""Processes through snapshots: their laws at the data's times, and between them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Training
from driftbridge.transport.couplings import Paired
from driftbridge.transport.data_metric import Land
from driftbridge.transport.fit_path import PathAction, PathFlow
from driftbridge.transport.snapshots import Neighbours, polygon, spline

QUICK = Training(num_steps=1000, batch_size=128)
TIMES = (0.0, 1.0, 2.5, 4.0)


def mean(t):
    """A curve that no polygon follows."""
    return np.array([3 * np.sin(t), 0.5 * t**2])


def width(t):
    return 1 + 0.2 * t


def snapshot(t, n, seed):
    rng = np.random.default_rng([seed, round(10 * t)])
    return (mean(t) + width(t) * rng.normal(size=(n, 2))).astype(np.float32)


def data(n=500, seed=0):
    return {t: snapshot(t, n, seed) for t in TIMES}


@pytest.fixture(scope="module")
def fitted():
    return db.fit_path(data(), PathFlow(training=QUICK), 0)


def test_curves_go_through_the_means(x64):
    times, means = np.array(TIMES), np.stack([mean(t) for t in TIMES])
    for curve in (spline(times, means), polygon(times, means)):
        # The last knot is the end of the last polynomial.
        np.testing.assert_allclose(np.concatenate([curve(t) for t in times]), means, atol=1e-12)
        step = 1e-6
        slope = (curve(1.5 + step) - curve(1.5 - step)) / (2 * step)
        np.testing.assert_allclose(curve.velocity(1.5), slope, atol=1e-7)


@pytest.mark.slow
def test_marginals_at_the_data_are_the_data(fitted):
    for t, points in data().items():
        drawn = np.asarray(fitted.marginal(3, t, 2000))
        # Rows of the data, drawn with replacement, up to rounding in float32.
        nearest = np.abs(drawn[:, None] - points[None]).sum(axis=2).min(axis=1)
        assert nearest.max() < 1e-4


@pytest.mark.slow
def test_between_the_data_the_mean_is_on_the_spline(fitted):
    drawn = np.asarray(fitted.marginal(4, 1.7, 4000))
    times, means = np.array(TIMES), np.stack([points.mean(axis=0) for points in data().values()])
    # 4000 draws of deviation 1.4.
    np.testing.assert_allclose(drawn.mean(axis=0), spline(times, means)(1.7)[0], atol=5 * 0.022)


@pytest.mark.slow
def test_the_flow_carries_each_snapshot_to_the_next(fitted):
    for start, end in ((0.0, 4.0), (2.5, 1.0), (1.0, 1.7)):
        moved = np.asarray(fitted(snapshot(start, 1000, 9), start, end))
        # 500 points of deviation 1.8 know their mean to .08; training leaves as much again.
        np.testing.assert_allclose(moved.mean(axis=0), mean(end), atol=0.35)
        np.testing.assert_allclose(moved.std(axis=0), width(end), atol=0.25)


@pytest.fixture(scope="module", params=["action", "metric"])
def other(request):
    kind = PathAction if request.param == "action" else PathFlow
    settings = {} if request.param == "action" else {"metric": Land()}
    return db.fit_path(data(), kind(training=QUICK, **settings), 0)


@pytest.mark.slow
def test_other_fields_carry_each_snapshot_to_the_next(other):
    for start, end in ((0.0, 4.0), (2.5, 1.0)):
        moved = np.asarray(other(snapshot(start, 1000, 9), start, end))
        # As of the plain flow, above.
        np.testing.assert_allclose(moved.mean(axis=0), mean(end), atol=0.35)
        np.testing.assert_allclose(moved.std(axis=0), width(end), atol=0.25)


def test_other_processes_have_the_data_at_their_times(other):
    drawn = np.asarray(other.marginal(3, 1.0, 500))
    nearest = np.abs(drawn[:, None] - snapshot(1.0, 500, 0)[None]).sum(axis=2).min(axis=1)
    assert nearest.max() < 1e-4


@pytest.mark.slow
def test_action_matching_gives_a_gradient():
    training = dataclasses.replace(QUICK, num_steps=200)
    action = db.fit_path(data(), PathAction(training=training), 0)
    plain = db.fit_path(data(), PathFlow(training=training), 0)
    for path, symmetric in ((action, True), (plain, False)):
        jacobian = jax.jacobian(lambda x, path=path: path.field(jnp.asarray(1.3), x[None])[0])
        curls = [abs(j[0, 1] - j[1, 0]) for j in map(jacobian, jnp.asarray(snapshot(1.3, 20, 1)))]
        assert (max(curls) < 1e-4) == symmetric


@pytest.mark.slow
def test_draws_at_times_are_of_the_laws_of_those_times(fitted):
    times = np.repeat([0.3, 1.0, 1.7, 4.0], 2000).astype(np.float32)
    found = fitted.process.at(as_key(0), jnp.asarray(times))
    knots = np.array(TIMES)
    curve = spline(knots, np.stack([points.mean(axis=0) for points in data().values()]))
    np.testing.assert_allclose(found.t, times, atol=1e-6)
    for t in (0.3, 1.0, 1.7, 4.0):
        here = np.asarray(found.place)[times == np.float32(t)]
        # 2000 draws of deviation 1.8 at most.
        np.testing.assert_allclose(here.mean(axis=0), curve(t)[0], atol=5 * 1.8 / 2000**0.5)


@pytest.mark.slow
def test_pairs_of_neighbours_come_in_turn():
    parts = [np.full((5, 1), float(k)) for k in range(3)]
    both = Neighbours(tuple(Paired(part, part + 10) for part in parts))
    x, y = both.pairs(0, 7)
    np.testing.assert_array_equal(x[:, 0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(y, x + 10)


@pytest.mark.slow
def test_there_and_back(fitted):
    x = snapshot(1.0, 100, 5)
    back = fitted(fitted(x, 1.0, 3.3), 3.3, 1.0)
    np.testing.assert_allclose(back, x, atol=1e-2)
    places = np.asarray(fitted.trajectory(x, [1.0, 2.0, 3.3]))
    np.testing.assert_allclose(places[2], fitted(x, 1.0, 3.3), atol=1e-3)
    np.testing.assert_array_equal(places[0], x)


@pytest.mark.slow
def test_velocity_is_the_derivative_of_the_trajectory(fitted):
    x, step = snapshot(1.0, 50, 6), 0.01
    moved = (np.asarray(fitted(x, 1.0, 1.0 + step)) - x) / step
    # The acceleration, of order one, over half a step; rounding over a step is 1e-4.
    np.testing.assert_allclose(fitted.velocity(1.0, x), moved, atol=0.1)


@pytest.mark.slow
def test_order_of_the_data_does_not_matter(fitted):
    reversed_ = dict(reversed(data().items()))
    again = db.fit_path(reversed_, PathFlow(training=QUICK), 0)
    x = snapshot(0.0, 20, 7)
    np.testing.assert_array_equal(again(x, 0.0, 4.0), fitted(x, 0.0, 4.0))


@pytest.mark.slow
def test_a_saved_path_is_the_same(fitted, tmp_path):
    again = db.load(fitted.save(tmp_path / "path.npz"))
    x = snapshot(0.0, 20, 7)
    np.testing.assert_array_equal(again(x, 0.0, 3.0), fitted(x, 0.0, 3.0))
    np.testing.assert_array_equal(again.marginal(0, 2.0, 10), fitted.marginal(0, 2.0, 10))


@pytest.mark.slow
def test_columns_are_kept():
    pandas = pytest.importorskip("pandas")
    frames = {t: pandas.DataFrame(x, columns=["a", "b"]) for t, x in data(60).items()}
    quick = PathFlow(training=dataclasses.replace(QUICK, num_steps=10))
    fitted = db.fit_path(frames, quick)
    moved = fitted(frames[0.0][["b", "a"]], 0.0, 1.0)
    assert list(moved.columns) == ["b", "a"]
    with pytest.raises(ValueError, match="columns"):
        db.fit_path({0: frames[0.0], 1: frames[1.0].rename(columns={"a": "c"})}, quick)


@pytest.mark.slow
def test_one_point_is_the_first_of_a_batch(fitted, other):
    x = snapshot(1.0, 5, 6)
    for path in (fitted, other):
        velocity = path.velocity(0.7, x[0])
        assert velocity.shape == (2,)
        np.testing.assert_allclose(velocity, path.velocity(0.7, x)[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(path(x[0], 0.0, 1.0), path(x, 0.0, 1.0)[0], atol=1e-5)


@pytest.mark.slow
def test_a_path_is_a_function_inside_jit(fitted):
    x = snapshot(1.0, 5, 6)
    inside = jax.jit(lambda x: fitted(x, 0.0, 2.0))(x)
    np.testing.assert_allclose(inside, fitted(x, 0.0, 2.0), atol=1e-4)
    speed = jax.jit(lambda t, x: fitted.velocity(t, x))(1.0, x)
    np.testing.assert_allclose(speed, fitted.velocity(1.0, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_times_that_float32_does_not_resolve(fitted):
    """Days as numbers of eight digits: what counts is how far they are from the first."""
    dates = {20200100.0 + t: points for t, points in data().items()}
    moved = db.fit_path(dates, PathFlow(training=QUICK), 0)
    np.testing.assert_array_equal(moved.times, 20200100.0 + np.array(TIMES))
    x = snapshot(0.0, 20, 7)
    there = moved(x, 20200100.0, 20200102.5)
    np.testing.assert_array_equal(there, fitted(x, 0.0, 2.5))
    np.testing.assert_array_equal(moved.marginal(0, 20200101.5, 9), fitted.marginal(0, 1.5, 9))
    with pytest.raises(ValueError, match=r"\[20200100, 20200104\].*got 1"):
        moved(x, 1.0, 2.0)
    with pytest.raises(ValueError, match="too close for float32"):
        db.fit_path({0.0: x, 1.0: x, 1.0 + 1e-9: x, 2.0: x})


def test_bad_input_is_named(fitted):
    x = snapshot(0.0, 20, 7)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 4\].*got 4.5"):
        fitted(x, 0.0, 4.5)
    with pytest.raises(ValueError, match=r"times must lie in \[0, 4\].*got -1"):
        fitted.marginal(0, -1.0, 5)
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        fitted(x[:, :1], 0.0, 1.0)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(20,\); got \(3,\)"):
        fitted.velocity([0.1, 0.2, 0.3], x)
    with pytest.raises(ValueError, match=r"numbers as times.*day"):
        db.fit_path({"day 0": x, "day 1": x})
    with pytest.raises(ValueError, match="at least two finite times"):
        db.fit_path({0.0: x})
    with pytest.raises(ValueError, match="at least two finite times"):
        db.fit_path({0.0: x, np.inf: x})
    with pytest.raises(ValueError, match="each time once"):
        db.fit_path({0.0: x, 1.0: x, "1": x})
    with pytest.raises(ValueError, match="no method 'spiral'"):
        db.fit_path({0.0: x, 1.0: x}, "spiral")
    with pytest.raises(ValueError, match="means must be one of"):
        PathFlow(means="circle")

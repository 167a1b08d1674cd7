"""The regularisation that held-out points choose."""

import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.keys import as_key
from driftbridge.transport import Corrected, DataWarning, Selected
from driftbridge.transport.affine import _shrunk
from driftbridge.transport.measures import moments
from driftbridge.transport.points import Sample
from driftbridge.transport.selection import held_out_dual

pytestmark = pytest.mark.slow


def equal(points):
    return Sample(points.astype(np.float32), np.full(len(points), 1 / len(points)))


def shares(fitted):
    numbers = dict(fitted.fit.numbers)
    return numbers["corrected_share"], [float(s) for s in numbers["shares_tried"].split(", ")]


def test_the_dual_of_the_optimal_map_is_the_transport(x64):
    """`E phi(x) + E phi*(y) = max E x . y = (E|x|² + E|y|² - W2²) / 2` between Gaussians.

    The map of 4000 points is that of the law up to 2 %, and the objective is flat at its least.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 2)), 2 + rng.normal(size=(4000, 2)) * [0.5, 3.0]
    fitted = Corrected(share=10.0).fit(equal(x), equal(y), as_key(0))
    found = held_out_dual(fitted, equal(x), equal(y))
    distance = np.sum((y.mean(0) - x.mean(0)) ** 2 + (y.std(0) - x.std(0)) ** 2)
    expected = (np.sum(x**2, 1).mean() + np.sum(y**2, 1).mean() - distance) / 2
    assert found == pytest.approx(expected, rel=0.005)


def test_any_other_map_has_a_larger_dual():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(600, 2)), rng.normal(size=(600, 2)) * [0.5, 3.0]
    test = [equal(rng.normal(size=(500, 2)) * scale) for scale in ([1, 1], [0.5, 3.0])]
    right = Corrected(share=3.0).fit(equal(x), equal(y), as_key(0))
    wrong = Corrected(share=3.0).fit(equal(x), equal(y[:, ::-1]), as_key(0))
    assert held_out_dual(right, *test) < held_out_dual(wrong, *test) - 0.5


def test_clusters_take_a_small_epsilon_and_gaussians_do_not():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 2))
    far = 6 * rng.choice([-1, 1], size=(500, 1)) * [1.0, 0.5] + 0.2 * rng.normal(size=(500, 2))
    share, tried = shares(db.fit_map(x, far, Selected()))
    start = 0.07 * 2**0.5
    assert share < start / 2 and share == pytest.approx(min(tried[:-1]), rel=0.01)
    share, tried = shares(db.fit_map(x, 1 + 2 * rng.normal(size=(500, 2)), Selected()))
    assert share > start and tried[0] == pytest.approx(start, rel=0.01)


def test_auto_selects():
    rng = np.random.default_rng(3)
    fitted = db.fit_map(rng.normal(size=(200, 2)), 3 + rng.normal(size=(200, 2)))
    assert fitted.fit.method in ("affine", "corrected")
    assert {"corrected_share", "shrunk_gain"} < set(dict(fitted.fit.numbers))


def test_a_learned_potential_is_taken_where_the_map_bends():
    """The gains are told, and the largest is that of the map taken."""
    rng = np.random.default_rng(4)

    def bent(x):
        return x / 2 + 3 / (1 + np.exp(-8 * x[:, :1])) * np.eye(10)[:1]

    x, y = rng.normal(size=(500, 10)), bent(rng.normal(size=(500, 10)))
    fitted, test = db.fit_map(x, y), rng.normal(size=(400, 10))
    numbers = dict(fitted.fit.numbers)
    assert fitted.fit.method == "brenier"
    assert numbers["brenier_gain"] > numbers["corrected_gain"]
    corrected = db.fit_map(x, y, Corrected(share=numbers["corrected_share"]))
    errors = [np.mean((t(test) - bent(test)) ** 2) for t in (fitted, corrected)]
    assert errors[0] < errors[1]


def test_gaussians_take_no_learned_potential():
    rng = np.random.default_rng(5)
    fitted = db.fit_map(rng.normal(size=(400, 2)), 1 + rng.normal(size=(400, 2)) * [0.5, 2.0])
    assert fitted.fit.method in ("affine", "corrected")
    assert "brenier_gain" in dict(fitted.fit.numbers)


def test_few_points_are_not_split():
    with pytest.warns(DataWarning):
        fitted = db.fit_map(np.eye(3, 2), 1 + np.eye(3, 2), Selected())
    assert fitted.fit.method == "affine" and "fewer than 16" in fitted.fit.messages[-1]


def test_shrunk_covariances_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.covariance")
    points = np.random.default_rng(6).normal(size=(60, 20)) * np.linspace(1, 2, 20)
    sample = Sample(points, np.full(60, 1 / 60))
    found = _shrunk(sample, moments(sample), np.ones(20))
    np.testing.assert_allclose(found, sklearn.ledoit_wolf(points)[0], rtol=1e-10)
    # All weight on half of the points: those alone. Units of the columns change nothing.
    half = Sample(points, np.where(np.arange(60) < 30, 1 / 30, 0.0))
    alone = sklearn.ledoit_wolf(points[:30])[0]
    for unit in (1.0, 3.0):
        found = _shrunk(half, moments(half), np.full(20, unit))
        np.testing.assert_allclose(found, alone, rtol=1e-10)


def test_few_points_of_many_dimensions_take_shrunk_covariances():
    """Between `N(0, I)` and `N(0, I / 4)` in 40 dimensions, of which 240 points know little.

    The optimal map halves; the affine map of the moments errs by about `dim / n`, a sixth of it.
    """
    rng = np.random.default_rng(7)
    x, y, test = (
        rng.normal(size=(240, 40)),
        rng.normal(size=(240, 40)) / 2,
        rng.normal(size=(99, 40)),
    )
    fitted, plain = db.fit_map(x, y), db.fit_map(x, y, "affine")
    assert fitted.fit.method == "affine" and dict(fitted.fit.numbers)["shrunk_gain"] > 0
    errors = [np.mean((T(test) - test / 2) ** 2) / 0.25 for T in (fitted, plain)]
    assert errors[0] < 0.05 < errors[1]

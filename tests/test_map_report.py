"""The report of a map: its numbers, its sentence, its page."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge import map_plots, map_report
from driftbridge.transport import JKO, Corrected, Flow, Training
from driftbridge.transport.report import Bounds


def clouds(n, seed, shift=3.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    return x, (shift + rng.normal(size=(n, 2)) @ [[2, 0.5], [0.5, 1]]).astype(np.float32)


@pytest.fixture(scope="module")
def reported():
    fitted = db.fit_map(*clouds(300, 0), "affine")
    return fitted, fitted.report(*clouds(200, 1))


def test_numbers(reported):
    fitted, report = reported
    # The shift alone is 3 sqrt(2); the image differs from the target as samples of one law do.
    assert report.before.value > 4
    assert report.after.value < report.after.floor + 5 * report.after.floor_spread
    assert report.energy_before.p_value == pytest.approx(1 / 200)
    assert report.is_better and "W2 to the target" in report.sentence
    assert report.num_source == 200 and report.after.n == 100
    # An affine map with a symmetric positive matrix is optimal for its image, on any points.
    assert report.optimal.lower == pytest.approx(report.cost_there, rel=1e-4)
    assert report.optimal.upper == pytest.approx(report.cost_there, rel=1e-4)
    assert report.cost.mean == pytest.approx(fitted.cost(clouds(200, 1)[0]).mean)
    assert report.round_trip < 1e-5
    known = json.loads(report.to_json())
    assert known["wasserstein"]["after"]["floor"] == report.after.floor
    assert "round trip" in str(report)


def test_a_map_that_is_not_optimal_costs_more():
    from driftbridge.transport.affine import AffineMap

    fitted = db.fit_map(*clouds(300, 0), "affine")
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    turned = AffineMap(fitted.fit, jnp.zeros(2), jnp.zeros(2), turn, turn.T, jnp.zeros(()))
    x, _ = clouds(200, 2)
    report = turned.report(x, x)
    # E|Rx - x|² = 2 E|x|² = 4 for a quarter turn of a standard normal, whose image is the same law.
    assert report.cost_there == pytest.approx(4, rel=0.25)
    assert report.optimal.upper < report.cost_there / 4
    assert report.optimal.lower == pytest.approx(report.optimal.upper, rel=1e-4)


@pytest.mark.slow
def test_sentences():
    x, y = clouds(120, 0)
    stopped = db.fit_map(x, y, Corrected(tolerance=1e-5, max_iterations=2))
    assert "did not converge" in stopped.report(x, y).sentence
    away = db.fit_map(x, y, "affine")
    assert "does not bring the source closer" in away.report(x, x).sentence
    blurred = db.fit_map(x, y, db.transport.Entropic(share=3.0))
    assert "still told from it" in blurred.report(x, y).sentence
    assert "cannot be told" in away.report(*clouds(120, 5)).sentence
    with pytest.raises(ValueError, match="at least 10 points on each side; got 5 and 120"):
        away.report(x[:5], y)


@pytest.mark.slow
def test_page(reported, tmp_path):
    _, report = reported
    page = map_report.write(report, tmp_path / "map.html", "A <title>").read_text()
    assert (
        "A &lt;title&gt;" in page
        and page.count("<svg") == 3
        and "http" not in page.split("<body")[0]
    )
    assert report.sentence in page and "Round trip" in page


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 3])
def test_pictures_in_any_dimension(dim):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, dim)), 2 + rng.normal(size=(60, dim))
    report = db.fit_map(x, y, "affine").report(x, y)
    assert map_plots.clouds(report).axes
    assert map_plots.columns(report, 2).axes


def test_an_interval_closed_to_rounding_is_certified_to_nothing(reported, tmp_path):
    upper = reported[1].optimal.upper
    crossed = dataclasses.replace(reported[1], optimal=Bounds(upper * (1 + 1e-15), upper))
    page = map_report.write(crossed, tmp_path / "page.html").read_text()
    assert "certified within 0 %" in page


@pytest.mark.slow
def test_a_flow_says_how_points_move(tmp_path):
    x, y = clouds(120, 3)
    fitted = db.fit_map(x, y, Flow(training=Training(num_steps=5, batch_size=16)))
    report = fitted.report(*clouds(60, 4))
    loss = report.to_dict()["fit"]["numbers"]["held_out_loss"]
    assert f"held-out loss {loss:.4g}" in str(report)
    assert report.motion is not None and report.motion.steps == 1  # straight paths, as good as
    assert report.to_dict()["motion"]["energy"] == report.motion.energy
    assert "path energy" in str(report)
    page = map_report.write(report, tmp_path / "page.html").read_text()
    assert "Curvature" in page and "Rotation" in page


@pytest.mark.slow
def test_losses_are_drawn_of_what_is_trained(reported, tmp_path):
    with pytest.raises(ValueError, match="are not trained"):
        map_plots.losses(reported[1])
    x, y = clouds(60, 3)
    few = Training(num_steps=2, batch_size=16)
    for method, count in ((Flow(training=few), 1), (JKO(num_steps=5, training=few), 3)):
        report = db.fit_map(x, y, method).report(*clouds(40, 4))
        axes = [axis for axis in map_plots.losses(report).axes if axis.get_visible()]
        assert len(axes) == count
        assert "<h2>Training</h2>" in map_report.write(report, tmp_path / "a.html").read_text()

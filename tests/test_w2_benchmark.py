"""Gradients to a distance: the distance is the one it says, and crossings are counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.w2_gradients import CELLS, Trace, main, problem, squared_distances, table
from driftbridge.targets import DenseGaussian, DiagonalGaussian


@pytest.mark.slow
def test_the_distance_of_shifted_and_scaled_draws_is_known():
    chains, scale = 200, np.array([1.0, 5.0])
    target = DiagonalGaussian(np.array([3.0, -1.0]), scale)
    draws = np.asarray(target.truth.sample(jax.random.key(0), chains * 200))
    where = problem(target, draws, chains)
    measure = jax.jit(jax.vmap(squared_distances, (0, None, None)))
    exact = jax.random.normal(jax.random.key(1), (500, chains, 2))
    squares = np.asarray(measure(exact, where.directions, where.quantiles))
    error = squares.std(0) / np.sqrt(len(squares))
    # The floor is a mean over 100 sets of draws: both errors, and the reference's own, which is
    # that of 200 times as many draws.
    assert np.all(abs(squares.mean(0) - where.floor) < 5 * error * 6**0.5 + where.floor / 200)
    shifted = 0.4 + 1.5 * exact
    found = np.asarray(measure(shifted, where.directions, where.quantiles))[:, 0]
    # W2^2 of N(a, b^2) to N(0, 1) is a^2 + (b - 1)^2; the floor of wider draws is larger, by b.
    noise = 5 * found.std() / np.sqrt(len(found))
    assert abs(found.mean() - (0.4**2 + 0.5**2)) < noise + 1.5 * where.floor[0]
    assert np.all((where.resolution > 0) & (where.resolution < 0.2))


def test_principal_directions_show_what_coordinates_do_not():
    # Correlation 0.98: the narrow direction has variance 0.02 in standard coordinates.
    covariance = np.array([[1.0, 0.98], [0.98, 1.0]])
    target = DenseGaussian(np.zeros(2), covariance)
    draws = np.asarray(target.truth.sample(jax.random.key(0), 200 * 200))
    where = problem(target, draws, 200)
    off = draws[:200] + 0.2 * np.array([1.0, -1.0])  # two standard deviations of that direction
    squares = np.asarray(squared_distances(off, where.directions, where.quantiles)) - where.floor
    # 0.2^2 over coordinates; (0.2 sqrt(2))^2 / 0.02 over one of two directions. The noise of 200
    # draws is a shift of 1 / sqrt(200) of a standard deviation, and the square of five of them.
    assert squares[0] == pytest.approx(0.04, abs=2 * 0.2 * 5 / 200**0.5)
    assert squares[1] == pytest.approx(2.0, abs=2 * 2 * 5 / 200**0.5 / 2)


def test_whitened_coordinates_have_the_target_standardised():
    target = DiagonalGaussian(np.array([3.0]), np.array([5.0]))
    draws = np.asarray(target.truth.sample(jax.random.key(0), 64 * 100))
    where = problem(target, draws, 64)
    # The score of a standard normal, to the errors of mean and sd of 6400 draws.
    at = jnp.asarray([1.5])
    assert float(where.target.score(at)[0]) == pytest.approx(-1.5, abs=5 * 2.5 / np.sqrt(6400))


def test_a_level_is_reached_where_the_distance_stays_below():
    distance = np.array([[1.0, 9.0], [0.1, 0.4], [0.3, 0.2], [0.15, 0.1]])
    trace = Trace((0.1,), np.array([5.0, 10, 20, 40]), distance)
    assert [trace.reaches(level) for level in (2.0, 0.3, 0.2, 0.1)] == [5, 10, 40, np.inf]
    assert trace.reaches(0.2, part=1) == 20
    lost = Trace((9.0,), np.array([5.0, 10]), np.array([[0.1, 0.1], [np.nan, np.nan]]))
    assert lost.reaches(1.0) == np.inf


def test_a_level_that_is_never_reached_is_a_dash():
    row = {"target": "t", "kernel": "k", "exact": "yes"}
    row["gradients"] = {f"{part} {level}": 100 * level for part, level in CELLS}
    row["gradients"]["directions 0.1"] = np.inf
    assert table([row]).splitlines()[-1] == "| t | k | yes | 50 | 20 | 10 | 50 | 20 | - |"


@pytest.mark.slow
def test_the_small_run_prints_its_table(capsys):
    assert main(["--small"]) == 0
    assert "BlackJAX adjusted MCLMC" in capsys.readouterr().out

"""Gradients to a distance: the distance is the one it says, and crossings are counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.w2_gradients import Trace, main, problem, squared_distance, table
from driftbridge.targets import DiagonalGaussian


def test_the_distance_of_shifted_and_scaled_draws_is_known():
    chains, scale = 200, np.array([1.0, 5.0])
    target = DiagonalGaussian(np.array([3.0, -1.0]), scale)
    draws = np.asarray(target.truth.sample(jax.random.key(0), chains * 200))
    where = problem(target, draws, chains)
    exact = jax.random.normal(jax.random.key(1), (500, chains, 2))
    squares = np.asarray(jax.vmap(squared_distance, (0, None))(exact, where.quantiles))
    error = squares.std() / np.sqrt(len(squares))
    # The floor itself is a mean over 100 sets of draws: both errors, and the reference's own,
    # which is that of 200 times as many draws.
    assert abs(squares.mean() - where.floor) < 5 * error * np.sqrt(1 + 5) + where.floor / 200
    shifted = 0.4 + 1.5 * exact
    found = np.asarray(jax.vmap(squared_distance, (0, None))(shifted, where.quantiles))
    # W2^2 of N(a, b^2) to N(0, 1) is a^2 + (b - 1)^2; the floor of wider draws is larger, by b.
    noise = 5 * found.std() / np.sqrt(len(found))
    assert abs(found.mean() - (0.4**2 + 0.5**2)) < noise + 1.5 * where.floor
    assert 0 < where.resolution < 0.2


def test_whitened_coordinates_have_the_target_standardised():
    target = DiagonalGaussian(np.array([3.0]), np.array([5.0]))
    draws = np.asarray(target.truth.sample(jax.random.key(0), 64 * 100))
    where = problem(target, draws, 64)
    # The score of a standard normal, to the errors of mean and sd of 6400 draws.
    at = jnp.asarray([1.5])
    assert float(where.target.score(at)[0]) == pytest.approx(-1.5, abs=5 * 2.5 / np.sqrt(6400))


def test_a_level_is_reached_where_the_distance_stays_below():
    trace = Trace((0.1,), np.array([5.0, 10, 20, 40]), np.array([1.0, 0.1, 0.3, 0.15]))
    assert trace.reaches(2.0) == 5
    assert trace.reaches(0.3) == 10
    assert trace.reaches(0.2) == 40
    assert trace.reaches(0.1) == np.inf
    lost = Trace((9.0,), np.array([5.0, 10]), np.array([0.1, np.nan]))
    assert lost.reaches(1.0) == np.inf


def test_a_level_that_is_never_reached_is_a_dash():
    row = {"target": "t", "kernel": "k", "exact": "yes"}
    row["gradients"] = {"0.5": 12.0, "0.2": 40.4, "0.1": np.inf}
    assert table([row]).splitlines()[-1] == "| t | k | yes | 12 | 40 | - |"


@pytest.mark.slow
def test_the_small_run_prints_its_table(capsys):
    assert main(["--small"]) == 0
    assert "BlackJAX adjusted MCLMC" in capsys.readouterr().out

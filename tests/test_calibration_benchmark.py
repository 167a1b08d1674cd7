"""Simulation-based calibration: bands have their level, verdicts are as they should be."""

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration import (
    CHAINS,
    MODELS,
    band_p_value,
    by_exact,
    exact_draws,
    judge,
    main,
    ranks_of,
    with_data,
)


@pytest.mark.slow
def test_the_band_has_its_level():
    rng = np.random.default_rng(1)
    total, draws, runs = 60, 15, 1000
    p = np.array([band_p_value(rng.integers(0, draws + 1, total), draws) for _ in range(runs)])
    # Ranks are discrete, so P(p <= a) is at most a, and close to it: 5 standard errors of a share.
    for level in (0.01, 0.05, 0.2, 0.5):
        error = np.sqrt(level * (1 - level) / runs)
        assert np.mean(p <= level) < level + 5 * error
        assert np.mean(p <= level) > 0.7 * level - 5 * error


def test_a_single_point_is_the_two_sided_binomial():
    # One draw: the rank is 0 or 1, and the only count is binomial with probability a half.
    ranks = np.repeat([0, 1], [14, 6])
    expected = stats.binom(20, 0.5).sf(13) * 2
    assert band_p_value(ranks, 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", ["shifted", "narrow", "wide"])
def test_ranks_that_are_not_uniform_leave_the_band(shape):
    rng = np.random.default_rng(2)
    a, b = {"shifted": (1.5, 1.0), "narrow": (2.0, 2.0), "wide": (0.5, 0.5)}[shape]
    ranks = rng.binomial(63, rng.beta(a, b, 300))
    assert band_p_value(ranks, 63) < 1e-4


@pytest.mark.slow
def test_exact_draws_have_the_moments_of_the_conjugate_posterior(x64):
    model, _ = with_data(MODELS["linear"], jax.random.key(3))
    keys = jax.random.split(jax.random.key(4), 66)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: exact_draws(model, None, key)))(keys))
    draws = draws.reshape(66 * CHAINS, 3)
    # The score vanishes at the mean, and its slope is minus the inverse covariance.
    score = np.asarray(model.score(jax.numpy.asarray(draws.mean(0))))
    covariance = np.cov(draws.T)
    # Standardised error of the mean: chi-squared with three degrees of freedom.
    assert len(draws) * score @ covariance @ score < stats.chi2(3).isf(1e-5)
    hessian = np.asarray(jax.hessian(model.log_density)(jax.numpy.asarray(draws.mean(0))))
    # In whitened coordinates: sqrt(2 / n) on the diagonal, sqrt(1 / n) beside it.
    root = np.linalg.cholesky(-hessian)
    whitened = root.T @ covariance @ root
    np.testing.assert_allclose(whitened, np.eye(3), atol=5 * np.sqrt(2 / len(draws)))


def wide_draws(model, _, key):
    """Draws of the right mean and twice the standard deviation."""
    draws = exact_draws(model, None, key)
    return 2 * draws - draws.mean(0, keepdims=True)


def by_wide(model, key, replications):
    """Ranks among draws that are too wide."""
    return ranks_of(model, wide_draws, None, key, replications), CHAINS


@pytest.mark.slow
def test_rows_have_their_verdicts(capsys):
    rows = [
        ("linear", "exact draws", by_exact, True),
        ("linear", "wide", by_wide, False),
        ("linear", "wide, wrongly expected", by_wide, True),
    ]
    found = judge(rows, 200)
    assert [row["passes"] for row in found] == [True, False, False]
    assert [row["as_it_should"] for row in found] == [True, True, False]
    assert "NOT AS IT SHOULD" in capsys.readouterr().out


@pytest.mark.slow
def test_all_verdicts_are_as_they_should_be(capsys):
    assert main(["--small"]) == 0
    assert "14 of 14" in capsys.readouterr().out

"""Goodness of fit of independent points; its statistics are tested with those of draws."""

import numpy as np
import pytest
from scipy import stats

from driftbridge.samplers.stein_discrepancy import kernel_stein_discrepancy
from driftbridge.targets import DiagonalGaussian
from driftbridge.transport.goodness_of_fit import goodness_of_fit

PLANE = DiagonalGaussian(np.zeros(2, np.float32))


@pytest.mark.slow
def test_it_is_the_discrepancy_of_draws_with_a_sign_each():
    x = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    found = goodness_of_fit(PLANE, x, key=3)
    assert found == kernel_stein_discrepancy(PLANE, x, block_length=1, key=3)
    assert found.num_draws == 80 and found.block_length == 1


def test_the_level_is_kept_and_a_shift_is_seen():
    rng = np.random.default_rng(1)

    def rejected(shift):
        points = [rng.normal(shift, size=(60, 2)).astype(np.float32) for _ in range(60)]
        p = [
            goodness_of_fit(PLANE, x, scale=1.5, num_bootstrap=99, key=run).p_value
            for run, x in enumerate(points)
        ]
        return sum(value <= 0.05 for value in p)

    # 60 tests at the level 0.05: more than 11 of them once in 1e5, were the level exact.
    assert rejected(0.0) <= stats.binom(60, 0.05).ppf(1 - 1e-5)
    # The mean of 60 is known to 0.13 in each coordinate.
    assert rejected(0.6) > 50


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((4, 3)), r"\(n, 2\)"),
        (np.zeros((1, 2)), "n at least 2"),
        (np.zeros(2), "n at least 2"),
        (np.zeros((4, 2)), "are equal"),
        (np.array([[0.0, np.nan], [0, 0]]), "NaN in row 0"),
    ],
)
def test_what_cannot_be_tested_is_refused(x, says):
    with pytest.raises(ValueError, match=says):
        goodness_of_fit(PLANE, x)

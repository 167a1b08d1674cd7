"""Stationary bias on a target that is not Gaussian, against a table computed by quadrature."""

import jax.numpy as jnp
import numpy as np
import pytest

from driftbridge.samplers.langevin import LMC, RandomizedMidpoint
from tests.laws.grid_operator import stationary_density, transition_matrix, wasserstein
from tests.laws.targets import LogCosh

# (step size, relative error of E x^2, W2) for U = x^2 / 2 + 2 log cosh x.
TABLE = {
    LMC: [
        (0.2, 0.3726, 0.1092),
        (0.1, 0.1609, 4.94e-2),
        (0.05, 7.52e-2, 2.35e-2),
        (0.025, 3.64e-2, 1.15e-2),
    ],
    RandomizedMidpoint: [
        (0.2, 5.28e-2, 1.66e-2),
        (0.1, 7.03e-3, 2.24e-3),
        (0.05, 1.13e-3, 3.63e-4),
        (0.025, 2.12e-4, 6.89e-5),
    ],
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", TABLE, ids=lambda method: method.__name__)
def test_stationary_bias(method):
    # Narrowest Gaussian of the mixture: spread sqrt(2h (1 - u)) with u = 0.987 at the last node,
    # one spacing at h = 0.025, so that a sum over the grid is an integral to 3e-9.
    grid = np.linspace(-5, 5, 401)
    spacing = grid[1] - grid[0]
    truth = np.exp(np.asarray([LogCosh(1).log_density(jnp.full(1, x)) for x in grid]))
    truth /= truth.sum() * spacing
    second = np.sum(grid**2 * truth) * spacing
    for h, error, distance in TABLE[method]:
        density = stationary_density(transition_matrix(method(h), LogCosh(1), grid), spacing)
        # The table has three digits.
        measured = np.sum(grid**2 * density) * spacing / second - 1
        assert measured == pytest.approx(error, rel=0.01)
        assert wasserstein(grid, density, truth) == pytest.approx(distance, rel=0.01)

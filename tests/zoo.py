"""The table of targets with known truth, and what its laws share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from driftbridge import targets

COVARIANCE = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
SHAPES = np.stack([COVARIANCE, np.eye(3), 0.3 * COVARIANCE + 0.1])
MEANS = np.array([[-2.0, 0.0, 1.0], [1.5, 1.0, 0.0], [0.0, -2.0, 0.5]])


@dataclass(frozen=True)
class Entry:
    """A target of the zoo, and why a law does not apply to it (empty where it does)."""

    make: Callable[[], targets.Target]
    no_stein: str = ""
    no_moments: str = ""


ZOO = {
    "diagonal": Entry(lambda: targets.DiagonalGaussian([1.0, -2.0], [0.5, 3.0])),
    "dense": Entry(lambda: targets.DenseGaussian([1.0, 0.0, -1.0], COVARIANCE)),
    "rotated": Entry(lambda: targets.rotated_gaussian(5, 1e3, outliers=(1e4,))),
    "grid": Entry(targets.gaussian_grid),
    "forty": Entry(targets.forty_gaussians),
    "unequal mixture": Entry(
        lambda: targets.GaussianMixture(MEANS, [0.5, 1.0, 2.0], [1.0, 2.0, 3.0])
    ),
    "dense mixture": Entry(lambda: targets.DenseGaussianMixture(MEANS, SHAPES, [1.0, 2.0, 1.0])),
    "student": Entry(lambda: targets.StudentMixture(MEANS, [0.5, 1.0, 2.0], df=10.0)),
    "heavy student": Entry(
        lambda: targets.StudentMixture(MEANS, df=1.5), no_moments="df = 1.5 has no variance"
    ),
    "funnel": Entry(lambda: targets.NealFunnel(3, 1.0)),
    "deep funnel": Entry(
        targets.NealFunnel,
        no_stein="x_i^2 has the relative variance 3 e^9",
        no_moments="x_i^2 has the relative variance 3 e^9",
    ),
    "banana": Entry(targets.Banana),
    "ring": Entry(targets.Ring),
    "thick ring": Entry(lambda: targets.Ring(1.0, 1.0)),
    "two moons": Entry(targets.TwoMoons),
    "double well": Entry(targets.DoubleWell),
    "symmetric well": Entry(lambda: targets.DoubleWell(1.0, 4.0, 0.0)),
    "tilted to one": Entry(lambda: targets.DoubleWell(1.0, 1.0, 5.0)),
    "many well": Entry(lambda: targets.ManyWell(3, 2)),
    "walk": Entry(targets.BrownianMotion),
    "walk, non-centred": Entry(targets.BrownianMotionNonCentered),
    "schools": Entry(targets.EightSchools, no_stein="E 1 / tau^2 is infinite"),
    "schools, non-centred": Entry(targets.EightSchoolsNonCentered),
}
NAMES = list(ZOO)
DRAWS = 40_000

# Of the about 20 000 numbers compared below, one beyond six standard errors has probability 4e-5.
SIGMAS = 6.0


@functools.cache
def target_of(name: str) -> targets.Target:
    return ZOO[name].make()


@functools.cache
def draws_of(name: str) -> np.ndarray:
    """Exact draws in float64, shared by the laws (call under x64)."""
    return np.asarray(target_of(name).truth.sample(jax.random.key(11), DRAWS))


def gap(found, expected):
    """Largest difference, relative to the largest entry."""
    return float(jnp.max(jnp.abs(found - expected)) / (1 + jnp.max(jnp.abs(expected))))

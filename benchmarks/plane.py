"""The three problems in the plane of the flow matching papers, in their two variants.

- normal to eight Gaussians: on a ring of radius 5, standard deviation 1 (variant a).
- moons to eight Gaussians: moons with noise .1, less their mean and over their deviation, each one
  number for both coordinates, times 7; radius 12, standard deviation 1.5 (b).
- normal to moons: noise .05, times 2, less 1 (a).

The numbers are those of the official code of Tong et al. (2024), arXiv 2302.00482, as the papers'
tables used it; their tutorials have others under the same names.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Draw = Callable[[np.random.Generator, int], np.ndarray]


class Plane(NamedTuple):
    """Laws of source and target."""

    source: Draw
    target: Draw


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 2)).astype(np.float32)


def ring(radius: float, deviation: float) -> Draw:
    """Eight Gaussians at equal steps on a circle."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        angle = rng.integers(8, size=n) * (np.pi / 4)
        centres = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return (centres + deviation * rng.normal(size=(n, 2))).astype(np.float32)

    return draw


def moons(noise: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Two interleaved half circles, in scikit-learn's coordinates, angles in equal steps."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        outer = n // 2
        first, second = np.linspace(0, np.pi, outer), np.linspace(0, np.pi, n - outer)
        upper = np.stack([np.cos(first), np.sin(first)], axis=1)
        lower = np.stack([1 - np.cos(second), 0.5 - np.sin(second)], axis=1)
        points = rng.permutation(np.concatenate([upper, lower]))
        return points + noise * rng.normal(size=(n, 2))

    return draw


def standardised_moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Variant (b): noise .1; one mean and one deviation of the sample for both coordinates."""
    points = moons(0.1)(rng, n)
    return (7 * (points - points.mean()) / points.std()).astype(np.float32)


def doubled_moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Variant (a)."""
    return (2 * moons(0.05)(rng, n) - 1).astype(np.float32)


PLANE = {
    "normal to eight Gaussians": Plane(normal, ring(5.0, 1.0)),
    "moons to eight Gaussians": Plane(standardised_moons, ring(12.0, 1.5)),
    "normal to moons": Plane(normal, doubled_moons),
}

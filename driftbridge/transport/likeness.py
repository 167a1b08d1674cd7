"""Whether a sample can be of the law that a method supposes, by its projections."""

import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import host_generator
from driftbridge.transport.pairs import effective_size
from driftbridge.transport.points import Sample

# Random directions beside the coordinates.
NUM_DIRECTIONS = 16
# Kolmogorov's distance times the root of the sample size. Of draws of the law it exceeds 2 in a
# direction with probability below 7e-4 where mean and variance are known, and by far less where
# they are fitted; 3, with 3e-8.
NORMAL_BOUND, SAME_BOUND = 2.0, 3.0


def check_normal(sample: Sample, name: str, key: Key[Array, ""]) -> None:
    """Refuse whitened points that are not of a standard normal.

    **Raises:** `ValueError` with the largest distance of a projection.
    """
    from scipy.special import ndtr

    worst = 0.0
    for along in _projections(sample, key):
        order = np.argsort(along)
        upper = np.cumsum(sample.weights[order])
        law = ndtr(along[order])
        worst = max(
            worst, np.abs(upper - law).max(), np.abs(upper - sample.weights[order] - law).max()
        )
    bound = NORMAL_BOUND / np.sqrt(effective_size(sample.weights))
    if worst > bound:
        raise ValueError(
            f"{name} starts in a normal law, and the source is none: along a direction its "
            f"distribution function is off by {worst:.3g} (draws of one stay below {bound:.3g}). "
            "Take a path such as Linear()."
        )


def check_same(first: Sample, second: Sample, name: str, key: Key[Array, ""]) -> None:
    """Refuse two samples that are not of one law.

    **Raises:** `ValueError` with the largest distance of a projection.
    """
    worst, bound = apart(first, second, key)
    if worst > bound:
        raise ValueError(
            f"{name} goes from a law to itself, and source and target differ: along a direction "
            f"their distribution functions are {worst:.3g} apart (draws of one law stay below "
            f"{bound:.3g}). Take a path such as Linear()."
        )


def apart(first: Sample, second: Sample, key: Key[Array, ""]) -> tuple[float, float]:
    """The largest distance of two distribution functions of a projection, and what draws of one
    law stay below."""
    worst = 0.0
    for one, other in zip(_projections(first, key), _projections(second, key), strict=True):
        ends = np.sort(np.concatenate([one, other]))
        levels = [_distribution(a, s.weights, ends) for a, s in ((one, first), (other, second))]
        worst = max(worst, float(np.abs(levels[0] - levels[1]).max()))
    sizes = [effective_size(s.weights) for s in (first, second)]
    return worst, float(SAME_BOUND * np.sqrt(1 / sizes[0] + 1 / sizes[1]))


def _projections(sample: Sample, key: Key[Array, ""]) -> Float[np.ndarray, "directions n"]:
    dim = sample.points.shape[1]
    random = host_generator(key).normal(size=(NUM_DIRECTIONS * (dim > 1), dim))
    directions = np.concatenate(
        [np.eye(dim), random / np.linalg.norm(random, axis=1, keepdims=True)]
    )
    return directions @ np.asarray(sample.points, np.float64).T


def _distribution(values: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    levels = np.concatenate([[0.0], np.cumsum(weights[order])])
    return levels[np.searchsorted(values[order], at, side="right")]

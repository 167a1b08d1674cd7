"""Pairs of data sets with points held out, and the map between them where it is known."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from driftbridge.transport.affine import bures


class Problem(NamedTuple):
    """Points to fit to and points to test on, which are in neither of those.

    - `truth`: images of `x_test` under the optimal map; None where it is not known.
    - `error_rate`: share of the images of `x_test` that a classifier of the target gets wrong; None
      where there is no classifier.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    truth: np.ndarray | None = None
    error_rate: Callable[[np.ndarray], float] | None = None


def digits_blur(seed: int) -> Problem:
    """Digits under a symmetric positive definite blur, by random thirds (700, 700, 397).

    `x -> A x` is the gradient of a convex function, so `A` is the optimal map whatever the data.
    The blur averages neighbouring pixels with weights `exp(-r²/2)`, scaled to norm 1, plus 0.05.
    """
    from sklearn.datasets import load_digits

    blur = _blur()
    digits = _shuffled(load_digits().data, seed)
    test = digits[1400:]
    return Problem(digits[:700], digits[700:1400] @ blur, test, test @ blur, test @ blur)


def _blur() -> np.ndarray:
    i = np.arange(8)
    line = np.exp(-((i[:, None] - i[None, :]) ** 2) / 2)
    plane = np.kron(line, line)
    return plane / np.linalg.eigvalsh(plane)[-1] + 0.05 * np.eye(64)


def ridges(dim: int, n: int, seed: int) -> Problem:
    """The gradient of a quadratic and `2 dim` softplus ridges on two Gaussians of unequal widths.

    `T(x) = x/2 + sum_k w_k sigmoid(4 (w_k . x - b_k))`, `w_k` normal with variance `1/dim`.
    """
    rng = np.random.default_rng([seed, dim])
    w, b = rng.normal(size=(2 * dim, dim)) / np.sqrt(dim), rng.normal(size=2 * dim)

    def image(x):
        return x / 2 + (1 / (1 + np.exp(-4 * (x @ w.T - b)))) @ w

    def draw(count):
        side = rng.choice([-1.0, 1.0], size=(count, 1))
        return side / np.sqrt(dim) + rng.normal(size=(count, dim)) * np.where(side < 0, 0.5, 1.2)

    x, y, test = draw(n), image(draw(n)), draw(1000)
    return Problem(x, y, test, image(draw(1000)), image(test))


GAUSSIANS = (
    np.array([[1.0, 0.3], [0.3, 0.5]]),
    np.array([[2.0, -0.8], [-0.8, 1.5]]),
    np.array([3.0, -1.0]),
)


def gaussians(seed: int, n: int = 400) -> Problem:
    """Two Gaussians in the plane, 400 points of each."""
    first, second, mean = GAUSSIANS
    rng = np.random.default_rng(seed)
    x, test = (rng.multivariate_normal(np.zeros(2), first, k) for k in (n, 1000))
    y, y_test = (rng.multivariate_normal(mean, second, k) for k in (n, 1000))
    return Problem(x, y, test, y_test, mean + test @ bures(first, second).matrix)


def mixtures(dim: int, seed: int, n: int = 1000) -> Problem:
    """From a standard normal to three separated Gaussians in `dim` dimensions; no map is known."""
    rng = np.random.default_rng([seed, dim, 3])
    centres = 4 * rng.normal(size=(3, dim)) / np.sqrt(dim)

    def target(count):
        return centres[rng.integers(0, 3, count)] + 0.5 * rng.normal(size=(count, dim))

    return Problem(rng.normal(size=(n, dim)), target(n), rng.normal(size=(n, dim)), target(n))


def colours(seed: int, n: int = 1000) -> Problem:
    """Pixels of the two photographs of scikit-learn."""
    from sklearn.datasets import load_sample_image

    pixels = [load_sample_image(f"{name}.jpg").reshape(-1, 3) / 255 for name in ("china", "flower")]
    (x, y) = (_shuffled(p, [seed, i])[: 2 * n] for i, p in enumerate(pixels))
    return Problem(x[:n], y[:n], x[n:], y[n:])


def digit_to_digit(seed: int, source: int = 3, target: int = 8) -> Problem:
    """Threes and eights in the first ten principal components of all digits."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    centred = data - data.mean(axis=0)
    scores = centred @ np.linalg.svd(centred, full_matrices=False)[2][:10].T
    x, y = (_shuffled(scores[labels == d], [seed, d]) for d in (source, target))
    half = min(len(x), len(y)) // 2
    return Problem(x[:half], y[:half], x[half : 2 * half], y[half : 2 * half])


def tumours(seed: int) -> Problem:
    """Malignant to benign, five measurements of the breast cancer data, standardised."""
    from sklearn.datasets import load_breast_cancer

    data, benign = load_breast_cancer(return_X_y=True)
    data = (data[:, :5] - data[:, :5].mean(axis=0)) / data[:, :5].std(axis=0)
    x, y = (_shuffled(data[benign == k], [seed, k]) for k in (0, 1))
    half = len(x) // 2
    return Problem(x[:half], y[:half], x[half : 2 * half], y[half : 2 * half])


def domain_shift(seed: int) -> Problem:
    """Digits seen by another sensor: a symmetric positive mix of pixels and an offset.

    A logistic regression of digits as they are classifies what is carried back.
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(data))
    known, fitting, test = np.split(order, [700, 1400])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(data[known], labels[known])
    mix, offset = _blur() + 0.3 * np.eye(64), 2.0

    def error_rate(image):
        return float(np.mean(model.predict(image) != labels[test]))

    shifted = data @ mix + offset
    return Problem(shifted[fitting], data[known], shifted[test], data[test], None, error_rate)


def _shuffled(points: np.ndarray, seed) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.asarray(points, np.float64))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "digits, blurred": digits_blur,
    "Gaussians, d = 2": gaussians,
    "known map, d = 2": lambda seed: ridges(2, 500, seed),
    "known map, d = 10": lambda seed: ridges(10, 1000, seed),
    "known map, d = 30": lambda seed: ridges(30, 1000, seed),
    "mixture, d = 2": lambda seed: mixtures(2, seed),
    "mixture, d = 16": lambda seed: mixtures(16, seed),
    "mixture, d = 64": lambda seed: mixtures(64, seed),
    "mixture, d = 256": lambda seed: mixtures(256, seed, 2000),
    "colours": colours,
    "digits 3 to 8": digit_to_digit,
    "malignant to benign": tumours,
    "another sensor": domain_shift,
}

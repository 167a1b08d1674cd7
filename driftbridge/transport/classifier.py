"""The classifier two-sample test: two laws are equal if nothing can tell their samples apart."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.transport.measures import two_samples

CLASSIFIERS = ("logistic", "knn", "mlp")
NEEDS_SKLEARN = "the classifier test needs scikit-learn: pip install 'driftbridge[sklearn]'."


class ClassifierTest(NamedTuple):
    """How well a classifier tells held-out points of two samples apart.

    - `accuracy`: mean of the shares of held-out `x` and of held-out `y` that are named rightly; its
      floor is 1/2, for any sizes.
    - `p_value`: of the hypothesis that both laws are equal.
    - `right`: held-out points of `x` and of `y` that are named rightly, of those in `held_out`.
    - `classifier`: its name.
    """

    accuracy: float
    p_value: float
    right: tuple[int, int]
    held_out: tuple[int, int]
    classifier: str

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy if the laws are equal and half of it is named `x`."""
        n, m = self.held_out
        return float(np.sqrt((n + m) ** 2 / (16 * n * m * (n + m - 1))))


def classifier_two_sample_test(
    x: Any,
    y: Any,
    classifier: Any = "logistic",
    *,
    held_out: float = 0.5,
    key: int | Key[Array, ""] = 0,
) -> ClassifierTest:
    """Train a classifier on a part of both samples and test it on the rest.

    If the laws are equal, the labels of the held-out points are a random arrangement, whatever the
    classifier does: given how many points it names `x`, the number of those named rightly has a
    hypergeometric law, and the p-value is its upper tail (Fisher's exact test). It holds at any
    sizes, equal or not. The binomial law of the accuracy would be that of labels drawn by coin
    flips, where the numbers of held-out points are random too.

    **Arguments:**

    - `x`, `y`: `(n, dim)` and `(m, dim)`, at least 4 points each.
    - `classifier`: "logistic" (linear, sees shifts), "knn" (as many neighbours as the root of the
      number of training points), "mlp" (two layers of 32, 200 epochs), on columns that are
      standardised with the training points; or an object with `fit(points, labels)` and
      `predict(points)`.
    - `held_out`: share of the points to test on, in (0, 1).
    - `key`: of the split and of the classifier.

    **Returns:** a `ClassifierTest`.

    **Raises:** `ValueError` for arguments outside their range or too few points; `ImportError`
    without scikit-learn.

    Lopez-Paz and Oquab (2017), arXiv 1610.06545, section 3.
    """
    from scipy.stats import hypergeom

    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie in (0, 1); got {held_out}.")
    source, target = (sample.points for sample in two_samples(x, y, least=4))
    rng = host_generator(as_key(key))
    parts = []
    for points in (source, target):
        count = int(np.clip(round(held_out * len(points)), 1, len(points) - 1))
        rows = rng.permutation(len(points))
        parts.append((points[rows[count:]], points[rows[:count]]))
    train = [part for part, _ in parts]
    name = classifier if isinstance(classifier, str) else type(classifier).__name__
    if isinstance(classifier, str):
        if classifier != "logistic":
            # These take no weights: the larger class would win everywhere.
            train = [part[: min(map(len, train))] for part in train]
        classifier = _named(classifier, sum(map(len, train)), int(rng.integers(2**31)))
    with warnings.catch_warnings():
        # A network that is stopped before it converges is a classifier too.
        warnings.filterwarnings("ignore", "Stochastic Optimizer")
        classifier.fit(np.concatenate(train), np.repeat([1, 0], [len(part) for part in train]))
    named_x, named_y = (np.asarray(classifier.predict(test)) == 1 for _, test in parts)
    sizes = len(named_x), len(named_y)
    right = int(named_x.sum()), int(sizes[1] - named_y.sum())
    count = int(named_x.sum() + named_y.sum())
    return ClassifierTest(
        accuracy=(right[0] / sizes[0] + right[1] / sizes[1]) / 2,
        p_value=float(hypergeom.sf(right[0] - 1, sum(sizes), sizes[0], count)),
        right=right,
        held_out=sizes,
        classifier=name,
    )


def _named(name: str, num_train: int, seed: int) -> Any:
    if name not in CLASSIFIERS:
        raise ValueError(f"classifier must be one of {', '.join(CLASSIFIERS)}; got {name!r}.")
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ImportError(NEEDS_SKLEARN) from None
    if name == "logistic":
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
    elif name == "knn":
        model = KNeighborsClassifier(max(1, round(np.sqrt(num_train))))
    else:
        model = MLPClassifier((32, 32), alpha=0.01, max_iter=200, random_state=seed)
    return make_pipeline(StandardScaler(), model)

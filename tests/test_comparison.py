"""Comparisons: what is reported, at which sizes, and what is refused."""

import sys

import numpy as np
import pytest
from scipy import stats

from driftbridge.runtime.compilations import Compilations
from driftbridge.transport import kernel_sums
from driftbridge.transport.classifier import classifier_two_sample_test
from driftbridge.transport.comparison import DISTANCES, compare
from driftbridge.transport.distances import (
    bures_wasserstein,
    sinkhorn_divergence,
    wasserstein,
)
from driftbridge.transport.maximum_mean_discrepancy import energy_distance, mmd
from driftbridge.transport.one_dimensional import wasserstein_1d
from driftbridge.transport.sliced import sliced_wasserstein


def two(n=30, m=50, dim=3, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) + shift, rng.normal(size=(m, dim))


@pytest.mark.parametrize("name", sorted(set(DISTANCES) - {"sinkhorn"}))
def test_every_distance_has_a_floor_a_test_and_a_sentence(name):
    x, y = two()
    found = compare(x, y, name, num_permutations=19)
    assert found.distance == name and found.status == "exact"
    assert 0 < found.floor_spread < found.floor
    assert 1 / 20 <= found.p_value <= 1
    assert str(found) == found.sentence and f"{found.floor:.3g}" in found.sentence
    assert (found.interval is not None) == name.startswith("wasserstein")
    same = compare(x, y, name, num_permutations=19)
    assert same == found and compare(x, y, name, key=1, num_permutations=19) != found


def test_value_and_floor_are_at_the_same_size():
    x, y = two(30, 50)
    found = compare(x, y, num_permutations=0, num_splits=1)
    assert found.sizes == (25, 25) and found.n == 25
    assert found.whole == wasserstein(x, y)
    np.testing.assert_allclose(found.interval, found.whole, rtol=1e-12)
    assert found.interval[0] <= found.whole <= found.interval[1]
    # With twice as many target points all of x is used.
    assert compare(x, two(5, 80)[1], num_permutations=0, num_splits=1).sizes == (30, 30)
    pooled = compare(x, y, num_permutations=0, floor="pooled")
    assert pooled.sizes == (30, 50) and pooled.value == pooled.whole
    kernel = compare(x, y, "energy", num_permutations=0)
    assert kernel.sizes == (30, 50)
    assert kernel.value == energy_distance(x, y)
    assert "n = 30 and 50" in kernel.sentence and "not tested" in kernel.sentence
    assert np.isnan(kernel.p_value) and not kernel.is_indistinguishable


def test_large_samples_are_solved_in_part():
    x, y = two(50, 50)
    found = compare(x, y, num_permutations=0, num_splits=1, max_points=20)
    assert found.sizes == (20, 20) and np.isnan(found.whole) and found.interval is None
    # What needs no solve is not cut.
    line = compare(x[:, :1], y[:, :1], num_permutations=0, num_splits=1, max_points=20)
    assert line.sizes == (25, 25) and line.whole > 0
    assert compare(x, y, "sliced", num_permutations=0, max_points=20).sizes == (25, 25)
    with pytest.raises(ValueError, match="max_points"):
        compare(x, y, max_points=1)


def test_equal_sizes_say_one_size_and_which_test():
    x, y = two(40, 80, seed=3)
    found = compare(x, y, num_permutations=19)
    assert found.test == "energy" and "by the energy distance" in found.sentence
    assert "at n = 40" in found.sentence
    other = compare(x, y, num_permutations=19, test="sliced")
    assert other.test == "sliced" and other.value == found.value


def test_new_sizes_of_a_bucket_compile_nothing(monkeypatch):
    monkeypatch.setattr(kernel_sums, "ON_HOST", 0)
    names = ("energy", "sliced", "bures", "wasserstein")
    for name in names:
        compare(*two(100, 110), name, num_permutations=19, num_splits=3)
    compilations = Compilations()
    for name in names:
        # 190 to 220 points in all, halves of 50 to 62: buckets of 256, 64 and fewer.
        compare(*two(101, 117, seed=1), name, key=5, num_permutations=19, num_splits=3)
    assert compilations.programs == 0


def test_memory_grows_with_the_points_alone():
    # 6000 points: their distances alone would take 144 MB; blocks take one or two.
    size = 6144
    z, w = np.zeros((size, 20), np.float32), np.zeros((size, 3), np.float32)
    program = kernel_sums._block_sums.lower(z, w, np.float32(1), kernel="energy").compile()
    assert program.memory_analysis().temp_size_in_bytes < 8e6


def test_a_function_of_two_arrays_is_a_distance():
    def of_means(x, y):
        return float(np.linalg.norm(x.mean(0) - y.mean(0)))

    x, y = two(200, 400, shift=5.0)
    found = compare(x, y, of_means, num_permutations=19)
    assert found.distance == "of_means"
    # The shift is 5 sqrt(3), the mean of 200 has deviation sqrt(3 / 200) = 0.12.
    assert abs(found.value - 5 * np.sqrt(3)) < 0.8
    assert found.floor < 0.5 and found.p_value == 1 / 20


@pytest.mark.slow
def test_the_sinkhorn_distance_brings_certified_bounds():
    x, y = two(15, 16, shift=1.0)
    found = compare(x, y, "sinkhorn", num_permutations=0, num_splits=1)
    low, high = found.interval
    # Float32: the bounds carry roundings of 6e-8 of the mean cost.
    assert low * (1 - 1e-5) <= wasserstein(x, y) <= high * (1 + 1e-5)
    assert found.status == "converged"
    short = sinkhorn_divergence(x, y, 1e-3, max_iterations=2)
    assert not short.converged and "max_iterations" in short.status


def test_a_solver_that_did_not_converge_is_in_the_sentence():
    from dataclasses import replace

    found = compare(*two(), num_permutations=0, num_splits=1)
    assert replace(found, status="stalled").sentence.endswith("the solver: stalled")


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"distance": "w2"}, "distance must be one of wasserstein"),
        ({"num_permutations": -1}, "num_permutations"),
        ({"num_splits": 0}, "num_splits"),
        ({"floor": "bootstrap"}, "floor must be"),
        ({"test": "wasserstein"}, "test must be one of"),
        ({"y": np.zeros((3, 3))}, "at least 4 points"),
        ({"y": np.zeros((9, 2))}, "3 and 2 columns"),
        ({"x": np.full((2, 3), np.inf)}, "inf in row 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(keywords, says):
    x, y = two()
    with pytest.raises(ValueError, match=says):
        compare(**({"x": x, "y": y} | keywords))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: mmd(x, x, "rbf"), "kernel must be one of"),
        (lambda x: mmd(x, x, bandwidth=0), "bandwidth must be positive"),
        (lambda x: mmd(x, x, bandwidth="mean"), "or 'median'; got 'mean'"),
        (lambda x: mmd(x * 0, x * 0), "are equal"),
        (lambda x: wasserstein_1d(x, x), "one column"),
        (lambda x: wasserstein_1d([], [1.0]), "empty"),
        (lambda x: wasserstein_1d([1.0], [1.0], 0.5), "p must be at least 1"),
        (lambda x: sliced_wasserstein(x, x, num_projections=0), "num_projections"),
        (lambda x: sinkhorn_divergence(x * 0, x * 0), "give epsilon"),
        (lambda x: bures_wasserstein(x[0], -np.eye(3), x[0], np.eye(3)), "least eigenvalue is -1"),
        (lambda x: bures_wasserstein(x[0], np.eye(2), x[0], np.eye(2)), "Expected shapes"),
        (lambda x: bures_wasserstein(x[0], np.ones((3, 2)), x[0], np.eye(3)), "square"),
        (lambda x: bures_wasserstein(x[0], np.triu(np.ones((3, 3))), x[0], np.eye(3)), "symmetric"),
        (lambda x: classifier_two_sample_test(x[:3], x), "at least 4"),
        (lambda x: classifier_two_sample_test(x, x, "tree"), "classifier must be one of"),
        (lambda x: classifier_two_sample_test(x, x, held_out=1.0), "held_out"),
    ],
)
def test_bad_arguments_of_distances_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(np.random.default_rng(0).normal(size=(6, 3)))


@pytest.mark.parametrize("name", ["logistic", "knn", "mlp"])
def test_classifiers_see_a_shift(name):
    # A shift of two deviations: the best accuracy is Phi(1) = 0.84, with deviation 0.04 at 80.
    x, y = two(100, 60, 2, shift=np.array([2.0, 0.0]))
    found = classifier_two_sample_test(x, y, name)
    assert found.accuracy > 0.7 and found.p_value < 1e-3
    assert found.held_out == (50, 30) and found.classifier == name


class Named:
    """Names a point `x` if its first coordinate is positive, and learns nothing."""

    def fit(self, points, labels):
        self.labels = labels

    def predict(self, points):
        return (points[:, 0] > 0).astype(int)


def test_the_p_value_of_a_classifier_is_exact():
    x, y = two(200, 100, 1)
    found = classifier_two_sample_test(x, y, Named(), held_out=0.3)
    assert found.classifier == "Named" and found.held_out == (60, 30)
    named = found.right[0] + 30 - found.right[1]
    table = [[found.right[0], named - found.right[0]], [60 - found.right[0], found.right[1]]]
    assert found.p_value == pytest.approx(stats.fisher_exact(table, "greater").pvalue, rel=1e-10)
    assert found.accuracy == (found.right[0] / 60 + found.right[1] / 30) / 2


def test_accuracies_of_equal_laws_have_the_stated_spread():
    rng = np.random.default_rng(4)
    found = [
        classifier_two_sample_test(
            rng.normal(size=(40, 1)), rng.normal(size=(20, 1)), Named(), key=k
        )
        for k in range(300)
    ]
    accuracy = np.array([f.accuracy for f in found])
    # Standard error of a mean of 300, and of a deviation (1 / sqrt(600)); both at four of them.
    assert abs(accuracy.mean() - 0.5) < 4 * found[0].deviation / np.sqrt(300)
    assert abs(accuracy.std() / found[0].deviation - 1) < 4 / np.sqrt(600)
    # Valid: P(p <= 0.2) <= 0.2, with five standard errors of the count.
    assert np.mean([f.p_value <= 0.2 for f in found]) < 0.2 + 5 * np.sqrt(0.16 / 300)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"driftbridge\[sklearn\]"):
        classifier_two_sample_test(*two())

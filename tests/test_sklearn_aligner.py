"""Maps as a scikit-learn transformer."""

import pickle

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from driftbridge.transport import NotSupported
from driftbridge.transport.sklearn import DistributionAligner

pytestmark = pytest.mark.slow


def clouds(n=60):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)), 3 + rng.normal(size=(n, 2)) @ [[2.0, 0.5], [0.5, 1.0]]


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, for what its checks try
def test_scikit_learns_own_checks():
    check_estimator(DistributionAligner(method="affine"))


def test_it_aligns_in_a_pipeline():
    x, y = clouds()
    labels = (y[:, 0] > 3).astype(int)
    model = LogisticRegression().fit(y, labels)
    aligner = DistributionAligner(target=y, method="affine").fit(x)
    assert np.allclose(aligner.transform(x).mean(0), y.mean(0), atol=1e-6)
    assert np.allclose(aligner.inverse_transform(aligner.transform(x)), x, atol=1e-6)
    pipe = make_pipeline(clone(aligner), LogisticRegression()).fit(x, labels)
    assert pipe.predict(x).shape == (60,) and model.predict(aligner.transform(x)).mean() > 0.2
    again = pickle.loads(pickle.dumps(aligner))
    assert np.array_equal(again.transform(x), aligner.transform(x))


def test_frames_and_names():
    x, y = clouds()
    frame = pandas.DataFrame(x, columns=["a", "b"])
    aligner = DistributionAligner(pandas.DataFrame(y, columns=["a", "b"]), "affine")
    out = aligner.set_output(transform="pandas").fit(frame).transform(frame)
    assert list(out.columns) == ["a", "b"] and list(aligner.get_feature_names_out()) == ["a", "b"]
    wrong = DistributionAligner(pandas.DataFrame(y, columns=["a", "c"]), "affine")
    with pytest.raises(ValueError, match="columns of X, a, b; it has a, c"):
        wrong.fit(frame)


def test_weights_and_pairs():
    x, y = clouds()
    aligner = DistributionAligner(method="affine").fit_pair(x, y)
    assert aligner.target is y
    ones = DistributionAligner(y, "affine").fit(x, sample_weight=np.full(60, 7.0))
    assert np.allclose(ones.transform(x), aligner.transform(x))


def test_no_inverse_is_said():
    x, y = clouds()
    with pytest.raises(NotSupported, match="EntropicMap has no inverse"):
        DistributionAligner(y, "entropic").fit(x).inverse_transform(y)


def test_seeds_of_every_kind_and_rows_that_are_not_finite():
    x, y = clouds()
    for seed in (None, np.random.RandomState(0), np.int64(3)):
        aligner = DistributionAligner(y, "affine", random_state=seed).fit(x)
        assert np.all(np.isfinite(aligner.transform(x)))
    broken = x.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match="source holds NaN in row 4, column 1"):
        DistributionAligner(y, "affine").fit(broken)
    with pytest.raises(ValueError, match="target holds NaN in row 4, column 1"):
        DistributionAligner(broken, "affine").fit(x)
    with pytest.raises(ValueError, match="x holds NaN in row 4"):
        aligner.transform(broken)
    with pytest.raises(ValueError, match="y holds NaN in row 4"):
        aligner.inverse_transform(broken)

"""What every method of `fit_map` keeps, found by its name."""

import dataclasses

import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.training import Training
from driftbridge.transport import HasDensity, Invertible, Stochastic
from driftbridge.transport.fit import METHODS

pytestmark = pytest.mark.slow


def clouds(dim, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(150, dim))
    y = 2 + 0.7 * rng.normal(size=(160, dim)) + 0.2 * np.sinh(rng.normal(size=(160, dim)))
    return x.astype(np.float32), y.astype(np.float32)


def quick(name):
    """A method of a name, with a short training where it has one."""
    method = METHODS[name]()
    if not hasattr(method, "training"):
        return method
    return dataclasses.replace(method, training=Training(num_steps=300, batch_size=128))


@pytest.fixture(scope="module", params=list(METHODS))
def fitted(request):
    x, y = clouds(1 if request.param == "rearrangement" else 2)
    return db.fit_map(x, y, quick(request.param)), x, y


def test_the_image_is_nearer_than_the_source(fitted):
    transport, x, y = fitted
    image = transport(x)
    assert image.shape == x.shape and image.dtype == np.float32 and np.isfinite(image).all()
    # The shift alone is 2 in every coordinate.
    assert np.abs(image.mean(0) - y.mean(0)).max() < 0.3 < np.abs(x.mean(0) - y.mean(0)).min()
    assert transport.fit.method and transport.fit.num_source == 150


def test_it_is_the_same_again_and_from_a_file(fitted, tmp_path):
    transport, x, _ = fitted
    assert np.array_equal(transport(x), transport(x))
    loaded = db.load(transport.save(tmp_path / "map.npz"))
    assert np.array_equal(loaded(x), transport(x))


def test_what_it_says_it_can_do_it_does(fitted):
    transport, x, _ = fitted
    if isinstance(transport, Invertible):
        # float32: the error of the image times the inverse slope, of order one here.
        assert np.abs(transport.inverse(transport(x)) - x).max() < 2e-3
    if isinstance(transport, HasDensity):
        assert transport.log_det(x).shape == (150,) and np.isfinite(transport.log_det(x)).all()
    if isinstance(transport, Stochastic):
        assert transport.sample(0, x[:3], 4).shape == (3, 4, x.shape[1])


def test_it_reports(fitted):
    transport, x, y = fitted
    report = transport.report(x, y)
    assert report.is_better and "W2 to the target" in report.sentence

"""Maps in files: the same numbers in a fresh process, versions, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import driftbridge as db
from driftbridge.runtime.training import Training
from driftbridge.transport import Brenier, DataWarning, MapFileError, Progressive
from driftbridge.transport.saved import FORMAT, HEADER, VERSION

FROZEN = Path(__file__).parent / "data"
LEARNED = Brenier(4, 3, Training(num_steps=20, validate_every=20))
METHODS = ("affine", "corrected", "entropic", "debiased", Progressive(num_steps=2), LEARNED)


def clouds(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    return x, (1 + np.exp(0.5 * rng.normal(size=(70, 2)))).astype(np.float32)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_map_comes_back_whole(tmp_path, method):
    x, y = clouds()
    fitted = db.fit_map(x, y, method)
    path = fitted.save(tmp_path / "map")
    assert path.name == "map.npz"
    loaded = db.load(path)
    assert type(loaded) is type(fitted) and np.array_equal(loaded(x), fitted(x))
    assert loaded.fit.numbers == fitted.fit.numbers and loaded.fit.method == fitted.fit.method


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(tmp_path):
    x, y = clouds()
    fitted = db.fit_map(x, y)
    fitted.save(tmp_path / "map.npz")
    np.save(tmp_path / "x.npy", x)
    program = (
        "import numpy as np, driftbridge as db;"
        "np.save('out.npy', db.load('map.npz')(np.load('x.npy')))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), fitted(x))


@pytest.mark.parametrize("name", ["affine", "corrected"])
def test_files_of_version_1_are_read(name):
    """Frozen files, written by the first version with its images of a few points."""
    stored = np.load(FROZEN / f"map_v1_{name}.images.npz")
    loaded = db.load(FROZEN / f"map_v1_{name}.npz")
    # Another processor may round a product differently.
    assert np.allclose(loaded(stored["x"]), stored["image"], rtol=1e-5, atol=1e-5)
    assert np.allclose(loaded.inverse(stored["image"]), stored["x"], atol=1e-3)


def test_columns_and_messages_are_kept(tmp_path):
    import pandas

    x, y = clouds()
    frames = (pandas.DataFrame(data, columns=["u", "v"]) for data in (x[:8], y))
    with pytest.warns(DataWarning, match="8 points"):
        path = db.fit_map(*frames).save(tmp_path / "map.npz")
    fit = db.load(path).fit
    assert fit.columns == ("u", "v") and "8 points" in fit.reason and len(fit.messages) == 1


def test_float64_in_a_float32_process_is_said(tmp_path):
    x, y = clouds()
    with jax.enable_x64(True):
        path = db.fit_map(x.astype(float), y.astype(float), "affine").save(tmp_path / "map.npz")
        assert db.load(path).dtype == np.float64
    loaded = db.load(path)
    assert loaded.dtype == np.float32 and "saved in float64" in loaded.fit.messages[-1]


def _header(path, **changes):
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(bytes(arrays[HEADER]).decode()) | changes
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)


def test_bad_files_are_refused_by_name(tmp_path):
    with pytest.raises(MapFileError, match=r"there is no file .*none\.npz"):
        db.load(tmp_path / "none.npz")
    path = db.fit_map(*clouds(), "affine").save(tmp_path / "map.npz")
    _header(path, version=VERSION + 1)
    with pytest.raises(MapFileError, match=r"newer version .* Upgrade"):
        db.load(path)
    _header(path, version=VERSION, format="another")
    with pytest.raises(MapFileError, match=r"holds no map of driftbridge"):
        db.load(path)
    _header(path, format=FORMAT, map={"record": "os:system", "fields": {}})
    with pytest.raises(MapFileError, match="asks for os:system"):
        db.load(path)
    for name in ("driftbridge.transport.saved:os.system", "driftbridge.loading:Path"):
        _header(path, map={"record": name, "fields": {}})
        with pytest.raises(MapFileError, match="asks for driftbridge"):
            db.load(path)
    _header(path, map={"record": "driftbridge.transport.affine:AffineMap", "fields": {"x": 1}})
    with pytest.raises(MapFileError, match="no part of a map with these fields"):
        db.load(path)
    _header(path, version=None)
    with pytest.raises(MapFileError, match="without the version"):
        db.load(path)
    _header(path, version=VERSION)
    _header(path, map={"record": "driftbridge.transport.affine:Affine", "fields": {}})
    with pytest.raises(MapFileError, match="holds a Affine, not a map"):
        db.load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MapFileError, match="damaged"):
        db.load(path)
    np.save(tmp_path / "other.npy", np.ones(3))
    with pytest.raises(MapFileError, match="holds no map"):
        db.load(tmp_path / "other.npy")

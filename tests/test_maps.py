"""Maps as users meet them: kinds of input, what is refused, what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import driftbridge as db
from driftbridge.runtime.compilations import Compilations
from driftbridge.transport import Affine, Corrected, DataWarning, Entropic, NotSupported
from driftbridge.transport.base import Fit


def clouds(n=80, m=100, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)).astype(np.float32)
    y = (2 + np.exp(0.5 * rng.normal(size=(m, dim)))).astype(np.float32)
    return x, y


@pytest.fixture(scope="module")
def fitted():
    return db.fit_map(*clouds())


def frames():
    x, y = clouds()
    return pandas.DataFrame(x, columns=["a", "b"]), pandas.DataFrame(y, columns=["b", "a"])


@pytest.mark.slow
def test_arrays_stay_what_they_are(fitted):
    x, _ = clouds()
    whole = fitted(x)
    assert isinstance(whole, np.ndarray) and whole.dtype == np.float32
    on_device = fitted(jnp.asarray(x))
    assert isinstance(on_device, jax.Array) and np.array_equal(on_device, whole)
    assert fitted(x[0]).shape == (2,) and np.allclose(fitted(x[0]), whole[0])
    assert fitted(x[:0]).shape == (0, 2)
    assert np.allclose(fitted(np.array([[1, 2]])), fitted(np.array([[1.0, 2.0]])))
    listed = fitted([[1.0, 2.0]])
    assert listed.shape == (1, 2)


def test_frames_keep_columns_and_index():
    x, y = frames()
    fitted = db.fit_map(x, y, "affine")
    assert fitted.fit.columns == ("a", "b")
    shuffled = x.set_index(np.arange(80) * 10)[["b", "a"]]
    image = fitted(shuffled)
    assert list(image.columns) == ["b", "a"] and list(image.index[:2]) == [0, 10]
    assert np.allclose(image["a"], fitted(x)["a"])
    by_hand = db.fit_map(x.to_numpy(), y[["a", "b"]].to_numpy(), "affine")
    assert np.allclose(by_hand(x.to_numpy()), fitted(x))


def test_a_map_is_a_function_inside_jit_and_vmap(fitted):
    x, _ = clouds()
    assert np.allclose(jax.jit(lambda t, x: t(x))(fitted, x), fitted(x), atol=1e-5)
    assert np.allclose(jax.vmap(fitted)(jnp.asarray(x)), fitted(x), atol=1e-5)
    slope = jax.grad(lambda p: fitted(p).sum())(jnp.asarray(x[0]))
    assert np.isfinite(slope).all()


def test_dtype_is_that_of_the_data():
    x, y = clouds()
    with jax.enable_x64(True):
        single = db.fit_map(x, y, "affine")
        double = db.fit_map(x.astype(float), y.astype(float), "affine")
        assert single.dtype == np.float32 and single(x).dtype == np.float32
        assert double.dtype == np.float64 and double(x.astype(float)).dtype == np.float64
        assert double(x).dtype == np.float32
        assert np.allclose(single(x), double(x), atol=1e-5)
    assert db.fit_map(x.astype(float), y.astype(float), "affine").dtype == np.float32


@pytest.mark.slow
def test_blocks_do_not_show(fitted, monkeypatch):
    from driftbridge.transport import streaming

    x = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
    plain = db.fit_map(*clouds(), Entropic())
    whole, draws = fitted(x), plain.sample(0, x, 3)
    monkeypatch.setattr(streaming, "rows_of_block", lambda floats: 32)
    assert np.allclose(fitted(x), whole, atol=1e-6)
    assert np.array_equal(plain.sample(0, x, 3), draws)


@pytest.mark.slow
def test_a_second_fit_of_the_size_compiles_nothing():
    for sizes in ((80, 100), (90, 110)):
        seen = Compilations()
        x, y = clouds(*sizes, seed=sizes[0])
        for method in ("auto", "affine", "corrected"):  # which of the two auto takes, data tell
            fitted = db.fit_map(x, y, method)
            fitted.inverse(fitted(x))
            fitted.log_det(x)
    assert seen.programs == 0


def test_auto_says_why():
    x, y = clouds()
    assert db.fit_map(x, y).fit.method == "corrected"
    with pytest.warns(DataWarning, match="8 points in 2 dimensions"):
        few = db.fit_map(x[:8], y)
    assert few.fit.method == "affine" and "8 points" in few.fit.reason
    flat = x.copy()
    flat[:, 1] = 3
    with pytest.warns(DataWarning, match="constant in the source: column 1"):
        found = db.fit_map(flat, y)
    assert found.fit.method == "affine" and "singular" in found.fit.reason
    assert any("constant in the source: column 1" in m for m in found.fit.messages)
    assert np.isfinite(found(flat)).all()


def test_a_solver_that_did_not_converge_is_said():
    x, y = clouds()
    found = db.fit_map(x, y, Corrected(tolerance=1e-5, max_iterations=2))
    assert not found.fit.converged and "max_iterations" in found.fit.messages[0]


def test_scales_are_compared():
    x, y = clouds()
    with pytest.warns(DataWarning) as said:
        found = db.fit_map(x * np.float32([1, 100]), y, "affine")
    assert any("scales in the source differ by a factor of 1" in m for m in found.fit.messages)
    assert [str(warning.message) for warning in said] == list(found.fit.messages)
    assert "are the units the same?" in found.fit.messages[-1]


def test_what_a_map_cannot_do_is_named():
    x, y = clouds()
    found = db.fit_map(x, y, "entropic")
    assert not hasattr(found, "inverse") and not found.is_invertible
    with pytest.raises(NotSupported, match="EntropicMap has no inverse; affine, corrected"):
        found.inverse(y)
    with pytest.raises(NotSupported, match="AffineMap has no sample; entropic and"):
        db.fit_map(x, y, "affine").sample(0, x)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018


def _nan(x):
    x = x.copy()
    x[7, 1] = np.nan
    return x


BAD = {
    "source holds NaN in row 7, column 1": lambda x, y: (_nan(x), y),
    "target holds NaN in row 7, column 1": lambda x, y: (x, _nan(y)),
    r"one dimension; got 2 and 3 columns": lambda x, y: (x, np.ones((9, 3))),
    r"shape \(n, dim\); got \(80,\)": lambda x, y: (x[:, 0], y),
    "at least 2 rows": lambda x, y: (x[:1], y),
    r"source must have at least 2 rows and 1 column; got \(0, 2\)": lambda x, y: (x[:0], y),
    "must hold numbers": lambda x, y: (np.array([["a", "b"]]), y),
    r"only in source: \['a'\], only in target: \['c'\]": lambda x, y: (
        pandas.DataFrame(x, columns=["a", "b"]),
        pandas.DataFrame(y, columns=["c", "b"]),
    ),
    "column 'b' does not": lambda x, y: (
        pandas.DataFrame({"a": x[:, 0], "b": ["u"] * 80}),
        pandas.DataFrame(y, columns=["a", "b"]),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_data_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        db.fit_map(*BAD[message](*clouds()))


def test_bad_weights_are_refused_by_name():
    x, y = clouds()
    with pytest.raises(ValueError, match="weights of the source must sum to 1; they sum to 80"):
        db.fit_map(x, y, source_weights=np.ones(80))
    with pytest.raises(ValueError, match="row 3 has -1"):
        db.fit_map(x, y, target_weights=np.where(np.arange(100) == 3, -1.0, 0.01))
    with pytest.raises(ValueError, match=r"80 points, but its weights have shape \(3,\)"):
        db.fit_map(x, y, source_weights=np.ones(3) / 3)


def test_bad_points_are_refused_by_name(fitted):
    with pytest.raises(ValueError, match=r"shape \(n, 2\) or \(2,\); got \(4, 3\)"):
        fitted(np.ones((4, 3)))
    with pytest.raises(ValueError, match="x holds inf in row 1, column 0"):
        fitted(np.array([[0.0, 1.0], [np.inf, 1.0]]))
    of_frames = db.fit_map(*frames(), "affine")
    with pytest.raises(ValueError, match=r"columns a, b; it lacks \['a'\] and has \['c'\]"):
        of_frames(pandas.DataFrame({"c": [1.0], "b": [2.0]}))


def test_methods_are_named():
    x, y = clouds()
    with pytest.raises(ValueError, match="no method 'bures'; there are auto, affine"):
        db.fit_map(x, y, "bures")
    with pytest.raises(ValueError, match=r"epsilon must be above 0; got 0\.0"):
        Entropic(epsilon=0.0)


def test_cost_is_the_mean_squared_distance():
    x, _ = clouds()
    found = db.fit_map(x, x + np.float32([3, 4]), Affine())
    cost = found.cost(x)
    assert cost.mean == pytest.approx(25, rel=1e-5) and cost.error < 1e-3


def test_fits_are_equal_to_a_compiler():
    assert Fit("affine") == Fit("corrected", "why") and hash(Fit("a")) == hash(Fit("b"))

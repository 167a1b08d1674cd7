"""`fit`, `apply` and `report` on tables and arrays."""

import numpy as np
import pandas
import pytest

import driftbridge as db
from driftbridge.cli import errors
from tests.command_line import refused, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    for name, shift in (("source", 0.0), ("target", 2.0)):
        frame = pandas.DataFrame(shift + rng.normal(size=(80, 2)), columns=["u", "v"])
        frame["who"] = [f"{name}{i}" for i in range(80)]
        frame.to_csv(folder / f"{name}.csv", index=False)
        frame.to_parquet(folder / f"{name}.parquet")
        np.save(folder / f"{name}.npy", frame[["u", "v"]].to_numpy())
    result = run(
        "fit", folder / "source.csv", folder / "target.csv", "-o", folder / "map.npz",
        "--method", "affine",
    )  # fmt: skip
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "affine (given), 64 to 64 points" in result.stdout
    assert "W2 to the target" in result.stdout
    return folder


@pytest.mark.slow
def test_fit_leaves_a_map_and_its_page(folder):
    fitted = db.load(folder / "map.npz")
    assert fitted.fit.columns == ("u", "v")
    assert "source.csv to target.csv" in (folder / "map.html").read_text()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_apply_keeps_other_columns(folder, ending):
    out = folder / f"moved.{ending}"
    result = run("apply", folder / "map.npz", folder / f"source.{ending}", "-o", out)
    assert result.exit_code == 0 and "80 rows" in result.stdout
    read = pandas.read_csv if ending == "csv" else pandas.read_parquet
    moved, before = read(out), read(folder / f"source.{ending}")
    assert list(moved.columns) == ["u", "v", "who"] and list(moved.who) == list(before.who)
    expected = db.load(folder / "map.npz")(before[["u", "v"]])
    assert np.allclose(moved[["u", "v"]], expected, atol=1e-5)
    back = folder / f"back.{ending}"
    assert run("apply", folder / "map.npz", out, "-o", back, "--inverse").exit_code == 0
    assert np.allclose(read(back)[["u", "v"]], before[["u", "v"]], atol=1e-4)


@pytest.mark.slow
def test_arrays(folder):
    where = folder / "arrays.npz"
    arguments = ("fit", folder / "source.npy", folder / "target.npy", "-o", where)
    assert run(*arguments, "--method", "affine", "--test", "0").exit_code == 0
    out = folder / "moved.npy"
    assert run("apply", where, folder / "source.npy", "-o", out).exit_code == 0
    assert np.load(out).shape == (80, 2)


@pytest.mark.slow
def test_report_of_a_map(folder):
    result = run("report", folder / "map.npz", folder / "source.csv", folder / "target.csv")
    assert result.exit_code == 0 and "W2 to the target" in result.stdout


@pytest.mark.slow
def test_a_fit_that_did_not_converge_exits_3(folder, monkeypatch):
    from driftbridge.transport import Corrected, fit

    class Stopped(Corrected):
        tolerance: float = 1e-5
        max_iterations: int = 2

    monkeypatch.setitem(fit.METHODS, "corrected", Stopped)
    result = run(
        "fit", folder / "source.csv", folder / "target.csv", "-o", folder / "stopped.npz",
        "--method", "corrected",
    )  # fmt: skip
    assert result.exit_code == errors.NOT_CONVERGED
    assert "NOT converged" in result.stdout


def test_refusals(folder):
    source, target, where = folder / "source.csv", folder / "target.csv", folder / "map.npz"
    assert "no column 'w'" in refused("fit", source, target, "-o", "m.npz", "--columns", "u,w")
    assert "there is no data file" in refused("fit", folder / "no.csv", target, "-o", "m.npz")
    assert "no method 'best'" in refused("fit", source, target, "-o", "m.npz", "--method", "best")
    assert "--test must be" in refused("fit", source, target, "-o", "m.npz", "--test", "1.5")
    assert "already" in refused("apply", where, source, "-o", target)
    assert "needs points to test it on" in run("report", where).stderr
    gaps = pandas.read_csv(source)
    gaps.loc[4, "v"] = np.nan
    gaps.to_csv(folder / "gaps.csv", index=False)
    assert "'v' has no value in row 5" in refused(
        "apply", where, folder / "gaps.csv", "-o", "x.csv"
    )
    assert ".parquet, .npy or .npz" in refused("apply", where, source, "-o", folder / "x.txt")
    assert "there is no folder" in refused("fit", source, target, "-o", folder / "no" / "m.npz")
    word = pandas.read_csv(source).astype({"v": object})
    word.loc[3, "v"] = "bad"
    word.to_csv(folder / "word.csv", index=False)
    said = refused("fit", folder / "word.csv", folder / "word.csv", "-o", folder / "m.npz")
    assert "column 'v' holds 'bad' in row 4" in said
    word[:0].to_csv(folder / "empty.csv", index=False)
    assert "has no rows" in refused("fit", folder / "empty.csv", target, "-o", folder / "m.npz")
    rows = np.random.default_rng(0).normal(size=(120, 2))
    np.save(folder / "rows.npy", rows)
    rows[61, 1] = np.nan
    np.save(folder / "nan.npy", rows)
    said = refused("fit", folder / "rows.npy", folder / "nan.npy", "-o", folder / "m.npz")
    assert "nan.npy holds NaN in row 61, column 1" in said and not (folder / "m.npz").exists()

"""`fit-path`, and flows by `fit`, on tables."""

import numpy as np
import pandas
import pytest

import driftbridge as db
from driftbridge.cli import errors
from tests.command_line import refused, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    rng = np.random.default_rng(0)
    for k in range(3):
        frame = pandas.DataFrame(dict(zip("uv", 2 * k + rng.normal(size=(2, 60)), strict=True)))
        frame["who"] = "cell"
        frame.to_csv(folder / f"day{k}.csv", index=False)
    return folder


@pytest.mark.slow
def test_a_path_and_its_picture(folder):
    days = [folder / f"day{k}.csv" for k in range(3)]
    result = run("fit-path", *days, "--times", "0,1,3", "-o", folder / "path.npz", "--steps", "50")
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "3 times in 2 dimensions" in result.stdout
    fitted = db.load(folder / "path.npz")
    assert fitted.times.tolist() == [0, 1, 3] and fitted.fit.columns == ("u", "v")
    assert (folder / "path.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_fitted_is_named(folder):
    days = [folder / f"day{k}.csv" for k in range(3)]
    assert "one time for each of 3 files" in refused(
        "fit-path", *days, "--times", "0,1", "-o", folder / "a.npz"
    )
    assert "must be numbers" in refused("fit-path", *days, "--times", "x", "-o", folder / "a.npz")
    assert "each time once" in refused(
        "fit-path", *days, "--times", "0,1,1", "-o", folder / "a.npz"
    )
    assert "must end in .npz" in refused("fit-path", *days, "-o", folder / "a.csv")
    assert "means must be one of" in refused(
        "fit-path", *days, "--means", "circle", "-o", folder / "a.npz"
    )

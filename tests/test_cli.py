"""The command line: what it prints, what it leaves, and how it refuses."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from jax.scipy.stats import norm
from typer.testing import CliRunner

import driftbridge as db
from driftbridge.cli import data, errors, models, regressions, running
from driftbridge.cli.app import app
from driftbridge.samplers import table
from tests.command_line import MODELS, refused, run

# Enough for R-hat below 1.01 and ESS above 800 on two independent normals by far.
HMC = ("--sampler", "jittered-hmc")
SIZE = ("--draws", "800", "--warmup", "300", *HMC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model file, data files, and one converged run in `done`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "models.py").write_text(MODELS)
    (folder / "y.json").write_text(json.dumps({"y": [0.5, 1.5, 1.0]}))
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "ill": rng.integers(0, 2, 60),
            "age": rng.normal(50, 10, 60),
            "visits": rng.poisson(3, 60),
            "town": ["Bonn"] * 60,
            "one": np.ones(60),
        }
    )
    frame.to_csv(folder / "table.csv", index=False)
    frame.to_parquet(folder / "table.parquet")
    frame.loc[6, "age"] = np.nan
    frame.to_csv(folder / "gaps.csv", index=False)
    result = run("sample", folder / "models.py:gauss", "--out", folder / "done", *SIZE)
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "Converged" in result.stdout and "x[1]" in result.stdout
    assert "sampling" in result.stderr
    return folder


@pytest.mark.slow
def test_a_run_leaves_draws_command_and_report(folder):
    draws = db.load(folder / "done")
    assert draws.positions.shape == (4, 800, 2)
    assert "x[1]" in (folder / "done" / "report.html").read_text()
    command = json.loads((folder / "done" / "command.json").read_text())
    assert command["sampler"] == "JitteredHMC" and command["draws"] == 800


@pytest.mark.slow
def test_auto_goes_on_until_the_ensemble_has_converged(folder, tmp_path):
    out = tmp_path / "auto"
    result = run("sample", folder / "models.py:gauss", "--chains", "16", "--out", out)
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "auto, 16 chains of up to 640 warm-up steps and up to 10000 draws" in result.stderr
    command = json.loads((out / "command.json").read_text())
    assert command["sampler"] == "auto" and command["until_converged"]
    before = db.load(out).positions
    assert run("resume", out, "--quiet").exit_code == errors.CONVERGED
    assert np.array_equal(db.load(out).positions, before)


@pytest.mark.slow
def test_report_is_made_again(folder):
    (folder / "done" / "report.html").unlink()
    result = run("report", folder / "done")
    assert result.exit_code == errors.CONVERGED
    assert "Converged" in result.stdout
    assert (folder / "done" / "report.html").is_file()


@pytest.mark.slow
def test_resume_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    def interrupting(_):
        def report(at):
            if at.phase == "sampling" and at.done > 128:
                raise KeyboardInterrupt

        return report

    monkeypatch.setattr(running, "reporter", interrupting)
    out = tmp_path / "stopped"
    stopped = run("sample", folder / "models.py:gauss", "--out", out, *SIZE)
    assert stopped.exit_code == errors.INTERRUPTED
    assert f"Go on: driftbridge resume {out}" in stopped.stdout
    monkeypatch.undo()
    assert run("resume", out, "--quiet").exit_code == errors.CONVERGED
    whole = db.load(folder / "done")
    assert np.array_equal(db.load(out).positions, whole.positions)
    # More draws than were asked for at first, and then as many as before: nothing is lost.
    assert run("resume", out, "--draws", "1000", "--quiet").exit_code == errors.CONVERGED
    longer = db.load(out).positions
    assert longer.shape[1] == 1000 and np.array_equal(longer[:, :800], whole.positions)
    assert json.loads((out / "command.json").read_text())["draws"] == 1000


@pytest.mark.slow
def test_interruption_in_warm_up_says_how_to_go_on(folder, tmp_path, monkeypatch):
    def interrupting(_):
        def report(at):
            if at.done > 128:
                raise KeyboardInterrupt

        return report

    monkeypatch.setattr(running, "reporter", interrupting)
    out = tmp_path / "stopped"
    result = run("sample", folder / "models.py:gauss", "--out", out, *SIZE)
    assert result.exit_code == errors.INTERRUPTED
    assert f"driftbridge resume {out}" in result.stderr
    monkeypatch.undo()
    assert run("resume", out, "--quiet").exit_code == errors.CONVERGED
    assert np.array_equal(db.load(out).positions, db.load(folder / "done").positions)


@pytest.mark.slow
def test_too_few_draws_exit_with_three(folder, tmp_path):
    out = tmp_path / "few"
    result = run(
        "sample", folder / "models.py:gauss", "--out", out, "--draws", "40", "--warmup", "300",
        "--quiet",
    )  # fmt: skip
    assert result.exit_code == errors.NOT_CONVERGED
    assert "NOT converged" in result.stdout and "resume" in result.stdout
    assert "warm-up  " not in result.stderr  # the progress line
    assert run("report", out).exit_code == errors.NOT_CONVERGED


@pytest.mark.slow
def test_until_converged_ends_early(folder, tmp_path):
    out = tmp_path / "until"
    result = run(
        "sample", folder / "models.py:gauss", "--out", out, "--until-converged", "--warmup", "300",
        "--float64",
    )  # fmt: skip
    assert result.exit_code == errors.CONVERGED
    positions = db.load(out).positions
    assert positions.shape[1] < 2000 and positions.dtype == np.float64
    assert jnp.zeros(1).dtype == jnp.float32  # the setting ends with the command


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "wrapped"])
def test_numpyro_models_with_settings(folder, tmp_path, name):
    """y has 3 observations of a sum of two unit normals: the posterior mean of each is
    sum(y) / (1 + 2 * 3) = 3 / 7, and their sum has variance 2 / 7."""
    out = tmp_path / "model"
    result = run(
        "sample", folder / f"models.py:{name}", "--data", folder / "y.json", "--set", "n=2",
        "--out", out, *SIZE,
    )  # fmt: skip
    assert result.exit_code == errors.CONVERGED, result.stderr
    total = db.load(out).parameters["mu"].sum(axis=2)
    # ESS of at least 800, so five standard errors of the mean.
    assert abs(total.mean() - 6 / 7) < 5 * np.sqrt(2 / 7 / 800)


@pytest.mark.slow
def test_regression_from_a_table(folder, tmp_path):
    out = tmp_path / "poisson"
    result = run(
        "sample", "poisson", "--data", folder / "table.parquet", "--outcome", "visits",
        "--predictors", "age", "--sampler", "jittered-hmc", "--out", out, *SIZE,
    )  # fmt: skip
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "coefficients[intercept]" in result.stdout and "coefficients[age]" in result.stdout
    assert db.resume(out, num_samples=800).num_draws == 800  # the target is found by its name


def test_samplers_lists_every_method():
    result = run("samplers")
    assert result.exit_code == 0
    for row in table.methods():
        assert row.name in result.stdout and row.facts.source in result.stdout
    assert {row.name for row in table.methods()} >= {"MALA", "HMC", "UBU", "LMC", "Splitting"}


def test_help_tells_the_exit_codes():
    result = run("--help")
    assert result.exit_code == 0 and "3 not converged" in result.stdout


@pytest.mark.parametrize(
    "model, rest, says",
    [
        ("models.py:gaus", (), "Did you mean gauss?"),
        ("models.py:xyzzy", (), "It has gauss, made, model"),
        ("models.py:number", (), "is a int"),
        ("missing.py:model", (), "there is no model file"),
        ("models.py", (), "path.py:name"),
        ("logit", (), "logistic, linear, poisson"),
        ("models.py:gauss", ("--data", "y.json"), "complete as it is; leave out y"),
        ("models.py:model", ("--data", "y.json"), "needs n: it takes y, n, width"),
        ("models.py:discrete", ("--data", "y.json", "--set", "n=2"), "does not take n"),
        ("models.py:discrete", ("--data", "y.json"), "discrete latent sites k"),
        ("models.py:neither", ("--data", "y.json"), "no numpyro.sample and returned a"),
        ("models.py:model", ("--data", "y.json", "--set", "n"), "name=value"),
        ("models.py:model", ("--data", "y.json", "--set", "n=two"), "number, true or false"),
        ("models.py:model", ("--data", "y.json", "--columns", "z"), "no column 'z'; it has y"),
        ("models.py:model", ("--data", "y.json", "--outcome", "y"), "built-in regressions"),
        ("models.py:model", ("--data", "no.json"), "no data file"),
        ("models.py:model", ("--data", "models.py"), "must end in .json"),
        ("models.py:gauss", ("--sampler", "obabbo"), "did you mean OBABO?"),
        ("models.py:gauss", ("--option", "step_size=1"), "auto takes none"),
        ("models.py:gauss", (*HMC, "--option", "step_size=0"), "step_size must be positive"),
        ("models.py:gauss", (*HMC, "--option", "step_size=a"), "must be a number; got 'a'"),
        ("models.py:gauss", (*HMC, "--option", "friction=1"), "JitteredHMC takes step_size"),
        ("logistic", (), "needs --data FILE and --outcome"),
        ("logistic", ("--data", "table.csv", "--outcome", "sick"), "'sick'; it has ill, age"),
        ("logistic", ("--data", "table.csv", "--outcome", "ill"), "'town' is not numeric: row 1"),
        ("logistic", ("--data", "table.csv", "--outcome", "visits", "--predictors", "age"), "0 or"),
        ("poisson", ("--data", "table.csv", "--outcome", "age", "--predictors", "ill"), "count"),
        ("linear", ("--data", "gaps.csv", "--outcome", "age", "--predictors", "ill"), "row 7"),
        (
            "linear",
            ("--data", "table.csv", "--outcome", "age", "--predictors", "one"),
            "'one' is 1",
        ),
        ("linear", ("--data", "table.csv", "--outcome", "age", "--predictors", "age"), "both"),
        ("linear", ("--data", "table.csv", "--outcome", "age", "--set", "n=1"), "not --set"),
        (
            "linear",
            ("--data", "table.csv", "--outcome", "age", "--predictors", "ill", "--prior", "flat"),
            "gaussian, laplace or horseshoe; got 'flat'",
        ),
    ],
)
def test_refusals_name_the_value(folder, tmp_path, monkeypatch, model, rest, says):
    monkeypatch.chdir(folder)
    assert says in refused("sample", model, *rest, "--quiet", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_errors_in_a_model_are_told_with_their_line(folder, tmp_path):
    model = folder / "models.py"
    line = MODELS.splitlines().index("def broken(y):") + 2
    told = refused(
        "sample", f"{model}:broken", "--data", folder / "y.json", "--out", tmp_path / "x"
    )
    assert f"models.py:{line}:" in told
    (tmp_path / "bad.py").write_text("x = (\n")
    assert "bad.py:1:" in refused("sample", tmp_path / "bad.py:x", "--out", tmp_path / "x")


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["sample", "no.py:x", "--out", str(tmp_path / "x"), "--debug"])
    assert isinstance(result.exception, errors.CommandError)


def test_a_full_folder_is_left_alone(folder):
    before = sorted(path.name for path in (folder / "done").iterdir())
    told = refused("sample", folder / "models.py:gauss", "--out", folder / "done")
    assert "is not empty" in told and "driftbridge resume" in told
    assert sorted(path.name for path in (folder / "done").iterdir()) == before


def test_resume_refuses_what_is_another_run(folder, tmp_path):
    assert "no command.json" in refused("resume", folder)
    assert "there is no folder" in refused("resume", tmp_path / "none")
    assert "holds no run" in refused("report", folder)
    own, run_of_own = tmp_path / "models.py", tmp_path / "run"
    own.write_text(MODELS)
    shutil.copytree(folder / "done", run_of_own)
    command = json.loads((run_of_own / "command.json").read_text())
    command["model"] = f"{own}:made"
    command["settings"] = {}
    command["data"] = str(tmp_path / "scale.json")
    Path(command["data"]).write_text('{"scale": [1.0, 3.0]}')
    command["digests"] = {}
    (run_of_own / "command.json").write_text(json.dumps(command))
    # The target is not the one of the stored draws, whatever command.json says.
    assert "is not the one of the run" in refused("resume", run_of_own, "--draws", "900")


@pytest.mark.slow
def test_resume_refuses_changed_files(folder, tmp_path):
    own, out = tmp_path / "models.py", tmp_path / "run"
    own.write_text(MODELS)
    run("sample", f"{own}:gauss", "--out", out, *SIZE, "--quiet")
    own.write_text(MODELS + "\n# changed\n")
    assert f"{own} of this run" not in (told := refused("resume", out)) and "has changed" in told
    own.unlink()
    assert "is gone" in refused("resume", out)


def test_numbers_name_the_row():
    assert data.numbers("a", [[1, 2], [3, 4]]).shape == (2, 2)
    assert data.numbers("a", [True, False]).dtype == bool
    cases = {
        "no value in row 2": [1.0, None, 3.0],
        "is inf in row 3": [1.0, 2.0, np.inf],
        "row 1 holds 'x'": ["x", 2.0],
        "different lengths": [[1], [1, 2]],
        "datetime64": np.array(["2020-01-01"], "datetime64[D]"),
    }
    for says, values in cases.items():
        with pytest.raises(errors.CommandError, match=says):
            data.numbers("a", values)


def test_json_must_hold_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    (tmp_path / "b.json").write_text("{1")
    for name, says in (("a.json", "must hold an object"), ("b.json", "is not JSON")):
        with pytest.raises(errors.CommandError, match=says):
            data.read(tmp_path / name)


def test_columns_are_the_same_from_every_kind_of_file(folder):
    csv, parquet = data.read(folder / "table.csv"), data.read(folder / "table.parquet")
    assert list(csv) == list(parquet)
    np.testing.assert_array_equal(csv["visits"], parquet["visits"])


def test_models_are_told_from_functions_that_return_targets():
    import numpyro
    import numpyro.distributions as dist

    def model():
        numpyro.sample("a", dist.Normal(0, 1))

    def scaled():
        with numpyro.handlers.scale(scale=2.0):
            model()

    def of_model():
        return db.from_numpyro(model)

    def simulated():
        trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
        return db.targets.DiagonalGaussian(jnp.abs(trace["a"]["value"])[None])

    kinds = [type(models.target_of(f, "f", {})) for f in (model, scaled, of_model, simulated)]
    assert kinds == [db.targets.NumPyroModel] * 3 + [db.targets.DiagonalGaussian]


def linear_regression():
    rng = np.random.default_rng(0)
    table = {"y": rng.normal(100, 5, 30), "a": rng.normal(20, 2, 30), "b": rng.normal(-3, 9, 30)}
    return table, regressions.regression("linear", table, "y", ["a", "b"], "gaussian")


@pytest.mark.slow
def test_regression_is_told_in_the_units_of_the_data(x64):
    """Its likelihood is that of the data's own columns, by the normal density written out."""
    table, target = linear_regression()
    x = jnp.asarray([0.1, 0.7, -0.4, -0.2])
    parameters = target.constrain(x)
    beta, scale = parameters["coefficients"], parameters["scale"]
    fitted = beta[0] + beta[1] * table["a"] + beta[2] * table["b"]
    expected = norm.logpdf(table["y"], fitted, scale)
    told = target.observations.log_likelihood(parameters)["y"]
    # Sums of a few terms of size 100: float64 leaves 1e-12 of it.
    np.testing.assert_allclose(told, expected, rtol=1e-10)
    np.testing.assert_allclose(target.unconstrain(parameters), x, rtol=1e-10)
    assert target.coords == {"coefficient": ("intercept", "a", "b")}

    key = jax.random.key(0)
    replicated = target.observations.predict(key, parameters)["y"]
    other = target.constrain(x + 0.5)
    again = target.observations.predict(key, other)["y"]
    beta = other["coefficients"]
    refitted = beta[0] + beta[1] * table["a"] + beta[2] * table["b"]
    # One key gives one set of standard residuals, whatever the parameters.
    residuals = (replicated - fitted) / scale
    np.testing.assert_allclose((again - refitted) / other["scale"], residuals, rtol=1e-9)


@pytest.mark.slow
def test_regression_scores_are_those_of_its_density(x64):
    _, target = linear_regression()
    x = jnp.asarray([0.1, 0.7, -0.4, -0.2])
    value, score = target.value_and_score(x)
    np.testing.assert_allclose(value, target.log_density(x), rtol=1e-12)
    np.testing.assert_allclose(score, jax.grad(target.log_density)(x), rtol=1e-9)
    np.testing.assert_allclose(target.score(x), score, rtol=1e-12)

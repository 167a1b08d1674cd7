"""`driftbridge tune`: the warm-up alone, and the file that stands for it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftbridge as db
from driftbridge.cli import errors, tuning
from driftbridge.samplers import DenseMetric, DiagonalMetric
from driftbridge.samplers.low_rank import LowRankMetric
from driftbridge.samplers.tuned import Tuned
from driftbridge.targets import DiagonalGaussian
from tests.command_line import MODELS, refused, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file of models."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "models.py").write_text(MODELS)
    return folder


@pytest.fixture(scope="module")
def tuned(folder):
    """A file of the warm-up of 16 chains on `gauss`, seed 3."""
    file = folder / "made" / "tuned.json"
    result = run(
        "tune", folder / "models.py:gauss", "--chains", "16", "--seed", "3", "-o", file
    )  # fmt: skip
    assert result.exit_code == errors.CONVERGED, result.stderr
    for told in ("LocalScaleHMC", "step size", "trajectory length", "DenseMetric", "condition",
                 "x[1]", "gradients", "agreed", "worst parameter", "repaired"):  # fmt: skip
        assert told in result.stdout, told
    assert f"--tuned {file}" in result.stdout and "up to 640 warm-up steps;" in result.stderr
    return file


@pytest.mark.slow
def test_tune_is_the_warm_up_of_sample_and_its_file_stands_for_it(folder, tuned, tmp_path):
    target = DiagonalGaussian(jnp.array([1.0, 2.0]))
    found = Tuned.load(tuned)
    whole = db.sample(target, key=3, num_chains=16, num_samples=1)
    assert found.facts["num_warmup"] == whole.metadata["num_warmup"]
    assert found.facts["gradients"] == whole.metadata["gradients_warmup"]
    assert jax.tree.structure(found.sampler) == jax.tree.structure(whole.tuned)
    pairs = zip(jax.tree.leaves(found.sampler), jax.tree.leaves(whole.tuned), strict=True)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)

    out = tmp_path / "out"
    result = run(
        "sample", folder / "models.py:gauss", "--tuned", tuned, "--chains", "12", "--draws", "150",
        "--out", out, "--quiet",
    )  # fmt: skip
    assert result.exit_code in (errors.CONVERGED, errors.NOT_CONVERGED), result.stderr
    draws = db.load(out)
    assert draws.metadata["num_warmup"] == 0 and "LocalScaleHMC" in draws.sampler_name
    again = db.sample(
        target, found.sampler, init=found.positions[:12], num_warmup=0, num_samples=150
    )
    assert np.array_equal(draws.positions, again.positions)
    longer = run("resume", out, "--draws", "300", "--quiet")
    assert longer.exit_code in (errors.CONVERGED, errors.NOT_CONVERGED), longer.stderr
    assert np.array_equal(db.load(out).positions[:, :150], again.positions)


@pytest.mark.slow
def test_a_warm_up_without_agreement_exits_with_three_and_is_told_again(folder, tmp_path):
    file = tmp_path / "short.json"
    model = folder / "models.py:gauss"
    result = run("tune", model, "--chains", "16", "--warmup", "16", "-o", file, "--quiet")
    assert result.exit_code == errors.NOT_CONVERGED
    assert "NOT tuned" in result.stdout and result.stderr == ""
    again = run(
        "sample", model, "--tuned", file, "--draws", "10", "--out", tmp_path / "x", "--quiet"
    )
    assert "ended before its ensemble agreed" in again.stderr


@pytest.mark.slow
def test_tune_takes_any_sampler(folder, tmp_path):
    file = tmp_path / "ubu.json"
    options = ("--sampler", "ubu", "--option", "friction=2", "--warmup", "120", "--quiet")
    result = run("tune", folder / "models.py:gauss", *options, "-o", file, "--float64")
    assert result.exit_code == errors.CONVERGED, result.stderr
    assert "friction" in result.stdout and "without a test" in result.stdout
    found = Tuned.load(file)  # in float32, where x64 is off
    assert found.agreed is None and found.positions.dtype == np.float64
    out = tmp_path / "x"
    run(
        "sample", folder / "models.py:gauss", "--tuned", file, "--draws", "50", "--out", out,
        "--quiet",
    )  # fmt: skip
    draws = db.load(out)
    assert draws.positions.dtype == np.float32 and draws.num_chains == 4
    assert draws.tuned is not None
    assert tuning.numbers(draws.tuned)["friction"] == "2"


def test_tuned_files_are_refused_by_name(folder, tuned, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"scale": [1.0, 2.0, 3.0]}))
    content = json.loads(tuned.read_text())
    call = {"namedtuple": "os:getcwd", "fields": []}
    changes = {
        "version": {"version": 2},
        "format": {"format": "driftbridge-command"},
        "short": {"arrays": content["arrays"][:-1]},
        "lacking": {"sampler": {"record": "driftbridge.samplers.hmc:Nothing", "fields": {}}},
        "function": {"sampler": call},
        "target": {"sampler": {"tuple": []}},
    }
    for name, change in changes.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, **change}))
    (tmp_path / "bytes.json").write_bytes(b"\x93NUMPY\xff")
    model, made = folder / "models.py:gauss", folder / "models.py:made"
    cases = [
        ((made, "--data", tmp_path / "one.json", "--tuned", tuned), "dimension 2, and"),
        ((model, "--tuned", tuned, "--sampler", "auto"), "--sampler would change"),
        ((model, "--tuned", tuned, "--option", "step_size=1"), "--option would change"),
        ((model, "--tuned", tuned, "--warmup", "0"), "--warmup would change"),
        ((model, "--tuned", tuned, "--chains", "17"), "more than the 16 chains"),
        ((model, "--tuned", tmp_path / "no.json"), "there is no file"),
        ((model, "--tuned", tmp_path / "one.json"), "holds no tuned sampler"),
        ((model, "--tuned", tmp_path / "bytes.json"), "holds no tuned sampler"),
        ((model, "--tuned", tmp_path / "format.json"), "holds no tuned sampler"),
        ((model, "--tuned", tmp_path / "version.json"), "has version 2"),
        ((model, "--tuned", tmp_path / "short.json"), "is damaged"),
        ((model, "--tuned", tmp_path / "lacking.json"), "Nothing is needed to rebuild"),
        ((model, "--tuned", tmp_path / "function.json"), "no class of named tuples"),
        ((model, "--tuned", tmp_path / "target.json"), "holds no sampler"),
    ]
    for arguments, says in cases:
        told = refused("sample", *arguments, "--out", tmp_path / "x", "--quiet")
        assert says in told, told
    assert not (tmp_path / "x").exists()
    assert "is there already" in refused("tune", model, "-o", tuned)
    assert "--warmup 0 tunes nothing" in refused("tune", model, "--warmup", "0")


def test_metrics_are_summarised_by_their_covariance(x64):
    """Condition number and scales of `L L^T`, written out for each kind of metric."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(3, 3))
    scale, stretch = np.array([1.0, 2.0, 4.0]), np.array([3.0])
    basis = np.full((3, 1), 1 / np.sqrt(3))
    low = scale[:, None] * (np.eye(3) + basis * (stretch - 1) @ basis.T)
    cases = [
        (DiagonalMetric(jnp.asarray(scale)), np.diag(scale**2)),
        (DenseMetric.from_covariance(factor @ factor.T), factor @ factor.T),
        (LowRankMetric(*map(jnp.asarray, (scale, basis, stretch))), low @ low.T),
    ]
    target = DiagonalGaussian(jnp.ones(3))
    for metric, covariance in cases:
        told = dict(tuning.metric_rows(metric, target))
        assert told["condition number"] == f"{np.linalg.cond(covariance):.3g}"
        scales = np.sqrt(np.diag(covariance))
        assert told["first scales"] == ", ".join(f"x[{i}] {s:.3g}" for i, s in enumerate(scales))

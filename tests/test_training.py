"""Training: what it reaches, and what it does when it is cut short or goes wrong."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

from driftbridge.runtime.compilations import Compilations
from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Objective, Training, train

SLOPE = np.array([2.0, -1.0, 0.5], np.float32)
NOISE = 0.1


class Line(eqx.Module):
    """A linear model, the smallest thing that can be trained."""

    slope: Array


class LeastSquares(Objective):
    """`y = SLOPE . x + NOISE z`, fresh in every batch; `explodes_at` a step's key divides by 0."""

    noise: Array

    def batch(self, key, n):
        x = jax.random.normal(key, (n, 3))
        return x, x @ jnp.asarray(SLOPE) + self.noise * jax.random.normal(jax.random.key(9), (n,))

    def loss(self, model, batch):
        x, y = batch
        return jnp.mean((x @ model.slope - y) ** 2)


class Exploding(LeastSquares):
    """The same, whose gradient is infinite once the model is near the truth."""

    def loss(self, model, batch):
        plain = super().loss(model, batch)
        return plain + jnp.where(plain < 0.3, jnp.inf, 0.0) * jnp.sum(model.slope)


def line():
    return Line(jnp.zeros(3))


def problem(kind=LeastSquares):
    return kind(jnp.float32(NOISE))


QUICK = Training(num_steps=400, batch_size=64, learning_rate=0.05, validate_every=50)


def test_a_regression_is_learned():
    trained = train(problem(), line(), as_key(0), QUICK, problem())
    assert trained.status == "finished" and trained.num_steps == 400
    # Least squares on the last hundreds of rows: errors of NOISE / sqrt(1000) and what Adam's
    # steps leave, which the average shrinks.
    np.testing.assert_allclose(trained.model.slope, SLOPE, atol=0.03)
    assert trained.curve.steps.tolist() == list(range(0, 401, 50))
    assert np.isnan(trained.curve.losses[0]) and np.all(np.isfinite(trained.curve.held_out))
    # The loss of the truth is NOISE^2.
    np.testing.assert_allclose(trained.curve.held_out[-1], NOISE**2, rtol=0.2)


def test_looking_more_often_changes_nothing():
    plain = train(problem(), line(), as_key(0), QUICK)
    often = train(problem(), line(), as_key(0), dataclasses.replace(QUICK, validate_every=7))
    np.testing.assert_array_equal(plain.model.slope, often.model.slope)


class Stop(Exception):
    pass


@pytest.mark.parametrize("held_out", [True, False])
def test_a_training_that_was_cut_ends_as_if_it_had_not_been(tmp_path, monkeypatch, held_out):
    monkeypatch.setattr("driftbridge.runtime.training.CHECKPOINT_EVERY", 0.0)
    held_out = problem() if held_out else None

    def cut(at):
        if at.done == 150:
            raise Stop

    whole = train(problem(), line(), as_key(3), QUICK, held_out)
    path = tmp_path / "state.npz"
    kept = dataclasses.replace(QUICK, checkpoint=str(path), progress=cut)
    with pytest.raises(Stop):
        train(problem(), line(), as_key(3), kept, held_out)
    assert path.is_file()
    resumed = train(
        problem(), line(), as_key(3), dataclasses.replace(kept, progress=False), held_out
    )
    np.testing.assert_array_equal(whole.model.slope, resumed.model.slope)
    for ours, theirs in zip(whole.curve, resumed.curve, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Once it has ended, it is only read.
    again = train(problem(), line(), as_key(3), kept, held_out)
    np.testing.assert_array_equal(whole.model.slope, again.model.slope)


KILLED = """
import dataclasses, os, signal, sys
from driftbridge.runtime import training
from tests.test_training import QUICK, as_key, line, problem

training.CHECKPOINT_EVERY = 0.0

def kill(at):
    if at.done == 150:
        os.kill(os.getpid(), signal.SIGKILL)

kept = dataclasses.replace(QUICK, checkpoint=sys.argv[1], progress=kill)
training.train(problem(), line(), as_key(3), kept, problem())
"""


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    path = tmp_path / "state.npz"
    command = [sys.executable, "-c", KILLED, str(path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert path.is_file()
    resumed = train(
        problem(), line(), as_key(3), dataclasses.replace(QUICK, checkpoint=str(path)), problem()
    )
    whole = train(problem(), line(), as_key(3), QUICK, problem())
    np.testing.assert_array_equal(whole.model.slope, resumed.model.slope)
    assert resumed.seconds > 0 and resumed.curve.steps.tolist() == whole.curve.steps.tolist()


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "state.npz"
    kept = dataclasses.replace(QUICK, num_steps=20, checkpoint=str(path))
    for content in (b"no zip", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state.npz holds no checkpoint"):
            train(problem(), line(), as_key(0), kept)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    kept = dataclasses.replace(QUICK, num_steps=20, checkpoint=str(tmp_path / "state.npz"))
    train(problem(), line(), as_key(0), kept)
    with pytest.raises(ValueError, match="checkpoint of another training"):
        train(problem(), line(), as_key(1), kept)
    with pytest.raises(ValueError, match="checkpoint of another training"):
        train(problem(), line(), as_key(0), dataclasses.replace(kept, learning_rate=0.1))
    for other in (optax.scale_by_adam(b1=0.5), optax.identity()):
        with pytest.raises(ValueError, match="checkpoint of another training"):
            train(problem(), line(), as_key(0), dataclasses.replace(kept, optimiser=other))


def test_models_of_one_fit_have_checkpoints_of_their_own(tmp_path):
    kept = dataclasses.replace(QUICK, num_steps=20, checkpoint=str(tmp_path / "state.npz"))
    for name in ("first", "second"):
        train(problem(), line(), as_key(len(name)), kept.part(name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.npz.first", "state.npz.second"]
    assert QUICK.part("first") is QUICK


@pytest.mark.slow
def test_divergence_is_told_and_the_best_parameters_are_kept():
    trained = train(problem(Exploding), line(), as_key(0), QUICK, problem())
    assert trained.status == "diverged" and trained.num_steps < 400
    assert np.all(np.isfinite(trained.model.slope))
    best = int(np.nanargmin(trained.curve.held_out))
    assert trained.best_step == trained.curve.steps[best]


@pytest.mark.slow
def test_training_ends_where_the_held_out_loss_stops_falling():
    patient = dataclasses.replace(QUICK, num_steps=4000, patience=3, learning_rate=0.2)
    trained = train(problem(), line(), as_key(0), patient, problem())
    assert trained.status == "stopped early" and trained.num_steps < 4000
    assert trained.num_steps == trained.best_step + 3 * 50


def test_no_steps_leave_the_model_as_it_was():
    trained = train(problem(), line(), as_key(0), dataclasses.replace(QUICK, num_steps=0))
    np.testing.assert_array_equal(trained.model.slope, np.zeros(3))


def test_another_training_of_the_same_shapes_compiles_nothing():
    train(problem(), line(), as_key(0), QUICK, problem())
    other = dataclasses.replace(QUICK, learning_rate=0.01, num_steps=300, clip=2.0, patience=2)
    compilations = Compilations()
    train(LeastSquares(jnp.float32(0.3)), line(), as_key(1), other, problem())
    assert compilations.programs == 0


def test_the_learning_rate_is_told_by_the_size_of_the_first_steps():
    # Adam's first direction is the sign of the gradient: a step moves by the learning rate.
    for rate in (0.01, 0.02):
        one = Training(num_steps=1, batch_size=64, learning_rate=rate, warm_up=0.0, averaging=0.0)
        moved = np.abs(train(problem(), line(), as_key(0), one).model.slope)
        np.testing.assert_allclose(moved, rate, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", -1), ("batch_size", 0), ("learning_rate", 0.0), ("warm_up", 1.0),
        ("clip", 0.0), ("averaging", 1.0), ("weight_decay", -1.0), ("patience", -1),
        ("validate_every", 0),
    ],
)  # fmt: skip
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Training(**{name: value})

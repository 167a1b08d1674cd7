"""Training: parameters of a model by stochastic gradients, in compiled chunks of steps."""

import abc
import dataclasses
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime import checkpoint
from driftbridge.runtime.fingerprint import fingerprint
from driftbridge.runtime.progress import Callback, Progress, reporter
from driftbridge.runtime.threefry import fold_in

# One object, so that a program compiled with it serves every training.
ADAM = optax.scale_by_adam()
RUNNING, DIVERGED = 0, 1
# Rows on which the held-out loss is taken, the same ones every time.
HELD_OUT_ROWS = 4096
# Number of their key, which no step has.
HELD_OUT_KEY = 2**32 - 1
# Seconds between two checkpoints.
CHECKPOINT_EVERY = 10.0


class Objective(eqx.Module):
    """A loss that is a mean over random batches."""

    @abc.abstractmethod
    def batch(self, key: Key[Array, ""], n: int) -> Any:
        """A random batch of `n` rows: a tree of arrays."""

    @abc.abstractmethod
    def loss(self, model: Any, batch: Any) -> Float[Array, ""]:
        """The mean loss of a model over a batch."""


class Training(eqx.Module):
    """How a model is trained: Adam, unless told, with a cosine schedule and averaged parameters.

    **Arguments:**

    - `num_steps`: most steps; the learning rate falls to zero over them.
    - `batch_size`: rows of a step.
    - `learning_rate`: `> 0`, at the top of the schedule; it rises linearly over the first `warm_up`
      of the steps, a share in `[0, 1)`.
    - `clip`: `> 0`, the most that the norm of a gradient counts; infinite for no bound.
    - `averaging`: in `[0, 1)`, how much of the exponential average of the parameters a step keeps;
      less in the first steps. The average is what is returned.
    - `weight_decay`: `>= 0`, share of the parameters taken off at each unit of the learning rate.
    - `validate_every`: steps between two looks at the held-out loss.
    - `patience`: looks without a better held-out loss after which training ends; 0 for never.
    - `optimiser`: what turns a gradient into a direction; defined once, as a new object compiles
      again.
    - `checkpoint`: a file in which the state is kept, and from which training goes on.
    - `progress`: False, True or a callback.

    **Raises:** `ValueError` for a number outside its range.
    """

    num_steps: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    learning_rate: float | Array
    warm_up: float | Array
    clip: float | Array
    averaging: float | Array
    weight_decay: float | Array
    validate_every: int = eqx.field(static=True)
    patience: int = eqx.field(static=True)
    optimiser: optax.GradientTransformation = eqx.field(static=True)
    checkpoint: str | None = eqx.field(static=True)
    progress: bool | Callback = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int = 8000,
        batch_size: int = 256,
        learning_rate: float | Array = 3e-3,
        warm_up: float | Array = 0.02,
        clip: float | Array = 1.0,
        averaging: float | Array = 0.999,
        weight_decay: float | Array = 0.0,
        validate_every: int = 200,
        patience: int = 10,
        optimiser: optax.GradientTransformation = ADAM,
        checkpoint: str | os.PathLike | None = None,
        progress: bool | Callback = False,
    ):
        for name, number, least in (
            ("num_steps", num_steps, 0),
            ("batch_size", batch_size, 1),
            ("validate_every", validate_every, 1),
            ("patience", patience, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}; got {number}.")
        for name, number, is_right, range_ in (
            ("learning_rate", learning_rate, 0 < learning_rate < np.inf, "positive and finite"),
            ("warm_up", warm_up, 0 <= warm_up < 1, "in [0, 1)"),
            ("clip", clip, clip > 0, "positive"),
            ("averaging", averaging, 0 <= averaging < 1, "in [0, 1)"),
            ("weight_decay", weight_decay, 0 <= weight_decay < np.inf, "finite and at least 0"),
        ):
            if not is_right:
                raise ValueError(f"{name} must be {range_}; got {number}.")
        self.num_steps, self.batch_size = num_steps, batch_size
        self.learning_rate, self.warm_up = learning_rate, warm_up
        self.clip, self.averaging, self.weight_decay = clip, averaging, weight_decay
        self.validate_every, self.patience = validate_every, patience
        self.optimiser = optimiser
        self.checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self.progress = progress

    def part(self, name: str) -> "Training":
        """The same training for one of several models of a fit: its checkpoint has a name of its
        own."""
        if self.checkpoint is None:
            return self
        return dataclasses.replace(self, checkpoint=f"{self.checkpoint}.{name}")


class Curve(NamedTuple):
    """Losses of a training: of each stretch of steps, and held out at its end.

    - `steps`: numbers of steps `(looks,)`; the first is 0, before any.
    - `losses`: mean over the steps since the last look `(looks,)`, first NaN.
    - `held_out`: of the averaged parameters `(looks,)`; NaN without held-out data.
    """

    steps: Int[np.ndarray, " looks"]
    losses: Float[np.ndarray, " looks"]
    held_out: Float[np.ndarray, " looks"]


class Trained(NamedTuple):
    """A trained model.

    - `status`: "finished" after all steps, "stopped early" where the held-out loss had stopped
      falling, or "diverged": a loss or a gradient was not finite, and the parameters are the best
      before.
    - `num_steps`: steps taken; `best_step`: those after which the parameters were these.
    - `seconds`: wall time.
    """

    model: Any
    status: str
    num_steps: int
    best_step: int
    curve: Curve
    seconds: float


class State(NamedTuple):
    """What a training carries from step to step; parameters are one vector."""

    parameters: Float[Array, " size"]
    average: Float[Array, " size"]
    best: Float[Array, " size"]
    best_loss: Float[Array, ""]
    best_step: Int[Array, ""]
    optimiser: Any
    step: Int[Array, ""]
    status: Int[Array, ""]


class Schedule(NamedTuple):
    """Numbers of a training, so that no value compiles anything."""

    num_steps: Float[Array, ""]
    learning_rate: Float[Array, ""]
    warm_up: Float[Array, ""]
    clip: Float[Array, ""]
    averaging: Float[Array, ""]
    weight_decay: Float[Array, ""]


def train(
    objective: Objective,
    model: Any,
    key: Key[Array, ""],
    training: Training,
    held_out: Objective | None = None,
) -> Trained:
    """Minimise the mean loss of an objective over the floating arrays of a model.

    Step `k` draws its batch from `fold_in(key, k)`, so that neither an interruption nor the number
    of steps between two looks changes it.

    **Arguments:**

    - `objective`: loss and batches.
    - `model`: a module; its floating arrays are what is trained, all of one dtype.
    - `key`: a typed key.
    - `training`: settings.
    - `held_out`: the same objective on data that the other does not draw. Without it the last
      averaged parameters are returned.

    **Returns:** a `Trained`; read its `status`.

    **Raises:** `ValueError` for a checkpoint of another training.
    """
    start = time.perf_counter()
    state, looks = _initial(model, training.optimiser), []
    marks = fingerprint((objective, model, held_out, key, _marks(training)))
    if training.checkpoint is not None and Path(training.checkpoint).is_file():
        state, looks = checkpoint.read(training.checkpoint, state, marks)
    rows = None
    if held_out is not None:
        rows = _held_out_batch(held_out, fold_in(key, HELD_OUT_KEY), HELD_OUT_ROWS)
    if not looks:
        state, loss = _look(state, model, held_out, rows)
        looks = [(0, np.nan, loss)]
    schedule, report = _schedule(training, state.parameters.dtype), reporter(training.progress)
    saved = time.perf_counter()
    while _goes_on(state, looks, training):
        began, done = time.perf_counter(), int(state.step)
        until = np.int32(min(done + training.validate_every, training.num_steps))
        state, loss = _chunk(
            state, model, objective, schedule, key, until, training.optimiser, training.batch_size
        )
        step = int(state.step)
        if int(state.status) == RUNNING:
            state, valued = _look(state, model, held_out, rows)
            looks.append((step, float(loss), valued))
            note = f"loss {float(loss):.4g}"
            note += "" if held_out is None else f", held out {valued:.4g}"
            rate = (step - done) / (time.perf_counter() - began)
            left = (training.num_steps - step) / rate
            report(Progress("training", step, training.num_steps, rate, left, note))
        ended = not _goes_on(state, looks, training)
        is_due = ended or time.perf_counter() - saved > CHECKPOINT_EVERY
        if training.checkpoint is not None and is_due:
            checkpoint.write(training.checkpoint, state, looks, marks)
            saved = time.perf_counter()
    status = "finished" if int(state.step) >= training.num_steps else "stopped early"
    status = "diverged" if int(state.status) == DIVERGED else status
    steps, losses, valued = (np.asarray(column) for column in zip(*looks, strict=True))
    return Trained(
        assembled(model, state.best),
        status,
        int(state.step),
        int(state.best_step),
        Curve(steps, losses, valued),
        time.perf_counter() - start,
    )


def flattened(model: Any) -> Float[Array, " size"]:
    """The floating arrays of a model as one vector."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) != 1:
        raise ValueError(f"a model must have floating arrays of one dtype; it has {dtypes}.")
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def assembled(template: Any, vector: Float[Array, " size"]) -> Any:
    """The model of a vector."""
    arrays, rest = eqx.partition(template, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = [
        vector[end - leaf.size : end].reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, parts), rest)


def _initial(model: Any, optimiser: optax.GradientTransformation) -> State:
    vector = flattened(model)
    zero, infinite = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, vector.dtype)
    return State(vector, vector, vector, infinite, zero, optimiser.init(vector), zero, zero)


def _schedule(training: Training, dtype: Any) -> Schedule:
    numbers = (
        training.num_steps,
        training.learning_rate,
        training.warm_up,
        training.clip,
        training.averaging,
        training.weight_decay,
    )
    return Schedule(*jax.device_put(tuple(np.asarray(number, dtype) for number in numbers)))


@eqx.filter_jit
def _chunk(state, template, objective, schedule, key, until, optimiser, batch_size):
    """Steps up to number `until`, and the mean of their losses."""

    def loss_of(model, batch):
        return objective.loss(model, batch)

    def step(carry):
        state, total = carry
        batch = objective.batch(fold_in(key, state.step), batch_size)
        model = assembled(template, state.parameters)
        loss, gradient = eqx.filter_value_and_grad(loss_of)(model, batch)
        gradient = flattened(gradient)
        square = jnp.sum(gradient**2)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(square)
        gradient = gradient * jnp.minimum(1, schedule.clip * lax.rsqrt(square + 1e-30))
        direction, optimised = optimiser.update(gradient, state.optimiser, state.parameters)
        rate = _learning_rate(schedule, state.step)
        parameters = state.parameters - rate * (
            direction + schedule.weight_decay * state.parameters
        )
        count = state.step.astype(rate.dtype)
        kept = jnp.minimum(schedule.averaging, (1 + count) / (10 + count))
        moved = state._replace(
            parameters=parameters,
            average=parameters + kept * (state.average - parameters),
            optimiser=optimised,
            step=state.step + 1,
        )
        lost = state._replace(status=jnp.full_like(state.status, DIVERGED))
        state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, lost)
        return state, total + jnp.where(is_finite, loss, 0)

    def goes_on(carry):
        return (carry[0].step < until) & (carry[0].status == RUNNING)

    first = state.step
    zero = jnp.zeros((), state.parameters.dtype)
    state, total = lax.while_loop(goes_on, step, (state, zero))
    return state, total / jnp.maximum(state.step - first, 1)


def _learning_rate(schedule: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """A linear rise, then half a cosine to zero."""
    share = step / schedule.num_steps
    rise = (step + 1) / jnp.maximum(schedule.warm_up * schedule.num_steps, 1)
    fall = (1 + jnp.cos(jnp.pi * share)) / 2
    return schedule.learning_rate * jnp.minimum(rise, 1) * fall


@eqx.filter_jit
def _held_out_batch(objective: Objective, key: Key[Array, ""], n: int) -> Any:
    return objective.batch(key, n)


@eqx.filter_jit
def _held_out_loss(vector, template, objective, rows):
    return objective.loss(assembled(template, vector), rows)


def _look(state: State, model: Any, held_out: Objective | None, rows: Any) -> tuple[State, float]:
    """The held-out loss of the averaged parameters, which are kept where they are the best."""
    if held_out is None:
        return state._replace(best=state.average, best_step=state.step), float("nan")
    loss = _held_out_loss(state.average, model, held_out, rows)
    if float(loss) < float(state.best_loss):
        state = state._replace(best=state.average, best_loss=loss, best_step=state.step)
    return state, float(loss)


def _goes_on(state: State, looks: list, training: Training) -> bool:
    if int(state.status) != RUNNING or int(state.step) >= training.num_steps:
        return False
    stale = sum(1 for step, _, _ in looks if step > int(state.best_step))
    return training.patience == 0 or stale < training.patience


def _marks(training: Training) -> tuple:
    """What makes two trainings the same, apart from where and how often they are looked at."""
    return (
        training.num_steps,
        training.batch_size,
        *(float(number) for number in _schedule(training, np.float64)),
        training.validate_every,
        training.patience,
        training.optimiser,
    )

"""How a learned map came about, told from its training."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from driftbridge.runtime.training import Trained
from driftbridge.transport.base import Fit


def account_of(name: str, trained: Trained, seconds: float, **before: Trained) -> Fit:
    """The account of a map whose model was trained, and of what was trained before it, by name."""
    messages = ()
    if trained.status == "diverged":
        messages = (
            f"training diverged after {trained.num_steps} steps; the parameters are those after "
            f"{trained.best_step}: lower the learning rate",
        )
    looks = trained.curve.held_out
    numbers = {
        "status": trained.status,
        "num_steps": trained.num_steps,
        "best_step": trained.best_step,
        "held_out_loss": float(np.nanmin(looks)) if np.isfinite(looks).any() else float("nan"),
        "training_seconds": trained.seconds,
    }
    return Fit(
        name,
        converged=trained.status != "diverged",
        messages=messages,
        numbers=tuple(numbers.items()),
        curves=(*((label, other.curve) for label, other in before.items()), (name, trained.curve)),
        seconds=seconds,
    )


def with_numbers(fit: Fit, numbers: Mapping[str, float | int | str]) -> Fit:
    """An account with more numbers."""
    return dataclasses.replace(fit, numbers=(*fit.numbers, *numbers.items()))

"""Draws written to a folder and read again, without pickle."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from driftbridge.runtime.codec import NotStorable, decode, encode
from driftbridge.runtime.store import GRID, DrawStore, load_arrays, save_arrays
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.draws import Draws
from driftbridge.samplers.keeping import OnDisk, stored_draws
from driftbridge.targets.base import Target

RESULT = "result.npz"
# Draws copied at once.
PART = 16 * GRID


class StoredTarget(Target):
    """Stands for the target of loaded draws whose own holds functions without importable names.

    It knows names and labels; asked for a density it says what to do.
    """

    dim: int = eqx.field(static=True)
    labels: Any = eqx.field(static=True)

    def log_density(self, x):
        raise ValueError(
            "these draws were loaded without their target, whose functions could not be found "
            "again by name; sample anew, or use driftbridge.resume(path, target=...)."
        )

    @property
    def dims(self):
        return dict(self.labels[0])

    @property
    def coords(self):
        return dict(self.labels[1])


def write_result(
    path: Path, target: Target, tuned: Sampler | None, metadata: dict[str, Any]
) -> None:
    """Write what is known at the end of a run beside its draws."""
    arrays: list[np.ndarray] = []
    parts: dict[str, Any] = {}
    for name, part in {"target": target, "tuned": tuned}.items():
        try:
            tree, own = encode(part)
            parts[name] = {"tree": tree, "start": len(arrays), "end": len(arrays) + len(own)}
            arrays += own
        except NotStorable as reason:
            parts[name] = {"missing": str(reason)}
    save_arrays(path / RESULT, arrays, {"parts": parts, "metadata": metadata, "dim": target.dim})


def save(draws: Draws, path: str | os.PathLike) -> None:
    """Write draws to a new folder."""
    store = DrawStore.create(path, {"sampler": draws.sampler_name})
    keeper = OnDisk(draws.target, store)
    for phase, part in (("warmup", draws.warmup), ("sampling", draws)):
        if part is None:
            continue
        for start in range(0, part.num_draws, PART):
            cut = slice(start, start + PART)
            stats = {name: np.asarray(value[:, cut]) for name, value in part.stats.items()}
            keeper.add(phase, np.asarray(part.positions[:, cut]), stats)
    write_result(store.path, draws.target, draws.tuned, draws.metadata)


def load(path: str | os.PathLike) -> Draws:
    """Read draws that were saved, or those of a stored run, finished or not.

    They stay on disk until they are asked for. `draws.tuned` is None for a run that has not ended.

    **Raises:** `StoreError` if there are none, as where the run was stopped in its warm-up.
    """
    store = DrawStore.open(path, mode="r")
    parts: dict[str, Any] = {}
    metadata: dict[str, Any] = {"interrupted": True}
    dim = None
    if (store.path / RESULT).exists():
        arrays, facts = load_arrays(store.path / RESULT)
        metadata, dim = facts["metadata"], facts["dim"]
        for name, entry in facts["parts"].items():
            if "missing" in entry:
                continue
            try:
                parts[name] = decode(entry["tree"], arrays[entry["start"] : entry["end"]])
            except LookupError:  # a function that cannot be imported here
                continue
    target = parts.get("target")
    if target is None:
        target = StoredTarget(dim or _dim(store), _frozen(store.labels()))
    return stored_draws(store, target, parts.get("tuned"), metadata)


def _dim(store: DrawStore) -> int:
    for group in ("unconstrained_posterior", "warmup_unconstrained_posterior"):
        if shapes := store.arrays(group).shapes():
            return shapes["position"][2]
    return 0


def _frozen(labels) -> Any:
    return tuple(tuple(part.items()) for part in labels)

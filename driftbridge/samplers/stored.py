"""What a stored run needs to go on: its description, and a checkpoint after every chunk."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from driftbridge.runtime.codec import NotStorable, decode, encode
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.runtime.fingerprint import code_of, difference, fingerprint
from driftbridge.runtime.store import DrawStore, StoreError, load_arrays, save_arrays
from driftbridge.samplers.driver import Run

DESCRIPTION = "run.npz"
PARTS = ("target", "sampler", "adapt", "reducers")


def describe(store: DrawStore, parts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write what is run beside the store.

    A part with a function that has no importable name is left out with the reason; `rebuild` then
    asks for it.
    """
    arrays: list[np.ndarray] = []
    described = {}
    for name in PARTS:
        entry: dict[str, Any] = {"fingerprint": fingerprint(parts[name]), "start": len(arrays)}
        try:
            entry["tree"], own = encode(parts[name])
            arrays += own
        except NotStorable as reason:
            entry["missing"] = str(reason)
        entry["end"] = len(arrays)
        described[name] = entry
    save_arrays(store.path / DESCRIPTION, arrays, {"parts": described, "settings": settings})


def change_settings(path: Path, **changes: Any) -> None:
    """Write other settings of a stored run, JSON-able ones, in place of those it has."""
    arrays, facts = load_arrays(path / DESCRIPTION)
    facts["settings"] |= changes
    save_arrays(path / DESCRIPTION, arrays, facts)


def rebuild(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of a stored run, and its settings; `given` parts replace stored ones.

    **Raises:** `StoreError` where a part could not be stored and is not given, cannot be found
    again or has changed, or is given but is not the stored one.
    """
    if not (path / DESCRIPTION).exists():
        raise StoreError(f"{path} holds no run of driftbridge (there is no {DESCRIPTION} in it).")
    arrays, facts = load_arrays(path / DESCRIPTION)
    parts = {}
    for name, entry in facts["parts"].items():
        part = given.get(name)
        if part is None:
            parts[name] = _decoded(path, name, entry, arrays)
            continue
        part = cast_floating(part, np.dtype(facts["settings"]["dtype"]))
        if other := difference(fingerprint(part), entry["fingerprint"]):
            raise StoreError(
                f"the {name} given is not the one of the run in {path}: {other}. Resume with the "
                f"same {name}, or start a new run in another folder."
            )
        parts[name] = part
    return parts, facts["settings"]


def _decoded(path: Path, name: str, entry: dict, arrays: list[np.ndarray]) -> Any:
    if "missing" in entry:
        raise StoreError(
            f"the {name} of the run in {path} could not be stored: {entry['missing']} "
            f"Pass it again: driftbridge.resume(path, {name}=...)."
        )
    try:
        part = decode(entry["tree"], arrays[entry["start"] : entry["end"]])
    except LookupError as error:
        raise StoreError(f"{error}. Pass it: driftbridge.resume(path, {name}=...).") from error
    if other := difference(code_of(fingerprint(part)), code_of(entry["fingerprint"])):
        raise StoreError(
            f"a function of the {name} has changed since the run in {path} began: {other}. Go on "
            "with the code of then, or start a new run in another folder."
        )
    return part


def checkpoint(store: DrawStore, run: Run) -> None:
    """Write the state of a run; called after its draws are in the store."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(run.chains)]
    kept = run.keeper.state()
    facts = {
        "step": run.step,
        "settled": run.is_settled,
        "leaves": len(leaves),
        "draws": {phase: run.keeper.count(phase) for phase in ("warmup", "sampling")},
        "clock": asdict(run.clock),
    }
    store.save_checkpoint(leaves + kept, json.loads(json.dumps(facts)))

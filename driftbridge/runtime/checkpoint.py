"""The file of a training: its state, what was seen of it, and what makes it this training."""

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from driftbridge.runtime.fingerprint import difference


def write(path: str, state: Any, looks: list, marks: dict[str, str]) -> None:
    """The state in a file, all of it or nothing."""
    leaves = jax.tree.leaves(state)
    named = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    header = np.frombuffer(json.dumps(marks).encode(), np.uint8)
    partial = Path(path + ".part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as file:
        np.savez(file, header=header, looks=np.asarray(looks), **named)  # pyright: ignore[reportArgumentType]
    partial.replace(path)


def read(path: str, like: Any, marks: dict[str, str]) -> tuple[Any, list]:
    """A state that was written, of the structure of another, if it is one of this training.

    **Raises:** `ValueError` for a file of another training, and for one that holds none.
    """
    try:
        with np.load(path) as stored:
            arrays = dict(stored)
        found = json.loads(bytes(arrays["header"]).decode())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, TypeError) as error:
        raise ValueError(
            f"{path} holds no checkpoint of a training, or is damaged: {error}. Remove it, or name "
            "a new file."
        ) from error
    if differs := difference(marks, found):
        raise ValueError(
            f"{path} is a checkpoint of another training: {differs}. Remove it, or name a new file."
        )
    structure = jax.tree.structure(like)
    leaves = [jax.device_put(arrays[f"leaf_{i}"]) for i in range(structure.num_leaves)]
    looks = [(int(step), loss, held_out) for step, loss, held_out in arrays["looks"].tolist()]
    return jax.tree.unflatten(structure, leaves), looks

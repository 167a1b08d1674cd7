"""Reading back what was saved."""

import os
from pathlib import Path
from typing import Any

from driftbridge.samplers.saved import load as load_draws


def load(path: str | os.PathLike) -> Any:
    """Read the draws in a folder (`Draws`), or the map in a file (`TransportMap`).

    Draws stay on disk until they are asked for; a stored run may have ended or not, and
    `draws.tuned` is None where it has not.

    **Raises:** `StoreError` for a folder without draws, `MapFileError` for a file without a map.
    """
    path = Path(path)
    if path.is_dir() or (path.suffix != ".npz" and not path.is_file()):
        return load_draws(path)
    from driftbridge.transport.saved import load as load_map

    return load_map(path)

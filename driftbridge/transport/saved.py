"""Maps and paths in one file: arrays, and a JSON header with a version. No pickle."""

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from driftbridge.runtime.codec import decode, encode, find, name_of
from driftbridge.runtime.dtypes import default_dtype
from driftbridge.transport.base import TransportMap
from driftbridge.transport.path import Path as SnapshotPath

FORMAT = "driftbridge map"
# Written into every file. A reader of version v reads all versions up to v.
VERSION = 1
HEADER = "header"
# Names in a file are of things that this package defines.
PACKAGE = "driftbridge"
NAMED = ("record", "name", "namedtuple")
KINDS = (*NAMED, "array", "float", "tuple", "dict", "dtype")


class MapFileError(ValueError):
    """A file that holds no map this version can read."""


def save(transport: TransportMap | SnapshotPath, path: str | os.PathLike) -> Path:
    """Write a map to `path` (`.npz` is added where it has no ending), all of it or nothing.

    **Returns:** the path.

    **Raises:** `NotStorable` for a map that holds a function without an importable name.
    """
    path = Path(path)
    path = path.with_suffix(".npz") if not path.suffix else path
    tree, arrays = encode(transport)
    header = {"format": FORMAT, "version": VERSION, "map": tree}
    buffer = io.BytesIO()
    named = {f"array_{i}": array for i, array in enumerate(arrays)}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(buffer, **{HEADER: text}, **named)  # pyright: ignore[reportArgumentType]
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)
    return path


def load(path: str | os.PathLike) -> TransportMap | SnapshotPath:
    """Read a map that was saved by this version or an earlier one.

    **Raises:** `MapFileError` for a file that is no map, is damaged, or comes from a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise MapFileError(f"there is no file {path}.")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file), _arrays(file) as stored:
            header = json.loads(bytes(stored[HEADER]).decode())
            arrays = [stored[f"array_{i}"] for i in range(len(stored.files) - 1)]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise MapFileError(f"{path} holds no map, or is damaged: {error}.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise MapFileError(f"{path} holds no map of driftbridge.")
    if not isinstance(header.get("version"), int):
        raise MapFileError(f"{path} holds a map without the version of its format.")
    if header["version"] > VERSION:
        raise MapFileError(
            f"{path} was written by a newer version of driftbridge (format {header['version']}; "
            f"this one reads up to {VERSION}). Upgrade driftbridge."
        )
    try:
        _check(header["map"])
        found = decode(header["map"], arrays)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise MapFileError(f"{path} holds no map, or is damaged: {error}") from error
    if not isinstance(found, TransportMap | SnapshotPath):
        raise MapFileError(f"{path} holds a {type(found).__name__}, not a map.")
    if any(a.dtype == np.float64 for a in arrays) and default_dtype() != np.float64:
        rounded = "saved in float64, computing in float32: enable x64 to have it as it was"
        fit = dataclasses.replace(found.fit, messages=(*found.fit.messages, rounded))
        found = dataclasses.replace(found, fit=fit)
    return found


def _arrays(file: Any) -> Any:
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _check(tree: Any) -> None:
    """Raise `ValueError` unless a description names only modules and functions of this package.

    What a file names is made without a call, from the fields that its class declares; so a file
    can set no more than the numbers and settings of classes that are maps or parts of maps.
    """
    if isinstance(tree, list):
        for item in tree:
            _check(item)
    if not isinstance(tree, dict):
        return
    kind, value = next(iter(tree.items()))
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no entry of a map.")
    if kind in NAMED:
        _check_named(kind, value, tree)
    fields = tree.get("fields", [])
    for item in fields.values() if isinstance(fields, dict) else fields:
        _check(item)
    if kind in ("tuple", "dict"):
        _check(value)


def _check_named(kind: str, path: str, tree: dict[str, Any]) -> None:
    if path.split(":")[0].split(".")[0] != PACKAGE:
        raise ValueError(f"it asks for {path}, which is outside {PACKAGE}.")
    thing = find(path)
    if name_of(thing) != path:  # another name of something from elsewhere
        raise ValueError(f"it asks for {path}, which is {name_of(thing)}.")
    if kind == "record":
        is_part = dataclasses.is_dataclass(thing)
        known = {field.name for field in dataclasses.fields(thing)} if is_part else set()
        if not (is_part and known.issuperset(tree["fields"])):
            raise ValueError(f"{path} is no part of a map with these fields.")

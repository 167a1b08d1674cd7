"""Data files and settings of the command line: arrays and numbers by name."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from driftbridge.cli.errors import CommandError

TABLES = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet", ".pq": "parquet"}


def read(path: Path) -> dict[str, Any]:
    """JSON keys, or columns of a CSV or Parquet file, in order; not yet checked.

    Missing entries of a table are None, so that `numbers` can name their row.
    """
    if not path.is_file():
        raise CommandError(f"there is no data file {path}.")
    name = path.name.lower()
    kind = next((kind for ending, kind in TABLES.items() if name.endswith(ending)), None)
    if kind is not None:
        return _table(path, kind)
    if not name.endswith(".json"):
        raise CommandError(f"{path} must end in .json, {', '.join(TABLES)}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CommandError(
            f"{path} must hold an object whose keys are names of data; it holds a "
            f"{type(content).__name__}."
        )
    return content


def _table(path: Path, kind: str) -> dict[str, Any]:
    import pandas

    try:
        frame = pandas.read_csv(path) if kind == "csv" else pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise CommandError(f"{path} cannot be read as {kind}: {error}.") from error
    columns = {}
    for name in frame.columns:
        column = frame[name].to_numpy()
        missing = pandas.isna(column)
        if missing.any():
            column = column.astype(object)
            column[missing] = None
        columns[str(name)] = column
    return columns


def select(data: Mapping[str, Any], names: Iterable[str], path: str) -> dict[str, Any]:
    """The named columns in the order of the names.

    **Raises:** `CommandError` for a column that is not there, listing those that are.
    """
    names = list(names)
    for name in names:
        if name not in data:
            raise CommandError(
                f"{Path(path).name} has no column {name!r}; it has {', '.join(data)}."
            )
    return {name: data[name] for name in names}


def numbers(name: str, values: Any) -> np.ndarray:
    """A column or nested list as an array of finite numbers or truth values.

    **Raises:** `CommandError` naming the first row (rows count from 1) that is missing, not a
    number or not finite.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise CommandError(f"{name!r} has rows of different lengths.") from None
    kind = array.dtype.kind
    if kind in "bui" or (kind == "f" and np.isfinite(array).all()):
        return array
    if kind not in "fOU":
        raise CommandError(f"{name!r} holds {array.dtype}, not numbers.")
    for row, entries in enumerate(array.reshape(len(array), -1) if array.ndim else [[array[()]]]):
        for entry in entries:
            _check_number(name, row + 1, entry)
    return array.astype(float)


def _check_number(name: str, row: int, entry: Any) -> None:
    try:
        number = np.nan if entry is None else float("text" if isinstance(entry, str) else entry)
    except (TypeError, ValueError):
        raise CommandError(
            f"{name!r} is not numeric: row {row} holds {str(entry)!r}. Code categories as columns "
            "of 0 and 1."
        ) from None
    if np.isnan(number):
        raise CommandError(
            f"{name!r} has no value in row {row} (the first row of data is row 1). Drop or impute "
            "rows that lack a value."
        )
    if not np.isfinite(number):
        raise CommandError(f"{name!r} is {number} in row {row}; every value must be finite.")


def arguments(data: Mapping[str, Any]) -> dict[str, Any]:
    """Data as arguments of a function: lists and columns become arrays, scalars stay."""
    return {name: _argument(name, value) for name, value in data.items()}


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _argument(f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | np.ndarray):
        return numbers(name, value)
    if isinstance(value, float):
        return numbers(name, value).item()
    return value


def settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`name=value` pairs: integers, floats, true and false.

    **Raises:** `CommandError` for a pair that is none, or a value that is neither.
    """
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CommandError(f"--set takes name=value, as in --set n=10; got {pair!r}.")
        found[name.strip()] = value(name, text.strip())
    return found


def value(name: str, text: str) -> bool | int | float:
    """A number or truth value from its text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise CommandError(f"{name} must be a number, true or false; got {text!r}.")

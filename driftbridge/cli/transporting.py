"""`fit`, `apply` and the report of a map: tables in, tables out."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import driftbridge as db
from driftbridge import map_report
from driftbridge.cli import data as files
from driftbridge.cli.errors import CONVERGED, NOT_CONVERGED, CommandError
from driftbridge.cli.printing import console, escaped
from driftbridge.runtime.training import Training
from driftbridge.transport.base import TransportMap
from driftbridge.transport.flow import Flow
from driftbridge.transport.pairs import DataWarning
from driftbridge.transport.points import as_rows

# A report needs this many rows on each side.
LEAST_ROWS = 10
ARRAYS = (".npy", ".npz")


class Rows(NamedTuple):
    """A file of points: a data frame with its names, or an array without.

    `left_out`: columns of the table that hold no numbers.
    """

    path: Path
    points: Any
    left_out: tuple[str, ...] = ()


def read_rows(path: Path, columns: tuple[str, ...] | None = None) -> Rows:
    """Points from CSV, Parquet, NPY or NPZ.

    Without `columns` all numeric columns of a table are taken, in order.

    **Raises:** `CommandError` for a table without rows or numeric columns, and for a column of
    numbers with an entry that is none.
    """
    name = path.name.lower()
    if name.endswith(ARRAYS):
        return Rows(path, _array(path))
    table = files.read(path)
    left_out: tuple[str, ...] = ()
    if columns is None:
        if not any(len(values) for values in table.values()):
            raise CommandError(f"{path} has no rows.")
        columns = tuple(n for n, values in table.items() if _is_numeric(values))
        left_out = tuple(n for n in table if n not in columns)
        for name in left_out:
            _check_no_numbers(path, name, table[name])
        if not columns:
            raise CommandError(f"{path} has no numeric column.")
    import pandas

    chosen = files.select(table, columns, str(path))
    frame = pandas.DataFrame({n: files.numbers(n, v) for n, v in chosen.items()})
    return Rows(path, frame, left_out)


def _is_numeric(values: Any) -> bool:
    present = [v for v in values if v is not None] if values.dtype == object else values
    return np.asarray(present).dtype.kind in "bif" and len(present) > 0


def _check_no_numbers(path: Path, name: str, values: Any) -> None:
    """Raise `CommandError` where most entries of a column of text are numbers."""
    import pandas

    present = np.array([v is not None for v in values], bool)
    column = pandas.Series(values, dtype=object)
    numbers = np.asarray(pandas.to_numeric(column, errors="coerce"), np.float64)
    wrong = np.flatnonzero(present & np.isnan(numbers))
    if 0 < len(wrong) < present.sum() / 2:
        raise CommandError(
            f"{path}: column {name!r} holds {values[wrong[0]]!r} in row {wrong[0] + 1} and numbers "
            "in most others. Correct it, or name the columns to map by --columns."
        )


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise CommandError(f"there is no data file {path}.")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CommandError(f"{path} cannot be read as an array: {error}.") from error
    if isinstance(found, np.ndarray):
        return found
    if len(found.files) != 1:
        raise CommandError(f"{path} must hold one array; it holds {', '.join(found.files)}.")
    return found[found.files[0]]


def fit(
    source: Path,
    target: Path,
    out: Path,
    method: str,
    columns: tuple[str, ...] | None,
    held_out: float,
    seed: int,
) -> int:
    """Fit a map between two files, save it, and report on the rows that were held out."""
    if not 0 <= held_out < 1:
        raise CommandError(f"--test must be at least 0 and below 1; got {held_out}.")
    if out.suffix not in ("", ".npz"):
        raise CommandError(f"{out} must end in .npz; the report goes beside it, in .html.")
    if out.with_suffix(".npz").exists():
        raise CommandError(f"{out} is there already. Choose another file, or remove it.")
    if not out.parent.is_dir():
        raise CommandError(f"there is no folder {out.parent} to write {out.name} to.")
    first, second = read_rows(source, columns), read_rows(target, columns)
    _check_columns(first, second)
    for rows in (first, second):
        as_rows(rows.points, rows.path.name)  # before the split, which renumbers rows
    (x, x_test), (y, y_test) = (_split(r.points, held_out, seed) for r in (first, second))
    with warnings.catch_warnings():  # printed with the fit
        warnings.simplefilter("ignore", DataWarning)
        chosen = Flow(training=Training(progress=True)) if method == Flow.name else method
        fitted = db.fit_map(x, y, chosen, seed)
    saved = fitted.save(out)
    _print_fit(fitted)
    if left_out := sorted({*first.left_out, *second.left_out}):
        console().print(f"  Left out, no numbers: {escaped(', '.join(left_out))}", soft_wrap=True)
    is_new = x_test is not None and y_test is not None
    if min(len(x), len(y)) < LEAST_ROWS:
        console().print(f"Too few rows for a report.\nMap: {saved}", soft_wrap=True)
        return CONVERGED if fitted.fit.converged else NOT_CONVERGED
    tested = fitted.report(x_test if is_new else x, y_test if is_new else y, seed)
    if not is_new:
        console().print("Too few rows to hold any out: the report is on the rows of the fit.")
    page = map_report.write(tested, saved.with_suffix(".html"), f"{source.name} to {target.name}")
    console().print(f"\n{escaped(tested.sentence)}", soft_wrap=True)
    console().print(f"Map: {saved}\nReport: {page}", soft_wrap=True)
    return CONVERGED if fitted.fit.converged else NOT_CONVERGED


def _check_columns(first: Rows, second: Rows) -> None:
    """Raise `CommandError` where two tables have different numeric columns."""
    if not (hasattr(first.points, "columns") and hasattr(second.points, "columns")):
        return
    names = [list(rows.points.columns) for rows in (first, second)]
    if set(names[0]) != set(names[1]):
        only = [sorted(set(a) - set(b)) for a, b in (names, names[::-1])]
        shared = ",".join(n for n in names[0] if n in names[1]) or "a,b"
        raise CommandError(
            f"the numeric columns differ: only {first.path.name} has {only[0]}, only "
            f"{second.path.name} has {only[1]}. Choose those to map by --columns {shared}."
        )


def _split(points: Any, held_out: float, seed: int) -> tuple[Any, Any]:
    """Rows of the fit and rows of the test, at random."""
    n = len(points)
    if round(held_out * n) < LEAST_ROWS:
        return points, None
    order = np.random.default_rng(seed).permutation(n)
    cut = max(2, round(held_out * n))
    test, fit_rows = np.sort(order[:cut]), np.sort(order[cut:])
    if hasattr(points, "iloc"):
        return points.iloc[fit_rows], points.iloc[test]
    return points[fit_rows], points[test]


def _print_fit(fitted: TransportMap) -> None:
    out = console()
    facts = fitted.fit
    head = "[bold green]Fitted[/]" if facts.converged else "[bold red]NOT converged[/]"
    out.print(
        f"{head}: {facts.method} ({escaped(facts.reason)}), {facts.num_source} to "
        f"{facts.num_target} points in {fitted.dim} dimensions, {facts.seconds:.1f} s",
        soft_wrap=True,
    )
    for message in facts.messages:
        out.print(f"  {escaped(message)}", soft_wrap=True)


def apply(saved: Path, new: Path, out: Path, inverse: bool) -> int:
    """Carry the rows of a file by a saved map, keeping its other columns."""
    fitted = db.load(saved)
    if not isinstance(fitted, TransportMap):
        raise CommandError(f"{saved} holds draws, not a map.")
    if out.exists():
        raise CommandError(f"{out} is there already. Choose another file, or remove it.")
    columns = fitted.fit.columns
    rows = read_rows(new, columns if not new.name.lower().endswith(ARRAYS) else None)
    moved = fitted.inverse(rows.points) if inverse else fitted(rows.points)
    _write(out, moved, rows)
    console().print(f"{len(moved)} rows written to {out}", soft_wrap=True)
    return CONVERGED


def _write(out: Path, moved: Any, rows: Rows) -> None:
    name = out.name.lower()
    if name.endswith(".npy"):
        np.save(out, np.asarray(moved))
        return
    if name.endswith(".npz"):
        np.savez(out, points=np.asarray(moved))
        return
    import pandas

    frame = moved if hasattr(moved, "columns") else pandas.DataFrame(np.asarray(moved))
    if not rows.path.name.lower().endswith(ARRAYS):
        whole = pandas.DataFrame(files.read(rows.path))
        whole[list(frame.columns)] = frame.to_numpy()
        frame = whole
    frame.columns = [str(column) for column in frame.columns]
    if name.endswith((".parquet", ".pq")):
        frame.to_parquet(out, index=False)
    elif name.endswith((".csv", ".csv.gz")):
        frame.to_csv(out, index=False)
    else:
        raise CommandError(f"{out} must end in .csv, .csv.gz, .parquet, .npy or .npz.")


def show(saved: Path, source: Path | None, target: Path | None, seed: int) -> int:
    """Report on a saved map with two files of points that it has not seen."""
    fitted = db.load(saved)
    assert isinstance(fitted, TransportMap)
    _print_fit(fitted)
    if source is None or target is None:
        raise CommandError(
            f"a report of a map needs points to test it on: driftbridge report {saved} SRC TGT."
        )
    columns = fitted.fit.columns
    x, y = (read_rows(path, columns).points for path in (source, target))
    tested = fitted.report(x, y, seed)
    page = map_report.write(tested, saved.with_suffix(".html"), f"{source.name} to {target.name}")
    console().print(f"\n{escaped(tested.sentence)}\nReport: {page}", soft_wrap=True)
    return CONVERGED if fitted.fit.converged else NOT_CONVERGED

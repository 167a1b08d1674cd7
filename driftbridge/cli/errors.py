"""Errors as one readable line, and the exit codes."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

CONVERGED, ERROR, NOT_CONVERGED, INTERRUPTED = 0, 2, 3, 130


class CommandError(Exception):
    """A command that cannot be carried out; the message names the value and the cure."""


@contextlib.contextmanager
def readable(debug: bool = False, user_file: Any = None) -> Iterator[None]:
    """Turn an exception into one line on standard error and exit code 2.

    With `debug` it is raised as it is. A failure inside `user_file` is told with its line.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        print(f"error: {sentence(error, user_file)}", file=sys.stderr)
        raise SystemExit(ERROR) from None


def sentence(error: Exception, user_file: Any = None) -> str:
    """What happened and where, in one line."""
    from driftbridge import SamplingError, StoreError

    text = " ".join(str(error).split("\n\n")[0].split())
    # JAX notes that it shortened the traceback, below a line of dashes.
    notes = " ".join(n for n in getattr(error, "__notes__", ()) if not n.startswith("---"))
    line = line_in(error, user_file)
    if isinstance(error, ModuleNotFoundError) and line is None:
        return f"{text}. Install it by: pip install 'driftbridge[all]'"
    if not isinstance(error, CommandError | SamplingError | StoreError | ValueError | TypeError):
        text = f"{type(error).__name__}: {text}"
    where = "" if line is None or isinstance(error, CommandError) else f"{user_file}:{line}: "
    return f"{where}{text} {notes}".strip()


def line_in(error: BaseException, path: Any) -> int | None:
    """The last line of the file `path` in the traceback; None where it is not part of it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return lines[-1] if lines else None

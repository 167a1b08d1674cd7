"""Progress of long work: one line with rate and estimated end, or a callback."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    - `phase`: what is being done ("warm-up", "sampling", "training").
    - `done`, `total`: units of this phase; `total` is None where it is not known.
    - `rate`: units a second of the present chunk; `eta`: seconds to the end of the phase, or None.
    - `note`: a few words (acceptance, divergences, a loss).
    """

    phase: str
    done: int
    total: int | None
    rate: float
    eta: float | None
    note: str


Callback = Callable[[Progress], None]


def reporter(progress: bool | Callback) -> Callback:
    """The callback for a `progress` argument: False is silent, True a line on standard error."""
    if callable(progress):
        return progress
    return Line(sys.stderr) if progress else lambda _: None


class Line:
    """Rewrites one line on a terminal; elsewhere prints at most one line in ten seconds."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.last = 0.0
        self.phase = ""

    def __call__(self, at: Progress) -> None:
        on_terminal = self.stream.isatty()
        ends = at.total is not None and at.done >= at.total
        now = time.monotonic()
        if not on_terminal and not ends and at.phase == self.phase and now - self.last < 10:
            return
        self.last, self.phase = now, at.phase
        end = "\n" if ends or not on_terminal else ""
        line = text(at)
        if on_terminal:
            # A line that wraps could not be rewritten.
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        self.stream.write(line + end)
        self.stream.flush()


def text(at: Progress) -> str:
    """One line of progress."""
    if at.total is None:
        amount = f"{at.done} draws"
    else:
        filled = round(24 * at.done / max(at.total, 1))
        amount = f"{'━' * filled}{'─' * (24 - filled)} {at.done}/{at.total}"
    rate = f"{at.rate:,.0f}/s" if at.rate >= 10 else f"{at.rate:.2g}/s"
    remaining = "" if at.eta is None else f"  {clock(at.eta)} left"
    return f"{at.phase:<9}{amount}  {rate}{remaining}  {at.note}".rstrip()


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

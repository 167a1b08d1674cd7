"""How many programs JAX has compiled, and how long that took."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
# Tracing and lowering come before the compiler proper and are felt as one wait.
_STAGES = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _EVENT,
)


@dataclass
class _Totals(threading.local):
    """Of each thread: what others compile meanwhile is no wait of its own."""

    programs: int = 0
    seconds: float = 0.0


@dataclass
class _Programs:
    count: int = 0


_own = _Totals()
_all = _Programs()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _STAGES:
        _own.seconds += duration_secs
    if event == _EVENT:
        _own.programs += 1
        _all.count += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    """Counts programs compiled, and this thread's seconds spent on it, since it was made.

    Nested traces are counted in full, so `seconds` can slightly exceed the wait.
    """

    def __init__(self):
        self._programs, self._seconds = _all.count, _own.seconds

    @property
    def programs(self) -> int:
        """Programs compiled since."""
        return _all.count - self._programs

    @property
    def seconds(self) -> float:
        """Seconds of tracing, lowering and compiling since."""
        return _own.seconds - self._seconds


class CompiledAhead:
    """A program compiled in the background, from what `lower()` returns.

    The call that needs the program finds it where JAX keeps it. Whatever goes wrong in here goes
    wrong again in that call, and is raised there.
    """

    def __init__(self, lower: Callable[[], jax.stages.Lowered]):
        self.programs = 0
        # No daemon: the interpreter waits for it, where ending a process inside of the compiler
        # would abort it.
        self._thread = threading.Thread(target=self._work, args=(lower,))
        self._thread.start()

    def _work(self, lower):
        with contextlib.suppress(Exception):
            lower().compile()
        self.programs = _own.programs

    def wait(self) -> float:
        """Wait for the program; seconds waited. `programs` tells then how many were compiled."""
        start = time.perf_counter()
        self._thread.join()
        return time.perf_counter() - start


class Signatures:
    """Remembers what programs were compiled for, to say why one is compiled again."""

    def __init__(self):
        self._last: dict[str, dict[str, str]] = {}
        self._structure: dict[str, Any] = {}
        self._told: set[tuple[str, str]] = set()

    def reason(self, label: str, arguments: Any) -> str | None:
        """Why the program called `label` was compiled again for these arguments.

        The first difference from the arguments of the last time; None the first time, and for a
        reason that was given before.
        """
        reason = self._difference(label, arguments)
        if reason is None or (label, reason) in self._told:
            return None
        self._told.add((label, reason))
        return reason

    def _difference(self, label: str, arguments: Any) -> str | None:
        leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="."): str(jax.typeof(leaf))
            for path, leaf in leaves
        }
        before, old = self._last.get(label), self._structure.get(label)
        self._last[label], self._structure[label] = shapes, structure
        if before is None:
            return None
        for name in dict.fromkeys((*before, *shapes)):
            was, now = before.get(name, "absent"), shapes.get(name, "absent")
            if was != now:
                return f"{name} was {was} and is {now}"
        if old != structure:
            return (
                "a function, class or static number of the target, sampler or warm-up is another "
                "object than before (define functions once, outside loops)"
            )
        return None

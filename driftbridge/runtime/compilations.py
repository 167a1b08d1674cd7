"""How many programs JAX has compiled, and how long that took."""

from dataclasses import dataclass

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
# Tracing and lowering come before the compiler proper and are felt as one wait.
_STAGES = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    _EVENT,
)


@dataclass
class _Totals:
    programs: int = 0
    seconds: float = 0.0


_totals = _Totals()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _STAGES:
        _totals.seconds += duration_secs
    if event == _EVENT:
        _totals.programs += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    """Counts programs compiled, and seconds spent on it, since it was made.

    Nested traces are counted in full, so `seconds` can slightly exceed the wait.
    """

    def __init__(self):
        self._start = _Totals(_totals.programs, _totals.seconds)

    @property
    def programs(self) -> int:
        """Programs compiled since."""
        return _totals.programs - self._start.programs

    @property
    def seconds(self) -> float:
        """Seconds of tracing, lowering and compiling since."""
        return _totals.seconds - self._start.seconds

"""Interleaved paired timing, its statistics, and the table every benchmark prints.

A machine's speed drifts, so nothing is compared across runs: programs take turns, each round gives
one ratio for each pair of them, and a bar is judged by the median ratio, beside its quartiles and
beside the ratio of the peer program with itself (what a ratio of 1 looks like here).

    run = repeat(step, start, data)               # compiled once
    n = count_for([run, other], seconds=0.03)
    timings = paired({"ours": partial(run, n), "peer": partial(other, n)}, control="peer")
    finish("name", [at_most(1.7, "ours / peer", timings, "ours", "peer", n)], options)
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def repeat(step: Callable, start: Any, *arguments: Any) -> Callable[[int], Any]:
    """A blocking program `run(count)` that applies `carry = step(carry, *arguments)` count times.

    The loop is one compiled program for every count; its body depends on the one before, so that
    nothing is hoisted, and `arguments` are inputs, so that nothing is folded.
    """

    @jax.jit
    def loop(count, start, *arguments):
        return jax.lax.fori_loop(0, count, lambda _, carry: step(carry, *arguments), start)

    return lambda count: jax.block_until_ready(loop(count, start, *arguments))


def count_for(runs: Sequence[Callable[[int], Any]], seconds: float) -> int:
    """The count for which the fastest of `runs` takes about `seconds`; compiles them all."""
    for run in runs:
        run(1)
    count = 1
    while True:
        fastest = min(_clock(partial(run, count)) for run in runs)
        if fastest >= seconds / 2:
            return max(1, round(count * seconds / fastest))
        count *= 2 if fastest == 0 else min(16, max(2, int(seconds / fastest)))


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of a paired ratio."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Timings:
    """Seconds a call, one number a round, in the order of the rounds."""

    seconds: dict[str, np.ndarray]
    again: dict[str, np.ndarray]

    def median(self, name: str) -> float:
        """Median seconds of a call."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> Ratio:
        """Time of `name` over time of `to`, round by round."""
        return _quartiles(self.seconds[name] / self.seconds[to])

    def control(self, name: str) -> Ratio:
        """Time of a second call of `name` over its first, round by round."""
        return _quartiles(self.again[name] / self.seconds[name])


def paired(
    programs: dict[str, Callable[[], Any]], pairs: int = 11, control: str | Sequence[str] = ()
) -> Timings:
    """Time `programs` in turn, `pairs` rounds, after one untimed call of each.

    **Arguments:**

    - `programs`: blocking calls by name.
    - `pairs`: number of rounds; every round calls each program once, starting one later than the
      round before.
    - `control`: names of programs that each round calls a second time, for `Timings.control`.
    """
    controls = (control,) if isinstance(control, str) else tuple(control)
    turns = [(name, False) for name in programs] + [(name, True) for name in controls]
    for program in programs.values():
        program()
    seconds = {turn: [] for turn in turns}
    for i in range(pairs):
        first = i % len(turns)
        for turn in turns[first:] + turns[:first]:
            seconds[turn].append(_clock(programs[turn[0]]))
    return Timings(
        {name: np.array(times) for (name, second), times in seconds.items() if not second},
        {name: np.array(times) for (name, second), times in seconds.items() if second},
    )


@dataclass(frozen=True)
class Row:
    """One line of a table: a ratio, its control and, where there is one, its bar."""

    label: str
    microseconds: float
    over: float
    ratio: Ratio
    control: Ratio | None
    bar: str
    met: bool | None


def at_most(bound: float, label: str, timings: Timings, name: str, to: str, count: int = 1) -> Row:
    """The row of a bar `time(name) / time(to) <= bound`; `count` repetitions a call."""
    row = unjudged(label, timings, name, to, count)
    return Row(**{**vars(row), "bar": f"<= {bound:g}", "met": row.ratio.median <= bound})


def at_least(bound: float, label: str, timings: Timings, name: str, to: str, count: int = 1) -> Row:
    """The row of a bar `time(name) / time(to) >= bound`."""
    row = unjudged(label, timings, name, to, count)
    return Row(**{**vars(row), "bar": f">= {bound:g}", "met": row.ratio.median >= bound})


def unjudged(label: str, timings: Timings, name: str, to: str, count: int = 1) -> Row:
    """The row of a ratio without a bar."""
    # The peer is the side that was timed twice; of two such, the one divided by.
    peer = next((side for side in (to, name) if side in timings.again), None)
    return Row(
        label,
        1e6 * timings.median(name) / count,
        1e6 * timings.median(to) / count,
        timings.ratio(name, to),
        None if peer is None else timings.control(peer),
        "",
        None,
    )


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark: `--small`, `--save`, `--strict`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a smoke run; its ratios mean nothing")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME.json")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed")
    return parser


def options(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options given on the command line."""
    return parser_of(description).parse_args(arguments)


def machine() -> str:
    """The machine and versions, in one line."""
    device = jax.devices()[0]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    kind = platform.processor() or platform.machine()
    if device.platform != "cpu":
        kind = device.device_kind
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        kind = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), kind)
    return f"{kind}, {os.cpu_count()} CPUs{load}, jax {version('jax')} on {device.platform}"


def table(rows: Sequence[Row]) -> str:
    """`rows` as a Markdown table."""
    head = ["", "us", "over us", "ratio", "quartiles", "peer / itself", "bar", ""]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        control = "" if row.control is None else _spread(row.control)
        lines.append(
            [
                row.label,
                f"{row.microseconds:.4g}",
                f"{row.over:.4g}",
                f"{row.ratio.median:.3g}",
                f"{row.ratio.lower:.3g} to {row.ratio.upper:.3g}",
                control,
                row.bar,
                "" if row.met is None else verdict(row.met),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def finish(name: str, rows: Sequence[Row], chosen: argparse.Namespace) -> int:
    """Print the machine and the table, save them if asked, and return the exit status."""
    print(machine(), table(rows), sep="\n\n")
    return record(name, [asdict(r) for r in rows], all(r.met is not False for r in rows), chosen)


def record(name: str, rows: Sequence[dict], met: bool, chosen: argparse.Namespace) -> int:
    """Save rows of any form if asked, and return the exit status."""
    if chosen.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        found = {"machine": machine(), "small": chosen.small, "rows": list(rows)}
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\nwritten: benchmarks/results/{path.name}")
    return 1 if chosen.strict and not met else 0


def verdict(met: bool) -> str:
    """How a bar came out, in one word."""
    return "met" if met else "MISSED"


def _clock(program):
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def _quartiles(ratios):
    lower, median, upper = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(lower), float(upper))


def _spread(ratio):
    return f"{ratio.median:.3f} ({ratio.lower:.3g} to {ratio.upper:.3g})"

"""Sample the six posteriors with every kernel and print how far each is from the reference."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

import driftbridge as db
from examples.posteriors.cases import CASES, Case
from examples.posteriors.compare import compare
from examples.posteriors.kernels import SHORT, UNADJUSTED, WHOLE, Effort, runs
from examples.posteriors.reference import Posterior, load
from examples.posteriors.table import NOTES, Line, line, line_of_failure, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where an adjusted kernel misses the bar, else 0."""
    asked = parser().parse_args(arguments)
    chosen = [case for case in CASES if asked.only in case.name]
    if not chosen:
        names = ", ".join(case.name for case in CASES)
        raise SystemExit(f"no posterior has {asked.only!r} in its name; there are {names}.")
    start, lines, skipped = time.perf_counter(), [], []
    for case in chosen:
        try:
            posterior = load(case.name, asked.data)
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from error
        if posterior is None:
            skipped.append(case.name)
        else:
            lines += lines_of(case, posterior, SHORT if asked.quick else WHOLE)
    if lines:
        print(table(lines))
        print(NOTES)
    for name in skipped:
        print(f"skipped: {name}, whose data are not in the repository; give their folder by --data")
    failed = sum(line.verdict == "FAIL" for line in lines)
    passed = sum(line.verdict == "pass" for line in lines)
    seconds = time.perf_counter() - start
    print(f"{passed} of {passed + failed} adjusted runs pass ({seconds:.0f} s in all)")
    return 1 if failed else 0


def lines_of(case: Case, posterior: Posterior, effort: Effort) -> list[Line]:
    """The lines of one posterior; progress goes to standard error."""
    lines = []
    with jax.enable_x64(case.float64):
        target = case.target(posterior.data)
        before = time.perf_counter()
        for kernel, draws in runs(case, target, effort):
            if isinstance(draws, db.SamplingError):
                print(draws, file=sys.stderr)
                lines.append(line_of_failure(case.name, kernel, kernel not in UNADJUSTED))
            else:
                found = compare(draws, posterior.reference, case.scales)
                lines.append(line(case.name, kernel, draws, found))
            now = time.perf_counter()
            told = f"{case.name} {kernel}: {lines[-1].verdict}, {now - before:.0f} s"
            print(told, file=sys.stderr, flush=True)
            before = now
    return lines


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog="python -m examples.posteriors", description=__doc__)
    options.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder with posteriordb/ and inference_gym/"
    )
    options.add_argument(
        "--only", default="", metavar="NAME", help="posteriors with NAME in theirs"
    )
    options.add_argument(
        "--quick", action="store_true", help="one adjusted and one unadjusted kernel"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())

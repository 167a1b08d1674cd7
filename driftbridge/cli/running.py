"""Carrying out a command: progress, the record of it, what is printed, the exit code."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import driftbridge as db
from driftbridge import report
from driftbridge.cli import kernels
from driftbridge.cli.command import NAME, Command
from driftbridge.cli.errors import CONVERGED, INTERRUPTED, NOT_CONVERGED, CommandError
from driftbridge.cli.printing import console, print_summary, print_verdict
from driftbridge.runtime.dtypes import default_dtype
from driftbridge.runtime.progress import reporter
from driftbridge.samplers.tuned import Tuned


def run(command: Command, out: Path, quiet: bool, tuned: Tuned | None = None) -> int:
    """Sample into a new folder, and show the draws."""
    target, start = command.target(), None
    if tuned is None:
        kernel = kernels.build(kernels.find(command.sampler), command.options)
    else:
        check_dimension(command, tuned, target)
        kernel = tuned.sampler
        start = tuned.positions[: command.chains].astype(default_dtype())
    announce(command, target.dim, quiet)
    recorder = Recorder(command.with_digests(), out, quiet)
    with recorder.hint_when_interrupted():
        draws = db.sample(
            target,
            kernel,
            key=command.seed,
            num_samples=command.num_samples,
            num_warmup=command.warmup,
            num_chains=command.chains,
            thin=command.thin,
            init=start,
            store=out,
            progress=recorder,
        )
    show(draws, out, command.title)
    return INTERRUPTED if draws.metadata["interrupted"] else code_of(draws)


def check_dimension(command: Command, tuned: Tuned, target: db.Target) -> None:
    """Raise `CommandError` where a sampler was tuned for a target of another dimension."""
    if tuned.dim != target.dim:
        raise CommandError(
            f"{command.tuned} was tuned in dimension {tuned.dim}, and {command.title} has "
            f"dimension {target.dim}. Tune on this model and these data: driftbridge tune."
        )


def go_on(command: Command, folder: Path, quiet: bool) -> int:
    """Go on with the run of a folder, and show its draws."""
    command.check_unchanged()
    target = command.target()
    recorder = Recorder(command, folder, quiet)
    with recorder.hint_when_interrupted():
        draws = db.resume(folder, num_samples=command.num_samples, target=target, progress=recorder)
    show(draws, folder, command.title)
    return INTERRUPTED if draws.metadata["interrupted"] else code_of(draws)


class Recorder:
    """Reports progress, and before the first report writes the command into the run's folder.

    The store must be empty when a run begins, and a run without its first chunk cannot go on, so
    the first report is the moment.
    """

    def __init__(self, command: Command, folder: Path, quiet: bool):
        self.command, self.folder, self.saved = command, folder, False
        self.report = reporter(not quiet)

    def __call__(self, at: db.Progress) -> None:
        if not self.saved:
            self.command.save(self.folder)
            self.saved = True
        self.report(at)

    @contextlib.contextmanager
    def hint_when_interrupted(self) -> Iterator[None]:
        """Say how to go on where an interruption leaves no draws to show."""
        try:
            yield
        except KeyboardInterrupt:
            if self.saved:
                go_on = f"driftbridge resume {self.folder}"
                print(f"\nInterrupted in warm-up. Go on: {go_on}", file=sys.stderr)
                raise SystemExit(INTERRUPTED) from None
            raise


def announce(command: Command, dim: int, quiet: bool) -> None:
    """Say what begins: compiling takes seconds in which nothing else is seen."""
    if not quiet:
        most = "up to " if command.until_converged else ""
        limit = "up to " if command.sampler == kernels.AUTO else ""
        print(f"{command.title}, dimension {dim}", file=sys.stderr)
        draws = f" and {most}{command.draws} draws" if command.draws else ""
        print(
            f"{command.sampler}, {command.chains} chains of {limit}{command.warmup} warm-up steps"
            f"{draws}; compiling",
            file=sys.stderr,
        )


def show(draws: db.Draws, folder: Path, title: str | None) -> None:
    """Print table and verdict, and write the report."""
    print_summary(draws)
    print_verdict(draws)
    if draws.num_draws >= 4:
        page = report.write(draws, folder / "report.html", title)
        console().print(f"Report: {page}", soft_wrap=True)
    interrupted = bool(draws.metadata.get("interrupted", False))
    if (folder / NAME).is_file() and (interrupted or not draws.convergence.converged):
        more = "" if interrupted else f" --draws {2 * draws.num_draws}"
        console().print(f"Go on: driftbridge resume {folder}{more}", soft_wrap=True)


def code_of(draws: db.Draws) -> int:
    """The exit code that a verdict gives."""
    return CONVERGED if draws.convergence.converged else NOT_CONVERGED

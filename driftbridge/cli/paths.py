"""`fit-path`: tables at several times in, a process and its pictures out."""

import warnings
from pathlib import Path

import numpy as np

import driftbridge as db
from driftbridge import path_plots
from driftbridge.cli.errors import CONVERGED, NOT_CONVERGED, CommandError
from driftbridge.cli.printing import console, escaped
from driftbridge.cli.transporting import read_rows
from driftbridge.runtime.training import Training
from driftbridge.transport.fit_path import PathFlow
from driftbridge.transport.pairs import DataWarning

# Points whose trajectories are drawn, and times of a picture.
SHOWN, TIMES = 1000, 60


def fit(
    snapshots: list[Path],
    out: Path,
    times: str | None,
    columns: tuple[str, ...] | None,
    means: str,
    seed: int,
) -> int:
    """Fit a path through files, save it, and draw where the first one's points go."""
    if out.suffix not in ("", ".npz"):
        raise CommandError(f"{out} must end in .npz; the picture goes beside it, in .png.")
    if out.with_suffix(".npz").exists():
        raise CommandError(f"{out} is there already. Choose another file, or remove it.")
    at = times_of(times, len(snapshots))
    data = {t: read_rows(path, columns).points for t, path in zip(at, snapshots, strict=True)}
    with warnings.catch_warnings():  # printed with the fit
        warnings.simplefilter("ignore", DataWarning)
        training = Training(num_steps=6000, progress=True)
        found = db.fit_path(data, PathFlow(means=means, training=training), seed)
    saved, facts = found.save(out), found.fit
    head = "[bold green]Fitted[/]" if facts.converged else "[bold red]NOT converged[/]"
    console().print(
        f"{head}: {len(at)} times in {found.dim} dimensions, {facts.seconds:.1f} s\nPath: {saved}",
        soft_wrap=True,
    )
    for message in facts.messages:
        console().print(f"  {escaped(message)}", soft_wrap=True)
    if found.dim > 1:
        order = sorted(data)
        first = np.asarray(data[order[0]])[:SHOWN]
        places = found.trajectory(first, np.linspace(order[0], order[-1], TIMES))
        picture = saved.with_suffix(".png")
        figure = path_plots.trajectories(places, np.asarray(data[order[-1]]), saved.stem)
        figure.savefig(picture, dpi=150)
        console().print(f"Picture: {picture}", soft_wrap=True)
    return CONVERGED if facts.converged else NOT_CONVERGED


def times_of(text: str | None, count: int) -> list[float]:
    """Times of so many files."""
    if text is None:
        return [float(k) for k in range(count)]
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CommandError(f"--times must be numbers, as 0,1,3; got {text!r}.") from error
    if len(times) != count:
        raise CommandError(f"--times must name one time for each of {count} files; got {text!r}.")
    return times

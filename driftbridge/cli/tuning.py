"""The command `tune`: the warm-up alone, the table of what it tuned, and the file of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import driftbridge as db
from driftbridge.cli import kernels
from driftbridge.cli.command import Command
from driftbridge.cli.errors import CONVERGED, NOT_CONVERGED, CommandError
from driftbridge.cli.printing import console, escaped
from driftbridge.cli.running import announce
from driftbridge.runtime.codec import encode, fields_of
from driftbridge.runtime.progress import reporter
from driftbridge.samplers.base import innermost
from driftbridge.samplers.metric import Metric
from driftbridge.samplers.preconditioned import Preconditioned
from driftbridge.samplers.tuned import Tuned, coordinate_names, tune

# Coordinates whose scale is printed, and the dimension up to which a condition number is computed.
FIRST, LARGEST = 6, 2048


def run(command: Command, out: Path | None, quiet: bool) -> int:
    """Take the warm-up of a command, print what it tuned, and write it to a new file."""
    kernel = kernels.build(kernels.find(command.sampler), command.options)
    target = command.target()
    announce(command, target.dim, quiet)
    tuned = tune(
        target,
        kernel,
        key=command.seed,
        num_warmup=command.warmup,
        num_chains=command.chains,
        progress=reporter(not quiet),
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        tuned.save(out)
    show(tuned, target, out)
    return NOT_CONVERGED if tuned.agreed is False else CONVERGED


def read(path: Path, **replaced: Any) -> Tuned:
    """The tuned sampler in a file.

    **Raises:** `CommandError` where one of `replaced`, options that the file takes the place of,
    is given too.
    """
    for name, value in replaced.items():
        if value not in (None, []):
            raise CommandError(
                f"--tuned {path} brings a tuned sampler, which --{name} would change. Leave out "
                f"--{name}, or leave out --tuned."
            )
    tuned = Tuned.load(path)
    if tuned.agreed is False:
        print(
            f"driftbridge: the warm-up in {path} ended before its ensemble agreed; tune again with "
            "a larger --warmup.",
            file=sys.stderr,
        )
    return tuned


def show(tuned: Tuned, target: db.Target, out: Path | None) -> None:
    """Print the tuned values and the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(tuned, target):
        table.add_row(name, escaped(value))
    screen = console()
    screen.print(table)
    if tuned.agreed is False:
        verdict = "[bold red]NOT tuned[/]: the warm-up ended before the ensemble agreed. Look at "
        verdict += "the worst parameter, reparametrise, or give a larger --warmup."
    elif tuned.agreed:
        verdict = "[bold green]Tuned[/]: the ensemble agreed."
    else:
        verdict = "Tuned, without a test: this warm-up runs its full length and does not judge it."
    screen.print(f"\n{verdict}", soft_wrap=True)
    if out is not None:
        screen.print(f"Sample: driftbridge sample ... --tuned {escaped(str(out))}", soft_wrap=True)


def rows(tuned: Tuned, target: db.Target) -> Iterator[tuple[str, str]]:
    """Names and values of the table."""
    facts = tuned.facts
    yield "sampler", tuned.name
    for name, value in numbers(tuned.sampler).items():
        yield name.replace("_", " "), value
    if isinstance(tuned.sampler, Preconditioned):
        yield from metric_rows(tuned.sampler.metric, target)
    yield "chains", f"{len(tuned.positions)} of {facts['num_warmup']} warm-up steps"
    yield "gradients", f"{facts['gradients']}"
    yield "acceptance", f"{facts['acceptance']:.2f}"
    if tuned.agreed is None:
        return
    yield "agreed", "yes" if tuned.agreed else "NO"
    # Only a drift that stands out of the noise is told.
    drift = f"{facts['worst']}, drift {facts['drift']:.2f} sd" if facts["drift"] else "none drifts"
    yield "worst parameter", drift
    yield (
        "repaired chains",
        f"{facts['repaired']} in warm-up, {facts['repaired_at_start']} at the start",
    )


def numbers(sampler: db.samplers.Sampler) -> dict[str, str]:
    """The numbers of the sampler inside all wrappers, by name."""
    fields = fields_of(innermost(sampler))
    shown = {name: np.asarray(v) for name, v in fields.items() if is_number(v)}
    return {name: f"{value.item():.4g}" for name, value in shown.items()}


def is_number(value: Any) -> bool:
    """Whether a field of a sampler is one number."""
    return isinstance(value, int | float) or (
        isinstance(value, jax.Array | np.ndarray | np.generic) and np.ndim(value) == 0
    )


def metric_rows(metric: Metric, target: db.Target) -> Iterator[tuple[str, str]]:
    """Kind, condition number and first scales of a metric `L`, from `L L^T`."""
    leaves = encode(metric)[1]
    shapes = " and ".join(" x ".join(map(str, leaf.shape)) for leaf in leaves)
    yield "metric", f"{type(metric).__name__} ({shapes})"
    if target.dim > LARGEST:
        yield "condition number", f"not computed above dimension {LARGEST}"
        return
    # Row i is L e_i: the transpose of L.
    identity = jnp.eye(target.dim, dtype=leaves[0].dtype)
    transposed = np.asarray(jax.vmap(metric.unwhiten)(identity), np.float64)
    singular = np.linalg.svd(transposed, compute_uv=False)
    yield "condition number", f"{(singular[0] / singular[-1]) ** 2:.3g}"
    scales = np.sqrt(np.sum(transposed**2, axis=0))[:FIRST]
    pairs = zip(coordinate_names(target), scales, strict=False)
    entries = [f"{name} {scale:.3g}" for name, scale in pairs]
    more = "" if target.dim <= FIRST else f", and {target.dim - FIRST} more"
    yield "first scales", ", ".join(entries) + more

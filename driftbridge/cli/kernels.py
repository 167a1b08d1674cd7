"""Samplers by name, and the table of them."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from driftbridge.cli.errors import CommandError
from driftbridge.samplers.automatic import choose
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.table import Row, methods
from driftbridge.samplers.tuned import Tuned
from driftbridge.samplers.until import Until

AUTO = "auto"


class Counts(NamedTuple):
    """How much is sampled; `draws` is a limit where it goes on until converged."""

    chains: int
    draws: int
    warmup: int
    until_converged: bool


def counts(
    row: Row | None,
    chains: int | None,
    draws: int | None,
    warmup: int | None,
    until_converged: bool,
) -> Counts:
    """The numbers given, and for those that are not what suits the method."""
    if row is not None:
        most = 100_000 if until_converged else 1000
        return Counts(
            chains or 4, draws or most, 1000 if warmup is None else warmup, until_converged
        )
    choice = choose(None, "auto", None, chains, None, warmup)
    if isinstance(choice.num_samples, Until):
        return Counts(
            choice.num_chains,
            draws or choice.num_samples.max_draws,
            choice.num_warmup,
            until_converged or draws is None,
        )
    return Counts(choice.num_chains, draws or 1000, choice.num_warmup, until_converged)


def counts_of_tuned(
    tuned: Tuned, path: Path, chains: int | None, draws: int | None, until_converged: bool
) -> Counts:
    """The numbers given, and for those that are not what suits a tuned sampler.

    **Raises:** `CommandError` for more chains than it has positions for.
    """
    most = len(tuned.positions)
    if chains is not None and chains > most:
        raise CommandError(
            f"--chains {chains} is more than the {most} chains that {path} was tuned with and has "
            f"positions of. Take at most {most}, or tune again with --chains {chains}."
        )
    choice = choose(tuned.sampler, "auto", None, chains or most, None, 0)
    until_converged = until_converged or (draws is None and isinstance(choice.num_samples, Until))
    if isinstance(choice.num_samples, Until):
        limit = choice.num_samples.max_draws
    else:
        limit = 100_000 if until_converged else 1000
    return Counts(chains or most, draws or limit, 0, until_converged)


def find(name: str) -> Row | None:
    """The method of a name, whatever its case and hyphens: `jittered-hmc` is `JitteredHMC`.

    None for `auto`, which leaves the choice to `sample`.

    **Raises:** `CommandError` suggesting the nearest.
    """
    if plain(name) == AUTO:
        return None
    rows = {plain(row.name): row for row in methods()}
    if plain(name) in rows:
        return rows[plain(name)]
    near = difflib.get_close_matches(plain(name), rows, 1, cutoff=0.5)
    hint = f"did you mean {rows[near[0]].name}? " if near else ""
    raise CommandError(f"there is no sampler {name!r}; {hint}`driftbridge samplers` lists them.")


def plain(name: str) -> str:
    """A name without case, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")


def parse(row: Row | None, pairs: Iterable[str]) -> dict[str, Any]:
    """Arguments of a sampler from `name=value` pairs, as the type of their defaults.

    **Raises:** `CommandError` for a name it does not take, or a value that is no number.
    """
    if row is None:
        if first := next(iter(pairs), None):
            raise CommandError(f"--option {first} needs a --sampler to belong to; auto takes none.")
        return {}
    takes = inspect.signature(row.sampler).parameters
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in takes:
            raise CommandError(
                f"--option takes name=value, and {row.name} takes {', '.join(takes)}; got {pair!r}."
            )
        default = takes[name].default
        kind = type(default) if isinstance(default, int | str) else float
        try:
            options[name] = kind(text)
        except ValueError:
            article = "an integer" if kind is int else "a number"
            raise CommandError(f"{name} of {row.name} must be {article}; got {text!r}.") from None
    return options


def build(row: Row | None, options: Mapping[str, Any]) -> Sampler | None:
    """The sampler with these arguments; None leaves the choice to `sample`."""
    return None if row is None else row.sampler(**options)

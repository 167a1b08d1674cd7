"""Samplers by name, and the table of them."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from driftbridge.cli.errors import CommandError
from driftbridge.samplers.base import Sampler
from driftbridge.samplers.table import Row, methods


def find(name: str) -> Row:
    """The method of a name, whatever its case and hyphens: `jittered-hmc` is `JitteredHMC`.

    **Raises:** `CommandError` suggesting the nearest.
    """
    rows = {plain(row.name): row for row in methods()}
    if plain(name) in rows:
        return rows[plain(name)]
    near = difflib.get_close_matches(plain(name), rows, 1, cutoff=0.5)
    hint = f"did you mean {rows[near[0]].name}? " if near else ""
    raise CommandError(f"there is no sampler {name!r}; {hint}`driftbridge samplers` lists them.")


def plain(name: str) -> str:
    """A name without case, hyphens and underscores."""
    return name.lower().replace("-", "").replace("_", "")


def parse(row: Row, pairs: Iterable[str]) -> dict[str, Any]:
    """Arguments of a sampler from `name=value` pairs, as the type of their defaults.

    **Raises:** `CommandError` for a name it does not take, or a value that is no number.
    """
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


def build(row: Row, options: Mapping[str, Any]) -> Sampler:
    """The sampler with these arguments."""
    return row.sampler(**options)

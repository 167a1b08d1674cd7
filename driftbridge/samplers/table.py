"""What every exported sampler says of itself, as plain data for tables."""

import inspect
from dataclasses import dataclass

from driftbridge import samplers
from driftbridge.samplers.base import Facts, Sampler, Wrapper


@dataclass(frozen=True)
class Row:
    """One method: the name of its class, the class, and its `Facts`."""

    name: str
    sampler: type[Sampler]
    facts: Facts


def methods() -> tuple[Row, ...]:
    """Every sampler exported by `driftbridge.samplers`, wrappers apart.

    Adjusted methods come first, then overdamped and kinetic ones, by name within each.
    """
    found = (
        Row(name, cls, cls.facts)
        for name, cls in vars(samplers).items()
        if inspect.isclass(cls)
        and issubclass(cls, Sampler)
        and not issubclass(cls, Wrapper)
        and not inspect.isabstract(cls)
    )
    return tuple(sorted(found, key=lambda r: (not r.facts.adjusted, r.facts.kinetic, r.name)))

"""driftbridge moves probability mass: draws from densities, maps between data, compiled by JAX."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from driftbridge import samplers as samplers
from driftbridge import targets as targets
from driftbridge.loading import load as load
from driftbridge.runtime.progress import Progress as Progress
from driftbridge.runtime.store import StoreError as StoreError
from driftbridge.samplers.draws import Draws as Draws
from driftbridge.samplers.driver import SamplingError as SamplingError
from driftbridge.samplers.sample import resume as resume
from driftbridge.samplers.sample import sample as sample
from driftbridge.samplers.until import Until as Until
from driftbridge.targets.base import Target as Target
from driftbridge.targets.density import from_density as from_density
from driftbridge.targets.glm import GLM as GLM
from driftbridge.targets.numpyro import from_numpyro as from_numpyro

if TYPE_CHECKING:
    from driftbridge import transport as transport
    from driftbridge.transport.balancing import balance_weights as balance_weights
    from driftbridge.transport.base import TransportMap as TransportMap
    from driftbridge.transport.fit import fit_map as fit_map
    from driftbridge.transport.fit_path import fit_path as fit_path
    from driftbridge.transport.path import Path as Path

__version__ = version("driftbridge")

# Imported at their first use: a script that only samples spares a third of a second.
_TRANSPORT = ("TransportMap", "Path", "balance_weights", "fit_map", "fit_path")


def __getattr__(name: str) -> Any:
    if name == "transport":
        return import_module("driftbridge.transport")
    if name in _TRANSPORT:
        return getattr(import_module("driftbridge.transport"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "transport", *_TRANSPORT})

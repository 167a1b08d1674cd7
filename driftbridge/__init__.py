"""driftbridge moves probability mass: draws from densities, maps between data, compiled by JAX."""

from importlib.metadata import version

from driftbridge import samplers as samplers
from driftbridge import targets as targets
from driftbridge import transport as transport
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
from driftbridge.transport.balancing import balance_weights as balance_weights
from driftbridge.transport.base import TransportMap as TransportMap
from driftbridge.transport.fit import fit_map as fit_map
from driftbridge.transport.fit_path import fit_path as fit_path
from driftbridge.transport.path import Path as Path

__version__ = version("driftbridge")

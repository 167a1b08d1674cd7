"""Maps, couplings and distances between data sets."""

from driftbridge.transport.affine import Affine as Affine
from driftbridge.transport.base import HasDensity as HasDensity
from driftbridge.transport.base import Invertible as Invertible
from driftbridge.transport.base import Method as Method
from driftbridge.transport.base import NotSupported as NotSupported
from driftbridge.transport.base import Stochastic as Stochastic
from driftbridge.transport.base import TransportMap as TransportMap
from driftbridge.transport.comparison import Comparison as Comparison
from driftbridge.transport.comparison import compare as compare
from driftbridge.transport.entropic import Corrected as Corrected
from driftbridge.transport.entropic import Debiased as Debiased
from driftbridge.transport.entropic import Entropic as Entropic
from driftbridge.transport.entropic_plan import EntropicPlan as EntropicPlan
from driftbridge.transport.exact import OptimalCoupling as OptimalCoupling
from driftbridge.transport.exact import optimal_coupling as optimal_coupling
from driftbridge.transport.fit import fit_map as fit_map
from driftbridge.transport.progressive import Progressive as Progressive
from driftbridge.transport.saved import MapFileError as MapFileError
from driftbridge.transport.selection import Selected as Selected
from driftbridge.transport.sinkhorn import sinkhorn as sinkhorn

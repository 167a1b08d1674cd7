"""Maps, couplings and distances between data sets."""

from driftbridge.transport.affine import Affine as Affine
from driftbridge.transport.balancing import BalancedWeights as BalancedWeights
from driftbridge.transport.balancing import balance_weights as balance_weights
from driftbridge.transport.base import HasDensity as HasDensity
from driftbridge.transport.base import Invertible as Invertible
from driftbridge.transport.base import Method as Method
from driftbridge.transport.base import NotSupported as NotSupported
from driftbridge.transport.base import Stochastic as Stochastic
from driftbridge.transport.base import TransportMap as TransportMap
from driftbridge.transport.certificate import Certificate as Certificate
from driftbridge.transport.classifier import (
    classifier_two_sample_test as classifier_two_sample_test,
)
from driftbridge.transport.comparison import Comparison as Comparison
from driftbridge.transport.comparison import compare as compare
from driftbridge.transport.conditional import ConditionalOT as ConditionalOT
from driftbridge.transport.couplings import Corruption as Corruption
from driftbridge.transport.couplings import Coupling as Coupling
from driftbridge.transport.couplings import GlobalSinkhorn as GlobalSinkhorn
from driftbridge.transport.couplings import Independent as Independent
from driftbridge.transport.couplings import Paired as Paired
from driftbridge.transport.couplings import SemidiscreteCoupling as SemidiscreteCoupling
from driftbridge.transport.distances import bures_wasserstein as bures_wasserstein
from driftbridge.transport.distances import gaussian_wasserstein as gaussian_wasserstein
from driftbridge.transport.distances import sinkhorn_divergence as sinkhorn_divergence
from driftbridge.transport.distances import wasserstein as wasserstein
from driftbridge.transport.entropic import Corrected as Corrected
from driftbridge.transport.entropic import Debiased as Debiased
from driftbridge.transport.entropic import Entropic as Entropic
from driftbridge.transport.entropic_cost import entropic_cost as entropic_cost
from driftbridge.transport.entropic_plan import EntropicPlan as EntropicPlan
from driftbridge.transport.exact import OptimalCoupling as OptimalCoupling
from driftbridge.transport.exact import optimal_coupling as optimal_coupling
from driftbridge.transport.fit import fit_map as fit_map
from driftbridge.transport.goodness_of_fit import goodness_of_fit as goodness_of_fit
from driftbridge.transport.maximum_mean_discrepancy import energy_distance as energy_distance
from driftbridge.transport.maximum_mean_discrepancy import mmd as mmd
from driftbridge.transport.minibatch import MinibatchOT as MinibatchOT
from driftbridge.transport.one_dimensional import wasserstein_1d as wasserstein_1d
from driftbridge.transport.progressive import Progressive as Progressive
from driftbridge.transport.rearrangement import Rearrangement as Rearrangement
from driftbridge.transport.refinement import HierarchicalRefinement as HierarchicalRefinement
from driftbridge.transport.saved import MapFileError as MapFileError
from driftbridge.transport.selection import Selected as Selected
from driftbridge.transport.semidiscrete import semidiscrete as semidiscrete
from driftbridge.transport.semidiscrete_map import Semidiscrete as Semidiscrete
from driftbridge.transport.sinkhorn import sinkhorn as sinkhorn
from driftbridge.transport.sliced import sliced_wasserstein as sliced_wasserstein
from driftbridge.transport.triangular import Triangular as Triangular
from driftbridge.transport.unbalanced import partial_sinkhorn as partial_sinkhorn
from driftbridge.transport.unbalanced import unbalanced_sinkhorn as unbalanced_sinkhorn
from driftbridge.transport.uniform import to_uniform as to_uniform

"""Maps, couplings and distances between data sets."""

from driftbridge.runtime.training import Training as Training
from driftbridge.targets.stein import KSD as KSD
from driftbridge.transport.action_matching import ActionMatching as ActionMatching
from driftbridge.transport.affine import Affine as Affine
from driftbridge.transport.balancing import BalancedWeights as BalancedWeights
from driftbridge.transport.balancing import balance_weights as balance_weights
from driftbridge.transport.base import Dynamic as Dynamic
from driftbridge.transport.base import HasDensity as HasDensity
from driftbridge.transport.base import Invertible as Invertible
from driftbridge.transport.base import Method as Method
from driftbridge.transport.base import NotSupported as NotSupported
from driftbridge.transport.base import Stochastic as Stochastic
from driftbridge.transport.base import TransportMap as TransportMap
from driftbridge.transport.batched import sinkhorn_batch as sinkhorn_batch
from driftbridge.transport.brenier import Brenier as Brenier
from driftbridge.transport.c_rectified import CRectified as CRectified
from driftbridge.transport.certificate import Certificate as Certificate
from driftbridge.transport.chain_map import ChainMap as ChainMap
from driftbridge.transport.classifier import ClassifierTest as ClassifierTest
from driftbridge.transport.classifier import (
    classifier_two_sample_test as classifier_two_sample_test,
)
from driftbridge.transport.comparison import Comparison as Comparison
from driftbridge.transport.comparison import compare as compare
from driftbridge.transport.conditional import ConditionalOT as ConditionalOT
from driftbridge.transport.conditional_map import ConditionalMap as ConditionalMap
from driftbridge.transport.consistency import ConsistencyFlow as ConsistencyFlow
from driftbridge.transport.convex_cost import ConvexCost as ConvexCost
from driftbridge.transport.convex_cost import HalfSquare as HalfSquare
from driftbridge.transport.convex_cost import Power as Power
from driftbridge.transport.costs import half_squared_distance as half_squared_distance
from driftbridge.transport.couplings import Corruption as Corruption
from driftbridge.transport.couplings import Coupling as Coupling
from driftbridge.transport.couplings import GlobalSinkhorn as GlobalSinkhorn
from driftbridge.transport.couplings import Independent as Independent
from driftbridge.transport.couplings import Paired as Paired
from driftbridge.transport.couplings import Pooled as Pooled
from driftbridge.transport.couplings import SemidiscreteCoupling as SemidiscreteCoupling
from driftbridge.transport.curvature import MinimalCurvature as MinimalCurvature
from driftbridge.transport.data_metric import Flat as Flat
from driftbridge.transport.data_metric import Land as Land
from driftbridge.transport.data_metric import RadialBasis as RadialBasis
from driftbridge.transport.diffusion_map import DiffusionMap as DiffusionMap
from driftbridge.transport.distances import SinkhornDivergence as SinkhornDivergence
from driftbridge.transport.distances import bures_wasserstein as bures_wasserstein
from driftbridge.transport.distances import gaussian_wasserstein as gaussian_wasserstein
from driftbridge.transport.distances import sinkhorn_divergence as sinkhorn_divergence
from driftbridge.transport.distances import wasserstein as wasserstein
from driftbridge.transport.entropic import Corrected as Corrected
from driftbridge.transport.entropic import Debiased as Debiased
from driftbridge.transport.entropic import Entropic as Entropic
from driftbridge.transport.entropic_cost import entropic_cost as entropic_cost
from driftbridge.transport.entropic_cost import entropic_potentials as entropic_potentials
from driftbridge.transport.entropic_plan import EntropicPlan as EntropicPlan
from driftbridge.transport.exact import OptimalCoupling as OptimalCoupling
from driftbridge.transport.exact import optimal_coupling as optimal_coupling
from driftbridge.transport.few_step_map import FewStepMap as FewStepMap
from driftbridge.transport.fields import EmpiricalField as EmpiricalField
from driftbridge.transport.fit import fit_map as fit_map
from driftbridge.transport.fit_path import PathAction as PathAction
from driftbridge.transport.fit_path import PathFlow as PathFlow
from driftbridge.transport.fit_path import fit_path as fit_path
from driftbridge.transport.flow import Flow as Flow
from driftbridge.transport.flow_map import FlowMap as FlowMap
from driftbridge.transport.gammas import Brownian as Brownian
from driftbridge.transport.gammas import Gamma as Gamma
from driftbridge.transport.gammas import NoNoise as NoNoise
from driftbridge.transport.gammas import SineSquared as SineSquared
from driftbridge.transport.gammas import Squared as Squared
from driftbridge.transport.gaussian_fields import GaussianField as GaussianField
from driftbridge.transport.gaussian_fields import Joint as Joint
from driftbridge.transport.gaussian_fields import MixtureField as MixtureField
from driftbridge.transport.gaussian_fields import Quantities as Quantities
from driftbridge.transport.goodness_of_fit import goodness_of_fit as goodness_of_fit
from driftbridge.transport.integration import Euler as Euler
from driftbridge.transport.integration import Heun as Heun
from driftbridge.transport.integration import RungeKutta4 as RungeKutta4
from driftbridge.transport.interpolant import Interpolant as Interpolant
from driftbridge.transport.interpolant_fields import Denoiser as Denoiser
from driftbridge.transport.interpolant_fields import Score as Score
from driftbridge.transport.interpolant_map import InterpolantMap as InterpolantMap
from driftbridge.transport.interpolant_map import (
    StochasticInterpolantMap as StochasticInterpolantMap,
)
from driftbridge.transport.jko import JKO as JKO
from driftbridge.transport.jko import gradient_flow as gradient_flow
from driftbridge.transport.kinetic_optimal import KineticOptimal as KineticOptimal
from driftbridge.transport.kinetic_optimal import kinetic_optimal as kinetic_optimal
from driftbridge.transport.kinetic_optimal import (
    kinetic_optimal_gaussian as kinetic_optimal_gaussian,
)
from driftbridge.transport.marginal_path import MarginalPath as MarginalPath
from driftbridge.transport.maximum_mean_discrepancy import KernelDiscrepancy as KernelDiscrepancy
from driftbridge.transport.maximum_mean_discrepancy import energy_distance as energy_distance
from driftbridge.transport.maximum_mean_discrepancy import kernel_discrepancy as kernel_discrepancy
from driftbridge.transport.maximum_mean_discrepancy import mmd as mmd
from driftbridge.transport.metric_flow import MetricFlow as MetricFlow
from driftbridge.transport.minibatch import MinibatchOT as MinibatchOT
from driftbridge.transport.moment_matching import InductiveMomentMatching as InductiveMomentMatching
from driftbridge.transport.multimarginal import MultimarginalField as MultimarginalField
from driftbridge.transport.multimarginal import fit_multimarginal as fit_multimarginal
from driftbridge.transport.networks import MLP as MLP
from driftbridge.transport.networks import InputConvex as InputConvex
from driftbridge.transport.networks import ResidualMLP as ResidualMLP
from driftbridge.transport.one_dimensional import wasserstein_1d as wasserstein_1d
from driftbridge.transport.optimality import optimality_gap as optimality_gap
from driftbridge.transport.pairs import DataWarning as DataWarning
from driftbridge.transport.path import Path as Path
from driftbridge.transport.progressive import Progressive as Progressive
from driftbridge.transport.rearrangement import Rearrangement as Rearrangement
from driftbridge.transport.rearrangement import RearrangementMap as RearrangementMap
from driftbridge.transport.rectified import Exchanged as Exchanged
from driftbridge.transport.rectified import Generated as Generated
from driftbridge.transport.rectified import Rectified as Rectified
from driftbridge.transport.rectified import Rematched as Rematched
from driftbridge.transport.refinement import HierarchicalRefinement as HierarchicalRefinement
from driftbridge.transport.saved import MapFileError as MapFileError
from driftbridge.transport.schedules import EncodingDecoding as EncodingDecoding
from driftbridge.transport.schedules import Linear as Linear
from driftbridge.transport.schedules import Mirror as Mirror
from driftbridge.transport.schedules import OneSided as OneSided
from driftbridge.transport.schedules import OneSidedLinear as OneSidedLinear
from driftbridge.transport.schedules import OneSidedTrigonometric as OneSidedTrigonometric
from driftbridge.transport.schedules import Schedule as Schedule
from driftbridge.transport.schedules import Trigonometric as Trigonometric
from driftbridge.transport.selection import Selected as Selected
from driftbridge.transport.semidiscrete import semidiscrete as semidiscrete
from driftbridge.transport.semidiscrete_map import Semidiscrete as Semidiscrete
from driftbridge.transport.semidiscrete_map import SemidiscreteMap as SemidiscreteMap
from driftbridge.transport.simplex_curves import FourierCurve as FourierCurve
from driftbridge.transport.simplex_curves import Polyline as Polyline
from driftbridge.transport.sinkhorn import sinkhorn as sinkhorn
from driftbridge.transport.sliced import sliced_wasserstein as sliced_wasserstein
from driftbridge.transport.stochastic_integration import EulerMaruyama as EulerMaruyama
from driftbridge.transport.stochastic_integration import StochasticHeun as StochasticHeun
from driftbridge.transport.suggest_epsilon import suggest_epsilon as suggest_epsilon
from driftbridge.transport.triangular import Triangular as Triangular
from driftbridge.transport.triangular import TriangularMap as TriangularMap
from driftbridge.transport.unbalanced import UnbalancedPlan as UnbalancedPlan
from driftbridge.transport.unbalanced import partial_sinkhorn as partial_sinkhorn
from driftbridge.transport.unbalanced import unbalanced_sinkhorn as unbalanced_sinkhorn
from driftbridge.transport.unbalanced_action_matching import (
    UnbalancedActionMatching as UnbalancedActionMatching,
)
from driftbridge.transport.uniform import UniformMap as UniformMap
from driftbridge.transport.uniform import to_uniform as to_uniform
from driftbridge.transport.wasserstein_fisher_rao import wfr_diracs as wfr_diracs
from driftbridge.transport.wasserstein_fisher_rao_flow import (
    WassersteinFisherRao as WassersteinFisherRao,
)
from driftbridge.transport.weighted_flow_map import WeightedFlowMap as WeightedFlowMap

"""What to sample: densities, regressions, models, and a zoo with known truth."""

from driftbridge.targets.base import Observations as Observations, Target as Target, Truth as Truth
from driftbridge.targets.batching import batched_score as batched_score
from driftbridge.targets.softplus import log_sigmoid as log_sigmoid, softplus as softplus

"""NumPyro's constraints as ours, and the one context in which NumPyro is called."""

import contextlib
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp

from driftbridge.targets.constraints import Constraint


@contextlib.contextmanager
def permitting(action: Literal["ignore", "default"] = "ignore"):
    """NumPyro, imported here, allowed what it does: rank promotion, and warnings by `action`.

    A density is traced many times, so warnings are shown once, when the target is made.
    """
    import numpyro
    import numpyro.infer.util

    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter(action)
        yield numpyro


class NumPyroConstraint(Constraint):
    """A constraint of `numpyro.distributions.constraints` with its registered bijection."""

    constraint: Any

    def __init__(self, constraint: Any):
        # An integer bound would be traced as an integer.
        self.constraint = jax.tree.map(lambda v: float(v) if isinstance(v, int) else v, constraint)

    def __repr__(self):
        return repr(self.constraint)

    def _transform(self, numpyro):
        return numpyro.distributions.biject_to(self.constraint)

    def forward(self, z):
        with permitting() as numpyro:
            return self._transform(numpyro)(z)

    def inverse(self, x):
        with permitting() as numpyro:
            return self._transform(numpyro).inv(x)

    def log_det(self, z):
        with permitting() as numpyro:
            transform = self._transform(numpyro)
            return jnp.sum(transform.log_abs_det_jacobian(z, transform(z)))

    def unconstrained_shape(self, shape):
        with permitting() as numpyro:
            return self._transform(numpyro).inverse_shape(shape)

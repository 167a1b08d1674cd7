"""NumPyro's constraints as ours, and the one context in which NumPyro is called."""

import contextlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from driftbridge.runtime.dtypes import cast_floating
from driftbridge.targets.constraints import Constraint


@contextlib.contextmanager
def permitting(dtype=None, *, checking: bool = False):
    """NumPyro, imported here, allowed what it does: rank promotion, warnings, default dtypes.

    NumPyro makes arrays of the default dtype inside its formulas; with a `dtype` of 32 bits the
    default is 32 bits here, whatever it is outside. With `checking` NumPyro validates the constants
    of a model and its warnings are shown: once, when a target is made, not at every trace.
    """
    import numpyro
    import numpyro.infer.util

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default" if checking else "ignore")
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(numpyro.validation_enabled(checking))
        if dtype is not None:
            stack.enter_context(jax.enable_x64(dtype == jnp.float64))
        yield numpyro


class NumPyroConstraint(Constraint):
    """A constraint of `numpyro.distributions.constraints` with its registered bijection."""

    constraint: Any

    def __init__(self, constraint: Any):
        # An integer bound would be traced as an integer.
        self.constraint = jax.tree.map(lambda v: float(v) if isinstance(v, int) else v, constraint)

    def __repr__(self):
        return repr(self.constraint)

    def _transform(self, numpyro, like):
        return numpyro.distributions.biject_to(cast_floating(self.constraint, like.dtype))

    def forward(self, z):
        with permitting(z.dtype) as numpyro:
            return self._transform(numpyro, z)(z)

    def inverse(self, x):
        with permitting(x.dtype) as numpyro:
            return self._transform(numpyro, x).inv(x)

    def log_det(self, z):
        with permitting(z.dtype) as numpyro:
            transform = self._transform(numpyro, z)
            return jnp.sum(transform.log_abs_det_jacobian(z, transform(z)))

    def unconstrained_shape(self, shape):
        with permitting() as numpyro:
            return numpyro.distributions.biject_to(self.constraint).inverse_shape(shape)

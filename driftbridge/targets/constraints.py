"""Bijections from unconstrained arrays to constrained sets, with their log Jacobians."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from driftbridge.targets.softplus import sigmoid, softplus


class Constraint(eqx.Module):
    """A smooth bijection `x = forward(z)` from unconstrained arrays to a constrained set.

    It acts on arrays of any shape, entry by entry (`positive`) or on vectors along the last axis
    (`simplex`). A subclass supplies

    - `forward(z)` and its inverse `inverse(x)`;
    - `log_det(z)`: `log|det dx/dz|`, summed over all entries;
    - `unconstrained_shape(shape)`, where `z` and `x` differ in shape.
    """

    @abc.abstractmethod
    def forward(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The constrained value."""

    @abc.abstractmethod
    def inverse(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The unconstrained coordinates of a value inside the set.

        For a value outside or on the boundary the result is not finite, or does not lead back.
        """

    @abc.abstractmethod
    def log_det(self, z: Float[Array, "..."]) -> Float[Array, ""]:
        """`log|det dx/dz|` at `z`."""

    def unconstrained_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of `z` for an `x` of `shape`."""
        return shape


class Real(Constraint):
    """`x = z`."""

    def forward(self, z):
        return z

    def inverse(self, x):
        return x

    def log_det(self, z):
        return jnp.zeros((), z.dtype)


class GreaterThan(Constraint):
    """`x = lower + exp(z)`."""

    lower: Float[Array, "..."] | float

    def forward(self, z):
        lower = jnp.asarray(self.lower, z.dtype)
        return jnp.maximum(lower + jnp.exp(z), _next_above(lower))

    def inverse(self, x):
        return jnp.log(x - jnp.asarray(self.lower, x.dtype))

    def log_det(self, z):
        return jnp.sum(z)


class LessThan(Constraint):
    """`x = upper - exp(z)`."""

    upper: Float[Array, "..."] | float

    def forward(self, z):
        upper = jnp.asarray(self.upper, z.dtype)
        return jnp.minimum(upper - jnp.exp(z), -_next_above(-upper))

    def inverse(self, x):
        return jnp.log(jnp.asarray(self.upper, x.dtype) - x)

    def log_det(self, z):
        return jnp.sum(z)


class Interval(Constraint):
    """`x = lower + (upper - lower) sigmoid(z)`."""

    lower: Float[Array, "..."] | float
    upper: Float[Array, "..."] | float

    def _bounds(self, dtype):
        return jnp.asarray(self.lower, dtype), jnp.asarray(self.upper, dtype)

    def forward(self, z):
        lower, upper = self._bounds(z.dtype)
        # Measured from the nearer end, so that neither end loses relative precision.
        x = jnp.where(
            z < 0, lower + (upper - lower) * sigmoid(z), upper - (upper - lower) * sigmoid(-z)
        )
        return jnp.clip(x, _next_above(lower), -_next_above(-upper))

    def inverse(self, x):
        lower, upper = self._bounds(x.dtype)
        return jnp.log(x - lower) - jnp.log(upper - x)

    def log_det(self, z):
        lower, upper = self._bounds(z.dtype)
        return jnp.sum(jnp.log(upper - lower) - softplus(z) - softplus(-z))


class Simplex(Constraint):
    """`x = softmax(V z)` along the last axis, `k - 1` coordinates for `k` entries.

    `V` has orthonormal columns that sum to zero (the isometric log-ratio coordinates of Egozcue et
    al. 2003, eq. 15 up to the choice of basis): a reflection that takes the last axis to the
    diagonal. The origin is the centre, a Dirichlet density is log-concave in `z`, and
    `log|det| = log(k) / 2 + sum(log x)` for the first `k - 1` entries of `x`.
    """

    def _log_forward(self, z):
        k = z.shape[-1] + 1
        total = jnp.sum(z, axis=-1, keepdims=True)
        head = z - total / (k - math.sqrt(k))
        return jax.nn.log_softmax(jnp.concatenate([head, total / math.sqrt(k)], axis=-1))

    def forward(self, z):
        return jnp.maximum(jnp.exp(self._log_forward(z)), jnp.finfo(z.dtype).tiny)

    def inverse(self, x):
        log_ratio = jnp.log(x) - jnp.mean(jnp.log(x), axis=-1, keepdims=True)
        return log_ratio[..., :-1] + log_ratio[..., -1:] / (math.sqrt(x.shape[-1]) - 1)

    def log_det(self, z):
        vectors = math.prod(z.shape[:-1])
        return jnp.sum(self._log_forward(z)) + vectors * math.log(z.shape[-1] + 1) / 2

    def unconstrained_shape(self, shape):
        if not shape or shape[-1] < 2:
            raise ValueError(f"a simplex needs a last axis of at least 2 entries; got {shape}.")
        return (*shape[:-1], shape[-1] - 1)


class Ordered(Constraint):
    """`x[0] = z[0]`, `x[i] = x[i-1] + exp(z[i])` along the last axis: increasing vectors."""

    def forward(self, z):
        steps = jnp.concatenate([z[..., :1], jnp.exp(z[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1)

    def inverse(self, x):
        return jnp.concatenate([x[..., :1], jnp.log(jnp.diff(x, axis=-1))], axis=-1)

    def log_det(self, z):
        return jnp.sum(z[..., 1:])

    def unconstrained_shape(self, shape):
        if not shape or shape[-1] < 1:
            raise ValueError(f"an ordered vector needs a last axis; got shape {shape}.")
        return shape


real = Real()
positive = GreaterThan(0.0)
unit_interval = Interval(0.0, 1.0)
simplex = Simplex()
ordered = Ordered()


def greater_than(lower: ArrayLike) -> GreaterThan:
    """Values above `lower`: a number, or an array of the shape of the values."""
    return GreaterThan(_bound("lower", lower))


def less_than(upper: ArrayLike) -> LessThan:
    """Values below `upper`: a number, or an array of the shape of the values."""
    return LessThan(_bound("upper", upper))


def interval(lower: ArrayLike, upper: ArrayLike) -> Interval:
    """Values between `lower` and `upper`: numbers, or arrays of the shape of the values."""
    bounds = _bound("lower", lower), _bound("upper", upper)
    concrete = [np.asarray(b) for b in bounds if not isinstance(b, Tracer)]
    if len(concrete) == 2 and not np.all(concrete[0] < concrete[1]):
        raise ValueError(f"lower must be below upper; got lower={lower} and upper={upper}.")
    return Interval(*bounds)


def _bound(name, value):
    """A bound as a floating leaf; finite where it is known."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    array = np.asarray(value, float)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite; got {value}.")
    return float(array) if array.ndim == 0 else jax.device_put(array)


def _next_above(bound):
    """The least number above `bound` that the processor does not flush to it.

    Values stay strictly inside the set, so that a density of the user's with a logarithm there
    stays finite where `exp` or `sigmoid` rounds to the boundary.
    """
    bound = jax.lax.stop_gradient(bound)
    tiny = jnp.finfo(bound.dtype).tiny
    return jnp.maximum(jnp.nextafter(bound, jnp.asarray(jnp.inf, bound.dtype)), bound + tiny)

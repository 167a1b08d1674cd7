"""What every map between data sets can do, and the types of what only some can."""

import abc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key
from driftbridge.runtime.training import Curve
from driftbridge.transport.account import Account
from driftbridge.transport.points import Sample, as_rows, like_rows, traced
from driftbridge.transport.streaming import streamed

if TYPE_CHECKING:
    from driftbridge.transport.report import MapReport

_SMOOTH = "affine, corrected, brenier, rearrangement and triangular maps and flows"
CAPABILITIES = {
    "inverse": _SMOOTH,
    "log_det": _SMOOTH,
    "log_prob": _SMOOTH,
    "velocity": "flows",
    "trajectory": "flows",
    "sample": "entropic and semidiscrete maps, interpolants and action maps with epsilon",
    "score": "interpolants",
    "sample_backward": "interpolants",
    "growth": "unbalanced maps",
    "log_weights": "unbalanced maps",
    "resampled": "unbalanced maps",
}


# One time for all points of a batch, or one for each.
Times = Float[Array, ""] | Float[Array, " n"]


class NotSupported(AttributeError):
    """A map was asked for what maps of its method cannot do."""


@dataclass(frozen=True, eq=False)
class Fit(Account):
    """How a map came about; no number that the map computes depends on it.

    - `method`, `reason`: the name of the method, and why it was taken.
    - `num_source`, `num_target`: points that it was fitted to.
    - `converged`: whether every solver reached its tolerance.
    - `messages`: what a user must know about the data or the solvers, a sentence each.
    - `columns`: names of the coordinates, None for arrays.
    - `numbers`: what the method chose or reached, by name.
    - `curves`: losses of its trainings, by name, in order.
    - `seconds`: wall time.
    """

    method: str
    reason: str = ""
    num_source: int = 0
    num_target: int = 0
    converged: bool = True
    messages: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    numbers: tuple[tuple[str, float | int | str], ...] = ()
    curves: tuple[tuple[str, Curve], ...] = ()
    seconds: float = 0.0


class Cost(NamedTuple):
    """The mean squared distance that points are moved by, and its standard error."""

    mean: float
    error: float


class TransportMap(eqx.Module):
    """A map from a source law to a target law, fitted to samples of both.

    A method implements `_transport`, a pure function of a batch of points. Points go in as arrays
    or data frames and come out as what they were; any number of rows is taken in blocks, at memory
    that does not grow with them. Inside `jit` and `vmap` a map is a function of arrays.

    **Attributes:** `fit`, how it was fitted; `dim`, the dimension of the points; `dtype`, in which
    the map computes: float64 where source and target were.
    """

    fit: Fit = eqx.field(static=True)

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension of the points."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The floating dtype in which the map computes."""

    @property
    def row_floats(self) -> int:
        """Numbers that applying the map holds for each row: bounds the size of a block."""
        return 4 * self.dim

    @abc.abstractmethod
    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Images of a batch of points."""

    def __call__(self, x: Any) -> Any:
        """The image `T(x)`.

        **Arguments:** `x`: points `(n, dim)`, one point `(dim,)`, or a data frame with the columns
        of the fit.

        **Returns:** the same kind of object, of the same shape and of its dtype (float64 becomes
        float32 where x64 is off).

        **Raises:** `ValueError` for another dimension, other columns, or a value that is not
        finite (its row is named).
        """
        return self._of_rows("_transport", x)

    def cost(self, x: Any) -> Cost:
        """The mean of `|T(x) - x|^2` over points: `W2^2` between them and their images, if `T` is
        optimal.

        **Arguments:** `x`: points `(n, dim)` or a data frame.
        """
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        if rows.size == 0:
            raise ValueError("x has no rows, so there is no cost.")
        moved = np.asarray(self(rows), np.float64) - np.asarray(rows, np.float64)
        squares = np.sum(moved.reshape(-1, self.dim) ** 2, axis=1)
        error = np.std(squares, ddof=1) / np.sqrt(len(squares)) if len(squares) > 1 else np.inf
        return Cost(float(squares.mean()), float(error))

    def report(self, x: Any, y: Any, key: int | Key[Array, ""] = 0) -> "MapReport":
        """What the map does to points it has not seen: see `MapReport`.

        **Arguments:** `x`, `y`: test points of source and target; `key`: for subsamples and
        permutations.
        """
        from driftbridge.transport.report import report

        return report(self, x, y, key)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the map to one file of arrays with a JSON header; `driftbridge.load` reads it."""
        from driftbridge.transport.saved import save

        return save(self, path)

    @property
    def is_invertible(self) -> bool:
        return isinstance(self, Invertible)

    def _of_rows(
        self, method: str, x: Any, *shared: Any, static: tuple = (), name: str = "x"
    ) -> Any:
        """`getattr(self, method)` of a batch, applied to whatever kind of rows `x` is."""
        rows = as_rows(x, name, self.dim, self.fit.columns)
        batch = rows if rows.ndim > 1 else rows[None]
        out = streamed(self, method, batch, shared, static)
        return like_rows(out if rows.ndim > 1 else out[0], x, self.fit.columns)

    def _at_times(self, method: str, t: Any, x: Any) -> Any:
        """`getattr(self, method)` of points at a time in [0, 1], or at one for each of them."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        batch = rows if rows.ndim > 1 else rows[None]
        if not (traced(t) or traced(rows)):
            check_times(t)
        found = _looked_at(self, method, *(jnp.asarray(a, self.dtype) for a in (batch, t)))
        return like_rows(found if rows.ndim > 1 else found[0], x, self.fit.columns)

    def __getattr__(self, name: str) -> Any:
        if name in CAPABILITIES:
            raise NotSupported(
                f"{type(self).__name__} has no {name}; {CAPABILITIES[name]} have one."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


@eqx.filter_jit
def _looked_at(transport: TransportMap, method: str, x: Array, t: Array) -> Array:
    return getattr(transport, method)(x, t)


class Learned(TransportMap):
    """A map of which a module is the substance. A subclass has a field `like`, any point."""

    @property
    def dim(self) -> int:
        return self.like.shape[0]

    @property
    def dtype(self) -> Any:
        return self.like.dtype

    @property
    def row_floats(self) -> int:
        return 64 * max(self.dim, 16)


class Invertible(TransportMap):
    """A map with an inverse."""

    @abc.abstractmethod
    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Points whose images are given."""

    def inverse(self, y: Any) -> Any:
        """The point whose image is `y`; kinds and shapes as in a call of the map.

        **Raises:** `ValueError` where the numbers do not reach a point, naming the row.
        """
        return self._reached(self._of_rows("_inverse", y, name="y"))

    def _reached(self, found: Any) -> Any:
        """Points that an inverse found, if it found all."""
        if not traced(found):
            values = np.asarray(found)
            lost = ~np.isfinite(values.reshape(-1, self.dim)).all(axis=1)
            if lost.any():
                raise ValueError(
                    f"no point was found whose image is row {int(np.argmax(lost))} of y "
                    f"({int(lost.sum())} rows in all); in float64 more can be inverted."
                )
        return found


class HasDensity(Invertible):
    """A map with a Jacobian determinant, so that it carries densities."""

    @abc.abstractmethod
    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """`log |det dT/dx|` at a batch of points."""

    def log_det(self, x: Any) -> Any:
        """`log |det dT/dx|` at points `(n, dim)`: shape `(n,)`."""
        return self._of_rows("_log_det", as_rows(x, "x", self.dim, self.fit.columns))

    def log_prob(self, y: Any, base: Any) -> Any:
        """Log density at `y` of the law to which `T` carries `base`.

        `log p1(y) = log p0(x) - log |det dT/dx|`, `x = T^{-1}(y)`.

        **Arguments:**

        - `y`: points `(n, dim)`.
        - `base`: log density of the source, a function of points `(n, dim)` that returns `(n,)`.

        **Returns:** `(n,)`.
        """
        x = self.inverse(as_rows(y, "y", self.dim, self.fit.columns))
        return base(x) - self.log_det(x)


class Stochastic(TransportMap):
    """A coupling with a conditional law that can be drawn from; the map is its mean."""

    @abc.abstractmethod
    def _sample(
        self, x: Float[Array, "n dim"], key: Key[Array, ""], n: int
    ) -> Float[Array, "n draws dim"]:
        """Draws of the target given each point of a batch."""

    def sample(self, key: int | Key[Array, ""], x: Any, n: int = 1) -> Any:
        """`n` draws of the target given each point: `(points, n, dim)`."""
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        return self._of_rows("_sample", np.atleast_2d(rows), as_key(key), static=(n,))


class Dynamic(TransportMap):
    """A map by a flow: `T(x)` is where `dx/dt = v(t, x)` carries `x` from time 0 to 1."""

    @abc.abstractmethod
    def _velocity(self, x: Float[Array, "n dim"], t: Times) -> Float[Array, "n dim"]:
        """Velocities of a batch of points."""

    @abc.abstractmethod
    def _trajectory(
        self, x: Float[Array, "n dim"], times: tuple[float, ...]
    ) -> Float[Array, "n times dim"]:
        """Places at times of points that start at time 0."""

    def velocity(self, t: Any, x: Any) -> Any:
        """The velocity `v(t, x)`.

        **Arguments:** `t`: a time in [0, 1], or one for each point; `x`: points `(n, dim)`.

        **Raises:** `ValueError` for times outside [0, 1].
        """
        return self._at_times("_velocity", t, x)

    def trajectory(self, x: Any, times: Any) -> Float[Array, "times n dim"]:
        """Where points of the source are at given times.

        **Arguments:** `x`: points `(n, dim)`; `times`: increasing, in [0, 1].

        **Returns:** `(times, n, dim)`.
        """
        times = check_times(times)
        if np.any(np.diff(times) < 0):
            raise ValueError(f"times must increase; got {times.tolist()}.")
        rows = as_rows(x, "x", self.dim, self.fit.columns)
        found = self._of_rows("_trajectory", np.atleast_2d(rows), static=(tuple(times.tolist()),))
        return jax.device_put(np.moveaxis(np.asarray(found), 1, 0))


class Method(eqx.Module):
    """A way to fit a map: an object of settings."""

    name: ClassVar[str]
    takes_condition: ClassVar[bool] = False

    @abc.abstractmethod
    def fit(self, source: Sample, target: Sample, key: Key[Array, ""]) -> TransportMap:
        """Fit a map from source to target; both have been checked."""


def check_times(times: Any) -> np.ndarray:
    """Times as an array, all in [0, 1]."""
    values = np.atleast_1d(np.asarray(times, np.float64))
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(f"times must lie in [0, 1]; got {values[outside][0]}.")
    return values


def as_dtype(value: Any, dtype: Any) -> Array:
    """A float64 number of the host as an array in which a map computes.

    `device_put` compiles nothing, where `jnp.asarray` compiles a program for every shape.
    """
    return jax.device_put(np.asarray(value, dtype))

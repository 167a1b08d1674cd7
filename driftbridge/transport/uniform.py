"""Maps of a sample to the uniform law on the cube, one coordinate after another."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp, ndtr
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import Fit, HasDensity, as_dtype
from driftbridge.transport.padding import bucket, padded
from driftbridge.transport.points import Sample, as_rows, as_weights, columns_of
from driftbridge.transport.rearrangement import Monotone, num_knots, rearranged

METHODS = ("kernel", "gaussian", "rank")
# Bandwidths among which the one of largest likelihood is taken, on at most so many points.
WIDTHS = (0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.8)
CHOOSING = 1000
# Points whose discrepancy is reported.
JUDGED = 2000
# Normal scores that stand for the normal law.
SCORES = 4096
# A value of more than this share of a column is an atom: no map makes it uniform.
ATOM = 0.1
# Scores lie within; halvings to the rounding of float64.
FURTHEST, HALVINGS = 16.0, 55


class UniformMap(HasDensity):
    """`U_k(x) = F_k(x_k | x_1 ... x_{k-1})`: uniform on the cube if `x` is from the fitted law.

    The law is a kernel estimate in the coordinates in which every column is normal and they are
    uncorrelated; its density at `x` is `exp(log_det(x))`.

    - `marginals`: normal scores of the columns, functions with leaves `(dim, ...)`.
    - `factor`: lower triangular; scores are `factor z` with uncorrelated `z`.
    - `centres`: of the normal kernels, `(dim, n)`; `log_weights`: minus infinity for padding.
    - `width`: of the kernels; 1 with one centre at zero is the normal law.
    """

    marginals: Monotone
    factor: Float[Array, "dim dim"]
    centres: Float[Array, "dim n"]
    log_weights: Float[Array, " n"]
    width: Float[Array, ""]

    @property
    def dim(self) -> int:
        return self.factor.shape[0]

    @property
    def dtype(self) -> Any:
        return self.factor.dtype

    @property
    def row_floats(self) -> int:
        return 4 * self.centres.shape[1]

    def _transport(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        def coordinate(log_weights, inputs):
            t, centres = inputs
            u = self._conditional(log_weights, centres, t)
            return self._given(log_weights, centres, t), u

        _, u = jax.lax.scan(coordinate, self._start(x), (self._whitened(x).T, self.centres))
        return u.T

    def _inverse(self, y: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        def coordinate(log_weights, inputs):
            u, centres = inputs

            def halve(_, ends):
                middle = (ends[0] + ends[1]) / 2
                is_below = self._conditional(log_weights, centres, middle) < u
                return jnp.where(is_below, middle, ends[0]), jnp.where(is_below, ends[1], middle)

            far = jnp.full_like(u, FURTHEST)
            low, high = jax.lax.fori_loop(0, HALVINGS, halve, (-far, far))
            t = (low + high) / 2
            return self._given(log_weights, centres, t), t

        _, z = jax.lax.scan(coordinate, self._start(y), (y.T, self.centres))
        return jax.vmap(lambda f, s: f.inverse(s))(self.marginals, product(self.factor, z)).T

    def _log_det(self, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        def coordinate(log_weights, inputs):
            t, centres = inputs
            return self._given(log_weights, centres, t), None

        start = self._start(x)
        total, _ = jax.lax.scan(coordinate, start, (self._whitened(x).T, self.centres))
        norm = self.dim * (jnp.log(self.width) + np.log(2 * np.pi) / 2)
        slopes = jax.vmap(lambda f, t: f.log_slope(t))(self.marginals, x.T)
        outer = jnp.sum(slopes, axis=0) - jnp.sum(jnp.log(jnp.diag(self.factor)))
        return logsumexp(total, axis=1) - norm + outer

    def _whitened(self, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        scores = jax.vmap(lambda f, t: f(t))(self.marginals, x.T)
        return solve_triangular(self.factor, scores, lower=True).T

    def _start(self, x: Float[Array, "n dim"]) -> Float[Array, "n centres"]:
        return jnp.broadcast_to(self.log_weights[None], (x.shape[0], self.log_weights.shape[0]))

    def _conditional(self, log_weights, centres, t: Float[Array, " n"]) -> Float[Array, " n"]:
        weights = jax.nn.softmax(log_weights, axis=1)
        return jnp.sum(weights * ndtr((t[:, None] - centres[None]) / self.width), axis=1)

    def _given(self, log_weights, centres, t: Float[Array, " n"]) -> Float[Array, "n centres"]:
        return log_weights - ((t[:, None] - centres[None]) / self.width) ** 2 / 2


def to_uniform(x: Any, method: str = "kernel", *, weights: Any = None) -> UniformMap:
    """Fit a map that makes a sample uniform on the cube, as kernel U-statistics ask of covariates.

    First every column is carried to a normal one, from quantile to quantile. Then

    - "rank" stops: each coordinate is uniform, their dependence is kept (a copula);
    - "gaussian" removes correlations by a triangular matrix: uniform on the cube for a Gaussian
      copula;
    - "kernel" takes the conditional distribution functions of a kernel estimate of what is left
      (Rosenblatt's transform), with the bandwidth of the largest likelihood of each point given the
      others. It falls back to "gaussian" where no bandwidth has a larger one, and says so in
      `fit.reason`.

    Each ends with the normal distribution function or its estimate. Only "rank" does not depend on
    the order of the columns.

    `fit.numbers` has the squared centred discrepancy of the image of (at most 2000 of) the points,
    and `floor`, its mean `((5/4)^dim - (13/12)^dim) / n` for independent uniform points.

    **Arguments:**

    - `x`: points `(n, dim)` or a data frame, at least 10.
    - `method`: one of the names above.
    - `weights`: `(n,)`, of sum one, for a sample that is balanced; equal if None.

    **Returns:** a `UniformMap`: call it, invert it, save it.

    **Raises:** `ValueError` for arguments outside their range, and for a column in which one value
    makes up more than a tenth: it cannot be made uniform.

    Rosenblatt (1952), Annals of Mathematical Statistics 23; discrepancy: Hickernell (1998),
    Mathematics of Computation 67, equation (3.1).
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    names = columns_of(x)
    points = np.asarray(as_rows(x, "x"))
    if points.ndim != 2 or len(points) < 10:
        raise ValueError(f"x must have shape (n, dim) with n at least 10; got {points.shape}.")
    dtype = np.result_type(jax.dtypes.canonicalize_dtype(points.dtype), np.float32)
    sample = Sample(points.astype(dtype), as_weights(weights, len(points), "x"))
    _check_atoms(sample, names)
    marginals, scores = _normal_scores(sample)
    factor, z = _uncorrelated(scores, sample.weights, method)
    centres, log_weights, width, reason = _kernels(z, sample.weights, method)
    size = bucket(len(centres))
    fitted = UniformMap(
        Fit(method),
        marginals,
        as_dtype(factor, dtype),
        as_dtype(padded(centres, size).T, dtype),
        as_dtype(padded(log_weights, size, -np.inf), dtype),
        as_dtype(width, dtype),
    )
    numbers = (("width", float(width)), *_judged(fitted, sample))
    fit = Fit(
        method,
        reason,
        num_source=len(points),
        columns=names,
        numbers=numbers,
        seconds=time.perf_counter() - start,
    )
    return UniformMap(
        fit, marginals, fitted.factor, fitted.centres, fitted.log_weights, fitted.width
    )


def _check_atoms(sample: Sample, names) -> None:
    for k, column in enumerate(sample.points.T):
        values, group = np.unique(column, return_inverse=True)
        mass = np.bincount(group, weights=sample.weights)
        if mass.max() > ATOM:
            label = f"column {k}" if names is None else names[k]
            raise ValueError(
                f"{label} has the value {values[np.argmax(mass)]} at {mass.max():.0%} of the "
                "points: no map makes it uniform. Condition on it, or leave it out."
            )


def _normal_scores(sample: Sample) -> tuple[Monotone, Float[np.ndarray, "n dim"]]:
    """Functions to normal scores, stacked, and the scores."""
    from scipy.special import ndtri

    normal = ndtri((np.arange(SCORES) + 0.5) / SCORES).astype(sample.points.dtype)
    even = np.full(SCORES, 1 / SCORES)
    count = num_knots(sample, Sample(normal[:, None], even))
    functions = [
        rearranged(column, normal, sample.weights, even, count) for column in sample.points.T
    ]
    stacked = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *functions)
    scores = _evaluated(stacked, sample.points)
    return stacked, np.asarray(scores, np.float64)


@jax.jit
def _evaluated(functions: Monotone, points):
    return jax.vmap(lambda f, t: f(t))(functions, points.T).T


def _uncorrelated(scores, weights, method: str):
    """The factor of the correlations of the scores, and what it leaves."""
    dim = scores.shape[1]
    if method == "rank":
        return np.eye(dim), scores
    correlation = (scores * weights[:, None]).T @ scores
    scale = np.sqrt(np.diag(correlation))
    correlation = correlation / np.outer(scale, scale)
    values = np.linalg.eigvalsh(correlation)
    if values[0] < 1e-6 * values[-1]:
        raise ValueError(
            "the columns are linearly dependent: their correlations have the least eigenvalue "
            f"{values[0]:.2g}. Leave out columns that follow from the others."
        )
    factor = np.linalg.cholesky(correlation)
    return factor, np.linalg.solve(factor, scores.T).T


def _kernels(z, weights, method: str):
    """Centres, log weights and width of the kernel estimate, and why this one."""
    n, dim = z.shape
    normal = np.zeros((1, dim)), np.zeros(1), 1.0
    if method != "kernel":
        return *normal, "asked for"
    kept = np.flatnonzero(weights)
    rows = kept[np.unique(np.linspace(0, len(kept) - 1, CHOOSING).astype(int))]
    part, share = z[rows], weights[rows] / weights[rows].sum()
    likelihoods = [_likelihood(part, share, width) for width in WIDTHS]
    reference = share @ (-np.sum(part**2, axis=1) / 2) - dim * np.log(2 * np.pi) / 2
    best = int(np.argmax(likelihoods))
    if likelihoods[best] <= reference:
        return *normal, "no kernel estimate is likelier than the normal law"
    # The best width falls with the number of points at the rate of a kernel estimate.
    effective = (1 / np.sum(share**2)) * np.sum(weights**2)
    width = WIDTHS[best] * min(effective ** (1 / (dim + 4)), 1.0)
    log_weights = np.log(weights, out=np.full(n, -np.inf), where=weights > 0)
    return np.sqrt(1 - width**2) * z, log_weights, width, f"likeliest at width {WIDTHS[best]:g}"


def _likelihood(z, weights, width: float) -> float:
    """Mean log density of each point in the kernel estimate of the others.

    Centres are drawn in so that the estimate keeps the covariance of the points.
    """
    from scipy.special import logsumexp

    squares = np.sum(z**2, axis=1)
    shrink = 1 - width**2
    q = squares[:, None] + shrink * squares[None] - 2 * np.sqrt(shrink) * (z @ z.T)
    exponents = np.log(weights)[None] - q / (2 * width**2)
    np.fill_diagonal(exponents, -np.inf)
    density = logsumexp(exponents, axis=1) - np.log1p(-weights)
    return float(weights @ density - z.shape[1] * np.log(width * np.sqrt(2 * np.pi)))


def _judged(fitted: UniformMap, sample: Sample) -> tuple[tuple[str, float], ...]:
    """Discrepancy of the image and its floor; none for weighted points."""
    if np.ptp(sample.weights) > 0:
        return ()
    from scipy.stats.qmc import discrepancy

    n, dim = sample.points.shape
    rows = np.unique(np.linspace(0, n - 1, JUDGED).astype(int))
    image = np.clip(np.asarray(fitted(sample.points[rows]), np.float64), 0, 1)
    floor = ((5 / 4) ** dim - (13 / 12) ** dim) / len(rows)
    return ("discrepancy", float(discrepancy(image))), ("floor", float(floor))

"""One-sided paths of least kinetic energy, by a quadrature.

On a path `x_t = m z + a x1` with `(m, a) = r (cos theta, sin theta)` the energy of the flow, a
coordinate, is `int r'^2 + r^2 theta'^2 g(theta) dt` with
`g(theta) = 1 - (1 - lambda(tan theta)) / cos^2 theta` and
`lambda(s) = E |E[x1 | x1 + z / s]|^2 / dim`. In the angle `phi = int_0^theta sqrt(g)` these are
polar coordinates of the plane, where the least energy between two points is that of the chord.

Shaul, Chen, Nickel, Le and Lipman (2023), arXiv 2306.06626, section 3, who descend a gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.runtime.keys import as_key, host_generator
from driftbridge.runtime.products import product
from driftbridge.transport.base import as_dtype
from driftbridge.transport.points import as_weights
from driftbridge.transport.resampling import as_table
from driftbridge.transport.schedules import OneSided, Time

# Angles of the quadrature, and of `lambda` from samples, between which it is interpolated.
KNOTS, ANGLES = 513, 48
# Least `g`: where data are as a standard normal there is nothing to gain, and no angle to invert.
LEAST = 1e-8
# Least `g` for a sample: its root bounds the rates of the coefficients, which else grow near the
# ends so that no velocity can be learned there. The flat angle grows by at most .05 of pi / 2.
LEAST_OF_SAMPLE = 0.0025
# Draws of data and noise, most points they are compared with, and draws of a block.
DRAWS, MOST_POINTS, BLOCK = 2048, 4096, 256


class KineticOptimal(OneSided):
    """The one-sided path of least kinetic energy for data of a given `lambda`.

    `r_t^2 = 1 - k t + k t^2` and `tan phi_t = t sin Phi / (1 - t + t cos Phi)`, `Phi` the whole
    angle and `k = 2 (1 - cos Phi)` the least energy of a coordinate. Data of mean 0 with
    `E |x1|^2 = dim` have `0 <= g <= 1`: least where they are Gaussian of their covariance.

    Its coefficients start about as the root of `t`, so that their rates are large near the ends.

    **Arguments:** `reach`: `lambda(s)`, a function of an array of `s >= 0` that returns as many
    numbers, on the host. `kinetic_optimal` makes one from data.

    **Raises:** `ValueError` for a `lambda` outside `[0, 1]`.
    """

    angles: Float[Array, " knots"]
    flat: Float[Array, " knots"]
    slopes: Float[Array, " knots"]

    def __init__(self, reach: Callable[[np.ndarray], np.ndarray]):
        # Knots are denser at both ends, where `g` often vanishes; Gauss's two points lie inside,
        # where neither end's 0 / 0 is met.
        theta = np.pi / 2 * np.sin(np.pi / 2 * np.linspace(0, 1, KNOTS)) ** 2
        middle, half = (theta[1:] + theta[:-1]) / 2, np.diff(theta) / 2
        inside = middle + np.array([[-1.0], [1.0]]) * half / np.sqrt(3)
        values = np.asarray(reach(np.tan(inside.ravel())), np.float64).reshape(inside.shape)
        wrong = ~((values > -1e-6) & (values < 1 + 1e-6))
        if wrong.any():
            raise ValueError(
                "lambda must lie in [0, 1], as of data of mean 0 with E |x|^2 = dim; it takes the "
                f"value {values[wrong][0]:.3g}."
            )
        root = np.sqrt(np.clip(1 - (1 - values) / np.cos(inside) ** 2, LEAST, 1))
        flat = np.concatenate([[0.0], np.cumsum(root.sum(axis=0) * half)])
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        flat = _increasing(flat.astype(dtype))
        self.angles, self.flat = as_dtype(theta, dtype), as_dtype(flat, dtype)
        self.slopes = as_dtype(_monotone_slopes(flat, theta), dtype)

    @property
    def energy(self) -> Float[Array, ""]:
        """The least kinetic energy of a coordinate, `2 (1 - cos Phi)`."""
        return 2 * (1 - jnp.cos(self.flat[-1]))

    def alpha(self, t: Time) -> Time:
        at = t.astype(self.flat.dtype)
        return (self._radius(at) * jnp.cos(self._angle(at))).astype(t.dtype)

    def beta(self, t: Time) -> Time:
        at = t.astype(self.flat.dtype)
        return (self._radius(at) * jnp.sin(self._angle(at))).astype(t.dtype)

    def _radius(self, t: Time) -> Time:
        return jnp.sqrt(1 - self.energy * t * (1 - t))

    def _angle(self, t: Time) -> Time:
        """`theta` at the flat angle of the chord, by cubics between the knots."""
        whole = self.flat[-1]
        phi = jnp.arctan2(t * jnp.sin(whole), 1 - t + t * jnp.cos(whole))
        i = jnp.clip(jnp.searchsorted(self.flat, phi, side="right") - 1, 0, len(self.flat) - 2)
        h = self.flat[i + 1] - self.flat[i]
        s = (phi - self.flat[i]) / h
        first, second = self.angles[i], self.angles[i + 1]
        return (
            first * (1 + 2 * s) * (1 - s) ** 2
            + second * s**2 * (3 - 2 * s)
            + h * s * (1 - s) * (self.slopes[i] * (1 - s) - self.slopes[i + 1] * s)
        )


def kinetic_optimal_gaussian(variances: Any) -> KineticOptimal:
    """The path for Gaussian data.

    **Arguments:** `variances`: eigenvalues of the covariance, of mean 1.

    **Raises:** `ValueError` for variances that are negative or of another mean.
    """
    variances = np.asarray(variances, np.float64)
    if variances.ndim != 1 or (variances < 0).any() or abs(variances.mean() - 1) > 1e-6:
        raise ValueError(
            f"variances must be at least 0 and of mean 1; got {variances}: scale the data."
        )
    return KineticOptimal(lambda s: _reach_of_gaussian(variances, s))


def kinetic_optimal(
    points: Any, key: int | Key[Array, ""] = 0, weights: Any = None, num_draws: int = DRAWS
) -> KineticOptimal:
    """The path for the law that a sample is from, shifted and scaled to mean 0, `E |x|^2 = dim`.

    Every estimate `m` of `x1` from `x1 + z / s` bounds `lambda(s) >= 1 - E |x1 - m|^2 / dim`. Taken
    is the better of two: the linear one, and, where it is better by two standard errors over
    `num_draws` draws of data and noise, the mean of the other points by their posterior weights,
    with at most 4096 points. (With the drawn point among them `lambda` would be that of the points
    themselves, 1 at small noise.)

    **Arguments:** `points`: `(n, dim)`; `key`; `weights`: of points, None for equal ones.

    **Raises:** `ValueError` for points that all are one.
    """
    table = np.asarray(as_table(points, "points"), np.float64)
    weights = as_weights(weights, len(table), "points")
    random = host_generator(as_key(key))
    if len(table) > MOST_POINTS:
        table = table[random.choice(len(table), MOST_POINTS, p=weights)]
        weights = np.full(MOST_POINTS, 1 / MOST_POINTS)
    table = table - weights @ table
    scale = np.sqrt(weights @ np.mean(table**2, axis=1))
    if not scale > 0:
        raise ValueError("all points are one: there is no path to choose.")
    table = table / scale
    variances, axes = np.linalg.eigh((table.T * weights) @ table)
    variances, table = np.maximum(variances, 0), table @ axes
    theta = np.pi / 2 * (np.arange(ANGLES) + 0.5) / ANGLES
    rows = random.choice(len(table), -(-num_draws // BLOCK) * BLOCK, p=weights)
    noise = random.normal(size=(len(rows), table.shape[1]))
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    with np.errstate(divide="ignore"):
        arrays = (np.log(weights), table, variances, noise, np.tan(theta))
    placed = (as_dtype(array, dtype) for array in arrays)
    gained, error = (np.asarray(v, np.float64) for v in _gain(*placed, jax.device_put(rows)))
    # What is added to `g`, which has a bounded range, is interpolated; `lambda` would lose digits.
    more = np.maximum(gained - 2 * error, 0) / np.cos(theta) ** 2

    def reach(s):
        at = np.arctan(s)
        linear = _reach_of_gaussian(variances, s)
        g = 1 - (1 - linear) / np.cos(at) ** 2 + np.interp(at, theta, more)
        return 1 - (1 - np.clip(g, LEAST_OF_SAMPLE, 1)) * np.cos(at) ** 2

    return KineticOptimal(reach)


def _reach_of_gaussian(variances: np.ndarray, s: np.ndarray) -> np.ndarray:
    """`mean(v^2 s^2 / (1 + v s^2))` over the variances."""
    s2 = s[:, None] ** 2
    return np.mean(variances**2 * s2 / (1 + variances * s2), axis=1)


@jax.jit
def _gain(log_weights, points, variances, noise, s, rows):
    """How much less a coordinate the mean of the others errs than the linear estimate, at each `s`.

    Both estimate the same draws, in blocks; points lie along their principal axes. Beside it its
    standard error.
    """
    squares, numbers = jnp.sum(points**2, axis=1), jnp.arange(len(points))
    blocks = rows.reshape(-1, BLOCK), noise.reshape(-1, BLOCK, noise.shape[1])

    def of(s):
        def block(drawn):
            rows, noise = drawn
            truth, seen = points[rows], points[rows] + noise / s
            logits = s**2 * (product(seen, points.T) - squares[None] / 2) + log_weights[None]
            logits = jnp.where(numbers[None] == rows[:, None], -jnp.inf, logits)
            others = product(jax.nn.softmax(logits, axis=1), points)
            linear = seen * (variances / (variances + s**-2))[None]
            return jnp.mean((truth - linear) ** 2 - (truth - others) ** 2, axis=1)

        gains = jax.lax.map(block, blocks)
        return jnp.mean(gains), jnp.std(gains) / np.sqrt(gains.size)

    return jax.lax.map(of, s)


def _increasing(flat: np.ndarray) -> np.ndarray:
    """Knots moved apart where rounding has made two of them one."""
    for i in range(1, len(flat)):
        flat[i] = max(flat[i], np.nextafter(flat[i - 1], np.inf, dtype=flat.dtype))
    return flat


def _monotone_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes at knots with which cubics between them increase.

    Fritsch and Butland (1984): the harmonic mean of the slopes of the chords on both sides.
    """
    widths = np.diff(x.astype(np.float64))
    chords = np.diff(y) / widths
    left, right = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    inner = (left + right) / (left / chords[:-1] + right / chords[1:])
    return np.concatenate([chords[:1], inner, chords[-1:]])

"""A random walk seen through noise, with both scales unknown and observations missing."""

import functools
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.targets.base import Observations, Target, Truth
from driftbridge.targets.gaussian import log_standard_normal
from driftbridge.targets.leaves import Leaf, exact, floating

# Simulated with a = 0.1 and b = 0.15 and rounded; the middle third is unobserved.
_START = (0.2, 0.27, 0.18, 0.24, 0.67, 0.65, 0.91, 0.89, 0.64, 0.69)
_END = (0.75, 1.01, 0.96, 0.78, 1.18, 1.11, 1.06, 1.07, 1.09, 1.27)
OBSERVED_LOCS = (*_START, *(math.nan,) * 10, *_END)

# Standard deviation of the prior of the log of either scale.
PRIOR = 2.0
# Nodes of the quadrature in each log scale, and the drop of the log density that bounds it.
NODES, DROP = 600, 32.0


class RandomWalkModel(Target):
    """What both parametrisations share: data, names and predictive laws."""

    observed_locs: eqx.AbstractVar[Float[Leaf, " steps"]]

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"locs": ("time",)}

    @property
    def coords(self) -> dict[str, tuple[str, ...]]:
        return {"time": tuple(map(str, range(self.dim - 2)))}

    @property
    def moments(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Exact posterior mean and standard deviation of each parameter that `constrain` names."""
        posterior = _posterior(self)
        mean, covariance = posterior.centred
        (a, b), (sd_a, sd_b) = posterior.constrained
        return {
            "innovation_noise_scale": (np.asarray(a), np.asarray(sd_a)),
            "observation_noise_scale": (np.asarray(b), np.asarray(sd_b)),
            "locs": (mean[2:], np.sqrt(np.diag(covariance)[2:])),
        }

    @property
    def observations(self) -> Observations:
        seen = np.flatnonzero(np.isfinite(exact(self.observed_locs)))
        data = jnp.asarray(exact(self.observed_locs)[seen])

        def log_likelihood(parameters):
            scale = parameters["observation_noise_scale"]
            standard = (data - parameters["locs"][seen]) / scale
            constant = math.log(2 * math.pi) / 2
            return {"observed_locs": -(standard**2) / 2 - jnp.log(scale) - constant}

        def predict(key, parameters):
            locs = parameters["locs"][seen]
            noise = jax.random.normal(key, locs.shape, locs.dtype)
            return {"observed_locs": locs + parameters["observation_noise_scale"] * noise}

        return Observations({"observed_locs": data}, log_likelihood, predict)


class BrownianMotion(RandomWalkModel):
    """The centred form: positions are `(log a, log b, locs_1, ..., locs_T)`.

    `a, b ~ LogNormal(0, 2)`, `locs_1 ~ Normal(0, a)`, `locs_t ~ Normal(locs_{t-1}, a)`,
    `observed_locs_t ~ Normal(locs_t, b)` where observed. The density of the position includes the
    Jacobian `a b` and all constants, so the normaliser is the evidence.

    **Arguments:**

    - `observed_locs`: shape `(T,)`, NaN where missing; thirty simulated ones, ten of them missing,
      unless given.

    `truth`: moments and evidence by a trapezoidal rule in `(log a, log b)` with the path integrated
    exactly (relative error below 1e-9), computed at first use. Draws of the scales are uniform in
    the cells of that rule, which adds less than 0.1 % to their variance; given them, the path is
    drawn exactly.

    Sountsov, Radul and contributors (2020), "Brownian motion unknown scales missing middle
    observations".
    """

    observed_locs: Float[Leaf, " steps"]
    dim: int = eqx.field(static=True)

    def __init__(self, observed_locs=OBSERVED_LOCS):
        self.observed_locs = _data(observed_locs)
        self.dim = self.observed_locs.shape[0] + 2

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        log_a, locs = x[0], x[2:]
        moves = jnp.diff(locs, prepend=jnp.zeros(1, x.dtype)) * jnp.exp(-log_a)
        return log_standard_normal(moves) - moves.shape[0] * log_a + _scales_and_data(self, x, locs)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        return _named(x, x[2:])

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        return jnp.concatenate([_log_scales(parameters), parameters["locs"]])

    @property
    def truth(self) -> Truth:
        def sample(key, n):
            log_scales, z = _draws(self, key, n)
            locs = jnp.exp(log_scales[:, :1]) * jnp.cumsum(z, axis=1)
            return jnp.concatenate([log_scales, locs], axis=1)

        posterior = _posterior(self)
        return Truth.of_moments(posterior.centred, posterior.log_evidence, sample)


class BrownianMotionNonCentered(RandomWalkModel):
    """The non-centred form: positions are `(log a, log b, z_1, ..., z_T)`, `locs = a cumsum(z)`.

    The model, arguments and names of the parameters are those of `BrownianMotion`; `z` is standard
    normal under the prior.
    """

    observed_locs: Float[Leaf, " steps"]
    dim: int = eqx.field(static=True)

    def __init__(self, observed_locs=OBSERVED_LOCS):
        self.observed_locs = _data(observed_locs)
        self.dim = self.observed_locs.shape[0] + 2

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        locs = jnp.exp(x[0]) * jnp.cumsum(x[2:])
        return log_standard_normal(x[2:]) + _scales_and_data(self, x, locs)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        return _named(x, jnp.exp(x[0]) * jnp.cumsum(x[2:]))

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        locs, a = parameters["locs"], parameters["innovation_noise_scale"]
        moves = jnp.diff(locs, prepend=jnp.zeros(1, locs.dtype))
        return jnp.concatenate([_log_scales(parameters), moves / a])

    @property
    def truth(self) -> Truth:
        def sample(key, n):
            return jnp.concatenate(_draws(self, key, n), axis=1)

        posterior = _posterior(self)
        return Truth.of_moments(posterior.non_centred, posterior.log_evidence, sample)


def _data(observed_locs):
    observed_locs = floating(observed_locs)
    if observed_locs.ndim != 1:
        raise ValueError(f"observed_locs must have shape (T,); got {observed_locs.shape}.")
    return observed_locs


def _scales_and_data(target, x, locs):
    """Log prior of both log scales plus log likelihood, skipping what was not observed."""
    log_b = x[1]
    data = jnp.asarray(target.observed_locs, x.dtype)
    seen = jnp.isfinite(data)
    standard = jnp.where(seen, jnp.where(seen, data, 0) - locs, 0) * jnp.exp(-log_b)
    count = jnp.sum(seen.astype(x.dtype))
    fit = -jnp.sum(standard**2) / 2 - count * (log_b + math.log(2 * math.pi) / 2)
    return fit + log_standard_normal(x[:2] / PRIOR) - 2 * math.log(PRIOR)


def _named(x, locs):
    a, b = jnp.exp(x[0]), jnp.exp(x[1])
    return {"innovation_noise_scale": a, "observation_noise_scale": b, "locs": locs}


def _log_scales(parameters):
    a, b = parameters["innovation_noise_scale"], parameters["observation_noise_scale"]
    return jnp.log(jnp.stack([a, b]))


class _Path(NamedTuple):
    """The path given the scales, diagonal in the eigenbasis of its covariance where seen.

    With `locs = a S z`, `S` lower triangular ones and `C` its observed rows, `y = a C z + b e`.
    `C C^T = vectors diag(eigenvalues) vectors^T`, `basis = C^T vectors`, `rotated = vectors^T y`,
    and for `d_i = 1 / (a^2 eigenvalues_i + b^2)`: `log p(y) = sum_i (log d_i - rotated_i^2 d_i)/2`
    up to a constant, `E z = a basis (d rotated)`, `Cov z = I - a^2 basis diag(d) basis^T`.
    """

    seen: np.ndarray
    observed: np.ndarray
    vectors: np.ndarray
    basis: np.ndarray
    eigenvalues: np.ndarray
    rotated: np.ndarray


def _path(observed_locs: np.ndarray) -> _Path:
    seen = np.flatnonzero(np.isfinite(observed_locs))
    rows = np.tri(len(observed_locs))[seen]
    eigenvalues, vectors = np.linalg.eigh(rows @ rows.T)
    observed = observed_locs[seen]
    return _Path(seen, observed, vectors, rows.T @ vectors, eigenvalues, vectors.T @ observed)


class _Posterior(NamedTuple):
    """Grid of the log scales with its masses, and mean and covariance of positions in both forms.

    `constrained` holds the means and standard deviations of `(a, b)`.
    """

    path: _Path
    log_a: np.ndarray
    log_b: np.ndarray
    mass: np.ndarray
    log_evidence: float
    centred: tuple[np.ndarray, np.ndarray]
    non_centred: tuple[np.ndarray, np.ndarray]
    constrained: tuple[np.ndarray, np.ndarray]


def _posterior(target) -> _Posterior:
    return _integrate(exact(target.observed_locs).tobytes())


def _log_joint(path: _Path, log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    """Log prior plus log evidence of the scales on a grid `(len(log_a), len(log_b))`."""

    def row(la):
        variance = np.exp(2 * la) * path.eigenvalues + np.exp(2 * log_b)[:, None]
        fit = np.sum(np.log(2 * np.pi * variance) + path.rotated**2 / variance, axis=1)
        prior = ((la / PRIOR) ** 2 + (log_b / PRIOR) ** 2) / 2 + np.log(2 * np.pi * PRIOR**2)
        return -fit / 2 - prior

    return np.stack([row(la) for la in log_a])


def _grid(path: _Path) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that cover all scales whose log density is within `DROP` of the highest."""
    log_a = log_b = np.linspace(-9 * PRIOR, 9 * PRIOR, 181)
    for _ in range(3):
        logs = _log_joint(path, log_a, log_b)
        high = logs > np.max(logs) - DROP
        ends = [np.flatnonzero(np.any(high, axis=axis))[[0, -1]] for axis in (1, 0)]
        log_a, log_b = (
            np.linspace(x[max(i - 1, 0)], x[min(j + 1, 180)], 181)
            for x, (i, j) in zip((log_a, log_b), ends, strict=True)
        )
    return np.linspace(log_a[0], log_a[-1], NODES), np.linspace(log_b[0], log_b[-1], NODES)


@functools.lru_cache(maxsize=8)
def _integrate(observed_locs: bytes) -> _Posterior:
    path = _path(np.frombuffer(observed_locs))
    log_a, log_b = _grid(path)
    logs = _log_joint(path, log_a, log_b)
    mass = np.exp(logs - np.max(logs))
    cell = (log_a[1] - log_a[0]) * (log_b[1] - log_b[0])
    log_evidence = float(np.max(logs) + np.log(np.sum(mass) * cell))
    mass = mass / np.sum(mass)
    triangle = np.tri(path.basis.shape[0])
    identity = np.eye(path.basis.shape[0])
    over_a, over_b = np.sum(mass, axis=1), np.sum(mass, axis=0)
    scales = np.array([[over_a @ np.exp(k * log_a), over_b @ np.exp(k * log_b)] for k in (1, 2)])
    return _Posterior(
        path,
        log_a,
        log_b,
        mass,
        log_evidence,
        centred=_moments(path, log_a, log_b, mass, triangle, 1),
        non_centred=_moments(path, log_a, log_b, mass, identity, 0),
        constrained=(scales[0], np.sqrt(scales[1] - scales[0] ** 2)),
    )


def _moments(path, log_a, log_b, mass, shape, power):
    """Mean and covariance of `(log a, log b, u)` with `u = a^power shape z`."""
    count = path.basis.shape[1]
    first, with_a, with_b, spread = np.zeros((4, count))
    second = np.zeros((count, count))
    for la, p in zip(log_a, mass, strict=True):
        scale = np.exp((1 + power) * la)
        d = 1 / (np.exp(2 * la) * path.eigenvalues + np.exp(2 * log_b)[:, None])
        once = scale * (p @ d)
        first += once
        with_a += la * once
        with_b += scale * ((p * log_b) @ d)
        spread += scale * once
        second += scale**2 * (d.T * p) @ d
    to_u = shape @ path.basis
    over_a, over_b = np.sum(mass, axis=1), np.sum(mass, axis=0)
    mean = np.concatenate([[over_a @ log_a, over_b @ log_b], to_u @ (first * path.rotated)])
    square = np.zeros((len(mean), len(mean)))
    square[:2, :2] = [
        [over_a @ log_a**2, log_a @ mass @ log_b],
        [log_a @ mass @ log_b, over_b @ log_b**2],
    ]
    square[2:, :2] = to_u @ (np.stack([with_a, with_b], axis=1) * path.rotated[:, None])
    square[:2, 2:] = square[2:, :2].T
    prior = (over_a @ np.exp(2 * power * log_a)) * shape @ shape.T
    given = second * np.outer(path.rotated, path.rotated) - np.diag(spread)
    square[2:, 2:] = prior + to_u @ given @ to_u.T
    return mean, square - np.outer(mean, mean)


def _draws(target, key, n):
    """Draws of `(log a, log b)` and of `z` given them: a draw of the prior, corrected by `y`."""
    posterior = _posterior(target)
    path = posterior.path
    rows, columns, within, start, noise = jax.random.split(key, 5)
    dtype = jnp.result_type(float)
    over_a = np.cumsum(np.sum(posterior.mass, axis=1))
    over_b = np.cumsum(posterior.mass, axis=1)
    given_a = jnp.asarray(over_b / over_b[:, -1:])
    row = jnp.searchsorted(jnp.asarray(over_a), jax.random.uniform(rows, (n,), dtype))
    column = jax.lax.map(
        lambda pair: jnp.searchsorted(given_a[pair[0]], pair[1]),
        (row, jax.random.uniform(columns, (n,), dtype)),
        batch_size=1024,
    )
    nodes = jnp.stack([jnp.asarray(posterior.log_a)[row], jnp.asarray(posterior.log_b)[column]], 1)
    cell = jnp.asarray([x[1] - x[0] for x in (posterior.log_a, posterior.log_b)], dtype)
    log_scales = nodes + cell[None] * jax.random.uniform(within, (n, 2), dtype, -0.5, 0.5)
    a, b = jnp.exp(log_scales[:, :1]), jnp.exp(log_scales[:, 1:])
    basis, vectors = jnp.asarray(path.basis), jnp.asarray(path.vectors)
    z = jax.random.normal(start, (n, basis.shape[0]), dtype)
    error = b * jax.random.normal(noise, (n, basis.shape[1]), dtype)
    # C z = vectors (basis^T z), so in the eigenbasis the simulated data are a basis^T z + error.
    gap = (jnp.asarray(path.observed)[None] - error) @ vectors - a * (z @ basis)
    gap = gap / (a**2 * jnp.asarray(path.eigenvalues)[None] + b**2)
    return log_scales, z + a * (gap @ basis.T)

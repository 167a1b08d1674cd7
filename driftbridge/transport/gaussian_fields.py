"""Fields between Gaussians, coupled in any way, and between mixtures of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.products import product
from driftbridge.transport.base import Times, as_dtype
from driftbridge.transport.fields import KnownField, column
from driftbridge.transport.gammas import Gamma, NoNoise
from driftbridge.transport.points import as_weights
from driftbridge.transport.schedules import OneSided, Schedule, check_path

NO_NOISE = NoNoise()


class Joint(NamedTuple):
    """Moments of a pair `(x0, x1)`; `cross` is `Cov(x0, x1)`."""

    source_mean: Float[Array, "*k dim"]
    source_covariance: Float[Array, "*k dim dim"]
    target_mean: Float[Array, "*k dim"]
    target_covariance: Float[Array, "*k dim dim"]
    cross: Float[Array, "*k dim dim"]


class Quantities(NamedTuple):
    """What a field is at a batch of points."""

    velocity: Float[Array, "*k n dim"]
    score: Float[Array, "*k n dim"]
    log_density: Float[Array, "*k n"]


class GaussianField(KnownField):
    """The field between two Gaussians, coupled by any cross covariance `K = Cov(x0, x1)`.

    `x_t` is Gaussian with mean `m_t = alpha m0 + beta m1` and covariance
    `S_t = alpha^2 C0 + beta^2 C1 + alpha beta (K + K') + gamma^2 I`, so that
    `s = -S_t^{-1} (x - m_t)` and `b = m_t' + B_t S_t^{-1} (x - m_t)` with
    `B_t = alpha alpha' C0 + beta beta' C1 + alpha' beta K + alpha beta' K' + gamma gamma' I`.

    **Arguments:** `source_mean`, `target_mean`: `(dim,)`; `source_covariance`,
    `target_covariance`: `(dim, dim)`; `schedule`; `gamma`; `cross`: `K`, zero if None.

    **Raises:** `ValueError` for moments of no joint law, for a path that does not end in the two
    laws, and for a one-sided schedule with another source than an independent standard normal.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), appendix A.
    """

    joint: Joint
    schedule: Schedule
    gamma: Gamma

    def __init__(
        self,
        source_mean: Any,
        source_covariance: Any,
        target_mean: Any,
        target_covariance: Any,
        schedule: Schedule,
        gamma: Gamma = NO_NOISE,
        cross: Any = None,
    ):
        check_path(schedule, gamma)
        cross = np.zeros_like(source_covariance) if cross is None else cross
        moments = (source_mean, source_covariance, target_mean, target_covariance, cross)
        self.joint = _joint(*moments, schedule=schedule)
        self.schedule, self.gamma = schedule, gamma

    @property
    def like(self) -> Float[Array, " dim"]:
        return self.joint.source_mean

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._at(t, x).velocity

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        return self._at(t, x).score

    def log_density(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """The log density of `x_t`."""
        return self._at(t, x).log_density

    def _at(self, t: Times, x: Float[Array, "n dim"]) -> Quantities:
        return _quantities(self.joint, self.schedule, self.gamma, t, x)


class MixtureField(KnownField):
    """The field between two mixtures of Gaussians, coupled independently.

    `x_t` is the mixture, with weights `p_i q_j`, of what every pair of components makes; velocity
    and score are means of theirs under the probabilities of the pairs given `x_t = x`, which are
    computed from log densities.

    **Arguments:**

    - `source_weights`, `target_weights`: `(k,)` and `(l,)`, each with sum 1.
    - `source_means`, `target_means`: `(k, dim)` and `(l, dim)`.
    - `source_covariances`, `target_covariances`: `(k, dim, dim)` and `(l, dim, dim)`.
    - `schedule`, `gamma`.

    **Raises:** `ValueError` as `GaussianField` does, and for weights that do not sum to 1.

    Albergo, Boffi and Vanden-Eijnden (2025), JMLR 26(209), appendix A.
    """

    log_weights: Float[Array, " pairs"]
    joints: Joint
    schedule: Schedule
    gamma: Gamma

    def __init__(
        self,
        source_weights: Any,
        source_means: Any,
        source_covariances: Any,
        target_weights: Any,
        target_means: Any,
        target_covariances: Any,
        schedule: Schedule,
        gamma: Gamma = NO_NOISE,
    ):
        check_path(schedule, gamma)
        first = as_weights(source_weights, len(source_means), "source mixture")
        second = as_weights(target_weights, len(target_means), "target mixture")
        joints = [
            _joint(m0, c0, m1, c1, np.zeros_like(c0), schedule=schedule)
            for m0, c0 in zip(source_means, source_covariances, strict=True)
            for m1, c1 in zip(target_means, target_covariances, strict=True)
        ]
        self.joints = jax.tree.map(lambda *parts: jnp.stack(parts), *joints)
        with np.errstate(divide="ignore"):
            logs = np.log(np.outer(first, second).ravel())
        self.log_weights = as_dtype(logs, self.joints.source_mean.dtype)
        self.schedule, self.gamma = schedule, gamma

    @property
    def like(self) -> Float[Array, " dim"]:
        return self.joints.source_mean[0]

    def velocity(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        terms = self._terms(t, x)
        return self._mean(terms, terms.velocity)

    def score(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        terms = self._terms(t, x)
        return self._mean(terms, terms.score)

    def log_density(self, t: Times, x: Float[Array, "n dim"]) -> Float[Array, " n"]:
        """The log density of `x_t`."""
        return jax.nn.logsumexp(self._log_shares(self._terms(t, x)), axis=0)

    def _terms(self, t: Times, x: Float[Array, "n dim"]) -> Quantities:
        def of(joint):
            return _quantities(joint, self.schedule, self.gamma, t, x)

        return jax.vmap(of)(self.joints)

    def _log_shares(self, terms: Quantities) -> Float[Array, "pairs n"]:
        return self.log_weights[:, None] + terms.log_density

    def _mean(self, terms: Quantities, values: Float[Array, "pairs n dim"]) -> Array:
        """The mean over the pairs, given where a point is."""
        shares = jax.nn.softmax(self._log_shares(terms), axis=0)
        return jnp.sum(shares[:, :, None] * values, axis=0)


def _quantities(
    joint: Joint, schedule: Schedule, gamma: Gamma, t: Times, x: Float[Array, "n dim"]
) -> Quantities:
    m0, c0, m1, c1, cross = (part[None] for part in joint)
    alpha, beta = (column(c) for c in schedule.coefficients(t))
    d_alpha, d_beta = (column(c) for c in schedule.rates(t))
    centred, moving = x - alpha * m0 - beta * m1, d_alpha * m0 + d_beta * m1
    # The same numbers beside matrices.
    alpha, beta, d_alpha, d_beta = (c[:, :, None] for c in (alpha, beta, d_alpha, d_beta))
    one = jnp.eye(x.shape[1], dtype=x.dtype)[None]
    noise, growth = (column(g)[:, :, None] for g in (gamma.squared(t), gamma.product(t)))
    turned = jnp.swapaxes(cross, 1, 2)
    covariance = alpha**2 * c0 + beta**2 * c1 + alpha * beta * (cross + turned) + noise * one
    drift = alpha * d_alpha * c0 + beta * d_beta * c1 + growth * one
    drift = drift + d_alpha * beta * cross + alpha * d_beta * turned
    score = -_applied(jnp.linalg.inv(covariance), centred)
    log_det = jnp.linalg.slogdet(2 * np.pi * covariance)[1]
    return Quantities(
        moving - _applied(drift, score),
        score,
        (jnp.sum(centred * score, axis=1) - log_det) / 2,
    )


def _applied(
    matrices: Float[Array, "_ dim dim"], x: Float[Array, "n dim"]
) -> Float[Array, "n dim"]:
    """One matrix for all rows, or one for each."""
    if matrices.shape[0] == 1:
        return product(x, matrices[0].T)
    return product(matrices, x[:, :, None])[:, :, 0]


def _joint(m0: Any, c0: Any, m1: Any, c1: Any, cross: Any, *, schedule: Schedule) -> Joint:
    """Moments as arrays, which have been looked at."""
    m0, c0, m1, c1, cross = (np.asarray(part, np.float64) for part in (m0, c0, m1, c1, cross))
    whole = np.block([[c0, cross], [cross.T, c1]])
    values = np.linalg.eigvalsh(whole)
    if not np.allclose(whole, whole.T) or values[0] < -1e-9 * values[-1]:
        raise ValueError(
            "the covariances and the cross covariance must make a covariance of both; its least "
            f"eigenvalue is {values[0]:.3g}."
        )
    if isinstance(schedule, OneSided):
        parts = (m0, c0 - np.eye(len(m0)), cross)
        if (error := max(np.abs(part).max() for part in parts)) > 1e-6:
            raise ValueError(
                f"{type(schedule).__name__} starts in a standard normal independent of the "
                f"target; the moments given differ from its own by {error:.3g}."
            )
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return Joint(*(as_dtype(part, dtype) for part in (m0, c0, m1, c1, cross)))

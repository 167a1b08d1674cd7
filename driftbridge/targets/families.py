"""Laws of an outcome given its linear predictor.

Each gives the pointwise log likelihood up to terms free of the position, and its derivative in
closed form. A family may own coordinates of the position (`size` of them): the log of an unknown
noise scale, with its prior.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from driftbridge.targets.leaves import check_positive
from driftbridge.targets.priors import HalfCauchy, ScalePrior
from driftbridge.targets.softplus import log_sigmoid


class Family(eqx.Module):
    """The law of `y_i` given `eta_i`, and of its own coordinates `own` of shape `(size,)`."""

    size: ClassVar[int] = 0

    def check(self, y: np.ndarray) -> None:
        """Raise `ValueError` for an outcome outside the support, naming its row."""

    @abc.abstractmethod
    def pointwise(
        self, eta: Float[Array, " n"], y: Float[Array, " n"], own: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        """Log likelihood of each outcome, less `constant`."""

    @abc.abstractmethod
    def residual(
        self, eta: Float[Array, " n"], y: Float[Array, " n"], own: Float[Array, " size"]
    ) -> tuple[Float[Array, " n"], Float[Array, " size"]]:
        """Derivatives of the summed log likelihood in `eta` and in `own`."""

    def pointwise_and_residual(
        self, eta: Float[Array, " n"], y: Float[Array, " n"], own: Float[Array, " size"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " size"]]:
        """`pointwise` and `residual`, sharing what they share."""
        return self.pointwise(eta, y, own), *self.residual(eta, y, own)

    def constant(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """What `pointwise` leaves out of each log likelihood; it does not depend on position."""
        return jnp.zeros_like(y)

    def log_prior(self, own: Float[Array, " size"]) -> Float[Array, ""]:
        """Log density of `own`, up to a constant."""
        return jnp.zeros((), own.dtype)

    def prior_score(self, own: Float[Array, " size"]) -> Float[Array, " size"]:
        """Gradient of `log_prior`."""
        return jnp.zeros_like(own)

    def constrain(self, own: Float[Array, " size"]) -> dict[str, Float[Array, ""]]:
        """`own` in the user's names."""
        return {}

    def unconstrain(self, parameters: dict) -> Float[Array, " size"]:
        """Inverse of `constrain`."""
        return jnp.zeros(0, jnp.asarray(parameters["coefficients"]).dtype)

    @abc.abstractmethod
    def predict(
        self, key: Key[Array, ""], eta: Float[Array, " n"], own: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        """New outcomes."""


class Logistic(Family):
    """`P(y_i = 1) = sigmoid(eta_i)`, `y_i` 0 or 1; nothing is dropped."""

    def check(self, y: np.ndarray) -> None:
        _check_support(y, (y == 0) | (y == 1), "0 or 1", "Code the two classes as 0 and 1.")

    # With m = +-eta the log likelihood is log sigmoid(m): `y eta - softplus(eta)` would cancel.
    def pointwise(self, eta, y, own):
        return log_sigmoid((2 * y - 1) * eta)

    def residual(self, eta, y, own):
        # y - sigmoid(eta); tanh is the cheaper way to it, and as exact in absolute terms.
        return y - 0.5 - 0.5 * jnp.tanh(0.5 * eta), own

    def pointwise_and_residual(self, eta, y, own):
        sign = 2 * y - 1
        margin = sign * eta
        tail = jnp.exp(-jnp.abs(margin))
        # log rather than log1p, a fifth cheaper: the error of 1 + tail is half a unit of 1, as is
        # that of the score's own 1 + tail, and nothing cancels it into more.
        value = jnp.minimum(margin, 0) - jnp.log(1 + tail)
        return value, sign * jnp.where(margin >= 0, tail, 1) / (1 + tail), own

    def predict(self, key, eta, own):
        return jax.random.bernoulli(key, jax.nn.sigmoid(eta)).astype(eta.dtype)


class Poisson(Family):
    """`y_i ~ Poisson(exp(eta_i))`.

    Half the deviance is subtracted from zero, `y (u - expm1(u))` with `u = eta - log y`, so that
    large counts keep their digits in float32; dropped: `y log y - y - log y!`.
    """

    def check(self, y: np.ndarray) -> None:
        _check_support(
            y,
            (y >= 0) & (y == np.floor(y)),
            "a count 0, 1, 2, ...",
            "Use the family 'linear' or 'student' for outcomes that are not counts, and "
            "offset=log(exposure) for rates.",
        )

    def pointwise(self, eta, y, own):
        return self.pointwise_and_residual(eta, y, own)[0]

    def residual(self, eta, y, own):
        return y - jnp.exp(eta), own

    def pointwise_and_residual(self, eta, y, own):
        positive = jnp.where(y > 0, y, 1)
        u = eta - jnp.log(positive)
        excess = positive * jnp.expm1(u) + (positive - y)
        return y * u - excess, -excess, own

    def constant(self, y):
        few = jnp.minimum(y, 16)
        exact = few * jnp.log(jnp.maximum(few, 1)) - few - jax.lax.lgamma(few + 1)
        # Stirling's series; from 16 on its error is below 1e-11 (DLMF 5.11.1).
        many = jnp.maximum(y, 16)
        correction = (1 / 12 - (1 / 360 - 1 / (1260 * many**2)) / many**2) / many
        return jnp.where(y <= 16, exact, -jnp.log(2 * jnp.pi * many) / 2 - correction)

    def predict(self, key, eta, own):
        return jax.random.poisson(key, jnp.exp(eta)).astype(eta.dtype)


class Scaled(Family):
    """A family with one coordinate, the log of an unknown noise scale."""

    size: ClassVar[int] = 1

    noise: eqx.AbstractVar[ScalePrior]

    def log_prior(self, own):
        return self.noise.log_density(own[0])

    def prior_score(self, own):
        return self.noise.score(own)

    def constrain(self, own):
        return {"scale": jnp.exp(own[0])}

    def unconstrain(self, parameters):
        return jnp.log(jnp.asarray(parameters["scale"]))[None]


class Linear(Scaled):
    """`y_i ~ N(eta_i, s^2)` with the position's last coordinate `log s`.

    Dropped: `-log(2 pi) / 2` an outcome.

    **Arguments:**

    - `noise`: prior of `s`, in units of `y`.
    """

    noise: ScalePrior = HalfCauchy(1.0)

    def pointwise(self, eta, y, own):
        return -(((y - eta) * jnp.exp(-own[0])) ** 2) / 2 - own[0]

    def residual(self, eta, y, own):
        precise = jnp.exp(-own[0])
        standard = (y - eta) * precise
        return standard * precise, jnp.sum(standard**2 - 1)[None]

    def constant(self, y):
        return jnp.full_like(y, -np.log(2 * np.pi) / 2)

    def predict(self, key, eta, own):
        return eta + jnp.exp(own[0]) * jax.random.normal(key, eta.shape, eta.dtype)


class Student(Scaled):
    """`(y_i - eta_i) / s` is Student-t, with the position's last coordinate `log s`.

    Dropped: `log Gamma((nu + 1) / 2) - log Gamma(nu / 2) - log(pi nu) / 2` an outcome.

    **Arguments:**

    - `degrees_of_freedom`: `nu > 0`.
    - `noise`: prior of `s`, in units of `y`.
    """

    degrees_of_freedom: Float[Array, ""] | float = 4.0
    noise: ScalePrior = HalfCauchy(1.0)

    def __check_init__(self):
        check_positive(degrees_of_freedom=self.degrees_of_freedom)

    def pointwise(self, eta, y, own):
        nu = self.degrees_of_freedom
        return -(nu + 1) / 2 * jnp.log1p(((y - eta) * jnp.exp(-own[0])) ** 2 / nu) - own[0]

    def residual(self, eta, y, own):
        nu = self.degrees_of_freedom
        precise = jnp.exp(-own[0])
        standard = (y - eta) * precise
        weighted = (nu + 1) * standard / (nu + standard**2)
        return weighted * precise, jnp.sum(weighted * standard - 1)[None]

    def constant(self, y):
        nu = jnp.asarray(self.degrees_of_freedom, y.dtype)
        constant = jax.lax.lgamma((nu + 1) / 2) - jax.lax.lgamma(nu / 2) - jnp.log(jnp.pi * nu) / 2
        return jnp.broadcast_to(constant, y.shape)

    def predict(self, key, eta, own):
        nu = jnp.asarray(self.degrees_of_freedom, eta.dtype)
        return eta + jnp.exp(own[0]) * jax.random.t(key, nu, eta.shape, eta.dtype)


def _check_support(y, inside, support, cure):
    if not np.all(inside):
        row = int(np.argmin(inside))
        raise ValueError(f"y must be {support}; got {y[row]} at row {row}. {cure}")


FAMILIES = {"logistic": Logistic, "poisson": Poisson, "linear": Linear, "student": Student}

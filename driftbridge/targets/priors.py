"""Priors of regression coefficients and of scales, on the unconstrained line.

Each states its density up to terms free of the position, Jacobians included, and a score in closed
form. `GLM` is their only caller; positions here are the part of its position that the prior owns.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from driftbridge.targets.leaves import check_positive
from driftbridge.targets.softplus import softplus


class ScalePrior(eqx.Module):
    """A law of a positive scale `s`, written for `t = log s` with the Jacobian `s`."""

    scale: eqx.AbstractVar[Float[Array, ""] | float]

    @abc.abstractmethod
    def log_density(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log density of `t`, elementwise, up to a constant."""

    @abc.abstractmethod
    def score(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Derivative of `log_density`, elementwise."""


class HalfCauchy(ScalePrior):
    """`p(s) ~ 1 / (1 + (s / scale)^2)` on `s > 0`.

    **Arguments:**

    - `scale`: positive; the median of `s`.
    """

    scale: Float[Array, ""] | float = 1.0

    def __check_init__(self):
        check_positive(scale=self.scale)

    def log_density(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        u = t - jnp.log(self.scale)
        return u - softplus(2 * u)

    def score(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return -jnp.tanh(t - jnp.log(self.scale))


class HalfNormal(ScalePrior):
    """`p(s) ~ exp(-(s / scale)^2 / 2)` on `s > 0`.

    **Arguments:**

    - `scale`: positive; `s` has mean `scale sqrt(2 / pi)`.
    """

    scale: Float[Array, ""] | float = 1.0

    def __check_init__(self):
        check_positive(scale=self.scale)

    def log_density(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        u = t - jnp.log(self.scale)
        return u - jnp.exp(2 * u) / 2

    def score(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return 1 - jnp.exp(2 * (t - jnp.log(self.scale)))


class Prior(eqx.Module):
    """A law of coefficients `beta` of shape `(d,)`, through a position `z` of shape `(size,)`."""

    def size(self, num_coefficients: int) -> int:
        """Length of `z`."""
        return num_coefficients

    def check(self, num_coefficients: int) -> None:
        """Raise `ValueError` where the prior does not fit so many coefficients."""

    @abc.abstractmethod
    def log_density(self, z: Float[Array, " size"]) -> Float[Array, ""]:
        """Log density of `z`, up to a constant."""

    def coefficients(self, z: Float[Array, " size"]) -> Float[Array, " d"]:
        """`beta` at `z`."""
        return z

    @abc.abstractmethod
    def score(self, z: Float[Array, " size"], pull: Float[Array, " d"]) -> Float[Array, " size"]:
        """Gradient in `z` of `log_density(z) + pull . coefficients(z)`, `pull` held fixed."""

    def constrain(self, z: Float[Array, " size"]) -> dict[str, Float[Array, "..."]]:
        """Coefficients, and scales where the prior has them."""
        return {"coefficients": self.coefficients(z)}

    def unconstrain(self, parameters: dict) -> Float[Array, " size"]:
        """Inverse of `constrain`."""
        return jnp.asarray(parameters["coefficients"])


class Gaussian(Prior):
    """`beta_j ~ N(0, scale_j^2)`; dropped: `-sum log scale_j - d log(2 pi) / 2`.

    **Arguments:**

    - `scale`: positive, one number or one for each coefficient.
    """

    scale: Float[Array, "..."] | float = 2.5

    def __check_init__(self):
        check_positive(scale=self.scale)

    def check(self, num_coefficients: int) -> None:
        _check_scale(self.scale, num_coefficients)

    def log_density(self, z: Float[Array, " size"]) -> Float[Array, ""]:
        return -jnp.sum((z / self.scale) ** 2) / 2

    def score(self, z: Float[Array, " size"], pull: Float[Array, " d"]) -> Float[Array, " size"]:
        return pull - z / self.scale**2


class Laplace(Prior):
    """`p(beta_j) ~ exp(-|beta_j| / scale_j)`; dropped: `-sum log(2 scale_j)`.

    The score is taken as 0 at `beta_j = 0`, where the density has a kink.

    **Arguments:**

    - `scale`: positive, one number or one for each coefficient.
    """

    scale: Float[Array, "..."] | float = 1.0

    def __check_init__(self):
        check_positive(scale=self.scale)

    def check(self, num_coefficients: int) -> None:
        _check_scale(self.scale, num_coefficients)

    def log_density(self, z: Float[Array, " size"]) -> Float[Array, ""]:
        return -jnp.sum(jnp.abs(z) / self.scale)

    def score(self, z: Float[Array, " size"], pull: Float[Array, " d"]) -> Float[Array, " size"]:
        return pull - jnp.sign(z) / self.scale


class Horseshoe(Prior):
    """`beta_j = w_j lambda_j tau`, `w_j ~ N(0, 1)`, `lambda_j ~ C+(0, 1)`, `tau ~ C+(0, scale)`.

    The position is `[w, log lambda, log tau]`, of length `2 d + 1` (non-centred). Every column of
    the design is shrunk, an intercept's too.
    Dropped: `-d log(2 pi) / 2 + (d + 1) log(2 / pi)`, with Jacobians on the log scale kept.

    **Arguments:**

    - `scale`: positive; the median of the global scale `tau`.

    Carvalho, Polson and Scott (2010), equation 1.
    """

    scale: Float[Array, ""] | float = 1.0

    def __check_init__(self):
        check_positive(scale=self.scale)

    def size(self, num_coefficients: int) -> int:
        return 2 * num_coefficients + 1

    def log_density(self, z: Float[Array, " size"]) -> Float[Array, ""]:
        w, log_local, log_global = _split(z)
        return (
            -jnp.sum(w**2) / 2
            + jnp.sum(HalfCauchy(1.0).log_density(log_local))
            + HalfCauchy(self.scale).log_density(log_global)
        )

    def coefficients(self, z: Float[Array, " size"]) -> Float[Array, " d"]:
        w, log_local, log_global = _split(z)
        return w * jnp.exp(log_local + log_global)

    def score(self, z: Float[Array, " size"], pull: Float[Array, " d"]) -> Float[Array, " size"]:
        w, log_local, log_global = _split(z)
        by_w = pull * jnp.exp(log_local + log_global)
        by_log = by_w * w
        by_global = jnp.sum(by_log) + HalfCauchy(self.scale).score(log_global)
        return jnp.concatenate(
            [by_w - w, by_log + HalfCauchy(1.0).score(log_local), by_global[None]]
        )

    def constrain(self, z: Float[Array, " size"]) -> dict[str, Float[Array, "..."]]:
        _, log_local, log_global = _split(z)
        return {
            "coefficients": self.coefficients(z),
            "local_scale": jnp.exp(log_local),
            "global_scale": jnp.exp(log_global),
        }

    def unconstrain(self, parameters: dict) -> Float[Array, " size"]:
        coefficients, local_scale, global_scale = (
            jnp.asarray(parameters[name])
            for name in ("coefficients", "local_scale", "global_scale")
        )
        w = coefficients / (local_scale * global_scale)
        return jnp.concatenate([w, jnp.log(local_scale), jnp.log(global_scale)[None]])


def _split(z):
    d = z.shape[0] // 2
    return z[:d], z[d : 2 * d], z[2 * d]


def _check_scale(scale, num_coefficients):
    shape = jnp.shape(scale)
    if shape not in ((), (num_coefficients,)):
        raise ValueError(
            f"The prior's scale must be one number or one for each of the {num_coefficients} "
            f"columns of X; got shape {shape}."
        )


PRIORS = {"gaussian": Gaussian, "laplace": Laplace, "horseshoe": Horseshoe}

"""What a sampler asks of a density, and what else a target may hold."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped


class Truth(NamedTuple):
    """What is known exactly about a target, in the flat coordinates of its positions.

    Each field is None where it is not known in closed form (or by quadrature to the stated
    precision of the target's docstring).

    - `mean`, `variance`: moments of each coordinate, shape `(dim,)`.
    - `covariance`: shape `(dim, dim)`.
    - `log_normaliser`: `log` of the integral of `exp(log_density)`.
    - `sample`: `(key, n) -> (n, dim)` independent draws.
    - `mode_weights`: mass of each mode, in the order of the target's `modes`.
    """

    mean: Float[Array, " dim"] | None = None
    variance: Float[Array, " dim"] | None = None
    covariance: Float[Array, "dim dim"] | None = None
    log_normaliser: Float[Array, ""] | None = None
    sample: Callable[[Key[Array, ""], int], Float[Array, "n dim"]] | None = None
    mode_weights: Float[Array, " modes"] | None = None

    @classmethod
    def of_moments(cls, moments: tuple[Any, Any], log_normaliser: Any, sample: Any) -> "Truth":
        """What follows from mean and covariance, with the normaliser and exact draws."""
        mean, covariance = moments
        return cls(
            mean=jnp.asarray(mean),
            variance=jnp.asarray(np.diag(covariance)),
            covariance=jnp.asarray(covariance),
            log_normaliser=jnp.asarray(log_normaliser),
            sample=sample,
        )


class Observations(NamedTuple):
    """The data of a model, for predictive checks.

    - `data`: observed arrays by name.
    - `log_likelihood`: `parameters -> {name: pointwise log likelihood}` for one draw.
    - `predict`: `(key, parameters) -> {name: replicated data}` for one draw.

    `parameters` is one draw as `Target.constrain` returns it.
    """

    data: dict[str, Shaped[Array, "..."]]
    log_likelihood: Callable[[dict], dict]
    predict: Callable[[Key[Array, ""], dict], dict]


# A user's model is traced once, however many programs and steps of a program differentiate it.
@partial(jax.jit, inline=True)
def _log_density(target, x):
    return target.log_density(x)


class Target(eqx.Module):
    """A density on flat vectors, known up to a constant.

    A subclass supplies

    - `dim`, the static length of a position;
    - `log_density(x)` for one position `x` of shape `(dim,)`.

    It overrides `score` and `value_and_score` where a closed form is cheaper than automatic
    differentiation (through `batched_score` where batches have a better form), `constrain` and
    `unconstrain` where users think in other names, shapes or domains, and the capabilities it has.

    A capability (`truth`, `observations`, and those that later methods need) is an object that the
    target holds, or None; a method that needs one refuses a target without it, by name.
    """

    dim: eqx.AbstractVar[int]

    @abc.abstractmethod
    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log density at `x`, up to a constant."""

    def potential(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Minus the log density."""
        return -self.log_density(x)

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Gradient of the log density."""
        return jax.grad(_log_density, argnums=1)(self, x)

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        """Log density and its gradient, sharing what they share."""
        return jax.value_and_grad(_log_density, argnums=1)(self, x)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Shaped[Array, "..."]]:
        """One position in the user's names, shapes and domains."""
        return {"x": x}

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        """The position of given parameters; inverse of `constrain` on what was sampled."""
        return jnp.ravel(parameters["x"])

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of parameters, where the user gave them."""
        return {}

    @property
    def coords(self) -> dict[str, tuple[str, ...]]:
        """Labels along the axes named in `dims`."""
        return {}

    @property
    def truth(self) -> Truth | None:
        """What is known exactly, or None."""
        return None

    @property
    def observations(self) -> Observations | None:
        """The model's data with its predictive laws, or None."""
        return None

"""Built-in regressions of the command line: standardised inside, the user's units outside."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.cli.data import numbers
from driftbridge.cli.errors import CommandError
from driftbridge.runtime.dtypes import cast_floating
from driftbridge.targets.base import Observations, Target
from driftbridge.targets.glm import GLM
from driftbridge.targets.priors import Gaussian, Horseshoe, Laplace, Prior

FAMILIES = ("logistic", "linear", "poisson")
INTERCEPT_SCALE = 10.0


class Regression(Target):
    """A `GLM` of standardised predictors whose parameters are told in the units of the data.

    With predictors `(x_j - m_j) / s_j`, an outcome `(y - m) / s` (`m = 0`, `s = 1` unless the
    family is linear) and coefficients `b` of the `GLM`, slopes are `s b_j / s_j`, the intercept is
    `m + s b_0 - sum_j slope_j m_j`, and the noise scale is `s` times that of the `GLM`.

    **Arguments:**

    - `glm`: the regression sampled; its first column is the intercept.
    - `centre`, `spread`: `m_j` and `s_j`, shape `(p,)`.
    - `outcome_centre`, `outcome_spread`: `m` and `s`.
    """

    glm: GLM
    centre: Float[Array, " p"]
    spread: Float[Array, " p"]
    outcome_centre: Float[Array, ""] | float
    outcome_spread: Float[Array, ""] | float
    dim: int = eqx.field(static=True)

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        return self.glm.log_density(x)

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.glm.score(x)

    def value_and_score(self, x: Float[Array, " dim"]):
        return self.glm.value_and_score(x)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        self = cast_floating(self, x.dtype)
        parameters = self.glm.constrain(x)
        standard = parameters["coefficients"]
        slopes = self.outcome_spread * standard[1:] / self.spread
        intercept = self.outcome_centre + self.outcome_spread * standard[0]
        intercept = intercept - jnp.sum(slopes * self.centre)
        parameters["coefficients"] = jnp.concatenate([intercept[None], slopes])
        if "scale" in parameters:
            parameters["scale"] = self.outcome_spread * parameters["scale"]
        return parameters

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        return self.glm.unconstrain(self._standard(parameters))

    def _standard(self, parameters: dict) -> dict:
        coefficients = jnp.asarray(parameters["coefficients"])
        self = cast_floating(self, coefficients.dtype)
        intercept = coefficients[0] + jnp.sum(coefficients[1:] * self.centre)
        first = (intercept - self.outcome_centre) / self.outcome_spread
        rest = coefficients[1:] * self.spread / self.outcome_spread
        standard = {**parameters, "coefficients": jnp.concatenate([first[None], rest])}
        if "scale" in parameters:
            standard["scale"] = jnp.asarray(parameters["scale"]) / self.outcome_spread
        return standard

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return self.glm.dims

    @property
    def coords(self) -> dict[str, tuple[str, ...]]:
        return self.glm.coords

    @property
    def observations(self) -> Observations:
        """The outcomes in the units of the data, with their predictive laws."""
        inner = self.glm.observations
        centre, spread = self.outcome_centre, self.outcome_spread

        def log_likelihood(parameters):
            values = inner.log_likelihood(self._standard(parameters))["y"]
            return {"y": values - jnp.log(spread).astype(values.dtype)}

        def predict(key, parameters):
            values = inner.predict(key, self._standard(parameters))["y"]
            return {"y": (centre + spread * values).astype(values.dtype)}

        return Observations({"y": centre + spread * inner.data["y"]}, log_likelihood, predict)


def regression(
    family: str, data: Mapping[str, Any], outcome: str, predictors: list[str], prior: str
) -> Regression:
    """The regression of one column on others, an intercept added.

    **Arguments:**

    - `family`: "logistic", "linear" or "poisson".
    - `data`: columns by name, the outcome and the predictors among them.
    - `prior`: "gaussian" (scale 2.5), "laplace" (scale 1), both with scale 10 for the intercept, or
      "horseshoe" (of the intercept too), on standardised coefficients.

    **Raises:** `CommandError` for columns that cannot be used, naming column and row.
    """
    if outcome in predictors:
        raise CommandError(f"{outcome!r} is both the outcome and a predictor.")
    if not predictors:
        raise CommandError(f"no predictors: the data have no column but {outcome!r}.")
    y = numbers(outcome, data[outcome]).astype(float)
    columns = [numbers(name, data[name]).astype(float) for name in predictors]
    for name, column in zip(predictors, columns, strict=True):
        if column.shape != y.shape or y.ndim != 1:
            raise CommandError(
                f"{name!r} has shape {column.shape} and {outcome!r} {y.shape}; both must be "
                "columns of one length."
            )
    check_outcome(family, outcome, y)
    design = np.stack(columns, axis=1)
    centre, spread = design.mean(axis=0), design.std(axis=0)
    for name, width, column in zip(predictors, spread, columns, strict=True):
        if width <= 1e-12 * np.abs(column).max():
            raise CommandError(
                f"predictor {name!r} is {column[0]:g} in every row, which is what the intercept is "
                "for; leave it out of --predictors."
            )
    shift, scale = (float(y.mean()), float(y.std())) if family == "linear" else (0.0, 1.0)
    glm = GLM(
        np.column_stack([np.ones(len(y)), (design - centre) / spread]),
        (y - shift) / scale,
        family,
        prior_of(prior, len(predictors)),
        names=["intercept", *predictors],
    )
    return Regression(
        glm=glm,
        centre=jnp.asarray(centre),
        spread=jnp.asarray(spread),
        outcome_centre=shift,
        outcome_spread=scale,
        dim=glm.dim,
    )


def check_outcome(family: str, name: str, y: np.ndarray) -> None:
    """Raise `CommandError` for the first outcome outside the support of the family."""
    if family == "linear":
        if np.ptp(y) == 0:
            raise CommandError(f"the outcome {name!r} is {y[0]:g} in every row.")
        return
    allowed = (y == 0) | (y == 1) if family == "logistic" else (y >= 0) & (y == np.floor(y))
    if not allowed.all():
        row = int(np.argmin(allowed))
        what = "0 or 1" if family == "logistic" else "a count 0, 1, 2, ..."
        raise CommandError(
            f"the outcome {name!r} of a {family} regression must be {what}; row {row + 1} holds "
            f"{y[row]:g}."
        )


def prior_of(name: str, num_predictors: int) -> Prior:
    """The prior of an intercept and standardised coefficients."""
    intercept = np.full(1, INTERCEPT_SCALE)
    if name == "gaussian":
        return Gaussian(jnp.asarray(np.append(intercept, np.full(num_predictors, 2.5))))
    if name == "laplace":
        return Laplace(jnp.asarray(np.append(intercept, np.full(num_predictors, 1.0))))
    if name == "horseshoe":
        return Horseshoe()
    raise CommandError(f"--prior must be gaussian, laplace or horseshoe; got {name!r}.")

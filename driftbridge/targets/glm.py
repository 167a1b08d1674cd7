"""Generalised linear models: regressions whose batched score is two matrix products."""

import contextlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.runtime.batching import batched_score, outlined
from driftbridge.runtime.dtypes import cast_floating, default_dtype
from driftbridge.runtime.products import product
from driftbridge.targets.base import Observations, Target
from driftbridge.targets.families import FAMILIES, Family
from driftbridge.targets.leaves import is_concrete
from driftbridge.targets.priors import PRIORS, Prior


class GLM(Target):
    """A regression of `y` on the columns of `X`.

    `log p(x) = sum_i log p(y_i | eta_i, own) + log p(z) + log p(own)`, `eta = X beta(z) + offset`,
    at the position `x = [z, own]`: `z` belongs to the prior (the coefficients themselves, or the
    non-centred coordinates of the horseshoe) and `own` to the family (the log noise scale, if
    any). Terms free of `x` are dropped, as each family and prior states. The score of a batch of
    chains is `(C, d) @ (d, n)`, the family's residual, `(C, n) @ (n, d)`, and the prior's
    elementwise pull-back; no log density is evaluated in it.

    No intercept is added: give `X` a column of ones, and the prior a scale for it. New data of the
    same shape make a new `GLM`, for which nothing is compiled again.

    **Arguments:**

    - `X`: design of shape `(n, d)`, finite. It is kept with its transpose.
    - `y`: outcomes of shape `(n,)` in the support of the family.
    - `family`: a `Family` of `targets.families`, or "logistic", "poisson", "linear" (noise scale
      half-Cauchy of scale 1), "student" (the same, 4 degrees of freedom).
    - `prior`: a `Prior` of `targets.priors`, or "gaussian" (scale 2.5), "laplace" (scale 1),
      "horseshoe" (global scale half-Cauchy of scale 1).
    - `offset`: known part of the linear predictor, shape `(n,)`; None for none.
    - `names`: a label for each column, for `coords`; None for none.

    **Raises:** `ValueError` for shapes that do not match, numbers that are not finite and outcomes
    outside the support, with row and column; `TypeError` for a family or prior that is neither.

    McCullagh and Nelder (1989), section 2.2.
    """

    columns: Float[Array, "stored n"]
    rows: Float[Array, "n stored"]
    y: Float[Array, " n"]
    offset: Float[Array, " n"] | None
    family: Family
    prior: Prior
    num_coefficients: int = eqx.field(static=True)
    names: tuple[str, ...] | None = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(
        self,
        X: Any,
        y: Any,
        family: Family | str,
        prior: Prior | str = "gaussian",
        *,
        offset: Any = None,
        names: Sequence[str] | None = None,
    ):
        X = _numbers(X, "X")
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(f"X must have shape (n, d), one row an outcome; got {X.shape}.")
        n, d = X.shape
        self.names = None if names is None else _labels(names, d)
        _check_finite(X, "X", self.names)
        self.family = _choice(family, Family, FAMILIES, "family")
        self.prior = _choice(prior, Prior, PRIORS, "prior")
        self.prior.check(d)
        self.y = _column(y, "y", n, X.dtype)
        if is_concrete(self.y):
            self.family.check(np.asarray(y))
        self.offset = None if offset is None else _column(offset, "offset", n, X.dtype)
        space = np if is_concrete(X) else jnp
        stored = space.pad(X, ((0, 0), (0, _stored(d) - d))) if _stored(d) > d else X
        self.rows = jnp.asarray(stored)
        self.columns = jnp.asarray(stored.T)
        self.num_coefficients = d
        self.dim = self.prior.size(d) + self.family.size

    def log_density(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        self = cast_floating(self, x.dtype)
        z, own = self._split(x)
        eta = self._predictor(self.prior.coefficients(z))
        value = _total(self.family.pointwise(eta, self.y, own))
        return value + self.prior.log_density(z) + self.family.log_prior(own)

    def score(self, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return _score(self, x)

    def value_and_score(
        self, x: Float[Array, " dim"]
    ) -> tuple[Float[Array, ""], Float[Array, " dim"]]:
        return _value_and_score(self, x)

    def _score(self, x):
        self = cast_floating(self, x.dtype)
        z, own = self._split(x)
        eta = self._predictor(self.prior.coefficients(z))
        return self._gather(z, own, *self.family.residual(eta, self.y, own))

    def _value_and_score(self, x):
        self = cast_floating(self, x.dtype)
        z, own = self._split(x)
        eta = self._predictor(self.prior.coefficients(z))
        value, *residual = self.family.pointwise_and_residual(eta, self.y, own)
        value = _total(value) + self.prior.log_density(z) + self.family.log_prior(own)
        return value, self._gather(z, own, *residual)

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        z, own = self._split(x)
        return {**self.prior.constrain(z), **self.family.constrain(own)}

    def unconstrain(self, parameters: dict) -> Float[Array, " dim"]:
        return jnp.concatenate(
            [self.prior.unconstrain(parameters), self.family.unconstrain(parameters)]
        )

    @property
    def X(self) -> Float[Array, "n d"]:
        """The design."""
        return self.rows[:, : self.num_coefficients]

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        if self.names is None:
            return {}
        parameters = jax.eval_shape(self.constrain, jax.ShapeDtypeStruct((self.dim,), self.y.dtype))
        return {name: ("coefficient",) for name, value in parameters.items() if value.ndim == 1}

    @property
    def coords(self) -> dict[str, tuple[str, ...]]:
        return {} if self.names is None else {"coefficient": self.names}

    @property
    def observations(self) -> Observations:
        """The outcomes `y`, their normalised log likelihood, and replicated outcomes."""
        return Observations({"y": self.y}, self._log_likelihood, self._predict)

    def _log_likelihood(self, parameters):
        self, eta, own = self._given(parameters)
        return {"y": self.family.pointwise(eta, self.y, own) + self.family.constant(self.y)}

    def _predict(self, key, parameters):
        self, eta, own = self._given(parameters)
        return {"y": self.family.predict(key, eta, own)}

    def _given(self, parameters):
        coefficients = jnp.asarray(parameters["coefficients"])
        self = cast_floating(self, coefficients.dtype)
        return self, self._predictor(coefficients), self.family.unconstrain(parameters)

    def _split(self, x):
        size = self.dim - self.family.size
        return x[:size], x[size:]

    def _predictor(self, coefficients):
        padding = self.columns.shape[0] - self.num_coefficients
        eta = _products(self.columns, jnp.pad(coefficients, (0, padding)))
        return eta if self.offset is None else eta + self.offset

    def _gather(self, z, own, residual, by_own):
        pull = _adjoints((self.columns, self.rows), residual)[: self.num_coefficients]
        return jnp.concatenate([self.prior.score(z, pull), by_own + self.family.prior_score(own)])


def _product_many(columns, coefficients):
    if coefficients.shape[0] == 1:
        return product(coefficients[0], columns)[None]
    return product(coefficients, columns)


def _adjoint_many(design, residuals):
    columns, rows = design
    if residuals.shape[0] == 1:
        return product(columns, residuals[0])[None]
    return product(residuals, rows)


# Time of a score at d = 31, n = 569 on two cores: for one chain 1.8 us with `columns` in both
# products, 3.3 with `rows` in the second, 7.5 with `rows` in both; for four chains 7.1, 4.9, 9.6.
_products = batched_score(lambda columns, beta: product(beta, columns), _product_many)
_adjoints = batched_score(lambda design, residual: product(design[0], residual), _adjoint_many)


_score = batched_score(outlined(GLM._score), jax.vmap(GLM._score, (None, 0)))
_value_and_score = batched_score(
    outlined(GLM._value_and_score), jax.vmap(GLM._value_and_score, (None, 0))
)


def _total(pointwise):
    # A product with ones is a vectorised, blocked sum where XLA's reduction on a CPU is neither.
    return product(pointwise, jnp.ones_like(pointwise))


def _stored(d):
    # Products run a seventh faster on whole vectors of eight (31 -> 32 columns, 64 chains), and
    # slower when that adds more than a sixteenth (21 -> 24).
    padded = -(-d // 8) * 8
    return padded if 16 * (padded - d) <= d else d


def _numbers(array, name):
    if isinstance(array, jax.Array) and not is_concrete(array):
        return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
    array = np.asarray(array)
    if array.dtype.kind == "O":
        # Columns with gaps: None becomes nan, which is then reported by row.
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(float)
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} must hold numbers; got dtype {array.dtype}. Code categories as indicators."
        )
    return array if array.dtype.kind == "f" else array.astype(default_dtype())


def _column(array, name, n, dtype):
    array = _numbers(array, name)
    if array.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), a number for each row of X; got {array.shape}."
        )
    _check_finite(array, name, None)
    return jnp.asarray(array, jax.dtypes.canonicalize_dtype(dtype))


def _check_finite(array, name, names):
    if not is_concrete(array) or np.all(np.isfinite(array)):
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    where = f"row {place[0]}"
    if len(place) == 2:
        where += f", column {place[1] if names is None else repr(names[place[1]])}"
    raise ValueError(f"{name} is {array[place]} at {where}. Drop or impute rows that lack a value.")


def _labels(names, d):
    labels = tuple(str(name) if isinstance(name, str) else name for name in names)
    if len(labels) != d or len(set(labels)) != d or not all(isinstance(s, str) for s in labels):
        raise ValueError(f"names must be {d} different strings, one a column of X; got {labels}.")
    return labels


def _choice(choice, kind, known, role):
    if isinstance(choice, kind):
        return choice
    if isinstance(choice, str) and choice in known:
        return known[choice]()
    raise TypeError(f"{role} must be a {kind.__name__} or one of {sorted(known)}; got {choice!r}.")

"""A map for every condition, by one model."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from driftbridge.transport.base import Invertible, NotSupported, TransportMap, as_dtype
from driftbridge.transport.conditions import Classes, Numbers, given
from driftbridge.transport.learned import with_numbers
from driftbridge.transport.points import as_rows, like_rows, traced
from driftbridge.transport.streaming import streamed


class ConditionalMap(Invertible):
    """`T(x; c)`, a map from the source to the law of the target given `c`, for every `c`.

    `T.given(c)` is the map of one condition, with all that maps of its method can do: inverse,
    densities, trajectories, draws, a report. `T(x, condition=c)` carries each row by its own.

    - `model`: the map whose networks wait for a condition.
    - `encoding`: how a condition becomes the numbers that they see.
    """

    model: Invertible
    encoding: Classes | Numbers

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def dtype(self) -> Any:
        return self.model.dtype

    @property
    def row_floats(self) -> int:
        return self.model.row_floats

    def given(self, condition: Any) -> TransportMap:
        """The map of one condition.

        **Arguments:** `condition`: a class of those at the fit, a number, or `(k,)` numbers.

        **Raises:** `ValueError` for a class that was not there at the fit, or another shape.
        """
        codes = as_dtype(self.encoding.of(condition), self.dtype)
        fit = with_numbers(self.fit, {"condition": str(condition)})
        return dataclasses.replace(given(self.model, codes), fit=fit)

    def __call__(self, x: Any, condition: Any = None) -> Any:
        """The images `T(x; c)`.

        **Arguments:**

        - `x`: points `(n, dim)`, one point `(dim,)`, or a data frame with the columns of the fit.
        - `condition`: one for all points, or one for each: `(n,)`, numbers also `(n, k)`.

        **Returns:** the same kind of object as `x`.

        **Raises:** `ValueError` without a condition, and as `given` does.
        """
        return self._with_condition("_transport", x, condition, "x")

    def inverse(self, y: Any, condition: Any = None) -> Any:
        """The points whose images given the conditions are `y`; arguments as in a call.

        **Raises:** `ValueError` as a call does, and where the numbers do not reach a point.
        """
        return self._reached(self._with_condition("_inverse", y, condition, "y"))

    def cost(self, x: Any) -> Any:
        raise self._missing()

    def report(self, x: Any, y: Any, key: Any = 0) -> Any:
        raise self._missing()

    def _transport(self, x: Float[Array, "n _"]) -> Float[Array, "n dim"]:
        return self._of_joined("_transport", x)

    def _inverse(self, y: Float[Array, "n _"]) -> Float[Array, "n dim"]:
        return self._of_joined("_inverse", y)

    def _of_joined(self, method: str, rows: Float[Array, "n _"]) -> Float[Array, "n dim"]:
        """A method of the model, of rows with the codes of their conditions behind them."""
        return getattr(given(self.model, rows[:, self.dim :]), method)(rows[:, : self.dim])

    def _with_condition(self, method: str, x: Any, condition: Any, name: str) -> Any:
        if condition is None:
            raise self._missing()
        rows = as_rows(x, name, self.dim, self.fit.columns)
        batch = rows if rows.ndim > 1 else rows[None]
        codes = self.encoding.of(condition, len(batch))
        join = jnp.concatenate if traced(batch) else np.concatenate
        joined = join([batch, codes.astype(batch.dtype)], axis=1)
        out = streamed(self, method, joined)
        return like_rows(out if rows.ndim > 1 else out[0], x, self.fit.columns)

    def _missing(self) -> ValueError:
        return ValueError(
            f"the map was fitted with a condition ({self.encoding.label}): give one for each row, "
            "T(x, condition=c), or take the map of one, T.given(c)."
        )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(type(self.model), name):
            raise NotSupported(f"{name} is of the map of one condition: T.given(c).{name}.")
        return super().__getattr__(name)

"""Conditions of points: as users have them, as networks see them, and in pairs of a coupling."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from driftbridge.runtime.keys import as_key
from driftbridge.transport.base import as_dtype
from driftbridge.transport.couplings import Coupling, Pairs, TableCoupling
from driftbridge.transport.networks import network_for
from driftbridge.transport.points import traced


class Encoding(eqx.Module):
    """How conditions become numbers that a network sees."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one condition."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """How many numbers stand for one."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What a condition is, in words."""

    @abc.abstractmethod
    def codes(self, values: np.ndarray, name: str) -> Float[np.ndarray, "n width"]:
        """The numbers of conditions `(n, *shape)`.

        **Raises:** `ValueError` for a class that was not there at the fit, and for what is no
        finite number where numbers were.
        """

    def of(self, condition: Any, n: int | None = None, name: str = "condition") -> np.ndarray:
        """Codes `(n, width)` of one condition for all of `n` rows or of one for each; those of one
        condition, `(width,)`, where `n` is None."""
        if traced(condition):
            raise ValueError(
                f"{name} is traced, and must be known: inside jit take the map of one condition, "
                "T.given(c), from outside."
            )
        values = np.asarray(condition)
        if values.shape == self.shape:
            code = self.codes(values[None], name)[0]
            return code if n is None else np.broadcast_to(code, (n, self.width))
        if n is None or values.shape != (n, *self.shape):
            rows = "" if n is None else f", or {(n, *self.shape)} for one of each row"
            raise ValueError(
                f"{name} must have shape {self.shape}{rows}; got {values.shape}. The map was "
                f"fitted with {self.label}."
            )
        return self.codes(values, name)


class Classes(Encoding):
    """One of some classes: a one where it is that class, zeros elsewhere."""

    classes: tuple[Any, ...] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def width(self) -> int:
        return len(self.classes)

    @property
    def label(self) -> str:
        listed = ", ".join(str(value) for value in self.classes[:8])
        return f"classes {listed}{', ...' if len(self.classes) > 8 else ''}"

    def numbers(self, values: np.ndarray, name: str) -> Int[np.ndarray, " n"]:
        """Positions in `classes`."""
        position = {value: i for i, value in enumerate(self.classes)}
        given = values.tolist()
        for value in given:
            if value not in position:
                raise ValueError(f"{name} has {value}, which is none of the {self.label}.")
        return np.asarray([position[value] for value in given], np.int32)

    def codes(self, values: np.ndarray, name: str) -> Float[np.ndarray, "n width"]:
        return np.eye(self.width)[self.numbers(values, name)]


class Numbers(Encoding):
    """Numbers, less their mean and over their standard deviation."""

    mean: tuple[float, ...] = eqx.field(static=True)
    spread: tuple[float, ...] = eqx.field(static=True)
    is_scalar: bool = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.is_scalar else (len(self.mean),)

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def label(self) -> str:
        return "a number" if self.is_scalar else f"{self.width} numbers"

    def codes(self, values: np.ndarray, name: str) -> Float[np.ndarray, "n width"]:
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{name} must hold numbers, as at the fit; got dtype {values.dtype}.")
        rows = values.reshape(len(values), -1).astype(np.float64)
        _check_finite(rows, name)
        return (rows - np.asarray(self.mean)) / np.asarray(self.spread)


def as_condition(condition: Any, n: int, name: str) -> np.ndarray:
    """Conditions of `n` points: `(n,)` of integers, booleans or strings, or `(n,)` or `(n, k)` of
    floats.

    **Raises:** `ValueError` for another shape, other values, or one that is not finite.
    """
    values = np.asarray(condition)
    if values.dtype == object and all(isinstance(value, str) for value in values.ravel()):
        values = values.astype(str)
    if values.ndim not in (1, 2) or len(values) != n:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, k); got {values.shape}.")
    if values.dtype.kind not in "fiubU":
        raise ValueError(
            f"{name} must hold floats, or classes as integers, booleans or strings; got dtype "
            f"{values.dtype}."
        )
    if values.dtype.kind != "f" and values.ndim != 1:
        raise ValueError(f"classes must have shape ({n},); got {name} of shape {values.shape}.")
    if values.dtype.kind == "f":
        _check_finite(values, name)
    return values


def _check_finite(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name} holds a value that is not finite in row {row}.")


def encoding_of(condition: np.ndarray) -> Classes | Numbers:
    """The encoding of checked conditions."""
    if condition.dtype.kind != "f":
        return Classes(tuple(np.unique(condition).tolist()))
    rows = condition.reshape(len(condition), -1).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = rows.std(axis=0)
    if not np.isfinite(spread).all():
        raise ValueError(f"condition has values up to {np.abs(rows).max():.3g}: rescale it.")
    return Numbers(
        tuple(rows.mean(axis=0).tolist()),
        tuple(np.where(spread > 0, spread, 1.0).tolist()),
        is_scalar=condition.ndim == 1,
    )


class WithCondition(Coupling):
    """A coupling of tables, and the codes `(m, k)` of the conditions of its target's rows."""

    coupling: TableCoupling
    codes: Float[Array, "m k"]

    def _pairs(self, key: Key[Array, ""], n: int) -> Pairs:
        return self.coupling.pairs(key, n)

    def pairs_and_codes(
        self, key: int | Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n dim"], Float[Array, "n dim"], Float[Array, "n k"]]:
        """Pairs as `pairs` gives them, and the codes of each pair's condition."""
        i, j = self.coupling.rows(as_key(key), n)
        return self.coupling.x[i], self.coupling.y[j], self.codes[j]


def with_condition(coupling: Coupling, codes: np.ndarray | None) -> Coupling:
    """A coupling with its target's conditions, as it is where there are none.

    **Raises:** `ValueError` for a coupling that does not say which rows it pairs.
    """
    if codes is None:
        return coupling
    if not isinstance(coupling, TableCoupling) or len(coupling.y) != len(codes):
        raise ValueError(
            f"with a condition, the coupling must pair rows of the target's {len(codes)} points, "
            f"as ConditionalOT does; {type(coupling).__name__} does not."
        )
    return WithCondition(coupling, as_dtype(codes, coupling.y.dtype))


def drawn_with_codes(coupling: Coupling, key: Key[Array, ""], n: int) -> tuple[Array, Array, Any]:
    """Pairs, and the codes of their conditions, None where there are none."""
    if isinstance(coupling, WithCondition):
        return coupling.pairs_and_codes(key, n)
    return (*coupling.pairs(key, n), None)


class Conditioned(eqx.Module):
    """A network that is called with codes of conditions, or without where they are set."""

    network: Any
    codes: Float[Array, "..."] | None = None

    def __call__(self, t: Any, x: Float[Array, "n dim"], condition: Any = None) -> Array:
        codes = self.codes if condition is None else condition
        assert codes is not None
        return self.network(t, x, jnp.broadcast_to(codes, (x.shape[0], codes.shape[-1])))


def network_given(
    encoding: Encoding | None,
    network: Any,
    key: Key[Array, ""],
    num_in: int,
    num_out: int,
    dtype: Any,
) -> Any:
    """A network of points, and of conditions where there is an encoding of them."""
    if encoding is None:
        return network_for(network, key, num_in, num_out, dtype)
    return Conditioned(network_for(network, key, num_in, num_out, dtype, encoding.width))


def given(model: Any, codes: Float[Array, "..."]) -> Any:
    """A model whose networks have the conditions set."""

    def is_waiting(part):
        return isinstance(part, Conditioned)

    def set_in(part):
        return Conditioned(part.network, codes) if is_waiting(part) else part

    return jax.tree.map(set_in, model, is_leaf=is_waiting)

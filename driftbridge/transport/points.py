"""Points as users have them: arrays and data frames, checked once at the door."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Shaped

# Weights as users compute them in float32 sum to one up to this.
SUM_ERROR = 1e-4


class Sample(NamedTuple):
    """Points of one law with their weights, which sum to one, and their conditions."""

    points: Float[np.ndarray, "n dim"]
    weights: Float[np.ndarray, " n"]
    condition: Shaped[np.ndarray, "n ..."] | None = None


def is_frame(data: Any) -> bool:
    """Whether `data` is a data frame of pandas or polars."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def columns_of(data: Any) -> tuple[str, ...] | None:
    """Names of the columns of a data frame, None for arrays."""
    return tuple(str(name) for name in data.columns) if is_frame(data) else None


def as_rows(data: Any, name: str, dim: int | None = None, columns: Any = None) -> Any:
    """Points as an array of shape `(n, dim)` or `(dim,)`, finite unless it is traced.

    A data frame must have the given columns, in any order.

    **Raises:** `ValueError` naming what is wrong, and in which row (rows count from 0).
    """
    if is_frame(data):
        data = _ordered(data, name, columns)
    elif not isinstance(data, jax.Array):
        data = np.asarray(data)
    if data.dtype == object or not jnp.issubdtype(data.dtype, jnp.number):
        raise ValueError(f"{name} must hold numbers; got dtype {data.dtype}.")
    if jnp.issubdtype(data.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must hold real numbers; got dtype {data.dtype}.")
    if not jnp.issubdtype(data.dtype, jnp.floating):
        data = data.astype(jnp.result_type(float))
    if data.ndim not in (1, 2) or (dim is not None and data.shape[-1] != dim):
        wanted = "(n, dim)" if dim is None else f"(n, {dim}) or ({dim},)"
        raise ValueError(f"{name} must have shape {wanted}; got {data.shape}.")
    if not isinstance(data, Tracer):
        _check_finite(data, name)
    return data


def _ordered(frame: Any, name: str, columns: Any) -> np.ndarray:
    have = columns_of(frame)
    assert have is not None
    if len(set(have)) < len(have):
        twice = next(c for c in have if have.count(c) > 1)
        raise ValueError(f"{name} has two columns {twice!r}; give each a name of its own.")
    order = list(range(len(have)))
    if columns is not None and have != tuple(columns):
        missing = [c for c in columns if c not in have]
        extra = [c for c in have if c not in columns]
        if missing or extra:
            raise ValueError(
                f"{name} must have the columns {', '.join(columns)}; it lacks {missing or 'none'} "
                f"and has {extra or 'none'} beside them."
            )
        order = [have.index(c) for c in columns]
    values = frame.to_numpy()
    if values.dtype != object and np.issubdtype(values.dtype, np.number):
        return values[:, order]
    return np.stack([_numbers(frame, i, have[i], name) for i in order], axis=1)


def _numbers(frame: Any, i: int, column: str, name: str) -> np.ndarray:
    """Column `i` in float64, missing values as NaN.

    **Raises:** `ValueError` naming the column.
    """
    values = frame[frame.columns[i]]
    try:
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    except TypeError:  # polars knows no na_value
        found = np.asarray(values)
    except ValueError:
        found = np.asarray(values, dtype=object)
    if np.asarray(values).dtype.kind in "mM" or found.dtype.kind not in "buif":
        raise ValueError(
            f"{name} must hold numbers: column {column!r} does not. Code categories as columns of "
            "0 and 1, dates as numbers."
        )
    return found.astype(np.float64)


def _check_finite(data: Any, name: str) -> None:
    values = np.asarray(data)
    if np.isfinite(values).all():
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(values.dtype))
        if values.size and np.abs(values).max() > float(np.finfo(dtype).max) ** 0.5:
            raise ValueError(
                f"{name} holds {values.ravel()[np.abs(values).argmax()]:.3g}, whose square is too "
                f"large for {dtype}; scale it."
            )
        return
    if values.ndim == 1:
        value = _named(values[~np.isfinite(values)][0])
        raise ValueError(f"{name} holds {value}; points must be finite.")
    row, column = np.argwhere(~np.isfinite(values))[0]
    raise ValueError(
        f"{name} holds {_named(values[row, column])} in row {row}, column {column}; drop or impute "
        "it."
    )


def _named(value: Any) -> str:
    # As scikit-learn writes it, whose checks of estimators look for it.
    return "NaN" if np.isnan(value) else str(value)


def like_rows(out: Any, data: Any, columns: tuple[str, ...] | None = None) -> Any:
    """`out` as the kind of object that `data` is: frame, NumPy or JAX array, of its dtype.

    `columns` are those of `out`; a frame gets them in the order in which `data` has them.
    """
    if is_frame(data):
        values = np.asarray(out)
        if values.shape != (len(data), len(data.columns)):
            return values
        if columns is not None:
            values = values[:, [columns.index(str(name)) for name in data.columns]]
        if hasattr(data, "index"):
            return type(data)(values, index=data.index, columns=data.columns)
        return type(data)(values, schema=list(data.columns))
    dtype = data.dtype if hasattr(data, "dtype") else None
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and out.dtype != dtype:
        out = out.astype(jax.dtypes.canonicalize_dtype(dtype))
    return jax.device_put(out) if isinstance(data, jax.Array) else np.asarray(out)


def as_weights(weights: Any, n: int, name: str) -> Float[np.ndarray, " n"]:
    """Weights of `n` points in float64, equal if None, that sum to one exactly.

    **Raises:** `ValueError` for another number of them, a negative one, or another sum.
    """
    if weights is None:
        return np.full(n, 1 / n)
    values = np.asarray(weights, np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} has {n} points, but its weights have shape {values.shape}.")
    if not np.isfinite(values).all() or (values < 0).any():
        row = int(np.argmax(~(np.isfinite(values) & (values >= 0))))
        raise ValueError(f"weights of the {name} must be at least 0; row {row} has {values[row]}.")
    total = values.sum()
    if abs(total - 1) > SUM_ERROR:
        raise ValueError(
            f"weights of the {name} must sum to 1; they sum to {total:.6g}. Divide them by it."
        )
    return values / total


def traced(x: Any) -> bool:
    """Whether `x` is being traced, so that its numbers cannot be looked at."""
    return isinstance(x, Tracer)

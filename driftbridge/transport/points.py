"""Points as users have them: arrays and data frames, checked once at the door."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

# A scale this many times another's dominates a squared distance.
RATIO = 20.0
# Fewer points than this many per dimension leave a covariance nearly singular.
POINTS_PER_DIM = 5
# Weights as users compute them in float32 sum to one up to this.
SUM_ERROR = 1e-4


class Sample(NamedTuple):
    """Points of one law with their weights, which sum to one."""

    points: Float[np.ndarray, "n dim"]
    weights: Float[np.ndarray, " n"]


class Pair(NamedTuple):
    """Two data sets that have passed the door, and what was noticed there."""

    source: Sample
    target: Sample
    columns: tuple[str, ...] | None
    messages: tuple[str, ...]


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
        raise ValueError(f"{name} holds {values[~np.isfinite(values)][0]}; points must be finite.")
    row, column = np.argwhere(~np.isfinite(values))[0]
    raise ValueError(
        f"{name} holds {values[row, column]} in row {row}, column {column}; drop or impute it."
    )


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


def pair_of(x: Any, y: Any, source_weights: Any = None, target_weights: Any = None) -> Pair:
    """Check two data sets and their weights.

    **Raises:** `ValueError` for what cannot be fitted: too few points, other dimensions or columns,
    values that are not finite, weights that are negative or do not sum to one.
    """
    columns, others = columns_of(x), columns_of(y)
    if columns is not None and others is not None and set(columns) != set(others):
        only = [c for c in columns if c not in others], [c for c in others if c not in columns]
        raise ValueError(
            f"source and target must have the same columns; only the source has {only[0]}, only "
            f"the target {only[1]}."
        )
    names = columns or others
    rows = as_rows(x, "source", columns=names), as_rows(y, "target", columns=names)
    for name, data in zip(("source", "target"), rows, strict=True):
        if data.ndim != 2:
            raise ValueError(
                f"{name} must have shape (n, dim); got {data.shape}. One column of data is "
                "data[:, None]."
            )
        if len(data) < 2 or data.shape[1] < 1:
            raise ValueError(f"{name} must have at least 2 rows and 1 column; got {data.shape}.")
    if rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(
            f"source and target must have one dimension; got {rows[0].shape[1]} and "
            f"{rows[1].shape[1]} columns."
        )
    dtype = jax.dtypes.canonicalize_dtype(np.result_type(rows[0].dtype, rows[1].dtype))
    dtype = np.float32 if np.dtype(dtype).itemsize < 4 else np.dtype(dtype)
    notices, samples = [], []
    for data, weights, name in zip(
        rows, (source_weights, target_weights), ("source", "target"), strict=True
    ):
        mass = as_weights(weights, len(data), name)
        kept = mass > 0  # a point without weight is none
        if kept.sum() < 2:
            raise ValueError(f"{name} must have weight on at least 2 rows; it has it on one.")
        whole = np.asarray(data)[kept]
        notices += _lost_digits(whole, name, np.dtype(dtype), names)
        samples.append(Sample(whole.astype(dtype), mass[kept]))
    source, target = samples
    notices += _notices(source, target, names)
    return Pair(source, target, names, tuple(notices))


def _lost_digits(
    points: np.ndarray, name: str, dtype: np.dtype, columns: tuple[str, ...] | None
) -> list[str]:
    """Columns whose spread a coarser dtype hardly resolves."""
    spread, size = points.std(axis=0, dtype=np.float64), np.abs(points).max(axis=0)
    lost = np.flatnonzero((spread > 0) & (spread < 1e3 * np.finfo(dtype).eps * size))
    if not lost.size:
        return []
    listed = ", ".join(_label(i, columns) for i in lost[:5])
    return [
        f"{dtype} hardly resolves what varies in the {name}: {listed}; subtract an offset, or "
        "enable x64"
    ]


def effective_size(weights: Float[np.ndarray, " n"]) -> float:
    """`1 / sum w_i^2`: how many points of equal weight would be as good."""
    return float(1 / np.sum(weights**2))


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


def _notices(source: Sample, target: Sample, columns: tuple[str, ...] | None) -> list[str]:
    """What a user should know about the data before believing a map."""
    dim = source.points.shape[1]
    notices, spreads = [], []
    for name, sample in (("source", source), ("target", target)):
        spread = np.asarray(sample.points, np.float64).std(axis=0)
        spreads.append(spread)
        n = round(effective_size(sample.weights))
        if n < POINTS_PER_DIM * dim:
            notices.append(
                f"the {name} has {n} points in {dim} dimensions, fewer than {POINTS_PER_DIM} for "
                "each: expect an error of the order of the noise, and new rows that lie off the "
                "span of these to be extrapolated"
            )
        constant = np.flatnonzero(np.ptp(sample.points, axis=0) == 0)
        if constant.size:
            listed = ", ".join(_label(i, columns) for i in constant[:5])
            notices.append(f"constant in the {name}: {listed}")
        spread[constant] = 0  # rounding of the mean leaves some
        varying = spread[spread > 0]
        if varying.size and varying.max() > RATIO * varying.min():
            largest, least = int(np.argmax(spread)), np.flatnonzero(spread == varying.min())[0]
            notices.append(
                f"scales in the {name} differ by a factor of {varying.max() / varying.min():.0f} "
                f"({_label(largest, columns)} against {_label(least, columns)}): distances are "
                "those of the larger ones; standardise the columns unless that is meant"
            )
    known = (spreads[0] > 0) & (spreads[1] > 0)
    ratio = np.where(known, np.maximum(spreads[1], 1e-300) / np.maximum(spreads[0], 1e-300), 1.0)
    far = int(np.argmax(np.abs(np.log(ratio))))
    if not 1 / RATIO <= ratio[far] <= RATIO:
        notices.append(
            f"{_label(far, columns)} has {ratio[far]:.3g} times the scale in the target that it "
            "has in the source: are the units the same?"
        )
    return notices


def _label(i: Any, columns: tuple[str, ...] | None) -> str:
    return f"column {i}" if columns is None else columns[i]


def traced(x: Any) -> bool:
    """Whether `x` is being traced, so that its numbers cannot be looked at."""
    return isinstance(x, Tracer)

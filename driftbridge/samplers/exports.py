"""Draws as tables and trees of other libraries."""

from collections.abc import Mapping
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from driftbridge.runtime.keys import as_key, streams
from driftbridge.targets.base import Target

if TYPE_CHECKING:
    from driftbridge.samplers.draws import Draws

# ArviZ's names for statistics whose own differ.
ARVIZ_NAMES = {"is_divergent": "diverging", "log_density": "lp"}
# Draws predicted at once; the last block is padded, so no number of draws compiles again.
BLOCK = 256


@jax.jit
def _predict(target: Target, key: Key[Array, ""], positions, numbers) -> tuple[dict, dict]:
    observations = target.observations
    assert observations is not None  # `predictive` has refused a target without them

    def one(position, number):
        parameters = target.constrain(position)
        replicated = observations.predict(jax.random.fold_in(key, number), parameters)
        return replicated, observations.log_likelihood(parameters)

    return jax.vmap(one)(positions, numbers)


def predictive(draws: "Draws", key: int | Key[Array, ""] = 0) -> tuple[dict, dict]:
    """Replicated data and pointwise log likelihood by name, each `(chains, draws, *event)`.

    Draw number `i`, counted over chains and then draws, uses `fold_in(prediction, i)` of the stream
    that `key` has for it, so a run and its predictions may have one seed.

    **Raises:** `ValueError` if the target has no observations.
    """
    if draws.target.observations is None:
        raise ValueError(
            f"{type(draws.target).__name__} has no observations, so nothing can be predicted; "
            "leave out predictive=True, or give the target `observations`."
        )
    chains, total = draws.num_chains, draws.num_chains * draws.num_draws
    flat, key = draws.positions.reshape(total, draws.dim), streams(as_key(key)).prediction
    parts = []
    for start in range(0, total, BLOCK):
        numbers = np.minimum(np.arange(start, start + BLOCK, dtype=np.int32), total - 1)
        out = _predict(draws.target, key, jnp.asarray(flat[numbers]), jnp.asarray(numbers))
        parts.append(jax.tree.map(lambda leaf, n=total - start: np.asarray(leaf)[:n], out))

    def join(*leaves):
        whole = np.concatenate(leaves)
        return whole.reshape(chains, -1, *whole.shape[1:])

    return jax.tree.map(join, *parts)


def _dataset(arrays: Mapping[str, Any], target: Target, lead: tuple[str, ...] = ("chain", "draw")):
    import xarray

    variables, coords = {}, {}
    for name, value in arrays.items():
        extra = value.ndim - len(lead)
        # A pointwise log likelihood has lost the axes of an event; others may have no name.
        known = target.dims.get(name, ())[:extra]
        dims = (*known, *(f"{name}_dim_{i}" for i in range(len(known), extra)))
        variables[name] = ((*lead, *dims), value)
        for axis, size in zip((*lead, *dims), value.shape, strict=True):
            coords[axis] = list(target.coords.get(axis, range(size)))
    return xarray.Dataset(variables, coords)


def _groups(draws: "Draws", with_predictive: bool, key: int | Key[Array, ""]) -> dict[str, Any]:
    dataset = partial(_dataset, target=draws.target)
    stats = {ARVIZ_NAMES.get(name, name): value for name, value in draws.stats.items()}
    groups = {
        "posterior": dataset(draws.parameters),
        "sample_stats": dataset(stats | {"lp": draws.log_density}),
    }
    groups["posterior"].attrs = _attributes(draws)
    observations = draws.target.observations
    if with_predictive:
        replicated, log_likelihood = predictive(draws, key)
        groups["posterior_predictive"] = dataset(replicated)
        groups["log_likelihood"] = dataset(log_likelihood)
    if observations is not None:
        data = {name: np.asarray(value) for name, value in observations.data.items()}
        groups["observed_data"] = dataset(data, lead=())
    if draws.warmup is not None:
        for name, group in _groups(draws.warmup, False, key).items():
            if name != "observed_data":
                groups[f"warmup_{name}"] = group
    return groups


def _attributes(draws: "Draws") -> dict[str, Any]:
    """What describes the run, in types that NetCDF holds."""
    import driftbridge

    plain = {n: v for n, v in draws.metadata.items() if isinstance(v, str | int | float)}
    plain = {n: int(v) if isinstance(v, bool) else v for n, v in plain.items()}
    library = {"inference_library": driftbridge.__name__}
    return library | plain | {"sampler": draws.sampler_name}


def to_xarray(draws: "Draws", with_predictive: bool, key: int | Key[Array, ""]):
    """See `Draws.to_xarray`."""
    import xarray

    return xarray.DataTree.from_dict(_groups(draws, with_predictive, key))


def to_arviz(draws: "Draws", with_predictive: bool, key: int | Key[Array, ""]):
    """See `Draws.to_arviz`."""
    import warnings
    from importlib.metadata import version

    if int(version("arviz").split(".")[0]) >= 1:
        return to_xarray(draws, with_predictive, key)
    with warnings.catch_warnings():  # 0.23 announces its successor at import
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz.InferenceData(**_groups(draws, with_predictive, key))


def to_dataframe(draws: "Draws"):
    """See `Draws.to_dataframe`."""
    import pandas

    chains, length = draws.num_chains, draws.num_draws
    columns = {
        "chain": np.repeat(np.arange(chains), length),
        "draw": np.tile(np.arange(length), chains),
    }
    blocks = (np.reshape(block, (chains * length, -1)) for block in draws.blocks())
    values = (column for block in blocks for column in block.T)
    return pandas.DataFrame(columns | dict(zip(draws.names, values, strict=True)))


def to_html(draws: "Draws", rows: int = 20) -> str:
    """What a notebook shows: the verdict, the findings, and the worst rows of the table."""
    shown = draws.worst(rows) if len(draws.names) > rows else list(draws.names)
    verdict = draws.convergence
    head = "Converged" if verdict.converged else "Not converged"
    items = "".join(f"<li>{escape(finding.message)}</li>" for finding in draws.warnings)
    table = draws.summary().loc[shown].to_html(float_format=lambda v: f"{v:.4g}", border=0)
    more = f"<p>{len(shown)} worst of {len(draws.names)} parameters</p>"
    return (
        f"<div><p><b>{head}</b>: {escape(verdict.sentence)}. {draws.num_chains} chains of "
        f"{draws.num_draws} draws by {escape(draws.sampler_name)}.</p>"
        f"{f'<ul>{items}</ul>' if items else ''}{table}"
        f"{more if len(shown) < len(draws.names) else ''}</div>"
    )

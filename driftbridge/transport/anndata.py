"""Maps between groups of cells in an AnnData object."""

from typing import Any

import numpy as np
from jaxtyping import Array, Key

from driftbridge.transport.base import Method, TransportMap
from driftbridge.transport.fit import fit_map as fit_points

UNS = "driftbridge"


def fit_map(
    adata: Any,
    groupby: str,
    source: Any,
    target: Any,
    use_rep: str | None = "X_pca",
    method: str | Method = "auto",
    key: int | Key[Array, ""] = 0,
    key_added: str = "X_transport",
) -> TransportMap:
    """Fit a map from one group of observations to another and write the images into `adata`.

    `adata.obsm[key_added]` holds the representation in which the source has been carried to the
    target and every other observation is as it was; `adata.uns["driftbridge"][key_added]` says how,
    in types that `write_h5ad` stores.

    **Arguments:**

    - `adata`: an `AnnData`.
    - `groupby`: a column of `adata.obs`; `source`, `target`: two of its values.
    - `use_rep`: a key of `adata.obsm`; None for `adata.X`, which must be dense.
    - `method`, `key`: as in `driftbridge.fit_map`.
    - `key_added`: where the result goes.

    **Returns:** the map, which carries new cells in the same representation.

    **Raises:** `ValueError` for a column, group or representation that is not there, and for
    coordinates that are not finite, naming the observation.
    """
    points = representation(adata, use_rep)
    if groupby not in adata.obs:
        raise ValueError(f"adata.obs has no column {groupby!r}; it has {', '.join(adata.obs)}.")
    groups = np.asarray(adata.obs[groupby].astype(str))
    source, target = str(source), str(target)
    for name in (source, target):
        rows = np.flatnonzero(groups == name)
        if not rows.size:
            known = ", ".join(sorted(set(groups)))
            raise ValueError(f"no observation has {groupby} = {name!r}; there are {known}.")
        broken = rows[~np.isfinite(points[rows]).all(axis=1)]
        if broken.size:
            raise ValueError(
                f"observation {adata.obs_names[broken[0]]!r} (row {broken[0]}) of {name!r} has "
                "coordinates that are not finite; drop or impute it."
            )
    fitted = fit_points(points[groups == source], points[groups == target], method, key)
    kept = points.dtype if np.issubdtype(points.dtype, np.floating) else fitted.dtype
    moved = points.astype(kept, copy=True)
    moved[groups == source] = fitted(points[groups == source])
    adata.obsm[key_added] = moved
    fit = fitted.fit
    adata.uns.setdefault(UNS, {})[key_added] = {
        "groupby": groupby,
        "source": source,
        "target": target,
        "use_rep": "X" if use_rep is None else use_rep,
        "method": fit.method,
        "reason": fit.reason,
        "converged": fit.converged,
        "messages": np.array(fit.messages, dtype=object) if fit.messages else "",
    }
    return fitted


def representation(adata: Any, use_rep: str | None) -> np.ndarray:
    """The points of all observations.

    **Raises:** `ValueError` where there are none of that name, or `X` is sparse.
    """
    if use_rep is None:
        if not isinstance(adata.X, np.ndarray):
            raise ValueError(
                f"adata.X is a {type(adata.X).__name__}; a map needs few dense coordinates, such "
                "as use_rep='X_pca'."
            )
        return adata.X
    if use_rep not in adata.obsm:
        known = ", ".join(adata.obsm) or "nothing"
        raise ValueError(f"adata.obsm has no {use_rep!r}; it has {known}.")
    return np.asarray(adata.obsm[use_rep])

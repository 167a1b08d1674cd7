"""Maps between groups of cells."""

import numpy as np
import pytest

import driftbridge as db

anndata = pytest.importorskip("anndata")

from driftbridge.transport import DataWarning  # noqa: E402
from driftbridge.transport.anndata import fit_map  # noqa: E402

pytestmark = pytest.mark.slow


def cells():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(90, 3)).astype(np.float32)
    batch = np.repeat(["a", "b", "c"], 30)
    points[batch == "b"] += 4
    adata = anndata.AnnData(np.zeros((90, 5), np.float32))
    adata.obsm["X_pca"] = points
    adata.obs["batch"] = batch
    return adata, points


def test_results_survive_the_file(tmp_path):
    adata, points = cells()
    fitted = fit_map(adata, "batch", "a", "b", method="affine")
    moved = adata.obsm["X_transport"]
    assert np.allclose(moved[:30], fitted(points[:30])) and np.array_equal(moved[30:], points[30:])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert np.array_equal(read.obsm["X_transport"], moved)
    facts = read.uns["driftbridge"]["X_transport"]
    assert facts["source"] == "a" and facts["method"] == "affine" and bool(facts["converged"])
    path = fitted.save(tmp_path / "map.npz")
    assert np.array_equal(db.load(path)(points), fitted(points))


def test_messages_survive_too(tmp_path):
    adata, points = cells()
    adata.obsm["X_pca"] = points * np.float32([1, 100, 1])
    with pytest.warns(DataWarning) as said:
        fit_map(adata, "batch", "a", "c", method="affine", key_added="X_other")
    assert "scales in the source" in str(said[0].message)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    facts = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["driftbridge"]["X_other"]
    assert "scales in the source" in facts["messages"][0]


def test_what_is_missing_is_named():
    adata, _ = cells()
    with pytest.raises(ValueError, match="no column 'day'; it has batch"):
        fit_map(adata, "day", "a", "b")
    with pytest.raises(ValueError, match="batch = 'z'; there are a, b, c"):
        fit_map(adata, "batch", "a", "z")
    with pytest.raises(ValueError, match="no 'X_umap'; it has X_pca"):
        fit_map(adata, "batch", "a", "b", use_rep="X_umap")
    with pytest.raises(ValueError, match="batch = '3'; there are a, b, c"):
        fit_map(adata, "batch", "a", 3)
    row = int(np.flatnonzero(adata.obs["batch"] == "b")[2])
    adata.obsm["X_pca"][row, 0] = np.nan
    with pytest.raises(ValueError, match=rf"\(row {row}\) of 'b' has coordinates that are not"):
        fit_map(adata, "batch", "a", "b")

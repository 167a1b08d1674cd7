"""Draws on disk: a folder with a Zarr 3 store that grows by chunks, and a checkpoint beside it.

    DIR/draws.zarr       the draws; `xarray.open_datatree(..., engine="zarr", consolidated=False)`
    DIR/checkpoint.npz   the state of every chain after the last complete chunk
    DIR/run.npz          what was run: target, sampler, settings

Draws are written before the checkpoint and the checkpoint replaces the old one by a rename, so at
any moment the checkpoint speaks of draws that are there; what lies beyond it is cut on resume.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "driftbridge-draws"
VERSION = 1
DRAWS, CHECKPOINT = "draws.zarr", "checkpoint.npz"
# Draws in one Zarr chunk (a chunk file is rewritten whole, and replaced by a rename), and the grid
# on which chunks of a run are cut, stopping rules evaluated and reducers updated.
GRID = 128


class StoreError(RuntimeError):
    """A store that cannot be used; the message says why and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system failure while writing into a `StoreError` with the cure."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"writing to {path} failed: {error}. Draws up to the last checkpoint are intact; free "
            "space (or mend the path) and go on with driftbridge.resume."
        ) from error


class Stored:
    """The first `draws` draws of an array `(chain, draw, *event)` on disk, read when indexed."""

    def __init__(self, handle: Any, draws: int):
        self.handle = handle
        self.shape = (handle.shape[0], draws, *handle.shape[2:])
        self.dtype = handle.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if len(index) < 2:
            index = (*index, slice(None))
        start, stop, step = index[1].indices(self.shape[1])
        return np.asarray(self.handle[(index[0], slice(start, stop, step), *index[2:])])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class StoredArrays(Mapping[str, np.ndarray]):
    """Arrays `(chain, draw, *event)` by name that stay on disk until they are read."""

    # Numbers read at once by `blocks`.
    BLOCK = 1 << 21

    def __init__(self, handles: Mapping[str, Stored]):
        self.handles = handles

    def __getitem__(self, name: str) -> np.ndarray:
        return self.handles[name][:]

    def __iter__(self) -> Iterator[str]:
        return iter(self.handles)

    def __len__(self) -> int:
        return len(self.handles)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, read from metadata alone."""
        return {name: tuple(handle.shape) for name, handle in self.handles.items()}

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """An array in parts `(chain, draw, entries)` of bounded size, over its flattened event."""
        handle = self.handles[name]
        chains, draws, *event = handle.shape
        if not event:
            yield handle[:][..., None]
            return
        row = max(chains * draws * int(np.prod(event[1:])), 1)
        step = max(1, self.BLOCK // row)
        for start in range(0, event[0], step):
            part = handle[:, :, start : start + step]
            yield part.reshape(chains, draws, -1)


class DrawStore:
    """Groups of arrays `(chain, draw, ...)` in one Zarr directory.

    Groups are ArviZ's: `posterior`, `sample_stats`, `unconstrained_posterior`, and the same with
    `warmup_` before. They can be opened between chunks, while a run goes on too.
    """

    def __init__(self, path: Path, root: Any):
        self.path = path
        self.root = root

    @classmethod
    def create(cls, path: str | os.PathLike, attributes: Mapping[str, Any]) -> "DrawStore":
        """A new store.

        **Raises:** `StoreError` if `path` already holds something.
        """
        import zarr

        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(
                f"{path} already exists and is not empty. Go on with that run by "
                "driftbridge.resume(path), or choose another path."
            )
        with writing(path):
            # In one write: a process that dies leaves no store without its format.
            known = {"format": FORMAT, "version": VERSION, **attributes}
            root = zarr.create_group(path / DRAWS, zarr_format=3, attributes=known)
        return cls(path, root)

    @classmethod
    def open(cls, path: str | os.PathLike, mode: str = "r+") -> "DrawStore":
        """An existing store.

        **Raises:** `StoreError` if there is none, or it is another format or a newer version.
        """
        import zarr

        path = Path(path)
        if not (path / DRAWS / "zarr.json").exists():
            raise StoreError(f"{path} holds no run of driftbridge (there is no {DRAWS} in it).")
        root = zarr.open_group(path / DRAWS, mode=mode)  # type: ignore[arg-type]
        found = root.attrs.get("format"), root.attrs.get("version")
        if found[0] != FORMAT:
            raise StoreError(f"{path} is a Zarr store, but not of driftbridge draws.")
        if found[1] != VERSION:
            raise StoreError(
                f"{path} has version {found[1]} of the format; this release reads {VERSION}."
            )
        return cls(path, root)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store."""
        return dict(self.root.attrs)

    def groups(self) -> tuple[str, ...]:
        """Names of the groups present."""
        return tuple(sorted(name for name, _ in self.root.groups()))

    def append(
        self,
        group: str,
        arrays: Mapping[str, np.ndarray],
        at: int,
        dims: Mapping[str, tuple[str, ...]] | None = None,
        coords: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Write arrays `(chain, draw, *event)` so that they begin at draw `at`.

        What was there beyond `at` is overwritten or cut. `dims` names event axes of an array,
        `coords` labels them.
        """
        with writing(self.path):
            if group not in self.root:
                self._create(group, arrays, dims or {}, coords or {})
            node, (end,) = self.root[group], {at + v.shape[1] for v in arrays.values()}
            for name, values in arrays.items():
                self._write(node[name], values, at)
            self._write(node["draw"], np.arange(at, end), at)

    def _write(self, array: Any, values: np.ndarray, at: int) -> None:
        """Put values at `at` along the axis of draws, and end the array behind them."""
        axis = array.metadata.dimension_names.index("draw")
        shape = list(array.shape)
        shape[axis] = at + values.shape[axis]
        array.resize(tuple(shape))
        array[(slice(None),) * axis + (slice(at, shape[axis]),)] = values

    def _create(self, group, arrays, dims, coords) -> None:
        node = self.root.require_group(group)
        chains = next(iter(arrays.values())).shape[0]
        node.create_array(
            "draw", shape=(0,), dtype="int64", chunks=(8192,), dimension_names=("draw",)
        )
        chain = node.create_array(
            "chain", shape=(chains,), dtype="int64", dimension_names=("chain",)
        )
        chain[:] = np.arange(chains)
        node.attrs["order"] = list(arrays)
        used = set()
        for name, values in arrays.items():
            event = values.shape[2:]
            axes = dims.get(name, tuple(f"{name}_dim_{i}" for i in range(len(event))))
            used.update(axes)
            node.create_array(
                name,
                shape=(chains, 0, *event),
                dtype=values.dtype,
                chunks=(chains, GRID, *(max(1, n) for n in event)),
                dimension_names=("chain", "draw", *axes),
            )
        for axis in used & coords.keys():
            labels = np.asarray(coords[axis], dtype=np.dtypes.StringDType())
            label = node.create_array(
                axis, shape=labels.shape, dtype="string", dimension_names=(axis,)
            )
            label[:] = labels

    def length(self, group: str) -> int:
        """Draws that every array of a group has; 0 where it does not exist.

        A process that dies while it writes leaves arrays of unequal length.
        """
        if group not in self.root:
            return 0
        node = self.root[group]
        if "order" not in node.attrs:
            return 0
        names = [*node.attrs["order"], "draw"]
        if any(name not in node for name in names):
            return 0
        axes = [node[name].metadata.dimension_names.index("draw") for name in names]
        return min(int(node[name].shape[axis]) for name, axis in zip(names, axes, strict=True))

    def truncate(self, group: str, length: int) -> None:
        """Cut the arrays of a group to their first `length` draws."""
        if group not in self.root:
            return
        if length == 0:
            del self.root[group]  # it may be half made; it is made anew when it is written
            return
        for _, array in self.root[group].arrays():
            names = array.metadata.dimension_names
            if "draw" in names:
                axis = names.index("draw")
                if array.shape[axis] > length:
                    array.resize((*array.shape[:axis], length, *array.shape[axis + 1 :]))

    def arrays(self, group: str, draws: int | None = None) -> StoredArrays:
        """The arrays of a group that have a draw axis, or their first `draws` draws.

        They come in the order in which they were first written.
        """
        if group not in self.root or "order" not in self.root[group].attrs:
            return StoredArrays({})
        node = self.root[group]
        length = self.length(group) if draws is None else draws
        return StoredArrays({name: Stored(node[name], length) for name in node.attrs["order"]})

    def labels(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """`dims` and `coords` of the posterior, as a target gives them."""
        if "posterior" not in self.root:
            return {}, {}
        node = self.root["posterior"]
        dims, coords = {}, {}
        for name, array in node.arrays():
            axes = array.metadata.dimension_names
            if axes[:2] == ("chain", "draw"):
                dims[name] = tuple(axes[2:])
            elif name not in ("chain", "draw"):
                coords[name] = tuple(str(label) for label in array[:])
        return dims, coords

    def save_checkpoint(self, arrays: list[np.ndarray], facts: Mapping[str, Any]) -> None:
        """Replace the checkpoint by these arrays and JSON-able facts."""
        save_arrays(self.path / CHECKPOINT, arrays, facts)

    def load_checkpoint(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The last checkpoint.

        **Raises:** `StoreError` if the run was stopped before its first one.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            raise StoreError(
                f"{self.path} has no checkpoint: the run was stopped before its first chunk was "
                "written, so there is nothing to go on from. Delete it and start again."
            )
        return load_arrays(path)


def save_arrays(path: Path, arrays: list[np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON-able facts to one file, which appears by a rename, whole or not."""
    partial = path.with_suffix(".partial")
    with writing(path.parent):
        with partial.open("wb") as file:
            named = {f"a{i}": array for i, array in enumerate(arrays)}
            np.savez(file, facts=np.asarray(json.dumps(facts)), **named)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def load_arrays(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Inverse of `save_arrays`."""
    with np.load(path, allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))
        arrays = [file[f"a{i}"] for i in range(len(file.files) - 1)]
    return arrays, facts

"""Trees of modules as JSON and arrays, without pickle.

A module or a dataclass of this package becomes its class's importable name and its fields; arrays
become entries of a flat list.
Functions are stored by importable name. What cannot be found again by name (a lambda, a closure)
is refused with the cure.
"""

import dataclasses
import importlib
import sys
from typing import Any

import equinox as eqx
import jax
import numpy as np

SCALARS = (str, int, bool, type(None))


class NotStorable(TypeError):
    """An object that cannot be written by name."""


def encode(tree: Any) -> tuple[Any, list[np.ndarray]]:
    """Return a JSON-able description of `tree` and the arrays it refers to.

    **Raises:** `NotStorable` for functions that have no importable name and unknown classes.
    """
    arrays: list[np.ndarray] = []
    return _encode(tree, arrays), arrays


def decode(description: Any, arrays: list[np.ndarray]) -> Any:
    """Inverse of `encode`."""
    if isinstance(description, list):
        return [decode(item, arrays) for item in description]
    if not isinstance(description, dict):
        return description
    kind, value = next(iter(description.items()))
    if kind == "array":
        return jax.numpy.asarray(arrays[value])
    if kind == "float":
        return float.fromhex(value)
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in value)
    if kind == "dict":
        return {key: decode(item, arrays) for key, item in value}
    if kind == "name":
        return find(value)
    if kind == "dtype":
        return np.dtype(value)
    if kind == "treedef":
        return jax.tree.structure(decode(value, arrays))
    if kind == "namedtuple":
        return named_tuple(value)(*(decode(item, arrays) for item in description["fields"]))
    if kind == "record":
        record = object.__new__(find(value))
        for name, field in description["fields"].items():
            object.__setattr__(record, name, decode(field, arrays))
        return record
    raise ValueError(f"unknown entry {kind!r} in a stored description")


def _encode(tree: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(tree, SCALARS):
        return tree
    if isinstance(tree, float):
        return {"float": tree.hex()}
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        arrays.append(np.asarray(tree))
        return {"array": len(arrays) - 1}
    if isinstance(tree, np.dtype):
        return {"dtype": tree.str}
    if is_record(tree):
        fields = {name: _encode(value, arrays) for name, value in fields_of(tree).items()}
        return {"record": name_of(type(tree)), "fields": fields}
    if isinstance(tree, jax.tree_util.PyTreeDef):
        skeleton = jax.tree.unflatten(tree, [0] * tree.num_leaves)
        return {"treedef": _encode(skeleton, arrays)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"namedtuple": name_of(type(tree)), "fields": [_encode(i, arrays) for i in tree]}
    if isinstance(tree, tuple):
        return {"tuple": [_encode(item, arrays) for item in tree]}
    if isinstance(tree, list):
        return [_encode(item, arrays) for item in tree]
    if isinstance(tree, dict):
        return {"dict": [[key, _encode(item, arrays)] for key, item in tree.items()]}
    if callable(tree):
        return {"name": name_of(tree)}
    raise NotStorable(f"a {type(tree).__name__} cannot be stored by name: {tree!r}")


def is_record(tree: Any) -> bool:
    """Whether `tree` is a module, or a frozen dataclass of this package: all it is, is fields."""
    if isinstance(tree, eqx.Module):
        return True
    own = type(tree).__module__.split(".")[0] == __name__.split(".")[0]
    return own and dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record that are set, by name."""
    set_fields = vars(record)
    return {f.name: set_fields[f.name] for f in dataclasses.fields(record) if f.name in set_fields}


def name_of(thing: Any) -> str:
    """`module:qualified name` under which `thing` is found again."""
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None)
    if module is None or name is None or "<" in name:
        raise NotStorable(
            f"{thing!r} has no importable name; define it at the top of a module, or pass the "
            "object again when you resume."
        )
    if find(f"{module}:{name}") is not thing:
        raise NotStorable(f"{module}:{name} is another object than {thing!r}.")
    return f"{module}:{name}"


def named_tuple(path: str) -> type:
    """The class of named tuples under a name: what a file gives fields to must be no function."""
    found = find(path)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise ValueError(f"{path} in a stored description is no class of named tuples")
    return found


def find(path: str) -> Any:
    """The object of a `module:qualified name`.

    **Raises:** `LookupError` naming what is missing.
    """
    module_name, name = path.split(":")
    try:
        module = sys.modules.get(module_name) or importlib.import_module(module_name)
        thing: Any = module
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{path} is needed to rebuild a stored object: {error}") from error
    return thing

"""What tells one tree of modules from another, part by part and in words.

Numbers are told by a digest, functions by name and by a digest of their code, constants, defaults
and closures. What a function reads from its module is not followed.
"""

import contextlib
import functools
import hashlib
import inspect
import re
import sys
import types
from typing import Any

import jax
import numpy as np

from driftbridge.runtime.codec import fields_of, is_record

# Byte code differs between versions of Python: it is compared where this is the same.
CODE = ", code of "
VERSION = sys.implementation.cache_tag


def fingerprint(tree: Any) -> dict[str, str]:
    """What stands at every place of `tree`, by its path."""
    return dict(_walk(tree, "", ()))


def difference(found: dict[str, str], stored: dict[str, str]) -> str | None:
    """The first place at which two fingerprints differ, in words; None where they are one."""
    for path in [*stored, *found]:
        if CODE in path and (path not in found or path not in stored):
            continue  # another version of Python, or a function of another name
        a, b = found.get(path, "nothing"), stored.get(path, "nothing")
        if a != b:
            return f"{path.removeprefix('.') or 'it'} is {a}, stored {b}"
    return None


def code_of(marks: dict[str, str]) -> dict[str, str]:
    """The part of a fingerprint that tells the code of functions."""
    return {path: mark for path, mark in marks.items() if CODE in path}


def _walk(tree: Any, path: str, above: tuple[int, ...]):
    """Pairs of path and description; `above` are the objects that hold `tree`."""
    if id(tree) in above:
        return  # a function that calls itself
    above = (*above, id(tree))
    yield path, _named(tree)
    for name, part in _parts(tree):
        yield from _walk(part, f"{path}.{name}", above)
    if isinstance(tree, types.FunctionType):
        digest = _code(tree.__code__, tree.__doc__)
        yield f"{path}{CODE}{VERSION}", f"{tree.__qualname__} of digest {digest}"


def _named(tree: Any) -> str:
    """One object apart from its parts, in a few words."""
    if isinstance(tree, str | int | float | bool | type(None) | np.dtype):
        return repr(tree)
    if isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        return f"key {_array(np.asarray(jax.random.key_data(tree)))}"
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return _array(np.asarray(tree))
    if isinstance(tree, jax.tree_util.PyTreeDef):
        return re.sub(r" at 0x[0-9a-f]+", "", str(tree))  # addresses in static fields
    if name := getattr(tree, "__qualname__", None):
        return f"{getattr(tree, '__module__', '')}:{name}"
    return f"a {type(tree).__module__}.{type(tree).__qualname__}"


def _parts(tree: Any) -> list[tuple[Any, Any]]:
    """What an object is made of."""
    if isinstance(tree, functools.partial):
        return [("func", tree.func), ("args", tree.args), ("keywords", tree.keywords)]
    if isinstance(tree, types.MethodType):
        return [("self", tree.__self__), ("function", tree.__func__)]
    if isinstance(tree, types.FunctionType):
        defaults = [*enumerate(tree.__defaults__ or ()), *(tree.__kwdefaults__ or {}).items()]
        return [*_closure(tree), *defaults]
    if isinstance(tree, type | types.BuiltinFunctionType | types.ModuleType):
        return []
    if is_record(tree):
        return list(fields_of(tree).items())
    if callable(tree) and (inner := getattr(tree, "__wrapped__", None)) is not None:
        return [("function", inner)]
    call = inspect.getattr_static(type(tree), "__call__", None)
    if isinstance(call, types.FunctionType):
        return [("__call__", call), *getattr(tree, "__dict__", {}).items()]
    if isinstance(tree, dict):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    leaves = jax.tree.leaves(tree)
    return [] if len(leaves) == 1 and leaves[0] is tree else list(enumerate(leaves))


def _closure(function: types.FunctionType):
    """Pairs of name and value of what a function has taken from around it."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            yield name, cell.cell_contents


def _array(array: np.ndarray) -> str:
    digest = _short(np.ascontiguousarray(array).tobytes())
    return f"{array.dtype}{list(array.shape)} of digest {digest}"


def _code(code: types.CodeType, doc: str | None) -> str:
    """Digest of what a function does, its docstring and its place in a file apart."""
    constants = [
        _code(c, None) if isinstance(c, types.CodeType) else _constant(c)
        for c in code.co_consts
        if doc is None or c != doc
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return _short(repr((code.co_code, names, constants)).encode())


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]

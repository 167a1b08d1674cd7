"""`path.py:name` as a target: a NumPyro model, a `Target`, or a function that returns one."""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import driftbridge as db
from driftbridge.cli.errors import CommandError

ACCEPTED = "a NumPyro model, a driftbridge.Target, or a function that returns one"


def split(model: str) -> tuple[Path, str]:
    """The file and the name of `path.py:name`.

    **Raises:** `CommandError` if it has another form.
    """
    file, colon, name = model.rpartition(":")
    if not colon or not name.isidentifier() or not file.endswith(".py"):
        raise CommandError(
            f"MODEL must be path.py:name or one of logistic, linear, poisson; got {model!r}."
        )
    return Path(file).expanduser().resolve(), name


def load(path: Path, name: str) -> Any:
    """The object `name` of a Python file, which runs as it would by `python path.py`, but for its
    `if __name__ == "__main__"` part.

    **Raises:** `CommandError` if there is no such file, or it has no such name: then it lists what
    could be meant.
    """
    if not path.is_file():
        raise CommandError(f"there is no model file {path}.")
    module_name = f"driftbridge_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if name in vars(module):
        return vars(module)[name]
    own = [n for n, thing in vars(module).items() if _could_be_meant(thing, module_name)]
    near = difflib.get_close_matches(name, own, 1)
    hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(own) or 'no models'}."
    raise CommandError(f"{path.name} has no {name}. {hint}")


def _could_be_meant(thing: Any, module_name: str) -> bool:
    of_this_file = getattr(thing, "__module__", None) == module_name
    return isinstance(thing, db.Target) or (callable(thing) and of_this_file)


def target_of(thing: Any, label: str, arguments: Mapping[str, Any]) -> db.Target:
    """The target that `thing` is, makes, or models, given its arguments.

    A function is called once. If the first thing it does with probability is a NumPyro primitive,
    it is a NumPyro model, and is left at that primitive.
    """
    if isinstance(thing, db.Target):
        if arguments:
            raise CommandError(
                f"{label} is a {type(thing).__name__}, complete as it is; leave out "
                f"{', '.join(arguments)}, or name a function that takes them."
            )
        return thing
    if not callable(thing):
        raise CommandError(f"{label} is a {type(thing).__name__}; it must be {ACCEPTED}.")
    check_arguments(thing, label, arguments)
    made, is_model = _call(thing, arguments)
    if is_model:
        return db.from_numpyro(thing, **arguments)
    if isinstance(made, db.Target):
        return made
    raise CommandError(
        f"{label} has no numpyro.sample and returned a {type(made).__name__}; it must be "
        f"{ACCEPTED} (a log density becomes one by driftbridge.from_density)."
    )


def check_arguments(function: Callable, label: str, arguments: Mapping[str, Any]) -> None:
    """Raise `CommandError` naming arguments that `function` needs or does not take."""
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter
    named = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    takes = ", ".join(p.name for p in named) or "no arguments"
    missing = [p.name for p in named if p.default is kinds.empty and p.name not in arguments]
    if missing:
        given = ", ".join(arguments) or "nothing"
        raise CommandError(
            f"{label} needs {', '.join(missing)}: it takes {takes}, and --data and --set give "
            f"{given}."
        )
    unknown = [name for name in arguments if name not in {p.name for p in named}]
    if unknown and not any(p.kind == kinds.VAR_KEYWORD for p in parameters):
        raise CommandError(
            f"{label} does not take {', '.join(unknown)}: it takes {takes}. Choose what it is "
            "given by --columns."
        )


class _Reached(BaseException):
    """A NumPyro primitive was reached; no `except Exception` of a user's file stops it."""


def _call(function: Callable, arguments: Mapping[str, Any]) -> tuple[Any, bool]:
    """What a function returns, and whether it reached a NumPyro primitive of its own before."""
    if "numpyro" not in sys.modules:
        return function(**arguments), False
    from numpyro import primitives
    from numpyro.handlers import trace

    class Watch(primitives.Messenger):
        def process_message(self, msg):
            stack = primitives._PYRO_STACK
            # A model run inside (by from_numpyro, say) is traced there; its primitives are not
            # those of `function`.
            if not any(isinstance(handler, trace) for handler in stack[stack.index(self) :]):
                raise _Reached

    try:
        with Watch():
            return function(**arguments), False
    except _Reached:
        return None, True

"""Targets: what ``module:name`` or ``path/to/file.py:name`` on a command line names, imported and found.

Lives here: importing, looking a name up, calling a factory, and telling the user's mistakes on the command line
(`TargetError`) from mistakes in his code (a traceback that begins with it). Must not live here: what the thing is good
for. Only the command line imports it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ._errors import TargetError, printable

__all__ = ["load", "made_by"]


def load(text: str) -> Any:
    """Return what ``module:name`` or ``path/to/file.py:name`` names."""
    place, colon, name = text.rpartition(":")
    if not place or not name:
        remedy = f"write {place if colon else text}:NAME" if place or not colon else "write module:NAME"
        raise TargetError(f"{text!r} names nothing in a module or file; {remedy}")
    with _foreign_code():
        is_file = place.endswith(".py") or "/" in place or os.sep in place
        thing: Any = _import_file(place) if is_file else _import_module(place)
        for part in name.split("."):
            try:
                thing = getattr(thing, part)
            except AttributeError:
                raise TargetError(f"{place!r} has no {name!r}; {_suggestion(thing, part)}")
    return thing


def _import_module(name: str) -> ModuleType:
    if not all(name.split(".")):
        raise TargetError(f"{name!r} is no module's name; write for example package.module, without dots at the ends")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise  # the module is there, and what it imports is not
        raise TargetError(f"there is no module {exc.name!r}; check its name and the working directory {os.getcwd()!r}")


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py" or not path.is_file():
        fact = "is not there" if not path.exists() else "is no Python file"
        remedy = f"did you mean {place}.py?" if Path(f"{place}.py").is_file() else "write the path of one that is"
        raise TargetError(f"the file {place!r} {fact}; {remedy}")
    if not os.access(path, os.R_OK):
        raise TargetError(f"the file {place!r} must not be read by this user; change its permissions")
    name = path.stem if path.stem not in sys.modules else f"{path.stem} (target)"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None  # which it is only for unknown suffixes
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _suggestion(thing: object, wanted: str) -> str:
    names = [name for name in dir(thing) if not name.startswith("_")]
    in_small = {name.lower(): name for name in names}
    if close := difflib.get_close_matches(wanted, names, n=1):
        return f"did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(wanted.lower(), in_small, n=1):
        return f"did you mean {in_small[close[0]]!r}?"
    home = getattr(thing, "__name__", None)
    own = [name for name in names if getattr(getattr(thing, name, None), "__module__", None) == home]
    return f"it has {', '.join(own[:5])}" if own else "check the name"


def made_by(text: str, factory: Any) -> Any:
    """Return what the target makes, when it is a factory."""
    if not callable(factory):
        raise TargetError(f"{text!r} is {printable(factory)}, which makes nothing; leave out --factory")
    if inspect.iscoroutinefunction(factory):
        raise TargetError(f"{text!r} is async and no factory; leave out --factory to serve it as a handler")
    try:
        inspect.signature(factory).bind()
    except TypeError as exc:
        raise TargetError(f"{text!r} is no factory: {exc}; name a function without arguments")
    except ValueError:  # written in C, and it does not say what it takes
        pass
    with _foreign_code():
        return factory()


@contextmanager
def _foreign_code() -> Iterator[None]:
    """When the target's own code raises, show it as Python does, beginning with that code, and end with status 1."""
    try:
        yield
    except TargetError:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever it is: it is printed, and ends the process
        inner = exc.__traceback__
        while inner is not None and _is_ours(inner.tb_frame.f_code.co_filename):
            inner = inner.tb_next
        traceback.print_exception(exc.with_traceback(inner))
        raise SystemExit(1)


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")

"""Standing in for the standard library's `socketserver` in a whole interpreter, and in those that it starts.

Lives here: the environment of such an interpreter, and what its `sitecustomize` (in the folder `_children`) does with
it. Must not: the command line, that is `__main__`. No other room imports this one. It imports as little as it can:
pathlib alone would add a quarter to the memory of a small server, and so to what each of its forks has to copy.
"""

from __future__ import annotations

import os
import sys

__all__ = ["environment", "install", "take_place"]

#: Tells an interpreter how long it is meant: "once", or "children" for those that it starts as well.
VARIABLE = "COMPAT_SOCKETSERVER"
#: Tells it which executor its servers are to have; see `_imposed`.
EXECUTOR = "COMPAT_EXECUTOR"
#: The folder whose `sitecustomize` calls `take_place`.
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_children")


def install() -> None:
    """Let `import socketserver` mean ours from now on, in this process.

    Modules that have the other one already, such as http.server, keep it.
    """
    from . import socketserver

    sys.modules["socketserver"] = socketserver


def environment(children: bool, executor: str = "") -> dict[str, str]:
    """The variables for an interpreter in which ours is in place from the beginning.

    Args:
        children: whether that holds for the interpreters that it starts, too.
        executor: the one that servers are to have, as `_imposed` writes it.
    """
    variables = dict(os.environ)
    variables[VARIABLE] = "children" if children else "once"
    variables.pop(EXECUTOR, None)
    if executor:
        variables[EXECUTOR] = executor
    before = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = FOLDER if before is None else os.pathsep.join([FOLDER, before])
    return variables


def take_place() -> None:
    """Called by our `sitecustomize` when an interpreter begins: install, tidy up, let the next `sitecustomize` run."""
    sys.path[:] = [entry for entry in sys.path if entry != FOLDER]
    executor = os.environ.get(EXECUTOR)
    if os.environ.get(VARIABLE) == "once":
        del os.environ[VARIABLE]
        os.environ.pop(EXECUTOR, None)
        rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != FOLDER]
        if any(rest):
            os.environ["PYTHONPATH"] = os.pathsep.join(rest)
        else:
            os.environ.pop("PYTHONPATH", None)
    install()
    if executor:
        from . import _imposed

        _imposed.impose(*_imposed.read(executor))
    ours = sys.modules.pop("sitecustomize", None)
    for finder in sys.meta_path:  # what importlib.invalidate_caches() does
        if hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401 - the next one, if there is one
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:  # its import is still under way
            sys.modules["sitecustomize"] = ours

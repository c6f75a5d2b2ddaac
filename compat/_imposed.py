"""`python -m compat --executor NAME`: the servers of an unchanged program serve where its user says.

Lives here: the names, and putting an executor under the classes of `socketserver`. Must not: the command line, or
executors. `__main__` asks for the names, `_standin` calls impose() in the program's interpreter.

Servers whose class brings a process_request() of its own keep it, those of `compat.executors` included.
"""

from __future__ import annotations

from . import socketserver

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._executor import Executor

__all__ = ["BOUNDED", "NAMES", "impose", "read", "written"]

#: What can be asked for, and which of those take a number of workers.
NAMES = ("inline", "threads", "thread-pool", "processes")
BOUNDED = ("thread-pool", "processes")


def written(name: str, max_workers: int | None) -> str:
    """A choice as one word, for the environment."""
    return name if max_workers is None else f"{name}:{max_workers}"


def read(word: str) -> tuple[str, int | None]:
    """The reverse of written()."""
    name, _, number = word.partition(":")
    return name, int(number) if number else None


def impose(name: str, max_workers: int | None) -> None:
    """Let all servers of this process serve with the executor *name* from now on."""
    from ._dispatch import dispatch, executor_of

    def make(server: Any) -> Executor:
        return made(name, max_workers, server)

    def process_request(self: Any, request: Any, client_address: Any) -> None:
        dispatch(self, executor_of(self, lambda: make(self)), request, client_address)

    classes: Any = socketserver
    for mixin in ("BaseServer", "ThreadingMixIn", "ForkingMixIn"):
        if hasattr(classes, mixin):
            getattr(classes, mixin).process_request = process_request
    classes._OURS.add(process_request)
    classes.TCPServer.server_close = closing(classes.TCPServer.server_close)
    if name == "processes":
        classes.BaseServer.__init__ = checking(classes.BaseServer.__init__)


def made(name: str, max_workers: int | None, server: Any) -> Executor:
    """The executor of that name, with what the server says of daemons."""
    from . import executors

    daemon = getattr(server, "daemon_threads", False)
    if name == "processes":
        return executors.ProcessPool(server, max_workers)
    if name == "thread-pool":
        return executors.ThreadPool(max_workers, daemon=daemon)
    return executors.FreshThreads(daemon=daemon) if name == "threads" else executors.Inline()


def closing(server_close: Callable[[Any], None]) -> Callable[[Any], None]:
    """server_close() that closes the executor, too, and waits where a mixin would."""

    def close(self: Any) -> None:
        server_close(self)
        if (executor := vars(self).pop("_executor", None)) is not None:
            executor.close(getattr(self, "block_on_close", True) and not getattr(self, "daemon_threads", False))

    return close


def checking(construct: Callable[..., None]) -> Callable[..., None]:
    """The constructor that finds out at once whether worker processes can import what they need."""
    from ._processes import check

    def __init__(self: Any, server_address: Any, RequestHandlerClass: Any) -> None:
        check(type(self), RequestHandlerClass)
        construct(self, server_address, RequestHandlerClass)

    return __init__

"""Where a handler runs, seen from outside: the shape that all executors have, and what all of them do with a request.

Lives here: the base class, and the one way to serve a request in a thread that is not its own. Must not: threads,
processes, mixins. `_pool`, `_processes` and `executors` import it; its text for users is in `executors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import Context

from ._threads import tell_unraisable
from .socketserver import _work

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeAlias

    #: Told when a request is over: None, or what has happened to it (a sentence) if nobody has served it to its end.
    Done: TypeAlias = Callable[[str | None], object]

__all__ = ["Executor", "perform", "serve"]

#: Requests that wait in a bounded executor for each of its workers: enough that no worker is ever without work, and so
#: few that a client which waits does so in the kernel's queue, where it costs nothing here.
QUEUED_PER_WORKER = 2


class Executor(ABC):
    """Where the handler of a request runs.

    Attributes:
        crosses: whether it runs in another process: then the caller closes its own copy of a request that was taken.
    """

    crosses: ClassVar[bool] = False

    @abstractmethod
    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Take the request, without waiting; False if there is no room.

        Args:
            server: its `process_request_thread` is called in the worker; without one, its finish_request, handle_error
                and shutdown_request.
            request: closed by the worker; still the caller's when this is False or raises.
            client_address: whence it came.
            done: called once, from any thread, when the request was served and closed, or lost.
            over: take it beyond the bound: for a server that has accepted it and must stop now.

        Raises:
            RuntimeError: there is no worker and none can be started, or the executor is closed.
            TypeError: this request cannot go there.
        """

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, from any thread, when there may be room again; at once if there is."""
        callback()

    def fileno(self) -> int:
        """A descriptor that is readable when collect() has something to do; -1 if it never has."""
        return -1

    def collect(self) -> None:  # noqa: B027 - most executors have nothing to hear
        """Look, without waiting, for what workers have reported: `done` and `when_free` are called from in here."""

    def close(self, wait: bool) -> None:  # noqa: B027 - or nothing to wait for
        """Take no more; what was taken is served all the same.

        Args:
            wait: return when it was; the calling thread is not waited for.
        """


def serve(server: Any, request: Any, client_address: Any) -> None:
    """Serve and close a request in its worker, in the way that the server has for it."""
    in_thread = getattr(server, "process_request_thread", None)
    if in_thread is not None:
        in_thread(request, client_address)
    else:
        _work(server, request, client_address)


def perform(server: Any, request: Any, client_address: Any, done: Done | None) -> None:
    """The same in a thread that serves others, too: in an empty context, and what it raises ends nothing but it."""
    try:
        Context().run(serve, server, request, client_address)
    except BaseException:  # noqa: BLE001 - told as it is of a thread of its own, for which this one stands
        tell_unraisable()
    finally:
        if done is not None:
            done(None)

"""process_request() for a server with an executor: it waits for room, and for nothing when the server is to stop.

Lives here: the wait of the serving thread, and which executor a server has. Must not: executors. `executors` and
`_imposed` import it.
"""

from __future__ import annotations

import select
import threading
import time

from ._waiting import NAP, POLLIN, Bell, make_bell
from .socketserver import _hand_over, _is_async

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._executor import Executor

__all__ = ["dispatch", "executor_of"]

#: Two threads may serve with one server; its executor is made once.
_making = threading.Lock()


def executor_of(server: Any, make: Callable[[], Executor]) -> Executor:
    """The executor of *server*, made for its first request: before that there are no threads and no descriptors."""
    executor: Executor | None = vars(server).get("_executor")
    if executor is None:
        with _making:
            executor = vars(server).get("_executor")
            if executor is None:
                executor = server._executor = make()
    return executor


def dispatch(server: Any, executor: Executor, request: Any, client_address: Any) -> None:
    """Give the request to the executor; while that has no room wait, and clients do in the kernel's queue.

    When the server is told to stop meanwhile, the executor takes this last one beyond its bound.

    Raises:
        RuntimeError: there is no worker to be had, or the executor was closed.
        TypeError: this request cannot go there.
    """
    if _is_async(server.RequestHandlerClass) and not executor.crosses:
        _hand_over(server, request, client_address)  # such a handler runs nowhere but on the event loop
        return
    if not executor.submit(server, request, client_address):
        _submit_when_free(server, executor, request, client_address)
    if executor.crosses:
        server.close_request(request)


def _submit_when_free(server: Any, executor: Executor, request: Any, client_address: Any) -> None:
    bells: tuple[Bell, ...] = getattr(server, "_bells", ())
    serving = next((bell for bell in bells if bell.is_mine), None)
    bell = serving or make_bell()  # of a handle_request(), or the standard library's loop
    try:
        while not executor.submit(server, request, client_address, over=_is_to_stop(server, executor, serving)):
            fd = executor.fileno()
            if bell is not None and (fd < 0 or len(bells) > 1):  # otherwise we hear it ourselves
                executor.when_free(bell.ring)
            _wait(bell, fd)
    finally:
        if bell is not None and bell is not serving:
            bell.close()


def _is_to_stop(server: Any, executor: Executor, serving: Bell | None) -> bool:
    """Whether the serve_forever() that we are in is to end, or the server was closed under it.

    It may be the standard library's loop: a mixin of ours over a server of theirs.
    """
    if vars(server).get("_executor") is not executor:
        return True
    in_loop = serving is not None or not hasattr(server, "_bells")
    return in_loop and bool(getattr(server, "_BaseServer__shutdown_request", False))


def _wait(bell: Bell | None, fd: int) -> None:
    """Wait until the bell rings or the executor has something to say, and not for long: a flag can be set silently."""
    ear = -1 if bell is None else bell.ear.fileno()
    watched = [each for each in (ear, fd) if each >= 0]
    if not watched:
        time.sleep(NAP / 10)
        return
    if hasattr(select, "poll"):
        poll = select.poll()
        for each in watched:
            poll.register(each, POLLIN)
        rung = ear in (each for each, _ in poll.poll(NAP * 1000 if bell is not None else NAP * 100))
    else:
        rung = ear in select.select(watched, [], [], NAP)[0]
    if bell is not None and rung:
        bell.silence()

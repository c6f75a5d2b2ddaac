"""Async handlers in the classic hierarchy: how a request, or a handler that is being made, comes into the event loop.

Lives here: what `socketserver` calls when a handler's class is async. It imports this when the first such handler needs
it and not before: a program without one has no loop, no thread, and pays for no import. Must not: what becomes of a
request in the loop, that is in `_side`; the loop and its thread, those are in `_loop`.

All servers of a process share one loop, so that their handlers can share what belongs to a loop (queues, locks,
clients). It ends with the last of these servers, or with the program.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from anyio.abc import SocketAttribute

import aserver

from . import _loop
from ._side import Job, Side, here, is_connection, send_now
from ._waiting import log

__all__ = ["begin", "hand_over", "leave", "send_answer", "set_up_stream"]

#: Seconds that a constructor which was interrupted (Ctrl-C) waits for its cancelled handler.
INTERRUPT_GRACE = 2.0


def _check(request: Any) -> None:
    if hasattr(request, "do_handshake"):
        raise TypeError(f"{request!r} is a TLS connection, which async handlers cannot serve yet; use a plain handle()")


#: Held while a server is given its side.
_making = threading.Lock()


def _forget() -> None:
    """In a forked child nobody holds it."""
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _side_of(server: Any) -> Side | None:
    """The side of *server*, made if it has none; None if the server is closed."""
    with _making:
        side: Side | None = vars(server).get("_side")
        if side is None or side.closing or side.loop.pid != os.getpid():
            if _is_closed(server):
                return None
            side = server._side = Side(server)
            side.loop.post(partial(side.loop.tasks.start_soon, side.live))
    side.opened.wait()
    return side


def _is_closed(server: Any) -> bool:
    try:
        return bool(server.fileno() < 0)
    except (OSError, ValueError, AttributeError):  # what a wrapper says of itself; or a server without a descriptor
        return False


# -- called by `socketserver` ------------------------------------------------------------------------------------------


def hand_over(server: Any, request: Any, client_address: Any, is_async: Callable[[Any], bool]) -> None:
    """Serve a request in the loop, with all hooks from finish_request() on; without waiting.

    Raises:
        TypeError: it is of a kind that async handlers cannot serve; it is still the caller's.
        RuntimeError: the loop cannot be started; the same.
    """
    _check(request)
    side = _side_of(server)
    if side is None or (side.full and not is_connection(request)):
        log("debug", "%r: dropped a request of %r", server, client_address)
        server.shutdown_request(request)
    else:
        side.loop.post(partial(side.begin, Job(request, client_address, is_async=is_async)))


def begin(handler: Any) -> None:
    """What the constructor of an async handler does: report to the request that is being served in the loop.

    In another thread (a worker, a forked child, the caller of an overridden hook) the constructor does it all, as that
    of a legacy handler does: it has the handler served in the loop, waits, and raises what that raises. Without a
    server it does nothing, and whoever made the handler, a test most likely, awaits its methods.

    Raises:
        RuntimeError: called by a handler in the loop, where nobody may wait.
    """
    job = here.job
    if job is not None:
        job.handler = handler
        job.give_stream()
        return
    server = handler.server
    if server is None:
        return
    _check(handler.request)
    loop = _loop.running()
    if loop is not None and loop.is_current:
        raise RuntimeError(
            f"a {type(handler).__qualname__} was made in the event loop's thread, outside of finish_request(), where "
            "its constructor cannot wait for handle(); make it with the server None, and await its methods"
        )
    side = _side_of(server)
    if side is not None:
        _wait_for(side, handler)


def _wait_for(side: Side, handler: Any) -> None:
    request = handler.request
    job = Job(request, handler.client_address, handler=handler)
    assert job.over is not None
    side.loop.post(partial(side.begin, job))
    try:
        job.over.wait()
    except BaseException:  # Ctrl-C; the request is closed by our caller, so nobody may use it any more
        side.loop.post(job.cancel)
        job.over.wait(INTERRUPT_GRACE)
        raise
    if job.error is not None:
        try:
            raise job.error
        finally:
            del job  # its error has a traceback that leads back to here


def leave(server: Any) -> None:
    """What server_close() does: let the handlers end and wait for them, or cancel them; see `Side.close`."""
    side: Side | None = vars(server).get("_side")
    if side is not None and side.loop.pid == os.getpid():
        daemons = getattr(server, "daemon_threads", False)
        side.close(wait=getattr(server, "block_on_close", True) and not daemons)


def set_up_stream(handler: Any) -> None:
    """What setup() of an async StreamRequestHandler does.

    Raises:
        TypeError: the request is no connection; or the handler wants a timeout, which is not to be had here.
    """
    stream = handler.request
    if not isinstance(stream, aserver.Stream):
        raise TypeError(f"the request is {stream!r}; an async StreamRequestHandler needs a connection, a stream socket")
    if handler.timeout is not None:
        raise TypeError(
            f"{type(handler).__qualname__}.timeout is {handler.timeout!r}, which async handlers do not have; leave it "
            "out, and write 'with anyio.fail_after(seconds)' around what may take too long"
        )
    handler.connection = stream
    if handler.disable_nagle_algorithm:
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    handler.rfile = aserver.StreamReader(stream)
    handler.wfile = aserver.StreamWriter(stream)


def send_answer(handler: Any, answer: bytes) -> None:
    """What finish() of an async DatagramRequestHandler does: send without waiting, or leave it to be sent behind us."""
    if not send_now(handler.socket, answer, handler.client_address):
        handler._unsent = answer

"""The asynchronous side of a server: its requests that are in the event loop, from their beginning to their end.

Lives here: who awaits setup(), handle() and finish(), which hooks are called around them, and what closing the server
means for them. Must not: the loop and its thread, those are in `_loop`; when a request comes here, that is told in
`_asynchronous`, which imports this.

Connections are those of an `aserver.StreamServer` without an address: its are the bounds, the draining and the end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import SocketAttribute, TaskGroup

import aserver

from . import _loop
from ._threads import tell_unraisable
from ._waiting import log

__all__ = ["Job", "Side", "here", "is_connection", "send_now"]

#: Datagrams that are with handlers, or on their way to the loop, at most; those beyond are lost, as they are when the
#: kernel's buffer is full. The same as in `aserver`.
MAX_DATAGRAMS = aserver.Limits().max_in_flight
#: Seconds between two tries to send an answer for which the kernel has no room: one that drains a queue needs less.
RETRY = 0.01


class Job:
    """One request, on its way through the loop.

    Args:
        handler: if its constructor waits.
        is_async: otherwise; tells of a handler class whether it is to be served here.

    Attributes:
        request: what get_request() returned, which the hooks see. A handler sees the stream in its place.
        handler: the instance; known from the beginning if its constructor waits.
        over: set when the handler has ended, for that constructor; None if nobody waits.
        error: what the handler raised, for that constructor.
        scope: cancels the handler, for that constructor.
    """

    def __init__(
        self,
        request: Any,
        client_address: Any,
        *,
        handler: Any = None,
        is_async: Callable[[Any], bool] | None = None,
    ) -> None:
        self.request = request
        self.timeout = request.gettimeout() if is_connection(request) else None
        self.is_async = is_async
        self.client_address = client_address
        self.handler = handler
        self.stream: aserver.Stream | None = None
        self.over = None if handler is None else threading.Event()
        self.error: BaseException | None = None
        self.scope: anyio.CancelScope | None = None

    def give_stream(self) -> None:
        """Let the handler find the stream where it was given the socket."""
        if self.stream is not None and self.handler.request is self.request:
            self.handler.request = self.stream

    async def run(self) -> None:
        """Await what the constructor of a legacy handler calls."""
        handler = self.handler
        self.give_stream()
        if (waiting := handler.setup()) is not None:
            await waiting
        try:
            await handler.handle()
        finally:
            if (waiting := handler.finish()) is not None:
                await waiting
            if (unsent := vars(handler).pop("_unsent", None)) is not None:
                await _send(handler.socket, unsent, handler.client_address)

    def cancel(self) -> None:
        """Cancel the handler; called in the loop."""
        if self.scope is not None:
            self.scope.cancel()


class Side:
    """The asynchronous side of one server: its requests that are in the loop.

    Attributes:
        closing: whether it takes no more requests.
        opened: set when it takes requests.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        self.closing = False
        self.opened = threading.Event()
        self._ended = threading.Event()
        self._drain: anyio.Event
        self._scope: anyio.CancelScope
        self._tasks: TaskGroup
        self._streams = aserver.StreamServer(None, self._serve_stream, name=type(server).__name__)
        self._jobs: dict[socket.socket, Job] = {}
        self._in_flight = 0
        self._over = False
        self.loop = _loop.enter(self)

    async def live(self) -> None:
        """Be open until close(); then let the handlers end, or cancel them."""
        self._drain = anyio.Event()
        try:
            with anyio.CancelScope() as self._scope:
                async with self._streams:
                    async with anyio.create_task_group() as self._tasks:
                        self.opened.set()
                        await self._drain.wait()
                    await self._streams.shutdown(None)
        finally:
            self.closing = self._over = True
            self.opened.set()
            _loop.leave(self.loop, self)
            self._ended.set()

    def close(self, wait: bool) -> None:
        """Take no more requests.

        Args:
            wait: let the handlers end, telling those with a connection by its `draining`, and wait for them; otherwise
                cancel them.
        """
        self.closing = True
        self.opened.wait()
        self.loop.post(lambda: self._end(wait))
        if wait and not self.loop.is_current:  # it would wait for itself
            self._ended.wait()
            self.loop.join_if_over()

    def _end(self, gently: bool) -> None:
        self._over = True  # only now: what was handed over before is served
        if gently:
            self._drain.set()
        else:
            self._scope.cancel()

    @property
    def full(self) -> bool:
        """Whether there is no room for another datagram."""
        return self._in_flight + self.loop.posted >= MAX_DATAGRAMS

    def begin(self, job: Job) -> None:
        """Begin a request; called in the loop."""
        if self._over:
            self._refuse(job)
        elif not is_connection(job.request):
            self._in_flight += 1
            self._tasks.start_soon(self._serve_other, job)
        else:
            self._jobs[job.request] = job
            try:
                taken = self._streams.add_connection(job.request, job.client_address)
            except OSError:  # a hook has closed it
                taken = False
            if not taken:
                del self._jobs[job.request]
                log("warning", "%r: no room for the connection of %r, or it is closed", self.server, job.client_address)
                self._refuse(job)

    def _refuse(self, job: Job) -> None:
        if job.over is not None:
            job.over.set()
            return
        try:
            self.server.shutdown_request(job.request)
        except Exception:  # noqa: BLE001 - what a hook raises in a worker is told by threading.excepthook
            tell_unraisable()

    async def _serve_stream(self, stream: aserver.Stream) -> None:
        job = self._jobs.pop(stream.extra(SocketAttribute.raw_socket))
        job.stream = stream
        await (self._serve if job.over is None else self._serve_waiting)(job)

    async def _serve_other(self, job: Job) -> None:
        try:
            await (self._serve if job.over is None else self._serve_waiting)(job)
        finally:
            self._in_flight -= 1

    async def _serve(self, job: Job) -> None:
        """The life of a request in the loop: what the worker of a ThreadingMixIn does, with its handler awaited."""
        try:
            try:
                await self._attend(job)
                await _give_back(job)
            finally:
                if job.stream is not None:
                    job.stream.close_now()  # does nothing if it was given back
                self.server.shutdown_request(job.request)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException:  # noqa: BLE001 - what a worker raises is told by threading.excepthook
            tell_unraisable()

    async def _attend(self, job: Job) -> None:
        try:
            # the class may have been replaced since the request was handed over
            if job.is_async is not None and not job.is_async(self.server.RequestHandlerClass):
                await self._attend_elsewhere(job)
                return
            here.job = job
            try:
                self.server.finish_request(job.request, job.client_address)
            finally:
                here.job = None
            if job.handler is not None:
                await job.run()
        except Exception:  # noqa: BLE001 - any failure of a handler is handle_error's
            self.server.handle_error(job.request, job.client_address)

    async def _attend_elsewhere(self, job: Job) -> None:
        """Serve the request with a legacy handler, which must not run in the loop."""
        await _give_back(job)
        await anyio.to_thread.run_sync(self.server.finish_request, job.request, job.client_address)

    async def _serve_waiting(self, job: Job) -> None:
        """The same for a constructor that waits: hooks, and what the handler raises, are its caller's."""
        assert job.over is not None
        try:
            with anyio.CancelScope() as job.scope:
                await job.run()
                await _give_back(job)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again by the constructor
            job.error = error
            await _give_back(job)
        finally:
            if job.stream is not None:
                job.stream.close_now()
            job.over.set()


class Here(threading.local):
    """The request whose finish_request() this thread is in."""

    job: Job | None = None


here = Here()


def is_connection(request: Any) -> bool:
    return isinstance(request, socket.socket) and request.type == socket.SOCK_STREAM


async def _give_back(job: Job) -> None:
    """Take the socket back from its stream: others may still use it, and close it. What is unread goes nowhere."""
    if (stream := job.stream) is None:
        return
    try:
        await stream.flush()
        while True:
            try:
                stream.detach().settimeout(job.timeout)
                return
            except aserver.BufferedDataError:
                await stream.receive()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError, anyio.EndOfStream):
        pass  # lost, closed by the handler, or used by a task that it has left behind: who called us closes it


def send_now(sock: Any, data: bytes, address: Any) -> bool:
    """Send on a socket that blocks, without blocking; whether the kernel has taken it."""
    flag = getattr(socket, "MSG_DONTWAIT", 0)  # not on Windows
    try:
        sock.sendto(data, flag, address)
    except BlockingIOError:
        return False
    return True


async def _send(sock: Any, data: bytes, address: Any) -> None:
    while not send_now(sock, data, address):  # noqa: ASYNC110 - of a Unix peer's full queue nobody tells
        await anyio.sleep(RETRY)

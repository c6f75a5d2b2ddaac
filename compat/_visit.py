"""One request of a native server on its way through a legacy handler: in the loop, then in a worker at its turn.

Lives here: who may touch its socket when, how the server's stopping reaches it, how a datagram is answered from a
worker. Must not: executors, queues, the handler class; `hosting` has those, and imports this.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from anyio import from_thread
from anyio.lowlevel import EventLoopToken

import aserver

__all__ = ["Sender", "Visit", "end"]


class House(Protocol):
    """Where it is a guest: what `hosting` has for the server."""

    @property
    def facade(self) -> Any:
        """The server as handlers see it."""

    @property
    def crosses(self) -> bool:
        """Whether handlers run in other processes."""

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the loop."""


class Visit:
    """One request: in the loop until its turn comes, then in a worker.

    Attributes:
        request, client_address: what the handler gets.
        over: set in the loop when it was served and closed.
        error: what has happened to it.
    """

    def __init__(self, house: House, request: Any, client_address: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.over = anyio.Event()
        self.error: BaseException | None = None
        self._house = house
        self._waits_for_data = False
        # Held for a moment by whoever does something to the socket from outside of the worker, or closes it.
        self._lock = threading.Lock()
        self._begun = False
        self._closed = False
        self._abandoned = False

    # -- in the loop

    @property
    def is_here(self) -> bool:
        """Whether it still wants to be served."""
        return not self._closed and not self._abandoned

    async def wait_for_data(self) -> bool:
        """Wait for the first byte; False if there will be none, or the server is stopping.

        Raises:
            ConnectionError: the connection was lost.
        """
        # Here is the place for a deadline: until its first byte a connection costs nobody anything but its memory.
        while True:
            try:
                return bool(self.request.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                pass
            if self._house.facade.draining:
                return False
            self._waits_for_data = True
            try:
                await anyio.wait_readable(self.request)
            except anyio.ClosedResourceError:  # begin_draining() says so
                pass
            finally:
                self._waits_for_data = False

    def begin_draining(self) -> None:
        """The server is stopping: who has not said anything by now is not waited for."""
        if self._waits_for_data:
            anyio.notify_closing(self.request)

    def end_input(self) -> None:
        """The server has been patient enough: let a handler that waits for its peer see the end."""
        # Linux ends input behind what is unread; elsewhere that would be lost.
        if sys.platform == "linux" or not _has_input(self.request):
            self._shut(socket.SHUT_RD)

    def abort(self) -> None:
        """Nothing: it was abandoned when it was cancelled."""

    def abandon(self) -> None:
        """The handler has to end; whatever it does with its connection fails. If it goes on, it does so alone."""
        self._abandoned = True
        self._shut(socket.SHUT_RDWR)
        with self._lock:
            close = not self._begun and not self._closed
            if close:
                self._closed = True
        if close and isinstance(self.request, socket.socket):
            self.request.close()

    def _shut(self, how: int) -> None:
        with self._lock:
            if self._closed or not isinstance(self.request, socket.socket):
                return
            try:
                # The method of the base: that of a TLS socket would forget its keys while the handler uses them.
                socket.socket.shutdown(self.request, how)
            except OSError:  # the peer was quicker, or the handler
                pass

    def conclude(self) -> None:
        """Raise what has happened to it."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # its traceback leads back to here

    # -- in a worker

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it: called by the executor."""
        with self._lock:
            if self._closed:
                return
            self._begun = True
        facade = self._house.facade
        try:
            facade.RequestHandlerClass(request, client_address, facade)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the loop, for the native server to log
            self.error = error
        finally:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close it; also called by an executor that could not serve it."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and isinstance(request, socket.socket):
            end(request)

    def done(self, lost: str | None) -> None:
        """Told by the executor that it is over."""
        if lost is not None:
            self.error = RuntimeError(lost)
        if self._house.crosses:
            self.shutdown_request(self.request)  # our copy; kept until now, so that it could be drained
        # Nobody waits for one that was abandoned, and the loop may be at its end, where a call is never answered.
        if not self._abandoned:
            self._house.call(self.over.set)


class Sender:
    """Stands for the server's socket in the request of a datagram: sends through the native server, and waits."""

    def __init__(self, native: Any, datagram: aserver.Datagram, token: EventLoopToken) -> None:
        self._native = native
        self._datagram = datagram
        self._token = token

    def getsockname(self) -> Any:
        """The address that the datagram was sent to."""
        return self._datagram.local_address

    def sendto(self, data: Any, flags_or_address: Any, address: Any = None) -> int:
        """Send one datagram, from any thread but the loop's; flags mean nothing.

        Raises:
            OSError: it cannot be sent.
        """
        to = flags_or_address if address is None else address
        try:
            from_thread.run(self._send, data, to, token=self._token)
        except anyio.BrokenResourceError as error:
            raise UnsentError(str(error)) from error
        except (anyio.ClosedResourceError, ValueError) as error:
            raise OSError(str(error)) from error
        return memoryview(data).nbytes

    async def _send(self, data: Any, address: Any) -> None:
        if address == self._datagram.peer:
            await self._datagram.reply(data)  # from the address that it was sent to
        else:
            await self._native.send_to(data, address)


class UnsentError(OSError, anyio.BrokenResourceError):
    """The network does not take a datagram: an OSError for the handler, nobody's bug for the server."""


def _has_input(sock: Any) -> bool:
    try:
        return not isinstance(sock, socket.socket) or bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def end(sock: socket.socket) -> None:
    """Tell the peer that nothing more will come, and close."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # the client was quicker, or the handler
        pass
    sock.close()

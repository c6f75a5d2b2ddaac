"""The servers, and the life of a connection told from its permit to its end.

`StreamServer` is the one stream server: what differs between TCP and Unix sockets is in `_endpoints`. The work is done
in the rooms below; here is the order of things, the error boundary around user code, and stopping.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from anyio.abc import TaskStatus

from ._addresses import Address, Endpoint, SocketEndpoint, TcpEndpoint, UnixEndpoint, parse, peer_text
from ._endpoints import BoundSocket, bind
from ._errors import ListenerFailedError, ServerStateError, printable
from ._handlers import Handler, adapt
from ._limits import Gate, Limits, connection_capacity
from ._listener import AcceptCounters, Listener
from ._readiness import open_loop
from ._registry import Registry, ShutdownReport, Statistics
from ._stream import Stream

__all__ = ["DEFAULT_GRACE", "StreamServer", "TCPServer", "UnixStreamServer"]

logger = logging.getLogger("aserver")

#: Seconds that open connections get to end by themselves at `shutdown`; gunicorn and Kubernetes use the same.
DEFAULT_GRACE = 30.0
#: Seconds after which a connection that waits for input counts as idle at `shutdown`, although it has not answered what
#: it took last: servers that only listen never answer. Go takes 5 s of silence for idle.
SETTLE_TIME = 1.0
#: Seconds that a cancelled handler gets before its connection is reset under it, and again before it is left behind.
KILL_GRACE = 5.0
#: Connections that may wait in the kernel for a permit; it caps the number at net.core.somaxconn. The stdlib's 5 fails
#: a burst of 500 clients.
DEFAULT_BACKLOG = 4096

#: How connections end when it is nobody's bug here: the peer or the network went away, or said too much in one line.
_NETWORK_ENDS = (
    anyio.BrokenResourceError,
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.DelimiterNotFound,
    ConnectionError,
)


class StreamServer:
    """Serves connections of byte streams, one task each, from one or more listening sockets.

    Args:
        address: where to listen: ``(host, port)``, a path, an endpoint string (``tcp://127.0.0.1:9999``,
            ``unix:/run/x.sock?mode=660``, ``fd://3``), a bound socket, or a list of these.
        handler: an async function of the `Stream`, or a handler class such as `StreamRequestHandler`.
        limits: the bounds; see `Limits`.
        backlog: connections that may wait in the kernel, which caps it at its own maximum.
        reuse_port: let several processes listen on the same TCP port, the kernel sharing out the connections.
        name: what the server is called in the log; by default its class.

    Raises:
        ValueError, TypeError: an argument cannot be right; nothing has been opened.

    Use it as ``async with server: await server.serve_forever()``, under asyncio, uvloop or trio: entering binds,
    leaving closes everything, cancelling what still runs. `aserver.run` does it from synchronous code. A server serves
    once. Its methods belong to the thread of its event loop.

    The hooks `verify_request`, `connection_opened`, `connection_closed` and `handle_error` are there to be overridden,
    as plain or as async methods. Whatever a hook or handler raises ends its own connection, is logged once, and
    nothing else happens.

    Source: the stdlib's documentation of `socketserver`, "Server Objects".
    """

    def __init__(
        self,
        address: Address | list[Address],
        handler: Handler,
        *,
        limits: Limits | None = None,
        backlog: int = DEFAULT_BACKLOG,
        reuse_port: bool = False,
        name: str | None = None,
    ) -> None:
        _check("limits", limits, isinstance(limits, Limits | None), "an aserver.Limits")
        _check("backlog", backlog, type(backlog) is int, "an integer of at least 1")
        if backlog < 1:
            raise ValueError(f"backlog is {backlog!r}; it must be an integer of at least 1")
        self.name = type(self).__name__ if name is None else name
        self.limits = Limits() if limits is None else limits
        self._endpoints = self._parse(address)
        self._handler = adapt(handler, self)
        self._backlog = backlog
        self._reuse_port = reuse_port
        self._state: Literal["new", "open", "serving", "ended", "stopping", "closed"] = "new"
        self._forced = False
        self._left: anyio.Event | None = None
        self._bound: list[BoundSocket] = []
        self._listeners: list[Listener] = []
        self._registry = Registry()
        self._counters = AcceptCounters()

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return parse(address)

    def __repr__(self) -> str:
        where = ", ".join(self.endpoints) if self._bound else "not bound"
        return f"<{self.name} {where} {self._state} open={len(self._registry)}>"

    # -- hooks, to be overridden ---------------------------------------------------------------------------------------

    def verify_request(self, request: Stream, client_address: Any) -> bool | Awaitable[bool]:
        """Return whether the connection is to be served; if not it is closed. By default each is."""
        return True

    def connection_opened(self, request: Stream, client_address: Any) -> Awaitable[None] | None:
        """Called before the handler of a connection that `verify_request` let in; does nothing by default."""
        return None

    def connection_closed(self, request: Stream, client_address: Any) -> Awaitable[None] | None:
        """Called after the connection was closed, if `connection_opened` returned; does nothing by default."""
        return None

    def handle_error(self, request: Stream, client_address: Any) -> Awaitable[None] | None:
        """Called while an exception of a handler or hook is being handled (``sys.exc_info()``); logs it by default.

        Not called for what is nobody's bug: a peer that resets or ends early, and cancellation.
        """
        logger.error("%s: the request of %s raised", self.name, peer_text(client_address), exc_info=True)
        return None

    # -- life of the server --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ServerStateError(self, "cannot be opened again", "make a new one")
        self._bound = await bind(self._endpoints, backlog=self._backlog, reuse_port=self._reuse_port)
        self._state = "open"
        self._stopping, self._stopped = anyio.Event(), anyio.Event()
        self._house = AsyncExitStack()
        try:
            self._loop = await self._house.enter_async_context(open_loop())
        except BaseException:
            for bound in self._bound:
                bound.close()
            raise
        capacity = self.limits.max_connections or connection_capacity(_soft_descriptor_limit())
        self._gate = Gate(capacity, self.limits.max_connections_per_peer)
        self._listeners = [
            Listener(bound, self._gate, self._loop, self._counters, self.limits.shed_after, self._begin)
            for bound in self._bound
        ]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stop_accepting()
            await self._end_forcibly()
        # Nothing runs in it any more; so whatever left the block leaves it as it is, in no exception group.
        await self._house.aclose()
        self._state = "closed"
        self._stopped.set()

    async def serve_forever(self, *, task_status: TaskStatus[Any] = anyio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve connections until `shutdown` has ended; opens and closes the server if nobody has.

        Args:
            task_status: for ``await task_group.start(server.serve_forever)``, which gives `server_address`.

        Raises:
            OSError: the address cannot be bound (only if this call opens the server).
            aserver.ListenerFailedError: all listening sockets have failed.
            aserver.ServerStateError: it is serving already, or was closed.

        Cancelling it stops accepting at once; `shutdown` then lets the open connections finish, and leaving
        ``async with`` ends them.
        """
        if self._state == "new":
            async with self:
                return await self.serve_forever(task_status=task_status)
        if self._state != "open":
            raise ServerStateError(self, f"cannot serve: it is {self._state}", "make a new one")
        self._state, self._left = "serving", anyio.Event()
        failures: list[ListenerFailedError] = []
        try:
            async with anyio.create_task_group() as acceptors:
                for listener in self._listeners:
                    acceptors.start_soon(self._accept, listener, failures)
                task_status.started(self.server_address)
                await self._stopping.wait()
                acceptors.cancel_scope.cancel()
        except (
            BaseExceptionGroup
        ) as group:  # Ctrl-C on trio: the caller has not asked for a task group, nor for its group
            raise _lone(group) from None
        finally:
            if self._state == "serving":
                self._state = "ended"
            self._close_listeners()
            self._left.set()
        if failures and len(failures) == len(self._listeners):
            raise failures[-1]
        await self._stopped.wait()

    async def _accept(self, listener: Listener, failures: list[ListenerFailedError]) -> None:
        try:
            await listener.accept_forever()
        except ListenerFailedError as exc:
            failures.append(exc)
            logger.critical("%s: %s", self.name, exc.strerror)
            if len(failures) == len(self._listeners):
                self._stopping.set()
        finally:
            listener.close()

    async def _stop_accepting(self) -> None:
        self._close_gate()
        if self._left is not None:
            await self._left.wait()  # serve_forever() has to leave the sockets before they are closed
        self._close_listeners()

    def _close_gate(self) -> None:
        self._gate.suspended = True
        self._stopping.set()

    def _close_listeners(self) -> None:
        self._close_gate()
        for listener in self._listeners:
            listener.close()

    async def shutdown(self, grace: float | None = DEFAULT_GRACE) -> ShutdownReport:
        """Stop: accept nothing more, let the open connections finish, then cancel what is left, then reset it.

        Every stream's `draining` becomes True. A connection that waits for input between two requests sees the end of
        its input at once; one that has not answered what it took last sees it after a second of silence.

        Args:
            grace: seconds the connections get to finish; 0 cancels at once, None waits for ever.

        Returns:
            what became of the connections that were open.

        Raises:
            aserver.ServerStateError: the server was never opened, or is stopping already.

        Call it from a task of its own: a handler that awaits it waits for itself, until the grace is over.
        """
        if self._state not in ("open", "serving", "ended"):
            raise ServerStateError(self, f"cannot be shut down: it is {self._state}", "do so once, while it is open")
        self._state = "stopping"
        total = len(self._registry)
        try:
            await self._stop_accepting()
            await self._let_finish(grace)
            cancelled, aborted = await self._end_forcibly()
        finally:  # also if whoever called us is cancelled; leaving ``async with`` then does the rest
            self._stopped.set()
        return ShutdownReport(finished=total - cancelled, cancelled=cancelled - aborted, aborted=aborted)

    async def _let_finish(self, grace: float | None) -> None:
        with anyio.move_on_after(grace):
            for stream in self._registry:
                stream.begin_draining()
            with anyio.move_on_after(SETTLE_TIME):
                await self._registry.wait_empty()
            for stream in self._registry:
                stream.end_input()
            await self._registry.wait_empty()

    async def _end_forcibly(self) -> tuple[int, int]:
        if self._forced:  # those who are left have survived it once
            return 0, 0
        tasks = self._registry.tasks()
        for task in tasks:
            self._loop.cancel(task)
        with anyio.move_on_after(KILL_GRACE):
            await self._registry.wait_empty()
        aborted = self._registry.abort()
        with anyio.move_on_after(KILL_GRACE):
            await self._registry.wait_empty()
        self._forced = True
        return len(tasks), aborted

    def suspend(self) -> None:
        """Accept nothing until `resume`; clients wait in the kernel's queue. Open connections go on."""
        self._check_open()
        self._gate.suspended = True

    def resume(self) -> None:
        """Accept again after `suspend`; does nothing otherwise."""
        self._check_open()
        if self._state in ("open", "serving"):
            self._gate.suspended = False
            self._ring()

    async def wait_empty(self) -> None:
        """Wait until no connection is open; new ones may come unless the server is suspended or stopping."""
        await self._registry.wait_empty()

    # -- what can be asked ---------------------------------------------------------------------------------------------

    @property
    def server_address(self) -> Any:
        """The address of the (first) listening socket, with the port that was given for port 0; a Unix path as str."""
        self._check_open()
        return self._bound[0].address

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings of all listening sockets, such as ``tcp://127.0.0.1:9999``."""
        self._check_open()
        return tuple(bound.endpoint for bound in self._bound)

    def statistics(self) -> Statistics:
        """Return the counters of this moment."""
        house, door = self._registry, self._counters
        return Statistics(
            open=len(house),
            accepted=door.accepted,
            completed=house.completed,
            failed=house.failed,
            lost=house.lost,
            rejected=house.rejected,
            cancelled=house.cancelled,
            refused_per_peer=door.refused_per_peer,
            shed=door.shed,
            accept_errors=door.accept_errors,
        )

    def _check_open(self) -> None:
        if not self._bound:
            raise ServerStateError(self, "is not open", "enter it with 'async with' first")

    # -- life of a connection ------------------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket, address: Any) -> None:
        stream = Stream(sock, address, self._loop, self.limits)
        self._registry.enter(stream, self._loop.spawn(self._serve, stream))

    async def _serve(self, stream: Stream) -> None:
        """The life of a connection, which holds its permit already: verify, handle, close, give the permit back."""
        admitted = False
        try:
            verdict = self.verify_request(stream, stream.peer)
            admitted = verdict if isinstance(verdict, bool) else bool(await verdict)
            if admitted:
                if (waiting := self.connection_opened(stream, stream.peer)) is not None:
                    await waiting
                await self._handler(stream)
                if stream.unsent:
                    await stream.aclose()
                self._registry.completed += 1
            else:
                self._registry.rejected += 1
        except BaseException as exc:  # noqa: BLE001 - the error boundary: whatever user code raises ends here
            await self._raised(stream, exc)
        finally:
            stream.close_now()
            try:
                if admitted and (waiting := self.connection_closed(stream, stream.peer)) is not None:
                    await waiting
            except BaseException as exc:  # noqa: BLE001 - as above
                self._hook_raised(stream, exc)
            finally:
                self._registry.leave(stream)
                self._gate.leave(stream.peer)
                self._ring()

    async def _raised(self, stream: Stream, exc: BaseException) -> None:
        """The error boundary: what a handler or hook raised ends here, whatever it is; only cancellation goes on."""
        cancelled, failure = _split(exc, anyio.get_cancelled_exc_class())
        if cancelled is not None and not self._loop.cancelling():
            cancelled, failure = None, exc  # nobody asked for it: the handler has raised it itself
        if failure is None:
            self._registry.cancelled += 1
        elif _is_network_end(failure):
            self._registry.lost += 1
            logger.debug("%s: the connection of %s ended: %s", self.name, peer_text(stream.peer), printable(failure))
        else:
            self._registry.failed += 1
            try:
                if (waiting := self.handle_error(stream, stream.peer)) is not None:
                    await waiting
            except BaseException as hook_exc:  # noqa: BLE001 - the boundary's own boundary
                self._hook_raised(stream, hook_exc)
        if cancelled is not None:
            raise cancelled

    def _hook_raised(self, stream: Stream, exc: BaseException) -> None:
        if isinstance(exc, anyio.get_cancelled_exc_class()) and self._loop.cancelling():
            raise exc
        logger.error("%s: a hook for %s raised", self.name, peer_text(stream.peer), exc_info=exc)

    def _ring(self) -> None:
        for listener in self._listeners:
            listener.ring()


class TCPServer(StreamServer):
    """A `StreamServer` on TCP: ``(host, port)``, ``tcp://host:port``, ``fd://3`` or a bound socket.

    An empty host means all interfaces; a name or an empty host listens on IPv4 and IPv6, on one port.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return _only(parse(address), UnixEndpoint, "TCPServer", "UnixStreamServer")


class UnixStreamServer(StreamServer):
    """A `StreamServer` on a Unix socket: a path, ``unix:/path?mode=660``, ``unix:@abstract``, ``fd://3`` or a socket.

    The socket is readable and writable by its owner only unless ``mode`` says otherwise. A path that a dead server
    left behind is replaced; one that is alive, or is no socket, is refused. The path is removed at the end if it is
    still ours.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return _only(parse(address), TcpEndpoint, "UnixStreamServer", "TCPServer")


def _check(name: str, value: object, fits: bool, what: str) -> None:
    if not fits:
        raise TypeError(f"{name} is {printable(value)}; it must be {what}")


def _only(endpoints: tuple[Endpoint, ...], wrong: type, here: str, there: str) -> tuple[Endpoint, ...]:
    unix = wrong is UnixEndpoint
    for endpoint in endpoints:
        ready_made = isinstance(endpoint, SocketEndpoint) and (endpoint.sock.family == socket.AF_UNIX) == unix
        if ready_made or isinstance(endpoint, wrong):
            raise ValueError(f"{here} cannot listen on {endpoint}; use {there}, or StreamServer for several kinds")
    return endpoints


def _lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in *group*, or the group if there are several."""
    lone: BaseException = group
    while isinstance(lone, BaseExceptionGroup) and len(lone.exceptions) == 1:
        lone = lone.exceptions[0]
    return lone


def _split(exc: BaseException, kind: type[BaseException]) -> tuple[BaseException | None, BaseException | None]:
    """Return what is of *kind* in *exc*, one of them for all, and what is not; a handler's task group mixes them."""
    if not isinstance(exc, BaseExceptionGroup):
        return (exc, None) if isinstance(exc, kind) else (None, exc)
    group, rest = exc.split(kind)
    leaf: BaseException | None = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf, rest


def _is_network_end(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_network_end(each) for each in exc.exceptions)
    # Refused is whoever connects somewhere: a handler and its own backend.
    return isinstance(exc, _NETWORK_ENDS) and not isinstance(exc, ConnectionRefusedError)


def _soft_descriptor_limit() -> int:
    try:
        import resource
    except ImportError:  # Windows, where a socket is no descriptor and 10 000 are no trouble
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft

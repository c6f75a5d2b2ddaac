"""The servers and the two narrators: the life of a connection, and the life of a datagram.

What differs between TCP, UDP and Unix sockets is in `_endpoints`. What `StreamServer` and `DatagramServer`
have in common (opening, serving, stopping, the error boundary) is in `_lifecycle`, the work in the rooms below.
"""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from ._addresses import Address, Endpoint, InetEndpoint, SocketEndpoint, UnixEndpoint, parse
from ._ancillary import interface_source
from ._datagram import Budget, Datagram, DatagramCounters, DatagramSocket
from ._door import Door
from ._endpoints import BindOptions
from ._handlers import Handler, adapt
from ._lifecycle import BaseServer, check
from ._limits import Gate, Limits, Sessions, connection_capacity
from ._listener import AcceptCounters, Listener, let_in
from ._multicast import Group, interface_index, parse_groups
from ._readiness import Task
from ._registry import DatagramStatistics, Statistics
from ._session import Session, SessionCounters, SessionTable
from ._stream import Stream

__all__ = ["DatagramServer", "StreamServer", "TCPServer", "UDPServer", "UnixDatagramServer", "UnixStreamServer"]

#: Connections that may wait in the kernel for a permit; it caps the number at net.core.somaxconn. The stdlib's 5 fails
#: a burst of 500 clients.
DEFAULT_BACKLOG = 4096


class StreamServer(BaseServer[Stream]):
    """Serves connections of byte streams, one task each, from one or more listening sockets.

    Args:
        address: where to listen: ``(host, port)``, a path, an endpoint string (``tcp://127.0.0.1:9999``,
            ``unix:/run/x.sock?mode=660``, ``fd://3``), a bound socket, or a list of these; None to serve only what
            `add_connection` brings.
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

    #: Also what its socket raises, when a handler has taken it over.
    _network_ends = (*BaseServer._network_ends, ConnectionError)

    def __init__(
        self,
        address: Address | list[Address] | None,
        handler: Handler,
        *,
        limits: Limits | None = None,
        backlog: int = DEFAULT_BACKLOG,
        reuse_port: bool = False,
        name: str | None = None,
    ) -> None:
        check("backlog", backlog, type(backlog) is int, "an integer of at least 1")
        if backlog < 1:
            raise ValueError(f"backlog is {backlog!r}; it must be an integer of at least 1")
        super().__init__(address, options=BindOptions(backlog, reuse_port), limits=limits, name=name)
        self._handler = adapt(handler, self, "stream")
        self._counters = AcceptCounters()

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return parse(address)

    def _open_doors(self) -> list[Door]:
        capacity = self.limits.max_connections or connection_capacity(_soft_descriptor_limit())
        self._gate = Gate(capacity, self.limits.max_connections_per_peer)
        return [
            Listener(bound, self._gate, self._loop, self._counters, self.limits.shed_after, self._begin)
            for bound in self._bound
        ]

    def _admit(self, admitted: bool) -> None:
        self._gate.suspended = not admitted

    def connection_opened(self, request: Stream, client_address: Any) -> Awaitable[None] | None:
        """Called before the handler of a connection that `verify_request` let in; does nothing by default."""
        return None

    def connection_closed(self, request: Stream, client_address: Any) -> Awaitable[None] | None:
        """Called after the connection was closed, if `connection_opened` returned; does nothing by default."""
        return None

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

    # -- life of a connection ------------------------------------------------------------------------------------------

    def add_connection(self, sock: socket.socket, address: Any) -> bool:
        """Serve a connection that was accepted elsewhere, as if this server had accepted it.

        Args:
            sock: a connected stream socket, which the server closes in any case.
            address: the peer's address, as ``accept()`` gives it.

        Returns:
            False if it was closed at once, because the server is stopping or suspended, or its `Limits` leave no room.

        Raises:
            aserver.ServerStateError: the server was never opened.
            TypeError: it is no plain socket.

        For what inherits or is handed connections, and not their listening socket. Belongs to the event loop's thread.
        """
        self._check_open()
        check("sock", sock, not hasattr(sock, "do_handshake"), "a plain socket")
        if not self._gate.open:
            self._counters.shed += 1
            sock.close()
            return False
        return let_in(sock, address, self._gate, self._counters, self._begin, self.name)

    def _begin(self, sock: socket.socket, address: Any) -> None:
        stream = Stream(sock, address, self._loop, self.limits)
        self._registry.tasks[stream] = self._loop.spawn(self._serve, stream)

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


class DatagramServer(BaseServer[Any]):
    """Serves datagrams, one task each, or with *sessions* one task for each peer, from one or more sockets.

    Args:
        address: where to receive: ``(host, port)``, a path, an endpoint string (``udp://127.0.0.1:9999``,
            ``unixgram:/run/x.sock?mode=660``, ``fd://3``), a bound socket, or a list of these.
        handler: an async function of the `Datagram` (with *sessions*: of the `Session`), or a handler class such as
            `DatagramRequestHandler`.
        limits: the bounds; see `Limits`.
        sessions: give each peer a `Session` with these bounds; see `Sessions`.
        groups: multicast groups to join, such as ``"239.1.2.3%eth0"`` or ``"ff02::fb%eth0"``; without an interface the
            system's routes choose one.
        broadcast: let datagrams be sent to broadcast addresses.
        reuse_port: let several processes receive on the same port: the kernel shares out what comes to one address,
            and gives each of them what comes to a group.
        name: what the server is called in the log; by default its class.

    Raises:
        ValueError, TypeError: an argument cannot be right; nothing has been opened.

    A datagram that does not fit (see `Limits.max_in_flight`) is dropped and counted, as is what the kernel drops:
    `statistics` accounts for each of them. The hooks `verify_request` and `handle_error` are there to be overridden, as
    plain or as async methods; otherwise it is used as a `StreamServer` is. On asyncio and uvloop a handler mostly
    begins before the server turns to the next datagram; on trio, and where it waits, they take turns as tasks do.

    Source: the stdlib's documentation of `socketserver`, "Server Objects".
    """

    def __init__(
        self,
        address: Address | list[Address],
        handler: Handler,
        *,
        limits: Limits | None = None,
        sessions: Sessions | None = None,
        groups: Sequence[str] = (),
        broadcast: bool = False,
        reuse_port: bool = False,
        name: str | None = None,
    ) -> None:
        check("sessions", sessions, isinstance(sessions, Sessions | None), "an aserver.Sessions")
        options = BindOptions(backlog=0, reuse_port=reuse_port, broadcast=broadcast)
        super().__init__(address, options=options, limits=limits, name=name)
        self.sessions = sessions
        self._groups = parse_groups(groups)
        self._handler = adapt(handler, self, "datagram" if sessions is None else "session")
        self._counters = DatagramCounters()
        self._in_flight_size = 0
        self._session_counters = SessionCounters()
        self._table = None if sessions is None else SessionTable(sessions, self._session_counters, self._begin_session)
        self._sockets: list[DatagramSocket] = []

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return parse(address, kind=socket.SOCK_DGRAM)

    def _open_doors(self) -> list[Door]:
        for group in self._groups:
            group.join(bound.sock for bound in self._bound)
        begin: Callable[[Datagram], Task | None] = functools.partial(self._loop.start, self._serve)
        if self._table is not None:
            begin = self._deliver
        elif self.limits.max_amplification is not None:
            begin = self._begin_limited
        # Asked once, for a call saved per datagram.
        default = type(self).verify_request is BaseServer.verify_request and "verify_request" not in vars(self)
        self._verifies = not default
        size, requests = self.limits.max_datagram_size, self._registry.tasks
        hooks = (self._has_room, begin, self._begun)
        self._sockets = [
            DatagramSocket(bound, self._loop, self._counters, size, requests, *hooks) for bound in self._bound
        ]
        return list(self._sockets)

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [] if self._table is None else [self._table.end_idle]

    def _admit(self, admitted: bool) -> None:
        for each in self._sockets:
            each.admitting = admitted

    def _last_call(self) -> None:
        if self._left is not None:
            for each in self._sockets:
                each.take_waiting()

    async def send_to(self, data: bytes | bytearray | memoryview, address: Any) -> None:
        """Send *data*, as one packet, to *address*, whether or not anything came from there.

        Args:
            data: at most 65 507 bytes over IPv4.
            address: ``(host, port)`` with an IP address as host, or the path or abstract name of a Unix socket. To
                choose the interface, as a multicast group may need it, write it behind the host: ``239.1.2.3%eth0``.

        Raises:
            anyio.BrokenResourceError: the network, a firewall or the peer does not take it.
            anyio.ClosedResourceError: the server is closed.
            OSError: there is no such interface.
            ValueError: the address is none, or of a kind that the server has no socket for; or *data* is too large.

        Goes out from the first socket of the server that fits the address, and waits while the kernel has no room.
        Cancelled while it waits, it sends nothing. ``Limits.max_amplification`` is for replies and does not count here.
        """
        self._check_open()
        if not isinstance(address, tuple):
            if address and (via := self._socket_for(getattr(socket, "AF_UNIX", -1))):
                return await via.send(data, address)
            raise ValueError(f"{address!r} cannot be sent to: {self} has no Unix socket; give (host, port)")
        if not 2 <= len(address) <= 4 or not isinstance(address[1], int) or not 0 <= address[1] <= 65535:
            raise ValueError(f"{address!r} cannot be sent to: it is no (host, port) with a port from 0 to 65535")
        host, _, interface = str(address[0]).partition("%")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            socket.inet_pton(family, host)
        except OSError:
            raise ValueError(f"{address!r} has no IP address as host; look the name up first: anyio.getaddrinfo()")
        via = self._socket_for(family)
        if via is None and family == socket.AF_INET and (via := self._socket_for(socket.AF_INET6)) is not None:
            host = f"::ffff:{host}"  # a socket of both families that was handed in; another one refuses that
            if via.bound.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                via = None
        if via is None:
            raise ValueError(f"{address!r} cannot be sent to: {self} has no socket of that family")
        source = interface_source(via.bound.sock.family, interface_index(interface)) if interface else None
        await via.send(data, (host, *address[1:]), source)

    def _socket_for(self, family: int) -> DatagramSocket | None:
        return next((each for each in self._sockets if each.bound.sock.family == family), None)

    def join_group(self, group: str) -> None:
        """Receive what is sent to a multicast group from now on.

        Args:
            group: its address, ``"239.1.2.3"``; with the interface to listen on, ``"239.1.2.3%eth0"``.

        Raises:
            ValueError, TypeError: it is no multicast group, or the server has no socket of that family.
            OSError: there is no such interface; it is joined already; or the system refuses.
        """
        self._check_open()
        Group.parse(group).join(bound.sock for bound in self._bound)

    def leave_group(self, group: str) -> None:
        """Undo `join_group`; the same argument and errors."""
        self._check_open()
        Group.parse(group).leave(bound.sock for bound in self._bound)

    def statistics(self) -> DatagramStatistics:
        """Return the counters of this moment."""
        house, door, sessions = self._registry, self._counters, self._session_counters
        drops = [each.dropped_by_kernel for each in self._sockets]
        open_now = len(house) + (door.beginning if self._table is None else 0)
        return DatagramStatistics(
            open=open_now,
            received=door.received,
            handled=open_now + house.ended if self._table is None else sessions.handled,
            queued=sessions.queued,
            completed=house.completed,
            failed=house.failed,
            lost=house.lost,
            rejected=house.rejected,
            cancelled=house.cancelled,
            dropped_in_flight=door.no_room,
            dropped_too_large=door.too_large,
            dropped_session_limit=sessions.dropped_session_limit,
            dropped_queue_full=sessions.dropped_queue_full,
            dropped_unread=sessions.dropped_unread,
            dropped_by_kernel=None if None in drops else sum(each or 0 for each in drops),
            receive_errors=door.receive_errors,
            sent=door.sent,
            send_errors=door.send_errors,
            replies_refused=door.replies_refused,
        )

    # -- life of a datagram, and of a session --------------------------------------------------------------------------

    def _has_room(self, size: int) -> bool:
        limits = self.limits
        return self._table is not None or (  # the table has bounds of its own
            len(self._registry) < limits.max_in_flight and self._in_flight_size + size <= limits.max_in_flight_size
        )

    def _begin_limited(self, datagram: Datagram) -> Task | None:
        datagram.budget = self._budget(len(datagram.data))
        return self._loop.start(self._serve, datagram)

    def _begun(self, datagram: Datagram, task: Task) -> None:
        self._registry.tasks[datagram] = task
        self._in_flight_size += len(datagram.data)

    def _deliver(self, datagram: Datagram) -> None:
        assert self._table is not None
        self._table.deliver(datagram, len(self._registry), self._budget)

    def _begin_session(self, session: Session) -> None:
        self._registry.tasks[session] = self._loop.spawn(self._serve, session)

    async def _serve(self, request: Any) -> None:
        """The life of a datagram or session, for which there is room already: verify, handle, make room again."""
        registry = self._registry
        try:
            if self._verifies and not await self._verified(request):
                registry.rejected += 1
                return
            await self._handler(request)
            registry.completed += 1
        except BaseException as exc:  # noqa: BLE001 - the error boundary: whatever user code raises ends here
            await self._raised(request, exc)
        finally:
            # If it is not there, it has ended before it was noted that it had begun.
            if registry.tasks and request in registry.tasks:
                self._leave(request)

    async def _verified(self, request: Any) -> bool:
        verdict = self.verify_request(request, request.peer)
        return verdict if isinstance(verdict, bool) else bool(await verdict)

    def _leave(self, request: Any) -> None:
        if self._table is None:
            self._in_flight_size -= len(request.data)
        else:
            self._table.remove(request)
        self._registry.leave(request)

    def _budget(self, earned: int = 0) -> Budget | None:
        if self.limits.max_amplification is None:
            return None
        budget = Budget(self.limits.max_amplification, self._counters)
        budget.earn(earned)
        return budget


class TCPServer(StreamServer):
    """A `StreamServer` on TCP: ``(host, port)``, ``tcp://host:port``, ``fd://3`` or a bound socket.

    An empty host means all interfaces; a name or an empty host listens on IPv4 and IPv6, on one port.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return _only(parse(address), UnixEndpoint, "TCPServer", "UnixStreamServer", "StreamServer")


class UnixStreamServer(StreamServer):
    """A `StreamServer` on a Unix socket: a path, ``unix:/path?mode=660``, ``unix:@abstract``, ``fd://3`` or a socket.

    The socket is readable and writable by its owner only unless ``mode`` says otherwise. A path that a dead server
    left behind is replaced; one that is alive, or is no socket, is refused. The path is removed at the end if it is
    still ours.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        return _only(parse(address), InetEndpoint, "UnixStreamServer", "TCPServer", "StreamServer")


class UDPServer(DatagramServer):
    """A `DatagramServer` on UDP: ``(host, port)``, ``udp://host:port``, ``fd://3`` or a bound socket.

    An empty host means all interfaces; a name or an empty host receives on IPv4 and IPv6, on one port. SO_REUSEADDR is
    never set: it would let any user of the machine take the port over.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        endpoints = parse(address, kind=socket.SOCK_DGRAM)
        return _only(endpoints, UnixEndpoint, "UDPServer", "UnixDatagramServer", "DatagramServer")


class UnixDatagramServer(DatagramServer):
    """A `DatagramServer` on a Unix socket: a path, ``unixgram:/path?mode=660``, ``unixgram:@abstract``, ``fd://3`` or a
    socket.

    The rules for paths are those of `UnixStreamServer`. A client has to bind a path of its own to be answered.
    """

    @staticmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]:
        endpoints = parse(address, kind=socket.SOCK_DGRAM)
        return _only(endpoints, InetEndpoint, "UnixDatagramServer", "UDPServer", "DatagramServer")


def _only(endpoints: tuple[Endpoint, ...], wrong: type, here: str, there: str, both: str) -> tuple[Endpoint, ...]:
    unix = wrong is UnixEndpoint
    for endpoint in endpoints:
        ready_made = isinstance(endpoint, SocketEndpoint) and (endpoint.sock.family == socket.AF_UNIX) == unix
        if ready_made or isinstance(endpoint, wrong):
            raise ValueError(f"{here} cannot listen on {endpoint}; use {there}, or {both} for several kinds")
    return endpoints


def _soft_descriptor_limit() -> int:
    try:
        import resource
    except ImportError:  # Windows, where a socket is no descriptor and 10 000 are no trouble
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft

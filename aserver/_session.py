"""Sessions: one peer's datagrams, in order, for one handler; opt-in for protocols that have conversations.

A session has its input in a bounded queue, of which what does not fit is dropped and counted, and ends it when its peer
was silent too long. Which datagram belongs to which session is known here; running their handlers is the server's
business, which alone imports this.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute, UnreliableObjectStream

from ._addresses import peer_text
from ._ancillary import Ancillary, reply_source
from ._datagram import Budget, Datagram, DatagramSocket
from ._limits import Sessions

__all__ = ["Session", "SessionCounters", "SessionTable"]

#: Datagrams that a handler may take without once waiting before it lets the others run: about 100 µs of work.
YIELD_EVERY = 64


@dataclass(slots=True)
class SessionCounters:
    """What became of the datagrams of all sessions of a server."""

    handled: int = 0
    queued: int = 0
    queued_size: int = 0
    dropped_session_limit: int = 0
    dropped_queue_full: int = 0
    dropped_unread: int = 0


class Session(UnreliableObjectStream[bytes]):
    """The datagrams of one peer, in the order in which they arrived, and the way to answer it.

    It is an `anyio.abc.UnreliableObjectStream` of bytes; ``async for data in session`` takes one after the other, up to
    the end of the input: the peer was silent for ``Sessions.idle_timeout``, or the server is stopping and what was
    queued has been taken. Any number of tasks may send, one may receive. Not thread-safe.

    Cancellation: a cancelled `receive` loses nothing; a cancelled `send` that waits for room sends nothing.

    Attributes:
        peer: the peer's address, see `Datagram`. Unix peers without an address share one session.
        draining: True once the server is stopping: finish what is under way, begin nothing new.
    """

    def __init__(
        self, peer: Any, via: DatagramSocket, counters: SessionCounters, limits: Sessions, budget: Budget | None
    ) -> None:
        self.peer = peer
        self.draining = False
        self.last_heard = 0.0
        self._socket = via
        self._counters = counters
        self._limits = limits
        self._budget = budget
        self._queue: deque[bytes] = deque()
        self._ancillary: Ancillary | None = None
        self._arrival: anyio.Event | None = None
        self._streak = 0
        self._ended = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended else "open"
        return f"<Session {peer_text(self.peer)} {state} queued={len(self._queue)}>"

    @property
    def ended(self) -> bool:
        """Whether no more datagrams come in, though some may still be queued."""
        return self._ended

    def offer(self, datagram: Datagram) -> None:
        """Queue one datagram, or drop it if there is no room."""
        data, counters = datagram.data, self._counters
        if self._budget is not None:
            self._budget.earn(len(data))
        if len(self._queue) >= self._limits.max_queued or (
            counters.queued and counters.queued_size + len(data) > self._limits.max_queued_size
        ):
            counters.dropped_queue_full += 1
            return
        self._ancillary = datagram.ancillary
        self._queue.append(data)
        counters.queued += 1
        counters.queued_size += len(data)
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()

    async def receive(self) -> bytes:
        """Return the next datagram.

        Raises:
            anyio.EndOfStream: there is none, and none will come.
            anyio.ClosedResourceError: the session is closed.
            anyio.BusyResourceError: another task is receiving.
        """
        if self._arrival is not None:
            raise anyio.BusyResourceError("receiving from")
        self._streak = (self._streak + 1) % YIELD_EVERY
        if not self._streak:
            await anyio.lowlevel.checkpoint()
        while not self._queue:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                raise anyio.EndOfStream
            self._streak = 0
            self._arrival = anyio.Event()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None
        data = self._queue.popleft()
        self._forget(data)
        self._counters.handled += 1
        return data

    def _forget(self, data: bytes) -> None:
        self._counters.queued -= 1
        self._counters.queued_size -= len(data)

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send *item*, as one packet, to the peer; see `Datagram.reply` for what happens then and what is raised."""
        if self._closed:
            raise anyio.ClosedResourceError
        if self._budget is not None:
            self._budget.spend(memoryview(item).nbytes)
        await self._socket.send(item, self.peer, self._ancillary and reply_source(self._ancillary))

    async def aclose(self) -> None:
        """Close the session: its queue is dropped, and what its peer sends next begins a new one."""
        self.abort()
        await anyio.lowlevel.checkpoint()

    def begin_draining(self) -> None:
        """The server is stopping."""
        self.draining = True
        self.end_input()

    def end_input(self) -> None:
        """Let no more datagrams in; what is queued can still be taken."""
        self._ended = True
        self._wake()

    def abort(self) -> None:
        """Close it at once."""
        self._closed = self._ended = True
        self._counters.dropped_unread += len(self._queue)
        while self._queue:
            self._forget(self._queue.popleft())
        self._wake()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """anyio's typed attributes of a socket."""
        sock = self._socket.bound.sock
        return {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.local_address: lambda: self._socket.bound.address,
            SocketAttribute.raw_socket: lambda: sock,
            SocketAttribute.remote_address: lambda: self.peer,
        }


class SessionTable:
    """The sessions that take datagrams in, each with its peer; the one that was silent longest comes first.

    Args:
        limits: see `Sessions`.
        counters: shared with the sessions.
        begin: called with each new session, which has its first datagram.
    """

    def __init__(self, limits: Sessions, counters: SessionCounters, begin: Callable[[Session], None]) -> None:
        self._limits = limits
        self._counters = counters
        self._begin = begin
        self._sessions: OrderedDict[tuple[Any, DatagramSocket], Session] = OrderedDict()
        self._first: anyio.Event | None = None

    def deliver(self, datagram: Datagram, open_now: int, budget: Callable[[], Budget | None]) -> None:
        """Give a datagram to the session of its peer; to a new one if that is allowed beside *open_now* others."""
        peer, via = datagram.peer, datagram.via
        key = (peer, via)
        session = self._sessions.get(key)
        if session is not None and not session.ended:
            session.last_heard = time.monotonic()
            self._sessions.move_to_end(key)
            session.offer(datagram)
        elif open_now >= self._limits.max_sessions:
            self._counters.dropped_session_limit += 1
        else:
            session = Session(peer, via, self._counters, self._limits, budget())
            session.last_heard = time.monotonic()
            self._sessions.pop(key, None)
            self._sessions[key] = session
            if self._first is not None:
                self._first.set()
            session.offer(datagram)
            self._begin(session)

    def remove(self, session: Session) -> None:
        """Forget *session*, whose handler has ended, and drop what it has not taken."""
        session.abort()
        key = (session.peer, session._socket)
        if self._sessions.get(key) is session:
            del self._sessions[key]

    async def end_idle(self) -> None:
        """End the input of each session whose peer is silent for too long, until cancelled."""
        idle = self._limits.idle_timeout
        while idle is not None:
            while not self._sessions:  # who rang may have ended again by the time that we are awake
                self._first = anyio.Event()
                await self._first.wait()
            key, session = next(iter(self._sessions.items()))
            if (rest := session.last_heard + idle - time.monotonic()) > 0:
                await anyio.sleep(rest)  # what begins meanwhile is not due before
            else:
                session.end_input()
                del self._sessions[key]

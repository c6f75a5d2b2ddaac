"""The promises of `aserver.Session`: the datagrams of one peer, in order and for one handler, bounded in every way and
counted, until the peer is silent or the server stops.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import aserver
from aserver import Sessions

from .conftest import LogBook
from .test_datagram import Peer, fill, short_dir
from .test_datagram_server import serving, totals
from .test_server import turns, until

__all__ = ["short_dir"]  # the fixture

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="Unix datagrams")]

#: Seconds of silence in tests of the idle timeout: as short as is sure to be longer than a turn of the loop.
IDLE = 0.05

Handler = Callable[[aserver.Session], Awaitable[None]]


def udp(handler: Any, *, limits: aserver.Limits | None = None, **sessions: Any) -> aserver.UDPServer:
    """A server with sessions on a free port of the loopback interface."""
    return aserver.UDPServer(("127.0.0.1", 0), handler, limits=limits, sessions=Sessions(**sessions))


async def upper(session: aserver.Session) -> None:
    """Answer each datagram in capitals."""
    async for data in session:
        await session.send(data.upper())


class Book:
    """A handler that notes what each session gets, and takes it when it may.

    Attributes:
        sessions: all there were, in their order.
        got: what each of them got.
        ends: how each of them ended.
        go: set as long as datagrams are to be taken.
    """

    def __init__(self, *, going: bool = True) -> None:
        self.sessions: list[aserver.Session] = []
        self.got: dict[aserver.Session, list[bytes]] = {}
        self.ends: list[aserver.Session] = []
        self.go = anyio.Event()
        if going:
            self.go.set()

    async def __call__(self, session: aserver.Session) -> None:
        self.sessions.append(session)
        self.got[session] = []
        await self.go.wait()
        async for data in session:
            self.got[session].append(data)
            if data == b"leave":
                return
        self.ends.append(session)


# --- one peer, one session -------------------------------------------------------------------------------------------


async def test_each_peer_has_its_session() -> None:
    """What one peer sends goes to one handler task, in order; another peer has another; each hears its own answers."""
    book = Book()
    async with serving(udp(book)) as server:
        with Peer(server.server_address) as one, Peer(server.server_address) as two:
            for number in range(100):
                one.send(b"1-%d" % number)
                two.send(b"2-%d" % number)
                if number % 10 == 0:
                    await turns(3)
            await until(lambda: server.statistics().handled == 200)
            assert [session.peer for session in book.sessions] == [one.name, two.name]
            assert book.got[book.sessions[0]] == [b"1-%d" % number for number in range(100)]
            assert book.got[book.sessions[1]] == [b"2-%d" % number for number in range(100)]
            for session, peer in zip(book.sessions, (one, two), strict=True):
                await session.send(b"for you")
                assert await peer.hear_from() == (b"for you", server.server_address)
            assert one.heard() == two.heard() == []
            assert totals(server) == {"received": 200, "handled": 200, "open": 2, "sent": 2}


async def test_what_arrives_is_what_is_handled() -> None:
    """F5: with losses, duplicates and another order on the way a handler sees exactly what arrives, in that order."""
    way = [number for number in range(300) if number % 5]  # a fifth is lost
    way = [way[index ^ 1] for index in range(len(way))]  # neighbours swap
    way = [number for number in way for _ in range(1 + (number % 20 == 1))]  # some come twice
    book = Book()
    async with serving(udp(book, max_queued=1000)) as server:
        with Peer(server.server_address) as peer:
            for number in way:
                peer.send(b"%d" % number)
            await until(lambda: server.statistics().handled == len(way))
            assert list(book.got.values()) == [[b"%d" % number for number in way]]


async def test_every_size() -> None:
    """Datagrams of 0 to 65 507 bytes are told apart and arrive whole, and so do the answers."""
    async with serving(udp(upper)) as server:
        with Peer(server.server_address, connected=True) as peer:
            for size in (0, 1, 8193, 65_507):
                assert await peer.ask(b"x" * size) == b"X" * size


async def test_two_sockets_two_sessions() -> None:
    """A peer that writes to two sockets of a server has a session at each, and is answered from each."""
    server = aserver.UDPServer(["udp://127.0.0.1:0", "udp://127.0.0.1:0"], upper, sessions=Sessions())
    async with serving(server):
        with Peer(server.server_address) as peer:
            for bound in server._bound:
                peer.send(b"hello", bound.address)
                assert await peer.hear_from() == (b"HELLO", bound.address)
            assert server.statistics().open == 2


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.5 is the machine's own on Linux")
async def test_answers_from_where_it_was_last_sent_to() -> None:
    """On a socket for every address a session answers from the one that its peer has written to last."""
    async with serving(aserver.UDPServer(("0.0.0.0", 0), upper, sessions=Sessions())) as server:
        with Peer(server.server_address) as peer:
            for host in ("127.0.0.1", "127.0.0.5", "127.0.0.6"):
                there = (host, server.server_address[1])
                peer.send(b"hello", there)
                assert await peer.hear_from() == (b"HELLO", there)
            assert server.statistics().open == 1


async def test_unix_sessions(short_dir: Path) -> None:
    """Unix peers have sessions by their names; those without a name share one, which cannot answer."""
    ends: list[str] = []

    async def handler(session: aserver.Session) -> None:
        async for data in session:
            try:
                await session.send(data.upper())
            except anyio.BrokenResourceError as exc:
                ends.append(str(exc))

    async with serving(aserver.UnixDatagramServer(short_dir / "door", handler, sessions=Sessions())) as server:
        with Peer(short_dir / "door", bound=short_dir / "one") as one, Peer(short_dir / "door") as nameless:
            assert await one.ask(b"hello") == b"HELLO"
            nameless.send(b"x")
            with Peer(short_dir / "door") as another:
                another.send(b"y")
            await until(lambda: len(ends) == 2)
            assert server.statistics().open == 2
            assert "the peer has no address" in ends[0]


async def test_what_a_session_is() -> None:
    """A session is anyio's UnreliableObjectStream with the attributes of a socket, and shows its state."""
    book = Book(going=False)
    async with serving(udp(book)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            peer.send(b"two")
            await until(lambda: server.statistics().queued == 2 and book.sessions)
            (session,) = book.sessions
            where = f"127.0.0.1:{peer.name[1]}"
            assert isinstance(session, anyio.abc.UnreliableObjectStream)
            assert repr(session) == f"<Session {where} open queued=2>"
            assert (session.draining, session.ended) == (False, False)
            attribute = anyio.abc.SocketAttribute
            assert session.extra(attribute.family) == socket.AF_INET
            assert session.extra(attribute.local_address) == server.server_address
            assert session.extra(attribute.remote_address) == peer.name
            assert session.extra(attribute.raw_socket).getsockname() == server.server_address
            with pytest.raises(anyio.TypedAttributeLookupError):
                session.extra(anyio.abc.SocketAttribute.remote_port)
            session.end_input()
            assert repr(session) == f"<Session {where} ended queued=2>"
            await session.aclose()
            assert repr(session) == f"<Session {where} closed queued=0>"
            book.go.set()


async def test_class_handler() -> None:
    """A handler class has the session as its request, the peer's address and the server."""
    calls: list[Any] = []

    class Handler(aserver.BaseRequestHandler):
        async def setup(self) -> None:
            calls.append("setup")

        async def handle(self) -> None:
            calls.append((self.client_address, self.server))
            async for data in self.request:
                await self.request.send(data.upper())

        def finish(self) -> None:  # type: ignore[override]  # a plain one will do
            calls.append("finish")

    async with serving(udp(Handler)) as server:
        with Peer(server.server_address) as peer:
            assert await peer.ask(b"hello") == b"HELLO"
            assert await peer.ask(b"again") == b"AGAIN"
            assert (await server.shutdown()).finished == 1
            assert calls == ["setup", (peer.name, server), "finish"]


# --- receiving -------------------------------------------------------------------------------------------------------


async def test_two_receivers() -> None:
    """Two tasks that receive at once are a BusyResourceError for the second one."""
    outcome: list[str] = []

    async def handler(session: aserver.Session) -> None:
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                try:
                    outcome.append((await session.receive()).decode())
                except anyio.BusyResourceError:
                    outcome.append("busy")

            assert await session.receive() == b"first"
            tasks.start_soon(receive)
            tasks.start_soon(receive)

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"first")
            await until(lambda: outcome == ["busy"])
            peer.send(b"second")
            await server.wait_empty()
    assert outcome == ["busy", "second"]


async def test_cancelled_receive_loses_nothing() -> None:
    """A receive that is cancelled, also while a datagram arrives, loses none."""
    got: list[bytes] = []

    async def handler(session: aserver.Session) -> None:
        while len(got) < 200:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def cancel(scope: anyio.CancelScope) -> None:
                        await anyio.lowlevel.checkpoint()
                        scope.cancel()

                    tasks.start_soon(cancel, scope)
                    while True:
                        data = await session.receive()
                        got.append(data)

    async with serving(udp(handler, max_queued=1000)) as server:
        with Peer(server.server_address) as peer:
            for number in range(200):
                peer.send(b"%d" % number)
                if number % 3 == 0:
                    await turns(2)
            await until(lambda: len(got) == 200)
    assert got == [b"%d" % number for number in range(200)]


async def test_receiving_what_is_there_lets_others_run() -> None:
    """A handler that takes datagrams that are all there already lets the rest of the program run every so often."""
    ticks = 0
    seen: list[int] = []

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    book = Book(going=False)

    async def handler(session: aserver.Session) -> None:
        await book.go.wait()
        async for _ in session:
            seen.append(ticks)

    async with serving(udp(handler, max_queued=1000)) as server:
        with Peer(server.server_address) as peer:
            for _ in range(300):
                peer.send(b"x")
            await until(lambda: server.statistics().queued == 300)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tick)
                book.go.set()
                await until(lambda: len(seen) == 300)
                tasks.cancel_scope.cancel()
    assert len(set(seen)) >= 3  # trio shuffles who comes first in a turn


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent, dropped", [(2, 0), (3, 0), (4, 1), (20, 17)])
async def test_max_queued(sent: int, dropped: int) -> None:
    """max_queued datagrams wait in a session; the newest above it are dropped and counted; other peers have room."""
    book = Book(going=False)
    async with serving(udp(book, max_queued=3)) as server:
        with Peer(server.server_address) as peer, Peer(server.server_address) as other:
            for number in range(sent):
                peer.send(b"%d" % number)
            other.send(b"other")
            await until(lambda: server.statistics().received == sent + 1)
            assert server.statistics().dropped_queue_full == server.statistics().dropped == dropped
            assert server.statistics().queued == sent - dropped + 1
            book.go.set()
            await until(lambda: not server.statistics().queued)
            one, two = book.sessions
            assert book.got[one] == [b"%d" % number for number in range(sent - dropped)]
            assert book.got[two] == [b"other"]
            peer.send(b"next")
            await until(lambda: book.got[one][-1] == b"next")
            totals(server)


@pytest.mark.parametrize(
    "sizes, dropped", [([9], 0), ([5, 5], 0), ([5, 6], 1), ([11], 0), ([11, 0], 1), ([5, 6, 5], 1)]
)
async def test_max_queued_size(sizes: list[int], dropped: int) -> None:
    """The datagrams that wait in all sessions have max_queued_size bytes together; a lone one is always let in."""
    book = Book(going=False)
    async with serving(udp(book, max_queued_size=10)) as server:
        with Peer(server.server_address) as one, Peer(server.server_address) as two:
            for number, size in enumerate(sizes):
                (one, two)[number % 2].send(b"x" * size)
            await until(lambda: server.statistics().received == len(sizes))
            assert server.statistics().dropped_queue_full == dropped
            book.go.set()
            await until(lambda: not server.statistics().queued)
            one.send(b"x" * 10)
            await until(lambda: server.statistics().handled == len(sizes) - dropped + 1)
            totals(server)


@pytest.mark.parametrize("peers, dropped", [(1, 0), (2, 0), (3, 1), (10, 8)])
async def test_max_sessions(peers: int, dropped: int) -> None:
    """max_sessions peers have a session at once; datagrams of further ones are dropped and counted, until one ends."""
    book = Book()
    async with serving(udp(book, max_sessions=2)) as server:
        clients = [Peer(server.server_address) for _ in range(peers)]
        for client in clients:
            client.send(b"x")
            await turns(3)
        await until(lambda: server.statistics().received == peers)
        assert server.statistics().dropped_session_limit == server.statistics().dropped == dropped
        assert server.statistics().open == peers - dropped
        clients[0].send(b"leave")
        await until(lambda: server.statistics().completed == 1)
        clients[-1].send(b"y")
        await until(lambda: server.statistics().handled == peers - dropped + 2)
        assert book.sessions[-1].peer == clients[-1].name
        totals(server)
        for client in clients:
            client.sock.close()


async def test_many_peers_leave_nothing() -> None:
    """F2: after 500 sources the state of those that are silent is gone, and each datagram is accounted for."""
    ended: list[aserver.Session] = []

    async def handler(session: aserver.Session) -> None:
        async for _ in session:
            pass
        ended.append(session)

    async with serving(udp(handler, max_sessions=50, idle_timeout=IDLE)) as server:
        for _ in range(500):
            with Peer(server.server_address) as peer:
                peer.send(b"x")
        await until(lambda: server.statistics().received == 500)
        assert server.statistics().open <= 50
        await until(lambda: not server.statistics().open)
        found = totals(server)
        assert found["handled"] + found["dropped_session_limit"] == 500
        assert found["completed"] == len(ended) <= found["handled"]  # a port may have come back
        assert server._table is not None
        assert not server._table._sessions


@pytest.mark.parametrize("size, refused", [(10, []), (11, [11])])
async def test_max_amplification(size: int, refused: list[int], aserver_log: LogBook) -> None:
    """With max_amplification a session may send that many times what its peer has sent until now, altogether."""
    found: list[int] = []

    async def handler(session: aserver.Session) -> None:
        async for data in session:
            if data == b"12345":
                try:
                    await session.send(b"x" * size)
                except aserver.ReplyRefusedError:
                    found.append(size)

    async with serving(udp(handler, limits=aserver.Limits(max_amplification=1))) as server:
        with Peer(server.server_address) as peer:
            for data in (b"4444", b"1", b"12345"):
                peer.send(data)
            await until(lambda: server.statistics().handled == 3)
            await until(lambda: found or server.statistics().sent)
            assert [len(data) for data in peer.heard()] == ([] if refused else [size])
    assert found == refused
    assert server.statistics().replies_refused == len(refused)


# --- the end of a session --------------------------------------------------------------------------------------------


async def test_idle() -> None:
    """After idle_timeout without a datagram the input of a session ends; what the peer sends next begins a new one."""
    book = Book()
    async with serving(udp(book, idle_timeout=IDLE)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            await until(lambda: book.ends)
            await server.wait_empty()
            peer.send(b"two")
            await until(lambda: len(book.ends) == 2)
            await server.wait_empty()
            first, second = book.sessions
            assert (book.got[first], book.got[second]) == ([b"one"], [b"two"])
            assert first.ended
        assert totals(server) == {"received": 2, "handled": 2, "completed": 2}


async def test_who_speaks_is_not_idle() -> None:
    """A peer that goes on sending keeps its session, while a silent one that came later loses his."""
    book = Book()
    async with serving(udp(book, idle_timeout=2 * IDLE)) as server:
        with Peer(server.server_address) as busy, Peer(server.server_address) as silent:
            busy.send(b"x")
            await until(lambda: len(book.sessions) == 1)
            silent.send(b"x")
            while not book.ends:
                busy.send(b"x")
                await turns(5)
            assert [session.peer for session in book.ends] == [silent.name]
            assert len(book.sessions) == 2


@pytest.mark.parametrize("idle", [None, 3600.0])
async def test_patient(idle: float | None) -> None:
    """With a long idle_timeout, or none, a session stays open."""
    async with serving(udp(upper, idle_timeout=idle)) as server:
        with Peer(server.server_address) as peer:
            for _ in range(10):
                assert await peer.ask(b"x") == b"X"
                await turns(5)
            assert server.statistics().open == 1


async def test_queued_is_still_served_when_idle() -> None:
    """What waits in a session whose peer is silent can still be taken, and the new session does not get it."""
    book = Book(going=False)
    async with serving(udp(book, idle_timeout=IDLE)) as server:
        with Peer(server.server_address) as peer:
            for number in range(3):
                peer.send(b"%d" % number)
            await until(lambda: book.sessions and book.sessions[0].ended)
            peer.send(b"new")
            await until(lambda: len(book.sessions) == 2)
            book.go.set()
            await until(lambda: len(book.ends) == 2)
            assert list(book.got.values()) == [[b"0", b"1", b"2"], [b"new"]]
            await server.wait_empty()
        assert totals(server) == {"received": 4, "handled": 4, "completed": 2}


async def test_idle_timeout_of_zero_rests() -> None:
    """With idle_timeout=0, if that is allowed, a server without sessions does not run all the time."""
    try:
        server = udp(upper, idle_timeout=0)
    except ValueError:
        return
    async with serving(server):
        assert server._table is not None
        await turns()
        table, rounds = server._table._sessions, 0

        class Counted(type(table)):  # type: ignore[misc]  # it is an OrderedDict
            def items(self) -> Any:
                nonlocal rounds
                rounds += 1
                return super().items()

        server._table._sessions = Counted(table)
        await turns(100)
        assert rounds <= 2


async def test_handler_that_leaves() -> None:
    """When the handler returns the session ends; what it has not taken is counted; a new one begins with the next."""
    book = Book(going=False)
    async with serving(udp(book)) as server:
        with Peer(server.server_address) as peer:
            for data in (b"one", b"leave", b"unread", b"unread"):
                peer.send(data)
            await until(lambda: server.statistics().queued == 4)
            book.go.set()
            await server.wait_empty()
            assert totals(server) == {"received": 4, "handled": 2, "completed": 1, "dropped_unread": 2}
            peer.send(b"next")
            await until(lambda: len(book.sessions) == 2)
            assert book.sessions[0] is not book.sessions[1]
            with pytest.raises(anyio.ClosedResourceError):
                await book.sessions[0].receive()
            with pytest.raises(anyio.ClosedResourceError):
                await book.sessions[0].send(b"late")
            assert peer.heard() == []


@pytest.mark.parametrize("fault", [ValueError("bad"), SystemExit(2), anyio.BrokenResourceError()], ids=repr)
async def test_handler_that_raises(fault: BaseException, aserver_log: LogBook) -> None:
    """A handler that raises ends its own session only, is logged once with the peer, and its queue is counted."""
    go = anyio.Event()

    async def handler(session: aserver.Session) -> None:
        async for data in session:
            if data == b"bad":
                await go.wait()
                raise fault
            await session.send(data.upper())

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as one, Peer(server.server_address) as two:
            assert await two.ask(b"x") == b"X"
            one.send(b"bad")
            one.send(b"unread")
            await until(lambda: server.statistics().queued == 1)
            go.set()
            await until(lambda: server.statistics().open == 1)
            assert await two.ask(b"y") == b"Y"
            assert await one.ask(b"new") == b"NEW"
            end = "lost" if isinstance(fault, anyio.BrokenResourceError) else "failed"
            expected = {"received": 5, "handled": 4, "open": 2, "sent": 3, "dropped_unread": 1, end: 1}
            assert totals(server) == expected
            if end == "failed":
                aserver_log.take(f"ERROR: UDPServer: the request of 127.0.0.1:{one.name[1]} raised")


async def test_verify_request() -> None:
    """verify_request turns a session away, with all that waits in it; the peer's next datagram is asked about again."""

    class Picky(aserver.UDPServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await anyio.lowlevel.checkpoint()
            return False

    async with serving(Picky(("127.0.0.1", 0), upper, sessions=Sessions())) as server:
        with Peer(server.server_address) as peer:
            for count in (1, 2):
                peer.send(b"x")
                await until(lambda count=count: server.statistics().rejected == count)  # type: ignore[misc]  # a default binds it
        assert totals(server) == {"received": 2, "rejected": 2, "dropped_unread": 2}


async def test_aclose() -> None:
    """A session that its handler closes takes and sends nothing more; the peer's next datagram begins a new one."""
    sessions: list[aserver.Session] = []
    go = anyio.Event()

    async def handler(session: aserver.Session) -> None:
        sessions.append(session)
        if len(sessions) == 1:
            assert await session.receive() == b"one"
            await until(lambda: server.statistics().queued)
            await session.aclose()
            await session.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await session.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await session.send(b"x")
            await go.wait()
        else:
            await upper(session)

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            peer.send(b"dropped")
            await until(lambda: server.statistics().dropped_unread == 1)
            assert await peer.ask(b"two") == b"TWO"  # while the first handler is still there
            assert server.statistics().open == 2
            go.set()
            await until(lambda: server.statistics().open == 1)
            assert await peer.ask(b"three") == b"THREE"
            assert len(sessions) == 2
            totals(server)


async def test_close_while_receiving() -> None:
    """A receive that waits while another task closes the session ends with ClosedResourceError."""
    outcome: list[str] = []

    async def handler(session: aserver.Session) -> None:
        await session.receive()
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await session.receive()
                outcome.append("closed")

            tasks.start_soon(receive)
            await turns(3)
            await session.aclose()

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            await until(lambda: server.statistics().completed)
    assert outcome == ["closed"]


# --- the end of the server -------------------------------------------------------------------------------------------


async def test_shutdown_ends_sessions() -> None:
    """At shutdown each session sees its end behind the datagrams that it has, and `draining`; all have finished."""
    book = Book(going=False)
    reports: list[aserver.ShutdownReport] = []
    async with serving(udp(book)) as server:
        with Peer(server.server_address) as peer, Peer(server.server_address) as other:
            peer.send(b"one")
            await until(lambda: server.statistics().open == 1)
            peer.send(b"in the kernel's queue")
            other.send(b"in the kernel's queue, too")
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    reports.append(await server.shutdown())

                tasks.start_soon(stop)
                await turns()
                assert [session.draining for session in book.sessions] == [True, True]
                assert reports == []
                book.go.set()
            expected = [[b"one", b"in the kernel's queue"], [b"in the kernel's queue, too"]]
            assert list(book.got.values()) == expected
            assert reports == [aserver.ShutdownReport(finished=2, cancelled=0, aborted=0)]
        assert totals(server) == {"received": 3, "handled": 3, "completed": 2}


async def test_shutdown_cancels_sessions() -> None:
    """A handler that does not end is cancelled when the grace is over, and what it has not taken is counted."""
    book = Book(going=False)
    async with serving(udp(book)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            peer.send(b"two")
            await until(lambda: server.statistics().queued == 2)
            assert await server.shutdown(0) == aserver.ShutdownReport(finished=0, cancelled=1, aborted=0)
        assert totals(server) == {"received": 2, "cancelled": 1, "dropped_unread": 2}


async def test_sessions_of_a_suspended_server() -> None:
    """A suspended server's sessions go on with what they have; silence that it made itself does end them, if long."""
    async with serving(udp(upper)) as server:
        with Peer(server.server_address) as peer:
            assert await peer.ask(b"one") == b"ONE"
            server.suspend()
            peer.send(b"two")
            await turns()
            assert peer.heard() == []
            server.resume()
            assert await peer.hear() == b"TWO"
            assert server.statistics().open == 1


@pytest.mark.skipif(sys.platform != "linux", reason="how full Unix queues behave")
async def test_full_unix_peer_holds_up_its_own_session_only(short_dir: Path) -> None:
    """A session whose peer does not read waits in send, its queue fills and is bounded; another one goes on."""
    server = aserver.UnixDatagramServer(short_dir / "door", upper, sessions=Sessions(max_queued=5))
    async with serving(server):
        with Peer(short_dir / "door", bound=short_dir / "full") as full:
            with Peer(short_dir / "door", bound=short_dir / "other") as other:
                room = fill(other.sock, str(short_dir / "full"))  # as many as its queue holds
                for _ in range(20):
                    await full.send_all(b"x")
                await until(lambda: server.statistics().received == 20)
                assert await other.ask(b"hello") == b"HELLO"
                found = totals(server)
                assert (found["queued"], found["dropped_queue_full"], found["sent"]) == (5, 14, 1)
                assert len(full.heard()) == room
                assert await full.hear() == b"X"
                await until(lambda: not server.statistics().queued)
                totals(server)

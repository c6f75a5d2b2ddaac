"""The promises of `aserver._server` about how many are let in: the cap on connections, the cap per peer, shedding."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import anyio
import pytest

import aserver

from .conftest import LogBook
from .peers import Client, ask, connect, in_thread
from .test_server import needs_ipv6, running, tcp, turns, until, upper
from .test_server_hooks import totals

pytestmark = pytest.mark.anyio

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on its loopback")


def connect_from(host: str, address: tuple[str, int]) -> Client:
    """A client whose own address is *host*."""
    return Client(socket.create_connection(address, timeout=10, source_address=(host, 0)))


async def served(client: Client) -> bool:
    """Whether *client* gets an answer, or else the end of its connection."""
    return await in_thread(client.ask, b"hello\n") == b"HELLO\n"


# --- connections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 2, 5])
async def test_connections_up_to_the_cap_and_one_more(cap: int) -> None:
    """Of n+1 clients n are served; the last one is connected but neither accepted nor answered until one leaves."""
    async with running(tcp(limits=aserver.Limits(max_connections=cap))) as server:
        inside: list[Client] = []
        for number in range(1, cap + 1):
            inside.append(connect(server.server_address))
            assert await served(inside[-1])
            assert totals(server) == {"accepted": number, "open": number}
        with connect(server.server_address) as extra:  # the kernel has taken it
            extra.send(b"extra\n")
            for client in inside:
                assert await served(client)
            await turns()
            assert totals(server) == {"accepted": cap, "open": cap}
            inside.pop().close()
            assert await in_thread(extra.read_until) == b"EXTRA\n"
            assert totals(server) == {"accepted": cap + 1, "open": cap, "completed": 1}
        for client in inside:
            client.close()
        await server.wait_empty()


async def test_one_below_the_cap_is_open() -> None:
    """With n-1 inside the n-th is served at once, also after the house was full before."""
    async with running(tcp(limits=aserver.Limits(max_connections=2))) as server:
        with connect(server.server_address) as first:
            assert await served(first)
            for _ in range(5):
                with connect(server.server_address) as second:
                    assert await served(second)
                await until(lambda: server.statistics().open == 1)
            assert totals(server) == {"accepted": 6, "completed": 5, "open": 1}


async def test_queue_is_served_in_order() -> None:
    """Those who wait for a place get it one by one, in the order in which they came."""
    served_peers: list[int] = []

    async def handler(stream: aserver.Stream) -> None:
        served_peers.append(stream.peer[1])
        await upper(stream)

    async with running(tcp(handler, limits=aserver.Limits(max_connections=1, shed_after=None))) as server:
        clients = [connect(server.server_address) for _ in range(20)]
        ports = [client.sock.getsockname()[1] for client in clients]
        for client in clients:
            assert await served(client)
            assert server.statistics().open == 1
            client.close()
    assert served_peers == ports


async def test_nothing_is_read_from_who_waits() -> None:
    """Of a client that waits for a place nothing is read: its bytes stay with the kernel, and it is stopped there."""
    total = 0

    async def handler(stream: aserver.Stream) -> None:
        nonlocal total
        if await stream.readline() == b"stay\n":
            await stream.send(b"yes\n")
            await stream.readline()
            return
        while chunk := await stream.receive():
            total += len(chunk)

    async with running(tcp(handler, limits=aserver.Limits(max_connections=1, shed_after=None))) as server:
        with connect(server.server_address) as inside, connect(server.server_address) as waiting:
            assert await in_thread(inside.ask, b"stay\n") == b"yes\n"
            waiting.sock.setblocking(False)
            sent = waiting.sock.send(b"go\n") - 3
            block = b"x" * 65536
            full = 0
            while full < 20 and sent < 64 * 1024 * 1024:  # the kernel may take a little more after a while
                try:
                    sent += waiting.sock.send(block)
                    full = 0
                except BlockingIOError:
                    full += 1
                    await turns(5)
            assert full == 20
            assert server.statistics().accepted == 1
            inside.end()
            waiting.sock.settimeout(10)
            waiting.end()
            assert await in_thread(waiting.read_until_eof) == b""
            assert total == sent


async def test_cap_counts_all_listeners_together(tmp_path: Path) -> None:
    """The cap is the server's, not a listening socket's: who is full on one port is full on all."""
    limits = aserver.Limits(max_connections=2)
    async with running(aserver.StreamServer([("127.0.0.1", 0), tmp_path / "s"], upper, limits=limits)) as server:
        with connect(server.server_address) as first, connect(tmp_path / "s") as second:
            assert await served(first)
            assert await served(second)
            with connect(server.server_address) as third, connect(tmp_path / "s") as fourth:
                third.send(b"third\n")
                fourth.send(b"fourth\n")
                assert await served(first)
                assert server.statistics().accepted == 2
                first.close()
                second.close()
                assert await in_thread(third.read_until) == b"THIRD\n"
                assert await in_thread(fourth.read_until) == b"FOURTH\n"


async def test_place_of_a_failed_or_rejected_client_is_free_again(aserver_log: LogBook) -> None:
    """A place is given back however the connection ends: by an error, a rejection, a reset."""

    class Picky(aserver.TCPServer):
        async def verify_request(self, request: aserver.Stream, client_address: object) -> bool:
            return await request.readline() != b"reject\n"

    async def handler(stream: aserver.Stream) -> None:
        if (line := await stream.readline()) == b"fail\n":
            raise ValueError("mine")
        await stream.send(line)

    async with running(Picky(("127.0.0.1", 0), handler, limits=aserver.Limits(max_connections=1))) as server:
        for _ in range(3):
            assert await in_thread(ask, server.server_address, b"reject\n") == b""
            assert await in_thread(ask, server.server_address, b"in\nfail\n") == b""
            with connect(server.server_address) as client:
                client.send(b"in\n")
                client.reset()
            assert await in_thread(ask, server.server_address, b"in\nfine\n") == b"fine\n"
        await server.wait_empty()
    assert totals(server) == {"accepted": 12, "rejected": 3, "failed": 3, "lost": 3, "completed": 3}
    for _ in range(3):
        aserver_log.take("ERROR: Picky: the request of 127.0.0.1:")


async def test_place_is_free_only_when_all_is_over() -> None:
    """A connection keeps its place until connection_closed has returned."""
    go = anyio.Event()

    class Slow(aserver.TCPServer):
        async def connection_closed(self, request: aserver.Stream, client_address: object) -> None:
            await go.wait()

    async with running(Slow(("127.0.0.1", 0), upper, limits=aserver.Limits(max_connections=1))) as server:
        assert await in_thread(ask, server.server_address, b"one\n") == b"ONE\n"
        with connect(server.server_address) as second:
            second.send(b"two\n")
            await until(lambda: server.statistics().completed)
            await turns()
            assert server.statistics().accepted == 1
            go.set()
            assert await in_thread(second.read_until) == b"TWO\n"


async def test_suspended_at_the_limit() -> None:
    """A place that becomes free while the server is suspended stays empty until `resume`."""
    async with running(tcp(limits=aserver.Limits(max_connections=1))) as server:
        with connect(server.server_address) as inside, connect(server.server_address) as waiting:
            assert await served(inside)
            waiting.send(b"hello\n")
            server.suspend()
            inside.close()
            await server.wait_empty()
            await turns()
            assert server.statistics().accepted == 1
            server.resume()
            assert await in_thread(waiting.read_until) == b"HELLO\n"


# --- connections of a peer -------------------------------------------------------------------------------------------


@linux_only
async def test_cap_per_peer() -> None:
    """One address has n connections and not n+1, which is closed at once; another address sees no change."""
    async with running(tcp(limits=aserver.Limits(max_connections_per_peer=2))) as server:
        address = server.server_address
        with connect_from("127.0.0.2", address) as first, connect_from("127.0.0.2", address) as second:
            assert await served(first)
            assert await served(second)
            with connect_from("127.0.0.2", address) as third:
                assert await in_thread(third.read_until_eof) == b""
            assert totals(server) == {"accepted": 3, "open": 2, "refused_per_peer": 1}
            with connect_from("127.0.0.3", address) as other, connect_from("127.0.0.3", address) as another:
                assert await served(other)
                assert await served(another)
            assert await served(first)
            second.close()
            await until(lambda: server.statistics().open == 1)
            with connect_from("127.0.0.2", address) as third:
                assert await served(third)


@needs_ipv6
async def test_cap_per_ipv6_peer() -> None:
    """The cap counts IPv6 peers, too."""
    limits = aserver.Limits(max_connections_per_peer=1)
    async with running(aserver.TCPServer(("::1", 0), upper, limits=limits)) as server:
        with connect(server.server_address) as first:
            assert await served(first)
            with connect(server.server_address) as second:
                assert await in_thread(second.read_until_eof) == b""
        await server.wait_empty()
        assert await in_thread(ask, server.server_address, b"again\n") == b"AGAIN\n"


async def test_unix_peers_are_not_counted(tmp_path: Path) -> None:
    """Clients of a Unix socket have no address, and no cap of their own."""
    limits = aserver.Limits(max_connections_per_peer=1)
    async with running(aserver.UnixStreamServer(tmp_path / "s", upper, limits=limits)) as server:
        with connect(tmp_path / "s") as first, connect(tmp_path / "s") as second:
            assert await served(first)
            assert await served(second)
        await server.wait_empty()
        assert totals(server) == {"accepted": 2, "completed": 2}


@linux_only
async def test_flood_of_one_peer_does_not_fill_the_house(aserver_log: LogBook) -> None:
    """Who floods beyond his cap takes no place from others, and costs nothing above debug."""
    limits = aserver.Limits(max_connections=3, max_connections_per_peer=2)
    async with running(tcp(limits=limits)) as server:
        flood = [connect_from("127.0.0.2", server.server_address) for _ in range(100)]
        await until(lambda: server.statistics().refused_per_peer == 98)
        with connect_from("127.0.0.3", server.server_address) as other:
            assert await served(other)
            assert totals(server) == {"accepted": 101, "open": 3, "refused_per_peer": 98}
        for client in flood:
            client.close()
        await server.wait_empty()


# --- shedding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shed_after", [0, 0.001, 0.05])
async def test_who_waits_too_long_is_closed(shed_after: float, aserver_log: LogBook) -> None:
    """After shed_after at the limit, clients that wait are closed and counted; the next one finds a free place."""
    limits = aserver.Limits(max_connections=1, shed_after=shed_after)
    async with running(tcp(limits=limits)) as server:
        with connect(server.server_address) as inside:
            assert await served(inside)
            waiting = [connect(server.server_address) for _ in range(3)]
            for client in waiting:
                with client:
                    assert await in_thread(client.read_until_eof) == b""
            assert await served(inside)
            assert server.statistics().shed == 3
            assert totals(server) == {"accepted": 1, "open": 1, "shed": 3}
        await server.wait_empty()
        with connect(server.server_address) as client:
            assert await served(client)
    warnings = [line for line in aserver_log.lines if line.startswith("WARNING")]
    assert 1 <= len(warnings) <= 3
    assert all("at its limit of 1 connections; closed " in line for line in warnings)
    aserver_log.records.clear()


async def test_who_gets_a_place_in_time_is_not_closed() -> None:
    """A client that waits for less than shed_after is served."""
    limits = aserver.Limits(max_connections=1, shed_after=1000.0)
    async with running(tcp(limits=limits)) as server:
        with connect(server.server_address) as inside, connect(server.server_address) as waiting:
            assert await served(inside)
            inside.close()
            assert await served(waiting)
        await server.wait_empty()
        assert totals(server) == {"accepted": 2, "completed": 2}


# --- connections from elsewhere --------------------------------------------------------------------------------------


async def test_added_connections() -> None:
    """A connection that was accepted elsewhere is served, counted and bounded like the server's own."""
    limits = aserver.Limits(max_connections=1)
    async with aserver.StreamServer(None, upper, limits=limits) as server:
        assert server.server_address is None
        assert server.endpoints == ()
        ours, theirs = socket.socketpair()
        with Client(theirs) as client:
            assert server.add_connection(ours, "")
            assert await served(client)
            extra, closed = socket.socketpair()
            with Client(closed) as refused:
                assert not server.add_connection(extra, "")
                assert await in_thread(refused.recv) == b""
            assert totals(server) == {"accepted": 1, "open": 1, "shed": 1}
        await server.wait_empty()
        assert totals(server) == {"accepted": 1, "completed": 1, "shed": 1}


async def test_added_connections_of_one_peer() -> None:
    """One that is too many from its peer is closed, and counted as that."""
    limits = aserver.Limits(max_connections_per_peer=1)
    async with aserver.StreamServer(None, upper, limits=limits) as server:
        ours, kept = socket.socketpair()
        extra, refused = socket.socketpair()
        with kept, refused:
            assert server.add_connection(ours, ("192.0.2.1", 5))
            assert not server.add_connection(extra, ("192.0.2.1", 6))
            assert await in_thread(refused.recv, 1) == b""
            assert totals(server)["refused_per_peer"] == 1
        await server.wait_empty()


async def test_adding_to_a_server_that_is_not_open_or_stops() -> None:
    """Before it is open a server takes no connection and says so; one that is suspended closes it."""
    server = aserver.StreamServer(None, upper)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(aserver.ServerStateError, match="is not open"):
            server.add_connection(ours, "")
        async with server:
            server.suspend()
            assert not server.add_connection(ours, "")
        assert ours.fileno() < 0

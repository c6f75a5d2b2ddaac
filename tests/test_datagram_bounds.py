"""The promises of `aserver.DatagramServer` about its bounds and counters, which account for each datagram, and about
its end: who finishes, who is cancelled, who is still let in.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aserver
from aserver import _lifecycle

from .conftest import LogBook
from .test_datagram import LARGEST, Peer, linux_only
from .test_datagram_server import Gate, serving, totals, udp, upper
from .test_server import SAFETY, turns, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="Unix datagrams")]


# --- bounds and counters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent, dropped", [(2, 0), (3, 0), (4, 1), (10, 7)])
async def test_max_in_flight(sent: int, dropped: int) -> None:
    """As many datagrams as max_in_flight are handled at once; one more is dropped and counted; then there is room."""
    gate = Gate()
    async with serving(udp(gate, limits=aserver.Limits(max_in_flight=3))) as server:
        with Peer(server.server_address) as peer:
            for _ in range(sent):
                peer.send(b"x")
            await until(lambda: server.statistics().received == sent)
            assert server.statistics().dropped_in_flight == server.statistics().dropped == dropped
            assert server.statistics().open == sent - dropped
            gate.go.set()
            await server.wait_empty()
            assert len(peer.heard()) == sent - dropped
            assert await peer.ask(b"next") == b"NEXT"
            assert totals(server)["completed"] == sent - dropped + 1


@pytest.mark.parametrize("sizes, dropped", [([9], 0), ([5, 4], 0), ([5, 5], 0), ([5, 6], 1), ([11], 0), ([11, 0], 1)])
async def test_max_in_flight_size(sizes: list[int], dropped: int) -> None:
    """The datagrams that are handled at once have max_in_flight_size bytes together; a lone one is always let in."""
    gate = Gate()
    async with serving(udp(gate, limits=aserver.Limits(max_in_flight_size=10))) as server:
        with Peer(server.server_address) as peer:
            for size in sizes:
                peer.send(b"x" * size)
            await until(lambda: server.statistics().received == len(sizes))
            assert server.statistics().dropped_in_flight == dropped
            gate.go.set()
            await server.wait_empty()
            gate.go = anyio.Event()
            for size in (5, 5):  # the room has come back
                peer.send(b"x" * size)
            await until(lambda: server.statistics().open == 2)
            gate.go.set()
            await server.wait_empty()
        assert totals(server)["handled"] == len(sizes) - dropped + 2


async def test_max_datagram_size() -> None:
    """What is larger than max_datagram_size is dropped and counted, and never seen by a handler."""
    sizes: list[int] = []

    async def handler(datagram: aserver.Datagram) -> None:
        sizes.append(len(datagram.data))

    async with serving(udp(handler, limits=aserver.Limits(max_datagram_size=512))) as server:
        with Peer(server.server_address) as peer:
            for size in (511, 512, 513, LARGEST, 0):
                peer.send(b"x" * size)
            await until(lambda: server.statistics().received == 5)
            await server.wait_empty()
        assert totals(server) == {"received": 5, "handled": 3, "completed": 3, "dropped_too_large": 2}
    assert sizes == [511, 512, 0]


@linux_only
@pytest.mark.parametrize("limit", [2**31, 2**70])
async def test_max_datagram_size_beyond_any(limit: int) -> None:
    """A max_datagram_size above what a datagram can have costs nothing, or is refused at construction."""
    try:
        server = udp(limits=aserver.Limits(max_datagram_size=limit))
    except ValueError:
        return
    async with server:
        with Peer(server.server_address) as peer:
            peer.send(b"hello")
            server._sockets[0].take_waiting()  # in this task, for in the loop's own an error would come for ever
            await server.wait_empty()
            assert peer.heard() == [b"HELLO"]


@linux_only
async def test_flood_adds_up() -> None:
    """Of a flood at a server that does not read, each packet is counted: received, or dropped by the kernel."""
    sent = 3000
    async with serving(udp()) as server:
        server.suspend()
        with Peer(server.server_address) as peer:
            await turns()
            for _ in range(sent):
                peer.send(b"x" * 1000)
            assert server.statistics().received <= 1
            server.resume()
            await until(lambda: server.statistics().received + (server.statistics().dropped_by_kernel or 0) == sent)
            assert await peer.hear() == b"X" * 1000
            kernel = server.statistics().dropped_by_kernel
            assert kernel is not None
            assert 0 < kernel < sent
            assert totals(server)["received"] == sent - kernel
    assert server.statistics().dropped_by_kernel == kernel  # also after the end


async def test_flood_at_a_slow_handler_adds_up() -> None:
    """Of a flood at handlers that take their time, what does not fit is dropped and counted, the rest is answered."""

    async def handler(datagram: aserver.Datagram) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await upper(datagram)

    async with serving(udp(handler, limits=aserver.Limits(max_in_flight=10))) as server:
        with Peer(server.server_address) as peer:
            for round in range(1, 21):
                for _ in range(50):
                    peer.send(b"x")
                await until(lambda expected=50 * round: server.statistics().received == expected)  # type: ignore[misc]  # a default binds it
                assert server.statistics().open <= 10
                totals(server)
            await server.wait_empty()
            found = totals(server)
            assert found["dropped_in_flight"] + found["completed"] == found["received"] == 1000
            assert len(peer.heard()) == found["completed"]


async def test_counters_seen_from_a_handler() -> None:
    """Also for the handler itself, which is in the house, the counters add up."""
    seen: list[aserver.DatagramStatistics] = []

    async def handler(datagram: aserver.Datagram) -> None:
        seen.append(server.statistics())
        await anyio.lowlevel.checkpoint()
        seen.append(server.statistics())

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            await until(lambda: len(seen) == 2)
    for counters in seen:
        assert counters.received == counters.handled + counters.queued + counters.dropped
        assert (counters.received, counters.open) == (1, 1)


async def test_counters_seen_from_a_hook() -> None:
    """Also while handle_error runs, for a datagram that is both still in the house and failed, each is counted once."""
    seen: list[aserver.DatagramStatistics] = []

    class Server(aserver.UDPServer):
        async def handle_error(self, request: aserver.Datagram, client_address: Any) -> None:
            seen.append(self.statistics())
            await anyio.lowlevel.checkpoint()
            seen.append(self.statistics())

    async def handler(datagram: aserver.Datagram) -> None:
        raise ValueError

    async with serving(Server(("127.0.0.1", 0), handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            await until(lambda: len(seen) == 2)
    for counters in seen:
        assert counters.received == counters.handled + counters.queued + counters.dropped == 1


@pytest.mark.parametrize("size, outcome", [(29, "completed"), (30, "completed"), (31, "lost")])
async def test_max_amplification(size: int, outcome: str, aserver_log: LogBook) -> None:
    """F3: with max_amplification=3 a reply of three times the question is sent; one more byte is refused, and lost."""

    async def handler(datagram: aserver.Datagram) -> None:
        await datagram.reply(b"x" * size)

    async with serving(udp(handler, limits=aserver.Limits(max_amplification=3))) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x" * 10)
            await until(lambda: server.statistics().completed or server.statistics().lost)
            assert [len(data) for data in peer.heard()] == ([size] if outcome == "completed" else [])
            await server.send_to(b"x" * 1000, peer.name)  # what is sent unasked does not count
        refused = {"replies_refused": 1, "sent": 1} if outcome == "lost" else {"sent": 2}
        assert totals(server) == {"received": 1, "handled": 1, outcome: 1} | refused
    assert all(record.levelname == "DEBUG" for record in aserver_log.records)


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_shutdown_lets_what_is_in_flight_finish() -> None:
    """Datagrams that are handled when shutdown begins are answered, and reported as finished."""
    gate = Gate()
    async with serving(udp(gate)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            peer.send(b"two")
            await until(lambda: gate.inside == 2)
            async with anyio.create_task_group() as tasks:
                reports: list[aserver.ShutdownReport] = []

                async def stop() -> None:
                    reports.append(await server.shutdown())

                tasks.start_soon(stop)
                await turns()
                peer.send(b"late")
                await turns()
                assert reports == []
                gate.go.set()
            assert reports == [aserver.ShutdownReport(finished=2, cancelled=0, aborted=0)]
            assert sorted(peer.heard()) == [b"ONE", b"TWO"]
        assert totals(server) == {"received": 2, "handled": 2, "completed": 2, "sent": 2}


async def test_last_call() -> None:
    """What waits in the kernel's queue when shutdown begins is still served."""
    async with serving(udp()) as server:
        await turns()
        with Peer(server.server_address) as peer:
            for number in range(100):
                peer.send(b"x%d" % number)
            report = await server.shutdown()
            assert (report.cancelled, report.aborted) == (0, 0)
            assert sorted(peer.heard()) == sorted(b"X%d" % number for number in range(100))
        assert totals(server) == {"received": 100, "handled": 100, "completed": 100, "sent": 100}


async def test_no_last_call_for_a_suspended_server() -> None:
    """A server that was suspended receives nothing more when it is shut down."""
    async with serving(udp()) as server:
        server.suspend()
        await turns()
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            assert (await server.shutdown()).clean
        assert totals(server) == {}


@pytest.mark.parametrize("grace", [0, 0.05])
async def test_cancelled_after_the_grace(grace: float) -> None:
    """A handler that is still at work when the grace is over is cancelled, and counted so."""
    gate = Gate()
    async with serving(udp(gate)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            await until(lambda: gate.inside)
            report = await server.shutdown(grace)
            assert report == aserver.ShutdownReport(finished=0, cancelled=1, aborted=0)
            assert peer.heard() == []
        assert totals(server) == {"received": 1, "handled": 1, "cancelled": 1}


async def test_handler_that_outlives_its_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that goes on although cancelled is reported as aborted, and cannot answer once the server is closed."""
    monkeypatch.setattr(_lifecycle, "KILL_GRACE", 0.05)
    go, inside = anyio.Event(), anyio.Event()
    ends: list[str] = []

    async def stubborn(datagram: aserver.Datagram) -> None:
        inside.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await go.wait()
                with pytest.raises(anyio.ClosedResourceError):
                    await datagram.reply(b"late")
                ends.append("closed")

    with anyio.fail_after(SAFETY):
        async with anyio.create_task_group() as tasks:
            server = udp(stubborn)
            await tasks.start(server.serve_forever)
            with Peer(server.server_address) as peer:
                peer.send(b"x")
                await inside.wait()
                report = await server.shutdown(0)
                assert report == aserver.ShutdownReport(finished=0, cancelled=0, aborted=1)
                assert server.statistics().open == 1
                await until(lambda: server._bound[0].sock.fileno() < 0)
                go.set()
                await until(lambda: not server.statistics().open)
                assert ends == ["closed"]


async def test_suspend_resume_wait_empty() -> None:
    """Suspended, a server receives nothing and goes on with what it has; resumed, it serves what has waited."""
    gate = Gate()
    async with serving(udp(gate)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"one")
            await until(lambda: gate.inside)
            server.suspend()
            peer.send(b"two")
            await turns()
            assert server.statistics().received == 1
            gate.go.set()
            await server.wait_empty()
            assert peer.heard() == [b"ONE"]
            server.resume()
            assert await peer.hear() == b"TWO"
            server.resume()
            assert await peer.ask(b"three") == b"THREE"


async def test_a_handler_suspends_its_server() -> None:
    """A handler may suspend its server: at most the rest of the batch is served, and after resume everything."""

    suspended: list[int] = []

    async def once(datagram: aserver.Datagram) -> None:
        if not suspended:
            server.suspend()
            suspended.append(server.statistics().received)
        await upper(datagram)

    async with serving(udp(once)) as server:
        with Peer(server.server_address) as peer:
            for _ in range(200):
                peer.send(b"x")
            await until(lambda: suspended)
            await turns(50)
            assert server.statistics().received < suspended[0] + 64
            server.resume()
            await until(lambda: server.statistics().completed == 200)
            assert len(peer.heard()) == 200


async def test_cancelled_serve_forever() -> None:
    """Cancelling serve_forever stops receiving; what is open finishes at shutdown, or is cancelled at the end."""
    for stop in (True, False):
        gate = Gate()
        async with udp(gate) as server:
            with Peer(server.server_address) as peer:
                async with anyio.create_task_group() as tasks:
                    await tasks.start(server.serve_forever)
                    peer.send(b"one")
                    await until(lambda gate=gate: gate.inside)  # type: ignore[misc]  # a default binds it
                    tasks.cancel_scope.cancel()
                peer.send(b"two")
                await turns()
                assert server.statistics().received == 1
                with pytest.raises(aserver.ServerStateError):
                    await server.serve_forever()
                if stop:
                    gate.go.set()
                    assert await server.shutdown() == aserver.ShutdownReport(finished=1, cancelled=0, aborted=0)
                    assert peer.heard() == [b"ONE"]
        assert totals(server)["completed" if stop else "cancelled"] == 1


async def test_states() -> None:
    """A server serves once, says so otherwise, and shows its state."""
    server = udp(name="pong")
    assert repr(server) == "<pong not bound new open=0>"
    async with serving(server):
        assert repr(server) == f"<pong udp://127.0.0.1:{server.server_address[1]} serving open=0>"
        with pytest.raises(aserver.ServerStateError):
            await server.__aenter__()
        await server.shutdown()
        with pytest.raises(aserver.ServerStateError):
            await server.shutdown()
    with pytest.raises(aserver.ServerStateError):
        await server.serve_forever()

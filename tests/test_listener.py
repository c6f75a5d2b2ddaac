"""The promises of `aserver._listener`: what each errno of accept() leads to, bursts, and that nothing is left of many.

A listening socket that is a real one, but whose accept() fails when told to, is handed to a server; `tests/faults`
makes the kernel fail instead.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import aserver

from .conftest import LogBook, Resources
from .peers import Client, ask, connect, in_thread
from .test_server import SAFETY, bound_socket, refuses, running, tcp, turns, until, upper
from .test_server_hooks import totals
from .test_server_shutdown import Clock, clock, movable, was_reset

__all__ = ["clock"]  # the fixture

pytestmark = pytest.mark.anyio


class Faulty(socket.socket):
    """A listening socket whose accept() fails as often and in the way that the test says, and is a real one then."""

    def __init__(self, *faults: int) -> None:
        with bound_socket(listening=True) as plain:
            super().__init__(fileno=plain.detach())
        self.faults = deque(faults)
        self.calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.faults:
            code = self.faults.popleft()
            raise OSError(code, os.strerror(code))
        return super().accept()


def numbers(names: str) -> list[Any]:
    """The errnos of this platform among *names*, as parameters."""
    return [pytest.param(getattr(errno, name), id=name) for name in names.split() if hasattr(errno, name)]


CONNECTION_LOST = numbers(
    "ECONNABORTED EPERM EPROTO ENOPROTOOPT EOPNOTSUPP ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET ECONNRESET "
    "ETIMEDOUT"
)
NO_DESCRIPTOR = numbers("EMFILE ENFILE")
NO_MEMORY = numbers("ENOBUFS ENOMEM")
FATAL = numbers("EBADF EINVAL ENOTSOCK EFAULT")


def warnings(book: LogBook) -> list[str]:
    """The lines above debug, all of them removed."""
    loud = [record for record in book.records if record.levelno > logging.DEBUG]
    book.records = [record for record in book.records if record not in loud]
    return [f"{record.levelname}: {record.getMessage()}" for record in loud]


async def failures(server: aserver.StreamServer, count: int) -> None:
    """Wait until *count* accepts have failed."""
    await until(lambda: server.statistics().accept_errors == count)


# --- the connection's error ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CONNECTION_LOST)
async def test_lost_connection_is_skipped(code: int, aserver_log: LogBook) -> None:
    """An accept that fails for the connection's own sake is counted, costs a debug line, and the next one is served."""
    sock = Faulty(code, code, code)
    async with running(aserver.TCPServer(sock, upper)) as server:
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"
        await server.wait_empty()
        assert totals(server) == {"accepted": 1, "completed": 1, "accept_errors": 3}
    assert [record.levelname for record in aserver_log.records] == ["DEBUG"] * 3
    assert os.strerror(code) in aserver_log.lines[0]


@movable
async def test_lost_connection_is_skipped_at_once(clock: Clock) -> None:
    """There is no pause after such an accept: the next client is served without any time passing."""
    sock = Faulty(*[errno.ECONNABORTED] * 100)
    async with running(aserver.TCPServer(sock, upper), None) as server:
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"
        assert server.statistics().accept_errors == 100


async def time_until_accept(sock: Faulty, clock: Clock, step: float) -> float:
    """Move the clock until the next accept is tried; return how far."""
    calls, begun = sock.calls, anyio.current_time()
    while sock.calls == calls:
        clock.jump(step)
        await turns(5)
    return anyio.current_time() - begun


# --- the machine's error ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", NO_MEMORY + NO_DESCRIPTOR)
async def test_short_machine_recovers(code: int, aserver_log: LogBook) -> None:
    """After an accept that failed for want of memory or descriptors the server pauses, warns once, and serves again."""
    async with running(aserver.TCPServer(Faulty(code), upper)) as server:
        with connect(server.server_address) as unlucky:
            if code in (errno.EMFILE, errno.ENFILE):
                assert await in_thread(unlucky.read_until_eof) == b""  # turned away
            else:
                assert await in_thread(unlucky.ask, b"hello\n") == b"HELLO\n"  # had to wait
        assert await in_thread(ask, server.server_address, b"next\n") == b"NEXT\n"
        assert server.statistics().accept_errors == 1
        (line,) = warnings(aserver_log)
        assert line.startswith(f"WARNING: {server.endpoints[0]} cannot accept: {os.strerror(code)}")


@movable
@pytest.mark.parametrize("code", NO_MEMORY)
async def test_pauses_double_up_to_a_second(code: int, clock: Clock, aserver_log: LogBook) -> None:
    """The pause after a failed accept is 5 ms, doubled each time, a second at most; short again after a success."""
    pauses = [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    sock = Faulty(*[code] * len(pauses))
    async with running(aserver.TCPServer(sock, upper), None) as server:
        with connect(server.server_address) as client:
            await failures(server, 1)
            for number, pause in enumerate(pauses, 1):
                assert await time_until_accept(sock, clock, pause / 10) == pytest.approx(pause, abs=pause / 5)
                await failures(server, min(number + 1, len(pauses)))
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
            sock.faults.extend([code] * 2)
            with connect(server.server_address) as another:
                await until(lambda: server.statistics().accept_errors == len(pauses) + 1)
                assert await time_until_accept(sock, clock, 0.0005) == pytest.approx(0.005, abs=0.001)
                assert await time_until_accept(sock, clock, 0.001) == pytest.approx(0.01, abs=0.002)
                assert await in_thread(another.ask, b"hello\n") == b"HELLO\n"
    assert len(warnings(aserver_log)) == 1  # in less than a second of the wall clock


@movable
@pytest.mark.parametrize("code", NO_DESCRIPTOR + NO_MEMORY)
async def test_closing_a_connection_ends_the_pause(code: int, clock: Clock, aserver_log: LogBook) -> None:
    """When a connection closes, which frees a descriptor, the next accept is tried at once, whatever the pause was."""
    sock = Faulty()
    async with running(aserver.TCPServer(sock, upper), None) as server:
        with connect(server.server_address) as inside:
            assert await in_thread(inside.ask, b"hello\n") == b"HELLO\n"
            sock.faults.extend([code] * 100)
            with connect(server.server_address) as waiting:
                waiting.send(b"waiting\n")
                await until(lambda: server.statistics().accept_errors)
                await clock.move(5)  # so that the pauses are a second long
                sock.faults.clear()
                await turns()
                assert server.statistics().accepted == 1
                inside.close()
                assert await in_thread(waiting.read_until) == b"WAITING\n"
    warnings(aserver_log)


async def test_who_cannot_have_a_descriptor_is_closed(aserver_log: LogBook) -> None:
    """Out of descriptors all who wait are accepted through the reserve and closed, so that nobody hangs."""
    sock = Faulty()
    async with running(aserver.TCPServer(sock, upper)) as server:
        server.suspend()
        with connect(server.server_address) as first:  # so that the listener looks at the gate, and waits there
            await turns()
            sock.faults.append(errno.EMFILE)
            waiting = [first, *(connect(server.server_address) for _ in range(30))]
            server.resume()
            for client in waiting:
                with client:
                    assert await in_thread(client.read_until_eof) == b""
        assert totals(server) == {"shed": 31, "accept_errors": 1}
        (line,) = warnings(aserver_log)
        assert line.endswith("closed 31 that waited")


@movable
@pytest.mark.parametrize("code", NO_DESCRIPTOR + NO_MEMORY)
async def test_suspend_during_a_pause(code: int, clock: Clock, aserver_log: LogBook) -> None:
    """A server that is suspended while it pauses accepts nobody after the pause, and everybody after `resume`."""
    sock = Faulty(code)
    async with running(aserver.TCPServer(sock, upper), None) as server:
        with connect(server.server_address):
            await until(lambda: server.statistics().accept_errors)
            server.suspend()
            await clock.move(10)
        assert server.statistics().accepted == 0
        with connect(server.server_address) as client:
            await clock.move(10)
            assert server.statistics().accepted == 0
            server.resume()
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
    warnings(aserver_log)


async def test_shutdown_during_a_pause(aserver_log: LogBook) -> None:
    """A server that pauses can be shut down, and who waits outside is reset."""
    async with running(aserver.TCPServer(Faulty(*[errno.ENOBUFS] * 1000), upper)) as server:
        with connect(server.server_address) as client:
            await until(lambda: server.statistics().accept_errors > 3)
            assert (await server.shutdown()).clean
            assert await in_thread(was_reset, client)
    warnings(aserver_log)


# --- the listener's end ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(server: aserver.TCPServer) -> AsyncIterator[list[BaseException]]:
    """Serve in the background; gives the list into which the error of serve_forever goes."""
    raised: list[BaseException] = []

    async def serve() -> None:
        try:
            await server.serve_forever()
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            raised.append(exc)

    with anyio.fail_after(SAFETY):
        async with server, anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield raised
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("code", FATAL)
async def test_broken_listener_ends_the_server_loudly(code: int, aserver_log: LogBook) -> None:
    """When the only listener cannot accept any more, serve_forever raises ListenerFailedError and the log says so."""
    server = aserver.TCPServer(Faulty(code), upper)
    async with serving(server) as raised:
        connect(server.server_address).close()
        await until(lambda: raised)
        (error,) = raised
        assert isinstance(error, aserver.ListenerFailedError)
        assert error.errno == code
        assert server.endpoints[0] in str(error)
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == code
        assert refuses(server.server_address)
        assert server.statistics().accept_errors == 1
    (line,) = warnings(aserver_log)
    assert line == f"CRITICAL: TCPServer: {server.endpoints[0]} accepts no more: {os.strerror(code)}"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a listening socket cannot be shut down")
async def test_listener_that_somebody_shuts_down(aserver_log: LogBook) -> None:
    """The same without a fake: somebody else who has the listening socket shuts it down."""
    async with serving(tcp_on(sock := bound_socket(listening=True))) as raised:
        await turns()
        sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: raised)
        (error,) = raised
        assert isinstance(error, aserver.ListenerFailedError)
        assert error.errno == errno.EINVAL
    (line,) = warnings(aserver_log)
    assert line.startswith("CRITICAL: ")


def tcp_on(*sockets: socket.socket) -> aserver.TCPServer:
    """A server on ready-made sockets."""
    return aserver.TCPServer(list(sockets), upper)


async def test_other_listeners_go_on(aserver_log: LogBook) -> None:
    """When one of two listeners has failed, the other serves on; when both have, serve_forever raises."""
    bad, good = Faulty(), Faulty()
    server = tcp_on(bad, good)
    async with serving(server) as raised:
        there, here = bad.getsockname(), good.getsockname()
        with connect(there) as old:
            assert await in_thread(old.ask, b"old\n") == b"OLD\n"
            bad.faults.append(errno.EBADF)
            connect(there).close()
            await until(lambda: bad.fileno() < 0)
            assert refuses(there)
            assert await in_thread(old.ask, b"old\n") == b"OLD\n"  # who came in through it stays
            for _ in range(3):
                assert await in_thread(ask, here, b"good\n") == b"GOOD\n"
            assert raised == []
            good.faults.append(errno.EINVAL)
            connect(here).close()
            await until(lambda: raised)
            assert isinstance(raised[0], aserver.ListenerFailedError)
            assert raised[0].errno == errno.EINVAL
            assert await in_thread(old.ask, b"old\n") == b"OLD\n"  # until the block is left
    assert [line.partition(":")[0] for line in warnings(aserver_log)] == ["CRITICAL", "CRITICAL"]


async def test_shutdown_after_one_listener_failed(aserver_log: LogBook) -> None:
    """A server of which one listener has failed shuts down as any other."""
    bad, good = Faulty(errno.EBADF), Faulty()
    server = tcp_on(bad, good)
    async with serving(server) as raised:
        connect(bad.getsockname()).close()
        await until(lambda: bad.fileno() < 0)
        assert await server.shutdown() == aserver.ShutdownReport(finished=0, cancelled=0, aborted=0)
        await turns()
        assert raised == []
    assert len(warnings(aserver_log)) == 1


class Unusable(Faulty):
    """A listening socket whose first connection is not usable: somebody has closed it."""

    accepted = 0

    def accept(self) -> tuple[socket.socket, Any]:
        sock, address = super().accept()
        self.accepted += 1
        if self.accepted == 1:
            sock.close()
        return sock, address


async def test_connection_that_cannot_be_started(aserver_log: LogBook) -> None:
    """A connection that cannot be started costs one log line and gives its place back; the next one is served."""
    sock = Unusable()
    async with running(aserver.TCPServer(sock, upper, limits=aserver.Limits(max_connections=1))) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        assert await in_thread(ask, server.server_address, b"next\n") == b"NEXT\n"
    (line,) = warnings(aserver_log)
    assert line.startswith("ERROR: ")


# --- many ------------------------------------------------------------------------------------------------------------


def answers(clients: list[Client]) -> int:
    """How many of *clients* were answered."""
    return sum(client.read_until() == b"HELLO\n" for client in clients)


async def test_burst_of_clients() -> None:
    """500 clients that connect before the server has accepted one are all served."""
    async with running(tcp()) as server:
        clients = [connect(server.server_address) for _ in range(500)]
        for client in clients:
            client.send(b"hello\n")
        assert await in_thread(answers, clients) == 500
        assert totals(server) == {"accepted": 500, "open": 500}
        for client in clients:
            client.close()
        await server.wait_empty()


async def test_burst_does_not_hold_up_who_is_inside() -> None:
    """While a burst is accepted, a client that is inside gets its turn between the batches."""
    opened_when_answered: list[int] = []

    class Counting(aserver.TCPServer):
        opened = 0

        def connection_opened(self, request: aserver.Stream, client_address: Any) -> None:
            self.opened += 1

    async def handler(stream: aserver.Stream) -> None:
        async for line in stream:
            if line == b"live\n":
                opened_when_answered.append(server.opened)
            await stream.send(line.upper())

    server = Counting(("127.0.0.1", 0), handler)
    async with running(server):
        with connect(server.server_address) as inside:
            assert await in_thread(inside.ask, b"live\n") == b"LIVE\n"
            clients = [connect(server.server_address) for _ in range(1000)]  # the loop has no turn meanwhile
            inside.send(b"live\n")
            assert await in_thread(inside.read_until) == b"LIVE\n"
            assert opened_when_answered[1] < 500
            await until(lambda: server.opened == 1001)
        for client in clients:
            client.close()
        await server.wait_empty()


def visit(address: Any, times: int) -> int:
    """Ask *times* times, each in a connection of its own; return how often the answer was right."""
    return sum(ask(address, b"hello\n") == b"HELLO\n" for _ in range(times))


async def test_nothing_is_left_of_those_who_have_gone() -> None:
    """After a thousand connections one after the other, descriptors and objects are as many as after the first ones."""
    async with running(tcp()) as server:
        assert await in_thread(visit, server.server_address, 50) == 50
        await server.wait_empty()
        gc.collect()
        before, objects = Resources.now(), len(gc.get_objects())
        assert await in_thread(visit, server.server_address, 1000) == 1000
        await server.wait_empty()
        gc.collect()
        after = Resources.now()
        assert len(after.descriptors) <= len(before.descriptors) + 1  # a worker thread's, at most
        assert len(gc.get_objects()) < objects + 500


async def test_connections_make_no_cycles() -> None:
    """What a connection was made of is freed when it ends, without the garbage collector: plain, reset or failed."""

    async def handler(stream: aserver.Stream) -> None:
        async for line in stream:
            await stream.send(line.upper())

    async with running(tcp(handler)) as server:
        assert await in_thread(visit, server.server_address, 20) == 20
        await server.wait_empty()
        await turns()
        gc.collect()
        gc.disable()
        try:
            before = streams_alive()
            assert await in_thread(visit, server.server_address, 50) == 50
            for _ in range(50):
                with connect(server.server_address) as client:
                    await in_thread(client.ask, b"hello\n")
                    client.reset()
            await server.wait_empty()
            await turns()
            assert streams_alive() <= before + 2  # the last one may be in a frame that waits
        finally:
            gc.enable()


def streams_alive() -> int:
    """How many `Stream` objects there are."""
    return sum(type(each) is aserver.Stream for each in gc.get_objects())

"""The promises of `aserver._server` about stopping and time: shutdown with its grace and its report, draining, who is
cancelled and who is reset; and what else waits for a clock.

Where seconds have to pass, the clock of the loop is frozen and the test moves it. uvloop's clock is libuv's own and
cannot be moved; there the constants are made small instead.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import importlib.util
import select
import socket
import time
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

import aserver
from aserver import _lifecycle, _listener

from .conftest import LogBook
from .peers import Client, ask, connect, in_thread
from .test_server import OwnError, bound_socket, refuses, running, sleeper, tcp, turns, until, upper
from .test_server_hooks import Hooked, totals

pytestmark = pytest.mark.anyio


# --- a clock that the test moves -------------------------------------------------------------------------------------


class MovableLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that can be stopped and moved."""

    stopped_at: float | None = None

    def time(self) -> float:
        return super().time() if self.stopped_at is None else self.stopped_at


def _movable_backends() -> Iterator[Any]:
    yield pytest.param(("asyncio", {"loop_factory": MovableLoop}), id="asyncio")
    if importlib.util.find_spec("trio") is None:
        yield pytest.param(None, id="trio", marks=pytest.mark.skip(reason="trio is not installed"))
    else:
        import trio.testing

        yield pytest.param(("trio", {"clock": trio.testing.MockClock(rate=1)}), id="trio")


#: For tests that take the fixture `clock`.
movable = pytest.mark.parametrize("anyio_backend", list(_movable_backends()))


class Clock(abc.ABC):
    """The stopped clock of the running loop."""

    async def move(self, seconds: float) -> None:
        """Let *seconds* pass in twenty steps, and all happen that is due then."""
        for _ in range(20):
            await turns()
            self.jump(seconds / 20)
        await turns()

    @abc.abstractmethod
    def jump(self, seconds: float) -> None:
        """Set the clock forward."""

    @abc.abstractmethod
    def go_on(self) -> None:
        """Let it run again."""


class _AsyncioClock(Clock):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MovableLoop)
        self.loop = loop
        self.loop.stopped_at = self.loop.time()

    def jump(self, seconds: float) -> None:
        assert self.loop.stopped_at is not None
        self.loop.stopped_at += seconds

    def go_on(self) -> None:
        self.loop.stopped_at = None


class _TrioClock(Clock):
    def __init__(self) -> None:
        import trio.lowlevel
        import trio.testing

        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        self.clock = clock
        self.clock.rate = 0

    def jump(self, seconds: float) -> None:
        self.clock.jump(seconds)

    def go_on(self) -> None:
        self.clock.rate = 1


@pytest.fixture
async def clock(anyio_backend: Any) -> AsyncIterator[Clock]:
    """The clock of the test's loop, stopped while the test runs."""
    stopped = _AsyncioClock() if anyio_backend[0] == "asyncio" else _TrioClock()
    yield stopped
    stopped.go_on()


class Stopping:
    """A shutdown in a task of its own."""

    def __init__(self, server: aserver.StreamServer) -> None:
        self.server = server
        self.report: aserver.ShutdownReport | None = None
        self.done = anyio.Event()

    async def run(self, *grace: float | None) -> None:
        self.report = await self.server.shutdown(*grace)
        self.done.set()


@contextlib.asynccontextmanager
async def stopping(server: aserver.StreamServer, *grace: float | None) -> AsyncIterator[Stopping]:
    """Begin to shut *server* down; the block runs meanwhile, and its end waits for the shutdown's."""
    async with anyio.create_task_group() as tasks:
        stop = Stopping(server)
        tasks.start_soon(stop.run, *grace)
        await turns()
        yield stop


def report(finished: int = 0, cancelled: int = 0, aborted: int = 0) -> aserver.ShutdownReport:
    """What `shutdown` should have returned."""
    return aserver.ShutdownReport(finished=finished, cancelled=cancelled, aborted=aborted)


class Worker:
    """A handler that takes a line and answers it when the test says so."""

    def __init__(self) -> None:
        self.go = anyio.Event()
        self.working = anyio.Event()
        self.saw_draining: list[bool] = []

    async def __call__(self, stream: aserver.Stream) -> None:
        async for line in stream:
            self.working.set()
            await self.go.wait()
            self.saw_draining.append(stream.draining)
            await stream.send(line.upper())


# --- who is idle, who is not -----------------------------------------------------------------------------------------


@movable
async def test_nobody_is_inside(clock: Clock) -> None:
    """Shutting down an empty server takes no time, is clean, and ends serve_forever without an error."""
    server = tcp()
    async with anyio.create_task_group() as tasks:
        await tasks.start(server.serve_forever)
        assert await server.shutdown() == report()
        assert report().clean


@movable
async def test_idle_connections_are_closed_at_once(clock: Clock) -> None:
    """Clients that wait between two requests, or have not said anything yet, see the end before any time has passed."""
    async with running(tcp(), None) as server:
        with connect(server.server_address) as between, connect(server.server_address) as silent:
            assert await in_thread(between.ask, b"hello\n") == b"HELLO\n"
            await until(lambda: server.statistics().open == 2)
            await turns()
            assert await server.shutdown() == report(finished=2)
            assert await in_thread(between.read_until_eof) == b""
            assert await in_thread(silent.read_until_eof) == b""
    assert totals(server) == {"accepted": 2, "completed": 2}


@movable
async def test_request_in_the_middle_finishes(clock: Clock) -> None:
    """A handler that is at work when shutdown begins answers its client, sees `draining`, and then its input ends."""
    worker = Worker()
    async with running(tcp(worker), None) as server:
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            async with stopping(server) as stop:
                await clock.move(29.9)  # of 30
                assert not stop.done.is_set()
                assert server.statistics().open == 1
                worker.go.set()
                assert await in_thread(client.read_until_eof) == b"HELLO\n"
    assert stop.report == report(finished=1)
    assert worker.saw_draining == [True]


@movable
async def test_pipelined_requests_finish(clock: Clock) -> None:
    """Requests that had arrived when shutdown began are all answered."""
    worker = Worker()
    async with running(tcp(worker), None) as server:
        with connect(server.server_address) as client:
            client.send(b"one\ntwo\nthree\n")
            await worker.working.wait()
            async with stopping(server) as stop:
                worker.go.set()
                assert await in_thread(client.read_until_eof) == b"ONE\nTWO\nTHREE\n"
    assert stop.report == report(finished=1)


@movable
async def test_request_half_received_finishes(clock: Clock) -> None:
    """A client that has sent half a line may send the other half within the grace, and is answered."""
    async with running(tcp(), None) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.ask, b"first\n") == b"FIRST\n"
            client.send(b"sec")
            await turns()
            async with stopping(server) as stop:
                await clock.move(20)
                assert not stop.done.is_set()
                client.send(b"ond\n")
                assert await in_thread(client.read_until_eof) == b"SECOND\n"
    assert stop.report == report(finished=1)


@movable
async def test_one_that_only_listens_ends_after_a_second(clock: Clock) -> None:
    """A connection that took a line without answering it sees the end of its input after a second of silence."""
    got: list[bytes] = []

    async def listener(stream: aserver.Stream) -> None:
        async for line in stream:
            got.append(line)

    async with running(tcp(listener), None) as server:
        with connect(server.server_address) as client:
            client.send(b"news\n")
            await until(lambda: got)
            await turns()
            async with stopping(server) as stop:
                await clock.move(0.9)
                assert not stop.done.is_set()
                await clock.move(0.2)
                assert stop.done.is_set()
                assert await in_thread(client.read_until_eof) == b""
    assert stop.report == report(finished=1)


async def test_draining_is_seen_by_all_handlers() -> None:
    """`draining` is False while the server serves and True in every stream once shutdown has begun."""
    seen: list[bool] = []
    streams: list[aserver.Stream] = []

    async def handler(stream: aserver.Stream) -> None:
        streams.append(stream)
        seen.append(stream.draining)
        assert await stream.readline() == b""
        seen.append(stream.draining)

    async with running(tcp(handler)) as server:
        with connect(server.server_address), connect(server.server_address):
            await until(lambda: len(streams) == 2)
            await turns()
            assert await server.shutdown() == report(finished=2)
    assert seen == [False, False, True, True]


# --- the grace is over -----------------------------------------------------------------------------------------------


@movable
@pytest.mark.parametrize("grace", [0.5, 7.0, 30.0])
async def test_cancelled_when_the_grace_is_over(clock: Clock, grace: float) -> None:
    """A handler that is still at work when the grace ends is cancelled then, and not before."""
    async with running(tcp(sleeper), None) as server:
        with connect(server.server_address) as client:
            await until(lambda: server.statistics().open)
            async with stopping(server, grace) as stop:
                await clock.move(grace - 0.1)
                assert not stop.done.is_set()
                assert server.statistics().open == 1
                await clock.move(0.2)
                assert stop.done.is_set()
                assert await in_thread(client.read_until_eof) == b""
    assert stop.report == report(cancelled=1)
    assert not report(cancelled=1).clean
    assert totals(server) == {"accepted": 1, "cancelled": 1}


@movable
async def test_default_grace(clock: Clock) -> None:
    """Without an argument the grace is 30 seconds."""
    async with running(tcp(sleeper), None) as server:
        with connect(server.server_address):
            await until(lambda: server.statistics().open)
            async with stopping(server) as stop:
                await clock.move(29.9)
                assert not stop.done.is_set()
                await clock.move(0.2)
                assert stop.done.is_set()
    assert stop.report == report(cancelled=1)


async def test_grace_of_zero_cancels_at_once() -> None:
    """shutdown(0) cancels those who are at work without waiting."""
    worker = Worker()
    async with running(tcp(worker)) as server:
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            assert await server.shutdown(0) == report(cancelled=1)
            assert await in_thread(client.read_until_eof) == b""
    assert totals(server) == {"accepted": 1, "cancelled": 1}


@movable
async def test_grace_of_none_waits_for_ever(clock: Clock) -> None:
    """shutdown(None) waits as long as it takes."""
    worker = Worker()
    async with running(tcp(worker), None) as server:
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            async with stopping(server, None) as stop:
                await clock.move(1_000_000)
                assert not stop.done.is_set()
                assert server.statistics().open == 1
                worker.go.set()
                assert await in_thread(client.read_until_eof) == b"HELLO\n"
    assert stop.report == report(finished=1)


class Stubborn:
    """A handler that does not end on cancellation, but only when the test says so, at the latest at its end."""

    def __init__(self) -> None:
        self.cancelled = anyio.Event()
        self.go = anyio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.go.set()

    async def __call__(self, stream: aserver.Stream) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled.set()
        with anyio.CancelScope(shield=True):
            await self.go.wait()


def was_reset(client: Client) -> bool:
    """Wait for the end of the connection; whether it was a reset."""
    try:
        client.read_until_eof()
    except ConnectionResetError:
        return True
    return False


def reset_already(client: Client) -> bool:
    """Whether the connection has ended by now."""
    return bool(select.select([client.sock], [], [], 0)[0])


@movable
async def test_aborted_when_cancellation_is_swallowed(clock: Clock) -> None:
    """A handler that swallows its cancellation gets 5 s more, then its connection is reset under it."""
    stubborn = Stubborn()
    async with running(tcp(stubborn), None) as server:
        with stubborn, connect(server.server_address) as client:
            await until(lambda: server.statistics().open)
            async with stopping(server, 10) as stop:
                await clock.move(9.9)
                assert not stubborn.cancelled.is_set()
                await clock.move(0.2)
                assert stubborn.cancelled.is_set()
                await clock.move(4.8)
                assert not reset_already(client)
                await clock.move(0.2)
                assert await in_thread(was_reset, client)
                assert not stop.done.is_set()  # a handler that ends now has still been waited for
                stubborn.go.set()
    assert stop.report == report(aborted=1)
    assert not report(aborted=1).clean
    assert server.statistics().open == 0


@movable
async def test_left_behind_when_nothing_helps(clock: Clock) -> None:
    """A handler that does not even end when its connection is gone is left behind after another 5 s."""
    stubborn = Stubborn()
    async with running(tcp(stubborn), None) as server:
        with stubborn, connect(server.server_address):
            await until(lambda: server.statistics().open)
            async with stopping(server, 0) as stop:
                await clock.move(5.01)  # reset
                await clock.move(4.8)
                assert not stop.done.is_set()
                await clock.move(0.4)
                assert stop.done.is_set()
            assert server.statistics().open == 1
    assert stop.report == report(aborted=1)
    assert server.statistics().open == 0


async def test_aborted_on_every_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with short times in place of a moved clock, for where the clock cannot be moved."""
    monkeypatch.setattr(_lifecycle, "KILL_GRACE", 0.02)
    stubborn = Stubborn()
    async with running(tcp(stubborn)) as server:
        with stubborn, connect(server.server_address) as client:
            await until(lambda: server.statistics().open)
            assert await server.shutdown(0) == report(aborted=1)
            assert stubborn.cancelled.is_set()
            assert await in_thread(was_reset, client)
    assert server.statistics().open == 0


@movable
async def test_leaving_the_block_resets_the_stubborn(clock: Clock) -> None:
    """Leaving the block without a shutdown cancels, and after 5 s resets, those who do not end."""
    stubborn = Stubborn()
    server = tcp(stubborn)
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            async with running(server, None):
                clients.append(connect(server.server_address))
                await until(lambda: server.statistics().open)

        clients: list[Client] = []
        tasks.start_soon(serve)
        await stubborn.cancelled.wait()
        with stubborn, clients[0] as client:
            await clock.move(4.9)
            assert not reset_already(client)
            await clock.move(0.2)
            assert await in_thread(was_reset, client)
    assert server.statistics().open == 0


@movable
async def test_report_of_a_mixed_house(clock: Clock) -> None:
    """The report tells how many finished by themselves, were cancelled and were aborted; together all who were open."""
    stubborn = Stubborn()

    async def handler(stream: aserver.Stream) -> None:
        kind = await stream.readline()
        await stream.send(b"!")
        await kinds[kind](stream)

    kinds: dict[bytes, Any] = {b"idle\n": upper, b"busy\n": sleeper, b"stubborn\n": stubborn}
    server = tcp(handler)
    async with running(server, None):
        clients = [connect(server.server_address) for _ in range(6)]
        for client, kind in zip(clients, (b"idle", b"busy", b"stubborn", b"idle", b"idle", b"busy"), strict=True):
            client.send(kind + b"\n")
            assert await in_thread(client.read_exactly, 1) == b"!"
        await turns()
        async with stopping(server, 10) as stop:
            with stubborn:
                assert server.statistics().completed == 3
                await clock.move(10.1)
                assert totals(server) == {"accepted": 6, "completed": 3, "cancelled": 2, "open": 1}
                await clock.move(5.1)
        for client in clients:
            client.close()
    assert stop.report == report(finished=3, cancelled=2, aborted=1)


async def test_failing_while_draining_counts_as_finished(aserver_log: LogBook) -> None:
    """A handler that ends with an error within the grace has ended by itself."""

    async def handler(stream: aserver.Stream) -> None:
        await stream.readline()
        raise OwnError("mine")

    async with running(tcp(handler)) as server:
        with connect(server.server_address):
            await until(lambda: server.statistics().open)
            await turns()
            assert await server.shutdown() == report(finished=1)
    aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")


# --- the door --------------------------------------------------------------------------------------------------------


async def test_clients_are_refused_while_draining() -> None:
    """Once shutdown has begun nobody new comes in, while those who are inside finish."""
    worker = Worker()
    async with running(tcp(worker)) as server:
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            async with stopping(server):
                assert refuses(server.server_address)
                worker.go.set()
                assert await in_thread(client.read_until_eof) == b"HELLO\n"


@pytest.mark.parametrize("inside", [False, True], ids=["empty", "with-a-client"])
async def test_the_address_is_free_after_shutdown(inside: bool) -> None:
    """When shutdown returns, clients are refused and another server can have the address."""
    async with running(tcp()) as server:
        with connect(server.server_address) if inside else contextlib.nullcontext():
            if inside:
                await until(lambda: server.statistics().open)
            await server.shutdown()
            assert refuses(server.server_address)
            async with running(aserver.TCPServer(server.server_address, upper)) as successor:
                assert await in_thread(ask, successor.server_address, b"hello\n") == b"HELLO\n"


async def test_the_path_is_gone_after_shutdown(tmp_path: Path) -> None:
    """When shutdown returns, a Unix server's path is removed, and a successor's stays when the first block is left."""
    path = tmp_path / "s"
    async with anyio.create_task_group() as tasks:
        successor = aserver.UnixStreamServer(path, upper)
        async with running(aserver.UnixStreamServer(path, upper)) as server:
            assert await in_thread(ask, path, b"hello\n") == b"HELLO\n"
            await server.shutdown()
            assert not path.exists()
            await tasks.start(successor.serve_forever)
        assert await in_thread(ask, path, b"hello\n") == b"HELLO\n"
        await successor.shutdown()
    assert not path.exists()


async def test_shutdown_before_serving() -> None:
    """A server that was opened and never served can be shut down; its clients are refused from then on."""
    async with tcp() as server:
        waiting = connect(server.server_address)
        assert await server.shutdown() == report()
        assert refuses(server.server_address)
        with waiting:
            assert await in_thread(was_reset, waiting)


async def test_shutdown_while_suspended() -> None:
    """A suspended server can be shut down; who waited outside is reset, and `resume` opens the door no more."""
    async with running(tcp()) as server:
        server.suspend()
        with connect(server.server_address) as waiting:
            await turns()
            assert await server.shutdown() == report()
            server.resume()
            await turns()
            assert await in_thread(was_reset, waiting)
        assert server.statistics().accepted == 0


async def test_shutdown_at_the_limit() -> None:
    """A server that is full can be shut down; who waited outside is reset."""
    async with running(tcp(limits=aserver.Limits(max_connections=1))) as server:
        with connect(server.server_address) as inside:
            assert await in_thread(inside.ask, b"hello\n") == b"HELLO\n"
            with connect(server.server_address) as waiting:
                assert await server.shutdown() == report(finished=1)
                assert await in_thread(was_reset, waiting)
            assert await in_thread(inside.read_until_eof) == b""


# --- states ----------------------------------------------------------------------------------------------------------


async def test_shutdown_twice() -> None:
    """A second shutdown, during the first or after it, is an error that says so; the first goes on."""
    worker = Worker()
    async with running(tcp(worker)) as server:
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            async with stopping(server) as stop:
                with pytest.raises(aserver.ServerStateError, match="cannot be shut down: it is stopping; do so once"):
                    await server.shutdown()
                worker.go.set()
            assert stop.report == report(finished=1)
            with pytest.raises(aserver.ServerStateError, match="cannot be shut down: it is stopping; do so once"):
                await server.shutdown()
    with pytest.raises(aserver.ServerStateError, match="cannot be shut down: it is closed; do so once"):
        await server.shutdown()


async def test_serve_forever_ends_with_shutdown() -> None:
    """serve_forever returns when shutdown has ended, not before."""
    worker = Worker()
    server = tcp(worker)
    served = anyio.Event()

    async def serve() -> None:
        await server.serve_forever()
        served.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await until(lambda: "serving" in repr(server))
        with connect(server.server_address) as client:
            client.send(b"hello\n")
            await worker.working.wait()
            async with stopping(server):
                await turns()
                assert not served.is_set()
                worker.go.set()
        await served.wait()


async def test_cancelled_shutdown() -> None:
    """A shutdown that is cancelled leaves a server whose block can be left, which ends all that is open."""
    async with running(tcp(sleeper)) as server:
        with connect(server.server_address):
            await until(lambda: server.statistics().open)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(server.shutdown, None)
                    await turns()
                    scope.cancel()
            assert server.statistics().open == 1
            assert refuses(server.server_address)
    assert totals(server) == {"accepted": 1, "cancelled": 1}


async def test_shutdown_from_a_handler() -> None:
    """A handler may begin the shutdown in a task beside it, and finishes its own request."""

    async def handler(stream: aserver.Stream) -> None:
        async for line in stream:
            tasks.start_soon(server.shutdown)
            await until(lambda: stream.draining)
            await stream.send(line.upper())

    server = tcp(handler)
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(server.serve_forever)
        with connect(address) as client:
            client.send(b"stop\n")
            assert await in_thread(client.read_until_eof) == b"STOP\n"


async def test_hooks_run_at_shutdown() -> None:
    """connection_closed is called of each connection before shutdown returns."""
    async with running(Hooked()) as server:
        with connect(server.server_address), connect(server.server_address):
            await until(lambda: server.hooks.count("opened") == 2)
            await turns()
            await server.shutdown()
            assert server.hooks.count("closed") == 2


# --- what else waits for a clock -------------------------------------------------------------------------------------


class AcceptCounter(socket.socket):
    """A real listening socket that counts how often it was asked to accept."""

    accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.accepts += 1
        return super().accept()


def counted() -> AcceptCounter:
    """One of them, listening."""
    with bound_socket(listening=True) as plain:
        return AcceptCounter(fileno=plain.detach())


@contextlib.asynccontextmanager
async def full_house(shed_after: float | None) -> AsyncIterator[tuple[aserver.TCPServer, AcceptCounter, Client]]:
    """A server of one connection, its socket, and the client that has it."""
    sock = counted()
    limits = aserver.Limits(max_connections=1, shed_after=shed_after)
    async with running(aserver.TCPServer(sock, upper, limits=limits), None) as server:
        with connect(server.server_address) as inside:
            assert await in_thread(inside.ask, b"hello\n") == b"HELLO\n"
            await turns()
            yield server, sock, inside


def drop_warnings(book: LogBook, text: str) -> int:
    """Remove all records that contain *text*; return how many."""
    before = len(book.records)
    book.records = [record for record in book.records if text not in record.getMessage()]
    return before - len(book.records)


@movable
async def test_who_waits_at_the_limit_is_closed_after_shed_after(clock: Clock, aserver_log: LogBook) -> None:
    """At the limit a waiting client is left in the queue for shed_after, 5 s by default, and then closed."""
    async with full_house(aserver.Limits().shed_after) as (server, _, inside):
        with connect(server.server_address) as waiting:
            await clock.move(4.8)
            assert server.statistics().shed == 0
            await clock.move(0.3)
            assert server.statistics().shed == 1
            assert await in_thread(waiting.read_until_eof) == b""
        assert await in_thread(inside.ask, b"still\n") == b"STILL\n"
    assert drop_warnings(aserver_log, "at its limit of 1 connections; closed 1 that waited") == 1


@movable
async def test_shed_after_none_lets_them_wait(clock: Clock) -> None:
    """With shed_after=None a client waits in the queue as long as it takes, and is served then."""
    async with full_house(None) as (server, _, inside):
        with connect(server.server_address) as waiting:
            waiting.send(b"patience\n")
            await clock.move(100_000)
            assert server.statistics().shed == 0
            inside.close()
            assert await in_thread(waiting.read_until) == b"PATIENCE\n"


@movable
async def test_full_house_without_a_queue_is_silent(
    clock: Clock, aserver_log: LogBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is full, and where nobody waits any more, has nothing to warn of."""
    later = 0.0
    # The log's bound of one line a second goes by the wall clock, which the test sets forward as well.
    monkeypatch.setattr(_listener, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    async with full_house(aserver.Limits().shed_after) as (server, _, inside):
        with connect(server.server_address) as waiting:
            await clock.move(5.1)
            assert await in_thread(waiting.read_until_eof) == b""
        assert drop_warnings(aserver_log, "at its limit of 1 connections; closed 1 that waited") == 1
        for _ in range(5):
            later += 5.1
            await clock.move(5.1)
        assert server.statistics().shed == 1
        assert await in_thread(inside.ask, b"still\n") == b"STILL\n"
    assert aserver_log.lines == []


@movable
@pytest.mark.parametrize("shed_after", [0, 0.0, 1e-9])
async def test_shedding_at_once_does_not_spin(shed_after: float, clock: Clock, aserver_log: LogBook) -> None:
    """Where shed_after is 0 the server closes who comes at the limit, and rests while nobody comes."""
    async with full_house(shed_after) as (server, sock, inside):
        for _ in range(2):
            with connect(server.server_address) as waiting:
                await clock.move(1)
                assert await in_thread(waiting.read_until_eof) == b""
        await turns()
        before = sock.accepts
        await clock.move(1)
        idle = sock.accepts - before
        assert await in_thread(inside.ask, b"still\n") == b"STILL\n"
    drop_warnings(aserver_log, "at its limit")
    assert idle < 10  # one look for each turn of the loop were hundreds

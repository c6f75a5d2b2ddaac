"""The promises of `aserver._server` about hooks and faults: when each hook runs, and that whatever handler or hook
raises ends its own connection, is logged once with the peer, and nothing else happens.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

import aserver

from .conftest import LOOP_FACTORIES, LogBook
from .peers import ask, connect, in_thread
from .test_server import OwnError, running, tcp, turns, until, upper

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param(("asyncio", {"loop_factory": make}), id=name) for name, make in LOOP_FACTORIES.items()],
)
on_trio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(
            ("trio", {}),
            id="trio",
            marks=pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed"),
        )
    ],
)

Act = Callable[[], None]


class Hooked(aserver.TCPServer):
    """A server that notes what its plain hooks are told, and does there what the test wants."""

    def __init__(self, handler: Any = upper, acts: dict[str, Act] | None = None, **options: Any) -> None:
        super().__init__(("127.0.0.1", 0), handler, **options)
        self.told: list[tuple[Any, ...]] = []
        self.acts = acts or {}
        self.let_in = True

    def note(self, hook: str, request: aserver.Stream, client_address: Any) -> None:
        assert request.peer == client_address
        self.told.append((hook, client_address))
        self.acts.get(hook, lambda: None)()

    @property
    def hooks(self) -> list[str]:
        """The hooks that were called, in order."""
        return [hook for hook, _ in self.told]

    def verify_request(self, request: aserver.Stream, client_address: Any) -> Any:
        self.note("verify", request, client_address)
        return self.let_in

    def connection_opened(self, request: aserver.Stream, client_address: Any) -> Any:
        self.note("opened", request, client_address)

    def connection_closed(self, request: aserver.Stream, client_address: Any) -> Any:
        self.note("closed", request, client_address)

    def handle_error(self, request: aserver.Stream, client_address: Any) -> Any:
        self.note("error", request, client_address)
        return super().handle_error(request, client_address)


class AsyncHooked(Hooked):
    """The same with async hooks, which wait before they do anything."""

    async def verify_request(self, request: aserver.Stream, client_address: Any) -> bool:
        await anyio.lowlevel.checkpoint()
        return bool(super().verify_request(request, client_address))

    async def connection_opened(self, request: aserver.Stream, client_address: Any) -> None:
        await anyio.lowlevel.checkpoint()
        super().connection_opened(request, client_address)

    async def connection_closed(self, request: aserver.Stream, client_address: Any) -> None:
        await anyio.lowlevel.checkpoint()
        super().connection_closed(request, client_address)

    async def handle_error(self, request: aserver.Stream, client_address: Any) -> None:
        await anyio.lowlevel.checkpoint()
        super().handle_error(request, client_address)


both_kinds = pytest.mark.parametrize("kind", [Hooked, AsyncHooked])


def totals(server: aserver.StreamServer) -> dict[str, int]:
    """The counters that are not 0, after checking that everybody who was accepted is in exactly one of them."""
    counters = server.statistics()
    ends = ("open", "completed", "failed", "lost", "rejected", "cancelled", "refused_per_peer")
    assert counters.accepted == sum(getattr(counters, name) for name in ends), counters
    return {name: value for name in counters.__slots__ if (value := getattr(counters, name))}


def errors(book: LogBook, server: Hooked) -> list[logging.LogRecord]:
    """The records of level ERROR and above, all of them removed; each has the peer's address and the exception."""
    found = [record for record in book.records if record.levelno >= logging.WARNING]
    book.records = [record for record in book.records if record not in found]
    for record in found:
        assert record.levelno == logging.ERROR
        assert "{}:{}".format(*server.told[0][1]) in record.getMessage()
        assert record.exc_info is not None
    return found


def visible_error() -> BaseException | None:
    """The exception that is being handled where this is called."""
    return sys.exc_info()[1]


# --- when hooks run --------------------------------------------------------------------------------------------------


@both_kinds
async def test_order_of_the_hooks(kind: type[Hooked]) -> None:
    """verify_request, connection_opened, the handler, connection_closed: in this order, once each, with the peer."""

    async def handler(stream: aserver.Stream) -> None:
        server.told.append(("handler", stream.peer))
        await upper(stream)
        server.told.append(("handled", stream.peer))

    async with running(kind(handler)) as server:
        with connect(server.server_address) as client:
            peer = client.sock.getsockname()
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
            assert server.hooks == ["verify", "opened", "handler"]
        await server.wait_empty()
        assert server.told == [(name, peer) for name in ("verify", "opened", "handler", "handled", "closed")]
        assert totals(server) == {"accepted": 1, "completed": 1}


@both_kinds
async def test_rejected_client(kind: type[Hooked], aserver_log: LogBook) -> None:
    """When verify_request says no the client sees the end, and neither handler nor another hook is called."""
    server = kind()
    server.let_in = False
    async with running(server):
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert server.hooks == ["verify"]
        assert totals(server) == {"accepted": 1, "rejected": 1}
        server.let_in = True
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"
        await server.wait_empty()
        assert totals(server) == {"accepted": 2, "rejected": 1, "completed": 1}


@both_kinds
async def test_every_opened_has_its_closed(kind: type[Hooked]) -> None:
    """Of clients that come and go together, each is told as opened once and, when it has gone, as closed once."""
    async with running(kind()) as server:
        clients = [connect(server.server_address) for _ in range(20)]
        peers = {client.sock.getsockname() for client in clients}
        for client in clients:
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
        assert {peer for hook, peer in server.told if hook == "opened"} == peers
        assert "closed" not in server.hooks
        for client in clients:
            client.close()
        await server.wait_empty()
        for hook in ("verify", "opened", "closed"):
            assert sorted(peer for told, peer in server.told if told == hook) == sorted(peers)


@both_kinds
async def test_closed_is_told_after_the_connection_was_closed(kind: type[Hooked]) -> None:
    """In connection_closed the stream is closed already, and the client has its end."""
    told: list[str] = []

    class Asking(kind):  # type: ignore[valid-type, misc]  # one of the two
        def connection_closed(self, request: aserver.Stream, client_address: Any) -> Any:
            told.append(repr(request))
            return super().connection_closed(request, client_address)

    async with running(Asking(upper)) as server:
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"
        await server.wait_empty()
    assert len(told) == 1
    assert " closed " in told[0]


@both_kinds
async def test_closed_is_told_of_one_that_failed(kind: type[Hooked], aserver_log: LogBook) -> None:
    """A connection whose handler raised is told to handle_error first, and then as closed."""

    async def handler(stream: aserver.Stream) -> None:
        raise OwnError("mine")

    async with running(kind(handler)) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert server.hooks == ["verify", "opened", "error", "closed"]
        assert len(errors(aserver_log, server)) == 1


async def test_closed_is_told_of_one_that_was_cancelled() -> None:
    """A connection whose handler is cancelled at the end of the server is told as closed."""
    server = Hooked()
    async with running(server):
        client = connect(server.server_address)
        await in_thread(client.ask, b"hello\n")
    client.close()
    assert server.hooks == ["verify", "opened", "closed"]
    assert totals(server) == {"accepted": 1, "cancelled": 1}


@both_kinds
async def test_handle_error_is_called_while_the_error_is_handled(kind: type[Hooked], aserver_log: LogBook) -> None:
    """In handle_error `sys.exc_info()` is the exception of the handler, also after a wait."""
    error = OwnError("mine")
    seen: list[Any] = []

    async def handler(stream: aserver.Stream) -> None:
        raise error

    async with running(kind(handler, {"error": lambda: seen.append(visible_error())})) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert seen == [error]
        (record,) = errors(aserver_log, server)
        assert record.exc_info is not None
        assert record.exc_info[1] is error


async def test_handle_error_that_logs_nothing(aserver_log: LogBook) -> None:
    """Who overrides handle_error decides what is logged: nothing, if it logs nothing. The failure is still counted."""

    class Silent(Hooked):
        def handle_error(self, request: aserver.Stream, client_address: Any) -> None:
            self.note("error", request, client_address)

    async def handler(stream: aserver.Stream) -> None:
        raise OwnError("mine")

    async with running(Silent(handler)) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert aserver_log.lines == []
        assert totals(server) == {"accepted": 1, "failed": 1}


async def test_hook_may_talk_to_the_client() -> None:
    """An async verify_request may read from the stream and answer, before the handler gets it."""

    class Password(aserver.TCPServer):
        async def verify_request(self, request: aserver.Stream, client_address: Any) -> bool:
            if await request.readline() == b"sesame\n":
                return True
            await request.send(b"no\n")
            return False

    async with running(Password(("127.0.0.1", 0), upper)) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.ask, b"sesame\nhello\n") == b"HELLO\n"
        with connect(server.server_address) as client:
            assert await in_thread(client.ask, b"guess\n") == b"no\n"
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert totals(server) == {"accepted": 2, "completed": 1, "rejected": 1}


async def test_hook_that_waits_holds_up_nobody_else() -> None:
    """While verify_request waits for one client, another is served."""
    go = anyio.Event()

    class Slow(aserver.TCPServer):
        async def verify_request(self, request: aserver.Stream, client_address: Any) -> bool:
            if client_address == first.sock.getsockname():
                await go.wait()
            return True

    async with running(Slow(("127.0.0.1", 0), upper)) as server:
        with connect(server.server_address) as first:
            first.send(b"first\n")
            assert await in_thread(ask, server.server_address, b"second\n") == b"SECOND\n"
            go.set()
            assert await in_thread(first.read_until) == b"FIRST\n"


# --- whatever is raised, wherever ------------------------------------------------------------------------------------


class Last(BaseException):
    """Derives from BaseException only."""


def recurse(depth: int = 0) -> NoReturn:
    """Raise a real RecursionError."""
    recurse(depth + 1)


def allocate() -> None:
    """Raise a real MemoryError."""
    bytearray(1 << 62)


def throw(error: BaseException) -> NoReturn:
    """Raise, where an expression is needed."""
    raise error


FAULTS = {
    "ValueError": lambda: throw(ValueError("mine")),
    "OSError": lambda: throw(OSError(5, "mine")),
    "SystemExit": lambda: throw(SystemExit(3)),
    "KeyboardInterrupt": lambda: throw(KeyboardInterrupt()),
    "GeneratorExit": lambda: throw(GeneratorExit()),
    "BaseException": lambda: throw(Last("mine")),
    "StopAsyncIteration": lambda: throw(StopAsyncIteration()),
    "RecursionError": recurse,
    "MemoryError": allocate,
    "TimeoutError": lambda: throw(TimeoutError("mine")),
    "ClosedResourceError": lambda: throw(anyio.ClosedResourceError()),
    "ExceptionGroup": lambda: throw(ExceptionGroup("mine", [ValueError("one"), OSError(5, "two")])),
    "BaseExceptionGroup": lambda: throw(
        BaseExceptionGroup("mine", [KeyboardInterrupt(), ExceptionGroup("inner", [MemoryError()]), GeneratorExit()])
    ),
    "half-network": lambda: throw(ExceptionGroup("mine", [anyio.EndOfStream(), ValueError("two")])),
}
CANCELLATIONS = {
    "CancelledError": lambda: throw(asyncio.CancelledError("mine")),
    "group-of-CancelledError": lambda: throw(BaseExceptionGroup("mine", [asyncio.CancelledError("mine")])),
    "group-with-CancelledError": lambda: throw(
        BaseExceptionGroup("mine", [ValueError("mine"), asyncio.CancelledError("mine")])
    ),
}


async def _fault_in(place: str, kind: type[Hooked], fault: Act, book: LogBook) -> None:
    """Raise at *place*, while another client is connected; then see that all is as promised."""
    armed = False

    def act() -> None:
        if armed:
            fault()

    async def handler(stream: aserver.Stream) -> None:
        if armed and place == "handler":
            fault()
        if armed and place == "error":
            raise OwnError("the first")
        if armed:
            return
        await upper(stream)

    async with running(kind(handler, {place: act})) as server:
        with connect(server.server_address) as other:
            assert await in_thread(other.ask, b"before\n") == b"BEFORE\n"
            server.told.clear()
            armed = True
            with connect(server.server_address) as client:
                assert await in_thread(client.read_until_eof) == b""
                await until(lambda: server.statistics().open == 1)
            armed = False
            if place == "closed":
                assert totals(server) == {"accepted": 2, "open": 1, "completed": 1}
            else:
                assert totals(server) == {"accepted": 2, "open": 1, "failed": 1}
            assert len(errors(book, server)) == 1
            assert await in_thread(other.ask, b"after\n") == b"AFTER\n"
            assert await in_thread(ask, server.server_address, b"next\n") == b"NEXT\n"
        await server.wait_empty()
        assert server.statistics().open == 0
        assert server.hooks.count("error") == (0 if place == "closed" else 1)
    assert book.lines == []


@both_kinds
@pytest.mark.parametrize("place", ["verify", "opened", "handler", "closed", "error"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_fault(kind: type[Hooked], place: str, fault: str, aserver_log: LogBook) -> None:
    """Whatever handler or hook raises closes that connection, is logged once with the peer, and the rest goes on."""
    await _fault_in(place, kind, FAULTS[fault], aserver_log)


@on_asyncio
@both_kinds
@pytest.mark.parametrize("place", ["verify", "opened", "handler", "closed", "error"])
@pytest.mark.parametrize("fault", CANCELLATIONS)
async def test_cancellation_that_nobody_asked_for(
    kind: type[Hooked], place: str, fault: str, aserver_log: LogBook
) -> None:
    """A CancelledError that a handler or hook raises by itself, alone or in a group, is a fault like any other."""
    await _fault_in(place, kind, CANCELLATIONS[fault], aserver_log)


@on_asyncio
async def test_awaiting_a_cancelled_future_is_a_fault(aserver_log: LogBook) -> None:
    """A handler that awaits a task which somebody cancels fails; it does not look like a cancelled connection."""

    async def handler(stream: aserver.Stream) -> None:
        task = asyncio.ensure_future(anyio.sleep_forever())
        await anyio.lowlevel.checkpoint()
        task.cancel()
        await task

    async with running(Hooked(handler)) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert totals(server) == {"accepted": 1, "failed": 1}
        assert len(errors(aserver_log, server)) == 1


async def test_unix_peer_is_named_in_the_log(tmp_path: Path, aserver_log: LogBook) -> None:
    """The log line of a failed request names a Unix client by its path, escaped, or as unix if it has none."""

    async def handler(stream: aserver.Stream) -> None:
        raise OwnError("mine")

    async with running(aserver.UnixStreamServer(tmp_path / "s", handler)) as server:
        with connect(tmp_path / "s") as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        aserver_log.take("ERROR: UnixStreamServer: the request of unix raised")
        with socket.socket(socket.AF_UNIX) as named:
            named.settimeout(10)
            named.bind(str(tmp_path / "cli\nent"))
            named.connect(server.server_address)
            assert await in_thread(named.recv, 1) == b""
        await server.wait_empty()
        aserver_log.take(f"ERROR: UnixStreamServer: the request of unix:{tmp_path}/cli\\nent raised")


async def test_name_of_the_server_is_in_the_log(aserver_log: LogBook) -> None:
    """The name that a server was given stands in its log lines."""

    async def handler(stream: aserver.Stream) -> None:
        raise OwnError("mine")

    async with running(tcp(handler, name="front door")) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
    aserver_log.take("ERROR: front door: the request of 127.0.0.1:")


# --- what the network does is nobody's fault -------------------------------------------------------------------------


async def _in_group(work: Callable[[aserver.Stream], Any], stream: aserver.Stream) -> None:
    """Do *work* in a task group, whose errors come in a group."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, stream)
        tasks.start_soon(anyio.lowlevel.checkpoint)


async def _reads_a_line(stream: aserver.Stream) -> None:
    await stream.send(b"?")
    await stream.readline()


async def _receives(stream: aserver.Stream) -> None:
    await stream.send(b"?")
    await stream.receive()
    await stream.receive()


async def _receives_exactly(stream: aserver.Stream) -> None:
    await stream.send(b"?")
    await stream.receive_exactly(100)


async def _receives_until(stream: aserver.Stream) -> None:
    await stream.send(b"?")
    await stream.receive_until(b";")


async def _sends_for_ever(stream: aserver.Stream) -> None:
    while True:
        await stream.send(b"?" * 65536)


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in-a-group"])
@pytest.mark.parametrize(
    "handler, data, end",
    [
        pytest.param(_reads_a_line, b"half", "reset", id="reset-readline"),
        pytest.param(_receives, b"half", "reset", id="reset-receive"),
        pytest.param(_sends_for_ever, b"", "reset", id="reset-send"),
        pytest.param(_sends_for_ever, b"", "close", id="closed-send"),
        pytest.param(_receives, b"half", "end", id="EndOfStream"),
        pytest.param(_receives_exactly, b"half", "end", id="IncompleteRead"),
        pytest.param(_receives_until, b"half", "end", id="IncompleteRead-until"),
        pytest.param(_reads_a_line, b"x" * 17, "nothing", id="line-over-the-limit"),
        pytest.param(_receives_until, b"x" * 17, "nothing", id="message-over-the-limit"),
    ],
)
async def test_network_ends(handler: Any, data: bytes, end: str, grouped: bool, aserver_log: LogBook) -> None:
    """A peer that resets, ends early or says too much is counted as lost and costs one debug line, no more."""
    work = functools.partial(_in_group, handler) if grouped else handler
    async with running(Hooked(work, limits=aserver.Limits(max_line_size=16))) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_exactly, 1) == b"?"
            if data:
                client.send(data)
            if end == "reset":
                client.reset()
            elif end == "close":
                client.close()
            elif end == "end":
                client.end()
            await server.wait_empty()
        assert totals(server) == {"accepted": 1, "lost": 1}
        assert "error" not in server.hooks
        assert server.hooks[-1] == "closed"
        assert [record.levelname for record in aserver_log.records] == ["DEBUG"]
        assert "{}:{}".format(*server.told[0][1]) in aserver_log.lines[0]


async def test_resets_of_idle_clients(aserver_log: LogBook) -> None:
    """A hundred clients that reset while the server waits for their next line leave nothing above debug."""
    async with running(tcp()) as server:
        clients = [connect(server.server_address) for _ in range(100)]
        await until(lambda: server.statistics().open == 100)
        for client in clients:
            client.reset()
        await server.wait_empty()
        assert totals(server) == {"accepted": 100, "lost": 100}
        assert {record.levelno for record in aserver_log.records} == {logging.DEBUG}


async def test_hook_at_a_network_end(aserver_log: LogBook) -> None:
    """A peer that is gone while a hook talks to it is lost, too, and no fault."""

    class Greeting(Hooked):
        async def verify_request(self, request: aserver.Stream, client_address: Any) -> bool:
            self.note("verify", request, client_address)
            await request.receive_exactly(5)
            return True

    async with running(Greeting()) as server:
        with connect(server.server_address) as client:
            client.send(b"he")
            client.end()
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        assert totals(server) == {"accepted": 1, "lost": 1}
        assert server.hooks == ["verify"]


async def test_hostile_text_in_the_log(aserver_log: LogBook) -> None:
    """The text of a network end is one printable line of bounded length, whatever the peer has put into it."""

    async def handler(stream: aserver.Stream) -> None:
        line = await stream.readline()
        raise ConnectionError(line.decode("latin-1") * 100)

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as client:
            client.send(b"\x1b[31mred\r\x00\xff\n")
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
    (record,) = aserver_log.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage().isascii()
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 1000


# --- cancellation ----------------------------------------------------------------------------------------------------


async def test_cancelled_in_a_task_group(aserver_log: LogBook) -> None:
    """A handler that is cancelled inside a task group of its own counts as cancelled, and is not logged."""

    async def handler(stream: aserver.Stream) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await stream.send(b"!")
            await anyio.sleep_forever()

    async with running(Hooked(handler)) as server:
        with connect(server.server_address) as client:
            await in_thread(client.read_exactly, 1)
            report = await server.shutdown(0)
    assert report == aserver.ShutdownReport(finished=0, cancelled=1, aborted=0)
    assert totals(server) == {"accepted": 1, "cancelled": 1}
    assert "error" not in server.hooks
    assert aserver_log.lines == []


@on_trio
async def test_cancelled_in_a_nursery(aserver_log: LogBook) -> None:
    """The same with trio's own nursery, out of which cancellation comes in a group."""
    import trio

    async def handler(stream: aserver.Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await stream.send(b"!")
            await trio.sleep_forever()

    async with running(Hooked(handler)) as server:
        with connect(server.server_address) as client:
            await in_thread(client.read_exactly, 1)
            report = await server.shutdown(0)
    assert report == aserver.ShutdownReport(finished=0, cancelled=1, aborted=0)
    assert totals(server) == {"accepted": 1, "cancelled": 1}
    assert "error" not in server.hooks
    assert aserver_log.lines == []


async def test_error_on_the_way_out_of_cancellation(aserver_log: LogBook) -> None:
    """A handler that is cancelled and raises something else instead has failed, and is logged."""

    async def handler(stream: aserver.Stream) -> None:
        try:
            await stream.send(b"!")
            await anyio.sleep_forever()
        finally:
            raise OwnError("mine")

    async with running(Hooked(handler)) as server:
        with connect(server.server_address) as client:
            await in_thread(client.read_exactly, 1)
            report = await server.shutdown(0)
            assert report.aborted == 0
            assert await in_thread(client.read_until_eof) == b""
    assert totals(server) == {"accepted": 1, "failed": 1}
    assert len(errors(aserver_log, server)) == 1


async def test_own_timeout_of_a_handler() -> None:
    """A handler may cancel and time out itself as it likes; that is no cancellation of its connection."""

    async def handler(stream: aserver.Stream) -> None:
        with anyio.move_on_after(0):
            await stream.readline()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        await stream.send(b"still here\n")

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b"still here\n"
        await server.wait_empty()
        assert totals(server) == {"accepted": 1, "completed": 1}


async def test_shutdown_right_after_accept(aserver_log: LogBook) -> None:
    """A connection that is cancelled before its task took its first step ends like any other, at once."""
    async with running(tcp()) as server:
        with connect(server.server_address) as client:
            await until(lambda: server.statistics().open)
            report = await server.shutdown(0)
            assert report.aborted == 0
            assert server.statistics().open == 0
            assert await in_thread(client.read_until_eof) == b""
    assert totals(server)["accepted"] == 1
    assert aserver_log.lines == []


async def test_leaving_right_after_accept(aserver_log: LogBook) -> None:
    """Leaving the block in the turn in which a connection was accepted ends that one at once, too; nothing waits."""
    server = Hooked()
    async with anyio.create_task_group() as tasks:
        async with server:
            await tasks.start(server.serve_forever)
            with connect(server.server_address):
                await until(lambda: server.statistics().open)
            begun = anyio.current_time()
        took = anyio.current_time() - begun
    assert totals(server) in ({"accepted": 1, "cancelled": 1}, {"accepted": 1, "completed": 1})
    assert took < 4  # and not the 5 s after which a handler is given up that does not end on cancellation
    assert server.hooks.count("opened") == server.hooks.count("closed")
    assert aserver_log.lines == []


async def test_statistics_add_up(aserver_log: LogBook) -> None:
    """Everybody who was accepted is in exactly one counter: completed, failed, lost, rejected, cancelled or open."""

    class Picky(aserver.TCPServer):
        def verify_request(self, request: aserver.Stream, client_address: Any) -> bool:
            return not rejecting

    async def handler(stream: aserver.Stream) -> None:
        async for line in stream:
            if line == b"fail\n":
                raise OwnError("mine")
            await stream.send(line)

    rejecting = False
    async with running(Picky(("127.0.0.1", 0), handler)) as server:
        for _ in range(3):
            assert await in_thread(ask, server.server_address, b"fine\n") == b"fine\n"
        for _ in range(2):
            assert await in_thread(ask, server.server_address, b"fail\n") == b""
        for _ in range(4):
            client = connect(server.server_address)
            await in_thread(client.ask, b"fine\n")
            client.reset()
        await server.wait_empty()
        rejecting = True
        with connect(server.server_address) as client:
            assert await in_thread(client.read_until_eof) == b""
        await server.wait_empty()
        rejecting = False
        clients = [connect(server.server_address) for _ in range(5)]
        for client in clients:
            await in_thread(client.ask, b"fine\n")
        expected = {"accepted": 15, "completed": 3, "failed": 2, "lost": 4, "rejected": 1}
        assert totals(server) == expected | {"open": 5}
        await turns()
    assert totals(server) == expected | {"cancelled": 5}
    for client in clients:
        client.close()
    for _ in range(2):
        aserver_log.take("ERROR: Picky: the request of 127.0.0.1:")
    with pytest.raises(AttributeError):
        server.statistics().accepted = 0  # type: ignore[misc]  # it is frozen

"""compat.hosted(): legacy handler classes in native servers, on their real sockets, bounded and drained."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import http.server
import os
import queue
import signal
import socket
import socketserver as stdlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import aserver
import compat
from aserver import _lifecycle
from compat import executors, hosting, socketserver

from ..conftest import LogBook
from ..peers import ask, ask_datagram, connect, datagram_client, in_thread
from ..programs import Program, write
from ..test_server import running, tcp, until
from .handlers import Lines
from .servers import END_TIMEOUT

pytestmark = pytest.mark.anyio


class Echo(stdlib.StreamRequestHandler):
    """Send every line back; written for the standard library."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class OurEcho(socketserver.StreamRequestHandler):
    """The same for ours."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class DatagramEcho(stdlib.DatagramRequestHandler):
    """Send every datagram back."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read())


def udp(handler: Any, **options: Any) -> Any:
    """A server for a legacy handler, on a free port of the loopback interface."""
    return aserver.UDPServer(("127.0.0.1", 0), compat.hosted(handler), **options)


@pytest.fixture(autouse=True)
def _idle_threads_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test waits until its threads have ended."""
    monkeypatch.setattr(hosting, "IDLE_TIMEOUT", 0.01)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What handlers wait for; open at the end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def quick_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops does not wait for a second before it takes a connection for idle."""
    monkeypatch.setattr(_lifecycle, "SETTLE_TIME", 0.01)


# --- requests


@pytest.mark.parametrize("handler", [Echo, OurEcho])
async def test_connections(handler: Any, tmp_path: Path) -> None:
    """A handler class of either module serves connections over TCP and at a path, unchanged."""
    async with running(tcp(compat.hosted(handler))) as server:
        assert await in_thread(ask, server.server_address, b"hello\n") == b"hello\n"
    async with running(aserver.UnixStreamServer(str(tmp_path / "server"), compat.hosted(handler))) as unix:
        assert await in_thread(ask, unix.server_address, b"hello\n") == b"hello\n"


async def test_what_a_handler_sees() -> None:
    """It has a blocking socket, the peer's address, a server that tells and takes, and a thread beside the loop's."""
    seen: list[Any] = []

    class Handler(Echo):
        def handle(self) -> None:
            sock = self.request
            seen.append((type(sock), sock.gettimeout(), sock.getsockname(), sock.getpeername() == self.client_address))
            seen.append((self.server.server_address, self.server.RequestHandlerClass, self.server.draining))  # type: ignore[attr-defined]  # ours
            seen.append((self.server.limits, threading.get_ident()))  # type: ignore[attr-defined]  # the native server's
            self.server.counter += 1  # type: ignore[attr-defined]  # the program's own
            super().handle()

    server: Any = tcp(compat.hosted(Handler))
    server.counter = 0
    async with running(server):
        address = server.server_address
        for _ in range(2):
            assert await in_thread(ask, address, b"hello\n") == b"hello\n"
    assert seen[0] == (socket.socket, None, address, True)
    assert seen[1] == (address, Handler, False)
    assert seen[2][0] is server.limits
    assert seen[2][1] != threading.get_ident()
    assert server.counter == 2


async def test_datagrams(tmp_path: Path) -> None:
    """A legacy datagram handler answers over UDP and at a path."""
    async with running(udp(DatagramEcho)) as server:
        for text in (b"1", b"", b"3"):
            assert await in_thread(ask_datagram, server.server_address, text) == text
    native: Any = aserver.UnixDatagramServer(str(tmp_path / "server"), compat.hosted(DatagramEcho))
    async with running(native) as unix:
        assert await in_thread(ask_datagram, unix.server_address, b"hello") == b"hello"


async def test_the_socket_of_a_datagram() -> None:
    """sendto() sends to any address, with flags or without, returns the length, and fails with an OSError."""
    results: queue.Queue[Any] = queue.Queue()

    class Handler(stdlib.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            results.put(sock.getsockname())
            results.put(sock.sendto(data, other))
            results.put(sock.sendto(memoryview(data), 0, self.client_address))
            for arguments in ((b"x" * 70_000, self.client_address), (b"x", ("127.0.0.1.1", 9))):
                try:
                    sock.sendto(*arguments)
                except OSError as error:
                    results.put(type(error))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as third:
        third.bind(("127.0.0.1", 0))
        third.settimeout(END_TIMEOUT)
        other = third.getsockname()
        async with running(udp(Handler)) as server:
            assert await in_thread(ask_datagram, server.server_address, b"hello") == b"hello"
            assert await in_thread(third.recv, 100) == b"hello"
            await until(lambda: server.statistics().completed)
            assert [results.get(timeout=END_TIMEOUT) for _ in range(5)] == [
                server.server_address,
                5,
                5,
                OSError,
                OSError,
            ]


async def test_a_reply_that_is_refused_is_nobodys_bug(aserver_log: LogBook) -> None:
    """What the native server does not let out is an OSError for the handler, and the request counts as lost."""
    limits = aserver.Limits(max_amplification=1)

    class Handler(DatagramEcho):
        def handle(self) -> None:
            self.wfile.write(b"much more than came in")

    async with running(udp(Handler, limits=limits)) as server:
        with datagram_client(server.server_address) as client:
            client.send(b"1")
            await until(lambda: server.statistics().lost)
    assert server.statistics().failed == 0


async def test_http_server(tmp_path: Path) -> None:
    """A partial() of the standard library's HTTP handler is as good as a class."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "file.txt").write_text("hello")

    def get(address: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address[0], address[1], timeout=END_TIMEOUT)
        try:
            connection.request("GET", "/file.txt")
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    async with running(tcp(compat.hosted(functools.partial(Quiet, directory=str(tmp_path))))) as server:
        assert await in_thread(get, server.server_address) == (200, b"hello")


# --- bounds


@pytest.mark.parametrize("workers", [1, 3])
async def test_beyond_the_bound_clients_wait_in_order(workers: int, gate: threading.Event) -> None:
    """As many handlers run as there are threads; further clients wait, unread, and are served in their order."""
    begun: queue.Queue[int] = queue.Queue()
    count = 8

    class Handler(Echo):
        def handle(self) -> None:
            begun.put(int(self.rfile.readline()))
            gate.wait(END_TIMEOUT)

    async with running(tcp(compat.hosted(Handler, max_workers=workers))) as server:
        with contextlib.ExitStack() as clients:
            for number in range(count):
                client = clients.enter_context(await in_thread(connect, server.server_address))
                client.send(b"%d\n" % number)
                await until(functools.partial(open_are, server, number + 1))
            first = [await in_thread(begun.get, timeout=END_TIMEOUT) for _ in range(workers)]
            assert sorted(first) == list(range(workers))
            assert begun.empty()
            gate.set()
            rest = [await in_thread(begun.get, timeout=END_TIMEOUT) for _ in range(count - workers)]
            assert sorted(rest) == list(range(workers, count))
            assert workers > 1 or rest == sorted(rest)  # what several threads tell comes in any order
            await until(functools.partial(open_are, server, 0))


def open_are(server: Any, count: int) -> bool:
    """Whether the server has *count* open connections."""
    return bool(server.statistics().open == count)


async def test_a_client_that_waits_for_its_turn_may_be_cancelled(gate: threading.Event) -> None:
    """At the end of the grace those who never had their turn are closed, and no handler is made for them."""
    made: queue.Queue[None] = queue.Queue()

    class Handler(Echo):
        def handle(self) -> None:
            made.put(None)
            gate.wait(END_TIMEOUT)

    async with running(tcp(compat.hosted(Handler, max_workers=1))) as server:
        clients = [await in_thread(connect, server.server_address) for _ in range(6)]
        await until(lambda: server.statistics().open == 6)
        await until(lambda: not made.empty())
        report = await server.shutdown(0)
        assert report.cancelled == 6
        for client in clients:
            with client:
                assert await in_thread(client.read_until_eof) == b""
        gate.set()
    assert made.qsize() == 1


@pytest.mark.parametrize("make", [executors.ThreadPool, concurrent.futures.ThreadPoolExecutor, executors.FreshThreads])
async def test_executors_of_the_program(make: Any) -> None:
    """The handler runs where the program says: in one of compat's executors, or in threads of concurrent.futures."""
    executor = make()
    try:
        async with running(tcp(compat.hosted(Echo, executor=executor))) as server:
            assert await in_thread(ask, server.server_address, b"hello\n") == b"hello\n"
    finally:
        if isinstance(executor, concurrent.futures.Executor):
            await in_thread(executor.shutdown)
        else:
            await in_thread(executor.close, True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SCM_RIGHTS")
async def test_worker_processes(quick_drain: None) -> None:
    """With a ProcessPool for each server the handler runs in a process, and its connection is drained all the same."""
    pools: list[Any] = []

    def pool(server: Any) -> Any:
        pools.append(executors.ProcessPool(server, 1))
        return pools[-1]

    async with running(tcp(compat.hosted(Lines, executor=pool))) as server:
        with await in_thread(connect, server.server_address) as client:
            assert int(await in_thread(client.ask, b"pid\n")) != os.getpid()
            assert await in_thread(client.ask, b"server server_address\n") == f"{server.server_address!r}\n".encode()
            assert await in_thread(client.ask, b"server draining\n") == b"False\n"
            report = await server.shutdown()
            assert report.clean
            assert await in_thread(client.read_until_eof) == b""
    await in_thread(pools[0].close, True)


# --- errors


async def test_errors_are_the_servers(aserver_log: LogBook) -> None:
    """What a legacy handler raises is logged once, counted as failed, and ends its own connection."""

    class Handler(Echo):
        def handle(self) -> None:
            raise {b"lookup\n": LookupError("lost"), b"exit\n": SystemExit(3)}[self.rfile.readline()]

    async with running(tcp(compat.hosted(Handler))) as server:
        for text, error in ((b"lookup\n", LookupError), (b"exit\n", SystemExit)):
            assert await in_thread(ask, server.server_address, text) == b""
            await until(lambda: not server.statistics().open)
            record = aserver_log.take("raised")
            assert record.exc_info is not None
            assert record.exc_info[0] is error
    assert server.statistics().failed == 2


async def test_a_reset_is_nobodys_bug(aserver_log: LogBook) -> None:
    """A peer that resets its connection under the handler is counted as lost, and nothing is logged about it."""
    async with running(tcp(compat.hosted(Echo))) as server:
        client = await in_thread(connect, server.server_address)
        assert await in_thread(client.ask, b"hello\n") == b"hello\n"
        client.reset()
        await until(lambda: server.statistics().lost == 1)


async def test_handle_error_of_the_native_server() -> None:
    """An overridden handle_error() of the native server hears of it while it is being handled."""
    told: list[Any] = []

    class Server(aserver.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            told.append(sys.exc_info()[0])

    class Handler(Echo):
        def handle(self) -> None:
            raise LookupError("lost")

    async with running(Server(("127.0.0.1", 0), compat.hosted(Handler))) as server:
        assert await in_thread(ask, server.server_address, b"") == b""
        await until(lambda: told)
    assert told == [LookupError]


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"handler_class": 3}, TypeError, "3 is no handler class"),
        ({"handler_class": Echo, "max_workers": 0}, ValueError, "max_workers is 0"),
        ({"handler_class": Echo, "executor": 3}, TypeError, "3 is no executor"),
    ],
)
def test_arguments_are_looked_at(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """Bad arguments fail at once, and say what is wrong."""
    with pytest.raises(error, match=text):
        compat.hosted(**arguments)


def test_async_classes_need_no_hosting() -> None:
    """A class with an async handle() is refused."""

    class Handler(socketserver.StreamRequestHandler):
        async def handle(self) -> None:
            pass

    for handler in (Handler, functools.partial(Handler), aserver.StreamRequestHandler):
        with pytest.raises(
            TypeError, match=r"StreamRequestHandler|Handler.handle\(\) is async, which needs no hosting"
        ):
            compat.hosted(handler)


async def test_sessions_are_refused(aserver_log: LogBook) -> None:
    """A session is nothing that a legacy handler knows: the server's log says so."""
    native = udp(DatagramEcho, sessions=aserver.Sessions(idle_timeout=None))
    async with running(native) as server:
        with datagram_client(server.server_address) as client:
            client.send(b"hello")
            await until(lambda: server.statistics().failed)
    aserver_log.take("raised")


# --- stopping


async def test_draining_is_visible_and_input_ends(quick_drain: None, gate: threading.Event) -> None:
    """When the server stops, handlers see it; recv() then returns b"" and a last answer can still be sent."""
    draining: list[bool] = []

    class Handler(Echo):
        def handle(self) -> None:
            draining.append(self.server.draining)  # type: ignore[attr-defined]  # ours
            self.wfile.write(self.rfile.readline())
            assert self.rfile.readline() == b""
            draining.append(self.server.draining)  # type: ignore[attr-defined]  # as above
            self.wfile.write(b"goodbye\n")

    async with running(tcp(compat.hosted(Handler))) as server:
        with await in_thread(connect, server.server_address) as client:
            assert await in_thread(client.ask, b"hello\n") == b"hello\n"
            report = await server.shutdown()
            assert await in_thread(client.read_until_eof) == b"goodbye\n"
    assert draining == [False, True]
    assert report == aserver.ShutdownReport(finished=1, cancelled=0, aborted=0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere input is ended only where nothing is unread")
async def test_what_is_unread_is_served_before_the_end(quick_drain: None, gate: threading.Event) -> None:
    """A handler that is busy when the server stops finds what its peer had sent before, and then the end."""

    class Handler(Echo):
        def handle(self) -> None:
            self.wfile.write(b"begun\n")
            gate.wait(END_TIMEOUT)
            super().handle()

    async with running(tcp(compat.hosted(Handler))) as server:
        with await in_thread(connect, server.server_address) as client:
            assert await in_thread(client.ask, b"1\n2\n") == b"begun\n"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.shutdown)
                await anyio.sleep(0.1)  # until input has ended; if that takes longer, the answer is the same
                gate.set()
            assert await in_thread(client.read_until_eof) == b"1\n2\n"


async def test_a_hung_handler_is_left_behind(gate: threading.Event) -> None:
    """At the end of the grace the connection is shut down under the handler, and the server does not wait for it."""
    ended = threading.Event()

    class Handler(Echo):
        def handle(self) -> None:
            self.wfile.write(b"begun\n")
            assert self.rfile.read() == b""  # shut down
            gate.wait(END_TIMEOUT)
            ended.set()
            raise LookupError("nobody hears of this any more")

    async with running(tcp(compat.hosted(Handler))) as server:
        with await in_thread(connect, server.server_address) as client:
            assert await in_thread(client.ask, b"") == b"begun\n"
            report = await server.shutdown(0)
            assert report == aserver.ShutdownReport(finished=0, cancelled=1, aborted=0)
            assert await in_thread(client.read_until_eof) == b""
    assert not ended.is_set()
    gate.set()
    assert await in_thread(ended.wait, END_TIMEOUT)


def test_a_hung_handler_does_not_hold_up_the_program(tmp_path: Path) -> None:
    """A program that is told to end does so although a handler in a thread never returns."""
    file = write(
        tmp_path / "program.py",
        """
        import threading
        import aserver, compat
        from compat import socketserver

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"begun\\n")
                threading.Event().wait()

        class Server(aserver.TCPServer):
            async def serve_forever(self, **options):
                print("listening on", self.endpoints[0], flush=True)
                await super().serve_forever(**options)

        aserver.run(Server(("127.0.0.1", 0), compat.hosted(Handler)), grace=0.1)
        """,
    )
    with Program(tmp_path, file) as program, connect(program.address()) as client:
        assert client.read_until() == b"begun\n"
        program.signal(signal.SIGTERM)
        ended = program.end()
    assert ended.status == 1
    assert "Traceback" not in ended.errors


# --- waiting for data


def silent_clients() -> int:
    """How many clients a test may have, beside their counterparts and what else is open; 600 tell enough."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(600, (soft - 200) // 2)


async def test_silent_clients_cost_no_thread() -> None:
    """Clients that say nothing take no thread, so that an active one is served at once, by the only thread there is."""
    count = silent_clients()
    limits = aserver.Limits(max_connections=count + 10)
    native = tcp(compat.hosted(Echo, max_workers=1, wait_for_data=True), limits=limits)

    def connect_all() -> list[Any]:
        return [connect(native.server_address) for _ in range(count)]

    async with running(native, safety=25.0) as server:
        clients = await in_thread(connect_all)
        try:
            await until(lambda: server.statistics().open == count)
            before = threading.active_count()
            for _ in range(3):
                assert await in_thread(ask, server.server_address, b"hello\n") == b"hello\n"
            assert threading.active_count() <= before + 1
            assert await in_thread(clients[count // 2].ask, b"hello\n") == b"hello\n"
            report = await server.shutdown()  # silent ones are not waited for, not even for the second of others
            assert report.clean
            for client in clients:
                assert await in_thread(client.read_until_eof) == b""
        finally:
            for client in clients:
                client.close()


async def test_a_client_that_never_speaks_has_no_handler(aserver_log: LogBook) -> None:
    """A connection that ends, or is lost, before its first byte is over without a handler."""
    made: list[None] = []

    class Handler(Echo):
        def handle(self) -> None:
            made.append(None)

    async with running(tcp(compat.hosted(Handler, wait_for_data=True))) as server:
        with await in_thread(connect, server.server_address) as client:
            client.end()
            assert await in_thread(client.read_until_eof) == b""
        client = await in_thread(connect, server.server_address)
        await until(lambda: server.statistics().open == 1)
        client.reset()
        await until(lambda: server.statistics().lost == 1)
        assert server.statistics().completed == 1
    assert made == []


async def test_a_silent_client_may_be_cancelled() -> None:
    """A server that is left without a shutdown closes its silent connections."""
    async with running(tcp(compat.hosted(Echo, wait_for_data=True))) as server:
        client = await in_thread(connect, server.server_address)
        await until(lambda: server.statistics().open == 1)
    with client:
        assert await in_thread(client.read_until_eof) == b""


# --- the door


def test_hosted_is_imported_when_asked_for(tmp_path: Path) -> None:
    """`import compat` imports neither anyio nor aserver; `compat.hosted` does."""
    file = write(
        tmp_path / "program.py",
        """
        import sys
        import compat
        print(sorted({"asyncio", "anyio", "aserver"} & set(sys.modules)))
        from compat import hosted
        print(hosted is compat.hosted, "aserver" in sys.modules)
        """,
    )
    with Program(tmp_path, file) as program:
        ended = program.end()
    assert (ended.output, ended.errors) == ("[]\nTrue True\n", "")

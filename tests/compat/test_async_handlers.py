"""Async handlers in the classic hierarchy: `async def handle` beside handlers that block, and the same hooks."""

from __future__ import annotations

import functools
import os
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
from compat import socketserver

from ..peers import ask, ask_datagram, connect, datagram_client
from ..programs import Program, write
from .servers import END_TIMEOUT, Echo, needs_threads_after_main, serving

LOOPBACK = ("127.0.0.1", 0)
LOOP = "compat event loop"
STREAM_SERVERS = [
    socketserver.TCPServer,
    socketserver.ThreadingTCPServer,
    socketserver.UnixStreamServer,
    socketserver.ThreadingUnixStreamServer,
]
DATAGRAM_SERVERS = [
    socketserver.UDPServer,
    socketserver.ThreadingUDPServer,
    socketserver.UnixDatagramServer,
    socketserver.ThreadingUnixDatagramServer,
]


class AsyncEcho(socketserver.StreamRequestHandler):
    """Send every line back, from the event loop."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line)


class AsyncDatagramEcho(socketserver.DatagramRequestHandler):
    """Send every datagram back, from the event loop."""

    async def handle(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.wfile.write(self.rfile.read())


@pytest.fixture
def address(tmp_path: Path) -> Any:
    """Gives the address for a class of servers."""

    def for_class(cls: Any) -> Any:
        return str(tmp_path / "server") if cls.address_family == socket.AF_UNIX else LOOPBACK

    return for_class


@pytest.fixture
def hooked() -> Iterator[list[threading.ExceptHookArgs]]:
    """What threading.excepthook is told."""
    told: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, told.append
    try:
        yield told
    finally:
        threading.excepthook = before


def thread_name() -> str:
    """The name of the thread that asks."""
    return threading.current_thread().name


def no_loop() -> bool:
    """Whether there is no thread with a loop of ours."""
    return LOOP not in [thread.name for thread in threading.enumerate()]


# --- requests


@pytest.mark.parametrize("cls", STREAM_SERVERS)
def test_connections(cls: Any, address: Any) -> None:
    """A handler with `async def handle` serves connections in the loop's thread, with an aserver.Stream."""
    seen: list[Any] = []

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            seen.append((thread_name(), type(self.request), self.connection is self.request, self.server is server))
            await super().handle()

    server = cls(address(cls), Handler)
    with serving(server):
        for text in (b"1\n", b"2\n"):
            assert ask(server.server_address, text) == text
    assert seen == [(LOOP, aserver.Stream, True, True)] * 2
    assert no_loop()


@pytest.mark.parametrize("cls", DATAGRAM_SERVERS)
def test_datagrams(cls: Any, address: Any) -> None:
    """An async datagram handler has its packet and its files as ever, and what it wrote is sent when it ends."""
    server = cls(address(cls), AsyncDatagramEcho)
    with serving(server):
        for text in (b"1", b"2", b""):
            assert ask_datagram(server.server_address, text) == text


def test_many_at_once_on_a_plain_server() -> None:
    """Async handlers of a plain server run at the same time: each may wait for the others."""
    arrived = 0
    everybody = anyio.Event()

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            nonlocal arrived
            arrived += 1
            if arrived == 20:
                everybody.set()
            await everybody.wait()
            await super().handle()

    server = type("Server", (socketserver.TCPServer,), {"request_queue_size": 20})(LOOPBACK, Handler)
    with serving(server):
        clients = [connect(server.server_address) for _ in range(20)]
        for client in clients:
            with client:
                assert client.ask(b"hello\n") == b"hello\n"


def test_both_kinds_in_one_server() -> None:
    """RequestHandlerClass is looked up for each request, and may be async for one and legacy for the next."""
    server = socketserver.TCPServer(LOOPBACK, Echo)
    with serving(server):
        for handler in (Echo, AsyncEcho, Echo, AsyncEcho):
            server.RequestHandlerClass = handler
            assert ask(server.server_address, b"hello\n") == b"hello\n"


def test_a_class_replaced_on_the_way() -> None:
    """A legacy class that takes the place of an async one while a request is on its way does not run in the loop."""
    seen: list[str] = []

    class Legacy(Echo):
        def handle(self) -> None:
            seen.append(thread_name())
            assert self.request.gettimeout() is None
            super().handle()

    class Server(socketserver.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            self.RequestHandlerClass = Legacy
            gate.set()

    class Holding(AsyncEcho):
        async def handle(self) -> None:
            await super().handle()
            gate.wait(END_TIMEOUT)  # holds the loop until the next one is on its way

    gate = threading.Event()
    server = Server(LOOPBACK, Holding)
    with serving(server):
        with connect(server.server_address) as first:
            assert first.ask(b"1\n") == b"1\n"
            server.RequestHandlerClass = Holding
            gate.clear()
        assert ask(server.server_address, b"2\n") == b"2\n"
    assert seen
    assert LOOP not in seen


@pytest.mark.parametrize("make", [functools.partial, lambda cls: lambda *args: cls(*args)])
@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_any_callable(cls: Any, make: Any) -> None:
    """RequestHandlerClass may be any callable that makes an async handler."""
    server = cls(LOOPBACK, make(AsyncEcho))
    with serving(server):
        assert ask(server.server_address, b"hello\n") == b"hello\n"


def test_in_a_forked_child(tmp_path: Path) -> None:
    """A forking server runs the handler in its child, in a loop there; the parent has no loop and no thread."""
    pids: list[int] = []

    class Handler(socketserver.StreamRequestHandler):
        async def handle(self) -> None:
            line = await self.rfile.readline()
            await self.wfile.write(b"%d %s" % (os.getpid(), line))

    class Server(socketserver.ForkingTCPServer):
        def service_actions(self) -> None:
            super().service_actions()
            if not no_loop():
                pids.append(0)

    server = Server(LOOPBACK, Handler)
    with serving(server):
        for _ in range(2):
            pid, line = ask(server.server_address, b"hello\n").split()
            assert line == b"hello"
            pids.append(int(pid))
    assert len(set(pids)) == 2
    assert not {0, os.getpid()} & set(pids)


@pytest.mark.parametrize(
    "mixin, base", [(socketserver.ThreadingMixIn, stdlib.TCPServer), (stdlib.ThreadingMixIn, socketserver.TCPServer)]
)
def test_ours_and_theirs_mix(mixin: Any, base: Any) -> None:
    """An async handler is served by a server that is half the standard library's."""
    server = type("Server", (mixin, base), {})(LOOPBACK, AsyncEcho)
    with serving(server, 0.05):
        assert ask(server.server_address, b"hello\n") == b"hello\n"
    assert no_loop()


# --- hooks


@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_hooks_and_their_threads(cls: Any) -> None:
    """The hooks come in their order, up to process_request in the serving thread, the others in the loop's."""
    calls: list[tuple[str, str]] = []
    requests: set[int] = set()

    class Server(cls):  # type: ignore[misc]  # a parameter
        def __getattribute__(self, name: str) -> Any:
            if name in HOOKS:
                calls.append((name, thread_name()))
            return super().__getattribute__(name)

        def shutdown_request(self, request: Any) -> None:
            requests.add(request.fileno())
            super().shutdown_request(request)

    class Handler(AsyncEcho):
        async def setup(self) -> None:
            calls.append(("setup", thread_name()))
            super().setup()

        async def handle(self) -> None:
            calls.append(("handle", thread_name()))
            await super().handle()

        def finish(self) -> None:
            calls.append(("finish", thread_name()))
            super().finish()

    server = Server(LOOPBACK, Handler)
    with serving(server) as thread:
        assert ask(server.server_address, b"hello\n") == b"hello\n"
        # the next one's hooks come behind those of the first
    main = thread.name
    assert calls == [(name, main) for name in HOOKS[:3]] + [
        (name, LOOP) for name in ("finish_request", "setup", "handle", "finish", "shutdown_request", "close_request")
    ]
    assert min(requests) >= 0  # it was still open


#: In their order.
HOOKS = ["get_request", "verify_request", "process_request", "finish_request", "shutdown_request", "close_request"]


def test_finish_request_with_more_arguments() -> None:
    """A finish_request() of the program's own may give the class more arguments."""

    class Handler(AsyncEcho):
        def __init__(self, request: Any, client_address: Any, server: Any, greeting: bytes = b"") -> None:
            self.greeting = greeting
            super().__init__(request, client_address, server)
            assert isinstance(self.request, aserver.Stream)

        async def handle(self) -> None:
            await self.wfile.write(self.greeting)

    class Server(socketserver.ThreadingTCPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            Handler(request, client_address, self, b"hello\n")

    server = Server(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"") == b"hello\n"


@pytest.mark.parametrize("make", [lambda cls: cls, lambda cls: lambda *args: cls(*args)])
def test_errors_are_handle_errors(make: Any) -> None:
    """What a handler raises is told to handle_error() while it is handled, after finish(); serving goes on."""
    calls: list[Any] = []

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            await super().handle()
            raise LookupError("lost")

        async def finish(self) -> None:
            calls.append("finish")

    class Server(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            calls.append((sys.exc_info()[0], request.fileno() >= 0, client_address))

        def shutdown_request(self, request: Any) -> None:
            calls.append("shutdown_request")
            super().shutdown_request(request)

    server = Server(LOOPBACK, make(Handler))
    with serving(server):
        for _ in range(2):
            with connect(server.server_address) as client:
                name = client.sock.getsockname()
                assert client.ask(b"hello\n") == b"hello\n"
                client.end()
                assert client.read_until_eof() == b""
            while calls[-1:] != ["shutdown_request"]:  # the peer sees the end a moment before
                os.sched_yield()
            assert calls == ["finish", (LookupError, True, name), "shutdown_request"]
            calls.clear()


def test_a_failed_setup_is_all(capsys: pytest.CaptureFixture[str]) -> None:
    """When setup() fails, neither handle() nor finish() is called."""
    calls: list[str] = []

    class Handler(AsyncEcho):
        async def setup(self) -> None:
            raise LookupError("lost")

        async def handle(self) -> None:
            calls.append("handle")

        def finish(self) -> None:
            calls.append("finish")

    server = socketserver.TCPServer(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"") == b""
    assert calls == []
    assert "LookupError: lost" in capsys.readouterr().err


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exits_end_their_request_only(error: type[BaseException], hooked: list[threading.ExceptHookArgs]) -> None:
    """A handler that raises SystemExit ends its own request, without handle_error(), as it does in a thread."""

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            raise error

    class Server(socketserver.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise AssertionError("called")

    server = Server(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"") == b""
        server.RequestHandlerClass = AsyncEcho
        assert ask(server.server_address, b"hello\n") == b"hello\n"
    assert [told.exc_type for told in hooked] == [error]


def test_hooks_that_raise(hooked: list[threading.ExceptHookArgs]) -> None:
    """A hook that raises in the loop's thread is told by threading.excepthook; the request is closed all the same."""

    class Server(socketserver.TCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise RuntimeError("handle_error")

        def close_request(self, request: Any) -> None:
            super().close_request(request)
            raise RuntimeError("close_request")

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            raise LookupError("lost")

    server = Server(LOOPBACK, Handler)
    with serving(server):
        for _ in range(2):
            assert ask(server.server_address, b"") == b""
    assert [str(told.exc_value) for told in hooked] == ["close_request"] * 2
    assert {repr(told.exc_value.__context__) for told in hooked if told.exc_value} == {"RuntimeError('handle_error')"}


def test_the_semaphore_idiom() -> None:
    """A process_request_thread() of the program's own is called once for each request, and lasts as long as it does."""
    bound = threading.BoundedSemaphore(2)
    names: list[str] = []

    class Server(socketserver.ThreadingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            assert bound.acquire(timeout=END_TIMEOUT)
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                names.append(thread_name())
                bound.release()

    server = Server(LOOPBACK, AsyncEcho)
    with serving(server):
        for _ in range(6):
            assert ask(server.server_address, b"hello\n") == b"hello\n"
    assert len(set(names)) == 6


def test_unread_input_is_no_hindrance() -> None:
    """A handler that leaves input unread ends like any other, and shutdown_request() finds the socket open."""
    opened: list[bool] = []

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            await self.wfile.write(await self.rfile.readline())

    class Server(socketserver.TCPServer):
        def shutdown_request(self, request: Any) -> None:
            opened.append(request.fileno() >= 0)
            super().shutdown_request(request)

    server = Server(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"1\n2\n3\n") == b"1\n"
    assert opened == [True]


# --- what cannot be


def refusal(handler: Any, *, prepare: Any = None) -> str:
    """What handle_error() is told when *handler* is to serve a connection."""
    told: list[str] = []

    class Server(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            told.append(f"{type(sys.exception()).__name__}: {sys.exception()}")

        def get_request(self) -> Any:
            request, client_address = super().get_request()
            return (request if prepare is None else prepare(request)), client_address

    server = Server(LOOPBACK, handler)
    with serving(server), connect(server.server_address) as client:
        assert client.read_until_eof() == b""
    (text,) = told
    return text


def test_tls_is_refused() -> None:
    """A TLS connection and an async handler: an error that says so, and the connection is closed."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def wrap(request: Any) -> Any:
        return context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)

    for handler in (AsyncEcho, lambda *args: AsyncEcho(*args)):
        text = refusal(handler, prepare=wrap)
        assert text.startswith("TypeError: ")
        assert "TLS connection, which async handlers cannot serve yet" in text


def test_a_timeout_is_refused() -> None:
    """The attribute `timeout`, which async handlers do not have, is not ignored in silence."""

    class Handler(AsyncEcho):
        timeout = 5.0

    assert "Handler.timeout is 5.0, which async handlers do not have" in refusal(Handler)


def test_what_is_no_connection_is_refused() -> None:
    """A request that is no socket cannot be read from by a StreamRequestHandler."""

    class Wrapper:
        def __init__(self, sock: Any) -> None:
            self.shutdown, self.close = sock.shutdown, sock.close

    assert "needs a connection, a stream socket" in refusal(AsyncEcho, prepare=Wrapper)


def test_a_class_of_aserver_is_refused() -> None:
    """A handler class of aserver would not be served: an error says so."""
    assert "the class is none of compat.socketserver's" in refusal(aserver.StreamRequestHandler)


def test_constructors_do_not_wait_in_the_loop() -> None:
    """A handler that is made by a handler: an error in place of a deadlock."""

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            AsyncEcho(self.request, self.client_address, self.server)

    assert "cannot wait for handle()" in refusal(Handler)


def test_without_a_server_nothing_happens() -> None:
    """A handler that is made without a server, by a test, does nothing by itself."""

    class Handler(socketserver.BaseRequestHandler):
        async def handle(self) -> None:
            seen.append(self.request)

    seen: list[str] = []
    handler = Handler("request", None, None)
    assert seen == []
    anyio.run(handler.handle)
    assert seen == ["request"]


# --- datagrams


def test_an_answer_that_waits_for_room(tmp_path: Path) -> None:
    """A Unix peer that does not read its answers holds up its own, not the others', and gets all in the end."""
    server = socketserver.UnixDatagramServer(str(tmp_path / "server"), AsyncDatagramEcho)
    with serving(server), datagram_client(str(tmp_path / "server")) as lazy:
        count = 40  # more than its queue has room for
        for number in range(count):
            lazy.send(b"%d" % number)
        assert ask_datagram(str(tmp_path / "server"), b"hello") == b"hello"
        assert sorted(int(lazy.recv()) for _ in range(count)) == list(range(count))


def test_a_flood_of_datagrams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datagrams beyond the bound are lost; those within it are served."""
    from compat import _side

    monkeypatch.setattr(_side, "MAX_DATAGRAMS", 3)
    gate = anyio.Event()
    begun: list[bytes] = []

    class Handler(AsyncDatagramEcho):
        async def handle(self) -> None:
            begun.append(self.packet)
            if self.packet == b"go":
                gate.set()
            await gate.wait()
            await super().handle()

    server = socketserver.UDPServer(LOOPBACK, Handler)
    with serving(server), datagram_client(server.server_address) as client:
        client.send(b"1")
        client.send(b"2")
        while len(begun) < 2:
            os.sched_yield()
        client.send(b"go")
        assert sorted(client.recv() for _ in range(3)) == [b"1", b"2", b"go"]


# --- the end


def test_shutdown_does_not_wait() -> None:
    """shutdown() leaves async handlers alone; they go on until the server is closed."""
    server = socketserver.TCPServer(LOOPBACK, AsyncEcho)
    with serving(server), connect(server.server_address) as client:
        assert client.ask(b"1\n") == b"1\n"
        server.shutdown()
        assert client.ask(b"2\n") == b"2\n"


@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_closing_waits_for_handlers(cls: Any) -> None:
    """server_close() waits for handlers, which see `draining`; a connection between two requests ends at once."""
    draining = threading.Event()
    log: list[str] = []

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            if await self.rfile.readline() == b"work\n":
                await self.wfile.write(b"begun\n")
                while not self.request.draining:
                    await anyio.lowlevel.checkpoint()
                draining.set()
                await self.wfile.write(b"done\n")
            else:
                await self.wfile.write(b"idle\n")
                await self.rfile.readline()
            log.append("ended")

    server = cls(LOOPBACK, Handler)
    with connect(server.server_address) as busy, connect(server.server_address) as idle:
        with serving(server):
            assert busy.ask(b"work\n") == b"begun\n"
            assert idle.ask(b"rest\n") == b"idle\n"
        assert log == ["ended"] * 2
        assert draining.is_set()
        assert (busy.read_until_eof(), idle.read_until_eof()) == (b"done\n", b"")


@pytest.mark.parametrize(
    "cls, attributes",
    [
        (socketserver.TCPServer, {"block_on_close": False}),
        (socketserver.ThreadingTCPServer, {"block_on_close": False}),
        (socketserver.ThreadingTCPServer, {"daemon_threads": True}),
    ],
)
def test_closing_without_waiting_cancels(cls: Any, attributes: dict[str, bool]) -> None:
    """With block_on_close off, or with daemon threads, server_close() cancels async handlers and does not wait."""
    cancelled = threading.Event()

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            try:
                await super().handle()
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled.set()
                raise

    server = type("Server", (cls,), attributes)(LOOPBACK, Handler)
    with serving(server):
        client = connect(server.server_address)
        assert client.ask(b"hello\n") == b"hello\n"
        client.end()
    with client:
        assert client.read_until_eof() == b""
    assert cancelled.wait(END_TIMEOUT)


def test_a_handler_may_close_the_server() -> None:
    """server_close() in an async handler does not wait for that handler."""

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            self.server.server_close()
            await self.wfile.write(b"closed\n")

    server = socketserver.TCPServer(LOOPBACK, Handler)
    with serving(server):
        assert ask(server.server_address, b"") == b"closed\n"


def test_a_request_of_a_closed_server_is_closed() -> None:
    """A request that was accepted before the server was closed, and comes too late for the loop, is closed."""
    server = socketserver.TCPServer(LOOPBACK, AsyncEcho)
    with connect(server.server_address) as client:
        request, client_address = server.get_request()
        server.server_close()
        server.process_request(request, client_address)
        assert client.read_until_eof() == b""
    assert no_loop()


def test_a_request_that_is_closed_already_hurts_nobody() -> None:
    """A hook that has closed the request before it comes into the loop ends that request only."""

    class Server(socketserver.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            if not served:
                request.close()
            served.append(client_address)
            super().process_request(request, client_address)

    served: list[Any] = []
    server = Server(LOOPBACK, AsyncEcho)
    with serving(server):
        with connect(server.server_address) as client:
            assert client.read_until_eof() == b""
        assert ask(server.server_address, b"hello\n") == b"hello\n"


def test_a_server_may_begin_again() -> None:
    """An object that is initialised again after its end serves async handlers again, in a new loop."""
    server = socketserver.TCPServer(LOOPBACK, AsyncEcho)
    for _ in range(2):
        with serving(server):
            assert ask(server.server_address, b"hello\n") == b"hello\n"
        server.__init__(LOOPBACK, AsyncEcho)  # type: ignore[misc]  # what Patroni does to reload
    server.server_close()


def test_servers_share_a_loop() -> None:
    """Handlers of two servers run in one loop, which ends with the last of them."""
    tasks: list[Any] = []

    class Handler(AsyncEcho):
        async def handle(self) -> None:
            tasks.append(anyio.lowlevel.current_token())
            await super().handle()

    with (
        serving(socketserver.TCPServer(LOOPBACK, Handler)) as _,
        serving(other := socketserver.TCPServer(LOOPBACK, Handler)),
    ):
        assert ask(other.server_address, b"1\n") == b"1\n"
    first, second = (socketserver.TCPServer(LOOPBACK, Handler) for _ in range(2))
    with serving(first):
        with serving(second):
            for server in (first, second):
                assert ask(server.server_address, b"1\n") == b"1\n"
        assert ask(first.server_address, b"1\n") == b"1\n"
    assert tasks[0] != tasks[1] == tasks[2] == tasks[3]


# --- programs


PROGRAM = """
    import os, sys, threading, signal
    from compat import socketserver

    class Handler(socketserver.StreamRequestHandler):
        async def handle(self):
            try:
                async for line in self.rfile:
                    await self.wfile.write(line)
            finally:
                os.write(1, b"ended\\n")

    class Legacy(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    print("listening on tcp://127.0.0.1:%d" % server.server_address[1], flush=True)
"""


def test_the_end_of_the_program(tmp_path: Path) -> None:
    """A program that ends without server_close() ends at once, cleans its handlers up, and complains of nothing."""
    file = write(
        tmp_path / "program.py",
        PROGRAM
        + """
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.readline()
    """,
    )
    with Program(tmp_path, "-X", "dev", file) as program:
        with connect(program.address()) as client:
            assert client.ask(b"hello\n") == b"hello\n"
            program.stdin.write("end\n")
            program.stdin.flush()
            assert client.read_until_eof() == b""
            ended = program.end()
    assert (ended.status, ended.output, ended.errors) == (0, "ended\n", "")


def test_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C in the main thread comes out of serve_forever at once, and closing the server then ends idle handlers."""
    file = write(
        tmp_path / "program.py",
        PROGRAM
        + """
    try:
        with server:
            server.serve_forever()
    except KeyboardInterrupt:
        os.write(1, b"interrupted\\n")
    """,
    )
    with Program(tmp_path, "-X", "dev", file) as program, connect(program.address()) as client:
        assert client.ask(b"hello\n") == b"hello\n"
        program.signal(signal.SIGINT)
        ended = program.end()
    assert (ended.status, ended.output, ended.errors) == (0, "ended\ninterrupted\n", "")


def test_ctrl_c_while_a_constructor_waits(tmp_path: Path) -> None:
    """Ctrl-C reaches a main thread that waits for an async handler in its constructor; the handler is cancelled."""
    file = write(
        tmp_path / "program.py",
        PROGRAM.replace("ThreadingTCPServer", "TCPServer")
        .replace("Handler)", "lambda *args: Handler(*args))", 1)
        .replace("StreamRequestlambda *args: Handler(*args))", "StreamRequestHandler)", 1)
        + """
    server.RequestHandlerClass = lambda *args: Handler(*args)
    try:
        with server:
            server.serve_forever()
    except KeyboardInterrupt:
        os.write(1, b"interrupted\\n")
    """,
    )
    with Program(tmp_path, "-X", "dev", file) as program, connect(program.address()) as client:
        assert client.ask(b"hello\n") == b"hello\n"
        program.signal(signal.SIGINT)
        ended = program.end()
    assert (ended.status, ended.output, ended.errors) == (0, "ended\ninterrupted\n", "")


@needs_threads_after_main
def test_serving_on_when_the_main_thread_has_ended(tmp_path: Path) -> None:
    """A server in a thread that is no daemon serves async handlers also when the main thread has returned before."""
    file = write(
        tmp_path / "program.py",
        PROGRAM
        + """
    def serve():
        threading.main_thread().join()
        server.serve_forever()
        server.server_close()

    class Last(Handler):
        async def handle(self):
            await super().handle()
            self.server._BaseServer__shutdown_request = True

    server.RequestHandlerClass = Last
    threading.Thread(target=serve).start()
    """,
    )
    with Program(tmp_path, file) as program:
        address = program.address()
        with connect(address) as client:
            assert client.ask(b"hello\n") == b"hello\n"
        ended = program.end()
    assert (ended.status, ended.output, ended.errors) == (0, "ended\n", "")


def test_plain_programs_pay_nothing(tmp_path: Path) -> None:
    """A program without async handlers imports neither asyncio nor anyio nor aserver, and has no thread of ours."""
    file = write(
        tmp_path / "program.py",
        PROGRAM
        + """
    server.RequestHandlerClass = Legacy
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever).start()
    sys.stdin.readline()
    server.shutdown()
    server.server_close()
    print(sorted({"asyncio", "anyio", "aserver", "uvloop"} & set(sys.modules)), threading.active_count())
    """,
    )
    with Program(tmp_path, file) as program:
        assert ask(program.address(), b"hello\n") == b"hello\n"
        program.stdin.write("end\n")
        program.stdin.flush()
        assert program.wait_for("[") in ("[] 1", "[] 2")  # with the client's thread, or without


def test_a_forked_child_has_a_loop_of_its_own(tmp_path: Path) -> None:
    """A child that was forked from a process with a loop serves async handlers in a new one."""
    file = write(
        tmp_path / "program.py",
        PROGRAM
        + """
    import warnings
    warnings.simplefilter("ignore")  # forking with threads is what is asked for here

    for _ in range(2):
        server.handle_request()
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            os._exit(0)
    """,
    )
    with Program(tmp_path, file) as program:
        address = program.address()
        for _ in range(2):
            assert ask(address, b"hello\n") == b"hello\n"
        assert program.end().status == 0

"""The promises of `aserver._handlers`: what is a handler, in which order its methods run, and the words of files."""

from __future__ import annotations

import array
import functools
import socketserver
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aserver

from .conftest import LogBook
from .peers import Client, ask_datagram, connect, datagram_client, in_thread, talk
from .test_datagram_server import serving
from .test_server import OwnError, running, tcp, until

pytestmark = pytest.mark.anyio

Work = Callable[[aserver.StreamRequestHandler], Awaitable[None]]


def file_words(work: Work) -> type[aserver.StreamRequestHandler]:
    """A `StreamRequestHandler` whose handle() is *work*."""

    class Handler(aserver.StreamRequestHandler):
        async def handle(self) -> None:
            await work(self)

    return Handler


async def said(handler: Any, data: bytes, **limits: Any) -> bytes:
    """Everything that a server with *handler* answers to *data* and the end of the client's side."""
    async with running(tcp(handler, limits=aserver.Limits(**limits))) as server:
        return await in_thread(talk, server.server_address, data)


# --- what is a handler -----------------------------------------------------------------------------------------------


async def function(stream: aserver.Stream) -> None:
    """Answer the first line in capitals."""
    await stream.send((await stream.readline()).upper())


async def with_options(prefix: bytes, stream: aserver.Stream, *, end: bytes) -> None:
    """Answer the first line between two strings."""
    await stream.send(prefix + (await stream.readline()).upper().strip() + end)


class Callee:
    """Callable objects and bound methods that are handlers."""

    async def __call__(self, stream: aserver.Stream) -> None:
        await function(stream)

    async def method(self, stream: aserver.Stream) -> None:
        await function(stream)

    @staticmethod
    async def static(stream: aserver.Stream) -> None:
        await function(stream)

    @classmethod
    async def of_class(cls, stream: aserver.Stream) -> None:
        await function(stream)


class Native(aserver.BaseRequestHandler):
    async def handle(self) -> None:
        await function(self.request)


class WithoutBase:
    """A handler class that derives from nothing of ours."""

    def __init__(self, request: aserver.Stream, client_address: Any, server: Any) -> None:
        self.request = request

    def setup(self) -> None:
        pass

    async def handle(self) -> None:
        await function(self.request)

    def finish(self) -> None:
        pass


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(function, id="function"),
        pytest.param(functools.partial(function), id="partial"),
        pytest.param(functools.partial(functools.partial(with_options, b""), end=b"\n"), id="partial-of-partial"),
        pytest.param(Callee(), id="callable-object"),
        pytest.param(Callee().method, id="bound-method"),
        pytest.param(functools.partial(Callee().method), id="partial-of-method"),
        pytest.param(Callee.static, id="staticmethod"),
        pytest.param(Callee.of_class, id="classmethod"),
        pytest.param(Native, id="class"),
        pytest.param(WithoutBase, id="class-without-base"),
    ],
)
async def test_every_form_of_handler(handler: Any) -> None:
    """Async functions in every disguise and handler classes are handlers."""
    assert await said(handler, b"hello\n") == b"HELLO\n"


def plain(stream: aserver.Stream) -> None:
    """A function that is not async."""


async def generator(stream: aserver.Stream) -> Any:
    """An async generator, which nobody can await."""
    yield stream


class PlainCallee:
    def __call__(self, stream: aserver.Stream) -> None:
        pass


class PlainHandle(aserver.BaseRequestHandler):
    def handle(self) -> None:  # type: ignore[override]  # that is the mistake
        pass


class OnlyHandle:
    async def handle(self) -> None:
        pass


class Nothing:
    pass


class Legacy(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        pass


NEITHER = "it must be an async function of the stream or a handler class"


@pytest.mark.parametrize(
    "handler, texts",
    [
        pytest.param(plain, ["<function plain at 0x", NEITHER], id="sync-function"),
        pytest.param(lambda stream: stream.aclose(), ["<lambda>", NEITHER], id="lambda"),
        pytest.param(functools.partial(plain), ["functools.partial(<function plain", NEITHER], id="sync-partial"),
        pytest.param(generator, ["<function generator", NEITHER], id="async-generator"),
        pytest.param(PlainCallee(), ["PlainCallee object", NEITHER], id="sync-callable-object"),
        pytest.param(object(), ["the handler is <object object at 0x", NEITHER], id="object"),
        pytest.param(None, ["the handler is None", NEITHER], id="none"),
        pytest.param("module:handler", ["the handler is 'module:handler'", NEITHER], id="string"),
        pytest.param(
            PlainHandle, ["PlainHandle.handle() is not async", "make it 'async def handle'"], id="sync-handle"
        ),
        pytest.param(Legacy, ["Legacy.handle() is not async", "compat.hosted(Legacy)"], id="socketserver-class"),
        pytest.param(
            socketserver.BaseRequestHandler,
            ["BaseRequestHandler.handle() is not async", "compat.hosted("],
            id="socketserver-base",
        ),
        pytest.param(
            OnlyHandle,
            ["OnlyHandle has no setup", "no finish()", "derive it from aserver.BaseRequestHandler"],
            id="only-handle",
        ),
        pytest.param(
            Nothing,
            ["Nothing has no setup", "no handle", "no finish()", "derive it from aserver.BaseRequestHandler"],
            id="no-methods",
        ),
        pytest.param(int, ["int has no setup", "derive it from aserver.BaseRequestHandler"], id="foreign-class"),
    ],
)
def test_wrong_handler_fails_at_construction(handler: Any, texts: list[str]) -> None:
    """What cannot be a handler is a TypeError at construction, which has the value and says what to do instead."""
    with pytest.raises(TypeError) as caught:
        tcp(handler)
    for text in texts:
        assert text in str(caught.value)


def test_an_instance_of_a_handler_class_is_no_handler() -> None:
    """An instance where the class belongs is a TypeError."""
    with pytest.raises(TypeError, match=NEITHER):
        tcp(WithoutBase(None, None, None))  # type: ignore[arg-type]  # never used


# --- the class -------------------------------------------------------------------------------------------------------


class Told(aserver.BaseRequestHandler):
    """Tells the order of its methods; all of them async."""

    told: list[Any]

    def note(self, what: str) -> None:
        type(self).told.append((what, id(self)))

    async def setup(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.note("setup")

    async def handle(self) -> None:
        self.note("handle")
        await function(self.request)

    async def finish(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.note("finish")


class ToldPlainly(Told):
    """The same with plain setup and finish."""

    def setup(self) -> None:  # type: ignore[override]  # promised: both may be plain
        self.note("setup")

    def finish(self) -> None:  # type: ignore[override]  # as above
        self.note("finish")


@pytest.mark.parametrize("base", [Told, ToldPlainly])
async def test_order_of_the_methods(base: type[Told]) -> None:
    """setup, handle, finish run in this order on one instance, whether setup and finish are async or plain."""

    class Handler(base):  # type: ignore[valid-type, misc]  # a class per test, for its own list
        told: list[Any] = []  # noqa: RUF012 - the test's

    assert await said(Handler, b"hello\n") == b"HELLO\n"
    assert [what for what, _ in Handler.told] == ["setup", "handle", "finish"]
    assert len({who for _, who in Handler.told}) == 1


@pytest.mark.parametrize("base", [Told, ToldPlainly])
@pytest.mark.parametrize("error", [OwnError("mine"), KeyboardInterrupt(), SystemExit(3)])
async def test_finish_runs_after_an_error_in_handle(
    base: type[Told], error: BaseException, aserver_log: LogBook
) -> None:
    """finish runs also when handle raised, whatever it raised; the error is the one that is logged."""

    class Handler(base):  # type: ignore[valid-type, misc]  # as above
        told: list[Any] = []  # noqa: RUF012 - the test's

        async def handle(self) -> None:
            self.note("handle")
            raise error

    assert await said(Handler, b"") == b""
    assert [what for what, _ in Handler.told] == ["setup", "handle", "finish"]
    record = aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nothing_runs_after_an_error_in_setup(asynchronous: bool, aserver_log: LogBook) -> None:
    """When setup raised, neither handle nor finish runs."""

    class Handler(Told):
        told: list[Any] = []  # noqa: RUF012 - the test's

        def setup(self) -> Any:
            self.note("setup")
            if not asynchronous:
                raise OwnError("mine")
            return self.later()

        async def later(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise OwnError("mine")

    assert await said(Handler, b"") == b""
    assert [what for what, _ in Handler.told] == ["setup"]
    aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")


async def test_error_in_init(aserver_log: LogBook) -> None:
    """A class whose instance cannot be made costs its connection and one line in the log, no more."""

    class Handler(aserver.BaseRequestHandler):
        def __init__(self, request: aserver.Stream) -> None:
            raise AssertionError("never called with one argument")

    async with running(tcp(Handler)) as server:
        assert await in_thread(talk, server.server_address, b"") == b""
    record = aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TypeError)


async def test_error_in_finish(aserver_log: LogBook) -> None:
    """An error in finish is logged once, with the one of handle as its context."""

    class Handler(aserver.BaseRequestHandler):
        async def handle(self) -> None:
            raise OwnError("in handle")

        async def finish(self) -> None:
            raise OwnError("in finish")

    assert await said(Handler, b"") == b""
    record = aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "in finish"
    assert record.exc_info[1] is not None
    assert str(record.exc_info[1].__context__) == "in handle"


async def test_finish_runs_when_cancelled() -> None:
    """finish runs also when the server is left while handle is at work."""
    told: list[str] = []

    class Handler(aserver.BaseRequestHandler):
        async def handle(self) -> None:
            await self.request.send(b"here\n")
            await anyio.sleep_forever()

        def finish(self) -> None:  # type: ignore[override]  # may be plain
            told.append("finish")

    async with running(tcp(Handler)) as server:
        client = connect(server.server_address)
        assert await in_thread(client.read_until) == b"here\n"
    client.close()
    assert told == ["finish"]
    assert server.statistics().cancelled == 1


async def test_one_instance_per_request() -> None:
    """Each connection gets an instance of its own, with its own attributes."""

    class Counting(aserver.StreamRequestHandler):
        made: list[Any] = []  # noqa: RUF012 - the test's

        async def setup(self) -> None:
            self.lines = 0
            type(self).made.append(self)

        async def handle(self) -> None:
            async for _ in self.rfile:
                self.lines += 1
                await self.wfile.write(b"%d\n" % self.lines)

    async with running(tcp(Counting)) as server:
        with connect(server.server_address) as first, connect(server.server_address) as second:
            assert await in_thread(first.ask, b"x\n") == b"1\n"
            assert await in_thread(second.ask, b"x\n") == b"1\n"
            assert await in_thread(first.ask, b"x\n") == b"2\n"
    assert len(Counting.made) == 2
    assert Counting.made[0] is not Counting.made[1]


async def test_attributes_of_a_handler() -> None:
    """request is the connection's Stream, client_address its peer, server the server that accepted it."""
    seen: list[Any] = []

    class Handler(aserver.BaseRequestHandler):
        async def handle(self) -> None:
            seen.extend((self.request, self.client_address, self.server))

    async with running(tcp(Handler)) as server:
        with connect(server.server_address) as client:
            name = client.sock.getsockname()
            assert await in_thread(client.read_until_eof) == b""
    stream, address, maker = seen
    assert isinstance(stream, aserver.Stream)
    assert address == name == stream.peer
    assert maker is server


async def test_base_class_does_nothing() -> None:
    """A class that overrides nothing closes the connection."""
    assert await said(aserver.BaseRequestHandler, b"") == b""
    assert await said(aserver.StreamRequestHandler, b"") == b""


# --- rfile -----------------------------------------------------------------------------------------------------------


def reading(read: Callable[[aserver.StreamReader], Awaitable[Any]]) -> type[aserver.StreamRequestHandler]:
    """A handler that sends the repr of what *read* gave."""

    async def work(handler: aserver.StreamRequestHandler) -> None:
        await handler.wfile.write(repr(await read(handler.rfile)).encode())

    return file_words(work)


async def repeated(call: Callable[..., Awaitable[bytes]], *sizes: int) -> list[bytes]:
    """What the calls gave, one for each size."""
    return [await call(size) for size in sizes]


@pytest.mark.parametrize(
    "data, read, result",
    [
        pytest.param(b"one\ntwo\nrest", lambda f: repeated(f.readline, -1, -1, -1, -1), None, id="readline"),
        pytest.param(b"one\ntwo\n", lambda f: repeated(f.readline, 2, 2, 2, 2, 2, 2), None, id="readline-2"),
        pytest.param(b"one\ntwo\n", lambda f: repeated(f.readline, 3, 4, 100, 1), None, id="readline-3"),
        pytest.param(b"one\ntwo\n", lambda f: repeated(f.readline, 4, 5, 1), None, id="readline-exact"),
        pytest.param(b"one\ntwo", lambda f: repeated(f.readline, 0, 4, 0, 100, 0), None, id="readline-0"),
        pytest.param(b"abcdef", lambda f: repeated(f.read, 2, 3, 5, 5), None, id="read-size"),
        pytest.param(b"abcdef", lambda f: repeated(f.read, 0, -1, -1, 3), None, id="read-all"),
        pytest.param(b"abcdef", lambda f: repeated(f.read, 6, 0, 1, -1), None, id="read-exact"),
        pytest.param(b"a\n\nb\n", lambda f: repeated(f.readline, -1, -1, -1, -1), None, id="empty-line"),
        pytest.param(b"", lambda f: repeated(f.readline, -1, 5), None, id="readline-nothing"),
        pytest.param(b"", lambda f: repeated(f.read, -1, 5), None, id="read-nothing"),
        pytest.param(b"", lambda f: repeated(f.read1, 10, 5), None, id="read1-nothing"),
    ],
)
async def test_rfile_reads_like_a_file(data: bytes, read: Any, result: None, tmp_path: Any) -> None:
    """rfile gives for each sequence of calls what a buffered binary file with the same bytes gives."""
    path = tmp_path / "data"
    path.write_bytes(data)

    class Same:
        """The stdlib's file, with awaitable methods."""

        def __getattr__(self, name: str) -> Callable[..., Awaitable[bytes]]:
            async def call(*arguments: int) -> bytes:
                value: bytes = getattr(file, name)(*arguments)
                return value

            return call

    with path.open("rb") as file:
        expected = await read(Same())
    assert await said(reading(read), data) == repr(expected).encode()


async def test_async_for_over_rfile() -> None:
    """Iterating over rfile gives the lines with their ends, the last one without if it has none, then ends."""

    async def lines(file: aserver.StreamReader) -> list[bytes]:
        return [line async for line in file]

    assert await said(reading(lines), b"one\n\ntwo\r\nrest") == repr([b"one\n", b"\n", b"two\r\n", b"rest"]).encode()
    assert await said(reading(lines), b"") == b"[]"


async def piecewise(client: Client, *pieces: bytes) -> None:
    """Send one piece after the other, each after the server has asked for it with a byte."""
    for piece in pieces:
        await in_thread(client.read_exactly, 1)
        client.send(piece)


async def test_read1_gives_what_is_there() -> None:
    """read1 waits for the first byte and gives what has come, at most the size; at the end b""."""
    got: list[bytes] = []

    async def work(handler: aserver.StreamRequestHandler) -> None:
        for size in (2, 2, 65536):
            if size != 2 or not got:
                await handler.wfile.write(b"?")
            got.append(await handler.rfile.read1(size))
        got.append(await handler.rfile.read1())
        await handler.wfile.write(b"!")

    async with running(tcp(file_words(work))) as server:
        with connect(server.server_address) as client:
            await piecewise(client, b"abc", b"defg")
            client.end()
            assert await in_thread(client.read_until_eof) == b"!"
    assert got == [b"ab", b"c", b"defg", b""]


async def test_read_gathers_what_comes_in_pieces() -> None:
    """read(size) and readline wait until all of it has come, however it was cut."""
    got: list[bytes] = []

    async def work(handler: aserver.StreamRequestHandler) -> None:
        await handler.wfile.write(b"????????")
        got.append(await handler.rfile.read(5))
        got.append(await handler.rfile.readline())
        got.append(await handler.rfile.readline(3))

    async with running(tcp(file_words(work))) as server:
        with connect(server.server_address) as client:
            await piecewise(client, b"a", b"bcd", b"ef", b"g", b"\n", b"h", b"ij")
            assert await in_thread(client.read_until_eof) == b"?"
    assert got == [b"abcde", b"fg\n", b"hij"]


@pytest.mark.parametrize("length, fits", [(15, True), (16, True), (17, False)])
async def test_line_limit_of_rfile(length: int, fits: bool) -> None:
    """readline without a size gives lines up to Limits.max_line_size, and raises DelimiterNotFound beyond it."""

    async def read(file: aserver.StreamReader) -> bytes | str:
        try:
            return await file.readline()
        except anyio.DelimiterNotFound:
            return "too long"

    line = b"x" * (length - 1) + b"\n"
    assert await said(reading(read), line, max_line_size=16) == repr(line if fits else "too long").encode()


async def test_readline_with_a_size_is_no_error_above_it() -> None:
    """readline(size) cuts a line that is longer, also beyond Limits.max_line_size, and loses nothing."""

    def read(file: aserver.StreamReader) -> Awaitable[list[bytes]]:
        return repeated(file.readline, 40, 40, 40)

    line = b"x" * 60 + b"\n"
    expected = [line[:40], line[40:], b""]
    assert await said(reading(read), line, max_line_size=16) == repr(expected).encode()


@pytest.mark.parametrize("length, fits", [(15, True), (16, True), (17, False)])
async def test_limit_of_read_to_the_end(length: int, fits: bool) -> None:
    """read() without a size gathers up to Limits.max_exact_size bytes, and raises DelimiterNotFound beyond it."""

    async def read(file: aserver.StreamReader) -> bytes | str:
        try:
            return await file.read()
        except anyio.DelimiterNotFound:
            return "too much"

    data = b"x" * length
    assert await said(reading(read), data, max_exact_size=16) == repr(data if fits else "too much").encode()


@pytest.mark.parametrize("size, fits", [(15, True), (16, True), (17, False)])
async def test_limit_of_read_with_a_size(size: int, fits: bool) -> None:
    """read(size) takes sizes up to Limits.max_exact_size; a larger one is a ValueError before anything is read."""

    async def read(file: aserver.StreamReader) -> bytes | str:
        try:
            return await file.read(size)
        except ValueError as error:
            assert await file.read() == data  # none of it was taken
            return f"refused: {size}" if str(size) in str(error) else str(error)

    data = b"x" * min(size, 16)
    assert await said(reading(read), data, max_exact_size=16) == repr(data if fits else "refused: 17").encode()


# --- wfile -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, count",
    [
        pytest.param(b"hello\n", 6, id="bytes"),
        pytest.param(bytearray(b"hello\n"), 6, id="bytearray"),
        pytest.param(memoryview(b"hello\n"), 6, id="memoryview"),
        pytest.param(memoryview(array.array("H", [0x4141, 0x4242, 0x4343])), 6, id="memoryview-of-words"),
        pytest.param(b"", 0, id="nothing"),
    ],
)
async def test_write_returns_the_count(data: bytes, count: int) -> None:
    """write sends all of its bytes and returns how many these were, as a binary file does."""

    async def work(handler: aserver.StreamRequestHandler) -> None:
        counts.append(await handler.wfile.write(data))

    counts: list[int] = []
    assert await said(file_words(work), b"") == bytes(data)
    assert counts == [count]


async def test_bytearray_may_change_after_write() -> None:
    """Who has written a bytearray may change it at once, also while answers are held back for a peer that pipelines."""

    async def work(handler: aserver.StreamRequestHandler) -> None:
        buffer = bytearray(2)
        async for line in handler.rfile:
            buffer[:] = line
            await handler.wfile.write(buffer)

    assert await said(file_words(work), b"a\nb\nc\nd\n") == b"a\nb\nc\nd\n"


async def test_writelines() -> None:
    """writelines sends the lines as they are, from any iterable."""

    async def work(handler: aserver.StreamRequestHandler) -> None:
        await handler.wfile.writelines([b"one\n", b"two\n"])
        await handler.wfile.writelines(bytes([letter]) for letter in b"abc")
        await handler.wfile.writelines([])

    assert await said(file_words(work), b"") == b"one\ntwo\nabc"


async def test_flush_sends_what_is_held_back() -> None:
    """After flush the client has the answer, although more of its input is unread and the handler does not go on."""
    go = anyio.Event()

    async def work(handler: aserver.StreamRequestHandler) -> None:
        await handler.wfile.write(await handler.rfile.readline())
        await handler.wfile.flush()
        await go.wait()
        await handler.wfile.write(await handler.rfile.readline())

    async with running(tcp(file_words(work))) as server:
        with connect(server.server_address) as client:
            client.send(b"one\ntwo\n")
            assert await in_thread(client.read_until) == b"one\n"
            go.set()
            assert await in_thread(client.read_until_eof) == b"two\n"


async def test_nothing_is_lost_at_the_end() -> None:
    """What was written last arrives without a flush, also when it is more than the kernel takes at once."""
    block = b"x" * 3_000_000

    async def work(handler: aserver.StreamRequestHandler) -> None:
        assert await handler.rfile.readline() == b"one\n"
        await handler.wfile.write(b"begin\n")  # held back, for there is more to read
        assert await handler.rfile.readline() == b"two\n"
        await handler.wfile.write(block)

    assert await said(file_words(work), b"one\ntwo\n") == b"begin\n" + block


# --- datagrams -------------------------------------------------------------------------------------------------------


async def datagram_function(datagram: aserver.Datagram) -> None:
    """Answer in capitals."""
    await datagram.reply(datagram.data.upper())


async def datagram_with_options(prefix: bytes, datagram: aserver.Datagram, *, end: bytes) -> None:
    """Answer between two strings."""
    await datagram.reply(prefix + datagram.data.upper() + end)


class DatagramCallee:
    async def __call__(self, datagram: aserver.Datagram) -> None:
        await datagram_function(datagram)

    async def method(self, datagram: aserver.Datagram) -> None:
        await datagram_function(datagram)


class DatagramClass(aserver.BaseRequestHandler):
    async def handle(self) -> None:
        assert self.request.peer == self.client_address
        await datagram_function(self.request)


class DatagramWithFiles(aserver.DatagramRequestHandler):
    async def handle(self) -> None:
        assert self.packet == self.request.data
        for line in self.rfile:
            self.wfile.write(line.upper())


def udp(handler: Any, **options: Any) -> aserver.UDPServer:
    """A datagram server on a free port."""
    return aserver.UDPServer(("127.0.0.1", 0), handler, **options)


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(datagram_function, id="function"),
        pytest.param(functools.partial(datagram_with_options, b"", end=b""), id="partial"),
        pytest.param(DatagramCallee(), id="callable-object"),
        pytest.param(DatagramCallee().method, id="bound-method"),
        pytest.param(DatagramClass, id="class"),
        pytest.param(DatagramWithFiles, id="class-with-files"),
    ],
)
async def test_every_form_of_datagram_handler(handler: Any) -> None:
    """Async functions in every disguise and handler classes serve datagrams."""
    async with serving(udp(handler)) as server:
        for data in (b"one\ntwo", b"x"):
            assert await in_thread(ask_datagram, server.server_address, data) == data.upper()
        assert server.statistics().completed == 2


@pytest.mark.parametrize(
    "handler, sessions, texts",
    [
        (plain, None, ["it must be an async function of the datagram or a handler class"]),
        (plain, aserver.Sessions(), ["it must be an async function of the session or a handler class"]),
        (PlainHandle, None, ["PlainHandle.handle() is not async"]),
        (socketserver.DatagramRequestHandler, None, ["DatagramRequestHandler.handle() is not async"]),
        (with_options, None, ["cannot be called with one argument, the datagram: "]),
        (
            aserver.StreamRequestHandler,
            None,
            ["is a StreamRequestHandler, and the requests of this server are datagram"],
        ),
        (aserver.StreamRequestHandler, aserver.Sessions(), ["is a StreamRequestHandler", "are sessions"]),
        (DatagramWithFiles, aserver.Sessions(), ["DatagramWithFiles is a DatagramRequestHandler", "are sessions"]),
    ],
)
def test_wrong_datagram_handler_fails_at_construction(handler: Any, sessions: Any, texts: list[str]) -> None:
    """A handler for requests of another kind is a TypeError at construction that says which kind is wanted."""
    with pytest.raises(TypeError) as caught:
        udp(handler, sessions=sessions)
    for text in texts:
        assert text in str(caught.value)


def test_datagram_handler_for_streams_fails_at_construction() -> None:
    """A DatagramRequestHandler is refused by a stream server, with what to derive from instead."""
    text = (
        "is a DatagramRequestHandler, and the requests of this server are streams; derive it from aserver.BaseRequest"
    )
    with pytest.raises(TypeError, match=text):
        tcp(DatagramWithFiles)


@pytest.mark.parametrize("written", [[], [b""], [b"one"], [b"one", b"two"], [b"x" * 65_507]])
async def test_wfile_of_a_datagram_is_one_reply(written: list[bytes]) -> None:
    """What is written to wfile is sent by finish() as one datagram, also if it is empty."""

    class Handler(aserver.DatagramRequestHandler):
        async def handle(self) -> None:
            for data in written:
                self.wfile.write(data)

    async with serving(udp(Handler)) as server:
        assert await in_thread(ask_datagram, server.server_address, b"x") == b"".join(written)
        assert server.statistics().sent == 1


async def test_wfile_of_a_datagram_is_sent_after_an_error(aserver_log: LogBook) -> None:
    """The stdlib's finish() runs also if handle() raised; what was written until then is sent, the error logged."""

    class Handler(aserver.DatagramRequestHandler):
        async def handle(self) -> None:
            self.wfile.write(b"so far")
            raise OwnError

    async with serving(udp(Handler)) as server:
        assert await in_thread(ask_datagram, server.server_address, b"x") == b"so far"
        await server.wait_empty()
        assert server.statistics().failed == 1
    aserver_log.take("ERROR: UDPServer: the request of 127.0.0.1:")


async def test_wfile_of_a_datagram_that_is_too_large(aserver_log: LogBook) -> None:
    """More than a datagram can have in wfile is the handler's bug: logged, and nothing is sent."""

    class Handler(aserver.DatagramRequestHandler):
        async def handle(self) -> None:
            self.wfile.write(b"x" * 65_508)

    async with serving(udp(Handler)) as server:
        with datagram_client(server.server_address) as client:
            client.send(b"x")
            await until(lambda: server.statistics().failed)
    record = aserver_log.take("ERROR: UDPServer: the request of 127.0.0.1:")
    assert record.exc_info
    assert "65508 bytes do not fit into one datagram" in str(record.exc_info[1])


async def test_order_of_the_methods_for_a_datagram() -> None:
    """setup, handle and finish run in this order, once for each datagram, each with an instance of its own."""
    told: list[Any] = []

    class Handler(aserver.BaseRequestHandler):
        def setup(self) -> None:  # type: ignore[override]  # a plain one will do
            told.append(("setup", self.request.data, id(self)))

        async def handle(self) -> None:
            await anyio.lowlevel.checkpoint()
            told.append(("handle", self.request.data, id(self)))

        async def finish(self) -> None:
            told.append(("finish", self.request.data, id(self)))
            await self.request.reply(b"")

    async with serving(udp(Handler)) as server:
        with datagram_client(server.server_address) as client:
            client.send(b"one")
            client.send(b"two")
            assert await in_thread(client.recv) == await in_thread(client.recv) == b""
    for data in (b"one", b"two"):
        mine = [each for each in told if each[1] == data]
        assert [each[0] for each in mine] == ["setup", "handle", "finish"]
        assert len({each[2] for each in mine}) == 1

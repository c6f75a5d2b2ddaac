"""Handler classes and functions, brought into one shape: an async function of the request.

Also the file words (`rfile`, `wfile`) that the handler classes of the stdlib speak. What happens when a handler raises
is told in the server; nothing here catches anything.
"""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Literal, Protocol, cast

import anyio

from ._datagram import Datagram
from ._errors import printable
from ._session import Session
from ._stream import Stream

__all__ = [
    "BaseRequestHandler",
    "DatagramRequestHandler",
    "Handler",
    "StreamReader",
    "StreamRequestHandler",
    "StreamWriter",
    "adapt",
]


class HandlerClass(Protocol):
    """What a handler class must be able to do: be made for one request, and handle it."""

    def __call__(self, request: Any, client_address: Any, server: Any) -> Any: ...


#: What users may pass as a handler: an async function of the stream, datagram or session, or a handler class.
Handler = (
    Callable[[Stream], Awaitable[None]]
    | Callable[[Datagram], Awaitable[None]]
    | Callable[[Session], Awaitable[None]]
    | HandlerClass
)


class BaseRequestHandler:
    """The shape of `socketserver.BaseRequestHandler`, made async: one instance per request.

    The server makes an instance, then awaits `setup`, `handle` and, also when `handle` raised, `finish`. When `setup`
    raises neither of the others runs. `setup` and `finish` may be plain methods.

    Attributes:
        request: the `Stream` of the connection, the `Datagram` or the `Session`.
        client_address: the peer's address.
        server: the server that it came to.

    Source: the stdlib's documentation, "Request Handler Objects".
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server

    async def setup(self) -> None:
        """Called before `handle`; does nothing by default."""

    async def handle(self) -> None:
        """Serve the request; does nothing by default. When it returns the connection is closed."""

    async def finish(self) -> None:
        """Called after `handle`, also when that raised; does nothing by default."""


class StreamRequestHandler(BaseRequestHandler):
    """A `BaseRequestHandler` with file-like objects over the connection.

    Attributes:
        rfile: `StreamReader` over the request.
        wfile: `StreamWriter` for the answer; it holds nothing back, so there is nothing to flush at the end.
    """

    def __init__(self, request: Stream, client_address: Any, server: Any) -> None:
        super().__init__(request, client_address, server)
        self.rfile = StreamReader(request)
        self.wfile = StreamWriter(request)


class DatagramRequestHandler(BaseRequestHandler):
    """A `BaseRequestHandler` with file objects over one datagram.

    They are plain ones, since nothing in them waits: ``self.wfile.write(self.rfile.read().upper())``. What was written
    is sent by `finish`, as one datagram, also if it is empty and also if `handle` raised. Derive from
    `BaseRequestHandler` to answer otherwise, or not at all.

    Attributes:
        packet: the bytes of the datagram.
        rfile: `io.BytesIO` over them.
        wfile: `io.BytesIO` for the reply.

    Source: the stdlib's documentation, "Request Handler Objects".
    """

    def __init__(self, request: Datagram, client_address: Any, server: Any) -> None:
        super().__init__(request, client_address, server)
        self.packet = request.data
        self.rfile = io.BytesIO(request.data)
        self.wfile = io.BytesIO()

    async def finish(self) -> None:
        """Send the reply."""
        await self.request.reply(self.wfile.getvalue())


class StreamReader:
    """A `Stream` in the words of a binary file open for reading; what may wait is awaited.

    Raises what the methods of `Stream` raise when the connection is lost or closed; the end of the stream is ``b""``.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over lines."""
        return self._stream

    def readline(self, size: int = -1) -> Awaitable[bytes]:
        """Return the next line with its end, or its first *size* bytes when that is not negative and less.

        Raises:
            anyio.DelimiterNotFound: without *size*, the line is longer than ``Limits.max_line_size``.
        """
        return self._stream.readline() if size < 0 else self._readline_at_most(size)

    async def _readline_at_most(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            return await self._stream.readline(size)
        except anyio.DelimiterNotFound:
            return await self._stream.receive(size)

    async def read(self, size: int = -1) -> bytes:
        """Return *size* bytes, fewer only at the end; without *size* everything up to the end.

        Raises:
            anyio.DelimiterNotFound: without *size*, more than ``Limits.max_exact_size`` bytes came before the end.
            ValueError: *size* is above ``Limits.max_exact_size``.
        """
        if size < 0:
            return await self._stream.receive_all()
        try:
            return await self._stream.receive_exactly(size)
        except anyio.IncompleteRead:
            return await self.read1(size)

    async def read1(self, size: int = -1) -> bytes:
        """Return what is there, at least one and at most *size* bytes, waiting for the first one."""
        if not size:
            return b""
        try:
            return await (self._stream.receive() if size < 0 else self._stream.receive(size))
        except anyio.EndOfStream:
            return b""


class StreamWriter:
    """A `Stream` in the words of a binary file open for writing; what may wait is awaited."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """Send all of *data* (see `Stream.send`); return how many bytes that were."""
        await self._stream.send(data)
        return len(data) if type(data) is bytes else memoryview(data).nbytes

    async def writelines(self, lines: Iterable[bytes]) -> None:
        """Send the *lines*, which bring their own line ends, in one piece."""
        await self._stream.send(b"".join(lines))

    def flush(self) -> Awaitable[None]:
        """Hand what is corked to the kernel now (see `Stream.send`)."""
        return self._stream.flush()


def adapt(
    handler: Handler, server: object, kind: Literal["stream", "datagram", "session"]
) -> Callable[[Any], Awaitable[None]]:
    """Return *handler*, a class or an async function, as an async function of the request.

    Args:
        handler: what the user gave.
        server: for the instances of a class.
        kind: what the requests of the server are.

    Raises:
        TypeError: it is neither, or a class for requests of another kind.
    """
    if isinstance(handler, type):
        return _from_class(handler, server, kind)
    call = handler if inspect.isroutine(handler) or isinstance(handler, functools.partial) else type(handler).__call__
    if not inspect.iscoroutinefunction(call):
        raise TypeError(
            f"the handler is {printable(handler)}; it must be an async function of the {kind} or a handler class"
        )
    try:
        inspect.signature(handler).bind(None)
    except TypeError as exc:
        raise TypeError(
            f"the handler {printable(handler)} cannot be called with one argument, the {kind}: {exc}"
        ) from None
    return cast("Callable[[Any], Awaitable[None]]", handler)


#: The handler classes that are for requests of one kind only.
_FOR = {StreamRequestHandler: "stream", DatagramRequestHandler: "datagram"}


def _from_class(cls: type, server: object, kind: str) -> Callable[[Any], Awaitable[None]]:
    missing = [name for name in ("setup", "handle", "finish") if not callable(getattr(cls, name, None))]
    if missing:
        raise TypeError(
            f"the handler class {cls.__qualname__} has no {'() and no '.join(missing)}(); "
            "derive it from aserver.BaseRequestHandler"
        )
    if not inspect.iscoroutinefunction(getattr(cls, "handle")):  # noqa: B009 - a plain attribute would not type-check
        raise TypeError(
            f"{cls.__qualname__}.handle() is not async, so that it would stop the event loop; make it 'async def "
            f"handle', or have it run in threads: compat.hosted({cls.__qualname__})"
        )
    for base, its_kind in _FOR.items():
        if issubclass(cls, base) and kind != its_kind:
            raise TypeError(
                f"the handler class {cls.__qualname__} is a {base.__name__}, and the requests of this server are "
                f"{kind}s; derive it from aserver.BaseRequestHandler"
            )

    async def serve(request: Any) -> None:
        handler = cls(request, request.peer, server)
        if (waiting := handler.setup()) is not None:
            await waiting
        try:
            await handler.handle()
        finally:
            if (waiting := handler.finish()) is not None:
                await waiting

    return serve

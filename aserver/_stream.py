"""The Stream: one connection as a handler sees it, buffered receiving and corked sending on a socket of our own.

What bytes are waiting lives in `_buffer`, when the socket is ready in `_readiness`; here is what happens in between:
order, bounds, who may wait, and what a broken, closed or half-closed connection answers. No policy of the server
(permits, hooks, shutdown) lives here. The server makes streams; handlers and anyio's own wrappers use them.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketAttribute

from ._addresses import peer_text
from ._buffer import ReceiveBuffer
from ._errors import BufferedDataError
from ._limits import Limits
from ._outbox import Outbox
from ._readiness import Loop

__all__ = ["PeerCredentials", "Stream"]

#: Most bytes that are read ahead of the handler; then the socket is left alone and TCP pushes back. Also the size of
#: one read: larger ones (asyncio: 256 KiB) make malloc map and unmap pages each time.
READ_AHEAD = 64 * 1024
#: Corked replies are handed to the kernel when they pass this, however much input waits. asyncio's high-water mark.
CORK_SIZE = 64 * 1024
#: Messages a handler may take without once waiting before it lets the others run: about 100 µs of work.
YIELD_EVERY = 64


class PeerCredentials(NamedTuple):
    """Who is at the other end of a Unix socket, as the kernel saw it when the peer connected."""

    pid: int
    uid: int
    gid: int


class Heir(Protocol):
    """Who has taken a stream's socket, and hears in its place that the server is stopping; see `Stream.detach`."""

    def begin_draining(self) -> None:
        """The server is stopping."""

    def end_input(self) -> None:
        """The server has been patient enough: whatever waits for input should see its end."""

    def abort(self) -> None:
        """The handler has outlived its cancellation: whatever uses the socket should fail."""


class Stream(ByteStream):
    """A connection: bytes in order, in both directions.

    It is an `anyio.abc.ByteStream`, so that what is written for anyio (``TextReceiveStream``, ``BufferedByteStream``,
    ``TLSStream.wrap``) works on it, with messages and lines beside. One task may receive while another sends; two that
    do the same at once is `anyio.BusyResourceError`. Not thread-safe: use it in the loop that serves it.

    Cancellation: a cancelled receive loses nothing, the next one gets the bytes. A `send` that is cancelled while it
    waits leaves the stream broken, since nobody can tell how much of it the peer got.

    Attributes:
        peer: the peer's address as ``accept()`` gave it: ``(host, port)``, with flow and scope for IPv6; for Unix
            sockets the path of a bound client, else ``""``.
        draining: True once the server is stopping: finish what is under way, begin nothing new.
    """

    __slots__ = (
        "_asked",
        "_buffer",
        "_capacity",
        "_closed",
        "_eof",
        "_failure",
        "_fresh",
        "_heir",
        "_limits",
        "_loop",
        "_outbox",
        "_receiving",
        "_sendable",
        "_sending",
        "_sock",
        "_streak",
        "_watch",
        "draining",
        "peer",
    )

    def __init__(self, sock: socket.socket, peer: Any, loop: Loop, limits: Limits) -> None:
        self.peer = peer
        self.draining = False
        self._sock = sock
        self._loop = loop
        self._limits = limits
        self._watch = loop.watch(sock, self._fill)
        self._closed = False
        self._heir: Heir | None = None
        self._failure: BaseException | None = None
        # Receiving
        self._buffer = ReceiveBuffer()
        self._capacity = READ_AHEAD
        self._eof = False
        self._receiving = False
        self._streak = 0
        self._fresh = True  # nothing was received yet: the first request is mostly there before its handler is
        self._asked = False  # input was taken since the last output: a request may be half-way
        # Sending
        self._sendable = True  # open, whole, not half-closed and nobody sending: what send() asks first, in one look
        self._sending = False
        self._outbox: Outbox | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._failure else "ended" if self._eof else "open"
        return f"<Stream {peer_text(self.peer)} {state} unread={self._buffer.size} unsent={self.unsent}>"

    @property
    def unsent(self) -> int:
        """Bytes that were sent but are not with the kernel yet (see `send`)."""
        return 0 if self._outbox is None else self._outbox.size

    # -- receiving -----------------------------------------------------------------------------------------------------

    async def receive(self, max_bytes: int = READ_AHEAD) -> bytes:
        """Return what is there, at least one and at most *max_bytes* bytes, waiting for the first one.

        Raises:
            anyio.EndOfStream: the peer has ended its side, or the server is draining and nothing came.
            anyio.BrokenResourceError: the connection was lost.
            anyio.ClosedResourceError: this stream is closed.
            anyio.BusyResourceError: another task is receiving.
            ValueError: *max_bytes* is less than 1.
        """
        if not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes is {max_bytes!r}; it must be an integer")
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes!r}; it must be at least 1")
        await self._begin_receiving()
        while not self._buffer.size:
            if not await self._more(0):
                raise anyio.EndOfStream
        return self._taken(self._buffer.take(max_bytes))

    async def receive_exactly(self, nbytes: int) -> bytes:
        """Return exactly *nbytes* bytes.

        Raises:
            anyio.IncompleteRead: the peer ended its side before; what came is kept and can be received.
            ValueError: *nbytes* is negative or above ``Limits.max_exact_size``; nothing is waited for or allocated.

        and what `receive` raises of a lost, closed or busy stream.
        """
        if not 0 <= nbytes <= self._limits.max_exact_size:
            raise ValueError(
                f"receive_exactly({nbytes!r}) is outside 0 to {self._limits.max_exact_size} bytes; "
                "raise Limits.max_exact_size if messages may be that large"
            )
        await self._begin_receiving()
        while self._buffer.size < nbytes:
            if not await self._more(nbytes):
                raise anyio.IncompleteRead
        return self._taken(self._buffer.take(nbytes))

    async def receive_until(self, delimiter: bytes, max_bytes: int | None = None) -> bytes:
        """Return the bytes up to *delimiter*, which is taken too but not returned.

        Args:
            delimiter: what ends the message; at least one byte.
            max_bytes: most bytes of the message with its delimiter; by default ``Limits.max_line_size``.

        Raises:
            anyio.DelimiterNotFound: the message is longer than *max_bytes*; its bytes are kept and can be received.
            anyio.IncompleteRead: the peer ended its side before the delimiter; what came is kept.

        and what `receive` raises of a lost, closed or busy stream.
        """
        if not delimiter:
            raise ValueError("the delimiter is empty; it must have at least one byte")
        limit = self._limits.max_line_size if max_bytes is None else max_bytes
        await self._begin_receiving()
        while (message := self._buffer.take_until(delimiter, limit)) is None:
            if not await self._more(limit):
                raise anyio.IncompleteRead
        return self._taken(message[: -len(delimiter)])

    async def receive_all(self) -> bytes:
        """Return everything up to the end of the stream.

        Raises:
            anyio.DelimiterNotFound: more than ``Limits.max_exact_size`` bytes came before the end; they are kept.

        and what `receive` raises of a lost, closed or busy stream.
        """
        limit = self._limits.max_exact_size
        await self._begin_receiving()
        while self._buffer.size <= limit and await self._more(limit + 1):
            pass
        if self._buffer.size > limit:
            raise anyio.DelimiterNotFound(limit)
        return self._taken(self._buffer.take(self._buffer.size))

    def readline(self, limit: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Return the next line with its ``\\n``; at the end what is left without one, then ``b""``, like a file.

        Args:
            limit: most bytes of the line with its end; by default ``Limits.max_line_size``.

        Raises:
            anyio.DelimiterNotFound: the line is longer than *limit*; its bytes are kept and can be received.

        and what `receive` raises of a lost, closed or busy stream.
        """
        return self._line(self._limits.max_line_size if limit is None else limit, False)

    def __aiter__(self) -> Stream:
        """Iterate over lines, until the peer ends its side (anyio's streams iterate over chunks, which lines are)."""
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._line(self._limits.max_line_size, True)

    async def _line(self, limit: int, iterating: bool) -> bytes:
        if self._receiving or self._closed or self._streak >= YIELD_EVERY:
            await self._begin_receiving()
        buffer = self._buffer
        outbox = self._outbox
        if not (buffer.size or self.draining or (outbox and outbox.size)) and self._watch.feeding:
            # The usual case told in full, a peer that waits for each answer: one wait, one read, one line. Written with
            # the calls below it costs a quarter more Python.
            self._receiving = True
            try:
                await self._watch.wait_readable()
            finally:
                self._receiving = False
            data = buffer.data
            if data.find(b"\n") + 1 == buffer.size <= limit and data and type(data) is bytes:
                buffer.data = b""
                buffer.size = 0
                self._asked = True
                return data
        while not buffer.size or (line := buffer.take_until(b"\n", limit)) is None:
            if not await self._more(limit):
                if iterating and not buffer.size:
                    raise StopAsyncIteration
                return buffer.take(buffer.size)
        self._asked = True
        self._streak += 1
        return line

    async def _begin_receiving(self) -> None:
        """Refuse what cannot receive; let the others run when nothing had to be waited for in a long time."""
        if self._closed:
            raise anyio.ClosedResourceError
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        if self._streak >= YIELD_EVERY:
            self._streak = 0
            self._receiving = True
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                self._receiving = False

    def _taken(self, message: bytes) -> bytes:
        self._asked = True
        self._streak += 1
        return message

    async def _more(self, need: int) -> bool:
        """Wait until there may be more input; the one place where receiving waits. False at the end of the stream.

        Args:
            need: bytes that the buffer must be able to hold.
        """
        self._receiving = True
        try:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._failure is not None:
                raise anyio.BrokenResourceError from self._failure
            if self._eof:
                return False
            if self.unsent and not self._sending:
                self._push()
            self._capacity = need if need > READ_AHEAD else READ_AHEAD
            if (self._fresh or self.draining) and self._look():
                return True
            self._streak = 0
            await self._watch.wait_readable()
        finally:
            self._receiving = False
        # At the end of the stream with nothing unread, another round would find the same.
        return not self._eof or self._buffer.size > 0 or self._closed

    def _look(self) -> bool:
        """Read once, without waiting; whether anything came: bytes, the end or an error."""
        self._fresh = False
        before = self._buffer.size
        self._fill()
        if self.draining:
            self._end_if_idle()
        return self._buffer.size > before or self._eof or self._failure is not None

    def _fill(self) -> bool:
        """Read once, without waiting; whether there is room for more. What goes wrong is told at the next receive."""
        buffer = self._buffer
        room = READ_AHEAD
        if buffer.size:
            room = min(READ_AHEAD, (self._capacity if self._receiving else READ_AHEAD) - buffer.size)
            if room <= 0:
                return False
        try:
            chunk = self._sock.recv(room)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as exc:
            self._fail(exc)
            return False
        if not chunk:
            self._eof = True
            return False
        buffer.feed(chunk)
        return buffer.size < READ_AHEAD or (self._receiving and buffer.size < self._capacity)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Hand *item* to the kernel, waiting while its buffer is full; so there is nothing to drain and nothing grows.

        The one exception is a peer that pipelines: while input is unread in our buffer, replies are collected and go
        out together, before the next wait for input, at 64 KiB, at `flush`, at the end, and in any case at the next
        turn of the loop. An error of those surfaces at the next send, flush or receive.

        Raises:
            anyio.BrokenResourceError: the connection was lost, or an earlier send was cancelled half-way.
            anyio.ClosedResourceError: this stream is closed, or `send_eof` was called.
            anyio.BusyResourceError: another task is sending.
        """
        if not self._sendable:
            self._refuse_to_send()
        if type(item) is not bytes:
            item = memoryview(item).cast("B")
        self._asked = False
        outbox = self._outbox
        if not self._buffer.size and (outbox is None or not outbox.size):
            try:
                sent = self._sock.send(item)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as exc:
                self._fail(exc)
                raise anyio.BrokenResourceError from exc
            if sent == len(item):
                return
            outbox = outbox or self._open_outbox()
            outbox.add(memoryview(item)[sent:])
        else:
            outbox = outbox or self._open_outbox()
            outbox.cork(item if type(item) is bytes else bytes(item))  # who sent a bytearray may change it from now on
            if (self._buffer.size and outbox.size < CORK_SIZE) or outbox.push():
                return
        self._sending = True
        self._sendable = False
        try:
            await self._drain(outbox)
        except BaseException as exc:
            self._fail(exc)  # cancelled half-way, if not lost or closed
            raise
        finally:
            self._sending = False
        self._sendable = True

    async def flush(self) -> None:
        """Hand everything that was sent to the kernel, waiting while its buffer is full.

        A cancelled flush loses nothing: the rest goes out later. Raises what `send` raises of a lost or closed stream.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure
        if (outbox := self._outbox) is not None and outbox.size and not outbox.push():
            await self._drain(outbox)

    async def _drain(self, outbox: Outbox) -> None:
        try:
            await outbox.drain()
        finally:
            if outbox.size:  # cancelled: what is left of a flush goes out without us
                outbox.flush_soon()
        if self._closed:
            raise anyio.ClosedResourceError
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure

    def _push(self) -> None:
        """Send what is corked before waiting for input, but do not wait for a peer that must send before it reads."""
        if (outbox := self._outbox) is not None and not outbox.push():
            outbox.flush_soon()

    def _open_outbox(self) -> Outbox:
        self._outbox = outbox = Outbox(self._sock, self._watch, self._loop, self._fail)
        return outbox

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come (half-close); receiving goes on.

        Raises what `flush` raises. To send afterwards is `anyio.ClosedResourceError`; to call it again does nothing.
        """
        if not self._sendable:
            if self._failure is None and not self._closed and not self._sending:
                return  # it was called before
            self._refuse_to_send()
        self._sending, self._sendable = True, False
        try:
            await self.flush()
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:  # ENOTCONN: the peer has reset meanwhile
            self._fail(exc)
            raise anyio.BrokenResourceError from exc
        except BaseException:
            self._sendable = self._failure is None and not self._closed
            raise
        finally:
            self._sending = False

    def _refuse_to_send(self) -> NoReturn:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._sending:
            raise anyio.BusyResourceError("sending to")
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure
        raise anyio.ClosedResourceError  # send_eof() was called

    # -- the end -------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Send what is corked and close. Never fails: where the peer is gone there is nothing left to do.

        A send of another task that waits is ended by `anyio.ClosedResourceError`; what it had left is not sent.
        """
        try:
            if self.unsent and not self._closed and not self._sending:
                await self.flush()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # gone, or closed by somebody else meanwhile: in both cases what we came for
        finally:
            self.close_now()

    def close_now(self) -> None:
        """Close without waiting; unsent bytes go as far as the kernel takes them at once. Safe to call again."""
        if self._closed:
            return
        if (outbox := self._outbox) is not None and outbox.size and self._failure is None:
            try:
                outbox.push()
            except anyio.BrokenResourceError:
                pass  # closing is all that is left
        self._leave_socket()
        self._sock.close()

    def abort(self) -> None:
        """Close at once with a reset: the peer sees an error, and unsent bytes are thrown away."""
        if self._heir is not None:
            self._heir.abort()
        if self._closed:
            return
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # reset by the peer already
        self._leave_socket()
        self._sock.close()

    def detach(self, heir: Heir | None = None) -> socket.socket:
        """Give the socket away: non-blocking, open, no longer watched; this stream is closed afterwards.

        Args:
            heir: its methods are called, in the event loop, when the server stops and would have called ours.

        Who takes it closes it. The connection counts as open until its handler returns.

        Raises:
            aserver.BufferedDataError: received or unsent bytes are buffered, which would be lost.
            anyio.BusyResourceError: a task is receiving or sending.
            anyio.BrokenResourceError: the connection was lost.
            anyio.ClosedResourceError: this stream is closed.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if self._failure is not None:
            raise anyio.BrokenResourceError from self._failure
        if self._receiving or self._sending:
            raise anyio.BusyResourceError("using")
        if self._buffer.size or self.unsent:
            raise BufferedDataError(self._buffer.size, self.unsent)
        self._leave_socket()
        self._heir = heir
        return self._sock

    def _leave_socket(self) -> None:
        self._closed = True
        self._sendable = False
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        self._watch.close()

    def _fail(self, cause: BaseException) -> None:
        if self._failure is None and not self._closed:
            # Without its traceback, whose frames lead back to this stream: a cycle for each client that resets.
            self._failure = (
                cause.with_traceback(None)
                if isinstance(cause, OSError)
                else RuntimeError("a send was cancelled half-way")
            )
        self._sendable = False
        if self._outbox is not None:
            self._outbox.close()
        self._watch.pause()
        self._watch.wake()

    # -- told by the server --------------------------------------------------------------------------------------------

    def begin_draining(self) -> None:
        """Set `draining`, and end the input of a connection that is between two requests."""
        self.draining = True
        if self._heir is not None:
            self._heir.begin_draining()
        self._watch.pause()
        if self._receiving and not self._closed:
            self._look()  # what the peer sent before this moment is still served
            self._watch.wake()

    def end_input(self) -> None:
        """End the input of a connection that waits with nothing half-received, also if a request may be half-way."""
        self._asked = False
        if self._heir is not None:
            self._heir.end_input()
        else:
            self.begin_draining()

    def _end_if_idle(self) -> None:
        if not self._asked and not self._buffer.size:
            self._eof = True

    # -- what can be asked ---------------------------------------------------------------------------------------------

    @property
    def local_address(self) -> Any:
        """The address that the peer connected to, as ``getsockname()`` gives it."""
        self._check_open()
        return self._sock.getsockname()

    @property
    def peer_credentials(self) -> PeerCredentials | None:
        """Process, user and group of a Unix socket's peer; None for TCP and where the system does not tell (Linux)."""
        self._check_open()
        if self._sock.family != getattr(socket, "AF_UNIX", None) or sys.platform != "linux":
            return None
        size = struct.calcsize("3i")
        return PeerCredentials(*struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """anyio's typed socket attributes, for `extra`."""
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: self._sock.family,
            SocketAttribute.local_address: lambda: self.local_address,
            SocketAttribute.raw_socket: lambda: self._sock,
            SocketAttribute.remote_address: lambda: self.peer,
        }
        if isinstance(self.peer, tuple):
            attributes[SocketAttribute.local_port] = lambda: self.local_address[1]
            attributes[SocketAttribute.remote_port] = lambda: self.peer[1]
        return attributes

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

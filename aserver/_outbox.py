"""What was sent but is not with the kernel yet: corked replies, and the rest of what its full buffer did not take.

Bytes leave in the order they came. Whether a send may be queued is the Stream's decision, and what an error means to a
handler its wording; here is the queue, the one task that waits for room, and the promise that a queue goes out at the
next turn of the loop whatever the handler does. Only the Stream imports it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import anyio

from ._readiness import Loop, Task, Watch

__all__ = ["Outbox"]


class Outbox:
    """The unsent bytes of one connection; made when there are some for the first time.

    Attributes:
        size: how many bytes are unsent.
    """

    __slots__ = (
        "_armed",
        "_chunks",
        "_closed",
        "_drained",
        "_flusher",
        "_loop",
        "_on_failure",
        "_sock",
        "_watch",
        "size",
    )

    def __init__(
        self, sock: socket.socket, watch: Watch, loop: Loop, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.size = 0
        self._sock = sock
        self._watch = watch
        self._loop = loop
        self._on_failure = on_failure
        self._chunks: list[bytes | memoryview] = []
        self._armed = False
        self._closed = False
        self._drained: anyio.Event | None = None
        self._flusher: Task | None = None

    def add(self, item: bytes | memoryview) -> None:
        """Append *item*, which must not change any more."""
        self._chunks.append(item)
        self.size += len(item)

    def cork(self, item: bytes) -> None:
        """Append *item*, to be sent at the next turn of the loop if nobody does so earlier."""
        self._chunks.append(item)
        self.size += len(item)
        if not self._armed:
            self.flush_soon()

    def push(self) -> bool:
        """Hand the kernel what it takes, without waiting; whether that was all.

        Raises:
            anyio.BrokenResourceError: the connection is lost; the stream has been told.
        """
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self._on_failure(exc)
            raise anyio.BrokenResourceError from exc
        if sent == len(data):
            chunks.clear()
            self.size = 0
            return True
        chunks[:] = [memoryview(data)[sent:]]
        self.size = len(data) - sent
        return False

    async def drain(self) -> None:
        """Wait until all is with the kernel, or the outbox is closed. One task writes; the others wait for it.

        Raises what `push` raises. Cancelling it loses nothing: the rest is still here.
        """
        while self.size:
            if self._drained is not None:
                await self._drained.wait()
                continue
            self._drained = drained = anyio.Event()
            try:
                await self._watch.wait_writable()
                if self.size:  # not closed meanwhile
                    self.push()
            finally:
                self._drained = None
                drained.set()

    def flush_soon(self) -> None:
        """Send at the next turn of the loop what has not gone by then; in the background if the kernel is full."""
        self._armed = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._armed = False
        if self._closed or not self.size or self._drained is not None:
            return
        try:
            if not self.push():
                self._flusher = self._loop.spawn(self._drain_in_background)
        except anyio.BrokenResourceError:
            pass  # the stream has been told, and says so at the next send, flush or receive

    async def _drain_in_background(self) -> None:
        try:
            await self.drain()
        except anyio.BrokenResourceError:
            pass  # as above
        finally:
            self._flusher = None

    def close(self) -> None:
        """Forget what is unsent; who waits in `drain` is woken by the closing of the watch."""
        self._closed = True
        self._chunks.clear()
        self.size = 0

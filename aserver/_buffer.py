"""The receive buffer: bytes go in as they come, messages come out as they are asked for.

No I/O, no loop, no socket: what is here can be fed byte by byte in a test. It never drops a byte: a limit that is
passed, an end that comes too early and a cancelled wait all leave the bytes where they are. The Stream imports it.
"""

from __future__ import annotations

import anyio

__all__ = ["ReceiveBuffer"]


class ReceiveBuffer:
    """Received bytes in order, given out as lines, delimited messages or blocks.

    The common case is one read that holds whole messages. It is kept as the very ``bytes`` object the socket gave,
    so that a line which is the whole read leaves without a copy. Only when a message comes in pieces are they joined
    in a ``bytearray``, whose front can be cut off in constant time.

    Attributes:
        size: how many bytes are unread.
        data: where they are. An empty buffer that was fed once has exactly that read here.
    """

    __slots__ = ("_delimiter", "_searched", "_start", "data", "size")

    def __init__(self) -> None:
        self.data: bytes | bytearray = b""
        self._start = 0
        self.size = 0
        # Where the search for _delimiter goes on, so that a message coming byte by byte is searched once, not n times.
        self._searched = 0
        self._delimiter = b""

    def __repr__(self) -> str:
        return f"<ReceiveBuffer size={self.size}>"

    def feed(self, chunk: bytes) -> None:
        """Append *chunk*."""
        if not self.size:
            self.data = chunk
            self.size = len(chunk)
            return
        data = self.data
        if not isinstance(data, bytearray):
            data = self.data = bytearray(memoryview(data)[self._start :])
        else:
            del data[: self._start]
        self._searched = max(0, self._searched - self._start)
        self._start = 0
        data += chunk
        self.size = len(data)

    def take_until(self, delimiter: bytes, limit: int) -> bytes | None:
        """Return the next message with the *delimiter* at its end, or None while it is not complete.

        Args:
            delimiter: the bytes that end a message; at least one.
            limit: how many bytes a message may have at most, its delimiter included.

        Raises:
            anyio.DelimiterNotFound: the message is, or can only become, longer than *limit*. Nothing is taken.
        """
        data = self.data
        start = self._start
        if delimiter != self._delimiter:
            self._delimiter = delimiter
            self._searched = start
        found = data.find(delimiter, self._searched)
        if found < 0:
            if self.size >= limit:
                raise anyio.DelimiterNotFound(limit)
            self._searched = max(start, len(data) - len(delimiter) + 1)
            return None
        end = found + len(delimiter)
        if end - start > limit:
            raise anyio.DelimiterNotFound(limit)
        if end == len(data):
            self.data = b""
            self._start = self._searched = self.size = 0
        else:
            self._start = self._searched = end
            self.size -= end - start
        return data[start:end] if type(data) is bytes else bytes(memoryview(data)[start:end])

    def take(self, nbytes: int) -> bytes:
        """Return the next *nbytes* bytes, or all there are if they are fewer."""
        data = self.data
        start = self._start
        if nbytes >= self.size:
            self.data = b""
            self._start = self._searched = self.size = 0
        else:
            self._start = self._searched = start + nbytes
            self.size -= nbytes
        return bytes(memoryview(data)[start : start + nbytes])

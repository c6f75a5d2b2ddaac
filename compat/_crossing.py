"""What crosses from a server to its worker processes, and how: frames of plain data, with descriptors beside them.

Lives here: names of classes, plain data as bytes, frames on a stream socket. Must not: processes. Both sides use it:
`_processes` and `_worker`.

A frame is two lengths, plain data, and bytes that are nobody's business here, such as a datagram. Nothing is pickled:
what a worker executes is what it imports by name. The data goes by `marshal`, which is safe between two processes of
one interpreter: loading it makes numbers, texts and containers, and calls nothing. It keeps tuples, of which addresses
are made, and costs a tenth of JSON. Only workers load it, and only from the process that has started them.
"""

from __future__ import annotations

import marshal
import socket
import struct
import sys
from collections import deque
from types import FunctionType

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "DONE",
    "FAILED",
    "READY",
    "REASON_LIMIT",
    "Frames",
    "described",
    "frame",
    "import_path",
    "main_module",
    "plain",
]

#: What a worker says, a byte each: it can begin; a request is over; it cannot begin, and the reason follows.
READY, DONE, FAILED = b"r", b"d", b"!"
#: Bytes of that reason: the last lines of a traceback. A worker is of our own making, but not what it imports.
REASON_LIMIT = 4096
#: Bytes of a frame: the largest datagram is 64 KiB, and a server's plain attributes are counted in kilobytes.
FRAME_LIMIT = 16 * 1024 * 1024
#: Descriptors with one frame: a connection, or the socket that a datagram is answered through.
DESCRIPTORS = 1

#: Bytes to read first: a connection is a hundred, and most datagrams are small.
FIRST_READ = 4096

LENGTHS = struct.Struct("!II")
#: Received descriptors do not reach programs that a handler starts.
CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def import_path(thing: Any) -> str:
    """`module:qualname`, by which another process finds this class or function.

    Raises:
        TypeError: nothing is found there, or something else.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    remedy = "use a class or function that stands at the top of a module"
    if not isinstance(thing, type | FunctionType) or not module or not name:
        raise TypeError(f"{thing!r} has no name by which a worker process could import it; {remedy}")
    if "<" in name:
        raise TypeError(f"{thing!r} is made inside a function, and a worker process cannot import it; {remedy}")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        raise TypeError(f"a worker process would find {found!r} as {module}:{name}, and not {thing!r}; {remedy}")
    if module == "__main__" and main_module() is None:
        raise TypeError(
            f"{thing!r} is part of an interactive or -c program, which a worker process cannot import; {remedy}"
        )
    return f"{module}:{name}"


def main_module() -> tuple[str, str] | None:
    """How a worker imports the program's main module: by ("name", …) or by ("path", …); None if it cannot."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return "name", spec.name
    file = getattr(main, "__file__", None)
    return None if file is None else ("path", file)


def plain(value: Any) -> bool:
    """Whether *value* is data and nothing else, so that it can cross."""
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    return value is None or type(value) in (bool, int, float, str, bytes)


def frame(message: Any, body: bytes = b"") -> bytes:
    """One frame; *message* is plain data.

    Raises:
        ValueError: it is not, or is too large.
    """
    text = marshal.dumps(message)
    if LENGTHS.size + len(text) + len(body) > FRAME_LIMIT:
        raise ValueError(f"{len(text)} bytes of attributes, or {len(body)} of a datagram, are more than a worker takes")
    return LENGTHS.pack(len(text), len(body)) + text + body


def described(sock: socket.socket) -> tuple[int, int, int, float | None]:
    """What the system would have to be asked for, about a descriptor on the other side."""
    return _family(sock), _kind(sock), sock.proto, sock.gettimeout()


# the bare numbers: those of a socket.socket are enumerations, made anew each time
_family: Any = socket.SocketType.family.__get__
_kind: Any = socket.SocketType.type.__get__


class Frames:
    """The frames that arrive on a stream socket, each with its descriptors."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = b""
        self._descriptors: deque[int] = deque()

    def next(self) -> tuple[Any, bytes] | None:
        """Wait for a frame: its message and its bytes; None when no more will come."""
        if not self._fill(LENGTHS.size):
            return None
        text, body = LENGTHS.unpack_from(self._data)
        end = LENGTHS.size + text + body
        if end > FRAME_LIMIT or not self._fill(end):
            return None
        message = marshal.loads(self._data[LENGTHS.size : LENGTHS.size + text])
        data = self._data[LENGTHS.size + text : end]
        self._data = self._data[end:]
        return message, data

    def descriptor(self) -> int:
        """The next of the descriptors that came with the frames."""
        return self._descriptors.popleft()

    def _fill(self, size: int) -> bool:
        while len(self._data) < size:
            data, descriptors, _, _ = socket.recv_fds(self._channel, max(FIRST_READ, size), DESCRIPTORS, CLOEXEC)
            self._descriptors.extend(descriptors)
            if not data:
                return False
            self._data += data
        return True

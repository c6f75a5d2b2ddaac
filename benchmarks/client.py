"""The load: one thread, one epoll, and as little Python per request as can check every answer byte for byte.

Every wait has an end: silence or a passed deadline raises `BadAnswer`, as does any byte that was not asked for. Knows
nothing of contenders or figures. Traffic goes to 127.0.0.1 only.
"""

import errno
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest

__all__ = ["DEADLINE", "LOCALHOST", "BadAnswer", "Connection", "check_silent", "connected", "exchange", "visit"]

SILENCE = 10.0  # an answer takes microseconds; a SYN lost to a full backlog comes again after 1, 3 and 7 s
DEADLINE = 120.0  # for one call of exchange() or visit(), whatever trickles in
LINE = 64
TURNS = 4  # different blocks a connection cycles through, so that a repeated answer is a wrong one
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds: close() sends RST
LOCALHOST = "127.0.0.1"


class BadAnswer(Exception):
    """The server answered wrongly, late or not at all."""


class Connection:
    """A kept connection with the blocks of lines it sends in turn."""

    __slots__ = ("block", "blocks", "parts", "recv", "send", "sock", "turn")

    def __init__(self, sock: socket.socket, number: int, depth: int) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.send = sock.send
        self.blocks = [b"".join(_line(f"{number} {turn} {place}") for place in range(depth)) for turn in range(TURNS)]
        self.turn = 0
        self.block = self.blocks[0]
        self.parts = b""

    def ask(self) -> None:
        """Send the next block."""
        self.turn = turn = (self.turn + 1) % TURNS
        self.block = block = self.blocks[turn]
        if self.send(block) != len(block):
            raise BadAnswer(f"the server does not read: {len(block)} bytes do not fit the socket")

    def completed_by(self, data: bytes) -> bool:
        """Whether `data`, after the parts that came before it, completes the right answer."""
        answer = self.parts + data
        if not data or not self.block.startswith(answer):
            raise _wrong(self.block, answer, ended=not data)
        self.parts = b"" if len(answer) == len(self.block) else answer
        return not self.parts


def _line(text: str) -> bytes:
    return text.encode().ljust(LINE - 1, b".") + b"\n"


def _wrong(expected: bytes, received: bytes, *, ended: bool) -> BadAnswer:
    """The exception for a wrong answer, which shows the first line that is wrong."""
    pairs = zip_longest(expected.splitlines(keepends=True), received.splitlines(keepends=True), fillvalue=b"")
    place, (line, other) = next((place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1])
    end = ", then the end" if ended else ""
    return BadAnswer(f"line {place} of the answer should be {line[:20]!r}..., received {other[:80]!r}{end}")


class _Wait:
    """epoll with the two bounds of this module."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._deadline = time.monotonic() + DEADLINE
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def __call__(self) -> list[tuple[int, int]]:
        left = min(SILENCE, self._deadline - time.monotonic())
        events = self._epoll.poll(left) if left > 0 else []
        if not events:
            raise BadAnswer(f"no answer in {SILENCE:g} s, or not all of them in {DEADLINE:g} s")
        return events


@contextmanager
def connected(port: int, count: int, depth: int = 1) -> Iterator[list[Connection]]:
    """`count` kept connections for `exchange()`."""
    connections: list[Connection] = []
    try:
        for number in range(count):
            sock = socket.create_connection((LOCALHOST, port), timeout=SILENCE)
            connections.append(Connection(sock, number, depth))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        yield connections
        check_silent(connection.sock for connection in connections)
    finally:
        for connection in connections:
            connection.sock.close()


def check_silent(socks: Iterable[socket.socket]) -> None:
    """Raise unless every one of these non-blocking sockets is connected and has nothing more to read."""
    for sock in socks:
        with suppress(BlockingIOError):
            raise BadAnswer(f"expected no more, received {sock.recv(80)!r} (nothing is the end)")


def exchange(connections: Sequence[Connection], blocks: int) -> None:
    """Send `blocks` blocks, one in flight on each connection, and check every answer."""
    by_descriptor = {connection.sock.fileno(): connection for connection in connections}
    wait = _Wait()
    try:
        for descriptor in by_descriptor:
            wait.register(descriptor, select.EPOLLIN)
        for connection in connections[:blocks]:
            connection.ask()
        unsent = blocks - len(connections[:blocks])
        unanswered = blocks
        while unanswered:
            for descriptor, _ in wait():
                connection = by_descriptor[descriptor]
                data = connection.recv(65536)
                if data != connection.block and not connection.completed_by(data):
                    continue
                unanswered -= 1
                if unsent:
                    unsent -= 1
                    connection.ask()
    finally:
        wait.close()


def visit(
    port: int, count: int, *, window: int = 1, reset: bool = False, keep: list[socket.socket] | None = None
) -> None:
    """Connect `count` times, `window` at a time; each time send one line, check the answer and close.

    With `reset` the close is a RST; with `keep` the connections stay open and are put there instead (the caller closes
    them, also after an error).
    """
    wait = _Wait()
    open_now: dict[int, tuple[socket.socket, bytes]] = {}

    def begin(number: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        line = _line(f"visit {number}")
        open_now[sock.fileno()] = sock, line
        code = sock.connect_ex((LOCALHOST, port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect failed")
        try:
            sock.send(line)  # on the loopback the connection usually stands by now
        except BlockingIOError:
            wait.register(sock, select.EPOLLOUT)
        else:
            wait.register(sock, select.EPOLLIN)

    def end(sock: socket.socket) -> None:
        if keep is not None:
            keep.append(sock)
            wait.unregister(sock)
            return
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()

    try:
        begun = min(window, count)
        for number in range(begun):
            begin(number)
        while open_now:
            for descriptor, event in wait():
                sock, line = open_now[descriptor]
                if event & select.EPOLLOUT:
                    sock.send(line)
                    wait.modify(sock, select.EPOLLIN)
                    continue
                answer = sock.recv(65536)
                if answer != line:
                    if not answer or not line.startswith(answer):
                        raise _wrong(line, answer, ended=not answer)
                    open_now[descriptor] = sock, line[len(answer) :]
                    continue
                del open_now[descriptor]
                end(sock)
                if begun < count:
                    begin(begun)
                    begun += 1
    finally:
        wait.close()
        for sock, _ in open_now.values():
            sock.close()

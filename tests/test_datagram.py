"""The promises of `aserver._datagram` about receiving, on every loop and with both bodies of the seam: datagrams arrive
whole or are counted. Replying has a module of its own. Peers are stdlib sockets.

`Peer`, `Opened` and what is around them are used by the tests of replies and of servers, too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from aserver import ListenerFailedError, ReplyRefusedError
from aserver._addresses import describe
from aserver._datagram import RECEIVE_BATCH, Budget, Datagram, DatagramCounters, DatagramSocket
from aserver._endpoints import BoundSocket
from aserver._readiness import Loop

from . import streams
from .conftest import LogBook
from .test_server import turns, until

seam, anyio_backend, loop, bounded = streams.seam, streams.anyio_backend, streams.loop, streams.bounded

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="Unix datagrams")]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a counter, or a kernel's behaviour, of Linux")

LOCAL = ("127.0.0.1", 0)
#: As large as a datagram can be over IPv4.
LARGEST = 65_507


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path leaves room for names of sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Peer:
    """A datagram socket of the stdlib for the test's own task.

    Args:
        address: where it sends to.
        connected: whether it hears only from there.
        bound: its own address: a path, or for UDP ``(host, port)``; a Unix peer without one cannot be answered.
    """

    def __init__(self, address: Any, *, connected: bool = False, bound: Any = None, family: int | None = None) -> None:
        self.address = os.fspath(address) if isinstance(address, Path) else address
        if family is None:
            family = socket.AF_UNIX
            if isinstance(address, tuple):
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if bound is not None:
            self.sock.bind(os.fspath(bound) if isinstance(bound, Path) else bound)
        elif family != socket.AF_UNIX:
            self.sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        if connected:
            self.sock.connect(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    @property
    def name(self) -> Any:
        """Its own address."""
        return self.sock.getsockname()

    def send(self, data: bytes, to: Any = None) -> None:
        """Send at once; a Unix socket has room for about ten datagrams that nobody has received."""
        self.sock.sendto(data, self.address if to is None else to)

    async def send_all(self, *datagrams: bytes) -> None:
        """Send all of them, waiting for room."""
        for data in datagrams:
            while True:
                try:
                    self.send(data)
                    break
                except BlockingIOError:
                    await anyio.lowlevel.checkpoint()

    async def hear_from(self) -> tuple[bytes, Any]:
        """The next datagram, and who it is from."""
        await anyio.wait_readable(self.sock)
        return self.sock.recvfrom(100_000)

    async def hear(self) -> bytes:
        """The next datagram."""
        return (await self.hear_from())[0]

    async def ask(self, data: bytes) -> bytes:
        """Send, and return the next datagram that comes."""
        self.send(data)
        return await self.hear()

    def heard(self) -> list[bytes]:
        """What has come by now."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.sock.recv(100_000))
        return found


class Faulty(socket.socket):
    """A datagram socket that fails in the way that the test says, and otherwise is a real one.

    Attributes:
        receiving: the errnos of the next receives.
        sending: those of the next sends.
        broken: the errno of all sends.
    """

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiving: deque[int] = deque()
        self.sending: deque[int] = deque()
        self.broken = 0

    def recvfrom(self, *arguments: Any) -> Any:
        if self.receiving:
            code = self.receiving.popleft()
            raise OSError(code, os.strerror(code)) if code else MemoryError
        return super().recvfrom(*arguments)

    def sendto(self, *arguments: Any) -> int:
        if code := self.broken or (self.sending and self.sending.popleft()):
            raise OSError(code, os.strerror(code))
        return super().sendto(*arguments)


def adopted(address: Any, sock: socket.socket | None = None) -> BoundSocket:
    """A bound, non-blocking socket as the room of the endpoints makes them."""
    if sock is None:
        family = socket.AF_UNIX
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(os.fspath(address) if isinstance(address, Path) else address)
    sock.setblocking(False)
    return BoundSocket(sock, sock.getsockname(), describe(sock))


class Opened:
    """One `DatagramSocket` that receives, and what it has received.

    Args:
        take: what to do with each datagram; by default it is put into `got`.
    """

    def __init__(
        self,
        bound: BoundSocket,
        loop: Loop,
        max_size: int = 65_535,
        take: Callable[[Datagram], None] | None = None,
    ) -> None:
        self.counters = DatagramCounters()
        self.got: list[Datagram] = []
        self.bound = bound
        self.address = bound.address

        def begin(datagram: Datagram) -> None:
            (take or self.got.append)(datagram)

        def has_room(size: int) -> bool:
            return True

        def begun(datagram: Datagram, task: object) -> None:
            pytest.fail("there is no task")

        self.door = DatagramSocket(bound, loop, self.counters, max_size, (), has_room, begin, begun)

    @property
    def data(self) -> list[bytes]:
        """The bytes of what it has received."""
        return [each.data for each in self.got]

    async def next(self) -> Datagram:
        """The next datagram that comes."""
        await until(lambda: self.got)
        return self.got.pop(0)


@contextlib.asynccontextmanager
async def opened(
    loop: Loop,
    address: Any = LOCAL,
    *,
    sock: socket.socket | None = None,
    max_size: int = 65_535,
    take: Callable[[Datagram], None] | None = None,
) -> AsyncIterator[Opened]:
    """Receive on a new socket at *address* while the block runs."""
    async with anyio.create_task_group() as tasks:
        door = Opened(adopted(address, sock), loop, max_size, take)
        try:
            tasks.start_soon(door.door.accept_forever)
            yield door
            tasks.cancel_scope.cancel()
        finally:
            door.door.close()


def fill(sock: socket.socket, peer: str) -> int:
    """Send from *sock* until the kernel takes no more for *peer*; how many datagrams that took."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.sendto(b"fill", peer)
            count += 1
    return count


# --- receiving -------------------------------------------------------------------------------------------------------


@bounded
async def test_sizes_whole(loop: Loop) -> None:
    """F1: datagrams of 0 to 65 507 bytes arrive whole over UDP, each with its peer, and in order."""
    sizes = [0, 1, 8191, 8192, 8193, 65_506, LARGEST]
    async with opened(loop) as door:
        with Peer(door.address) as peer:
            for number, size in enumerate(sizes):
                peer.send(bytes([number]) * size)
                got = await door.next()
                assert (got.data, got.peer) == (bytes([number]) * size, peer.name)
            assert (door.counters.received, door.counters.too_large) == (len(sizes), 0)


@bounded
async def test_unix_sizes_whole(loop: Loop, short_dir: Path) -> None:
    """Unix datagrams of 0 to 65 535 bytes arrive whole; larger ones are counted as too large and not delivered."""
    async with opened(loop, short_dir / "door") as door:
        with Peer(short_dir / "door", bound=short_dir / "peer") as peer:
            await peer.send_all(*[b"x" * size for size in (0, 1, 8193, 65_535, 65_536, 100_000, 1)])
            await until(lambda: door.counters.received == 7)
            assert [len(data) for data in door.data] == [0, 1, 8193, 65_535, 1]
            assert {each.peer for each in door.got} == {str(short_dir / "peer")}
            assert door.counters.too_large == 2


@bounded
@pytest.mark.parametrize("limit", [1, 100, 8192])
@pytest.mark.parametrize("address", [LOCAL, ("0.0.0.0", 0)], ids=["one-address", "every-address"])
async def test_limit_of_the_size(loop: Loop, limit: int, address: Any) -> None:
    """A datagram of max_datagram_size bytes is let in, one more byte is counted as too large; nothing is cut."""
    async with opened(loop, address, max_size=limit) as door:
        with Peer(("127.0.0.1", door.address[1])) as peer:
            for size in (limit - 1, limit, limit + 1, limit + 1000, limit):
                peer.send(b"x" * size)
            await until(lambda: door.counters.received == 5)
            assert [len(data) for data in door.data] == [limit - 1, limit, limit]
            assert door.counters.too_large == 2


@bounded
async def test_batches(loop: Loop) -> None:
    """What waits is received in a row and in order, but the rest of the program gets its turn every 64 datagrams."""
    ticks = 0
    seen: list[int] = []
    got: list[bytes] = []

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    def take(datagram: Datagram) -> None:
        seen.append(ticks)
        got.append(datagram.data)

    bound = adopted(LOCAL)
    with Peer(bound.address) as peer:
        for number in range(150):
            peer.send(b"%d" % number)
    async with anyio.create_task_group() as tasks:
        door = Opened(bound, loop, take=take)
        tasks.start_soon(tick)
        tasks.start_soon(door.door.accept_forever)
        await until(lambda: len(seen) == 150)
        tasks.cancel_scope.cancel()
    door.door.close()
    assert got == [b"%d" % number for number in range(150)]
    runs = [len(list(run)) for _, run in itertools.groupby(seen)]
    assert max(runs) <= 2 * RECEIVE_BATCH == 128  # trio shuffles who comes first in a turn


@bounded
async def test_one_that_cannot_be_begun(loop: Loop, aserver_log: LogBook) -> None:
    """When no handler can be begun for a datagram, that one is counted and logged, and the next one is served."""
    got: list[bytes] = []

    def take(datagram: Datagram) -> None:
        if datagram.data == b"bad":
            raise MemoryError("no room")
        got.append(datagram.data)

    async with opened(loop, take=take) as door:
        with Peer(door.address) as peer:
            for data in (b"one", b"bad", b"two"):
                peer.send(data)
            await until(lambda: len(got) == 2)
        assert got == [b"one", b"two"]
        assert (door.counters.received, door.counters.no_room) == (3, 1)
        aserver_log.take("ERROR: udp://127.0.0.1:")


@bounded
@pytest.mark.parametrize("name", "ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH EPERM".split())
async def test_what_the_network_reports(loop: Loop, name: str, aserver_log: LogBook) -> None:
    """An ICMP error or a firewall's, which belongs to something that was sent, costs a counter and a debug line."""
    sock = Faulty()
    code = getattr(errno, name)
    sock.receiving.extend([code] * 3)
    async with opened(loop, sock=sock) as door:
        with Peer(door.address) as peer:
            peer.send(b"next")
            assert (await door.next()).data == b"next"
        assert (door.counters.received, door.counters.receive_errors) == (1, 3)
    assert aserver_log.lines == [f"DEBUG: {door.bound.endpoint}: the network reports: {os.strerror(code)}"] * 3


@bounded
@pytest.mark.parametrize("name", ["ENOBUFS", "ENOMEM"])
async def test_kernel_is_out_of_memory(loop: Loop, name: str, aserver_log: LogBook) -> None:
    """A receive that fails for want of memory is tried again after a pause, with one warning."""
    sock = Faulty()
    sock.receiving.append(getattr(errno, name))
    async with opened(loop, sock=sock) as door:
        with Peer(door.address) as peer:
            peer.send(b"next")
            assert (await door.next()).data == b"next"
        assert door.counters.receive_errors == 1
        line = f"WARNING: udp://127.0.0.1:{door.address[1]} cannot receive: {os.strerror(getattr(errno, name))}"
        aserver_log.take(line)


@bounded
async def test_pause_is_short_again_after_a_success(loop: Loop, aserver_log: LogBook) -> None:
    """The pauses grow only from failure to failure: after a datagram has come the next one is 5 ms again."""
    sock = Faulty()
    async with opened(loop, sock=sock) as door:
        pauses: list[float] = []
        rest = door.door._rest

        async def noted(seconds: float | None) -> bool:
            if seconds:
                pauses.append(seconds)
            return await rest(seconds)

        door.door._rest = noted  # type: ignore[method-assign]  # it goes on to the real one
        with Peer(door.address) as peer:
            for _ in range(3):
                sock.receiving.append(errno.ENOBUFS)
                peer.send(b"next")
                await door.next()
        assert pauses == [0.005, 0.005, 0.005]
        aserver_log.take("cannot receive")


@bounded
@pytest.mark.parametrize("name", ["EBADF", "EINVAL", "ENOTSOCK"])
async def test_broken_socket(loop: Loop, name: str) -> None:
    """A socket that can receive no more ends with an error that names it."""
    sock = Faulty()
    sock.receiving.append(getattr(errno, name))
    door = Opened(adopted(LOCAL, sock), loop)
    with Peer(door.address) as peer:
        peer.send(b"wake up")
        with pytest.raises(ListenerFailedError, match=rf"udp://127\.0\.0\.1:.*{os.strerror(getattr(errno, name))}"):
            await door.door.accept_forever()
    door.door.close()


@bounded
async def test_no_memory_for_a_datagram(loop: Loop, aserver_log: LogBook) -> None:
    """Where Python itself has no memory to receive into, the server pauses, too, and goes on."""
    sock = Faulty()
    sock.receiving.append(0)
    async with opened(loop, sock=sock) as door:
        with Peer(door.address) as peer:
            peer.send(b"next")
            assert (await door.next()).data == b"next"
        for record in list(aserver_log.records):
            aserver_log.take(record.getMessage())


@bounded
async def test_retired(loop: Loop) -> None:
    """A socket that is retired receives nothing more, and still sends."""
    async with opened(loop) as door:
        with Peer(door.address) as peer:
            peer.send(b"before")
            got = await door.next()
            door.door.retire()
            peer.send(b"after")
            await turns()
            assert door.got == []
            await got.reply(b"answer")
            assert await peer.hear() == b"answer"


@bounded
@pytest.mark.parametrize("waiting", [0, 1, 64, 65, 200])
async def test_take_waiting(loop: Loop, waiting: int) -> None:
    """All that waits in the kernel can be received in a row; after closing that is nothing."""
    door = Opened(adopted(LOCAL), loop)
    with Peer(door.address) as peer:
        for _ in range(waiting):
            peer.send(b"x")
        door.door.take_waiting()
        assert len(door.got) == waiting
        peer.send(b"too late")
    door.door.close()
    door.door.take_waiting()
    assert len(door.got) == waiting


@linux_only
@bounded
async def test_kernel_drops_are_known(loop: Loop) -> None:
    """What the kernel dropped for want of room is known to the packet, also after closing; not what it had before."""
    bound = adopted(LOCAL)
    bound.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with Peer(bound.address) as peer:
        for _ in range(100):
            peer.send(b"x" * 1000)
        door = Opened(bound, loop)
        assert door.door.dropped_by_kernel == 0
        door.door.take_waiting()
        before = door.counters.received
        assert 0 < before < 100
        for _ in range(500):
            peer.send(b"x" * 1000)
        door.door.take_waiting()
        came = door.counters.received - before
        assert door.door.dropped_by_kernel == 500 - came > 0
    door.door.close()
    assert door.door.dropped_by_kernel == 500 - came


# --- the budget of a peer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factor, received, replies, refused",
    [
        (3, 10, [29], []),
        (3, 10, [30], []),
        (3, 10, [31], [31]),
        (3, 10, [31, 30], [31]),
        (3, 10, [10, 10, 10, 1, 0], [1]),
        (1, 0, [0, 1], [1]),
        (1.5, 3, [4, 1], [1]),
    ],
)
def test_budget(factor: float, received: int, replies: list[int], refused: list[int]) -> None:
    """A peer may be sent the factor times what it has sent, to the byte; what is refused costs nothing."""
    counters = DatagramCounters()
    budget = Budget(factor, counters)
    budget.earn(received)
    found, texts = [], []
    for size in replies:
        try:
            budget.spend(size)
        except ReplyRefusedError as exc:
            found.append(size)
            texts.append(str(exc))
    assert found == refused
    assert all(text.startswith("the reply has ") for text in texts)
    assert counters.replies_refused == len(refused)


@bounded
async def test_budget_of_a_datagram(loop: Loop) -> None:
    """The replies to one datagram share its budget; what was refused was not sent."""
    async with opened(loop) as door:
        with Peer(door.address) as peer:
            peer.send(b"1234")
            got = await door.next()
            got.budget = Budget(2, door.counters)
            got.budget.earn(4)
            await got.reply(b"12345")
            with pytest.raises(ReplyRefusedError, match="the reply has 4 bytes and its peer may be sent 3 more;"):
                await got.reply(b"1234")
            await got.reply(memoryview(b"123"))
            with pytest.raises(anyio.BrokenResourceError, match="0 more"):
                await got.reply(b"1")
            await got.reply(b"")
            assert peer.heard() == [b"12345", b"123", b""]
            assert (door.counters.sent, door.counters.replies_refused, door.counters.send_errors) == (3, 2, 0)

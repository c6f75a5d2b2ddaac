"""What the tests of the seam and of the stream share: every loop with both bodies of the seam, and connected pairs.

Lives here: parameters, and fixtures that a test module takes over by name (``stream = streams.stream``). Must not:
tests. The far end of a pair is a stdlib socket, never our own code.

    seam, anyio_backend, loop = streams.seam, streams.anyio_backend, streams.loop
    transport, connection = streams.transport, streams.connection
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import importlib.util
import select
import socket
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aserver._limits import Limits
from aserver._readiness import Loop, open_loop
from aserver._stream import Stream

from .conftest import LOOP_FACTORIES
from .peers import TIMEOUT, Client, in_thread

__all__ = [
    "SAFETY",
    "Connection",
    "CountingSocket",
    "Seam",
    "anyio_backend",
    "arrived",
    "bounded",
    "connection",
    "fill",
    "full",
    "loop",
    "narrow",
    "pair",
    "seam",
    "send_all",
    "transport",
    "turns",
]

#: The safety net of every wait: nothing takes that long unless it hangs.
SAFETY = 8.0


@dataclass(frozen=True)
class Seam:
    """A loop, and the body of the seam that is tried on it."""

    backend: tuple[str, dict[str, Any]]
    generic: bool


def _seams() -> Iterator[Any]:
    for name in ("asyncio", "uvloop"):
        if name not in LOOP_FACTORIES:
            yield pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name} is not installed"))
            continue
        backend = ("asyncio", {"loop_factory": LOOP_FACTORIES[name]})
        yield pytest.param(Seam(backend, generic=False), id=name)
        yield pytest.param(Seam(backend, generic=True), id=f"{name}-generic")
    missing = importlib.util.find_spec("trio") is None
    marks = [pytest.mark.skip(reason="trio is not installed")] if missing else []
    yield pytest.param(Seam(("trio", {}), generic=False), id="trio", marks=marks)
    yield pytest.param(Seam(("trio", {}), generic=True), id="trio-generic", marks=marks)


@pytest.fixture(scope="module", params=list(_seams()))
def seam(request: pytest.FixtureRequest) -> Seam:
    """Each loop with each body of the seam."""
    found = request.param
    assert isinstance(found, Seam)
    return found


@pytest.fixture(scope="module")
def anyio_backend(seam: Seam) -> Any:
    """The loop that belongs to `seam`, in place of the suite's own parameter."""
    return seam.backend


@pytest.fixture
async def loop(anyio_backend: Any, seam: Seam) -> AsyncIterator[Loop]:
    """The seam, open while the test runs."""
    async with open_loop(generic=seam.generic) as opened:
        yield opened


@pytest.fixture(params=["tcp", "unix"])
def transport(request: pytest.FixtureRequest) -> str:
    """What the connection is made of: TCP over the loopback interface, or a pair of Unix sockets."""
    return str(request.param)


class CountingSocket(socket.socket):
    """A real socket that counts how often it was given bytes to send."""

    sends = 0

    def send(self, data: Any, flags: int = 0, /) -> int:
        self.sends += 1
        return super().send(data, flags)


def pair(transport: str, *, narrow: bool = False) -> tuple[CountingSocket, socket.socket]:
    """Return our end, non-blocking, and the peer's end, blocking with a timeout, of a new connection.

    Args:
        transport: "tcp" or "unix".
        narrow: with the smallest buffers that the kernel lets us have, so that few bytes fill them.
    """
    if transport == "unix":
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if narrow:
            _make_narrow(theirs, ours)
    else:
        with socket.socket() as listener, contextlib.ExitStack() as stack:
            theirs = stack.enter_context(socket.socket())
            if narrow:
                _make_narrow(listener, theirs)  # inherited by what is accepted; the window is told at connect
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            theirs.connect(listener.getsockname())
            ours, _ = listener.accept()
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            stack.pop_all()
    theirs.settimeout(TIMEOUT)
    counting = CountingSocket(ours.family, ours.type, ours.proto, ours.detach())
    counting.setblocking(False)
    return counting, theirs


def _make_narrow(*socks: socket.socket) -> None:
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if sock.family != getattr(socket, "AF_UNIX", None):
            # Loopback's segments of 64 KB do not fit in such a window, and TCP would send them a timer's tick apart.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)


@dataclass
class Connection:
    """One `Stream`, the socket under it, and the peer at its other end."""

    transport: str
    loop: Loop
    limits: Limits
    sock: CountingSocket
    peer: Client
    stream: Stream
    _more: list[Connection] = field(default_factory=list)

    @classmethod
    def make(cls, transport: str, loop: Loop, limits: Limits, *, narrow: bool = False) -> Connection:
        """Connect."""
        sock, theirs = pair(transport, narrow=narrow)
        address = sock.getpeername()
        return cls(transport, loop, limits, sock, Client(theirs), Stream(sock, address, loop, limits))

    def another(self, **limits: Any) -> Connection:
        """A second connection of the same kind with *limits* of its own, closed with this one."""
        other = Connection.make(self.transport, self.loop, Limits(**limits))
        self._more.append(other)
        return other

    def close(self) -> None:
        """Close all that is open."""
        for each in (self, *self._more):
            each.stream.close_now()
            each.sock.close()
            each.peer.close()

    # -- what the peer does, from the test's own task; never more than the kernel's buffer takes -----------------------

    def receive_now(self, size: int = 65536) -> bytes:
        """What the peer has got by now, without waiting; b"" also if there is nothing."""
        with without_waiting(self.peer.sock):
            try:
                return self.peer.sock.recv(size)
            except BlockingIOError:
                return b""

    async def pushed(self, data: bytes) -> None:
        """The peer sends *data*, and it is in our kernel's buffer."""
        before = queued(self.sock)
        self.peer.send(data)
        await arrived(self.sock, before + len(data))

    async def peer_reads(self, nbytes: int) -> bytes:
        """The peer reads exactly *nbytes*, in a thread."""
        return await in_thread(self.peer.read_exactly, nbytes)


@pytest.fixture
async def narrow(anyio_backend: Any, loop: Loop, transport: str) -> AsyncIterator[Connection]:
    """A connection that few bytes fill, closed at the end."""
    made = Connection.make(transport, loop, Limits(), narrow=True)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
async def connection(anyio_backend: Any, loop: Loop, transport: str) -> AsyncIterator[Connection]:
    """A connection with the default limits, closed at the end."""
    made = Connection.make(transport, loop, Limits())
    try:
        yield made
    finally:
        made.close()


def bounded(test: Callable[..., Any]) -> Callable[..., Any]:
    """Fail a test that hangs, well before pytest-timeout takes the whole process down."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(SAFETY):
            await test(*args, **kwargs)

    return run


async def turns(count: int) -> None:
    """Let the loop turn *count* times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def queued(sock: socket.socket) -> int:
    """How many bytes wait in the kernel to be read from *sock*."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    return size[0]


async def arrived(sock: socket.socket, nbytes: int) -> None:
    """Wait until *nbytes* can be read from *sock* at once: loopback is fast, but promises nothing."""
    while queued(sock) < nbytes:
        await anyio.lowlevel.checkpoint()


def full(sock: socket.socket) -> bool:
    """Whether the kernel takes no more bytes from *sock*."""
    return not select.select([], [sock], [], 0)[1]


def send_all(sock: socket.socket, byte: bytes = b"x", chunk: int = 4096) -> int:
    """Send without waiting until the kernel takes nothing more; how many bytes that was."""
    sent = 0
    with without_waiting(sock):
        while True:
            try:
                sent += sock.send(byte * chunk)
            except BlockingIOError:
                return sent


async def fill(sock: socket.socket) -> int:
    """Send until the kernel takes nothing more and stays so, as what is on its way arrives; how many bytes that was.

    Not for a narrow TCP connection: there TCP goes on probing the window, and makes room for some bytes now and then.
    """
    sent, quiet = 0, 0
    while quiet < 20:
        more = send_all(sock, chunk=65536)
        sent, quiet = sent + more, 0 if more or not full(sock) else quiet + 1
        await turns(1)
    return sent


@contextlib.contextmanager
def without_waiting(sock: socket.socket) -> Iterator[None]:
    """Use a blocking socket as a non-blocking one for a moment."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        yield
    finally:
        sock.settimeout(timeout)

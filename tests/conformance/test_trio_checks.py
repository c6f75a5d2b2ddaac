"""trio's own stream checks, run on pairs of our Stream: what every stream of that world promises, ours promises too.

The adapter gives our Stream trio's names. What it adds, and why, is said at each place: everything else of the checks
is what the Stream itself does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from aserver._limits import Limits
from aserver._readiness import Loop, open_loop
from aserver._stream import Stream

from .. import streams

if importlib.util.find_spec("trio") is None:
    pytest.skip("trio is not installed", allow_module_level=True)

import trio
import trio.abc
import trio.testing

pytestmark = pytest.mark.anyio

transport = streams.transport


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    """trio alone."""
    return ("trio", {})


@pytest.fixture
async def loop(anyio_backend: Any) -> AsyncIterator[Loop]:
    """The seam, open while the test runs."""
    async with open_loop() as opened:
        yield opened


class Adapter(trio.abc.HalfCloseableStream):
    """Our Stream under trio's names."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._sending = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send. The checkpoint is trio's rule for every call; ours waits only when it must, as asyncio's does."""
        await self._as_sender(self.stream.send, data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes bytes. Our Stream has no such call; its socket has."""
        await self._as_sender(self._wait_writable)

    async def _wait_writable(self) -> None:
        if self.stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno() < 0:
            raise anyio.ClosedResourceError
        await anyio.wait_writable(self.stream.extra(anyio.abc.SocketAttribute.raw_socket))

    async def _as_sender(self, func: Any, *args: Any) -> None:
        # wait_send_all_might_not_block() and send_all() exclude each other, which our Stream cannot know.
        if self._sending:
            raise trio.BusyResourceError("another task is sending to this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await _translated(func, *args)
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive. Our sizes are checked by type checkers; trio's at run time."""
        if max_bytes is not None and not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer")
        size = () if max_bytes is None else (max_bytes,)
        await trio.lowlevel.checkpoint()
        try:
            received: bytes = await _translated(self.stream.receive, *size)
        except anyio.EndOfStream:
            return b""
        return received

    async def send_eof(self) -> None:
        """End our side."""
        await self._as_sender(self.stream.send_eof)

    async def aclose(self) -> None:
        """Close. A cancelled aclose() closes as well: the checkpoint comes after it."""
        sock = self.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        if sock.fileno() >= 0:
            anyio.notify_closing(sock)  # for who waits in the call that our Stream does not have
        await self.stream.aclose()
        await trio.lowlevel.checkpoint()


async def _translated(func: Any, *args: Any) -> Any:
    """Call, with anyio's exceptions turned into trio's of the same names."""
    try:
        return await func(*args)
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError from exc
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError from exc
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError from exc


def make_pair(transport: str, loop: Loop) -> tuple[Adapter, Adapter]:
    """Two ends of one connection, each with a Stream of ours."""
    ours, theirs = streams.pair(transport, narrow=True)
    theirs.setblocking(False)
    return tuple(Adapter(Stream(sock, sock.getpeername(), loop, Limits())) for sock in (ours, theirs))  # type: ignore[return-value]  # of two


@pytest.mark.parametrize("way", ["one way", "two ways", "half-closeable"])
async def test_trio_stream_checks(loop: Loop, transport: str, way: str) -> None:
    """trio's checks find nothing: sending, receiving, misuse, closing by either side, cancellation, full buffers."""

    async def maker() -> tuple[Adapter, Adapter]:
        return make_pair(transport, loop)

    async def clogged_maker() -> tuple[Adapter, Adapter]:
        first, second = make_pair(transport, loop)
        for end in (first, second):
            streams.send_all(end.stream.extra(anyio.abc.SocketAttribute.raw_socket), chunk=1)
        return first, second

    check: Any = {
        "one way": trio.testing.check_one_way_stream,
        "two ways": trio.testing.check_two_way_stream,
        "half-closeable": trio.testing.check_half_closeable_stream,
    }[way]
    # The checks of full buffers need one that stays full. A Unix socket's does; TCP goes on probing the peer's window
    # and merging what lies there, so that there is room for some bytes now and then. Everything else runs over both.
    with anyio.fail_after(20):
        await check(maker, clogged_maker if transport == "unix" else None)

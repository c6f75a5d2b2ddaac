"""The contract of the seam, `aserver._readiness`: one suite for both bodies, on every loop that can have them.

Sockets here are pairs of plain stdlib sockets; nothing of the stream is used.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from aserver._readiness import Loop, Watch, open_loop

from . import streams
from .streams import SAFETY, Seam, bounded, fill, full, turns

pytestmark = pytest.mark.anyio

seam, anyio_backend, loop, transport = streams.seam, streams.anyio_backend, streams.loop, streams.transport


class Reader:
    """What stands above the seam: a callback that reads, and keeps what it read."""

    def __init__(self, sock: socket.socket, room: int = 1 << 20) -> None:
        self.sock = sock
        self.room = room
        self.calls = 0
        self.got = b""

    def __call__(self) -> bool:
        self.calls += 1
        try:
            self.got += self.sock.recv(min(100, self.room - len(self.got)))
        except BlockingIOError:
            pass
        return len(self.got) < self.room


@pytest.fixture
def ends(transport: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end and the peer's end of a connection."""
    ours, theirs = streams.pair(transport)
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells."""
    while not condition():
        await turns(1)


async def waits(wait: Callable[[], Awaitable[object]], ended: list[str]) -> None:
    """Wait, and say when it is over."""
    await wait()
    ended.append("ended")


# --- reading ---------------------------------------------------------------------------------------------------------


@bounded
async def test_wait_readable(loop: Loop, ends: Ends) -> None:
    """A wait ends when the socket is readable, and the callback has read by then."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    ended: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_readable, ended)
        await turns(5)
        assert (ended, reader.calls) == ([], 0)
        theirs.send(b"x")
    assert reader.got == b"x"
    watch.close()


@bounded
async def test_waiting_again_and_again(loop: Loop, ends: Ends) -> None:
    """Each wait ends with what came, also if it came between two waits."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    for number in range(20):
        theirs.send(bytes([number]))
        await turns(number % 3)
        while len(reader.got) <= number:
            await watch.wait_readable()
    assert reader.got == bytes(range(20))
    watch.close()


@bounded
async def test_feeding_tells_who_reads(loop: Loop, ends: Ends) -> None:
    """While `feeding` is True the callback is called without a wait; while it is False nobody touches the socket."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    assert not watch.feeding
    theirs.send(b"a")
    await turns(5)
    assert reader.calls == 0
    while not reader.got:
        await watch.wait_readable()
    theirs.send(b"b")
    if watch.feeding:
        await until(lambda: reader.got == b"ab")
    else:
        await turns(5)
        assert reader.got == b"a"
    watch.close()


@bounded
async def test_callback_that_wants_no_more(loop: Loop, ends: Ends) -> None:
    """A callback that returned False is not called again before the next wait, which ends at once."""
    ours, theirs = ends
    reader = Reader(ours, room=3)
    watch = loop.watch(ours, reader)
    theirs.send(b"abcdef")
    while len(reader.got) < 3:
        await watch.wait_readable()
    assert not watch.feeding
    calls = reader.calls
    await turns(5)
    assert reader.calls == calls
    reader.room = 6
    while len(reader.got) < 6:
        await watch.wait_readable()
    assert reader.got == b"abcdef"
    watch.close()


@bounded
async def test_pause(loop: Loop, ends: Ends) -> None:
    """After pause() the socket is left alone until the next wait; to pause twice is to pause."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    theirs.send(b"a")
    await watch.wait_readable()
    watch.pause()
    watch.pause()
    assert not watch.feeding
    theirs.send(b"b")
    await turns(5)
    assert reader.got == b"a"
    await watch.wait_readable()
    assert reader.got == b"ab"
    watch.close()


@bounded
async def test_end_and_reset_are_readable(loop: Loop, ends: Ends) -> None:
    """A wait ends also because the peer has ended its side."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_readable, [])
        await turns(3)
        theirs.close()
    assert reader.calls >= 1
    watch.close()


# --- writing ---------------------------------------------------------------------------------------------------------


@bounded
async def test_wait_writable(loop: Loop, ends: Ends) -> None:
    """A wait ends when the peer has read and the socket takes bytes again, not before."""
    ours, theirs = ends
    watch = loop.watch(ours, Reader(ours))
    await watch.wait_writable()  # nothing is in the way
    sent = await fill(ours)
    ended: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_writable, ended)
        await turns(5)
        assert ended == []
        got = 0
        while got < sent:
            got += len(theirs.recv(1 << 20))
    assert not full(ours)
    watch.close()


@bounded
async def test_reading_and_writing_at_once(loop: Loop, ends: Ends) -> None:
    """One task waits to read while another waits to write; each ends by its own event."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    sent = await fill(ours)
    written: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_writable, written)
        await turns(3)
        theirs.send(b"x")
        while not reader.got:
            await watch.wait_readable()
        assert written == []
        got = 0
        while got < sent:
            got += len(theirs.recv(1 << 20))
    assert (reader.got, written) == (b"x", ["ended"])
    watch.close()


# --- wake and close --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["wake", "close"])
@pytest.mark.parametrize("after", range(4))
@bounded
async def test_woken(loop: Loop, ends: Ends, way: str, after: int) -> None:
    """wake() and close() end both waits under way, at whatever turn they come, without a byte having come."""
    ours, _ = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    await fill(ours)
    ended: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_readable, ended)
        tasks.start_soon(waits, watch.wait_writable, ended)
        await turns(after + 2)  # trio starts new tasks in any order: one turn may be too early
        assert ended == []
        getattr(watch, way)()
        if way == "close":
            ours.close()
    assert ended == ["ended"] * 2
    assert reader.got == b""
    watch.close()


@pytest.mark.parametrize("way", ["wake", "close"])
@bounded
async def test_nobody_to_wake(loop: Loop, ends: Ends, way: str) -> None:
    """wake() and close() without a wait do nothing, before the first wait and after one, and may be repeated."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    watch.wake()
    theirs.send(b"x")
    await watch.wait_readable()
    await watch.wait_writable()
    for _ in range(2):
        getattr(watch, way)()
    await turns(3)
    assert reader.got == b"x"
    watch.close()


@bounded
async def test_waiting_after_a_wake(loop: Loop, ends: Ends) -> None:
    """A wake() is for the waits under way: the next one waits for its own event."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    ended: list[str] = []
    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits, watch.wait_readable, ended)
            await turns(3)
            watch.wake()
    ended.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_readable, ended)
        await turns(5)
        assert ended == []
        theirs.send(b"x")
    assert reader.got == b"x"
    watch.close()


@bounded
async def test_wake_after_the_socket_was_closed(loop: Loop, ends: Ends) -> None:
    """pause(), wake() and close() are harmless after close() and after the socket itself was closed."""
    ours, theirs = ends
    watch = loop.watch(ours, Reader(ours))
    theirs.send(b"x")
    await watch.wait_readable()
    watch.close()
    ours.close()
    watch.pause()
    watch.wake()
    watch.close()
    assert not watch.feeding


async def reuse(sock: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Close *sock* and connect a new pair whose near end has its number."""
    fd = sock.fileno()
    near, far = socket.socketpair()
    spare = os.dup(near.fileno())
    near.close()
    sock.close()
    os.dup2(spare, fd)
    os.close(spare)
    again = socket.socket(fileno=fd)
    again.setblocking(False)
    return again, far


@pytest.mark.parametrize("waiting", ["reading", "writing", "fed"])
@bounded
async def test_number_used_again(loop: Loop, ends: Ends, waiting: str) -> None:
    """After close() the number of the descriptor may be another socket's: its events are not ours, nor ours its."""
    ours, theirs = ends
    first = Reader(ours)
    watch = loop.watch(ours, first)
    ended: list[str] = []
    async with anyio.create_task_group() as tasks:
        if waiting == "writing":
            await fill(ours)
            tasks.start_soon(waits, watch.wait_writable, ended)
        elif waiting == "reading":
            tasks.start_soon(waits, watch.wait_readable, ended)
        else:
            theirs.send(b"x")
            await watch.wait_readable()
        await turns(3)
        calls = first.calls
        watch.close()
        again, far = await reuse(ours)
        second = Reader(again)
        other = loop.watch(again, second)
        far.send(b"new")
        await turns(5)
        while not second.got:
            await other.wait_readable()
        await other.wait_writable()
    assert second.got == b"new"
    assert first.calls == calls
    other.close()
    again.close()
    far.close()


@bounded
async def test_handed_on_while_open(loop: Loop, ends: Ends) -> None:
    """After close() the open socket is nobody's: it can be watched again, and a plain wait gets its events."""
    ours, theirs = ends
    first = Reader(ours)
    watch = loop.watch(ours, first)
    theirs.send(b"a")
    await watch.wait_readable()
    watch.close()
    theirs.send(b"b")
    await turns(5)
    assert first.got == b"a"
    await anyio.wait_readable(ours)
    second = Reader(ours)
    other = loop.watch(ours, second)
    while not second.got:
        await other.wait_readable()
    assert (first.got, second.got) == (b"a", b"b")
    other.close()


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(5))
@bounded
async def test_cancelled_wait_then_another(loop: Loop, ends: Ends, after: int) -> None:
    """After a wait that was cancelled, at whatever turn, the next one waits and ends as if it were the first."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    sent = await fill(ours)
    ended: list[str] = []
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits, watch.wait_readable, ended)
            tasks.start_soon(waits, watch.wait_writable, ended)
            await turns(after)
            tasks.cancel_scope.cancel()
        assert ended == []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits, watch.wait_readable, ended)
        tasks.start_soon(waits, watch.wait_writable, ended)
        await turns(3)
        assert ended == []
        theirs.send(b"x")
        got = 0
        while got < sent:
            got += len(theirs.recv(1 << 20))
    assert (reader.got, ended) == (b"x", ["ended"] * 2)
    watch.close()


@bounded
async def test_cancelled_and_readable_in_one_turn(loop: Loop, ends: Ends) -> None:
    """A wait that is cancelled in the turn in which bytes come loses none of them."""
    ours, theirs = ends
    reader = Reader(ours)
    watch = loop.watch(ours, reader)
    for number in range(12):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waits, watch.wait_readable, [])
            await turns(3)
            theirs.send(bytes([number]))
            await turns(number % 3)
            tasks.cancel_scope.cancel()
    while len(reader.got) < 12:
        await watch.wait_readable()
    assert reader.got == bytes(range(12))
    watch.close()


@bounded
async def test_shielded_wait(seam: Seam, anyio_backend: Any, ends: Ends) -> None:
    """A wait that is shielded still gets its event while everything around it is being cancelled, the seam included."""
    ours, theirs = ends
    reader = Reader(ours)
    ended: list[str] = []

    async def shielded(watch: Watch) -> None:
        with anyio.fail_after(SAFETY / 2, shield=True):
            while not reader.got:
                await watch.wait_readable()
            ended.append("read")
            while full(ours):
                await watch.wait_writable()
            ended.append("written")

    with anyio.CancelScope() as scope:
        async with open_loop(generic=seam.generic) as opened:
            watch = opened.watch(ours, reader)
            sent = await fill(ours)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(shielded, watch)
                await turns(3)
                scope.cancel()
                with anyio.fail_after(SAFETY / 4, shield=True):
                    await turns(5)
                    assert ended == []
                    theirs.send(b"x")
                    await until(lambda: bool(ended))
                    got = 0
                    while got < sent:
                        got += len(theirs.recv(1 << 20))
            watch.close()
    assert ended == ["read", "written"]


# --- pump ------------------------------------------------------------------------------------------------------------


@bounded
async def test_pump(loop: Loop, ends: Ends) -> None:
    """pump() calls back each time the socket is readable, and returns when the callback returns False."""
    ours, theirs = ends
    reader = Reader(ours, room=3)
    done: list[str] = []

    async def pump() -> None:
        await loop.pump(ours, reader)
        done.append("done")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pump)
        for number in range(3):
            await turns(3)
            assert (reader.calls, done) == (number, [])
            theirs.send(b"x")
            await until(lambda: reader.calls > number)  # noqa: B023 - it is over before the next round
    assert done == ["done"]
    calls = reader.calls
    theirs.send(b"y")
    await turns(5)
    assert reader.calls == calls
    await anyio.wait_readable(ours)  # nobody is left in the way


@pytest.mark.parametrize("after", range(4))
@bounded
async def test_cancelled_pump(loop: Loop, ends: Ends, after: int) -> None:
    """A pump that is cancelled leaves the socket alone, and can be started again."""
    ours, theirs = ends
    reader = Reader(ours, room=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.pump, ours, reader)
        await turns(after)
        tasks.cancel_scope.cancel()
    theirs.send(b"ab")
    await turns(5)
    assert reader.calls == 0
    await loop.pump(ours, reader)
    assert reader.got == b"ab"


@bounded
async def test_pump_of_many_sockets(loop: Loop) -> None:
    """Several sockets are pumped at once, each with its own events."""
    pairs = [socket.socketpair() for _ in range(5)]
    readers = [Reader(ours, room=1) for ours, _ in pairs]
    async with anyio.create_task_group() as tasks:
        for (ours, _), reader in zip(pairs, readers, strict=True):
            ours.setblocking(False)
            tasks.start_soon(loop.pump, ours, reader)
        await turns(3)
        for number, (_, theirs) in enumerate(pairs):
            theirs.send(bytes([number]))
    assert [reader.got for reader in readers] == [bytes([number]) for number in range(5)]
    for pair in pairs:
        for sock in pair:
            sock.close()


@bounded
async def test_closing_another_socket_in_a_callback(loop: Loop) -> None:
    """A callback may close the watch and the socket of another that became readable in the same turn."""
    pairs = [socket.socketpair() for _ in range(2)]
    watches: list[Watch] = []
    called: list[int] = []

    def closing(mine: int) -> Callable[[], bool]:
        def callback() -> bool:
            called.append(mine)
            pairs[mine][0].recv(100)
            watches[1 - mine].close()
            pairs[1 - mine][0].close()
            return True

        return callback

    for number, (ours, _) in enumerate(pairs):
        ours.setblocking(False)
        watches.append(loop.watch(ours, closing(number)))
    async with anyio.create_task_group() as tasks:
        for watch in watches:
            tasks.start_soon(waits, watch.wait_readable, [])
        await turns(3)
        for _, theirs in pairs:
            theirs.send(b"x")
    assert len(called) == 1
    for watch, pair in zip(watches, pairs, strict=True):
        watch.close()
        for sock in pair:
            sock.close()


# --- tasks -----------------------------------------------------------------------------------------------------------


@bounded
async def test_spawn(loop: Loop) -> None:
    """A spawned function runs with its arguments, not before the one who spawns it waits or at once, but by itself."""
    got: list[object] = []
    done = anyio.Event()

    async def run(*args: object) -> None:
        await turns(1)
        got.extend(args)
        done.set()

    loop.spawn(run, 1, "two")
    await done.wait()
    assert got == [1, "two"]


@pytest.mark.parametrize("after", range(4))
@bounded
async def test_cancelled_task(loop: Loop, after: int) -> None:
    """A task that is cancelled, also before it started, is cancelled where it waits: its clean-up always runs.

    A connection's task holds a socket and a permit: a body that never ran would keep both for ever.
    """
    log: list[object] = []

    async def run() -> None:
        log.append("started")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            log.append(loop.cancelling())
            raise
        finally:
            log.append("cleaned up")

    task = loop.spawn(run)
    await turns(after)
    loop.cancel(task)
    await turns(5)
    assert log == ["started", True, "cleaned up"]


@bounded
async def test_cancelling_twice_and_too_late(loop: Loop) -> None:
    """To cancel a task twice, or one that has ended, does nothing more; the others run on."""
    ended: list[str] = []

    async def run(name: str, count: int) -> None:
        try:
            await turns(count)
        finally:
            ended.append(name)

    short, long, other = loop.spawn(run, "short", 1), loop.spawn(run, "long", 1000), loop.spawn(run, "other", 8)
    await turns(4)
    assert ended == ["short"]
    loop.cancel(short)
    loop.cancel(long)
    loop.cancel(long)
    await until(lambda: len(ended) == 3)
    assert ended == ["short", "long", "other"]
    loop.cancel(other)
    await turns(3)


@bounded
async def test_spawned_from_a_spawned_task(loop: Loop) -> None:
    """A task may spawn another, and end before it."""
    ended: list[str] = []

    async def inner() -> None:
        await turns(3)
        ended.append("inner")

    async def outer() -> None:
        keep.append(loop.spawn(inner))
        ended.append("outer")

    keep: list[Any] = []
    keep.append(loop.spawn(outer))
    await until(lambda: len(ended) == 2)
    assert ended == ["outer", "inner"]


@bounded
async def test_call_soon(loop: Loop) -> None:
    """A callback is called once, not within call_soon() but soon, also while everybody else waits."""
    called: list[int] = []
    done = anyio.Event()
    loop.call_soon(lambda: called.append(1))
    assert called == []
    loop.call_soon(done.set)
    await done.wait()
    await turns(3)
    assert called == [1]


def descriptors() -> set[str]:
    """The open descriptors of this process, where the system lists them."""
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


@bounded
async def test_nothing_is_left_of_a_loop(seam: Seam, anyio_backend: Any) -> None:
    """Leaving the block leaves no descriptor behind, however often, and a new one can be opened at once."""
    before = descriptors()
    for _ in range(3):
        async with open_loop(generic=seam.generic) as opened:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with ours, theirs:
                reader = Reader(ours)
                watch = opened.watch(ours, reader)
                theirs.send(b"x")
                while not reader.got:
                    await watch.wait_readable()
                watch.close()
    assert descriptors() == before


@pytest.fixture
async def two_loops(anyio_backend: Any, seam: Seam) -> AsyncIterator[tuple[Loop, Loop]]:
    """Two seams open in one event loop, as two servers in one program have."""
    async with open_loop(generic=seam.generic) as first, open_loop(generic=seam.generic) as second:
        yield first, second


@bounded
async def test_two_servers_in_one_loop(two_loops: tuple[Loop, Loop]) -> None:
    """Two seams open in one event loop do not disturb each other."""
    pairs = [socket.socketpair() for _ in two_loops]
    readers = []
    for opened, (ours, theirs) in zip(two_loops, pairs, strict=True):
        ours.setblocking(False)
        readers.append(Reader(ours))
        watch = opened.watch(ours, readers[-1])
        theirs.send(b"x")
        while not readers[-1].got:
            await watch.wait_readable()
        watch.close()
    for pair in pairs:
        for sock in pair:
            sock.close()

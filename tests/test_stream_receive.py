"""The promises of `aserver.Stream` about receiving: lines, blocks, messages, their limits, and that nothing is lost.

Each test runs over TCP and a Unix socket, on each loop and with each body of the seam; the peer is a stdlib socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.text import TextReceiveStream

from aserver._stream import READ_AHEAD, YIELD_EVERY, Stream

from . import streams
from .peers import in_thread
from .streams import Connection, arrived, bounded, queued, turns

pytestmark = pytest.mark.anyio

seam, anyio_backend, loop = streams.seam, streams.anyio_backend, streams.loop
transport, connection, narrow = streams.transport, streams.connection, streams.narrow

#: Each way to receive, asked for something that needs more than the byte that is there.
Receiver = Callable[[Stream], Coroutine[Any, Any, object]]
RECEIVERS: dict[str, Receiver] = {
    "receive": lambda stream: stream.receive(),
    "receive_exactly": lambda stream: stream.receive_exactly(10),
    "receive_until": lambda stream: stream.receive_until(b"--"),
    "receive_all": lambda stream: stream.receive_all(),
    "readline": lambda stream: stream.readline(),
    "async for": lambda stream: anext(stream),
}

each_receiver = pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)


async def all_of(stream: Stream) -> bytes:
    """Receive chunk by chunk until the end."""
    return b"".join([chunk async for chunk in ChunkReader(stream)])


class ChunkReader:
    """Iterate over what receive() gives, as anyio's own byte streams are iterated."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __aiter__(self) -> ChunkReader:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.stream.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


async def start_waiting(receiver: Receiver, stream: Stream, ended: Callable[[object], None]) -> None:
    """Receive, and hand on what came of it: the value or the exception."""
    try:
        ended(await receiver(stream))
    except Exception as exc:  # noqa: BLE001 - the test looks at it
        ended(exc)


# --- receive ---------------------------------------------------------------------------------------------------------


@bounded
async def test_receive_gives_what_is_there(connection: Connection) -> None:
    """receive() returns what has come, without waiting for more."""
    await connection.pushed(b"hello")
    assert await connection.stream.receive() == b"hello"


@bounded
async def test_receive_waits_for_the_first_byte(connection: Connection) -> None:
    """receive() waits while nothing is there, and then returns."""
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_waiting, RECEIVERS["receive"], connection.stream, got.append)
        await turns(5)
        assert got == []
        connection.peer.send(b"x")
    assert got == [b"x"]


@pytest.mark.parametrize("size", [1, 4, 5, 6])
@bounded
async def test_receive_at_most(connection: Connection, size: int) -> None:
    """receive(n) returns at most n bytes, and the rest stays for the next one."""
    await connection.pushed(b"hello")
    assert await connection.stream.receive(size) == b"hello"[:size]
    if size < 5:
        assert await connection.stream.receive() == b"hello"[size:]


@pytest.mark.parametrize("size", [0, -1])
@bounded
async def test_receive_of_nothing_is_refused(connection: Connection, size: int) -> None:
    """receive() refuses a size below one and says which."""
    with pytest.raises(ValueError, match=f"max_bytes is {size}; it must be at least 1"):
        await connection.stream.receive(size)


@bounded
async def test_receive_at_the_end(connection: Connection) -> None:
    """What the peer sent before it ended its side is received, then EndOfStream, each time."""
    await connection.pushed(b"last")
    connection.peer.end()
    assert await connection.stream.receive() == b"last"
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await connection.stream.receive()


# --- receive_exactly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, READ_AHEAD - 1, READ_AHEAD, READ_AHEAD + 1, 3 * READ_AHEAD + 7])
@bounded
async def test_receive_exactly(connection: Connection, size: int) -> None:
    """receive_exactly(n) returns n bytes for any n, also above the read-ahead, and leaves the next one alone."""
    data = bytes(range(256)) * (size // 256 + 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_thread, connection.peer.send, data[:size] + b"rest")
        assert await connection.stream.receive_exactly(size) == data[:size]
        assert await connection.stream.receive_exactly(4) == b"rest"


@bounded
async def test_receive_exactly_of_nothing_at_the_end(connection: Connection) -> None:
    """receive_exactly(0) is an empty block, also at the end of the stream."""
    connection.peer.end()
    assert await connection.stream.receive_exactly(0) == b""
    with pytest.raises(anyio.EndOfStream):
        await connection.stream.receive()
    assert await connection.stream.receive_exactly(0) == b""


@bounded
async def test_receive_exactly_too_early_an_end(connection: Connection) -> None:
    """An end in the middle of a block is IncompleteRead, and what came can still be received."""
    await connection.pushed(b"1234")
    connection.peer.end()
    for _ in range(2):
        with pytest.raises(anyio.IncompleteRead):
            await connection.stream.receive_exactly(5)
    assert await connection.stream.receive_exactly(3) == b"123"
    assert await connection.stream.receive() == b"4"


@bounded
async def test_receive_exactly_limit(connection: Connection) -> None:
    """A block of Limits.max_exact_size is received, one byte more is refused at once, and so is a negative one."""
    limited = connection.another(max_exact_size=10)
    await limited.pushed(b"0123456789")
    for size in (-1, 11, 4 << 30):
        with pytest.raises(ValueError, match=rf"receive_exactly\({size}\) is outside 0 to 10 bytes; raise Limits.max"):
            await limited.stream.receive_exactly(size)
    assert await limited.stream.receive_exactly(9) == b"012345678"
    await limited.pushed(b"abcdefghi")
    assert await limited.stream.receive_exactly(10) == b"9abcdefghi"


# --- receive_until ---------------------------------------------------------------------------------------------------


@bounded
async def test_receive_until(connection: Connection) -> None:
    """receive_until() returns what is before the delimiter and takes the delimiter, whatever its length."""
    await connection.pushed(b"a;b--c\r\n\r\nd--")
    assert await connection.stream.receive_until(b";") == b"a"
    assert await connection.stream.receive_until(b"--") == b"b"
    assert await connection.stream.receive_until(b"\r\n\r\n") == b"c"
    assert await connection.stream.receive_until(b"d--") == b""


@bounded
async def test_receive_until_byte_by_byte(connection: Connection) -> None:
    """A message whose delimiter comes in pieces is found, and a part of a delimiter is none."""
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_waiting, lambda stream: stream.receive_until(b"\r\n"), connection.stream, got.append)
        for byte in b"a\rb\r\r\n":
            assert got == []
            connection.peer.send(bytes([byte]))
            await turns(3)
    assert got == [b"a\rb\r"]


@bounded
async def test_receive_until_refuses_an_empty_delimiter(connection: Connection) -> None:
    """An empty delimiter, which every position has, is refused."""
    with pytest.raises(ValueError, match="the delimiter is empty"):
        await connection.stream.receive_until(b"")


@bounded
async def test_receive_until_too_early_an_end(connection: Connection) -> None:
    """An end before the delimiter is IncompleteRead, and what came can still be received."""
    await connection.pushed(b"half a message")
    connection.peer.end()
    for _ in range(2):
        with pytest.raises(anyio.IncompleteRead):
            await connection.stream.receive_until(b"--")
    assert await connection.stream.receive() == b"half a message"


@pytest.mark.parametrize("limit, found", [(6, False), (7, True), (8, True)])
@bounded
async def test_receive_until_limit(connection: Connection, limit: int, found: bool) -> None:
    """A message of the limit's size is received, one byte more is DelimiterNotFound and stays."""
    await connection.pushed(b"12345--rest")
    if found:
        assert await connection.stream.receive_until(b"--", limit) == b"12345"
        assert await connection.stream.receive() == b"rest"
    else:
        with pytest.raises(anyio.DelimiterNotFound):
            await connection.stream.receive_until(b"--", limit)
        assert await connection.stream.receive() == b"12345--rest"


@pytest.mark.parametrize("excess", [-1, 0, 1])
@bounded
async def test_default_limit_of_a_message(connection: Connection, excess: int) -> None:
    """Without a limit of its own receive_until() gathers Limits.max_line_size bytes and not one more."""
    limited = connection.another(max_line_size=100)
    message = b"x" * (98 + excess)
    limited.peer.send(message + b"--rest")
    if excess <= 0:
        assert await limited.stream.receive_until(b"--") == message
    else:
        with pytest.raises(anyio.DelimiterNotFound):
            await limited.stream.receive_until(b"--")
        assert await limited.stream.receive_until(b"--", 1000) == message
    assert await limited.stream.receive_exactly(4) == b"rest"


@pytest.mark.parametrize("size", [READ_AHEAD - 1, READ_AHEAD, READ_AHEAD + 1, 4 * READ_AHEAD])
@bounded
async def test_message_longer_than_the_read_ahead(connection: Connection, size: int) -> None:
    """A message as long as the limit it is given is received, also where the read-ahead is shorter."""
    message = b"x" * (size - 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_thread, connection.peer.send, message + b"\n" + message + b"\nend")
        assert await connection.stream.receive_until(b"\n", size) == message
        assert await connection.stream.readline(size) == message + b"\n"
        assert await connection.stream.receive_exactly(3) == b"end"


# --- lines -----------------------------------------------------------------------------------------------------------


@bounded
async def test_readline_like_a_file(connection: Connection) -> None:
    """readline() keeps the line end; at the end comes what is left without one, then b"" for good."""
    await connection.pushed(b"one\n\ntwo\r\nthree")
    connection.peer.end()
    assert [await connection.stream.readline() for _ in range(6)] == [b"one\n", b"\n", b"two\r\n", b"three", b"", b""]


@bounded
async def test_async_for(connection: Connection) -> None:
    """Iteration gives the same lines as readline() and stops at the end, also a second time."""
    await connection.pushed(b"one\n\ntwo\r\nthree")
    connection.peer.end()
    assert [line async for line in connection.stream] == [b"one\n", b"\n", b"two\r\n", b"three"]
    assert [line async for line in connection.stream] == []


@bounded
async def test_lines_byte_by_byte(connection: Connection) -> None:
    """A line that comes byte by byte is given out when it is complete, not before."""
    got: list[object] = []

    async def lines() -> None:
        async for line in connection.stream:
            got.append(line)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lines)
        for byte in b"one\ntwo\n\nlast":
            connection.peer.send(bytes([byte]))
            await arrived(connection.sock, 0)
            await turns(4)
        connection.peer.end()
    assert got == [b"one\n", b"two\n", b"\n", b"last"]


@pytest.mark.parametrize("limit, found", [(5, False), (6, True), (7, True)])
@pytest.mark.parametrize("waiting", [False, True], ids=["there", "waiting"])
@bounded
async def test_line_limit(connection: Connection, limit: int, found: bool, waiting: bool) -> None:
    """A line of the limit's size is received, one byte more is DelimiterNotFound and stays; here already or not."""
    got: list[object] = []
    await connection.pushed(b"first\n")
    assert await connection.stream.readline(6) == b"first\n"
    async with anyio.create_task_group() as tasks:
        if not waiting:
            await connection.pushed(b"12345\nrest")
        tasks.start_soon(start_waiting, lambda stream: stream.readline(limit), connection.stream, got.append)
        if waiting:
            await turns(3)
            await connection.pushed(b"12345\nrest")
    if found:
        assert got == [b"12345\n"]
        assert await connection.stream.receive() == b"rest"
    else:
        assert isinstance(got[0], anyio.DelimiterNotFound)
        assert await connection.stream.receive() == b"12345\nrest"


@pytest.mark.parametrize("iterating", [False, True], ids=["readline", "async for"])
@bounded
async def test_endless_line(connection: Connection, iterating: bool) -> None:
    """A line that does not end is refused at the limit, each time, and nothing of it is lost."""
    limited = connection.another(max_line_size=100)
    await limited.pushed(b"x" * 100)
    for _ in range(2):
        with pytest.raises(anyio.DelimiterNotFound, match="100"):
            await (anext(limited.stream) if iterating else limited.stream.readline())
    await limited.pushed(b"y\n")
    assert await limited.stream.receive_exactly(102) == b"x" * 100 + b"y\n"


# --- receive_all -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, READ_AHEAD, 5 * READ_AHEAD + 1])
@bounded
async def test_receive_all(connection: Connection, size: int) -> None:
    """receive_all() returns everything up to the end, and b"" after it."""
    data = bytes(range(256)) * (size // 256 + 1)

    def talk() -> None:
        connection.peer.send(data[:size])
        connection.peer.end()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_thread, talk)
        assert await connection.stream.receive_all() == data[:size]
    assert await connection.stream.receive_all() == b""


@pytest.mark.parametrize("size", [9, 10, 11])
@pytest.mark.parametrize("ahead", [False, True], ids=["fresh", "read ahead"])
@bounded
async def test_receive_all_limit(connection: Connection, size: int, ahead: bool) -> None:
    """Limits.max_exact_size bytes are collected, one more is DelimiterNotFound and stays, however they came."""
    limited = connection.another(max_exact_size=10)
    data = b"0123456789a"[:size]
    if ahead:
        limited.peer.send(b"x" + data)
        limited.peer.end()
        assert await limited.stream.receive(1) == b"x"
        await turns(5)  # where the loop reads by itself it has read the end, too
    else:
        limited.peer.send(data)
        limited.peer.end()
    if size <= 10:
        assert await limited.stream.receive_all() == data
    else:
        for _ in range(3):
            with pytest.raises(anyio.DelimiterNotFound):
                await limited.stream.receive_all()
        assert await limited.stream.receive() == data


# --- cancellation ----------------------------------------------------------------------------------------------------


@each_receiver
@bounded
async def test_cancelled_receive_loses_nothing(connection: Connection, receiver: Receiver) -> None:
    """A receive that is cancelled at any turn of its wait leaves every byte to the next one."""
    for after in range(6):
        await cancel_after(connection.another(), receiver, after)


async def cancel_after(connection: Connection, receiver: Receiver, after: int) -> None:
    """Cancel a receive after so many turns: the bytes before, meanwhile and afterwards are all there."""
    await connection.pushed(b"a")
    async with anyio.create_task_group() as tasks:
        got: list[object] = []
        if receiver is RECEIVERS["receive"]:
            got.append(await connection.stream.receive(1))
        tasks.start_soon(start_waiting, receiver, connection.stream, got.append)
        await turns(after)
        if got[-1:] != [b"a"] or receiver is RECEIVERS["receive"]:
            connection.peer.send(b"b")
        tasks.cancel_scope.cancel()
    await turns(3)
    connection.peer.send(b"c")
    connection.peer.end()
    rest = await all_of(connection.stream)
    assert b"".join(each for each in got if isinstance(each, bytes)) + rest == b"abc"


@each_receiver
@bounded
async def test_cancelled_between_every_two_bytes(connection: Connection, receiver: Receiver) -> None:
    """A sender that sends byte by byte and a receiver that is cancelled after each of them lose nothing."""
    message = b"a-b\nc--d\n" * 3
    got = b""
    for byte in message:
        connection.peer.send(bytes([byte]))
        for after in (0, 1, 2):
            taken: list[object] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start_waiting, receiver, connection.stream, taken.append)
                await turns(after)
                tasks.cancel_scope.cancel()
            for each in taken:
                assert isinstance(each, bytes), each
                got += each + (b"--" if receiver is RECEIVERS["receive_until"] else b"")
    connection.peer.end()
    assert got + await all_of(connection.stream) == message


@each_receiver
@bounded
async def test_cancelled_while_it_lets_the_others_run(connection: Connection, receiver: Receiver) -> None:
    """A message that was taken out of the buffer is handed over even if its task is being cancelled.

    Each message that is buffered is asked for under a cancellation that is requested already: whatever does not come
    back must still be there afterwards, also where the stream yields to the loop every so often.
    """
    count = 3 * YIELD_EVERY
    messages = b"".join(b"%06d--\n " % number for number in range(count))  # ten bytes each
    await connection.pushed(messages)
    got = b""
    for _ in range(count):
        with anyio.CancelScope() as scope:
            scope.cancel()
            if receiver is RECEIVERS["receive"]:
                got += await connection.stream.receive(10)
            else:
                taken = await receiver(connection.stream)
                assert isinstance(taken, bytes)
                got += taken + (b"--" if receiver is RECEIVERS["receive_until"] else b"")
    connection.peer.end()
    assert got + await all_of(connection.stream) == messages


@bounded
async def test_cancelled_then_received_by_another_task(connection: Connection) -> None:
    """After a cancelled receive another task can receive at once: the stream is not left marked busy."""
    with anyio.move_on_after(0):
        await connection.stream.receive()
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_waiting, RECEIVERS["receive"], connection.stream, got.append)
        await turns(2)
        connection.peer.send(b"x")
    assert got == [b"x"]


@bounded
async def test_cancelled_in_the_turn_in_which_it_comes(connection: Connection) -> None:
    """Bytes that come in the very turn in which the receive is cancelled are not lost, whoever is first."""
    for number in range(20):
        got: list[object] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_waiting, RECEIVERS["readline"], connection.stream, got.append)
            await turns(3)
            connection.peer.send(b"%d\n" % number)
            await turns(number % 3)
            tasks.cancel_scope.cancel()
        line = got[0] if got else await connection.stream.readline()
        assert line == b"%d\n" % number


# --- two tasks -------------------------------------------------------------------------------------------------------


@each_receiver
@bounded
async def test_two_receivers(connection: Connection, receiver: Receiver) -> None:
    """A second task that receives gets BusyResourceError at once; the first one gets its bytes."""
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_waiting, receiver, connection.stream, got.append)
        await turns(3)
        for second in RECEIVERS.values():
            with pytest.raises(anyio.BusyResourceError, match="receiving from"):
                await second(connection.stream)
        await turns(3)
        assert got == []
        connection.peer.send(b"abcd\nefg--\n")
        connection.peer.end()
    assert isinstance(got[0], bytes)
    assert b"abcd\nefg--\n".startswith(got[0])


# --- lost and closed -------------------------------------------------------------------------------------------------


@each_receiver
@pytest.mark.parametrize("waiting", [False, True], ids=["before", "waiting"])
@bounded
async def test_reset_by_the_peer(connection: Connection, transport: str, receiver: Receiver, waiting: bool) -> None:
    """A connection that the peer resets is BrokenResourceError for who receives, at once and from then on."""
    if transport == "unix":
        # A Unix socket is reset when its peer closes without reading what we sent.
        await connection.stream.send(b"unread")
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        if not waiting:
            connection.peer.reset()
        tasks.start_soon(start_waiting, receiver, connection.stream, got.append)
        await turns(3)
        if waiting:
            assert got == []
            connection.peer.reset()
    assert isinstance(got[0], anyio.BrokenResourceError), got
    assert isinstance(got[0].__cause__, ConnectionResetError)
    with pytest.raises(anyio.BrokenResourceError):
        await receiver(connection.stream)
    with pytest.raises(anyio.BrokenResourceError):
        await connection.stream.send(b"x")


@bounded
async def test_reset_after_data(connection: Connection) -> None:
    """What had been received before the reset is still given out, then BrokenResourceError."""
    if connection.transport == "unix":
        await connection.stream.send(b"unread")
    await connection.pushed(b"one\ntwo\nthr")
    assert await connection.stream.readline() == b"one\n"
    connection.peer.reset()
    assert await connection.stream.readline() == b"two\n"
    with pytest.raises(anyio.BrokenResourceError):
        await connection.stream.readline()


@each_receiver
@pytest.mark.parametrize("how", ["aclose", "close_now", "abort"])
@bounded
async def test_closed_while_receiving(connection: Connection, receiver: Receiver, how: str) -> None:
    """A task that receives while another closes gets ClosedResourceError, at whatever turn of its wait."""
    for after in range(5):
        await close_after(connection.another(), receiver, how, after)


async def close_after(connection: Connection, receiver: Receiver, how: str, after: int) -> None:
    """Close after so many turns of a receive."""
    await connection.pushed(b"a")
    assert await connection.stream.receive() == b"a"
    got: list[object] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_waiting, receiver, connection.stream, got.append)
        await turns(after)
        if how == "aclose":
            await connection.stream.aclose()
        else:
            getattr(connection.stream, how)()
    assert isinstance(got[0], anyio.ClosedResourceError), got


@each_receiver
@bounded
async def test_receive_on_a_closed_stream(connection: Connection, receiver: Receiver) -> None:
    """To receive from a closed stream is ClosedResourceError, whatever was buffered."""
    await connection.pushed(b"one\ntwo\n")
    assert await connection.stream.readline() == b"one\n"
    await connection.stream.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await receiver(connection.stream)


# --- bounded read-ahead ----------------------------------------------------------------------------------------------


def kernel_capacity(connection: Connection) -> int:
    """How much an unread connection of this kind takes when nobody at all reads."""
    ours, theirs = streams.pair(connection.transport, narrow=True)
    with ours, theirs:
        return streams.send_all(theirs)


@pytest.mark.parametrize("first", [b"", b"line\n"], ids=["never read", "has read a line"])
@bounded
async def test_bounded_read_ahead(narrow: Connection, first: bytes) -> None:
    """Of a peer that pushes to a handler that does not read, 64 KiB are read ahead; then TCP pushes back."""
    if first:
        await narrow.pushed(first)
        assert await narrow.stream.readline() == first
    pushed, idle = 0, 0
    while idle < 50:  # as long as the loop makes room, the peer sends on
        more = streams.send_all(narrow.peer.sock)
        pushed, idle = pushed + more, 0 if more else idle + 1
        await turns(1)
        assert pushed < 2 << 20, "there is no bound"
    assert pushed <= kernel_capacity(narrow) + READ_AHEAD + 16384
    assert queued(narrow.sock) > 0
    # and nothing of it is lost
    assert await narrow.stream.receive_exactly(pushed) == b"x" * pushed


@bounded
async def test_nothing_is_read_before_the_first_receive(connection: Connection) -> None:
    """A stream that nobody has received from leaves every byte in the kernel."""
    await connection.pushed(b"hello")
    await turns(5)
    assert queued(connection.sock) == 5


# --- fairness --------------------------------------------------------------------------------------------------------


async def count_turns(count: list[int]) -> None:
    """What another task does meanwhile."""
    while True:
        await anyio.lowlevel.checkpoint()
        count[0] += 1


@bounded
async def test_buffered_lines_yield_to_the_loop(connection: Connection) -> None:
    """A handler that never waits, because 10 000 lines are here already, lets other tasks run."""
    count = [0]
    async with anyio.create_task_group() as tasks:
        await connection.pushed(b"x\n" * 10_000)
        tasks.start_soon(count_turns, count)
        await turns(2)
        before = count[0]
        for _ in range(10_000):
            assert await connection.stream.readline() == b"x\n"
        assert count[0] - before >= 10_000 // YIELD_EVERY // 2
        tasks.cancel_scope.cancel()


@bounded
async def test_long_lines_yield_to_the_loop(connection: Connection) -> None:
    """The same where each read brings only some lines, and the next read has always something."""
    line = b"x" * 1199 + b"\n"  # 54 in a read of 64 KiB
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    connection.peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    connection.peer.send(line)
    assert await connection.stream.readline() == line
    lines = 2 * YIELD_EVERY + 1
    await in_thread(connection.peer.send, line * lines)
    count = [0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns, count)
        await turns(2)
        before = count[0]
        for _ in range(lines):
            assert await connection.stream.readline() == line
        tasks.cancel_scope.cancel()
        assert count[0] > before


@pytest.mark.parametrize("receiver", ["receive", "receive_exactly", "receive_until"])
@bounded
async def test_blocks_yield_to_the_loop(connection: Connection, receiver: str) -> None:
    """The same for blocks and messages."""
    count = [0]
    async with anyio.create_task_group() as tasks:
        await connection.pushed(b"x;" * 1000)
        tasks.start_soon(count_turns, count)
        await turns(2)
        before = count[0]
        for _ in range(1000):
            argument: Any = b";" if receiver == "receive_until" else 2
            assert await getattr(connection.stream, receiver)(argument) in (b"x;", b"x")
        assert count[0] - before >= 1000 // YIELD_EVERY // 2
        tasks.cancel_scope.cancel()


# --- anyio's own wrappers --------------------------------------------------------------------------------------------


@bounded
async def test_text_receive_stream(connection: Connection) -> None:
    """anyio's TextReceiveStream decodes what comes, also a character that comes in two pieces."""
    text = TextReceiveStream(connection.stream)
    await connection.pushed("é".encode()[:1])
    got: list[object] = []

    async def read() -> None:
        got.append(await text.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await turns(4)
        assert got == []
        connection.peer.send("é".encode()[1:] + b"!")
    assert got == ["é!"]


@bounded
async def test_buffered_receive_stream(connection: Connection) -> None:
    """anyio's BufferedByteReceiveStream works on the stream as on anyio's own."""
    buffered = BufferedByteReceiveStream(connection.stream)
    await connection.pushed(b"head\r\n12345tail")
    assert await buffered.receive_until(b"\r\n", 100) == b"head"
    assert await buffered.receive_exactly(5) == b"12345"
    connection.peer.end()
    with pytest.raises(anyio.IncompleteRead):
        await buffered.receive_exactly(5)

"""The promises of `aserver.Stream` about sending: order, bounds, corking, errors, cancellation, half-close.

Each test runs over TCP and a Unix socket, on each loop and with each body of the seam; the peer is a stdlib socket.
"""

from __future__ import annotations

import array
import gc
import hashlib
import socket
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.text import TextStream

from aserver._stream import CORK_SIZE

from . import streams
from .peers import in_thread
from .streams import Connection, arrived, bounded, full, turns

pytestmark = pytest.mark.anyio

seam, anyio_backend, loop = streams.seam, streams.anyio_backend, streams.loop
transport, connection, narrow = streams.transport, streams.connection, streams.narrow

MEGABYTE = 1 << 20


async def pipelining(connection: Connection, requests: bytes = b"1\n2\n") -> None:
    """Bring the stream where it corks: the first request is taken, the others are buffered unread."""
    await connection.pushed(requests)
    assert await connection.stream.readline() == requests.partition(b"\n")[0] + b"\n"


async def blocked_sender(connection: Connection, tasks: Any, item: Any, ended: list[object]) -> None:
    """Start a task that sends *item* and waits because the kernel's buffer is full."""

    async def send() -> None:
        try:
            await connection.stream.send(item)
            ended.append("sent")
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            ended.append(exc)

    tasks.start_soon(send)
    while not full(connection.sock):
        await anyio.lowlevel.checkpoint()
    await turns(3)
    assert ended == []


# --- sending ---------------------------------------------------------------------------------------------------------


@bounded
async def test_send(connection: Connection) -> None:
    """What was sent is with the kernel when send() returns: the peer has it without another turn of our loop."""
    await connection.stream.send(b"hello")
    await arrived(connection.peer.sock, 5)
    assert connection.receive_now() == b"hello"


@pytest.mark.parametrize(
    "item",
    [
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        memoryview(b"xabcdx")[1:5],
        memoryview(array.array("H", b"abcd")),
        memoryview(b"abcd").cast("B", [2, 2]),
    ],
    ids=["bytearray", "memoryview", "slice", "two-byte items", "two dimensions"],
)
@pytest.mark.parametrize("corked", [False, True], ids=["at once", "corked"])
@bounded
async def test_what_can_be_sent(connection: Connection, item: Any, corked: bool) -> None:
    """Anything that is a block of bytes can be sent, whatever the size of its items, corked or not."""
    if corked:
        await pipelining(connection)
    await connection.stream.send(item)
    await connection.stream.flush()
    assert await connection.peer_reads(4) == b"abcd"


@pytest.mark.parametrize("corked", [False, True], ids=["at once", "corked"])
@pytest.mark.parametrize("item", [b"", bytearray(), memoryview(b"")], ids=["bytes", "bytearray", "memoryview"])
@bounded
async def test_sending_nothing(connection: Connection, item: Any, corked: bool) -> None:
    """Nothing can be sent, and means nothing."""
    if corked:
        await pipelining(connection)
    await connection.stream.send(item)
    await connection.stream.send(b"x")
    await connection.stream.send(item)
    await connection.stream.aclose()
    assert await in_thread(connection.peer.read_until_eof) == b"x"


@bounded
async def test_sending_text_is_refused(connection: Connection) -> None:
    """A str is a TypeError, and the stream can still be used."""
    for _ in range(2):
        with pytest.raises(TypeError):
            await connection.stream.send("text")  # type: ignore[arg-type]  # that is the point
    await connection.stream.send(b"x")
    assert await connection.peer_reads(1) == b"x"


@pytest.mark.parametrize("corked", [False, True], ids=["at once", "corked"])
@bounded
async def test_bytearray_may_be_changed_afterwards(connection: Connection, corked: bool) -> None:
    """As soon as send() has returned a bytearray is its owner's again: to change, to shrink and to grow."""
    if corked:
        await pipelining(connection)
    data = bytearray(b"first")
    await connection.stream.send(data)
    data[:] = b"other and longer"
    await connection.stream.send(data)
    data.clear()
    await connection.stream.flush()
    assert await connection.peer_reads(21) == b"firstother and longer"


@pytest.mark.parametrize("corked", [False, True], ids=["at once", "corked"])
@bounded
async def test_large_send(connection: Connection, corked: bool) -> None:
    """8 MB are sent as fast as the peer reads, every byte in its place; send() returns when the kernel has them."""
    data = hashlib.shake_128(b"aserver").digest(8 * MEGABYTE)
    ended: list[object] = []
    if corked:
        await pipelining(connection)
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, bytearray(data), ended)
        got = await connection.peer_reads(len(data))
    assert ended == ["sent"]
    assert got == data


@bounded
async def test_send_waits_for_the_peer(narrow: Connection) -> None:
    """While the peer does not read, send() waits and nothing but the item itself is held."""
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        await blocked_sender(narrow, tasks, b"x" * MEGABYTE, ended)
        await turns(50)
        assert ended == []
        assert await narrow.peer_reads(MEGABYTE) == b"x" * MEGABYTE
    assert ended == ["sent"]


@bounded
async def test_order_is_kept(narrow: Connection) -> None:
    """Answers that were corked, sent at once, and waited for come in the order in which they were sent."""
    requests = 400
    expected = b"".join(b"%d:" % number + b"x" * (number * 37 % 3000) for number in range(requests))

    async def answer() -> None:
        number = 0
        async for _ in narrow.stream:
            await narrow.stream.send(b"%d:" % number)
            await narrow.stream.send(b"x" * (number * 37 % 3000))
            number += 1
            if number % 7 == 0:
                await anyio.lowlevel.checkpoint()
            if number % 50 == 0:
                await narrow.stream.flush()
        await narrow.stream.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        narrow.peer.send(b"?\n" * requests)
        narrow.peer.end()
        assert await in_thread(narrow.peer.read_until_eof) == expected


# --- full duplex -----------------------------------------------------------------------------------------------------


@bounded
async def test_receiving_while_sending(connection: Connection) -> None:
    """One task receives what the peer sends while another waits in send()."""
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, b"x" * 8 * MEGABYTE, ended)
        for number in range(3):
            connection.peer.send(b"%d\n" % number)
            assert await connection.stream.readline() == b"%d\n" % number
        assert ended == []
        await connection.peer_reads(8 * MEGABYTE)


@bounded
async def test_peer_that_reads_only_after_it_has_sent(connection: Connection) -> None:
    """A peer that reads nothing until its own 8 MB are sent does not lock up with a sender and a receiver of ours."""
    ended: list[object] = []

    def talk() -> bytes:
        connection.peer.send(b"y" * 8 * MEGABYTE)
        return connection.peer.read_exactly(8 * MEGABYTE)

    async def receive() -> None:
        got = 0
        while got < 8 * MEGABYTE:
            got += len(await connection.stream.receive())

    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, b"x" * 8 * MEGABYTE, ended)
        tasks.start_soon(receive)
        assert await in_thread(talk) == b"x" * 8 * MEGABYTE
    assert ended == ["sent"]


@bounded
async def test_corked_rest_does_not_hold_up_a_receiver(narrow: Connection) -> None:
    """A receiver gets its input while answers of another task, corked and not taken by the kernel, wait for the peer.

    Where both ends wait for the other to read before they read themselves, nobody ever does.
    """
    await pipelining(narrow)
    answer = b"x" * (CORK_SIZE - 1)
    request = b"y" * MEGABYTE
    got: list[bytes] = []

    def talk() -> bytes:
        narrow.peer.send(request)  # all of it, before a byte of the answer is read
        return narrow.peer.read_exactly(len(answer))

    async def receive() -> None:
        got.append(await narrow.stream.readline())
        got.append(await narrow.stream.receive_exactly(len(request)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.send, answer)
        await turns(3)
        tasks.start_soon(receive)
        assert await in_thread(talk) == answer
    assert got == [b"2\n", request]


# --- two tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [b"", b"y", b"y" * 2 * CORK_SIZE], ids=["nothing", "a byte", "much"])
@pytest.mark.parametrize("unread", [False, True], ids=["idle peer", "pipelining peer"])
@bounded
async def test_two_senders(connection: Connection, second: bytes, unread: bool) -> None:
    """A second task that sends gets BusyResourceError at once, and not one of its bytes is between the first's."""
    ended: list[object] = []
    if unread:
        await pipelining(connection)
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, b"x" * 8 * MEGABYTE, ended)
        for _ in range(2):
            with pytest.raises(anyio.BusyResourceError, match="sending to"):
                await connection.stream.send(second)
        with pytest.raises(anyio.BusyResourceError, match="sending to"):
            await connection.stream.send_eof()
        assert await connection.peer_reads(8 * MEGABYTE) == b"x" * 8 * MEGABYTE
    assert ended == ["sent"]
    await connection.stream.send(b"z")
    await connection.stream.flush()
    assert await connection.peer_reads(1) == b"z"


# --- corking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [2, 16, 500])
@bounded
async def test_answers_to_a_pipeline_go_out_together(connection: Connection, requests: int) -> None:
    """N requests that came together are answered by far fewer writes, in order."""
    await connection.pushed(b"".join(b"%04d\n" % number for number in range(requests)))
    for number in range(requests):
        line = await connection.stream.readline()
        assert line == b"%04d\n" % number
        await connection.stream.send(line.replace(b"0", b"o"))
    got = await connection.peer_reads(5 * requests)
    assert got == b"".join(b"%04d\n" % number for number in range(requests)).replace(b"0", b"o")
    # the last answer finds no unread input and takes the others along; every so often the stream lets others run
    assert connection.sock.sends <= 1 + requests // 50


@bounded
async def test_corked_answer_is_not_sent_at_once(connection: Connection) -> None:
    """While input is unread an answer is collected, and sent with the next one."""
    await pipelining(connection, b"1\n2\n3\n")
    await connection.stream.send(b"a")
    await connection.stream.send(b"b")
    assert connection.sock.sends == 0
    await connection.stream.readline()
    await connection.stream.readline()
    await connection.stream.send(b"c")
    assert connection.sock.sends == 1
    await arrived(connection.peer.sock, 3)
    assert connection.receive_now() == b"abc"


@bounded
async def test_corked_goes_out_at_the_next_turn(connection: Connection) -> None:
    """A corked answer is sent although its handler neither sends nor receives again, but waits for something else."""
    await pipelining(connection)
    event = anyio.Event()

    async def handler() -> None:
        await connection.stream.send(b"answer")
        await event.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        assert await connection.peer_reads(6) == b"answer"
        event.set()


@bounded
async def test_corked_goes_out_before_waiting_for_input(connection: Connection) -> None:
    """A half request behind the answered one does not hold up the answer."""
    await pipelining(connection, b"1\nhalf")
    async with anyio.create_task_group() as tasks:
        await connection.stream.send(b"answer")
        tasks.start_soon(connection.stream.readline)
        assert await connection.peer_reads(6) == b"answer"
        connection.peer.send(b"\n")


@pytest.mark.parametrize("half", [b"half", b""], ids=["half a request", "none"])
@bounded
async def test_waiting_for_input_flushes_in_the_same_turn(connection: Connection, half: bytes) -> None:
    """The flush before a wait for input is part of the receive, not left to a later turn."""
    await pipelining(connection, b"1\n2\n" + half)
    await connection.stream.send(b"a")
    assert await connection.stream.readline() == b"2\n"
    with anyio.CancelScope() as scope:
        scope.cancel()
        await connection.stream.readline()
    await arrived(connection.peer.sock, 1)
    assert connection.receive_now() == b"a"


@bounded
async def test_flush(connection: Connection) -> None:
    """flush() sends what is corked before it returns; with nothing to send it does nothing."""
    await connection.stream.flush()
    assert connection.sock.sends == 0
    await pipelining(connection)
    await connection.stream.send(b"answer")
    await connection.stream.flush()
    assert connection.sock.sends == 1
    await arrived(connection.peer.sock, 6)
    assert connection.receive_now() == b"answer"


@pytest.mark.parametrize("excess, sends", [(-1, 0), (0, 1), (1, 1)])
@bounded
async def test_cork_size(connection: Connection, excess: int, sends: int) -> None:
    """Corked answers go out when they reach 64 KiB, however much input waits."""
    for sock in (connection.sock, connection.peer.sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    await pipelining(connection)
    await connection.stream.send(b"x" * (CORK_SIZE - 1000))
    assert connection.sock.sends == 0
    await connection.stream.send(b"y" * (1000 + excess))
    assert connection.sock.sends >= 1 if sends else connection.sock.sends == 0
    got = await connection.peer_reads(CORK_SIZE + excess)
    assert got == b"x" * (CORK_SIZE - 1000) + b"y" * (1000 + excess)


@bounded
async def test_corked_memory_is_bounded(narrow: Connection) -> None:
    """A peer that pipelines and does not read the answers makes send() wait: little more than 64 KiB are held."""
    await pipelining(narrow)
    sent = 0

    async def answer() -> None:
        nonlocal sent
        while True:
            await narrow.stream.send(b"x" * 1000)
            sent += 1000

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        previous = -1
        while sent != previous:
            previous = sent
            await turns(20)
        ours, theirs = streams.pair(narrow.transport, narrow=True)
        with ours, theirs:
            capacity = streams.send_all(ours)
        assert sent <= capacity + CORK_SIZE + 16384
        tasks.cancel_scope.cancel()


@bounded
async def test_corked_rest_goes_out_in_the_background(narrow: Connection) -> None:
    """What the kernel does not take of the corked answers at the next turn goes out as the peer reads."""
    await pipelining(narrow)
    answer = b"x" * (CORK_SIZE - 1)
    await narrow.stream.send(answer)
    await turns(5)
    assert narrow.sock.sends >= 1
    assert full(narrow.sock)
    # nobody calls the stream now
    assert await narrow.peer_reads(len(answer)) == answer


@bounded
async def test_flush_waits_for_the_background(narrow: Connection) -> None:
    """flush(), and a send(), behind a rest that is under way wait for it and keep the order."""
    await pipelining(narrow)
    await narrow.stream.send(b"x" * (CORK_SIZE - 10))
    await turns(5)
    async with anyio.create_task_group() as tasks:
        await narrow.stream.send(b"y")  # corked: input is unread still
        tasks.start_soon(narrow.stream.flush)
        await turns(3)
        await narrow.stream.send(b"z")
        tasks.start_soon(narrow.stream.flush)
        assert await narrow.peer_reads(CORK_SIZE - 8) == b"x" * (CORK_SIZE - 10) + b"yz"


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("how", ["flush", "readline"])
@bounded
async def test_cancelled_flush_loses_nothing(narrow: Connection, after: int, how: str) -> None:
    """A flush, also one before a wait for input, that is cancelled leaves the rest to the background, not to luck."""
    await pipelining(narrow, b"1\nhalf")
    answer = b"x" * (CORK_SIZE - 1)
    await narrow.stream.send(answer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(getattr(narrow.stream, how))
        await turns(after)
        tasks.cancel_scope.cancel()
    # nobody calls the stream now
    assert await narrow.peer_reads(len(answer)) == answer
    # and it is whole
    await narrow.stream.send(b"more")
    await narrow.stream.flush()
    assert await narrow.peer_reads(4) == b"more"


@bounded
async def test_error_of_the_background_surfaces(connection: Connection) -> None:
    """When corked answers cannot be sent, the next send, flush and wait for input say so."""
    await pipelining(connection)
    await connection.stream.send(b"answer")
    if connection.transport == "tcp":
        connection.peer.reset()
    else:
        connection.peer.close()
    await turns(5)
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await connection.stream.send(b"x")
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(anyio.BrokenResourceError):
            await connection.stream.flush()
    assert await connection.stream.readline() == b"2\n"
    with pytest.raises(anyio.BrokenResourceError):
        await connection.stream.readline()


@bounded
async def test_error_of_the_background_wakes_a_receiver(narrow: Connection) -> None:
    """A task that waits for input when the background finds the connection lost is told, not left waiting."""
    await pipelining(narrow, b"1\nhalf")
    await narrow.stream.send(b"x" * (CORK_SIZE - 1))
    ended: list[object] = []

    async def receive() -> None:
        try:
            ended.append(await narrow.stream.readline())
        except anyio.BrokenResourceError as exc:
            ended.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await turns(5)
        if narrow.transport == "tcp":
            narrow.peer.reset()
        else:
            narrow.peer.close()
    assert isinstance(ended[0], anyio.BrokenResourceError)


# --- lost, cancelled, closed -----------------------------------------------------------------------------------------


@bounded
async def test_send_to_a_peer_that_is_gone(connection: Connection) -> None:
    """To send to a peer that is gone is BrokenResourceError, as soon as the kernel knows and from then on."""
    connection.peer.close()

    async def send() -> None:
        for _ in range(10):
            await connection.stream.send(b"x" * 1000)
            await turns(1)

    with pytest.raises(anyio.BrokenResourceError) as caught:
        await send()
    assert isinstance(caught.value.__cause__, BrokenPipeError | ConnectionResetError)
    for action in (connection.stream.send(b"x"), connection.stream.send(b""), connection.stream.flush()):
        with pytest.raises(anyio.BrokenResourceError):
            await action


@bounded
async def test_reset_while_sending(connection: Connection) -> None:
    """A sender that waits when the peer resets gets BrokenResourceError."""
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, b"x" * 8 * MEGABYTE, ended)
        connection.peer.reset()
    assert isinstance(ended[0], anyio.BrokenResourceError)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@bounded
async def test_cancelled_send_breaks_the_stream(narrow: Connection, after: int) -> None:
    """A send that is cancelled half-way leaves the stream broken for every later call, and closing works."""
    item = bytearray(b"x" * MEGABYTE)
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        if after:
            await blocked_sender(narrow, tasks, item, ended)
            await turns(after)
        else:
            tasks.start_soon(narrow.stream.send, item)
            await turns(1)
        tasks.cancel_scope.cancel()
    stream = narrow.stream
    for action in (stream.send(b"x"), stream.flush(), stream.send_eof(), stream.readline(), stream.receive()):
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await action
        assert "cancelled half-way" in str(caught.value.__cause__)
    assert "broken" in repr(stream)
    with anyio.move_on_after(0) as scope:  # it must not wait for what cannot be sent any more
        await stream.aclose()
    assert not scope.cancelled_caught
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"x")


@bounded
async def test_cancelled_send_lets_go_of_the_item(connection: Connection) -> None:
    """After a send that was cancelled or lost its bytearray is its owner's again."""
    item = bytearray(8 * MEGABYTE)
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, item, ended)
        tasks.cancel_scope.cancel()
    gc.collect()  # the traceback of the cancellation may hold it until then
    item.clear()  # BufferError if somebody still looks at it


@pytest.mark.parametrize("how", ["close_now", "abort"])
@bounded
async def test_closed_while_sending(connection: Connection, how: str) -> None:
    """A task that waits in send() while another closes gets ClosedResourceError."""
    ended: list[object] = []
    async with anyio.create_task_group() as tasks:
        await blocked_sender(connection, tasks, b"x" * 8 * MEGABYTE, ended)
        getattr(connection.stream, how)()
        with pytest.raises(anyio.ClosedResourceError):
            await connection.stream.send(b"y")
    assert isinstance(ended[0], anyio.ClosedResourceError)


@pytest.mark.parametrize("how", ["close_now", "abort"])
@bounded
async def test_closed_while_flushing(narrow: Connection, how: str) -> None:
    """A task that waits in flush() while another closes gets ClosedResourceError."""
    await pipelining(narrow)
    await narrow.stream.send(b"x" * (CORK_SIZE - 1))
    ended: list[object] = []

    async def flush() -> None:
        try:
            await narrow.stream.flush()
        except anyio.ClosedResourceError as exc:
            ended.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flush)
        await turns(3)
        getattr(narrow.stream, how)()
    assert len(ended) == 1


@bounded
async def test_send_on_a_closed_stream(connection: Connection) -> None:
    """To send to, flush or half-close a closed stream is ClosedResourceError."""
    stream = connection.stream
    await stream.aclose()
    for action in (stream.send(b"x"), stream.send(b""), stream.flush(), stream.send_eof()):
        with pytest.raises(anyio.ClosedResourceError):
            await action


# --- half-close ------------------------------------------------------------------------------------------------------


@bounded
async def test_send_eof(connection: Connection) -> None:
    """After send_eof() the peer has everything and the end, and we still receive; to send is ClosedResourceError."""
    await pipelining(connection)
    await connection.stream.send(b"answer")
    await connection.stream.send_eof()
    assert await in_thread(connection.peer.read_until_eof) == b"answer"
    with pytest.raises(anyio.ClosedResourceError):
        await connection.stream.send(b"x")
    await connection.stream.send_eof()
    connection.peer.send(b"3\n")
    assert [await connection.stream.readline() for _ in range(2)] == [b"2\n", b"3\n"]
    connection.peer.end()
    assert await connection.stream.readline() == b""


@bounded
async def test_send_eof_twice_after_the_peer_is_gone(connection: Connection) -> None:
    """To end our side again does nothing, also when the peer has ended its own and closed meanwhile."""
    await connection.stream.send_eof()
    assert await in_thread(connection.peer.read_until_eof) == b""
    connection.peer.close()
    assert await connection.stream.readline() == b""
    await connection.stream.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        await connection.stream.send(b"x")


@bounded
async def test_answer_after_the_peer_has_ended_its_side(connection: Connection) -> None:
    """A peer that has ended its side still gets its answers."""
    await connection.pushed(b"1\n2\n")
    connection.peer.end()
    async for line in connection.stream:
        await connection.stream.send(line)
    await connection.stream.send(b"bye")
    await connection.stream.aclose()
    assert await in_thread(connection.peer.read_until_eof) == b"1\n2\nbye"


@bounded
async def test_send_eof_flushes_first(narrow: Connection) -> None:
    """send_eof() waits until what is corked has gone out."""
    await pipelining(narrow)
    answer = b"x" * (CORK_SIZE - 1)
    await narrow.stream.send(answer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.send_eof)
        assert await in_thread(narrow.peer.read_until_eof) == answer


@bounded
async def test_send_while_another_task_ends_our_side(narrow: Connection) -> None:
    """A send beside a send_eof() that waits is refused or goes out whole; afterwards sending is ClosedResourceError."""
    await pipelining(narrow)
    corked = b"x" * (CORK_SIZE - 1)
    await narrow.stream.send(corked)
    outcome: list[object] = []

    async def send() -> None:
        try:
            await narrow.stream.send(b"y" * MEGABYTE)
            outcome.append("sent")
        except (anyio.BusyResourceError, anyio.ClosedResourceError) as exc:
            outcome.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.send_eof)
        await turns(3)
        tasks.start_soon(send)
        await turns(3)
        got = await in_thread(narrow.peer.read_until_eof)
    assert got == corked + (b"y" * MEGABYTE if outcome == ["sent"] else b"")
    with pytest.raises(anyio.ClosedResourceError):
        await narrow.stream.send(b"z")


# --- anyio's own wrappers --------------------------------------------------------------------------------------------


@bounded
async def test_text_stream(connection: Connection) -> None:
    """anyio's TextStream sends and receives text over it."""
    text = TextStream(connection.stream)
    await text.send("grüße\n")
    assert await connection.peer_reads(8) == "grüße\n".encode()
    await connection.pushed("zurück".encode())
    assert await text.receive() == "zurück"
    await text.aclose()
    assert await in_thread(connection.peer.read_until_eof) == b""


@bounded
async def test_buffered_byte_stream(connection: Connection) -> None:
    """anyio's BufferedByteStream sends, receives and half-closes over it."""
    buffered = BufferedByteStream(connection.stream)
    await buffered.send(b"hello")
    await buffered.send_eof()
    assert await in_thread(connection.peer.read_until_eof) == b"hello"
    await connection.pushed(b"a;b")
    assert await buffered.receive_until(b";", 10) == b"a"
    assert await buffered.receive_exactly(1) == b"b"


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["closed", "reset", "sent to a dead peer", "cancelled receive", "cancelled send"])
@bounded
async def test_no_reference_cycle(narrow: Connection, fate: str) -> None:
    """A connection that ended, however, is freed at once, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        dead = await end_one(narrow, fate)
        await turns(3)
        assert dead() is None, gc.get_referrers(dead())
    finally:
        gc.enable()


async def end_one(connection: Connection, fate: str) -> weakref.ref[Any]:
    """Use a connection of its own, end it, forget it; what is left is a weak reference."""
    other = Connection.make(connection.transport, connection.loop, connection.limits, narrow=True)
    stream, peer = other.stream, other.peer
    await other.pushed(b"1\n2\n")
    assert await stream.readline() == b"1\n"
    await stream.send(b"corked")
    assert await stream.readline() == b"2\n"
    if fate == "reset":
        peer.reset()
    elif fate == "sent to a dead peer":
        peer.close()
        await send_until_refused(stream)
    elif fate.startswith("cancelled"):
        task = other.loop.spawn(send_much if fate == "cancelled send" else receive_line, stream)
        await turns(3)
        other.loop.cancel(task)
        del task
        await turns(5)
    if fate == "reset" or fate == "closed":
        await read_until_refused(stream, peer if fate == "closed" else None)
    await stream.aclose()
    peer.close()
    return weakref.ref(stream)


async def send_much(stream: Any) -> None:
    """Send what no kernel buffer takes."""
    await stream.send(b"x" * MEGABYTE)


async def receive_line(stream: Any) -> None:
    """Wait for a line."""
    await stream.readline()


async def send_until_refused(stream: Any) -> None:
    """Send until the stream is found broken."""
    try:
        while True:
            await stream.send(b"x" * 1000)
            await turns(1)
    except anyio.BrokenResourceError:
        pass


async def read_until_refused(stream: Any, ending: Any) -> None:
    """Read until the end or until the stream is found broken."""
    if ending is not None:
        ending.end()
    try:
        while await stream.readline():
            pass
    except anyio.BrokenResourceError:
        pass

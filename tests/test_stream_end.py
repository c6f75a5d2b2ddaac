"""The promises of `aserver.Stream` about its end and its edges: closing, abort, detach, draining, addresses, TLS.

Each test runs over TCP and a Unix socket, on each loop and with each body of the seam; the peer is a stdlib socket.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from aserver._errors import BufferedDataError
from aserver._stream import CORK_SIZE, PeerCredentials, Stream

from . import streams
from .peers import Client, in_thread
from .streams import Connection, arrived, bounded, turns

pytestmark = pytest.mark.anyio

seam, anyio_backend, loop = streams.seam, streams.anyio_backend, streams.loop
transport, connection, narrow = streams.transport, streams.connection, streams.narrow


class Lines:
    """A handler that reads lines in a task of its own and answers those that do not begin with "?"."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.taken: list[bytes] = []
        self.ended = anyio.Event()

    async def run(self) -> None:
        """Read until the end."""
        async for line in self.stream:
            self.taken.append(line)
            if not line.startswith(b"?"):
                await self.stream.send(line.upper())
        self.ended.set()

    async def has_taken(self, count: int) -> None:
        """Wait until so many lines were taken."""
        while len(self.taken) < count:
            await anyio.lowlevel.checkpoint()
        await turns(3)


class Chunks(Lines):
    """The same with receive()."""

    async def run(self) -> None:
        """Read until the end."""
        try:
            while True:
                chunk = await self.stream.receive()
                self.taken.append(chunk)
                if not chunk.startswith(b"?"):
                    await self.stream.send(chunk.upper())
        except anyio.EndOfStream:
            self.ended.set()


# --- closing ---------------------------------------------------------------------------------------------------------


@bounded
async def test_aclose(connection: Connection) -> None:
    """aclose() ends the connection: the peer has what was sent and the end; a second time does nothing."""
    await connection.stream.send(b"bye")
    for _ in range(2):
        await connection.stream.aclose()
    assert await in_thread(connection.peer.read_until_eof) == b"bye"
    assert connection.sock.fileno() == -1


@bounded
async def test_aclose_sends_what_is_corked(narrow: Connection) -> None:
    """aclose() waits until the corked answers have gone out, also where the kernel does not take them at once."""
    await narrow.pushed(b"1\n2\n")
    assert await narrow.stream.readline() == b"1\n"
    assert await narrow.stream.readline() == b"2\n"
    narrow.peer.send(b"3\n4\n")
    assert await narrow.stream.readline() == b"3\n"
    answer = b"x" * (CORK_SIZE - 1)
    await narrow.stream.send(answer)
    assert await narrow.stream.readline() == b"4\n"  # nothing unread: the close is no reset
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.aclose)
        assert await in_thread(narrow.peer.read_until_eof) == answer


@bounded
async def test_cancelled_aclose_closes(narrow: Connection) -> None:
    """An aclose() that is cancelled while a peer that does not read holds it up has closed nevertheless."""
    await narrow.pushed(b"1\n2\n")
    assert await narrow.stream.readline() == b"1\n"
    await narrow.stream.send(b"x" * (CORK_SIZE - 1))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(narrow.stream.aclose)
            await turns(3)
            scope.cancel()
    assert narrow.sock.fileno() == -1
    with pytest.raises(anyio.ClosedResourceError):
        await narrow.stream.receive()


@bounded
async def test_aclose_where_the_peer_is_gone(connection: Connection) -> None:
    """aclose() does not fail where the peer is gone and answers are still corked."""
    await connection.pushed(b"1\n2\n")
    assert await connection.stream.readline() == b"1\n"
    await connection.stream.send(b"answer")
    connection.peer.reset()
    await connection.stream.aclose()
    assert connection.sock.fileno() == -1


@bounded
async def test_async_with_closes(connection: Connection) -> None:
    """A stream is a context manager that closes, as anyio's are."""
    async with connection.stream as stream:
        assert isinstance(stream, ByteStream)
        await stream.send(b"x")
    assert await in_thread(connection.peer.read_until_eof) == b"x"


@bounded
async def test_close_now_pushes_what_the_kernel_takes(connection: Connection) -> None:
    """close_now() does not wait, and what is corked goes out as far as the kernel takes it."""
    await connection.pushed(b"1\nhalf")
    assert await connection.stream.readline() == b"1\n"
    await connection.stream.send(b"answer")
    assert await connection.stream.receive() == b"half"
    connection.stream.close_now()
    connection.stream.close_now()
    assert await in_thread(connection.peer.read_until_eof) == b"answer"


@bounded
async def test_abort(connection: Connection) -> None:
    """abort() closes at once and throws away what is corked; over TCP the peer sees a reset, even if all was read."""
    await connection.pushed(b"1\n2\n")
    assert await connection.stream.readline() == b"1\n"
    await connection.stream.send(b"never")
    assert await connection.stream.receive() == b"2\n"
    connection.stream.abort()
    connection.stream.abort()
    await connection.stream.aclose()
    await turns(3)
    if connection.transport == "tcp":
        with pytest.raises(ConnectionResetError):
            await in_thread(connection.peer.recv)
    else:  # a Unix socket has no reset: its peer sees the end
        assert await in_thread(connection.peer.read_until_eof) == b""


# --- detach ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@bounded
async def test_detach(connection: Connection, used: bool) -> None:
    """detach() gives the open socket, which nobody reads from any more; the stream is closed, and closing it is not."""
    if used:
        await connection.pushed(b"1\n")
        assert await connection.stream.readline() == b"1\n"
        await connection.stream.send(b"a")
    sock = connection.stream.detach()
    assert sock is connection.sock
    assert sock.gettimeout() == 0
    await connection.stream.aclose()
    connection.stream.close_now()
    connection.stream.abort()
    connection.peer.send(b"hello")
    await turns(5)
    sock.settimeout(5)
    assert await in_thread(sock.recv, 100) == b"hello"
    sock.sendall(b"world")
    assert await connection.peer_reads(5 + used) == b"aworld"[not used :]
    for action in (connection.stream.receive(), connection.stream.send(b"x"), connection.stream.flush()):
        with pytest.raises(anyio.ClosedResourceError):
            await action
    with pytest.raises(anyio.ClosedResourceError):
        connection.stream.detach()
    sock.close()


@bounded
async def test_detached_socket_in_a_new_stream(connection: Connection) -> None:
    """A detached socket can be given to a new stream on the same loop."""
    await connection.pushed(b"1\n")
    assert await connection.stream.readline() == b"1\n"
    second = Stream(connection.stream.detach(), connection.stream.peer, connection.loop, connection.limits)
    async with second, anyio.create_task_group() as tasks:
        tasks.start_soon(connection.pushed, b"2\n")
        assert await second.readline() == b"2\n"
        await second.send(b"x")
    assert await in_thread(connection.peer.read_until_eof) == b"x"


@bounded
async def test_detach_with_unread_bytes(connection: Connection) -> None:
    """detach() refuses to lose received bytes, says how many and what to do, and afterwards works."""
    await connection.pushed(b"1\nabc")
    assert await connection.stream.readline() == b"1\n"
    with pytest.raises(BufferedDataError, match=r"holds 3 received and 0 unsent bytes .*receive\(\)"):
        connection.stream.detach()
    assert await connection.stream.receive() == b"abc"
    connection.stream.detach().close()


@bounded
async def test_detach_with_unsent_bytes(connection: Connection) -> None:
    """detach() refuses to lose corked bytes, says how many and what to do, and afterwards works."""
    await connection.pushed(b"1\n2\n")
    assert await connection.stream.readline() == b"1\n"
    await connection.stream.send(b"answer")
    with pytest.raises(BufferedDataError, match=r"holds 2 received and 6 unsent bytes .*flush\(\)"):
        connection.stream.detach()
    assert await connection.stream.readline() == b"2\n"
    with pytest.raises(BufferedDataError, match=r"holds 0 received and 6 unsent bytes"):
        connection.stream.detach()
    await connection.stream.flush()
    connection.stream.detach().close()
    assert await in_thread(connection.peer.read_until_eof) == b"answer"


@bounded
async def test_detach_while_in_use(narrow: Connection) -> None:
    """detach() is refused while a task receives, and while one sends."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.receive)
        await turns(3)
        with pytest.raises(anyio.BusyResourceError):
            narrow.stream.detach()
        narrow.peer.send(b"x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(narrow.stream.send, b"x" * 1_000_000)
        await turns(3)
        with pytest.raises(anyio.BusyResourceError):
            narrow.stream.detach()
        await narrow.peer_reads(1_000_000)
    narrow.stream.detach().close()


# --- draining --------------------------------------------------------------------------------------------------------

each_handler = pytest.mark.parametrize("handler", [Lines, Chunks], ids=["lines", "chunks"])


@each_handler
@pytest.mark.parametrize("requests", [0, 1, 3])
@bounded
async def test_draining_ends_an_idle_connection(
    connection: Connection, handler: Callable[[Stream], Lines], requests: int
) -> None:
    """A handler that waits between two requests sees the end of its input as soon as draining begins."""
    reader = handler(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        for number in range(requests):
            connection.peer.send(b"a\n")
            await reader.has_taken(number + 1)
        await turns(3)
        assert not connection.stream.draining
        connection.stream.begin_draining()
        await reader.ended.wait()
    assert connection.stream.draining
    assert len(reader.taken) == requests


@each_handler
@bounded
async def test_draining_serves_what_was_sent_before(connection: Connection, handler: Callable[[Stream], Lines]) -> None:
    """A request that is in the kernel's buffer when draining begins is served, then the input ends."""
    reader = handler(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await turns(4)
        connection.peer.send(b"a\n")
        await arrived(connection.peer.sock, 0)
        connection.stream.begin_draining()
        await reader.ended.wait()
    assert reader.taken == [b"a\n"]
    assert await connection.peer_reads(2) == b"A\n"


@pytest.mark.parametrize("ends", [False, True], ids=["begin_draining", "end_input"])
@bounded
async def test_draining_leaves_a_half_request(connection: Connection, ends: bool) -> None:
    """A request that is half-received is received to its end, answered, and then the input ends."""
    reader = Lines(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await connection.pushed(b"hal")
        await turns(5)
        connection.stream.begin_draining()
        await turns(5)
        if ends:
            connection.stream.end_input()
            await turns(5)
        assert not reader.ended.is_set()
        connection.peer.send(b"f\n")
        assert await connection.peer_reads(5) == b"HALF\n"
        await reader.ended.wait()
    assert reader.taken == [b"half\n"]


@bounded
async def test_draining_while_a_handler_works(connection: Connection) -> None:
    """Draining that begins while a handler works on a request lets it answer; then its input ends."""
    await connection.pushed(b"1\n")
    assert await connection.stream.readline() == b"1\n"
    connection.stream.begin_draining()
    await connection.stream.send(b"one")
    assert await connection.stream.readline() == b""
    assert await connection.peer_reads(3) == b"one"


@bounded
async def test_draining_a_pipeline(connection: Connection) -> None:
    """Requests that are buffered when draining begins are all served before the input ends."""
    await connection.pushed(b"1\n2\n3\n")
    assert await connection.stream.readline() == b"1\n"
    connection.stream.begin_draining()
    got = [b"1\n"]
    await connection.stream.send(b"1\n")
    async for line in connection.stream:
        got.append(line)
        await connection.stream.send(line)
    assert got == [b"1\n", b"2\n", b"3\n"]
    await connection.stream.aclose()
    assert await in_thread(connection.peer.read_until_eof) == b"1\n2\n3\n"


@each_handler
@bounded
async def test_unanswered_request(connection: Connection, handler: Callable[[Stream], Lines]) -> None:
    """A request that was taken and not answered may be half-way: only end_input() ends its connection."""
    reader = handler(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        connection.peer.send(b"?a\n")
        await reader.has_taken(1)
        connection.stream.begin_draining()
        await turns(10)
        assert not reader.ended.is_set()
        connection.peer.send(b"?b\n")
        await reader.has_taken(2)
        assert not reader.ended.is_set()
        connection.stream.end_input()
        await reader.ended.wait()
    assert reader.taken == [b"?a\n", b"?b\n"]


@each_handler
@bounded
async def test_answered_while_draining(connection: Connection, handler: Callable[[Stream], Lines]) -> None:
    """A connection whose request is completed and answered while draining ends without anybody telling it again."""
    reader = handler(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        connection.peer.send(b"?a\n")
        await reader.has_taken(1)
        connection.stream.begin_draining()
        await turns(10)
        assert not reader.ended.is_set()
        connection.peer.send(b"b\n")
        assert await connection.peer_reads(2) == b"B\n"
        await reader.ended.wait()
    assert reader.taken == [b"?a\n", b"b\n"]


@pytest.mark.parametrize("after", range(5))
@bounded
async def test_draining_at_any_turn(connection: Connection, after: int) -> None:
    """The end of draining reaches a receive whatever turn of its wait it comes in."""
    reader = Lines(connection.stream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        await turns(after)
        connection.stream.begin_draining()
        await reader.ended.wait()


@bounded
async def test_draining_a_closed_or_lost_stream(connection: Connection) -> None:
    """To drain a stream that is closed or broken does nothing bad."""
    connection.peer.reset()
    with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
        await connection.stream.receive()
    connection.stream.begin_draining()
    connection.stream.end_input()
    await connection.stream.aclose()
    connection.stream.begin_draining()
    connection.stream.end_input()


# --- what can be asked -----------------------------------------------------------------------------------------------


@bounded
async def test_addresses(connection: Connection) -> None:
    """peer and local_address are the two ends as the system names them."""
    assert connection.stream.peer == connection.peer.sock.getsockname()
    assert connection.stream.local_address == connection.peer.sock.getpeername()
    await connection.stream.aclose()
    assert connection.stream.peer is not None
    with pytest.raises(anyio.ClosedResourceError):
        _ = connection.stream.local_address


@bounded
async def test_extra_attributes(connection: Connection) -> None:
    """anyio's typed socket attributes can be asked for, the ports where there are some."""
    stream, sock = connection.stream, connection.sock
    assert stream.extra(SocketAttribute.raw_socket) is sock
    assert stream.extra(SocketAttribute.family) == sock.family
    assert stream.extra(SocketAttribute.local_address) == sock.getsockname()
    assert stream.extra(SocketAttribute.remote_address) == sock.getpeername()
    if connection.transport == "tcp":
        assert stream.extra(SocketAttribute.local_port) == sock.getsockname()[1]
        assert stream.extra(SocketAttribute.remote_port) == sock.getpeername()[1]
    else:
        for attribute in (SocketAttribute.local_port, SocketAttribute.remote_port):
            assert stream.extra(attribute, None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
@bounded
async def test_peer_credentials(connection: Connection) -> None:
    """The peer of a Unix socket is known by process, user and group; the peer of a TCP connection is not."""
    credentials = connection.stream.peer_credentials
    if connection.transport == "unix":
        assert credentials == PeerCredentials(os.getpid(), os.getuid(), os.getgid())
        assert credentials.pid == os.getpid()
    else:
        assert credentials is None
    await connection.stream.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        _ = connection.stream.peer_credentials


@bounded
async def test_repr(connection: Connection) -> None:
    """repr() is one line: the peer, the state, and what is buffered."""
    if connection.transport == "tcp":
        host, port = connection.stream.peer
        peer = f"{host}:{port}"
    else:
        peer = "unix"
    assert repr(connection.stream) == f"<Stream {peer} open unread=0 unsent=0>"
    await connection.pushed(b"1\nabc")
    await connection.stream.readline()
    await connection.stream.send(b"answer")
    assert repr(connection.stream) == f"<Stream {peer} open unread=3 unsent=6>"
    await connection.stream.receive()
    await connection.stream.flush()
    connection.peer.end()
    with pytest.raises(anyio.EndOfStream):
        await connection.stream.receive()
    assert repr(connection.stream) == f"<Stream {peer} ended unread=0 unsent=0>"
    await connection.stream.aclose()
    assert repr(connection.stream) == f"<Stream {peer} closed unread=0 unsent=0>"


@bounded
async def test_repr_of_a_broken_stream(connection: Connection) -> None:
    """A stream whose connection was lost says so."""
    await connection.stream.send(b"unread")
    connection.peer.reset()
    with pytest.raises(anyio.BrokenResourceError):
        await connection.stream.receive()
    assert " broken unread=0 unsent=0>" in repr(connection.stream)


# --- TLS by anyio ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS context that trust each other."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("size", [5, 300_000])
@bounded
async def test_tls_wrap(connection: Connection, contexts: tuple[ssl.SSLContext, ssl.SSLContext], size: int) -> None:
    """anyio's TLSStream works on the stream as the server of a stdlib client: handshake, data, orderly end."""
    server, client = contexts
    data = bytes(range(256)) * (size // 256 + 1)

    def talk() -> bytes:
        with client.wrap_socket(connection.peer.sock, server_hostname="localhost") as sock:
            peer = Client(sock)
            peer.send(data[:size])
            got = peer.read_exactly(size)
            sock.unwrap().close()
            return got

    async def serve() -> None:
        tls = await TLSStream.wrap(connection.stream, server_side=True, ssl_context=server)
        assert tls.extra(TLSAttribute.server_side)
        assert tls.extra(SocketAttribute.remote_address) == connection.stream.peer
        try:
            while True:
                await tls.send(await tls.receive())
        except anyio.EndOfStream:
            await tls.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        assert await in_thread(talk) == data[:size]


@bounded
async def test_tls_wrap_as_a_client(connection: Connection, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """anyio's TLSStream works on the stream as the client of a stdlib server, too."""
    server, client = contexts

    def serve() -> None:
        with server.wrap_socket(connection.peer.sock, server_side=True) as sock:
            sock.sendall(sock.recv(100).upper())
            sock.unwrap().close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_thread, serve)
        tls = await TLSStream.wrap(connection.stream, hostname="localhost", ssl_context=client)
        await tls.send(b"hello")
        assert await tls.receive() == b"HELLO"
        with pytest.raises(anyio.EndOfStream):
            await tls.receive()
        await tls.aclose()

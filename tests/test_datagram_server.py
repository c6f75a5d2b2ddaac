"""The promises of `aserver.DatagramServer` and its kinds about addresses, sending unasked, handlers' faults and hooks.

Bounds and the end, sessions and multicast have modules of their own, which take `serving` and `totals` from here.

Peers are stdlib sockets that are waited for in the test's own task, see `tests.test_datagram.Peer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

import aserver

from .conftest import LogBook
from .test_datagram import LARGEST, Peer, fill, short_dir
from .test_server import SAFETY, OwnError, needs_ipv6, until

__all__ = ["short_dir"]  # the fixture

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="Unix datagrams")]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract names, and counters of the kernel")

Server = TypeVar("Server", bound=aserver.DatagramServer)


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    """Open and serve *server* while the block runs; at its end what is still open is cancelled."""
    with anyio.fail_after(SAFETY):
        async with server:
            async with anyio.create_task_group() as tasks:
                await tasks.start(server.serve_forever)
                yield server
                tasks.cancel_scope.cancel()


async def upper(datagram: aserver.Datagram) -> None:
    """Answer in capitals."""
    await datagram.reply(datagram.data.upper())


def udp(handler: Any = upper, **options: Any) -> aserver.UDPServer:
    """A server on a free port of the loopback interface."""
    return aserver.UDPServer(("127.0.0.1", 0), handler, **options)


def totals(server: aserver.DatagramServer) -> dict[str, int]:
    """The counters that are not 0, after checking that each datagram is in exactly one of them."""
    counters = server.statistics()
    assert counters.received == counters.handled + counters.queued + counters.dropped, counters
    ends = ("open", "completed", "failed", "lost", "rejected", "cancelled")
    if server.sessions is None:
        assert counters.handled == sum(getattr(counters, name) for name in ends), counters
    return {name: value for name in counters.__slots__ if (value := getattr(counters, name))}


def target(endpoint: str) -> Any:
    """What a stdlib socket sends to for one of `endpoints`."""
    if endpoint.startswith("udp://"):
        host, _, port = endpoint.removeprefix("udp://").rpartition(":")
        host = {"[::]": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host.strip("[]"))
        return host, int(port)
    path = endpoint.removeprefix("unixgram:").partition("?")[0]
    return f"\0{path[1:]}" if path.startswith("@") else path


def bound_socket(address: Any = ("127.0.0.1", 0)) -> socket.socket:
    """A ready-made socket."""
    family = socket.AF_UNIX
    if isinstance(address, tuple):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(address)
    return sock


class Gate:
    """A handler that waits until the test lets it go on, and answers then."""

    def __init__(self) -> None:
        self.go = anyio.Event()
        self.inside = 0

    async def __call__(self, datagram: aserver.Datagram) -> None:
        self.inside += 1
        await self.go.wait()
        await datagram.reply(datagram.data.upper())


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ("127.0.0.1", 0), id="pair"),
        pytest.param(lambda: "udp://127.0.0.1:0", id="string"),
        pytest.param(lambda: ("localhost", 0), id="name"),
        pytest.param(lambda: ("", 0), id="everything"),
        pytest.param(lambda: "udp://*:0", id="string-everything"),
        pytest.param(lambda: "udp://[::1]:0", id="ipv6", marks=needs_ipv6),
        pytest.param(lambda: "udp://[::]:0", id="ipv6-everything", marks=needs_ipv6),
        pytest.param(bound_socket, id="socket"),
        pytest.param(lambda: bound_socket(("::1", 0)), id="socket-ipv6", marks=needs_ipv6),
        pytest.param(lambda: f"fd://{bound_socket().detach()}", id="fd"),
        pytest.param(lambda: ["udp://127.0.0.1:0", ("127.0.0.1", 0), bound_socket()], id="several"),
    ],
)
@pytest.mark.parametrize("kind", [aserver.UDPServer, aserver.DatagramServer])
async def test_every_form_of_udp_address(kind: type[aserver.DatagramServer], make: Callable[[], Any]) -> None:
    """A UDP server starts from each form of address, and every endpoint that it names answers from there."""
    async with serving(kind(make(), upper)) as server:
        assert server.server_address[1] > 0
        for endpoint in server.endpoints:
            assert endpoint.startswith("udp://")
            with Peer(target(endpoint), connected=True) as peer:
                assert await peer.ask(b"hello") == b"HELLO"
    again = [bound_socket(target(endpoint)) for endpoint in server.endpoints]  # the ports are free
    for sock in again:
        sock.close()


@needs_ipv6
@pytest.mark.parametrize("host", ["", "*", None])
async def test_both_families_on_one_port(host: str | None) -> None:
    """A host that means both families receives on one port in both."""
    async with serving(aserver.UDPServer((host, 0), upper)) as server:
        assert len({endpoint.rpartition(":")[2] for endpoint in server.endpoints}) == 1
        assert len(server.endpoints) == 2
        for own in ("127.0.0.1", "::1"):
            with Peer((own, server.server_address[1]), connected=True) as peer:
                assert await peer.ask(b"hello") == b"HELLO"


@pytest.mark.parametrize("kind", [aserver.UnixDatagramServer, aserver.DatagramServer])
@pytest.mark.parametrize("form", ["path", "string", "mode", "socket", "fd", "abstract"])
async def test_every_form_of_unix_address(kind: type[aserver.DatagramServer], form: str, short_dir: Path) -> None:
    """A Unix server starts from each form of address, answers there, and removes the path that it has made."""
    if form == "abstract" and sys.platform != "linux":
        pytest.skip("abstract names are Linux's")
    path = short_dir / "door"
    forms: dict[str, Callable[[], Any]] = {
        "path": lambda: path,
        "string": lambda: f"unixgram:{path}",
        "mode": lambda: f"unixgram:{path}?mode=660",
        "socket": lambda: bound_socket(str(path)),
        "fd": lambda: f"fd://{bound_socket(str(path)).detach()}",
        "abstract": lambda: f"unixgram:@{path}",
    }
    async with serving(kind(forms[form](), upper)) as server:
        (endpoint,) = server.endpoints
        assert endpoint == (f"unixgram:@{path}" if form == "abstract" else f"unixgram:{path}")
        with Peer(target(endpoint), bound=short_dir / "peer", connected=True) as peer:
            assert await peer.ask(b"hello") == b"HELLO"
        if form in ("path", "string", "mode"):
            assert stat.S_IMODE(path.lstat().st_mode) == (0o660 if form == "mode" else 0o600)
    assert path.exists() == (form in ("socket", "fd"))


async def test_several_kinds_in_one_server(short_dir: Path) -> None:
    """One server serves UDP and Unix sockets; what is sent unasked takes the one that fits."""
    addresses: Any = ["udp://127.0.0.1:0", f"unixgram:{short_dir}/one", short_dir / "two"]
    async with serving(aserver.DatagramServer(addresses, upper)) as server:
        for number, endpoint in enumerate(server.endpoints):
            bound = short_dir / f"peer{number}" if number else None
            with Peer(target(endpoint), bound=bound) as peer:
                assert await peer.ask(b"hello") == b"HELLO"
                await server.send_to(b"news", peer.name)
                data, source = await peer.hear_from()
                assert data == b"news"
                assert source == target(server.endpoints[min(number, 1)])
        assert totals(server) == {"received": 3, "handled": 3, "completed": 3, "sent": 6}


async def test_path_rules(short_dir: Path) -> None:
    """A path that a dead server left is replaced; a live server, a stream server and a plain file are left alone."""
    path = short_dir / "door"
    handler: Any = upper  # the stream server never serves
    bound_socket(str(path)).close()
    async with serving(aserver.UnixDatagramServer(path, upper)):
        inode = path.lstat().st_ino
        for kind in (aserver.UnixDatagramServer, aserver.UnixStreamServer):
            rival: Any = kind(path, handler)
            with pytest.raises(OSError, match="is in use by a live server"):
                await rival.__aenter__()
        assert path.lstat().st_ino == inode
        with Peer(path, bound=short_dir / "peer") as peer:
            assert await peer.ask(b"hello") == b"HELLO"
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(path))
        stream.listen()
        with pytest.raises(OSError, match="is in use by a live server"):
            await aserver.UnixDatagramServer(path, upper).__aenter__()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="there is a regular file, not a socket"):
        await aserver.UnixDatagramServer(path, upper).__aenter__()
    assert path.read_text() == "precious"


async def test_live_server_whose_queue_is_full_is_left_alone(short_dir: Path) -> None:
    """A server that does not read at the moment is alive, and its path is not taken."""
    path = short_dir / "door"
    with bound_socket(str(path)), Peer(path) as peer:
        fill(peer.sock, str(path))
        with pytest.raises(OSError, match="is in use by a live server"):
            await aserver.UnixDatagramServer(path, upper).__aenter__()
        assert path.exists()


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: aserver.UDPServer("tcp://127.0.0.1:0", upper), "is a stream endpoint and this is a datagram server"),
        (lambda: aserver.DatagramServer("unix:/x", upper), "write udp://host:port or unixgram:/path"),
        (lambda: aserver.UDPServer("unixgram:/x", upper), "UDPServer cannot listen on unixgram:/x; use UnixDatagramS"),
        (lambda: aserver.UDPServer(Path("/x"), upper), "or DatagramServer for several kinds"),
        (lambda: aserver.UnixDatagramServer("udp://*:0", upper), "UnixDatagramServer cannot listen on udp://"),
        (lambda: aserver.UnixDatagramServer(("", 0), upper), "use UDPServer"),
        (lambda: aserver.UDPServer("127.0.0.1:0", upper), "has no scheme; write udp://127.0.0.1:0"),
        (lambda: aserver.UDPServer("udp://127.0.0.1", upper), "is not of the form udp://host:port"),
        (lambda: aserver.UDPServer("udp://:99", upper), "has no host; write udp://127.0.0.1:99 for this machine only"),
        (lambda: aserver.UDPServer([], upper), "has no address in it; give 'udp://host:port'"),
        (lambda: aserver.UDPServer(("127.0.0.1", 65536), upper), "has the port 65536"),
        (lambda: aserver.TCPServer("udp://*:0", upper), "is a datagram endpoint and this is a stream server"),
        (lambda: aserver.TCPServer("unixgram:/x", upper), "write tcp://host:port or unix:/path"),
        (lambda: aserver.UnixStreamServer("unixgram:/x", upper), "is a datagram endpoint and this is a stream server"),
        (lambda: aserver.StreamServer(["tcp://*:0", "udp://*:0"], upper), "is a datagram endpoint"),
    ],
)
def test_wrong_address(make: Callable[[], Any], text: str) -> None:
    """An address of another kind is refused at construction, with what to write or use instead."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
        make()
    assert text in str(caught.value)


async def test_wrong_sockets(short_dir: Path) -> None:
    """Ready-made sockets of another kind, or not bound, are refused, as are descriptors."""
    with (
        socket.socket() as stream,
        socket.socket(type=socket.SOCK_DGRAM) as unbound,
        bound_socket() as udp_socket,
        bound_socket(str(short_dir / "door")) as unix_socket,
    ):
        stream.bind(("127.0.0.1", 0))
        cases: list[tuple[Any, Any, str]] = [
            (aserver.UDPServer, stream, "and this server needs <SocketKind.SOCK_DGRAM: 2>; give 'udp://host:port'"),
            (aserver.UDPServer, unbound, "is not bound; call its bind() first"),
            (aserver.UDPServer, unix_socket, "use UnixDatagramServer"),
            (aserver.UnixDatagramServer, udp_socket, "use UDPServer"),
            (aserver.TCPServer, udp_socket, "and this server needs <SocketKind.SOCK_STREAM: 1>"),
            (aserver.UDPServer, [udp_socket, udp_socket], "has one descriptor or socket twice"),
        ]
        for kind, address, text in cases:
            with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
                kind(address, upper)
            assert text in str(caught.value)
        with pytest.raises(OSError, match=r"this server needs <SocketKind\.SOCK_DGRAM: 2>"):
            await aserver.UDPServer(f"fd://{stream.fileno()}", upper).__aenter__()
        assert stream.getsockname()  # still open


@pytest.mark.parametrize(
    "options, text",
    [
        ({"limits": 5}, "limits is 5; it must be an aserver.Limits"),
        ({"sessions": True}, "sessions is True; it must be an aserver.Sessions"),
        ({"groups": "239.1.2.3"}, "groups is '239.1.2.3'; it must be a list of strings"),
        ({"groups": [5]}, "5 is no multicast group"),
        ({"backlog": 5}, "backlog"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    """Options of a wrong type, and those of stream servers, are refused at construction."""
    with pytest.raises(TypeError) as caught:
        udp(**options)
    assert text in str(caught.value)


async def test_port_in_use() -> None:
    """F6: a second server on a UDP port gets EADDRINUSE, because SO_REUSEADDR is never set; the first goes on."""
    async with serving(udp()) as server:
        (bound,) = server._bound
        assert not bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        with pytest.raises(OSError, match="Address already in use; stop whoever listens there") as caught:
            await aserver.UDPServer(server.server_address, upper).__aenter__()
        assert isinstance(caught.value, OSError)
        with socket.socket(type=socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                thief.bind(server.server_address)
        with Peer(server.server_address) as peer:
            assert await peer.ask(b"hello") == b"HELLO"


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this platform has no SO_REUSEPORT")
async def test_reuse_port() -> None:
    """With reuse_port several servers have one port, and the kernel shares out the peers."""
    async with serving(udp(reuse_port=True)) as one:
        async with serving(aserver.UDPServer(one.server_address, upper, reuse_port=True)) as two:
            for _ in range(64):
                with Peer(one.server_address) as peer:
                    assert await peer.ask(b"hello") == b"HELLO"
            assert one.statistics().received + two.statistics().received == 64
            assert one.statistics().received
            assert two.statistics().received


async def test_a_large_receive_buffer_is_kept() -> None:
    """The receive buffer is as large as the system allows up to 1 MiB; that of a socket with a larger one is kept."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**30)
        most = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)  # what the system caps it at
        sock.bind(("127.0.0.1", 0))
        async with aserver.UDPServer([sock, ("127.0.0.1", 0)], upper) as server:
            sizes = [bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for bound in server._bound]
    assert sizes == [most, min(most, 2 * 1024 * 1024)]


# --- handlers' faults and hooks --------------------------------------------------------------------------------------

FAULTS: list[BaseException] = [
    ValueError("bad"),
    OSError(5, "disk"),
    KeyError("key"),
    RecursionError(),
    MemoryError(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    OwnError("a BaseException of the user's"),
    StopIteration(),
    ConnectionResetError("of the handler's own backend: a datagram has no connection"),
    ExceptionGroup("two", [ValueError("one"), anyio.BrokenResourceError()]),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("waits", [False, True], ids=["at-once", "later"])
async def test_whatever_a_handler_raises(fault: BaseException, waits: bool, aserver_log: LogBook) -> None:
    """Whatever a handler raises, before or after it has waited, ends its datagram only; it is logged, with the peer."""

    async def handler(datagram: aserver.Datagram) -> None:
        if waits:
            await anyio.lowlevel.checkpoint()
        if datagram.data == b"bad":
            raise fault
        await upper(datagram)

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"bad")
            assert await peer.ask(b"good") == b"GOOD"
            await server.wait_empty()
            record = aserver_log.take(f"ERROR: UDPServer: the request of 127.0.0.1:{peer.name[1]} raised")
            assert record.exc_info
        assert totals(server) == {"received": 2, "handled": 2, "completed": 1, "failed": 1, "sent": 1}


@pytest.mark.parametrize(
    "fault",
    [anyio.BrokenResourceError(), anyio.EndOfStream(), anyio.IncompleteRead(), aserver.ReplyRefusedError(2, 1)],
    ids=lambda fault: type(fault).__name__,
)
async def test_network_ends_are_nobodys_bug(fault: Exception, aserver_log: LogBook) -> None:
    """An error of the network that a handler lets pass counts as lost, and is a debug line."""

    async def handler(datagram: aserver.Datagram) -> None:
        raise fault

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"x")
            await until(lambda: server.statistics().lost)
        assert totals(server) == {"received": 1, "handled": 1, "lost": 1}
    assert [record.levelname for record in aserver_log.records] == ["DEBUG"]


@pytest.mark.parametrize("waits", [False, True], ids=["at-once", "later"])
async def test_cancellation_that_nobody_asked_for(anyio_backend: Any, waits: bool, aserver_log: LogBook) -> None:
    """A handler that raises asyncio's CancelledError itself has failed; nothing else is cancelled."""
    if anyio_backend[0] == "trio":
        pytest.skip("trio's Cancelled cannot be made by hand")

    async def handler(datagram: aserver.Datagram) -> None:
        if waits:
            await anyio.lowlevel.checkpoint()
        if datagram.data == b"bad":
            raise asyncio.CancelledError
        await upper(datagram)

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"bad")
            assert await peer.ask(b"good") == b"GOOD"
            await server.wait_empty()
        assert totals(server) == {"received": 2, "handled": 2, "completed": 1, "failed": 1, "sent": 1}
    aserver_log.take("ERROR: UDPServer: the request of")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("answer", [True, False])
async def test_verify_request(asynchronous: bool, answer: bool) -> None:
    """verify_request, plain or async, decides before the handler whether a datagram is served; if not it is counted."""
    told: list[Any] = []

    class Plain(aserver.UDPServer):
        def verify_request(self, request: Any, client_address: Any) -> Any:
            told.append((request.data, client_address))
            return answer

    class Async(aserver.UDPServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await anyio.lowlevel.checkpoint()
            told.append((request.data, client_address))
            return answer

    async with serving((Async if asynchronous else Plain)(("127.0.0.1", 0), upper)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"hello")
            await until(lambda: server.statistics().completed or server.statistics().rejected)
            assert told == [(b"hello", peer.name)]
            assert peer.heard() == ([b"HELLO"] if answer else [])
        expected = {"completed": 1, "sent": 1} if answer else {"rejected": 1}
        assert totals(server) == {"received": 1, "handled": 1} | expected


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("fault", FAULTS[:8], ids=lambda fault: type(fault).__name__)
async def test_hooks_that_raise(asynchronous: bool, fault: BaseException, aserver_log: LogBook) -> None:
    """E2, E3: a verify_request that raises is told to handle_error; if that raises, too, it is logged instead."""

    class Plain(aserver.UDPServer):
        def verify_request(self, request: Any, client_address: Any) -> Any:
            if request.data == b"bad":
                raise fault
            return True

        def handle_error(self, request: Any, client_address: Any) -> Any:
            assert sys.exc_info()[1] is fault
            raise fault

    class Async(aserver.UDPServer):
        async def verify_request(self, request: Any, client_address: Any) -> bool:
            await anyio.lowlevel.checkpoint()
            if request.data == b"bad":
                raise fault
            return True

        async def handle_error(self, request: Any, client_address: Any) -> None:
            await anyio.lowlevel.checkpoint()
            assert sys.exc_info()[1] is fault
            raise fault

    async with serving((Async if asynchronous else Plain)(("127.0.0.1", 0), upper)) as server:
        with Peer(server.server_address) as peer:
            peer.send(b"bad")
            assert await peer.ask(b"good") == b"GOOD"
            await server.wait_empty()
        assert totals(server) == {"received": 2, "handled": 2, "completed": 1, "failed": 1, "sent": 1}
    assert "a hook for 127.0.0.1:" in aserver_log.take("ERROR").getMessage()


async def test_what_a_handler_may_use() -> None:
    """From its first step on a handler is a task: task groups, time limits and context variables are its own."""
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"")
    tasks_seen: set[int] = set()

    async def handler(datagram: aserver.Datagram) -> None:
        before = variable.get()
        variable.set(datagram.data)
        if datagram.data == b"kept":
            tasks_seen.add(anyio.get_current_task().id)
        if datagram.data.startswith(b"timeout"):
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught
        if datagram.data.startswith(b"scope"):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.lowlevel.checkpoint()
                pytest.fail("not cancelled")
        if datagram.data.startswith(b"group"):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.lowlevel.checkpoint)
        await datagram.reply(before + datagram.data)

    questions = [b"plain", b"timeout", b"scope", b"group", b"kept", b"timeout2", b"plain2"]
    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            for question in questions:
                assert await peer.ask(question) == question
            for question in questions:
                peer.send(question)
            await until(lambda: server.statistics().completed == 2 * len(questions))
            assert sorted(peer.heard()) == sorted(questions)
    assert variable.get() == b""


async def test_asyncio_timeout_in_a_handler(anyio_backend: Any) -> None:
    """asyncio's own time limit, which needs the current task to be the handler's, works from the first step on."""
    if anyio_backend[0] == "trio":
        pytest.skip("asyncio only")

    async def handler(datagram: aserver.Datagram) -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        assert asyncio.current_task() is task
        await datagram.reply(b"in time")

    async with serving(udp(handler)) as server:
        with Peer(server.server_address) as peer:
            for _ in range(3):
                assert await peer.ask(b"x") == b"in time"


# --- sending unasked -------------------------------------------------------------------------------------------------


async def test_send_to(short_dir: Path) -> None:
    """A server sends to whom it likes, by IP address with or without an interface, or by path, from when it is open."""
    async with aserver.DatagramServer(["udp://127.0.0.1:0", short_dir / "door"], upper) as server:
        with Peer(server.server_address) as peer, Peer(short_dir / "door", bound=short_dir / "peer") as unix:
            await server.send_to(b"news", peer.name)
            assert await peer.hear_from() == (b"news", server.server_address)
            if sys.platform == "linux":
                for interface in ("lo", str(socket.if_nametoindex("lo"))):
                    await server.send_to(b"news", (f"127.0.0.1%{interface}", peer.name[1]))
                    assert await peer.hear_from() == (b"news", server.server_address)
            await server.send_to(bytearray(b"news"), unix.name)
            await server.send_to(b"news", os.fsencode(unix.name))
            assert unix.heard() == [b"news", b"news"]
    with pytest.raises(anyio.ClosedResourceError):
        await server.send_to(b"late", ("127.0.0.1", 9))
    with pytest.raises(anyio.ClosedResourceError):
        await server.send_to(b"late", "/x")


@needs_ipv6
async def test_send_to_by_family() -> None:
    """The socket of the address's family is taken."""
    async with aserver.UDPServer(["udp://127.0.0.1:0", "udp://[::1]:0"], upper) as server:
        for host, bound in (("127.0.0.1", 0), ("::1", 1)):
            with Peer((host, 1)) as peer:
                await server.send_to(b"news", peer.name)
                data, source = await peer.hear_from()
                assert (data, source) == (b"news", server._bound[bound].address)


@pytest.mark.parametrize(
    "address, text",
    [
        (("localhost", 5), "has no IP address as host; look the name up first"),
        (("", 5), "has no IP address as host"),
        (("::1", 5), "has no socket of that family"),
        ("/x", "has no Unix socket; give (host, port)"),
        (b"\0x", "has no Unix socket; give (host, port)"),
        ("", "cannot be sent to"),
        (None, "cannot be sent to"),
        (("127.0.0.1", 65536), "65536"),
        (("127.0.0.1", -1), "-1"),
        ((), "cannot be sent to"),
    ],
)
async def test_send_to_what_is_no_address(address: Any, text: str) -> None:
    """What is no address that the server has a socket for is a ValueError that says what to do."""
    async with udp() as server:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
            await server.send_to(b"x", address)
        assert text in str(caught.value)


async def test_send_to_an_unknown_interface() -> None:
    """An interface that there is not is an OSError with an errno, and the names of those that there are."""
    async with udp() as server:
        with pytest.raises(
            OSError, match=r"there is no network interface 'nope'; those of this machine are .*lo"
        ) as no:
            await server.send_to(b"x", ("127.0.0.1%nope", 5))
        assert no.value.errno is not None


async def test_send_to_a_path_that_is_too_long(short_dir: Path) -> None:
    """A path that no socket can have is an error that says so."""
    async with aserver.UnixDatagramServer(short_dir / "door", upper) as server:
        with pytest.raises((ValueError, anyio.BrokenResourceError)) as caught:
            await server.send_to(b"x", "/" + "x" * 200)
        assert "None" not in str(caught.value)


async def test_send_before_and_too_much() -> None:
    """Before it is open a server sends nothing; too much is a ValueError."""
    server = udp()
    with pytest.raises(aserver.ServerStateError, match="is not open"):
        await server.send_to(b"x", ("127.0.0.1", 5))
    async with server:
        with pytest.raises(ValueError, match="65508 bytes do not fit into one datagram"):
            await server.send_to(b"x" * (LARGEST + 1), ("127.0.0.1", 5))


async def test_broadcast_by_option() -> None:
    """Only with broadcast=True the server may send to broadcast addresses."""
    for allowed in (False, True):
        async with udp(broadcast=allowed) as server:
            if allowed:
                await server.send_to(b"x", ("127.255.255.255", 9))
            else:
                with pytest.raises(anyio.BrokenResourceError, match="Permission denied"):
                    await server.send_to(b"x", ("127.255.255.255", 9))

"""The promises of `aserver._server` about addresses, states and the life of a server; hooks, limits and shutdown have
modules of their own, which take `running`, `upper` and `until` from here.

Peers are stdlib sockets: connecting and sending little is done at once by the kernel, waiting happens in a thread.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import pytest

import aserver

from .conftest import LogBook, Resources
from .peers import TIMEOUT, ask, connect, in_thread

pytestmark = pytest.mark.anyio

#: Seconds until a test that hangs is given up; nothing waits for it otherwise.
SAFETY = 10.0

Server = TypeVar("Server", bound=aserver.StreamServer)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


async def upper(stream: aserver.Stream) -> None:
    """Answer each line in capitals."""
    async for line in stream:
        await stream.send(line.upper())


async def until(condition: Callable[[], object]) -> None:
    """Give the loop turns until *condition* holds: for what has no event of its own."""
    deadline = time.monotonic() + SAFETY  # the loop's own clock may be stopped
    while not condition():  # a server can be asked for its state, it does not call
        assert time.monotonic() < deadline, "it never came to pass"
        await anyio.lowlevel.checkpoint()


async def turns(count: int = 20) -> None:
    """Give the loop some turns, so that all that is due has happened."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def running(server: Server, safety: float | None = SAFETY) -> AsyncIterator[Server]:
    """Open and serve *server* while the block runs; at its end what is still open is cancelled."""
    with anyio.fail_after(safety):
        async with server:
            async with anyio.create_task_group() as tasks:
                await tasks.start(server.serve_forever)
                yield server
                tasks.cancel_scope.cancel()


def tcp(handler: Any = upper, **options: Any) -> aserver.TCPServer:
    """A server on a free port of the loopback interface."""
    return aserver.TCPServer(("127.0.0.1", 0), handler, **options)


def connectable(endpoint: str) -> Any:
    """What a stdlib socket connects to for one of `endpoints`."""
    if endpoint.startswith("tcp://"):
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        return host.strip("[]"), int(port)
    path = endpoint.removeprefix("unix:")
    return f"\0{path[1:]}" if path.startswith("@") else path


def bound_socket(*, listening: bool, family: int = socket.AF_INET) -> socket.socket:
    """A ready-made socket on a free port."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    if listening:
        sock.listen(1024)
    return sock


def refuses(address: Any) -> bool:
    """Whether nobody listens at *address*."""
    try:
        connect(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ("127.0.0.1", 0), id="pair"),
        pytest.param(lambda: ("localhost", 0), id="name"),
        pytest.param(lambda: "tcp://127.0.0.1:0", id="string"),
        pytest.param(lambda: "tcp://localhost:0", id="string-name"),
        pytest.param(lambda: ("::1", 0), id="pair-ipv6", marks=needs_ipv6),
        pytest.param(lambda: "tcp://[::1]:0", id="string-ipv6", marks=needs_ipv6),
        pytest.param(lambda: bound_socket(listening=False), id="bound-socket"),
        pytest.param(lambda: bound_socket(listening=True), id="listening-socket"),
        pytest.param(lambda: bound_socket(listening=True, family=socket.AF_INET6), id="socket-ipv6", marks=needs_ipv6),
        pytest.param(lambda: f"fd://{bound_socket(listening=True).detach()}", id="fd"),
        pytest.param(lambda: [("127.0.0.1", 0)], id="list"),
    ],
)
@pytest.mark.parametrize("kind", [aserver.TCPServer, aserver.StreamServer])
async def test_every_form_of_tcp_address(kind: type[aserver.StreamServer], make: Callable[[], Any]) -> None:
    """A TCP server starts from each form of address, and every endpoint that it names answers."""
    async with running(kind(make(), upper)) as server:
        assert server.server_address[1] > 0
        assert connectable(server.endpoints[0]) == server.server_address[:2]
        for endpoint in server.endpoints:
            assert await in_thread(ask, connectable(endpoint), b"hello\n") == b"HELLO\n"
    assert all(refuses(connectable(endpoint)) for endpoint in server.endpoints)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("{path}", id="str"),
        pytest.param("unix:{path}", id="string"),
        pytest.param("unix:{path}?mode=660", id="mode"),
        pytest.param(Path, id="path"),
    ],
)
@pytest.mark.parametrize("kind", [aserver.UnixStreamServer, aserver.StreamServer])
async def test_every_form_of_unix_address(kind: type[aserver.StreamServer], form: Any, tmp_path: Path) -> None:
    """A Unix server starts from each form of path, with the mode asked for, and removes the path at its end."""
    path = tmp_path / "s"
    address = form.format(path=path) if isinstance(form, str) else form(path)
    async with running(kind(address, upper)) as server:
        assert server.server_address == str(path)
        (endpoint,) = server.endpoints
        assert endpoint == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == (0o660 if "mode" in str(address) else 0o600)
        assert await in_thread(ask, path, b"hello\n") == b"HELLO\n"
    assert not path.exists()


@linux_only
async def test_abstract_unix_address() -> None:
    """A Unix server listens on an abstract name, which `endpoints` shows as it was written."""
    name = f"@aserver-test-{os.getpid()}"
    async with running(aserver.UnixStreamServer(f"unix:{name}", upper)) as server:
        assert server.endpoints == (f"unix:{name}",)
        assert await in_thread(ask, connectable(server.endpoints[0]), b"hello\n") == b"HELLO\n"


async def test_path_that_is_no_longer_ours_stays(tmp_path: Path) -> None:
    """At its end a server removes its path only if what is there is still its own socket."""
    path = tmp_path / "s"
    async with running(aserver.UnixStreamServer(path, upper)):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_several_endpoints_in_one_server(tmp_path: Path) -> None:
    """A server on TCP ports and Unix paths together answers on each; `server_address` is the first of them."""
    addresses: list[Any] = ["tcp://127.0.0.1:0", tmp_path / "s", ("127.0.0.1", 0), bound_socket(listening=True)]
    async with running(aserver.StreamServer(addresses, upper)) as server:
        assert len(set(server.endpoints)) == 4
        assert server.server_address == connectable(server.endpoints[0])
        for endpoint in server.endpoints:
            assert await in_thread(ask, connectable(endpoint), b"hello\n") == b"HELLO\n"
        await server.wait_empty()
        assert server.statistics().completed == 4


@needs_ipv6
async def test_both_families_get_one_port() -> None:
    """Port 0 of all interfaces is one port, on which IPv4 and IPv6 both answer."""
    async with running(aserver.TCPServer(("", 0), upper)) as server:
        port = server.server_address[1]
        assert {connectable(endpoint)[1] for endpoint in server.endpoints} == {port}
        assert await in_thread(ask, ("127.0.0.1", port), b"four\n") == b"FOUR\n"
        assert await in_thread(ask, ("::1", port), b"six\n") == b"SIX\n"


def unix_socket(folder: Path) -> socket.socket:
    """A ready-made Unix socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(folder / "ready"))
    return sock


async def test_wrong_kind_of_address_for_the_class(tmp_path: Path) -> None:
    """A Unix address for a TCPServer, and the other way round, is a ValueError that names the class to use."""
    for address in (f"unix:{tmp_path}/s", tmp_path / "s", [("127.0.0.1", 0), tmp_path / "s"]):
        with pytest.raises(ValueError, match=r"TCPServer cannot listen on unix:.*; use UnixStreamServer, or Stream"):
            aserver.TCPServer(address, upper)  # type: ignore[arg-type]  # a list of two kinds
    for pair in (("127.0.0.1", 0), "tcp://127.0.0.1:0", [("127.0.0.1", 0)]):
        with pytest.raises(ValueError, match=r"UnixStreamServer cannot listen on tcp://127.0.0.1:0; use TCPServer, or"):
            aserver.UnixStreamServer(pair, upper)  # type: ignore[arg-type]  # as above
    assert os.listdir(tmp_path) == []


async def test_wrong_kind_of_ready_made_socket_for_the_class(tmp_path: Path) -> None:
    """A ready-made Unix socket for a TCPServer, and the other way round, is refused at construction as well."""
    with unix_socket(tmp_path) as sock, pytest.raises(ValueError, match="UnixStreamServer"):
        aserver.TCPServer(sock, upper)
    with bound_socket(listening=True) as sock, pytest.raises(ValueError, match="TCPServer"):
        aserver.UnixStreamServer(sock, upper)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"limits": 5}, TypeError, r"limits is 5; it must be an aserver\.Limits"),
        ({"limits": {"max_connections": 5}}, TypeError, "limits is {'max_connections': 5}"),
        ({"backlog": 0}, ValueError, "backlog is 0; it must be an integer of at least 1"),
        ({"backlog": -1}, ValueError, "backlog is -1"),
        ({"backlog": True}, TypeError, "backlog is True"),
        ({"backlog": "5"}, TypeError, "backlog is '5'"),
    ],
)
def test_bad_options_fail_at_construction(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """An option that cannot be right fails at construction, with its value and what it must be."""
    with pytest.raises(error, match=text):
        tcp(**options)


async def test_backlog_of_one_serves() -> None:
    """The smallest backlog is a server like any other."""
    async with running(tcp(backlog=1)) as server:
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="SO_REUSEPORT is missing here")
async def test_reuse_port() -> None:
    """With reuse_port a second server listens on the same port; without it the port is taken."""
    async with running(tcp(reuse_port=True)) as first:
        async with running(aserver.TCPServer(first.server_address, upper, reuse_port=True)) as second:
            assert first.server_address == second.server_address
            assert await in_thread(ask, first.server_address, b"hello\n") == b"HELLO\n"
        with pytest.raises(OSError, match="in use"):
            async with aserver.TCPServer(first.server_address, upper):
                pass


# --- ways to serve ---------------------------------------------------------------------------------------------------


async def test_async_with_and_serve_forever() -> None:
    """`async with server: await server.serve_forever()` serves until it is cancelled."""
    server = tcp()
    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            async with server:
                await server.serve_forever()

        tasks.start_soon(serve)
        await until(lambda: "serving" in repr(server))
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"
        tasks.cancel_scope.cancel()
    assert refuses(server.server_address)


async def test_started_in_a_task_group() -> None:
    """`await task_group.start(server.serve_forever)` opens the server and gives its address when it is listening."""
    server = tcp()
    async with anyio.create_task_group() as tasks:
        address = await tasks.start(server.serve_forever)
        assert address == server.server_address
        assert await in_thread(ask, address, b"hello\n") == b"HELLO\n"
        report = await server.shutdown()
        assert report.clean
    assert refuses(address)


async def test_serve_forever_alone_opens_and_closes() -> None:
    """`serve_forever` on its own opens the server, and after `shutdown` returns with everything closed."""
    before = Resources.now()
    server = tcp()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve_forever)
        await until(lambda: "serving" in repr(server))
        with connect(server.server_address) as client:
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
            await server.shutdown()
            assert await in_thread(client.read_until_eof) == b""
    left = [line for line in Resources.now().beyond(before) if line.startswith("descriptor")]
    assert left == []


async def test_clients_before_serve_forever_wait() -> None:
    """A client that connects between entering and serve_forever waits in the kernel's queue, and is served."""
    async with tcp() as server:
        with connect(server.server_address) as client:
            client.send(b"early\n")
            await turns()
            assert server.statistics().accepted == 0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve_forever)
                assert await in_thread(client.read_until) == b"EARLY\n"
                tasks.cancel_scope.cancel()


async def test_two_servers_in_one_loop() -> None:
    """Servers side by side in one loop do not know of each other."""
    async with running(tcp()) as first, running(tcp()) as second:
        assert await in_thread(ask, first.server_address, b"one\n") == b"ONE\n"
        assert await in_thread(ask, second.server_address, b"two\n") == b"TWO\n"
        await first.wait_empty()
        await second.wait_empty()
        assert first.statistics().accepted == second.statistics().accepted == 1


async def test_repr_tells_name_address_state_and_connections() -> None:
    """The repr of a server is one line with its name, its endpoints, its state and how many are inside."""
    server = tcp(name="front door")
    assert repr(server) == "<front door not bound new open=0>"
    async with server:
        assert repr(server) == f"<front door {server.endpoints[0]} open open=0>"
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            with connect(server.server_address) as client:
                await in_thread(client.ask, b"x\n")
                assert repr(server) == f"<front door {server.endpoints[0]} serving open=1>"
            tasks.cancel_scope.cancel()
    assert "closed open=0>" in repr(server)
    assert repr(tcp()).startswith("<TCPServer ")


# --- states ----------------------------------------------------------------------------------------------------------


async def test_entering_twice() -> None:
    """A server that is open or closed cannot be entered again; the error says to make a new one."""
    server = tcp()
    async with server:
        with pytest.raises(aserver.ServerStateError, match=r"<TCPServer .*> cannot be opened again; make a new one"):
            await server.__aenter__()
        assert not refuses(server.server_address)  # and the first entering is as good as before
    with pytest.raises(aserver.ServerStateError, match="closed open=0> cannot be opened again; make a new one"):
        await server.__aenter__()


async def test_serving_twice() -> None:
    """A server that is serving cannot serve a second time, and goes on with the first."""
    async with running(tcp()) as server:
        with pytest.raises(aserver.ServerStateError, match="cannot serve: it is serving; make a new one"):
            await server.serve_forever()
        assert await in_thread(ask, server.server_address, b"hello\n") == b"HELLO\n"


async def test_serving_after_the_end() -> None:
    """A closed server cannot serve again."""
    async with running(tcp()) as server:
        pass
    with pytest.raises(aserver.ServerStateError, match="cannot serve: it is closed; make a new one"):
        await server.serve_forever()


async def test_serving_after_shutdown_began() -> None:
    """A server that was shut down before it served cannot serve."""
    async with tcp() as server:
        assert (await server.shutdown()).clean
        with pytest.raises(aserver.ServerStateError, match="cannot serve: it is stopping"):
            await server.serve_forever()


async def test_what_needs_an_open_server() -> None:
    """Address, endpoints, suspend and resume of a server that was never opened say that it is not open."""
    server = tcp()
    text = "<TCPServer not bound new open=0> is not open; enter it with 'async with' first"
    for use in (
        lambda: server.server_address,
        lambda: server.endpoints,
        server.suspend,
        server.resume,
    ):
        with pytest.raises(aserver.ServerStateError) as caught:
            use()
        assert str(caught.value) == text
    with pytest.raises(aserver.ServerStateError, match="cannot be shut down: it is new"):
        await server.shutdown()
    assert server.statistics().accepted == 0  # which may be asked at any time
    await server.wait_empty()


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_bind_error_leaves_nothing_open(tmp_path: Path) -> None:
    """When one address of several cannot be had, entering raises its OSError and the others are closed again."""
    before = Resources.now()
    with bound_socket(listening=True) as taken:
        host, port = taken.getsockname()
        server = aserver.StreamServer([("127.0.0.1", 0), tmp_path / "s", (host, port)], upper)
        with pytest.raises(OSError, match=f"tcp://127.0.0.1:{port}"):
            await server.__aenter__()
        assert os.listdir(tmp_path) == []
    assert [line for line in Resources.now().beyond(before) if line.startswith("descriptor")] == []


async def test_bind_error_of_serve_forever() -> None:
    """`serve_forever`, alone or started in a task group, raises the bind error itself."""
    with bound_socket(listening=True) as taken:
        with pytest.raises(OSError, match="in use"):
            await aserver.TCPServer(taken.getsockname(), upper).serve_forever()
        async with anyio.create_task_group() as tasks:
            with pytest.raises(OSError, match="in use"):
                await tasks.start(aserver.TCPServer(taken.getsockname(), upper).serve_forever)


class OwnError(Exception):
    """Raised by a test, to be recognised."""


async def test_error_of_the_body_comes_out_as_itself() -> None:
    """An exception that leaves the `async with` block leaves it as it is, in no group, with a connection open."""
    error, server = OwnError("mine"), tcp()
    async with anyio.create_task_group() as tasks:

        async def block() -> None:
            async with server:
                await tasks.start(server.serve_forever)
                with connect(server.server_address) as client:
                    await in_thread(client.ask, b"hello\n")
                    raise error

        with pytest.raises(OwnError) as caught:
            await block()
    assert caught.value is error
    assert error.__cause__ is None


@pytest.mark.parametrize("kind", [OwnError, KeyboardInterrupt, SystemExit])
async def test_error_of_the_body_when_cancelled_too(kind: type[BaseException]) -> None:
    """The exception of the block survives its scope's cancellation at the same moment."""
    error = kind("mine")

    async def block() -> None:
        with anyio.CancelScope() as scope:
            async with running(tcp(sleeper)) as server:
                with connect(server.server_address):
                    await until(lambda: server.statistics().open)
            async with tcp():
                scope.cancel()
                raise error

    with pytest.raises(kind) as caught:
        await block()
    assert caught.value is error


async def test_cancelled_body_ends_quietly() -> None:
    """Cancelling the block around a server that serves ends it, its connections too, and raises nothing."""
    with anyio.CancelScope() as scope:
        async with tcp(sleeper) as server:
            async with anyio.create_task_group() as tasks:
                await tasks.start(server.serve_forever)
                client = connect(server.server_address)
                await until(lambda: server.statistics().open)
                scope.cancel()
    assert scope.cancelled_caught
    with client:
        assert await in_thread(client.read_until_eof) == b""
    assert refuses(server.server_address)
    assert server.statistics().cancelled == 1


async def sleeper(stream: aserver.Stream) -> None:
    """Handle for ever."""
    await anyio.sleep_forever()


async def test_leaving_the_block_ends_serve_forever() -> None:
    """Leaving the block while another task serves ends that task's serve_forever, without an error."""
    server = tcp()
    with anyio.fail_after(SAFETY):
        async with anyio.create_task_group() as tasks:
            async with server:
                await tasks.start(server.serve_forever)
                with connect(server.server_address) as client:
                    assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"
    assert refuses(server.server_address)


@pytest.mark.parametrize("waits", [True, False], ids=["after-shutdown", "during-shutdown"])
async def test_leaving_the_block_at_shutdown(waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving the block in the turn in which shutdown returned, or in which it began, ends serve_forever as well."""
    server = tcp()
    with anyio.fail_after(SAFETY):
        async with anyio.create_task_group() as tasks:
            async with server:
                await tasks.start(server.serve_forever)
                await turns()
                if waits:
                    await server.shutdown()
                else:
                    tasks.start_soon(server.shutdown)
                    await until(lambda: "stopping" in repr(server))
    assert refuses(server.server_address)
    assert caplog.records == []


async def test_leaving_the_block_cancels_the_handlers() -> None:
    """A handler that runs when the block is left is cancelled, runs its `finally`, and its client sees the end."""
    told: list[str] = []

    async def handler(stream: aserver.Stream) -> None:
        try:
            await stream.send(b"here\n")
            await anyio.sleep_forever()
        finally:
            told.append("finally")

    async with running(tcp(handler)) as server:
        client = connect(server.server_address)
        assert await in_thread(client.read_until) == b"here\n"
    assert told == ["finally"]
    with client:
        assert await in_thread(client.read_until_eof) == b""
    statistics = server.statistics()
    assert (statistics.open, statistics.cancelled, statistics.failed) == (0, 1, 0)


async def test_cancelling_serve_forever() -> None:
    """A cancelled serve_forever stops accepting at once; open connections go on until the block is left."""
    async with tcp() as server:
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            client = connect(server.server_address)
            assert await in_thread(client.ask, b"one\n") == b"ONE\n"
            tasks.cancel_scope.cancel()
        assert refuses(server.server_address)
        assert await in_thread(client.ask, b"two\n") == b"TWO\n"
    with client:
        assert await in_thread(client.read_until_eof) == b""


async def test_handler_error_of_one_leaves_the_other_alone(aserver_log: LogBook) -> None:
    """A handler that raises ends its own connection; one that is open at the same time notices nothing."""

    async def handler(stream: aserver.Stream) -> None:
        async for line in stream:
            if line == b"bad\n":
                raise ValueError("bad")
            await stream.send(line.upper())

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as good, connect(server.server_address) as bad:
            assert await in_thread(good.ask, b"one\n") == b"ONE\n"
            assert await in_thread(bad.ask, b"bad\n") == b""
            assert await in_thread(good.ask, b"two\n") == b"TWO\n"
    aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")


# --- suspend, resume, wait_empty -------------------------------------------------------------------------------------


async def test_suspend_and_resume() -> None:
    """While suspended a new client waits unaccepted and open connections go on; `resume` lets it in."""
    async with running(tcp()) as server:
        with connect(server.server_address) as old:
            assert await in_thread(old.ask, b"one\n") == b"ONE\n"
            server.suspend()
            with connect(server.server_address) as new:
                new.send(b"new\n")
                for _ in range(5):
                    assert await in_thread(old.ask, b"more\n") == b"MORE\n"
                assert server.statistics().accepted == 1
                server.suspend()  # a second time changes nothing
                server.resume()
                assert await in_thread(new.read_until) == b"NEW\n"
            server.resume()  # nor does this
        assert await in_thread(ask, server.server_address, b"last\n") == b"LAST\n"


async def test_suspended_before_serving() -> None:
    """A server that is suspended before it serves accepts nobody until `resume`."""
    async with tcp() as server:
        server.suspend()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            with connect(server.server_address) as client:
                client.send(b"hello\n")
                await turns()
                assert server.statistics().accepted == 0
                server.resume()
                assert await in_thread(client.read_until) == b"HELLO\n"
            tasks.cancel_scope.cancel()


async def test_wait_empty() -> None:
    """`wait_empty` returns at once when nobody is inside, otherwise when the last one has left, to all who wait."""
    async with running(tcp()) as server:
        with anyio.fail_after(SAFETY):
            await server.wait_empty()
            first, second = connect(server.server_address), connect(server.server_address)
            for client in (first, second):
                await in_thread(client.ask, b"hello\n")
            told: list[int] = []

            async def wait(number: int) -> None:
                await server.wait_empty()
                told.append(number)

            async with anyio.create_task_group() as tasks:
                for number in (1, 2):
                    tasks.start_soon(wait, number)
                with anyio.CancelScope() as impatient:  # one that is cancelled does not disturb the others
                    impatient.cancel()
                    await server.wait_empty()
                first.close()
                await until(lambda: server.statistics().open == 1)
                await turns()
                assert told == []
                second.close()
            assert sorted(told) == [1, 2]
            assert server.statistics().open == 0


async def test_suspend_then_wait_empty_is_a_pause() -> None:
    """suspend, wait_empty, resume: in between nobody is inside and nobody comes in."""
    async with running(tcp()) as server:
        old = connect(server.server_address)
        await in_thread(old.ask, b"hello\n")
        server.suspend()
        with connect(server.server_address) as new:
            new.send(b"new\n")
            old.close()
            await server.wait_empty()
            await turns()
            assert server.statistics().open == 0
            server.resume()
            assert await in_thread(new.read_until) == b"NEW\n"


# --- what a handler is given -----------------------------------------------------------------------------------------


async def test_stream_knows_peer_and_local_address() -> None:
    """The handler's stream has the client's address as peer, and the address that the client connected to."""
    seen: list[Any] = []

    async def handler(stream: aserver.Stream) -> None:
        seen.extend((stream.peer, stream.local_address, stream.draining))

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as client:
            name = client.sock.getsockname()
            assert await in_thread(client.read_until_eof) == b""
    assert seen == [name, server.server_address, False]


async def test_unread_input_does_not_cost_the_client_his_answer() -> None:
    """What a handler sent before it returned reaches the client."""

    async def handler(stream: aserver.Stream) -> None:
        await stream.send(b"x" * 1_000_000)

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as client:
            assert len(await in_thread(client.read_until_eof)) == 1_000_000


async def test_detached_socket_is_left_alone() -> None:
    """A socket that a handler detached stays open after the handler has returned, and the connection is completed."""
    taken: list[socket.socket] = []

    async def handler(stream: aserver.Stream) -> None:
        taken.append(stream.detach())

    async with running(tcp(handler)) as server:
        with connect(server.server_address) as client:
            await until(lambda: server.statistics().completed)
            (sock,) = taken
            with sock:
                sock.setblocking(True)
                sock.settimeout(TIMEOUT)
                await in_thread(sock.sendall, b"still here\n")
                assert await in_thread(client.read_until) == b"still here\n"
    assert server.statistics().open == 0

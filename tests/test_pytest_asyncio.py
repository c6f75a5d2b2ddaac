"""Our servers in a user's pytest-asyncio suite, in strict mode: this module is written as such a user would write it.

Everything here is pytest-asyncio's and asyncio's own: fixtures, streams, tasks; nothing of anyio's plugin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import aserver

from .conftest import LogBook

pytestmark = pytest.mark.asyncio


class Upper(aserver.StreamRequestHandler):
    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


@pytest_asyncio.fixture
async def server() -> AsyncIterator[aserver.TCPServer]:
    """A server that serves while the test runs."""
    async with aserver.TCPServer(("127.0.0.1", 0), Upper) as server:
        serving = asyncio.create_task(server.serve_forever())
        yield server
        await server.shutdown()
        await serving


async def ask(server: aserver.TCPServer, line: bytes) -> bytes:
    """Ask with asyncio's own client."""
    reader, writer = await asyncio.open_connection(*server.server_address)
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_server_in_a_fixture(server: aserver.TCPServer) -> None:
    """A server that a pytest-asyncio fixture opens and closes serves the test in between."""
    assert await ask(server, b"hello\n") == b"HELLO\n"


async def test_many_clients_of_asyncio(server: aserver.TCPServer) -> None:
    """asyncio clients in the same loop as the server are all served."""
    answers = await asyncio.gather(*(ask(server, b"%d a\n" % number) for number in range(50)))
    assert answers == [b"%d A\n" % number for number in range(50)]
    await server.wait_empty()
    assert server.statistics().completed == 50


async def test_client_that_is_open_at_the_end() -> None:
    """A client that is still connected at the end is no obstacle: it sees the end of its connection."""
    async with aserver.TCPServer(("127.0.0.1", 0), Upper) as server:
        serving = asyncio.create_task(server.serve_forever())
        reader, writer = await asyncio.open_connection(*server.server_address)
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        report = await server.shutdown()
        await serving
    assert report == aserver.ShutdownReport(finished=1, cancelled=0, aborted=0)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_server_in_a_test() -> None:
    """`async with` and a task of asyncio's own are all it takes; the cancelled task ends as asyncio tasks do."""
    async with aserver.TCPServer(("127.0.0.1", 0), Upper) as server:
        serving = asyncio.create_task(server.serve_forever())
        assert await ask(server, b"hello\n") == b"HELLO\n"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def test_server_in_asyncios_task_group() -> None:
    """asyncio.TaskGroup and asyncio.timeout work around a server."""
    server = aserver.TCPServer(("127.0.0.1", 0), Upper)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks, server:
        tasks.create_task(server.serve_forever())
        assert await ask(server, b"hello\n") == b"HELLO\n"


async def test_asyncios_tools_in_a_handler(aserver_log: LogBook) -> None:
    """A handler may use asyncio's timeouts, tasks, queues and locks; only what it does not catch ends it."""

    async def handler(stream: aserver.Stream) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(queue.put(b"from a task\n"))
            await stream.send(await queue.get())
        try:
            async with asyncio.timeout(0.001):
                await stream.readline()
        except TimeoutError:
            await stream.send(b"timed out\n")
        line = await asyncio.wait_for(stream.readline(), 10)
        await stream.send(line.upper())
        await asyncio.wait_for(stream.readline(), 0.001)

    async with aserver.TCPServer(("127.0.0.1", 0), handler) as server:
        serving = asyncio.create_task(server.serve_forever())
        reader, writer = await asyncio.open_connection(*server.server_address)
        assert await reader.readline() == b"from a task\n"
        assert await reader.readline() == b"timed out\n"
        writer.write(b"hello\n")
        assert await reader.read() == b"HELLO\n"
        writer.close()
        await writer.wait_closed()
        await server.shutdown()
        await serving
    record = aserver_log.take("ERROR: TCPServer: the request of 127.0.0.1:")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], TimeoutError)


async def test_cancelled_by_asyncio() -> None:
    """A program that is cancelled by asyncio while it serves closes everything, its connections too."""
    opened = asyncio.Event()
    ended = asyncio.Event()

    async def handler(stream: aserver.Stream) -> None:
        opened.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    server = aserver.TCPServer(("127.0.0.1", 0), handler)

    async def program() -> None:
        async with server:
            await server.serve_forever()

    running = asyncio.create_task(program())
    while "serving" not in repr(server):  # noqa: ASYNC110 - a server does not tell
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(*server.server_address)
    await opened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_tasks_are_gone_afterwards() -> None:
    """After a server has ended no task of its is left in the loop."""
    before = asyncio.all_tasks()
    async with aserver.TCPServer(("127.0.0.1", 0), Upper) as server:
        serving = asyncio.create_task(server.serve_forever())
        _, writer = await asyncio.open_connection(*server.server_address)
        assert await ask(server, b"hello\n") == b"HELLO\n"
        await server.shutdown()
        await serving
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest_asyncio.fixture
async def loop_name() -> str:
    """The module of the running loop."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


async def test_both_loops_are_tried(loop_name: str, request: pytest.FixtureRequest) -> None:
    """This module runs on asyncio's loop and on uvloop's, each under its name."""
    assert loop_name in ("asyncio", "uvloop")
    assert loop_name in request.node.name

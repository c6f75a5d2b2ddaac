"""The machine runs out of descriptors, the kernel's accept fails, and Ctrl-C arrives: what a server in a process of its
own does then, on each loop. The cases A1 to A7 of the faults list, without those that need minutes.

The server under test is a child; it tells what it knows (its processor time, what it logged) over a connection that is
open all the time, the canary.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers import TIMEOUT, Client, connect

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets the limits of another process")

LOOPS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name != "asyncio" and importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("asyncio", "uvloop", "trio")
]
on_each_loop = pytest.mark.parametrize("loop", LOOPS)

CLIENTS = 200
#: What `ulimit -n` says in the child.
DESCRIPTORS = 64
#: Share of a core that a server may use while it sits at its limit, and seconds that are always allowed.
CPU_SHARE, CPU_SLACK = 0.05, 0.03

#: Answers each line: with a word for which there is a reply below, otherwise with the line itself.
CHILD = """
import asyncio, gc, json, logging, os, resource, sys, time
import anyio, aserver

options = json.loads(sys.argv[1])
log = []

class Book(logging.Handler):
    def emit(self, record):
        log.append([record.created, record.levelname, record.getMessage()])

logging.getLogger("aserver").addHandler(Book(logging.WARNING))


def tasks():
    return len(anyio.get_running_tasks())


def told(word):
    if word == b"cpu":
        return time.process_time()
    if word == b"log":
        return log
    if word == b"statistics":
        counters = server.statistics()
        return {name: getattr(counters, name) for name in counters.__slots__}
    if word == b"resources":
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])
        return {"fds": len(os.listdir("/proc/self/fd")), "tasks": tasks(), "rss": pages * resource.getpagesize()}
    if word == b"stop":
        stop.set()
        return "stopping"
    if word == b"busy":
        return "busy"


async def handler(stream):
    async for line in stream:
        word = line.strip()
        answer = told(word)
        await stream.send(line if answer is None else json.dumps(answer).encode() + b"\\n")
        while word == b"busy":
            sum(range(1000))
            await anyio.sleep(0)


async def main():
    global server, stop
    stop = anyio.Event()
    server = aserver.TCPServer(("127.0.0.1", 0), handler, limits=aserver.Limits(**options["limits"]))
    async with server:
        print(server.server_address[1], flush=True)
        if options["alone"]:
            await server.serve_forever()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            await stop.wait()
            await server.shutdown(0)
    print("ended", flush=True)


if options["descriptors"]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (options["descriptors"], options["hard"] or hard))


def run():
    if options["loop"] == "trio":
        import trio
        trio.run(main)
    elif options["loop"] == "uvloop":
        import uvloop
        uvloop.run(main())
    else:
        asyncio.run(main())


interrupted = False
try:
    if options["alone"]:
        run()
    else:  # the program has a task group of its own, and trio puts into a group what leaves that
        try:
            run()
        except* KeyboardInterrupt:
            interrupted = True
except KeyboardInterrupt:
    interrupted = True
if interrupted:
    print("KeyboardInterrupt", flush=True)
    raise SystemExit(130)
"""


class Child:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.address = ("127.0.0.1", port)
        self.canary = connect(self.address)
        assert self.canary.ask(b"hello\n") == b"hello\n"

    def ask(self, word: str) -> Any:
        """What the child says over the canary."""
        return json.loads(self.canary.ask(word.encode() + b"\n"))

    @property
    def pid(self) -> int:
        """The process of the server, which strace may stand before."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def stop(self) -> tuple[int, str, str]:
        """Tell it to stop; return its exit status, and what it printed after its address."""
        self.ask("stop")
        return self.end()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return the same."""
        output, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output, errors


@contextlib.contextmanager
def child(
    loop: str,
    *,
    descriptors: int | None = None,
    hard: int | None = None,
    alone: bool = False,
    before: tuple[str, ...] = (),
    **limits: Any,
) -> Iterator[Child]:
    """Start a server under *loop* that may open *descriptors*; kill it at the end if it still runs."""
    options = {"loop": loop, "descriptors": descriptors, "hard": hard, "alone": alone, "limits": limits}
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [*before, sys.executable, "-c", CHILD, json.dumps(options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        server = Child(process, int(line))
        with server.canary:
            yield server
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid if line else process.pid, signal.SIGKILL)
        process.communicate()


def settle(client: Client) -> bool:
    """Whether *client* was answered; otherwise it was closed."""
    try:
        return client.read_until() == b"hello\n"
    except ConnectionResetError:  # what it had sent was still unread
        return False


def settled(clients: list[Client]) -> int:
    """How many of *clients* were answered, after all of them were answered or closed."""
    return sum(settle(client) for client in clients)


def knock(address: tuple[str, int], count: int) -> list[Client]:
    """Clients that have connected and sent a line."""
    clients = [connect(address) for _ in range(count)]
    for client in clients:
        client.send(b"hello\n")
    return clients


def close(clients: list[Client]) -> None:
    """Close all of them."""
    for client in clients:
        client.close()


@contextlib.contextmanager
def at_rest(server: Child) -> Iterator[None]:
    """The child uses hardly any processor time while the block runs."""
    cpu, begun = server.ask("cpu"), time.monotonic()
    yield
    used, passed = server.ask("cpu") - cpu, time.monotonic() - begun
    assert used < CPU_SHARE * passed + CPU_SLACK, f"{used:.3f} s of processor time in {passed:.3f} s"


def quiet(server: Child, text: str) -> list[str]:
    """What the child logged: lines with *text* only, at most one a second."""
    log = server.ask("log")
    times = [created for created, _, _ in log]
    assert all(later - earlier > 0.95 for earlier, later in itertools.pairwise(times)), log
    assert all(level == "WARNING" and text in message for _, level, message in log), log
    return [message for _, _, message in log]


# --- out of descriptors ----------------------------------------------------------------------------------------------


@on_each_loop
def test_out_of_descriptors(loop: str) -> None:
    """A1, A3: 200 clients and 64 descriptors. Who has none is closed, the server rests, serves again at once, stops."""
    with child(loop, descriptors=DESCRIPTORS, hard=DESCRIPTORS, max_connections=10_000) as server:
        clients = knock(server.address, CLIENTS)
        answered = [client for client in clients if settle(client)]
        assert DESCRIPTORS // 2 < len(answered) < DESCRIPTORS
        assert server.canary.ask(b"canary\n") == b"canary\n"
        with at_rest(server):  # while one client tries again and again; the pauses grow, up to a second
            for _ in range(8):
                with connect(server.address) as again:
                    assert again.read_until_eof() == b""
                assert server.canary.ask(b"canary\n") == b"canary\n"
        lines = quiet(server, "cannot accept: Too many open files; closed ")
        assert 1 <= len(lines) <= 5
        statistics = server.ask("statistics")
        assert statistics["shed"] == CLIENTS - len(answered) + 8
        assert statistics["open"] == statistics["accepted"] == len(answered) + 1
        close(answered[:10])
        while server.ask("statistics")["open"] > len(answered) - 9:  # as below
            pass
        newcomers = knock(server.address, 5)
        assert settled(newcomers) == len(newcomers)
        assert all(client.ask(b"still\n") == b"still\n" for client in answered[10:])
        close(clients)
        close(newcomers)
        while server.ask("statistics")["open"] > 1:  # who comes before their descriptors are free may be closed
            pass
        newcomers = knock(server.address, 40)
        assert settled(newcomers) == 40
        status, output, errors = server.stop()
        assert (status, output.split(), errors) == (0, ["ended"], "")
        close(newcomers)


@on_each_loop
def test_stop_while_out_of_descriptors(loop: str) -> None:
    """A3: a server that has no descriptor left stops as any other, and says nothing more."""
    with child(loop, descriptors=DESCRIPTORS, hard=DESCRIPTORS, max_connections=10_000) as server:
        clients = knock(server.address, CLIENTS)
        assert settled(clients) < DESCRIPTORS
        status, output, errors = server.stop()
        assert (status, output.split(), errors) == (0, ["ended"], "")
        close(clients)


@on_each_loop
def test_default_limit_of_a_short_machine(loop: str) -> None:
    """With 64 descriptors and no limit given, the server takes 32 clients and lets the others wait; none is lost."""
    with child(loop, descriptors=DESCRIPTORS, hard=DESCRIPTORS, shed_after=None) as server:
        clients = knock(server.address, CLIENTS)
        inside = clients[:31]  # and the canary
        assert settled(inside) == len(inside)
        for _ in range(20):
            assert server.canary.ask(b"canary\n") == b"canary\n"
        statistics = server.ask("statistics")
        assert (statistics["accepted"], statistics["open"], statistics["shed"]) == (32, 32, 0)
        for client in clients:  # in the order in which they came, each in the place of one that leaves
            assert client in inside or settle(client)
            client.close()
        assert server.ask("log") == []
        assert server.ask("statistics")["accept_errors"] == 0
        assert server.stop()[0] == 0


@on_each_loop
def test_server_at_its_limit_rests(loop: str) -> None:
    """With 64 descriptors and no limit given, a full server rests until it closes those who wait."""
    with child(loop, descriptors=DESCRIPTORS, hard=DESCRIPTORS, shed_after=1.0) as server:
        clients = knock(server.address, CLIENTS)
        assert settled(clients[:31]) == 31
        with at_rest(server):
            assert settled(clients[31:]) == 0
        with at_rest(server), connect(server.address) as late:
            assert late.read_until_eof() == b""
        quiet(server, "at its limit of 32 connections; closed ")
        assert server.ask("statistics")["shed"] == CLIENTS - 31 + 1
        clients[0].close()
        (newcomer,) = knock(server.address, 1)
        assert settle(newcomer)
        assert server.stop()[0] == 0
        close([*clients, newcomer])


@on_each_loop
def test_limit_moved_from_outside(loop: str) -> None:
    """A2: descriptors taken away from a live server make it turn clients away, and given back make it serve again."""
    with child(loop, max_connections=10_000) as server:
        inside = knock(server.address, 30)
        assert settled(inside) == len(inside)
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (20, hard))
        refused = knock(server.address, 50)
        # Not even the reserve can be had again, so they may have to wait; whoever is inside notices nothing.
        for client in inside:
            assert client.ask(b"inside\n") == b"inside\n"
        assert server.ask("statistics")["accepted"] == 31
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert server.canary.ask(b"canary\n") == b"canary\n"  # it may have been turning away a batch just then
        newcomers = knock(server.address, 50)
        assert settled(newcomers) == len(newcomers)
        served = settled(refused)
        statistics = server.ask("statistics")
        assert served + statistics["shed"] == 50
        assert statistics["open"] == 31 + 50 + served
        quiet(server, "cannot accept: Too many open files; closed ")
        assert server.stop()[0] == 0
        close([*inside, *refused, *newcomers])


@on_each_loop
def test_limit_raised_while_clients_press(loop: str) -> None:
    """A2: a server that turns clients away serves the next ones when its limit is raised, though nobody has left."""
    with child(loop, descriptors=DESCRIPTORS, max_connections=10_000) as server:
        clients = knock(server.address, CLIENTS)
        answered = [client for client in clients if settle(client)]
        assert len(answered) < DESCRIPTORS
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
        assert server.canary.ask(b"canary\n") == b"canary\n"  # as above
        newcomers = knock(server.address, 100)
        assert settled(newcomers) == len(newcomers)
        assert server.stop()[0] == 0
        close([*clients, *newcomers])


# --- the kernel's accept fails ---------------------------------------------------------------------------------------


def _strace() -> str | None:
    """Why strace cannot be used here, if it cannot."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=none", "-e", "inject=accept4:error=EPERM", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,  # the status is the answer
    )
    return None if tried.returncode == 0 else f"strace is not permitted: {tried.stderr.decode(errors='replace')[:200]}"


@contextlib.contextmanager
def injected(loop: str, fault: str, when: str) -> Iterator[Child]:
    """A server whose accept4() fails with *fault* at the calls *when*."""
    if (reason := _strace()) is not None:
        pytest.skip(reason)
    strace = ("strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=accept4", "-e")
    with child(loop, before=(*strace, f"inject=accept4:error={fault}:when={when}")) as server:
        yield server


# The canary is the first accept; after it each knock wakes the listener, which looks once more until nobody waits.
@on_each_loop
@pytest.mark.parametrize("fault", ["ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "EHOSTUNREACH"])
def test_kernel_lost_the_connection(loop: str, fault: str) -> None:
    """A5: an accept that fails for the connection's sake is counted and skipped, and nobody sees a thing."""
    with injected(loop, fault, "3..5") as server:
        clients = knock(server.address, 10)
        assert settled(clients) == len(clients)
        assert server.ask("statistics")["accept_errors"] == 3
        assert server.ask("log") == []
        close(clients)


@on_each_loop
@pytest.mark.parametrize(
    "fault, text",
    [
        ("ENOBUFS", "No buffer space available"),
        ("ENOMEM", "Cannot allocate memory"),
        ("ENFILE", "Too many open files in system"),
    ],
)
def test_kernel_is_out_of_memory(loop: str, fault: str, text: str) -> None:
    """A4: an accept that fails for the machine's sake is tried again after a pause, with one warning."""
    with injected(loop, fault, "3..5") as server:
        clients = knock(server.address, 10)
        answered = [settle(client) for client in clients]
        statistics = server.ask("statistics")
        assert statistics["accept_errors"] >= 1
        assert answered.count(False) == statistics["shed"]
        lines = quiet(server, f"cannot accept: {text}; closed ")
        assert len(lines) == 1
        (newcomer,) = knock(server.address, 1)
        assert settle(newcomer)
        close([*clients, newcomer])


@on_each_loop
@pytest.mark.parametrize("fault", ["EBADF", "EINVAL"])
def test_kernel_says_the_listener_is_broken(loop: str, fault: str) -> None:
    """A6: when the only listener is broken, serve_forever raises, and the program ends with an error."""
    if (reason := _strace()) is not None:
        pytest.skip(reason)
    strace = ("strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=accept4", "-e")
    with child(loop, before=(*strace, f"inject=accept4:error={fault}:when=3+"), alone=True) as server:
        close(knock(server.address, 1))
        close(knock(server.address, 1))
        status, output, errors = server.end()
        assert status != 0
        assert output == ""
        assert "ListenerFailedError" in errors
        assert "accepts no more" in errors


# --- many ------------------------------------------------------------------------------------------------------------


def visit(address: tuple[str, int], end: Callable[[Client], None]) -> None:
    """Connect, ask one line, go."""
    with connect(address) as client:
        assert client.ask(b"hello\n") == b"hello\n"
        end(client)


@on_each_loop
@pytest.mark.parametrize("end", [Client.close, Client.reset], ids=["close", "reset"])
def test_many_connections_leave_nothing(loop: str, end: Callable[[Client], None]) -> None:
    """I2: after 2 000 connections one after the other, descriptors, tasks and memory are back where they were."""
    with child(loop) as server:
        for _ in range(500):
            visit(server.address, end)
        before = server.ask("resources")
        for _ in range(2000):
            visit(server.address, end)
        while server.ask("statistics")["open"] > 1:
            pass  # the last one is going
        after = server.ask("resources")
        assert after["fds"] <= before["fds"]
        assert after["tasks"] <= before["tasks"]
        assert after["rss"] - before["rss"] < 1_000_000  # 500 bytes for each would be seen
        assert server.ask("log") == []
        assert server.stop()[0] == 0


@on_each_loop
def test_burst(loop: str) -> None:
    """A7: 500 clients that connect while the server is stopped are all served when it goes on."""
    with child(loop) as server:
        os.kill(server.pid, signal.SIGSTOP)
        clients = knock(server.address, 500)
        os.kill(server.pid, signal.SIGCONT)
        assert settled(clients) == len(clients)
        assert server.ask("statistics")["accepted"] == 501
        assert server.ask("log") == []
        assert server.stop()[0] == 0
        close(clients)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@on_each_loop
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("alone", [False, True], ids=["in-a-group", "alone"])
def test_interrupt(loop: str, busy: bool, alone: bool) -> None:
    """SIGINT ends the program with KeyboardInterrupt, not only the connection whose handler happens to run."""
    with child(loop, alone=alone) as server:
        clients = knock(server.address, 3)
        assert settled(clients) == len(clients)
        if busy:
            assert clients[0].ask(b"busy\n") == b'"busy"\n'
        os.kill(server.process.pid, signal.SIGINT)
        status, output, errors = server.end()
        assert (status, output.split()) == (130, ["KeyboardInterrupt"]), errors
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                client.read_until_eof()
        close(clients)


def test_the_limit_is_really_that_low() -> None:
    """A child that is told so may open 64 descriptors, of which it says how many it has."""
    with child("asyncio", descriptors=DESCRIPTORS, hard=DESCRIPTORS) as server:
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (DESCRIPTORS, DESCRIPTORS)
        assert 5 < server.ask("resources")["fds"] < 20

"""Floods, full buffers and a kernel that refuses: what a datagram server in a process of its own does then, on each
loop. The cases F2, F4 and F6 of the faults list; F1, F3 and F5 need no process
of their own and are in `tests.test_datagram`, `tests.test_datagram_server` and `tests.test_session`.

The server under test is a child that is asked by stdlib sockets; at its end, after SIGTERM, it prints its counters.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_accept import LOOPS
from tests.peers import TIMEOUT, datagram_client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="strace, tc and the counters of Linux' kernel")

on_each_loop = pytest.mark.parametrize("loop", LOOPS)

#: Answers each datagram in capitals, takes 10 ms for those that begin with "slow" and does not answer them. Its first
#: line is its address; its last tells its counters, and how much its memory has grown since it was asked "ready".
CHILD = """
import json, logging, socket, sys
import anyio, aserver

options = json.loads(sys.argv[1])
log = []

class Book(logging.Handler):
    def emit(self, record):
        log.append([record.levelname, record.getMessage()])

logging.getLogger("aserver").addHandler(Book(logging.WARNING))


async def handler(datagram):
    if datagram.data == b"ready":
        memory.append(pages("VmRSS:"))
    if datagram.data.startswith(b"slow"):
        await anyio.sleep(0.01)
    else:
        await datagram.reply(datagram.data.upper())


async def talk(session):
    async for data in session:
        if data == b"ready":
            memory.append(pages("VmRSS:"))
        await session.send(data.upper())


def pages(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) * 1024


memory = []
# Ready-made, so that no name is resolved: on asyncio that is a thread, and a recvfrom in the loop's own pipe.
if options["path"]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(options["path"])
else:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
given = {"limits": aserver.Limits(**options["limits"])}
if options["sessions"] is not None:
    server = aserver.DatagramServer(sock, talk, sessions=aserver.Sessions(**options["sessions"]), **given)
else:
    server = aserver.DatagramServer(sock, handler, **given)
print(json.dumps(sock.getsockname()), flush=True)
choice = {"backend": "trio"} if options["loop"] == "trio" else {"loop": options["loop"]}
failure = None
try:
    aserver.run(server, grace=5, **choice)
except aserver.ListenerFailedError as exc:
    failure = str(exc)
counters = server.statistics()
found = {name: getattr(counters, name) for name in counters.__slots__} | {"dropped": counters.dropped}
growth = pages("VmHWM:") - memory[0] if memory else None
print(json.dumps({"counters": found, "growth": growth, "log": log, "failure": failure}), flush=True)
"""


class Child:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: Any) -> None:
        self.process = process
        self.address = tuple(address) if isinstance(address, list) else address

    @property
    def pid(self) -> int:
        """The process of the server, which strace may stand before."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def end(self, *, stop: bool = True) -> dict[str, Any]:
        """Tell it to stop; return what it says at its end, after checking that its counters add up."""
        if stop:
            os.kill(self.pid, signal.SIGTERM)
        output, errors = self.process.communicate(timeout=TIMEOUT)
        assert (self.process.returncode, errors) == (0, ""), errors
        found: dict[str, Any] = json.loads(output)
        counters = found["counters"]
        assert counters["received"] == counters["handled"] + counters["queued"] + counters["dropped"]
        return found


@contextlib.contextmanager
def child(
    loop: str,
    *,
    path: Path | None = None,
    before: tuple[str, ...] = (),
    sessions: dict[str, Any] | None = None,
    **limits: Any,
) -> Iterator[Child]:
    """Start a server under *loop*; kill it at the end if it still runs."""
    options = {"loop": loop, "limits": limits, "sessions": sessions, "path": path and str(path)}
    process = subprocess.Popen(
        [*before, sys.executable, "-c", CHILD, json.dumps(options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    server = None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        server = Child(process, json.loads(line))
        yield server
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid if server is None else server.pid, signal.SIGKILL)
        process.communicate()


def environment() -> dict[str, str]:
    """Ours, in which `aserver` is found."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


# --- floods -----------------------------------------------------------------------------------------------------------


@on_each_loop
def test_flood_of_slow_requests(loop: str) -> None:
    """20 000 datagrams of 1 KB at a handler that takes 10 ms: each is counted, and memory grows by 10 MB at most."""
    sent = 20_000
    with child(loop) as server:
        with datagram_client(server.address) as client:
            assert ask(client, b"ready") == b"READY"
            for _ in range(sent):
                client.send(b"slow" * 256)
        sent += 1 + canary(server)
        found = server.end()
    counters = found["counters"]
    assert counters["received"] + counters["dropped_by_kernel"] == sent
    assert counters["completed"] == counters["handled"]
    assert found["growth"] < 10_000_000
    assert found["log"] == []


def ask(client: Any, data: bytes) -> bytes:
    """Send, and return the next datagram that comes."""
    client.send(data)
    answer = client.recv()
    assert isinstance(answer, bytes)
    return answer


def canary(server: Child) -> int:
    """Ask until there is an answer, so that all that came before has been received; return how often that was."""
    for count in range(1, 100):
        with datagram_client(server.address) as client:
            client.sock.settimeout(0.1)
            with contextlib.suppress(TimeoutError):  # lost in the flood
                assert ask(client, b"canary") == b"CANARY"
                return count
    raise AssertionError("the server answers nobody")


@on_each_loop
def test_flood_while_the_process_is_stopped(loop: str) -> None:
    """F2: of 5000 datagrams at a stopped process the kernel keeps some, which are answered; it counts the rest."""
    with child(loop, max_in_flight=100_000) as server:
        with datagram_client(server.address) as client:
            assert ask(client, b"ready") == b"READY"
            os.kill(server.pid, signal.SIGSTOP)
            for _ in range(5000):
                client.send(b"x" * 1000)
            os.kill(server.pid, signal.SIGCONT)
            assert client.recv() == b"X" * 1000
            sent = 5001 + canary(server)
        counters = server.end()["counters"]
    assert counters["received"] + counters["dropped_by_kernel"] == sent
    assert counters["received"] == counters["handled"] == counters["completed"] + counters["lost"]
    assert counters["dropped_by_kernel"] > 0


@on_each_loop
def test_flood_from_many_sources(loop: str) -> None:
    """F2: 10 000 datagrams from 500 sources at a server with 100 sessions: state is bounded, and each is counted."""
    with child(loop, sessions={"max_sessions": 100, "idle_timeout": 0.05}) as server:
        with datagram_client(server.address) as client:
            assert ask(client, b"ready") == b"READY"
        sent = 1
        for _ in range(5):
            clients = [datagram_client(server.address) for _ in range(100)]
            for _ in range(20):
                for client in clients:
                    client.send(b"x" * 100)
                    sent += 1
            for client in clients:
                client.close()
        assert sent == 10_001
        sent += canary(server)
        found = server.end()
    counters = found["counters"]
    assert counters["received"] + counters["dropped_by_kernel"] == sent
    assert found["growth"] < 10_000_000


def test_port_belongs_to_one() -> None:
    """F6: another process, or one that sets SO_REUSEADDR, cannot bind the server's UDP port."""
    with child("asyncio") as server:
        for reuse in (0, 1):
            with socket.socket(type=socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                with pytest.raises(OSError, match="Address already in use"):
                    thief.bind(server.address)
        with datagram_client(server.address) as client:
            assert ask(client, b"still") == b"STILL"
        server.end()


# --- the kernel refuses ----------------------------------------------------------------------------------------------


def _strace() -> str | None:
    """Why strace cannot be used here, if it cannot."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=none", "-e", "inject=recvfrom:error=EPERM", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,  # the status is the answer
    )
    return None if tried.returncode == 0 else f"strace is not permitted: {tried.stderr.decode(errors='replace')[:200]}"


def injected(loop: str, **faults: str) -> contextlib.AbstractContextManager[Child]:
    """A server in which the calls named by *faults* fail as these say, as strace writes it: "EPERM:when=1"."""
    if (reason := _strace()) is not None:
        pytest.skip(reason)
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={','.join(faults)}"]
    for call, fault in faults.items():
        strace += ["-e", f"inject={call}:error={fault}"]
    return child(loop, before=tuple(strace))


@on_each_loop
def test_kernel_reports_lost_replies_and_has_no_room(loop: str) -> None:
    """F4: an ICMP error that a receive reports is counted and skipped, a reply without room waits; nothing is lost."""
    with injected(loop, recvfrom="EHOSTUNREACH:when=2..4", sendto="EAGAIN:when=2..8") as server:
        with datagram_client(server.address) as client:
            for _ in range(10):
                assert ask(client, b"hello") == b"HELLO"
        found = server.end()
    counters = found["counters"]
    assert (counters["received"], counters["receive_errors"]) == (10, 3)
    assert (counters["completed"], counters["sent"], counters["send_errors"]) == (10, 10, 0)
    assert found["log"] == []


@on_each_loop
@pytest.mark.parametrize("fault", ["EPERM", "ENOBUFS"])
def test_kernel_has_no_memory_and_refuses_replies(loop: str, fault: str) -> None:
    """F4: a receive without memory is tried again, with one warning; a reply that a firewall or a short machine refuses
    is lost, counted, and disturbs nobody else.
    """
    with injected(loop, recvfrom="ENOBUFS:when=2..4", sendto=f"{fault}:when=2..4") as server:
        with datagram_client(server.address) as client:
            assert ask(client, b"one") == b"ONE"
            for _ in range(4):
                client.send(b"perhaps")
            answers = [client.recv()]  # three sends fail, at most
            found = server.end()
            client.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    answers.append(client.recv())
    counters = found["counters"]
    assert counters["receive_errors"] == 3
    assert counters["lost"] >= 1
    assert counters["completed"] + counters["lost"] == counters["received"] == 5
    assert counters["sent"] == counters["completed"] == len(answers) + 1
    assert counters["send_errors"] == counters["lost"]
    ((level, message),) = found["log"]
    assert level == "WARNING"
    assert "cannot receive: No buffer space available" in message


@on_each_loop
def test_kernel_says_the_socket_is_broken(loop: str) -> None:
    """When the only socket is broken, run raises, and the counters are still there."""
    with injected(loop, recvfrom="EINVAL:when=1") as server:
        with datagram_client(server.address) as client:
            client.send(b"hello")
            found = server.end(stop=False)
    assert "Invalid argument" in found["failure"]
    assert [level for level, _ in found["log"]] == ["CRITICAL"]


#: Behind a queueing discipline that lets 8 Mbit/s through, a send buffer of a few KB is full at once.
NARROW = """
import json, socket, sys, threading
import anyio, aserver

COUNT, SIZE = 150, 1000
loop = sys.argv[1]
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
sock.bind(("127.0.0.1", 0))
client = socket.socket(type=socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
client.bind(("127.0.0.1", 0))
client.settimeout(10)
heard, most = [], 0

def receive():
    while len(heard) < COUNT + 1:
        heard.append(client.recv(2000))

async def handler(datagram):
    global most
    async with anyio.create_task_group() as tasks:
        for number in range(COUNT):
            tasks.start_soon(reply, datagram, b"%d" % number)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(datagram.reply, b"never".ljust(SIZE))
            while server._sockets[0].waiting < 30:
                await anyio.lowlevel.checkpoint()
            waiting["cancelled"] = server._sockets[0].waiting
            scope.cancel()
    await datagram.reply(b"last")

async def reply(datagram, data):
    begun.append(data)
    await datagram.reply(data.ljust(SIZE))
    waiting["most"] = max(waiting["most"], server._sockets[0].waiting)

begun, waiting = [], {"most": 0}
server = aserver.UDPServer(sock, handler)

async def main():
    async with server:
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            client.sendto(b"go", sock.getsockname())
            thread = threading.Thread(target=receive)
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
            await server.wait_empty()
            await server.shutdown()

import anyio.to_thread, anyio.lowlevel
if loop == "trio":
    anyio.run(main, backend="trio")
else:
    anyio.run(main, backend_options={"use_uvloop": loop == "uvloop"})
heard_numbers = [data.strip() for data in heard if not data.startswith((b"never", b"last"))]
never = sum(data.startswith(b"never") for data in heard)
print(json.dumps({
    "in order": heard_numbers == begun[: len(heard_numbers)], "numbers": len(heard_numbers), "never": never,
    "sent": server.statistics().sent, "most": waiting["most"], "cancelled": waiting["cancelled"],
    "lost": server.statistics().lost, "failed": server.statistics().failed,
}))
"""


@on_each_loop
def test_full_send_buffer(loop: str, tmp_path: Path) -> None:
    """F4: behind a narrow link replies wait for room and keep their order; who is cancelled has sent nothing."""
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    link = "ip link set lo up && tc qdisc add dev lo root tbf rate 8mbit burst 2000 limit 3000000"
    try:
        tried = subprocess.run(
            [*unshare, "sh", "-c", link], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if tried.returncode:
        pytest.skip(f"no narrow link can be made: {tried.stderr.strip()}")
    script = tmp_path / "narrow.py"
    script.write_text(NARROW)
    done = subprocess.run(
        [*unshare, "sh", "-c", f'{link} && exec "$0" "$@"', sys.executable, str(script), loop],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["in order"]
    assert found["numbers"] + found["never"] <= 151
    assert found["most"] > 50
    assert found["cancelled"] >= 30
    assert (found["lost"], found["failed"]) == (0, 0)
    assert found["sent"] <= 151 + 50 - found["cancelled"] + 1


@on_each_loop
def test_unix_flood_makes_clients_wait(loop: str, tmp_path: Path) -> None:
    """A Unix server drops nothing: while it is stopped its clients wait, and then each datagram is answered."""
    path = tmp_path / "s"
    with child(loop, path=path) as server:
        with datagram_client(path) as client:
            assert ask(client, b"ready") == b"READY"
            os.kill(server.pid, signal.SIGSTOP)
            client.sock.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                for sent in range(10_000):  # noqa: B007 - counts what was taken
                    client.send(b"x" * 1000)
            os.kill(server.pid, signal.SIGCONT)
            client.sock.settimeout(TIMEOUT)
            assert [client.recv() for _ in range(sent)] == [b"X" * 1000] * sent
        counters = server.end()["counters"]
    assert counters["received"] == counters["completed"] == sent + 1
    assert counters["dropped_by_kernel"] == 0

"""The promises of `aserver.run` and `aserver.start_in_thread`: signals, exit statuses, several servers, bounded ends.

What concerns a whole process is tried on programs in child processes; they log to their standard output, so that the
test can follow them.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aserver
from aserver._run import backend_options
from tests.conftest import LOOP_FACTORIES, LogBook
from tests.peers import ask, ask_datagram, connect, datagram_client
from tests.programs import Program, write

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")


def _loop_param(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        return pytest.param({}, id=name, marks=pytest.mark.skip(reason=f"{name} is not installed"))
    return pytest.param({"backend": "trio"} if name == "trio" else {"loop": name}, id=name)


#: The choice of a loop as the keyword arguments of `run` and `start_in_thread`.
on_each_loop = pytest.mark.parametrize("choice", [_loop_param(name) for name in ("asyncio", "uvloop", "trio")])

#: What each program begins with. The handlers tell what they do, so that no test has to guess.
PRELUDE = """\
import logging, signal, sys, time
import anyio, aserver
from aserver import _lifecycle, _run

logging.basicConfig(stream=sys.stdout, level="INFO", format="%(levelname)s %(message)s")

def say(text):
    print(text, flush=True)

async def upper(stream):
    async for line in stream:
        await stream.send(line.upper())

async def slow(stream):  # answers when the test says so on standard input
    line = await stream.readline()
    say("working")
    await anyio.wait_readable(sys.stdin.fileno())
    await stream.send(line.upper())

async def endless(stream):
    say("working")
    await anyio.sleep_forever()

async def stubborn(stream):
    say("working")
    while True:
        try:
            await anyio.sleep_forever()
        except BaseException:
            pass

async def blocking(stream):
    say("working")
    block()

def block():
    while True:  # in one long sleep a signal that comes just before it would be forgotten
        time.sleep(0.01)

"""

#: Ends by force after tenths of a second in place of seconds.
IMPATIENT = """\
_lifecycle.KILL_GRACE = 0.1
_run.OVERTIME = 0.5

"""


def program(folder: Path, *sources: str) -> Program:
    """Start the program that consists of `PRELUDE` and these pieces, each dedented."""
    return Program(folder, write(folder / "program.py", "".join(map(textwrap.dedent, (PRELUDE, *sources)))))


def tcp(handler: str, choice: dict[str, str], **more: object) -> str:
    """The source of a `run` with one TCP server."""
    return f"aserver.run(aserver.TCPServer(('127.0.0.1', 0), {handler}), **{choice | more!r})\n"


# --- run: signals ----------------------------------------------------------------------------------------------------


@posix_only
@on_each_loop
def test_sigterm_lets_a_request_in_flight_finish(tmp_path: Path, choice: dict[str, str]) -> None:
    """After SIGTERM a request in flight gets its answer, nobody new gets in, and the status is 0."""
    with program(tmp_path, tcp("slow", choice)) as server:
        address = server.address()
        with connect(address) as client:
            client.send(b"hello\n")
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            assert server.wait_for("SIGTERM") == "INFO SIGTERM: shutting down; open requests: 1"
            server.stdin.write("go\n")
            server.stdin.flush()
            assert client.read_until_eof() == b"HELLO\n"
            ended = server.end()
        assert (ended.status, ended.errors) == (0, "")
        with pytest.raises(ConnectionRefusedError):
            connect(address)


@posix_only
@on_each_loop
def test_ctrl_c_prints_nothing(tmp_path: Path, choice: dict[str, str]) -> None:
    """Ctrl-C closes idle connections and ends with status 0, without a traceback; run() returns to its caller."""
    with program(tmp_path, tcp("upper", choice) + "say('after run')") as server:
        with connect(server.address()) as client:
            assert client.ask(b"hello\n") == b"HELLO\n"
            server.signal(signal.SIGINT)
            assert client.read_until_eof() == b""
        server.wait_for("after run")
        assert server.end() == (0, "", "")


@posix_only
@on_each_loop
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_at_once(tmp_path: Path, choice: dict[str, str], second: signal.Signals) -> None:
    """With a handler that will not end, a second signal kills the process; its Unix path is removed before."""
    run = f"aserver.run(aserver.UnixStreamServer('./u.sock', stubborn), grace=None, **{choice!r})"
    with program(tmp_path, run) as server:
        server.address()
        with connect(tmp_path / "u.sock"):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            server.wait_for("shutting down")
            server.signal(second)
            assert server.end().status == -second
    assert not (tmp_path / "u.sock").exists()


@posix_only
@on_each_loop
def test_second_signal_ends_a_blocked_loop(tmp_path: Path, choice: dict[str, str]) -> None:
    """A handler that blocks the event loop keeps nobody from ending the program with two signals."""
    run = f"aserver.run(aserver.UnixStreamServer('./u.sock', blocking), grace=None, **{choice!r})"
    with program(tmp_path, run) as server:
        server.address()
        with connect(tmp_path / "u.sock"):
            server.wait_for("working")
            server.signal(signal.SIGINT)
            server.signal(signal.SIGTERM)
            assert server.end().status in (-signal.SIGINT, -signal.SIGTERM)
    assert not (tmp_path / "u.sock").exists()


@posix_only
@on_each_loop
def test_signal_for_a_forked_child_is_its_own(tmp_path: Path, choice: dict[str, str]) -> None:
    """A signal sent to a process that a handler forked ends that one, and stops nothing in the server."""
    source = """\
    import os

    async def forking(stream):
        if not (child := os.fork()):
            say("forked")  # before that Python forgets a signal
            block()
        await stream.send(b"%d\\n" % child)
        await stream.readline()
        await stream.send(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    """
    with program(tmp_path, source, tcp("forking", choice)) as server:
        with connect(server.address()) as client:
            child = int(client.read_until())
            server.wait_for("forked")
            os.kill(child, signal.SIGTERM)
            assert client.ask(b"wait for it\n") == b"%d\n" % -signal.SIGTERM
        server.signal(signal.SIGTERM)
        assert server.end().status == 0


@posix_only
def test_handlers_of_before_are_put_back(tmp_path: Path) -> None:
    """After run() the signals do again what they did before it."""
    source = """\
    def mine(number, frame): pass

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, mine)
    {run}
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is before
    """
    with program(tmp_path, source.format(run=tcp("upper", {}))) as server:
        server.address()
        server.signal(signal.SIGTERM)
        ended = server.end()
    assert (ended.status, ended.errors) == (0, "")


# --- run: how it ends ------------------------------------------------------------------------------------------------


@posix_only
@on_each_loop
def test_status_1_if_a_handler_had_to_be_cancelled(tmp_path: Path, choice: dict[str, str]) -> None:
    """Handlers that are cancelled at the end of the grace make the status 1, and the log says how many."""
    with program(tmp_path, tcp("endless", choice, grace=0)) as server:
        address = server.address()
        with connect(address), connect(address):
            server.wait_for("working")
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert ended.output.splitlines()[-1] == (
        "WARNING requests that did not end within the grace of 0 s: 2 (cancelled: 2, reset after that: 0)"
    )
    assert ended.errors == ""


@posix_only
@on_each_loop
def test_handler_that_swallows_cancellation_is_left_behind(tmp_path: Path, choice: dict[str, str]) -> None:
    """A handler that survives cancellation and the loss of its connection does not keep the process."""
    run = f"aserver.run(aserver.UnixStreamServer('./u.sock', stubborn), grace=0, **{choice!r})"
    with program(tmp_path, IMPATIENT.replace("0.5", "30"), run) as server:
        server.address()
        with connect(tmp_path / "u.sock"):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert "CRITICAL handlers that go on although cancelled and without their connection: 1; ending" in ended.output
    assert not (tmp_path / "u.sock").exists()


@posix_only
@on_each_loop
def test_blocked_loop_does_not_keep_the_process(tmp_path: Path, choice: dict[str, str]) -> None:
    """A handler that blocks the event loop is ended with its process when the time is over, after one signal."""
    run = f"aserver.run(aserver.UnixStreamServer('./u.sock', blocking), grace=0, **{choice!r})"
    with program(tmp_path, IMPATIENT, run) as server:
        server.address()
        with connect(tmp_path / "u.sock"):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert "CRITICAL the event loop is blocked, or a thread goes on" in ended.output
    assert not (tmp_path / "u.sock").exists()


@posix_only
@pytest.mark.parametrize(
    "wait",
    [
        "await asyncio.get_running_loop().run_in_executor(None, work)",
        "await anyio.to_thread.run_sync(work, abandon_on_cancel=True)",
    ],
    ids=["executor", "abandoned"],
)
def test_thread_does_not_keep_the_process(tmp_path: Path, wait: str) -> None:
    """A thread that a handler has left behind is not waited for longer than the handlers are."""
    source = """\
    import asyncio, anyio.to_thread

    def work():
        say("working")
        block()

    async def threading(stream):
        {wait}

    """
    run = tcp("threading", {"loop": "asyncio"}, grace=0)
    with program(tmp_path, IMPATIENT, source.format(wait=wait), run) as server:
        with connect(server.address()):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert "CRITICAL the event loop is blocked, or a thread goes on" in ended.output


@posix_only
def test_program_after_run_may_take_its_time(tmp_path: Path) -> None:
    """Once run() has returned nothing ends the program, though a thread of its handlers goes on."""
    source = """\
    import anyio.to_thread

    def work():
        say("working")
        sys.stdin.readline()

    async def threading(stream):
        await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

    overtime = []
    class Overtime(_run.Overtime):
        def _ring(self):
            super()._ring()
            overtime.append(self)
            say("overtime is over")

    _run.Overtime = Overtime
    try:
        {run}
    except SystemExit:
        say("after run")
    while not overtime:
        time.sleep(0.01)
    say("still here")
    """
    run = tcp("threading", {"loop": "asyncio"}, grace=0)
    with program(tmp_path, IMPATIENT, source.format(run=run)) as server:
        with connect(server.address()):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            server.wait_for("after run")
            server.wait_for("overtime is over")
            server.wait_for("still here")
        server.stdin.write("end\n")
        server.stdin.flush()
        assert server.end().status == 0


@posix_only
@on_each_loop
def test_shutdown_from_inside_ends_run(tmp_path: Path, choice: dict[str, str]) -> None:
    """When somebody inside shuts the server down, run() returns as it does after a signal."""
    source = """\
    async def quitting(stream):
        import asyncio, sys
        if "trio" in sys.modules:
            sys.modules["trio"].lowlevel.spawn_system_task(server.shutdown)
        else:
            server.keep = asyncio.get_running_loop().create_task(server.shutdown())
        await stream.readline()

    class Server(aserver.TCPServer):
        keep = None

    server = Server(("127.0.0.1", 0), quitting)
    """
    with program(tmp_path, source, f"aserver.run(server, **{choice!r})\nsay('after run')") as server:
        with connect(server.address()) as client:
            assert client.read_until_eof() == b""
        server.wait_for("after run")
        assert server.end() == (0, "", "")


@posix_only
def test_signal_bounds_a_patient_shutdown_from_inside(tmp_path: Path) -> None:
    """Where somebody inside waits for ever, a signal ends what is open when its own grace is over."""
    source = """\
    import asyncio

    async def waiting(stream):
        if server.keep is None:
            server.keep = asyncio.get_running_loop().create_task(server.shutdown(None))
            await asyncio.sleep(0)
            say("working")
        await anyio.sleep_forever()

    server = aserver.TCPServer(("127.0.0.1", 0), waiting)
    server.keep = None
    """
    with program(tmp_path, source, "aserver.run(server, grace=0.1)") as server:
        with connect(server.address()):
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert ended.output.splitlines()[-1].endswith("(cancelled: 1, reset after that: 0)")


# --- run: several servers --------------------------------------------------------------------------------------------


@posix_only
@on_each_loop
def test_several_servers_serve_together(tmp_path: Path, choice: dict[str, str]) -> None:
    """Servers given together serve at the same time, and one signal ends all of them."""
    run = f"""\
aserver.run(
    aserver.TCPServer(("127.0.0.1", 0), upper),
    aserver.UnixStreamServer("./u.sock", upper),
    **{choice!r},
)"""
    with program(tmp_path, run) as server:
        first, second = server.address(), server.address()
        assert second == "./u.sock"
        assert ask(first, b"tcp\n") == b"TCP\n"
        assert ask(tmp_path / "u.sock", b"unix\n") == b"UNIX\n"
        server.signal(signal.SIGTERM)
        assert server.end().status == 0
    assert not (tmp_path / "u.sock").exists()


@posix_only
def test_all_are_bound_or_none(tmp_path: Path) -> None:
    """An address that cannot be had is raised as the plain OSError it is, and the other servers' are given back."""
    path = tmp_path / "u.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        servers = (
            aserver.UnixStreamServer(str(path), _upper),
            aserver.TCPServer(taken.getsockname()[:2], _upper),
        )
        with pytest.raises(OSError, match=f"tcp://127.0.0.1:{taken.getsockname()[1]}: Address already in use"):
            aserver.run(*servers)
    assert not path.exists()


@posix_only
@on_each_loop
def test_failed_listener_ends_all(tmp_path: Path, choice: dict[str, str]) -> None:
    """When the sockets of one server fail the others are shut down, and run() raises ListenerFailedError."""
    source = """\
    import socket

    listening = socket.create_server(("127.0.0.1", 0))

    async def breaking(stream):
        listening.shutdown(socket.SHUT_RDWR)

    try:
        aserver.run(
            aserver.TCPServer(listening, breaking, name="A"),
            aserver.TCPServer(("127.0.0.1", 0), upper, name="B"),
            **{choice},
        )
    except aserver.ListenerFailedError as exc:
        say(f"raised {{exc!r}}")
    """
    with program(tmp_path, source.format(choice=choice)) as server:
        first, second = server.address(), server.address()
        with connect(second) as client:
            assert client.ask(b"hello\n") == b"HELLO\n"
            with connect(first):
                assert client.read_until_eof() == b""
        server.wait_for("CRITICAL A: ")
        assert "accepts no more: Invalid argument" in server.wait_for("raised ListenerFailedError")
        assert server.end().status == 0


# --- run: arguments --------------------------------------------------------------------------------------------------


async def _upper(stream: aserver.Stream) -> None:
    async for line in stream:
        await stream.send(line.upper())


def _server() -> aserver.TCPServer:
    return aserver.TCPServer(("127.0.0.1", 0), _upper)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"grace": -1}, ValueError, "grace is -1; it must be at least 0"),
        ({"grace": float("nan")}, ValueError, "grace is nan"),
        ({"grace": True}, TypeError, "grace is True; it must be a number of seconds, or None"),
        ({"grace": "30"}, TypeError, "grace is '30'"),
        ({"backend": "curio"}, ValueError, "backend is 'curio'; it must be 'asyncio' or 'trio'"),
        ({"backend": "uvloop"}, ValueError, "backend is 'uvloop'"),
        ({"loop": "trio"}, ValueError, "loop is 'trio'; it must be 'auto', 'asyncio', 'uvloop' or a function"),
        ({"loop": 3}, TypeError, "loop is 3; it must be a name or a function that makes a loop"),
        ({"backend": "trio", "loop": "uvloop"}, ValueError, "loop is 'uvloop', and trio has only its own"),
        ({"backend": "trio", "loop": print}, ValueError, "trio has only its own"),
    ],
)
@pytest.mark.parametrize(
    "start", [aserver.run, lambda *args, **more: aserver.start_in_thread(*args, **more).__enter__()]
)
def test_wrong_argument_fails_before_anything_opens(
    start: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """An argument that cannot be right is refused with its value and the remedy, and the server is still new."""
    server = _server()
    with pytest.raises(error, match=text):
        start(server, **arguments)
    assert "not bound new" in repr(server)


def test_run_needs_servers() -> None:
    """No server, something else than a server, or one server twice, is refused."""
    server = _server()
    with pytest.raises(ValueError, match="there is no server to run; give at least one"):
        aserver.run()
    with pytest.raises(TypeError, match="is not a server; give an instance"):
        aserver.run(_upper)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ValueError, match="twice; give each of them once"):
        aserver.run(server, server)


@pytest.mark.parametrize("name, more", [("trio", {"backend": "trio"}), ("uvloop", {"loop": "uvloop"})])
def test_missing_loop_is_named(monkeypatch: pytest.MonkeyPatch, name: str, more: dict[str, str]) -> None:
    """A loop that is asked for and not installed is an error that says what to do."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=f"{name} is not installed; install it, or choose") as caught:
        aserver.run(_server(), **more)  # type: ignore[arg-type]  # mypy sees one type for all keywords
    assert caught.value.name == name


def test_auto_takes_uvloop_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is uvloop if it is installed, and otherwise asyncio's own."""
    assert backend_options("asyncio", "auto") == {"use_uvloop": "uvloop" in LOOP_FACTORIES}
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert backend_options("asyncio", "auto") == {"use_uvloop": False}


@posix_only
@pytest.mark.parametrize(
    "loop, module",
    [
        ("'asyncio'", "asyncio.unix_events"),
        pytest.param(
            "'uvloop'", "uvloop", marks=pytest.mark.skipif("uvloop" not in LOOP_FACTORIES, reason="no uvloop")
        ),
        ("lambda: Loop()", "__main__"),
    ],
)
def test_loop_that_was_asked_for_runs(tmp_path: Path, loop: str, module: str) -> None:
    """The loop is the one that was named, or what the function made."""
    source = """\
    import asyncio
    class Loop(asyncio.SelectorEventLoop): pass

    async def which(stream):
        await stream.send(type(asyncio.get_running_loop()).__module__.encode())

    """
    run = f"aserver.run(aserver.TCPServer(('127.0.0.1', 0), which), loop={loop})"
    with program(tmp_path, source, run) as server:
        with connect(server.address()) as client:
            assert client.read_until_eof() == module.encode()
        server.signal(signal.SIGTERM)
        assert server.end().status == 0


def test_run_in_another_thread_leaves_signals_alone(aserver_log: LogBook) -> None:
    """Outside of the main thread run() serves without touching signals, until somebody inside ends it."""
    ready = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    class Server(aserver.TCPServer):
        quits: Any = None

        async def serve_forever(self, **more: Any) -> None:
            ready.set()
            await super().serve_forever(**more)

        async def connection_closed(self, request: aserver.Stream, client_address: Any) -> None:
            import asyncio

            self.quits = asyncio.get_running_loop().create_task(self.shutdown())

    server = Server(("127.0.0.1", 0), _upper)
    thread = threading.Thread(target=aserver.run, args=(server,))
    thread.start()
    try:
        assert ready.wait(10)
        assert signal.getsignal(signal.SIGTERM) == before
        assert ask(server.server_address, b"hello\n") == b"HELLO\n"
    finally:
        thread.join(10)
    assert not thread.is_alive()
    aserver_log.take("listening on tcp://127.0.0.1:")


# --- datagrams -------------------------------------------------------------------------------------------------------


@posix_only
@on_each_loop
def test_datagrams_in_flight_and_in_the_queue_finish(tmp_path: Path, choice: dict[str, str]) -> None:
    """After SIGTERM a datagram server answers what it is handling, and the status is 0; the port is free then."""
    source = f"""
        async def slow_datagram(datagram):
            if datagram.data == b"slow":
                say("working")
                await anyio.wait_readable(sys.stdin.fileno())
            await datagram.reply(datagram.data.upper())

        server = aserver.UDPServer(("127.0.0.1", 0), slow_datagram)
        aserver.run(server, **{choice!r})
        say(server.statistics().completed)
    """
    with program(tmp_path, source) as server:
        line = server.wait_for("listening on udp://127.0.0.1:")
        address = ("127.0.0.1", int(line.rpartition(":")[2]))
        assert ask_datagram(address, b"hello") == b"HELLO"
        with datagram_client(address) as client:
            client.send(b"slow")
            server.wait_for("working")
            server.signal(signal.SIGTERM)
            assert server.wait_for("SIGTERM") == "INFO SIGTERM: shutting down; open requests: 1"
            server.stdin.write("go\n")
            server.stdin.flush()
            assert client.recv() == b"SLOW"
            ended = server.end()
        assert (ended.status, ended.output, ended.errors) == (0, "2\n", "")


@posix_only
@on_each_loop
def test_streams_and_datagrams_together(tmp_path: Path, choice: dict[str, str]) -> None:
    """One run serves a stream server and datagram servers, and removes the path at the end."""
    source = f"""
        async def shout(datagram):
            await datagram.reply(datagram.data.upper())

        aserver.run(
            aserver.TCPServer(("127.0.0.1", 0), upper),
            aserver.UDPServer(("127.0.0.1", 0), shout),
            aserver.UnixDatagramServer("./u.sock", shout),
            **{choice!r},
        )
    """
    with program(tmp_path, source) as server:
        assert ask(server.address(), b"tcp\n") == b"TCP\n"
        line = server.wait_for("listening on udp://127.0.0.1:")
        assert ask_datagram(("127.0.0.1", int(line.rpartition(":")[2])), b"udp") == b"UDP"
        assert server.wait_for("listening on").endswith("unixgram:./u.sock")
        assert ask_datagram(tmp_path / "u.sock", b"unix") == b"UNIX"
        server.signal(signal.SIGINT)
        assert server.end().status == 0
    assert not (tmp_path / "u.sock").exists()


@on_each_loop
def test_thread_serves_datagrams(choice: dict[str, Any]) -> None:
    """start_in_thread serves datagrams, too."""

    async def shout(datagram: aserver.Datagram) -> None:
        await datagram.reply(datagram.data.upper())

    with aserver.start_in_thread(aserver.UDPServer(("127.0.0.1", 0), shout), **choice) as server:
        assert ask_datagram(server.server_address, b"hello") == b"HELLO"
        assert server.statistics().received == 1
    assert "closed" in repr(server)


# --- start_in_thread -------------------------------------------------------------------------------------------------


@on_each_loop
def test_thread_serves_a_synchronous_program(choice: dict[str, Any]) -> None:
    """Within the block the server answers, and knows its address; after it the server is closed and its thread gone."""
    with aserver.start_in_thread(_server(), **choice) as server:
        address = server.server_address
        assert ask(address, b"hello\n") == b"HELLO\n"
        assert server.statistics().accepted == 1
    assert "closed" in repr(server)
    with pytest.raises(ConnectionRefusedError):
        connect(address)


@on_each_loop
def test_bind_error_is_raised_where_the_thread_is_started(choice: dict[str, Any]) -> None:
    """An address in use is an OSError of the with statement, whose block is not entered."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = aserver.TCPServer(taken.getsockname()[:2], _upper)
        with pytest.raises(OSError, match="Address already in use"), aserver.start_in_thread(server, **choice):
            pytest.fail("entered")


@on_each_loop
def test_leaving_the_block_lets_requests_finish(choice: dict[str, Any]) -> None:
    """A request that runs when the block is left gets its answer within the grace."""
    working, go = threading.Event(), threading.Event()

    async def slow(stream: aserver.Stream) -> None:
        import anyio.to_thread

        line = await stream.readline()
        working.set()
        await anyio.to_thread.run_sync(go.wait, 10)
        await stream.send(line.upper())

    with aserver.start_in_thread(aserver.TCPServer(("127.0.0.1", 0), slow), **choice) as server:
        client = connect(server.server_address)
        client.send(b"hello\n")
        assert working.wait(10)
        threading.Timer(0, go.set).start()
    with client:
        assert client.read_until_eof() == b"HELLO\n"


@on_each_loop
def test_leaving_the_block_cancels_at_the_end_of_the_grace(choice: dict[str, Any]) -> None:
    """With a grace of 0 what still runs is cancelled at once."""
    working = threading.Event()
    ends = []

    async def endless(stream: aserver.Stream) -> None:
        import anyio

        working.set()
        try:
            await anyio.sleep_forever()
        finally:
            ends.append("cancelled")

    with aserver.start_in_thread(aserver.TCPServer(("127.0.0.1", 0), endless), grace=0, **choice) as server:
        client = connect(server.server_address)
        assert working.wait(10)
    assert ends == ["cancelled"]
    assert server.statistics().cancelled == 1
    client.close()


@on_each_loop
def test_error_in_the_block_passes(choice: dict[str, Any]) -> None:
    """What the block raises comes out of it unchanged, after the server was closed."""
    server = _server()
    with pytest.raises(KeyError, match="mine"), aserver.start_in_thread(server, **choice):
        raise KeyError("mine")
    assert "closed" in repr(server)


@pytest.mark.skipif(sys.platform != "linux", reason="shutting a listening socket down ends it on Linux only")
@on_each_loop
def test_failed_listener_is_raised_when_the_block_is_left(choice: dict[str, Any], aserver_log: LogBook) -> None:
    """The error of a server that failed meanwhile is raised at the end of the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    failed = threading.Event()

    class Server(aserver.TCPServer):
        async def serve_forever(self, **more: Any) -> None:
            try:
                await super().serve_forever(**more)
            finally:
                failed.set()

    block = aserver.start_in_thread(Server(listening, _upper), **choice)
    block.__enter__()
    listening.shutdown(socket.SHUT_RDWR)
    assert failed.wait(10)
    with pytest.raises(aserver.ListenerFailedError, match="accepts no more"):
        block.__exit__(None, None, None)
    aserver_log.take("accepts no more")

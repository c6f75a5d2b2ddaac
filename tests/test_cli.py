"""The promises of the command line: targets, options and variables, what it prints, and how it ends.

What serves is tried in child processes with real clients. What is wrong at once is tried by calling `main`, and by one
child process for each way a message could go astray.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import aserver
from aserver import _cli
from aserver._cli import main
from tests.peers import ask, ask_datagram, connect
from tests.programs import Program, address_in, write

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="signals and Unix sockets")

#: Where the commands below listen: no port is fixed.
ANY_PORT = "tcp://127.0.0.1:0"
ANY_UDP_PORT = "udp://127.0.0.1:0"

SERVICE = """\
import anyio, aserver

async def upper(stream):
    async for line in stream:
        await stream.send(line.upper())

class Upper(aserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())

class Limits(aserver.StreamRequestHandler):
    async def handle(self):
        await self.wfile.write(repr(self.server.limits).encode())

class Callable:
    async def __call__(self, stream):
        await upper(stream)

class Namespace:
    handler = Callable()

server = aserver.TCPServer(("127.0.0.1", 0), upper)

def make_handler():
    return upper

def make_server():
    return aserver.TCPServer(("127.0.0.1", 0), upper)

def fails():
    raise LookupError("in the user's factory")

def needs(argument): pass

def plain(stream): pass

async def shout(datagram):
    await datagram.reply(datagram.data.upper())

class Shout(aserver.DatagramRequestHandler):
    async def handle(self):
        self.wfile.write(self.packet.upper())

async def talk(session):
    count = 0
    async for data in session:
        count += 1
        await session.send(b"%d %s" % (count, data))

class Told(aserver.BaseRequestHandler):
    async def handle(self):
        await self.request.reply(repr((self.server.limits, self.server.sessions)).encode())

datagram_server = aserver.UDPServer(("127.0.0.1", 0), shout)

async def endless(stream):
    await stream.send(b"here\\n")
    await anyio.sleep_forever()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with the module of all targets."""
    write(tmp_path / "service.py", SERVICE)
    return tmp_path


def command(folder: Path, *arguments: object, **environment: str) -> Program:
    """Start the command in a child process."""
    return Program(folder, "-m", "aserver", *arguments, environment=environment)


# --- targets ---------------------------------------------------------------------------------------------------------


def _loop_param(*arguments: str) -> Any:
    if importlib.util.find_spec(arguments[-1]) is None:
        return pytest.param(arguments, marks=pytest.mark.skip(reason=f"{arguments[-1]} is not installed"))
    return pytest.param(arguments, id=arguments[-1])


@posix_only
@pytest.mark.parametrize(
    "loop", [_loop_param("--loop", "asyncio"), _loop_param("--loop", "uvloop"), _loop_param("--backend", "trio")]
)
def test_serves_and_drains(folder: Path, loop: tuple[str, ...]) -> None:
    """A handler is served on each endpoint; each address is one line; SIGTERM ends with status 0 on every loop."""
    with command(folder, *loop, "service:Upper", ANY_PORT, "unix:./u.sock") as server:
        lines = [server.line(), server.line()]
        assert lines[1] == "listening on unix:./u.sock"
        assert ask(address_in(lines[0]), b"tcp\n") == b"TCP\n"
        assert ask(folder / "u.sock", b"unix\n") == b"UNIX\n"
        server.signal(signal.SIGTERM)
        ended = server.end()
    assert (ended.status, ended.output) == (0, "")
    assert re.fullmatch(r"[-0-9:, ]+ INFO aserver: SIGTERM: shutting down; open requests: \d\n", ended.errors)


@posix_only
@pytest.mark.parametrize(
    "arguments",
    [
        ["service:upper", ANY_PORT],
        ["service:Upper", ANY_PORT],
        ["service:Namespace.handler", ANY_PORT],
        ["service:server"],
        ["--factory", "service:make_server"],
        ["--factory", "service:make_handler", ANY_PORT],
        ["service.py:upper", ANY_PORT],
        ["./service.py:upper", ANY_PORT],
        ["service:upper", "--grace", "5", ANY_PORT, "--backlog", "7", ANY_PORT],
    ],
    ids=" ".join,
)
def test_targets(folder: Path, arguments: list[str]) -> None:
    """A target is a function, a class, a callable object, a server, or what a factory makes; in a module or a file."""
    with command(folder, *arguments) as server:
        assert ask(server.address(), b"hello\n") == b"HELLO\n"
        server.signal(signal.SIGTERM)
        assert server.end().status == 0


@posix_only
def test_file_imports_what_lies_beside_it(folder: Path) -> None:
    """A file elsewhere finds the modules of its own folder, and may be called as a module that is imported already."""
    (folder / "away").mkdir()
    write(folder / "away" / "neighbour.py", SERVICE)
    write(folder / "away" / "socket.py", "from neighbour import upper")
    with command(folder, "away/socket.py:upper", ANY_PORT) as server:
        assert ask(server.address(), b"hello\n") == b"HELLO\n"
        server.signal(signal.SIGINT)
        assert server.end().status == 0


@posix_only
def test_default_endpoint_is_the_documented_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an endpoint a handler is served where --help says (here on a free port in its place)."""
    _, shown = _main(capsys, "--help")
    assert "if there is none, it is tcp://127.0.0.1:9999. Port 0 is" in " ".join(shown.split())
    source = """\
    import sys
    from aserver import _cli
    assert _cli.DEFAULT_ENDPOINT == "tcp://127.0.0.1:9999"
    _cli.DEFAULT_ENDPOINT = "tcp://127.0.0.1:0"
    sys.exit(_cli.main(["service:upper"]))
    """
    with Program(folder, write(folder / "default.py", source)) as server:
        assert ask(server.address(), b"hello\n") == b"HELLO\n"


# --- options and variables -------------------------------------------------------------------------------------------


@posix_only
def test_option_wins_over_variable(folder: Path) -> None:
    """Limits come from the options, else from the variables, else from the dataclass; an empty variable is unset."""
    environment = {
        "ASERVER_MAX_CONNECTIONS": "11",
        "ASERVER_MAX_LINE_SIZE": "12",
        "ASERVER_SHED_AFTER": "none",
        "ASERVER_MAX_EXACT_SIZE": "",
    }
    with command(folder, "--max-connections", 13, "service:Limits", ANY_PORT, **environment) as server:
        with connect(server.address()) as client:
            answer = client.read_until_eof().decode()
    assert answer == repr(aserver.Limits(max_connections=13, max_line_size=12, shed_after=None))


@posix_only
def test_variables_alone_configure(folder: Path) -> None:
    """The options that are not limits have working variables, too."""
    environment = {
        "ASERVER_FACTORY": "yes",
        "ASERVER_BACKEND": "asyncio",
        "ASERVER_LOOP": "asyncio",
        "ASERVER_LOG_LEVEL": "DEBUG",
        "ASERVER_GRACE": "0",
        "ASERVER_BACKLOG": "3",
        "ASERVER_REUSE_PORT": "1",
    }
    write(folder / "more.py", "from service import endless\ndef make(): return endless")
    with command(folder, "more:make", ANY_PORT, **environment) as server:
        address = server.address()
        assert isinstance(address, tuple)
        with socket.socket() as second:  # the port can be shared
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            second.bind(address)
        with connect(address) as client:
            assert client.read_until() == b"here\n"
            server.signal(signal.SIGTERM)
            ended = server.end()
    assert ended.status == 1
    assert "DEBUG asyncio: Using selector" in ended.errors
    assert "within the grace of 0.0 s: 1 (cancelled: 1, reset after that: 0)" in ended.errors


@posix_only
def test_switch_can_be_turned_off_again(folder: Path) -> None:
    """A switch that a variable has set is reset by its --no- form."""
    with command(folder, "--no-factory", "service:upper", ANY_PORT, ASERVER_FACTORY="1") as server:
        assert ask(server.address(), b"hello\n") == b"HELLO\n"


@posix_only
def test_loop_from_a_module(folder: Path) -> None:
    """--loop module:factory runs on what the factory makes."""
    source = """\
    import asyncio

    class Loop(asyncio.SelectorEventLoop): pass

    async def which(stream):
        await stream.send(type(asyncio.get_running_loop()).__name__.encode())
    """
    write(folder / "loops.py", source)
    with command(folder, "--loop", "loops:Loop", "loops:which", ANY_PORT) as server:
        with connect(server.address()) as client:
            assert client.read_until_eof() == b"Loop"


@posix_only
def test_target_keeps_the_logging_it_has_configured(folder: Path) -> None:
    """A target that has set up logging itself keeps its format; --log-level holds for our lines all the same."""
    source = """\
    import logging
    logging.basicConfig(format="MINE %(message)s", level="ERROR")
    from service import upper
    """
    write(folder / "logs.py", source)
    with command(folder, "logs:upper", ANY_PORT) as server:
        server.address()
        server.signal(signal.SIGTERM)
        ended = server.end()
    assert ended.errors == "MINE SIGTERM: shutting down; open requests: 0\n"


def test_help_shows_each_option_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names every option, its variable and its default; every field of the limits is among them."""
    status, shown = _main(capsys, "--help")
    assert status == 0
    text = " ".join(shown.split())
    expected = "factory backend loop grace backlog reuse-port log-level".split()
    expected += [field.name.replace("_", "-") for field in fields(aserver.Limits)]
    for name in expected:
        assert f" --{name} " in text or f" --{name}, --no-{name} " in text
        assert f"[ASERVER_{name.upper().replace('-', '_')}]" in text
    assert f"(default: {aserver.Limits().max_line_size}) [ASERVER_MAX_LINE_SIZE]" in text
    assert "(default: 30) [ASERVER_GRACE]" in text
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version of the distribution, or that it is not installed."""
    status, shown = _main(capsys, "--version")
    assert status == 0
    try:
        assert shown == f"aserver {importlib.metadata.version('aserver-net')}\n"
    except importlib.metadata.PackageNotFoundError:
        assert shown == "aserver of no known version: it is not installed\n"


def _main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, capsys.readouterr().out


# --- datagrams -------------------------------------------------------------------------------------------------------


def udp_address(line: str) -> tuple[str, int]:
    """The address in a line such as "listening on udp://127.0.0.1:9999"."""
    found = re.fullmatch(r"listening on udp://\[?([^]]*?)\]?:(\d+)", line)
    assert found, line
    return found[1], int(found[2])


@posix_only
@pytest.mark.parametrize(
    "loop", [_loop_param("--loop", "asyncio"), _loop_param("--loop", "uvloop"), _loop_param("--backend", "trio")]
)
def test_serves_datagrams_and_drains(folder: Path, loop: tuple[str, ...]) -> None:
    """A handler of datagrams is served on UDP and Unix endpoints; SIGTERM ends with status 0, and the path is gone."""
    with command(folder, *loop, "service.py:shout", ANY_UDP_PORT, "unixgram:./u.sock?mode=660") as server:
        address = udp_address(server.line())
        assert server.line() == "listening on unixgram:./u.sock"
        assert ask_datagram(address, b"udp") == b"UDP"
        assert ask_datagram(folder / "u.sock", b"unix") == b"UNIX"
        server.signal(signal.SIGTERM)
        ended = server.end()
    assert (ended.status, ended.output) == (0, "")
    assert re.fullmatch(r"[-0-9:, ]+ INFO aserver: SIGTERM: shutting down; open requests: 0\n", ended.errors)
    assert not (folder / "u.sock").exists()


@posix_only
@pytest.mark.parametrize(
    "arguments, question, answer",
    [
        (["service:Shout", ANY_UDP_PORT], b"hello", b"HELLO"),
        (["service:datagram_server"], b"hello", b"HELLO"),
        (["--sessions", "service:talk", ANY_UDP_PORT], b"hello", b"1 hello"),
        (["service:talk", ANY_UDP_PORT, "--sessions", "--idle-timeout", "none"], b"hello", b"1 hello"),
        (["--groups", "239.255.17.4%lo,239.255.17.5%lo", "service:shout", "udp://0.0.0.0:0"], b"hello", b"HELLO"),
        (["--broadcast", "--reuse-port", "service:shout", ANY_UDP_PORT], b"hello", b"HELLO"),
        (["--max-datagram-size", "5", "service:Told", ANY_UDP_PORT], b"x", b"max_datagram_size=5"),
        (["--max-in-flight", "6", "service:Told", ANY_UDP_PORT], b"x", b"max_in_flight=6"),
        (["--max-amplification", "1e3", "service:Told", ANY_UDP_PORT], b"x", b"max_amplification=1000.0"),
        (["service:Told", ANY_UDP_PORT], b"x", b"None)"),
    ],
)
def test_datagram_targets_and_options(folder: Path, arguments: list[str], question: bytes, answer: bytes) -> None:
    """Each kind of target is served, and each option for datagrams reaches the server."""
    if "lo," in str(arguments) and sys.platform != "linux":
        pytest.skip("the loopback interface's name")
    with command(folder, *arguments) as server:
        _, port = udp_address(server.line())
        assert answer in ask_datagram(("127.0.0.1", port), question)


@posix_only
@pytest.mark.parametrize(
    "variable, value, answer",
    [
        ("ASERVER_SESSIONS", "1", b"1 hello"),
        ("ASERVER_GROUPS", "239.255.17.4%1", b"HELLO"),
        ("ASERVER_BROADCAST", "on", b"HELLO"),
        ("ASERVER_MAX_QUEUED", "3", b"HELLO"),
    ],
)
def test_variables_for_datagrams(folder: Path, variable: str, value: str, answer: bytes) -> None:
    """The variables set the same as their options."""
    target = "service:talk" if variable == "ASERVER_SESSIONS" else "service:shout"
    with command(folder, target, "udp://127.0.0.1:0", **{variable: value}) as server:
        assert ask_datagram(udp_address(server.line()), b"hello") == answer


@posix_only
def test_inherited_datagram_socket(folder: Path) -> None:
    """fd:// of a datagram socket needs no other hint that the handler is for datagrams."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        script = f"""
            import os, sys
            os.dup2({sock.fileno()}, 3)
            os.execv(sys.executable, [sys.executable, "-m", "aserver", "service:shout", "fd://3"])
        """
        sock.set_inheritable(True)
        starter = write(folder / "starter.py", script)
        root = str(Path(aserver.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        with subprocess.Popen(
            [sys.executable, str(starter)],
            cwd=folder,
            env=environment,
            pass_fds=[sock.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert udp_address(process.stdout.readline().strip()) == sock.getsockname()
                assert ask_datagram(sock.getsockname(), b"hello") == b"HELLO"
            finally:
                process.terminate()
            assert process.wait(10) == 0


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder as working directory of this process, without ASERVER_*; what it imports is undone at the end."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in [name for name in os.environ if name.startswith("ASERVER_")]:
        monkeypatch.delenv(variable)
    log, level, handlers = logging.getLogger("aserver"), logging.getLogger("aserver").level, logging.root.handlers[:]
    yield folder
    log.setLevel(level)
    logging.root.handlers[:] = handlers
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `main` complains in, with status 2 and without anything else."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    found = re.fullmatch(r"aserver: error: (.+)\n", captured.err)
    assert found, captured.err
    return found[1]


TARGET_ERRORS = {
    "service": "'service' names nothing in a module or file; write service:NAME",
    "service.py": "'service.py' names nothing in a module or file; write service.py:NAME",
    "service:": "'service:' names nothing in a module or file; write service:NAME",
    ":upper": "':upper' names nothing in a module or file; write module:NAME",
    "servce:upper": "there is no module 'servce'; check its name and the working directory",
    "servce.inner:upper": "there is no module 'servce'; check",
    "service.inner:upper": "there is no module 'service.inner'; check",
    ".service:upper": "'.service' is no module's name; write for example package.module",
    "servce.py:upper": "the file 'servce.py' is not there; write the path of one that is",
    "./service:upper": "the file './service' is not there; did you mean ./service.py?",
    "./data:upper": "the file './data' is no Python file; write the path of one that is",
    "service:uper": "'service' has no 'uper'; did you mean 'upper'?",
    "service:UPPER": "'service' has no 'UPPER'; did you mean 'upper'?",
    "service:zzz": "'service' has no 'zzz'; it has Callable, Limits, Namespace, Shout, Told",
    "service:Namespace.handle": "'service' has no 'Namespace.handle'; did you mean 'handler'?",
    "service:number": "'service:number' cannot be served: the handler is 3; it must be an async function",
    "service:plain": "use --factory if it makes one",
    "service:Namespace": "'service:Namespace' cannot be served: the handler class Namespace has no setup",
    "service:aserver.TCPServer": "is a class of servers; name a server, or with --factory a function that makes one",
    "--factory service:number": "'service:number' is 3, which makes nothing; leave out --factory",
    "--factory service:needs": "'service:needs' is no factory: missing a required argument: 'argument'",
    "--factory service:upper": "'service:upper' is async and no factory; leave out --factory to serve it",
}
ADDRESS_ERRORS = {
    "service:upper tcp://127.0.0.1:65536": "'tcp://127.0.0.1:65536' has the port 65536; write a number from 0 to 65535",
    "service:upper localhost:80": "'localhost:80' has no scheme; write tcp://localhost:80",
    "service:upper tcp://192.0.2.1:80": "tcp://192.0.2.1:80: Cannot assign requested address; write an address of",
    "service:upper unix:./none/u.sock": "create it first",
    "service:upper unix:./open/u.sock": "run chmod o-w on it",
    "service:upper unix:./data": "unix:./data: there is a regular file, not a socket; remove it",
    "service:upper fd://999": "fd://999: is no open socket",
    "service:server tcp://127.0.0.1:0": "'service:server' is a server with its own addresses; leave out 'tcp://127",
}
DATAGRAM_ERRORS = {
    "service:shout udp://127.0.0.1:0 tcp://127.0.0.1:0": "some are for connections, some for datagrams; run aserver",
    "service:shout unixgram:./u.sock unix:./v.sock": "some are for connections, some for datagrams",
    "service:Upper udp://127.0.0.1:0": "Upper is a StreamRequestHandler, and the requests of this server are datagrams",
    "service:Shout tcp://127.0.0.1:0": "Shout is a DatagramRequestHandler, and the requests of this server are streams",
    "--sessions service:Shout udp://127.0.0.1:0": "and the requests of this server are sessions",
    "service:shout udp://127.0.0.1": "'udp://127.0.0.1' is not of the form udp://host:port",
    "service:shout unixgram:./none/u.sock": "create it first",
    "service:shout unixgram:./data": "unixgram:./data: there is a regular file, not a socket",
    "service:shout fd://99999999999999999999": "'fd://99999999999999999999' names no descriptor; write its number",
    "service:shout udp://127.0.0.1:0 --backlog 5": "--backlog is for connections, and these are not; leave it out",
    "service:upper tcp://127.0.0.1:0 --sessions": "--sessions is for datagrams, and these are not; leave it out",
    "service:upper --groups 239.1.2.3": "--groups is for datagrams, and these are not; leave it out",
    "service:upper --broadcast": "--broadcast is for datagrams, and these are not; leave it out",
    "service:upper --max-queued 3": "--max-queued is for datagrams, and these are not; leave it out",
    "service:shout udp://192.0.2.1:9 --max-queued 3": "--max-queued",
    "service:shout udp://127.0.0.1:0 --groups 10.0.0.1": "argument --groups: '10.0.0.1' is no multicast group; write",
    "service:shout udp://127.0.0.1:0 --groups nope": "argument --groups: 'nope' is no address; write for example",
    "service:shout udp://127.0.0.1:0 --groups 239.1.2.3%nope": "there is no network interface 'nope'; those of this",
    "service:shout udp://127.0.0.1:0 --groups ff02::1": "no socket of this server is of IPv6, as the group ff02::1 is",
    "service:shout udp://127.0.0.1:0 --backend trio --groups ff02::1": "no socket of this server is of IPv6",
    "service:shout udp://127.0.0.1:0 --max-in-flight 0": "argument --max-in-flight: max_in_flight is 0; it must be at",
    "service:shout udp://127.0.0.1:0 --max-amplification 0.5": "max_amplification is 0.5; it must be at least 1",
    "service:talk udp://127.0.0.1:0 --sessions --idle-timeout -1": "idle_timeout is -1.0; it must be",
    "service:datagram_server --sessions": "is a server with its own limits; leave out --sessions",
    "service:datagram_server --max-queued 3": "is a server with its own limits; leave out --max-queued",
    "service:datagram_server udp://127.0.0.1:0": "is a server with its own addresses; leave out 'udp://127.0.0.1:0'",
    "service:aserver.UDPServer udp://127.0.0.1:0": "is a class of servers; name a server, or with --factory a function",
}
OPTION_ERRORS = {
    "": "the following arguments are required: TARGET; see aserver --help",
    "service:upper --nope": "unrecognized arguments: --nope; see aserver --help",
    "service:upper --max-conn 3": "unrecognized arguments: --max-conn",
    "service:upper --backend curio": "argument --backend: backend is 'curio'; it must be 'asyncio' or 'trio'",
    "service:upper --loop libev": "argument --loop: loop is 'libev'; it must be 'auto', 'asyncio', 'uvloop'",
    "service:upper --loop nope:make": "there is no module 'nope'",
    "service:upper --loop service:number": "loop is 3; it must be a name or a function that makes a loop",
    "service:upper --loop asyncio --backend trio": "loop is 'asyncio', and trio has only its own; leave it out",
    "service:upper --grace long": "argument --grace: 'long' is no number; write for example 10, or none",
    "service:upper --grace nan": "argument --grace: 'nan' is no number",
    "service:upper --grace -1": "argument --grace: '-1' is too small; it must be at least 0",
    "service:upper --backlog 0": "argument --backlog: '0' is too small; it must be at least 1",
    "service:upper --backlog none": "argument --backlog: 'none' is no whole number; write for example 1",
    "service:upper --max-connections 0": "argument --max-connections: max_connections is 0; it must be at least 1",
    "service:upper --max-connections 1.5": "argument --max-connections: '1.5' is no whole number; write for example 10",
    "service:upper --max-line-size none": "argument --max-line-size: 'none' is no whole number",
    "service:upper --shed-after -1": "argument --shed-after: shed_after is -1.0; it must be at least 0",
    "service:upper --log-level loud": "argument --log-level: 'loud' is no log level; write one of debug, info",
    "service:upper --grace": "argument --grace: expected one argument",
    "service:server --max-line-size 5": "'service:server' is a server with its own limits; leave out --max-line-size",
    "service:server --backlog 5": "leave out --backlog",
}


ERRORS = TARGET_ERRORS | ADDRESS_ERRORS | DATAGRAM_ERRORS | OPTION_ERRORS


@posix_only
@pytest.mark.parametrize("line, text", ERRORS.items())
def test_mistake_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], line: str, text: str) -> None:
    """A wrong target, address or option is one line with the value and the remedy, status 2, and no traceback."""
    if "trio" in line and importlib.util.find_spec("trio") is None:
        pytest.skip("trio is not installed")
    write(here / "data", "no Python, no socket")
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    assert text in error_of(capsys, *line.split())


@pytest.mark.parametrize(
    "variable, value, text",
    [
        ("ASERVER_GRACE", "long", "'long' is no number; write for example 10, or none"),
        ("ASERVER_BACKEND", "curio", "backend is 'curio'; it must be 'asyncio' or 'trio'"),
        ("ASERVER_LOOP", "libev", "loop is 'libev'"),
        ("ASERVER_FACTORY", "perhaps", "'perhaps' is neither on nor off; write 1 or 0"),
        ("ASERVER_LOG_LEVEL", "loud", "'loud' is no log level"),
        ("ASERVER_MAX_CONNECTIONS", "0", "max_connections is 0; it must be at least 1"),
        ("ASERVER_SHED_AFTER", "soon", "'soon' is no number; write for example 10, or none"),
    ],
)
def test_wrong_variable_is_named(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    text: str,
) -> None:
    """A variable with a wrong value is one line that names the variable, the value and the remedy."""
    monkeypatch.setenv(variable, value)
    assert error_of(capsys, "service:upper").startswith(f"the environment variable {variable} is wrong: {text}")


@posix_only
def test_default_endpoint_of_a_datagram_handler(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an endpoint a DatagramRequestHandler is served on UDP (here on a port that is taken, not on 9999)."""
    assert _cli.DEFAULT_DATAGRAM_ENDPOINT == "udp://127.0.0.1:9999"
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"udp://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(_cli, "DEFAULT_DATAGRAM_ENDPOINT", endpoint)
        assert f"{endpoint}: Address already in use; stop whoever" in error_of(capsys, "service:Shout")


@pytest.mark.parametrize("arguments, name", [(["--backend", "trio"], "trio"), (["--loop", "uvloop"], "uvloop")])
def test_missing_loop_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], name: str
) -> None:
    """A backend or loop that is not installed is one line with the remedy."""
    monkeypatch.setitem(sys.modules, name, None)
    assert f"{name} is not installed; install it, or choose" in error_of(capsys, *arguments, "service:upper")


@posix_only
@pytest.mark.parametrize("arguments", [["service:zzz"], ["service:upper", "tcp://127.0.0.1:-1"], ["--nope", "a:b"]])
def test_mistake_in_a_process_of_its_own(folder: Path, arguments: list[str]) -> None:
    """What a shell sees of a mistake is status 2 and one line on standard error, and nothing on standard output."""
    with command(folder, *arguments) as server:
        ended = server.end()
    assert (ended.status, ended.output) == (2, "")
    assert re.fullmatch(r"aserver: error: .+\n", ended.errors)


@posix_only
def test_port_in_use_is_one_line(folder: Path) -> None:
    """A port that somebody has is one line with the address and the remedy; none of the other addresses is printed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with command(folder, "service:upper", "unix:./u.sock", endpoint) as server:
            ended = server.end()
    assert (ended.status, ended.output) == (2, "")
    assert ended.errors == (
        f"aserver: error: {endpoint}: Address already in use; stop whoever listens there, or choose another port "
        "(0 takes a free one)\n"
    )
    assert not (folder / "u.sock").exists()


@posix_only
@pytest.mark.parametrize(
    "arguments, last",
    [
        (["broken:upper"], "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (["broken.py:upper"], "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (["typo:upper"], "SyntaxError: invalid syntax"),
        (["--factory", "service:fails"], "LookupError: in the user's factory"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistake_in_the_target_is_its_traceback(folder: Path, arguments: list[str], last: str) -> None:
    """What the target's own code raises is shown with its traceback, which begins in that code, and the status is 1."""
    write(folder / "broken.py", "import nothing_of_this_name")
    write(folder / "typo.py", "async def upper(:")
    with command(folder, *arguments) as server:
        ended = server.end()
    assert (ended.status, ended.output) == (1, "")
    lines = ended.errors.splitlines()
    assert lines[-1] == last
    assert str(folder) in "".join(lines[:2])
    assert "_cli.py" not in ended.errors
    assert "importlib" not in ended.errors


@posix_only
def test_exit_of_the_target_is_its_own(folder: Path) -> None:
    """A module that calls sys.exit() while it is imported ends the command with its status."""
    write(folder / "leaves.py", "import sys\nsys.exit(7)")
    with command(folder, "leaves:upper") as server:
        assert server.end() == (7, "", "")


@posix_only
def test_ctrl_c_while_the_target_is_imported(folder: Path) -> None:
    """Ctrl-C during a long import ends the process by that signal, without a traceback."""
    source = """\
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which it is, unless the tests run in the background
    print("importing", flush=True)
    while True: pass
    """
    write(folder / "long.py", source)
    with command(folder, "long:upper") as server:
        server.wait_for("importing")
        server.signal(signal.SIGINT)
        assert server.end() == (-signal.SIGINT, "", "")


# --- how it ends -----------------------------------------------------------------------------------------------------


@posix_only
def test_unclean_end_is_status_1(folder: Path) -> None:
    """Connections that had to be cancelled make the status 1."""
    with command(folder, "--grace", 0, "service:endless", ANY_PORT) as server:
        with connect(server.address()) as client:
            assert client.read_until() == b"here\n"
            server.signal(signal.SIGINT)
            ended = server.end()
    assert ended.status == 1
    assert "(cancelled: 1, reset after that: 0)" in ended.errors.splitlines()[-1]


@posix_only
def test_second_signal_ends_the_command(folder: Path) -> None:
    """A second signal ends it at once, by that signal."""
    with command(folder, "--grace", "none", "service:endless", "unix:./u.sock") as server:
        server.address()
        with connect(folder / "u.sock") as client:
            assert client.read_until() == b"here\n"
            server.signal(signal.SIGINT)
            server.signal(signal.SIGTERM)
            assert server.end().status in (-signal.SIGINT, -signal.SIGTERM)
    assert not (folder / "u.sock").exists()


@posix_only
def test_serves_on_when_nobody_reads_its_output(folder: Path) -> None:
    """When standard output is a pipe that nobody reads any more, it serves, and ends well."""
    source = """\
    import os, signal, sys
    reading, writing = os.pipe()
    os.close(reading)
    out = os.dup(1)
    os.dup2(writing, 1)
    from aserver._cli import main, _print_addresses
    import aserver._cli
    def show(server):
        _print_addresses(server)
        os.write(out, f"listening on {server.endpoints[0]}\\n".encode())
    aserver._cli._print_addresses = show
    sys.exit(main(["service:upper", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]))
    """
    with Program(folder, write(folder / "deaf.py", source)) as server:
        assert ask(server.address(), b"hello\n") == b"HELLO\n"
        server.signal(signal.SIGTERM)
        ended = server.end()
    assert ended.status == 0
    assert "Traceback" not in ended.errors
    assert "BrokenPipeError" not in ended.errors


@pytest.mark.skipif(sys.platform != "linux", reason="shutting a listening socket down ends it on Linux only")
def test_failed_sockets_are_status_1(folder: Path) -> None:
    """When all sockets of the server fail the log says so, and the status is 1, without a traceback."""
    source = """\
    import socket, aserver
    listening = socket.create_server(("127.0.0.1", 0))
    async def breaking(stream):
        listening.shutdown(socket.SHUT_RDWR)
    server = aserver.TCPServer(listening, breaking)
    """
    write(folder / "breaks.py", source)
    with command(folder, "breaks:server") as server:
        connect(server.address()).close()
        ended = server.end()
    assert ended.status == 1
    (line,) = ended.errors.splitlines()
    assert "CRITICAL aserver: TCPServer: tcp://127.0.0.1:" in line

"""The examples for programs of socketserver run as they are, in processes of their own, for clients that are not ours.

Lives here: examples/classic/ with the documentation's own clients, sockets, curl, openssl and xmlrpc.client, and
examples/porting/ with sockets and nc. Must not: what `compat` and `python -m compat` themselves promise; the other
examples, which are in `test_examples` and `test_examples_datagram`.
"""

from __future__ import annotations

import ast
import base64
import csv
import difflib
import gzip
import io
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import xmlrpc.client
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from .peers import TIMEOUT, Client, ask, connect, talk
from .programs import Ended, Program, address_in

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGINT to a process")

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSIC = EXAMPLES / "classic"
PORTING = EXAMPLES / "porting"

OURS = "from compat import socketserver\n"
THEIRS = "import socketserver\n"
#: Runs what follows as `python FILE ...` does, but with one stream for what it prints and what it logs.
BOTH_STREAMS = "import os, sys; os.dup2(1, 2); os.execv(sys.executable, [sys.executable, '-W', 'error', *sys.argv[1:]])"


def tool(name: str) -> str:
    """The path of a client program; skips where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def said_by(*command: object, folder: Path | None = None, status: int = 0) -> str:
    """Run a client program, return what it printed, fail with that if its status is another one."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,  # asserted below, with its output
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def where(line: str) -> tuple[str, int]:
    """Host and port in a line such as "listening on tcp://127.0.0.1:9999"."""
    address = address_in(line)
    assert isinstance(address, tuple)
    host, port = address
    return host, port


def hesitant(address: tuple[str, int]) -> Client:
    """Connect with so small a buffer that the kernel keeps little of what is not read."""
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        return Client(sock)
    except BaseException:
        sock.close()
        raise


def interrupt(program: Program) -> Ended:
    """Type Ctrl-C, and wait for the end."""
    program.signal(signal.SIGINT)
    return program.end()


def test_all_are_tried_and_described() -> None:
    """No file is left out of this module, nor of the README that tells of its folder."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    mine = Path(__file__).read_text(encoding="utf-8")
    for file in CLASSIC.glob("*.py"):
        assert f"(classic/{file.name})" in readme
        assert f'CLASSIC / "{file.name}"' in mine
    assert "(porting/README.md)" in readme
    readme = (PORTING / "README.md").read_text(encoding="utf-8")
    assert {file.name for file in PORTING.glob("*.py")} == STEPS.keys()
    assert [name for name in STEPS if f"({name})" not in readme] == []


# --- the documentation's own examples --------------------------------------------------------------------------------


@pytest.fixture(params=[OURS, THEIRS], ids=["compat", "socketserver"])
def version(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for an example with our import, and for the same one with the standard library's."""
    (tmp_path / "import").write_text(request.param)
    return tmp_path


def put(version: Path, file: Path) -> Path:
    """Write an example with the import of this version into its folder."""
    source = file.read_text(encoding="utf-8")
    assert source.count(OURS) == 1
    written = version / file.name
    written.write_text(source.replace(OURS, (version / "import").read_text()), encoding="utf-8")
    return written


def documented(folder: Path, server: Path, client: Path, transport: str) -> None:
    """Run a server and its client twice, and compare what they print with what the documentation prints."""
    with Program(folder, put(folder, server), environment={"PORT": "0"}) as program:
        found = re.fullmatch(rf"listening on {transport.lower()}://127\.0\.0\.1:(\d+)", program.line())
        assert found is not None
        for words in (f"hello world with {transport}", "python is nice"):
            with Program(folder, client, *words.split(), environment={"PORT": found[1]}) as asking:
                assert asking.end() == (0, f"Sent:     {words}\nReceived: {words.upper()}\n", "")
            assert program.line() == "127.0.0.1 wrote:"
            assert program.line() == f"b'{words}'"
        ended = interrupt(program)
    assert (ended.status, ended.output) == (-signal.SIGINT, "")
    assert ended.errors.endswith("\nKeyboardInterrupt\n")


def test_tcp(version: Path) -> None:
    """Server and client of the documentation print what it says, on our module and, but for the import, on Python's."""
    documented(version, CLASSIC / "tcp_server.py", CLASSIC / "tcp_client.py", "TCP")


def test_udp(version: Path) -> None:
    """The same with datagrams."""
    documented(version, CLASSIC / "udp_server.py", CLASSIC / "udp_client.py", "UDP")


def test_threads(version: Path) -> None:
    """The documentation's threads say which they are, to the letter of Python's, and end with the program."""
    with Program(version, put(version, CLASSIC / "threads.py")) as program:
        expected = "Server loop running in thread: Thread-1 (serve_forever)\n" + "".join(
            f"Received: Thread-{number + 1} (process_request_thread): Hello World {number}\n" for number in (1, 2, 3)
        )
        assert program.end() == (0, expected, "")


# --- rpc.py, without a line of ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how, module", [(["-m", "compat"], "compat.socketserver"), ([], "socketserver")])
def test_rpc(tmp_path: Path, how: list[str], module: str) -> None:
    """`python -m compat` puts ours under xmlrpc.server, which answers xmlrpc.client as ever, several at a time."""
    with Program(tmp_path, *how, CLASSIC / "rpc.py", 0) as program, ExitStack() as stack:
        assert program.line() == f"ThreadingMixIn is {module}'s"
        url = "http://{}:{}".format(*where(program.wait_for("listening on")))
        proxies = [stack.enter_context(xmlrpc.client.ServerProxy(url)) for _ in range(5)]
        assert [proxy.primes(12) for proxy in proxies] == [[2, 3, 5, 7, 11]] * 5
        assert "primes" in str(proxies[0].system.listMethods())
        for most in (99_999, 100_000):
            assert len(str(proxies[0].primes(most))) > 9592
        with pytest.raises(xmlrpc.client.Fault, match="the bound is 100001; at most 100000"):
            proxies[0].primes(100_001)
        if how:  # Thread.start() of the standard library may swallow a Ctrl-C that comes meanwhile; ours does not
            assert interrupt(program) == (0, "bye\n", "")


def test_http_server(tmp_path: Path) -> None:
    """`python -m compat -m http.server` serves the folder that it is started in to curl, as the README says."""
    (tmp_path / "hello.txt").write_text("hello\n")
    with Program(tmp_path, "-u", "-m", "compat", "-m", "http.server", 0, "--bind", "127.0.0.1") as program:
        found = re.search(r"\(http://127\.0\.0\.1:\d+/\)", program.line())
        assert found is not None
        url = found[0].strip("()")
        assert said_by(tool("curl"), "-sS", "--noproxy", "*", f"{url}hello.txt") == "hello\n"
        assert "hello.txt" in said_by(tool("curl"), "-sS", "--noproxy", "*", url)
        assert interrupt(program).status == 0


# --- chat_threads.py -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Where chat_threads.py listens, for all tests of this module that leave the room empty."""
    with Program(tmp_path_factory.mktemp("chat"), CLASSIC / "chat_threads.py", 0) as program:
        yield where(program.wait_for("listening on"))
        assert interrupt(program) == (0, "the room closes\n", "")


@contextmanager
def member(chat: tuple[str, int], name: str) -> Iterator[Client]:
    """Be in the room; at the end say goodbye, if nothing has gone wrong, so that the next test finds it empty."""
    with connect(chat) as client:
        assert client.read_until() == b"Your name?\n"
        assert client.ask(f"{name}\n".encode()).startswith(f"* welcome, {name};".encode())
        yield client
        client.end()
        assert client.read_until_eof().endswith(b"* goodbye\n")


def test_chat_conversation(chat: tuple[str, int]) -> None:
    """Members hear who comes, what the others say and who goes; the speaker does not hear himself."""
    with member(chat, "ann") as ann:
        with member(chat, "bob") as bob, connect(chat) as eve:
            assert ann.read_until() == b"* bob has come\n"
            assert eve.ask(b"eve\n", b"bob\n") == b"Your name?\n* welcome, eve; here are: ann, bob\n"
            assert (ann.read_until(), bob.read_until()) == (b"* eve has come\n", b"* eve has come\n")
            ann.send(b"hello\r\n\r\n")
            assert (bob.read_until(), eve.read_until()) == (b"<ann> hello\n", b"<ann> hello\n")
            eve.reset()
            assert (ann.read_until(), bob.read_until()) == (b"* eve has left\n", b"* eve has left\n")
        assert ann.read_until() == b"* bob has left\n"


def test_chat_with_nc(chat: tuple[str, int]) -> None:
    """nc is a member like any other: what is typed there is heard, what is said is shown."""
    with member(chat, "ann") as ann:
        command = [tool("nc"), *map(str, chat)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nc:
            try:
                assert nc.stdin is not None
                assert nc.stdout is not None
                assert nc.stdout.readline() == b"Your name?\n"
                nc.stdin.write(b"bob\nhello\n")
                nc.stdin.flush()
                assert nc.stdout.readline() == b"* welcome, bob; here are: ann\n"
                assert ann.read_until(b"<bob> hello\n") == b"* bob has come\n<bob> hello\n"
                ann.send(b"hello, bob\n")
                assert nc.stdout.readline() == b"<ann> hello, bob\n"
            finally:
                nc.kill()
        assert ann.read_until() == b"* bob has left\n"


def test_chat_names(chat: tuple[str, int]) -> None:
    """A name that somebody has, in whatever case, or that is none, is asked for again."""
    with member(chat, "ann"), connect(chat) as other:
        assert other.ask(b"ANN\n", b"taken; your name?\n") == b"Your name?\nThat name is taken; your name?\n"
        for bad in (b"\n", b"two words\n", b"x" * 21 + b"\n", b"\x1b[2J\n", b"\xff\n", b"*\n"):
            assert other.ask(bad) == b"A name has 1 to 20 letters, digits or _; your name?\n"
        other.end()
        assert other.read_until_eof() == b""


def test_chat_hostile_text(chat: tuple[str, int]) -> None:
    """What a terminal would obey (colours, bells, text direction, broken UTF-8) is not passed on."""
    with member(chat, "ann") as ann, member(chat, "bob") as bob:
        bob.send("a\tb \x1b[31mred\x07 \u202eevil\u2028<eve> hi\x00\n".encode() + b"\xff\xfd\x01\n")
        assert ann.read_until() == b"* bob has come\n"
        bad = "\N{REPLACEMENT CHARACTER}"
        assert ann.read_until().decode() == f"<bob> a b {bad}[31mred{bad} {bad}evil{bad}<eve> hi{bad}\n"
        assert ann.read_until().decode() == f"<bob> {bad * 3}\n"


def test_chat_line_limit(chat: tuple[str, int]) -> None:
    """A line of 1000 bytes with its end is passed on; with one more its sender is dropped, and all hear why."""
    with member(chat, "ann") as ann, connect(chat) as bob:
        bob.ask(b"bob\n", b"here are: ann\n")
        assert ann.read_until() == b"* bob has come\n"
        for size in (998, 999):
            bob.send(b"x" * size + b"\n")
            assert ann.read_until() == b"<bob> " + b"x" * size + b"\n"
        bob.send(b"x" * 1000)
        assert bob.read_until_eof() == b"* you are dropped: a line has more than 1000 bytes\n"
        assert ann.read_until() == b"* bob has left (dropped: a line has more than 1000 bytes)\n"


def test_chat_one_order(chat: tuple[str, int]) -> None:
    """Whoever speaks at the same time, all who listen hear the same in the same order: that is what the lock is for."""
    count = 300
    with member(chat, "ann") as ann, member(chat, "bob") as bob, ExitStack() as stack:
        speakers = [stack.enter_context(member(chat, f"speaker{number}")) for number in range(3)]
        for client in (ann, bob):
            client.read_until(b"* speaker2 has come\n")
        threads = [
            threading.Thread(target=speaker.send, args=(b"".join(b"%d\n" % number for number in range(count)),))
            for speaker in speakers
        ]
        for thread in threads:
            thread.start()
        heard = [[client.read_until() for _ in range(count * len(speakers))] for client in (ann, bob)]
        for thread in threads:
            thread.join()
        assert heard[0] == heard[1]
        for number in range(len(speakers)):
            start = b"<speaker%d> " % number
            assert [line for line in heard[0] if line.startswith(start)] == [
                start + b"%d\n" % number for number in range(count)
            ]


def test_chat_slow_reader(chat: tuple[str, int]) -> None:
    """Who never reads holds nobody up, and is dropped when 1000 lines wait for him beside what the system keeps."""
    with member(chat, "ann") as ann, member(chat, "bob") as bob, hesitant(chat) as slow:
        slow.ask(b"slow\n", b"ann, bob\n")
        assert bob.read_until() == b"* slow has come\n"
        block = b"".join(b"%0900d\n" % number for number in range(400))
        heard: list[bytes] = []
        # The kernel may keep some MB for a slow reader all the same; 18 MB of lines are more than that and its outbox.
        while len(heard) < 20_000 and not any(line.startswith(b"*") for line in heard[-401:]):
            ann.send(block)
            heard += [bob.read_until() for _ in range(400)]
        assert b"* slow has left (dropped: more than 1000 lines were not read)\n" in heard[-401:]
        assert len(heard) > 1000


def test_chat_closes(tmp_path: Path) -> None:
    """Ctrl-C ends the room and nothing else first: the members hear of it, and the program waits for their threads."""
    with Program(tmp_path, CLASSIC / "chat_threads.py", 0) as program, ExitStack() as stack:
        address = where(program.wait_for("listening on"))
        nameless = stack.enter_context(connect(address))
        assert nameless.read_until() == b"Your name?\n"
        clients = [stack.enter_context(connect(address)) for _ in range(5)]
        for number, client in enumerate(clients):
            client.ask(b"guest%d\n" % number, b"* welcome")
        assert interrupt(program) == (0, "the room closes\n", "")
        assert all(client.read_until_eof().endswith(b"\n* the room closes\n") for client in clients)
        assert nameless.read_until_eof() == b""


# --- files_tls.py ----------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """files_tls.py at work, with a certificate made as its docstring says."""

    address: tuple[str, int]
    folder: Path  # what is served
    cert: Path
    program: Program

    def curl(self, *arguments: object) -> str:
        """Fetch with curl, trusting this certificate and no other."""
        return said_by(tool("curl"), "-sS", "--noproxy", "*", "--cacert", self.cert, *arguments)

    @property
    def url(self) -> str:
        return "https://{}:{}".format(*self.address)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem, made by the line in the docstring of files_tls.py."""
    tool("openssl")
    folder = tmp_path_factory.mktemp("certificate")
    docstring = ast.get_docstring(ast.parse((CLASSIC / "files_tls.py").read_text(encoding="utf-8")))
    assert docstring is not None
    found = re.search(r"openssl req.*?\\\n.*?\n", docstring)
    assert found is not None
    said_by("sh", "-c", found[0], folder=folder)
    return folder


@pytest.fixture(scope="module")
def files(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """files_tls.py with a folder of its own, for all tests of this module; its log is looked at in the end."""
    folder, errors = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("errors")
    (folder / "hello.txt").write_text("hello\n")
    (folder / "large").write_bytes(bytes(range(256)) * 16384)  # 4 MB
    pair = ["--cert", certificate / "cert.pem", "--key", certificate / "key.pem"]
    with Program(errors, CLASSIC / "files_tls.py", folder, *pair, "--port", 0) as program:
        address = where(program.wait_for("listening on").replace("https:", "tcp:"))
        yield Files(address, folder, certificate / "cert.pem", program)
        ended = interrupt(program)
    assert (ended.status, ended.output) == (0, "bye\n")
    assert "Traceback" not in ended.errors
    assert '"GET /hello.txt HTTP/1.1" 200' in ended.errors


def test_curl(files: Files, tmp_path: Path) -> None:
    """curl fetches files, small and large, and a listing, by the address and by the name that the certificate has."""
    assert files.curl(f"{files.url}/hello.txt") == "hello\n"
    assert files.curl(f"https://localhost:{files.url.rpartition(':')[2]}/hello.txt") == "hello\n"
    assert "hello.txt" in files.curl(f"{files.url}/")
    files.curl("-o", tmp_path / "large", f"{files.url}/large")
    assert (tmp_path / "large").read_bytes() == (files.folder / "large").read_bytes()
    assert files.curl("-w", "%{http_code}", "-o", tmp_path / "none", f"{files.url}/none") == "404"
    assert files.curl("-w", "%{http_code}", "-o", tmp_path / "up", "--path-as-is", f"{files.url}/../key.pem") == "404"


def test_curl_keeps_its_connection(files: Files) -> None:
    """A second file comes through the connection of the first."""
    url = f"{files.url}/hello.txt"
    assert files.curl("-w", "%{num_connects}\n", url, url) == "hello\n1\nhello\n0\n"


def test_curl_checks_the_certificate(files: Files) -> None:
    """A client that does not trust the certificate goes away, and the next one is served."""
    said = said_by(tool("curl"), "-sS", "--noproxy", "*", f"{files.url}/hello.txt", status=60)
    assert "certificate" in said
    assert files.curl(f"{files.url}/hello.txt") == "hello\n"


def test_files_silent_clients(files: Files) -> None:
    """Clients that say nothing, nonsense, or go during the handshake stop nobody, unlike with socketserver."""
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connect(files.address))
        nonsense = stack.enter_context(connect(files.address))
        nonsense.send(b"GET / HTTP/1.0\r\n\r\n")
        gone = stack.enter_context(connect(files.address))
        gone.send(b"\x16\x03\x01")
        gone.reset()
        assert files.curl(f"{files.url}/hello.txt") == "hello\n"
        assert b"200 OK" not in nonsense.read_until_eof()


def test_files_half_a_request(files: Files) -> None:
    """A client that has shaken hands and stops in its request has a thread of its own, and the others theirs."""
    context = ssl.create_default_context(cafile=str(files.cert))
    with connect(files.address, tls=context) as slow:
        slow.send(b"GET /hello.txt HTTP/1.1\r\nHost: loc")
        assert files.curl(f"{files.url}/hello.txt") == "hello\n"
        slow.send(b"alhost\r\n\r\n")
        assert slow.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
        assert slow.read_exactly(6) == b"hello\n"


@pytest.mark.parametrize("place", [".", "below"])
def test_files_keeps_its_key(certificate: Path, tmp_path: Path, place: str) -> None:
    """It does not start with its private key among the files that it would serve."""
    (tmp_path / place).mkdir(exist_ok=True)
    key = shutil.copy(certificate / "key.pem", tmp_path / place)
    with Program(
        tmp_path, CLASSIC / "files_tls.py", ".", "--cert", certificate / "cert.pem", "--key", key, "--port", 0
    ) as program:
        ended = program.end()
    assert ended.status == 2
    assert "is in the folder, so everybody could fetch it" in ended.errors


# --- porting ---------------------------------------------------------------------------------------------------------

#: Each step with whether a client of the table costs it a thread.
STEPS = {"step1_import.py": True, "step2_async.py": False, "step3_native.py": False}


def rows(dump: bytes) -> list[list[str]]:
    """Unpack a dump."""
    return list(csv.reader(io.StringIO(gzip.decompress(dump).decode(), newline="")))


class Step(NamedTuple):
    """A step at work."""

    name: str
    program: Program
    table: tuple[str, int]
    dump: tuple[str, int]
    hint: str

    def rows(self) -> list[list[str]]:
        """Fetch and unpack the whole table."""
        return rows(talk(self.dump, b""))


@contextmanager
def running(folder: Path, file: Path) -> Iterator[Step]:
    """Run a step on free ports."""
    with Program(folder, "-c", BOTH_STREAMS, file, 0, 0) as program:
        hint = "".join(program.line() + "\n" for _ in range(4))
        table = where(program.wait_for("table: listening on"))
        yield Step(file.name, program, table, where(program.wait_for("dump: listening on")), hint)


@pytest.fixture(scope="module", params=STEPS)
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Step]:
    """Each of the three steps, for all tests of this module; each uses names of its own."""
    with running(tmp_path_factory.mktemp("step"), PORTING / request.param) as step:
        yield step


def conversation(step: Step) -> None:
    """What a client of the program hears, whichever step serves it."""
    before = step.rows()
    assert ask(step.table, b"greeting=hello\n") == b"hello\n"
    with connect(step.table) as one, connect(step.table) as two:
        assert one.ask(b"greeting\r\n") == b"hello\n"
        assert two.ask('größe = a, "b"\n'.encode()) == b' a, "b"\n'
        assert one.ask("größe \n".encode()) == b"\n"
        assert two.ask(b"nothing\n") == b"\n"
        one.send(b"gree")
        two.send(b"a=1\nb=2\na\nb\n")
        assert two.read_exactly(8) == b"1\n2\n1\n2\n"
        one.send(b"ting=bye")
        one.end()
        assert one.read_until_eof() == b"bye\n"
    rows = [["a", "1"], ["b", "2"], ["greeting", "bye"], ["größe ", ' a, "b"']]
    assert step.rows() == sorted(before + rows)


def test_every_step_is_the_same_program(step: Step) -> None:
    """Clients cannot tell which step serves them."""
    conversation(step)


@pytest.mark.parametrize("name", STEPS)
def test_ctrl_c(tmp_path: Path, name: str) -> None:
    """Ctrl-C ends each step with status 0, also while somebody is connected."""
    with running(tmp_path, PORTING / name) as step, connect(step.table) as client:
        assert client.ask(b"a=1\n") == b"1\n"
        ended = interrupt(step.program)
        assert (ended.status, "Traceback" in ended.output) == (0, False), ended.output
        assert client.read_until_eof() == b""


def test_the_program_before_the_steps(tmp_path: Path) -> None:
    """With the standard library's import the first step is the program that it was before, and does the same."""
    before = tmp_path / "before.py"
    source = (PORTING / "step1_import.py").read_text(encoding="utf-8")
    before.write_text(source.replace(OURS, THEIRS), encoding="utf-8")
    with running(tmp_path, before) as step:
        conversation(step)


def test_hint(step: Step) -> None:
    """What a step tells to type for the whole table works as it stands, with nc and gunzip."""
    tool("nc")
    tool("gunzip")
    commands = re.findall("^  (nc .*)", step.hint, re.MULTILINE)
    assert [command.split()[:3] for command in commands] == [["nc", "127.0.0.1", "0"]] * 2
    assert ask(step.table, b"typed=hello\n") == b"hello\n"
    command = commands[1].replace("127.0.0.1 0", "{} {}".format(*step.dump))
    assert "typed,hello" in said_by("sh", "-c", command).splitlines()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="threads are counted in /proc")
def test_what_a_client_costs(step: Step) -> None:
    """A client of the table costs a thread until its handler is asynchronous, and then none."""
    clients = 50
    with ExitStack() as stack:
        for number in range(clients):
            assert stack.enter_context(connect(step.table)).ask(b"x=%d\n" % number) == b"%d\n" % number
        assert ["x", str(clients - 1)] in step.rows()  # by then all that serves has been started
        status = Path(f"/proc/{step.program.process.pid}/status").read_text()
        found = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        assert found is not None
        assert clients < int(found[1]) < clients + 10 if STEPS[step.name] else int(found[1]) < 10


def fill(step: Step) -> list[list[str]]:
    """Put more into the table than the kernel keeps of a dump for a hesitant reader (3.6 MB); return all its rows."""
    expected = step.rows()
    with connect(step.table) as client:
        for number in range(150):
            value = base64.b64encode(random.Random(number).randbytes(24_000)).decode()
            assert client.ask(f"{number:03}={value}\n".encode()) == f"{value}\n".encode()
            expected.append([f"{number:03}", value])
    return sorted(expected)


def read_on(reader: Client) -> list[list[str]]:
    """Read the dump of which a hesitant reader has read one byte."""
    reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    return rows(b"\x1f" + reader.read_until_eof())


def test_dump_with_a_slow_reader(step: Step) -> None:
    """A reader of the dump that pauses holds up neither the table nor another reader, and gets all of it in the end.

    The other one goes in the middle, which is told on standard error and ends nothing else.
    """
    expected = fill(step)
    with hesitant(step.dump) as slow, hesitant(step.dump) as other:
        assert (slow.sock.recv(1), other.sock.recv(1)) == (b"\x1f", b"\x1f")
        assert ask(step.table, b"000\n").decode() == f"{dict(expected)['000']}\n"
        other.reset()
        assert read_on(slow) == expected


def test_sigterm_drains(tmp_path: Path) -> None:
    """On SIGTERM the native server ends who is silent, and with status 0 after a dump that had begun has gone out."""
    with running(tmp_path, PORTING / "step3_native.py") as step:
        expected = fill(step)
        with connect(step.table) as silent, hesitant(step.dump) as slow:
            assert silent.ask(b"none\n") == b"\n"
            assert slow.sock.recv(1) == b"\x1f"
            step.program.signal(signal.SIGTERM)
            assert silent.read_until_eof() == b""
            assert read_on(slow) == expected
        assert step.program.end().status == 0


def body(source: str) -> list[str]:
    """The lines of a program behind its docstring."""
    docstring = ast.parse(source).body[0]
    return source.splitlines()[docstring.end_lineno :]


def test_porting_diffs() -> None:
    """The differences that porting/README.md shows are those between the programs, their docstrings aside."""
    readme = (PORTING / "README.md").read_text(encoding="utf-8")
    sources = [(PORTING / name).read_text(encoding="utf-8") for name in STEPS]
    programs = [body(source) for source in (sources[0].replace(OURS, THEIRS), *sources)]
    shown = re.findall(r"^```diff\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    for before, after, text in zip(programs, programs[1:], shown, strict=False):
        lines = list(difflib.unified_diff(before, after, lineterm=""))[2:]
        assert text.splitlines() == ["@@" if line.startswith("@@") else line.rstrip() for line in lines]
    assert len(shown) == len(programs) - 1

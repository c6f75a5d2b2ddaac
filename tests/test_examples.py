"""Every example runs as it is, in a process of its own, and does what it says for clients that are not ours.

Lives here: upper.py, chat.py and keyvalue.py on each loop with nc, sockets, redis-cli, redis-benchmark and redis-py,
and the parts of keyvalue.py that can be asked without a server. Must not: what `python -m aserver` itself promises.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aserver

from .peers import TIMEOUT, Client, ask, connect, talk

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGTERM to a process")

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = {"asyncio": ["--loop", "asyncio"], "uvloop": ["--loop", "uvloop"], "trio": ["--backend", "trio"]}


# --- starting and stopping -------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """An example that serves."""

    popen: subprocess.Popen[str]
    address: tuple[str, int]
    said: str  # what it printed until it listened

    def terminate(self) -> str:
        """Send SIGTERM, wait for the end with status 0, return what it printed meanwhile."""
        self.popen.send_signal(signal.SIGTERM)
        rest, _ = self.popen.communicate(timeout=TIMEOUT)
        assert self.popen.returncode == 0, rest
        return rest


@contextmanager
def running(*arguments: str) -> Iterator[Process]:
    """Run Python with these arguments until the block is left; the block begins when the process listens."""
    # The examples import the same aserver as the tests do, be that the checkout or an installed wheel.
    environment = os.environ | {"PYTHONPATH": str(Path(aserver.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=EXAMPLES.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as popen:
        try:
            assert popen.stdout is not None
            said = ""
            for line in popen.stdout:
                said += line
                if "listening on tcp://" in line:
                    break
            else:
                pytest.fail(f"it does not listen: {said}")
            host, _, port = line.rpartition("tcp://")[2].rpartition(":")
            yield Process(popen, (host, int(port)), said)
        finally:
            popen.kill()  # does nothing to a process that has ended


def serving(loop: str, target: str) -> Any:
    """Run ``python -m aserver`` on one of the three loops with a target in examples/, on a free port."""
    return running("-m", "aserver", *LOOPS[loop], f"examples/{target}", "tcp://127.0.0.1:0")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
        )
        for name in LOOPS
    ],
)
def loop(request: pytest.FixtureRequest) -> Any:
    """Each of the three loops in turn."""
    return request.param


@pytest.fixture(scope="module")
def chat(loop: str) -> Iterator[Process]:
    """chat.py on one of the loops, for all tests of this module that leave the room empty."""
    with serving(loop, "chat.py:Member") as process:
        yield process


@pytest.fixture(scope="module")
def keyvalue(loop: str) -> Iterator[Process]:
    """keyvalue.py on one of the loops, for all tests of this module; each uses keys of its own."""
    with serving(loop, "keyvalue.py:KeyValue") as process:
        yield process


def program(name: str) -> str:
    """The path of a client program; skips where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def output(*command: str) -> str:
    """Run a client program, return what it printed, fail with that if its status is not 0."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# --- all of them -----------------------------------------------------------------------------------------------------

#: Tried in test_examples_datagram.py.
DATAGRAMS = {"dns.py", "syslog.py", "discovery.py"}
#: Each of the others with the name of its handler, and what a client says and hears first.
FIRST_WORDS = {
    "upper.py": ("Upper", b"hello\n", b"HELLO\n"),
    "chat.py": ("Member", b"", b"Your name?\n"),
    "keyvalue.py": ("KeyValue", b"PING\r\n", b"+PONG\r\n"),
}


def test_every_example_is_tested_and_described() -> None:
    """No example is left out of this module or of examples/README.md."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {file.name for file in EXAMPLES.glob("*.py")} == FIRST_WORDS.keys() | DATAGRAMS
    assert [name for name in FIRST_WORDS if name not in readme] == []


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_example_is_a_program(name: str) -> None:
    """`python examples/X.py PORT` serves there, and Ctrl-C (SIGINT) ends it with status 0 and without a traceback."""
    _, words, answer = FIRST_WORDS[name]
    with running(f"examples/{name}", "0") as process:
        assert ask(process.address, words) == answer
        process.popen.send_signal(signal.SIGINT)
        rest, _ = process.popen.communicate(timeout=TIMEOUT)
    assert process.popen.returncode == 0
    assert "Traceback" not in rest


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_sigterm_drains(loop: str, name: str) -> None:
    """SIGTERM ends an example with status 0 and its open connections in order, on each loop."""
    handler, words, answer = FIRST_WORDS[name]
    with serving(loop, f"{name}:{handler}") as process, connect(process.address) as client:
        assert client.ask(words) == answer
        assert "Traceback" not in process.terminate()
        assert client.read_until_eof() == b""


# --- upper.py --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["Upper", "upper"])
def test_upper(loop: str, handler: str) -> None:
    """Both handlers answer nc line by line, and a client that sends everything at once and then ends its side."""
    text = "".join(f"line {number}\n" for number in range(5000)) + "no end"
    with serving(loop, f"upper.py:{handler}") as process:
        assert talk(process.address, text.encode()) == text.upper().encode()
        with subprocess.Popen(
            [program("nc"), *map(str, process.address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as nc:
            try:
                assert nc.stdin is not None
                assert nc.stdout is not None
                for line in (b"hello\n", b"again\n"):
                    nc.stdin.write(line)
                    nc.stdin.flush()
                    assert nc.stdout.readline() == line.upper()
            finally:
                nc.kill()


def test_upper_hint() -> None:
    """What upper.py tells to type where there is no nc works as it stands."""
    with running("examples/upper.py", "0") as process:
        (hint,) = (line for line in process.said.splitlines() if "python3 -c" in line)
        _, option, code = shlex.split(hint)
        assert "nc 127.0.0.1 0" in process.said
        assert output(sys.executable, option, code.replace(", 0)", f", {process.address[1]})")) == "b'HELLO\\n'\n"


# --- chat.py ---------------------------------------------------------------------------------------------------------


def enter(chat: Process, name: str) -> Client:
    """Connect and introduce oneself; the caller closes the client."""
    client = connect(chat.address)
    try:
        assert client.read_until() == b"Your name?\n"
        assert client.ask(f"{name}\n".encode()).startswith(f"* welcome, {name};".encode())
    except BaseException:
        client.close()
        raise
    return client


def leave(client: Client) -> None:
    """End one's side and wait for the goodbye, so that the next test finds the room empty."""
    client.end()
    assert client.read_until_eof().endswith(b"* goodbye\n")


def test_chat_conversation(chat: Process) -> None:
    """Members hear who comes, what the others say and who goes; the speaker does not hear himself."""
    with enter(chat, "ann") as ann, enter(chat, "bob") as bob:
        assert ann.read_until() == b"* bob has come\n"
        with connect(chat.address) as eve:
            assert eve.ask(b"eve\n", b"bob\n") == b"Your name?\n* welcome, eve; here are: ann, bob\n"
            assert (ann.read_until(), bob.read_until()) == (b"* eve has come\n", b"* eve has come\n")
            ann.send(b"hello\r\n\r\n")
            assert (bob.read_until(), eve.read_until()) == (b"<ann> hello\n", b"<ann> hello\n")
            bob.send(b"hello, ann\n")
            assert (ann.read_until(), eve.read_until()) == (b"<bob> hello, ann\n", b"<bob> hello, ann\n")
            leave(eve)
        assert (ann.read_until(), bob.read_until()) == (b"* eve has left\n", b"* eve has left\n")
        leave(ann)
        assert bob.read_until() == b"* ann has left\n"
        leave(bob)


def test_chat_names(chat: Process) -> None:
    """A name that somebody has, in whatever case, or that is none, is asked for again; a reset frees it."""
    with enter(chat, "ann") as ann, connect(chat.address) as other:
        assert other.ask(b"ANN\n", b"taken; your name?\n") == b"Your name?\nThat name is taken; your name?\n"
        for bad in (b"\n", b"two words\n", b"x" * 21 + b"\n", b"\x1b[2J\n", b"\xff\n", b"*\n"):
            assert other.ask(bad) == b"A name has 1 to 20 letters, digits or _; your name?\n"
        assert other.ask("Jörg\n".encode()) == "* welcome, Jörg; here are: ann\n".encode()
        assert ann.read_until() == "* Jörg has come\n".encode()
        ann.reset()
        assert other.read_until() == b"* ann has left\n"
        with enter(chat, "Ann") as again:
            leave(again)
        leave(other)


def test_chat_hostile_text(chat: Process) -> None:
    """What a terminal would obey (colours, bells, line separators, text direction, broken UTF-8) is not passed on."""
    with enter(chat, "ann") as ann, enter(chat, "bob") as bob:
        bob.send("a\tb \x1b[31mred\x07 \x9b2J \u202eevil\u2028<eve> hi\x00\n".encode() + b"\xff\xfd\x01\n")
        assert ann.read_until() == b"* bob has come\n"
        bad = "\N{REPLACEMENT CHARACTER}"
        assert ann.read_until().decode() == f"<bob> a b {bad}[31mred{bad} {bad}2J {bad}evil{bad}<eve> hi{bad}\n"
        assert ann.read_until().decode() == f"<bob> {bad * 3}\n"
        leave(bob)
        leave(ann)


def test_chat_line_limit(chat: Process) -> None:
    """A line of 1000 bytes with its end is passed on; with one more its sender is dropped, and all hear why."""
    with enter(chat, "ann") as ann, enter(chat, "bob") as bob:
        assert ann.read_until() == b"* bob has come\n"
        for size in (998, 999):
            bob.send(b"x" * size + b"\n")
            assert ann.read_until() == b"<bob> " + b"x" * size + b"\n"
        bob.send(b"x" * 1000 + b"\n")
        assert bob.read_until() == b"* you are dropped: a line has more than 1000 bytes\n"
        assert ann.read_until() == b"* bob has left (dropped: a line has more than 1000 bytes)\n"
        leave(ann)


def test_chat_slow_reader(chat: Process) -> None:
    """Who never reads holds nobody up, is dropped some lines later, and can then read all of them and the reason."""
    with enter(chat, "ann") as ann, enter(chat, "bob") as bob, enter(chat, "slow") as slow:
        assert bob.read_until() == b"* slow has come\n"
        block = b"".join(b"%0900d\n" % number for number in range(50))
        heard: list[bytes] = []
        # The kernel keeps some MB for a slow reader; 36 MB of lines are more than that and its outbox.
        while len(heard) < 40_000 and not any(line.startswith(b"*") for line in heard[-51:]):
            ann.send(block)
            heard += [bob.read_until() for _ in range(50)]
        assert b"* slow has left (dropped: more than 1000 lines were not read)\n" in heard[-51:]
        lines = slow.read_until_eof().splitlines(keepends=True)
        assert lines.pop() == b"* you are dropped: more than 1000 lines were not read\n"
        assert lines == [line for line in heard if line.startswith(b"<")][: len(lines)]
        assert len(lines) > 1000
        ann.end()
        bob.end()
        assert ann.read_until_eof().endswith(b"* goodbye\n")
        assert bob.read_until_eof().endswith(b"* goodbye\n")


def test_chat_closes(loop: str) -> None:
    """On SIGTERM all members hear that the room closes, and nothing else, before their connections end."""
    with serving(loop, "chat.py:Member") as process, ExitStack() as clients:
        first, *others = [clients.enter_context(enter(process, f"guest{number}")) for number in range(5)]
        assert first.read_until(b"* guest4 has come\n").endswith(b"* guest4 has come\n")
        process.terminate()
        assert first.read_until_eof() == b"* the room closes\n"
        assert all(client.read_until_eof().endswith(b"has come\n* the room closes\n") for client in others[:-1])


# --- keyvalue.py and its clients -------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def redis(keyvalue: Process, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of redis-py with an empty database, in both versions of the protocol."""
    library = pytest.importorskip("redis")
    host, port = keyvalue.address
    with library.Redis(host=host, port=port, protocol=request.param, socket_timeout=TIMEOUT) as client:
        client.flushall()
        yield client


def test_redis_py(redis: Any) -> None:
    """redis-py connects, and each command does what it does in Redis."""
    assert redis.ping() is True
    assert redis.echo("\r\n") == b"\r\n"
    assert redis.get("none") is None
    assert redis.set("key", b"\x00\r\n$5\r\n") is True
    assert redis.get("key") == b"\x00\r\n$5\r\n"
    assert redis.set("key", "new", nx=True) is None
    assert redis.set("other", "new", xx=True) is None
    assert redis.set("other", "", nx=True) is True
    assert redis.get("other") == b""
    assert redis.exists("key", "key", "other", "none") == 3
    assert redis.dbsize() == 2
    assert redis.delete("key", "key", "none") == 1
    assert redis.get("key") is None
    assert redis.incr("count") == 1
    assert redis.incr("count", 41) == 42
    assert redis.get("count") == b"42"
    assert redis.flushall() is True
    assert redis.dbsize() == 0


def test_redis_py_pipeline(redis: Any) -> None:
    """Ten thousand commands in one go get their replies in order."""
    with redis.pipeline(transaction=False) as pipeline:
        for number in range(5000):
            pipeline.set(f"key{number}", number)
            pipeline.get(f"key{number}")
        replies = pipeline.execute()
    assert replies[::2] == [True] * 5000
    assert replies[1::2] == [b"%d" % number for number in range(5000)]


def test_redis_py_large_values(redis: Any) -> None:
    """A value of some MB goes in and out, also many at once in one go."""
    value = bytes(range(256)) * 16 * 1024
    assert redis.set("large", value) is True
    with redis.pipeline(transaction=False) as pipeline:
        for _ in range(5):
            pipeline.get("large")
        assert pipeline.execute() == [value] * 5


def test_redis_py_errors(redis: Any) -> None:
    """A command that cannot be done is an error to the client, who goes on with the same connection."""
    library = pytest.importorskip("redis")
    redis.set("text", "abc")
    redis.set("most", 2**63 - 1)
    for words, message in {
        ("INCR", "text"): "value is not an integer or out of range",
        ("INCR", "most"): "increment or decrement would overflow",
        ("INCRBY", "text", "1_0"): "value is not an integer or out of range",
        ("EXPIRE", "text", "soon"): "value is not an integer or out of range",
        ("SET", "text", "x", "EX", "0"): "invalid expire time in 'set' command",
        ("SET", "text", "x", "YX"): "syntax error",
        ("GET",): "wrong number of arguments for 'get' command",
        ("PING", "a", "b"): "wrong number of arguments for 'ping' command",
        ("NO\0SUCH\x1b",): r"unknown command 'NO\\x00SUCH\\x1b'",
    }.items():
        with pytest.raises(library.ResponseError, match=message):
            redis.execute_command(*words)
    assert redis.get("text") == b"abc"


def test_redis_py_expiry(redis: Any) -> None:
    """A key with a time to live says how long, loses it by SET, keeps it by INCR, and is gone afterwards."""
    redis.set("key", 1, ex=100)
    redis.incr("key")
    assert 0 < redis.ttl("key") <= 100
    redis.set("key", 1)
    assert redis.ttl("key") == -1
    assert redis.expire("key", 2**63 - 1) is True
    assert redis.ttl("key") > 2**62
    assert redis.expire("key", 0) is True
    assert redis.get("key") is None
    assert redis.ttl("key") == -2
    assert redis.expire("key", 100) is False
    redis.set("short", 1, px=1)
    while redis.get("short") is not None:  # ends within a millisecond, or pytest-timeout ends it
        pass
    assert redis.exists("short") == 0


def test_redis_cli(keyvalue: Process) -> None:
    """redis-cli sets, gets and says what is wrong, with either version of the protocol."""
    for version in ("-2", "-3"):
        cli = [program("redis-cli"), version, "-p", str(keyvalue.address[1]), "--no-raw"]
        assert output(*cli, "set", "greeting", "hello world", "ex", "60") == "OK\n"
        assert output(*cli, "get", "greeting") == '"hello world"\n'
        assert output(*cli, "del", "greeting") == "(integer) 1\n"
        assert output(*cli, "get", "greeting") == "(nil)\n"
        assert output(*cli, "config", "get", "save") == '1) "save"\n2) ""\n'
        assert "unknown command 'frob'" in output(*cli, "frob")


def test_redis_benchmark(keyvalue: Process) -> None:
    """redis-benchmark loads it with 50 pipelining connections and has nothing to complain about."""
    benchmark = [program("redis-benchmark"), "-p", str(keyvalue.address[1])]
    said = output(*benchmark, "-t", "ping,set,get", "-P", "16", "-n", "10000", "-q")
    for name in ("PING_INLINE", "PING_MBULK", "SET", "GET"):
        assert f"{name}: " in said
    assert said.count("requests per second") == 4
    assert not any(word in said.lower() for word in ("err", "warn", "fail", "could not"))


# --- keyvalue.py, byte by byte ---------------------------------------------------------------------------------------


def test_inline_commands(keyvalue: Process) -> None:
    """Commands may be lines of words, with either end of line; after QUIT nothing more is done."""
    with connect(keyvalue.address) as client:
        client.send(b"\r\n\nset inline  value\nGET inline\r\ndel inline\nQuit\nset inline again\r\n")
        assert client.read_until_eof() == b"+OK\r\n$5\r\nvalue\r\n:1\r\n+OK\r\n"
    assert ask(keyvalue.address, b"EXISTS inline\r\n") == b":0\r\n"


def test_command_in_pieces(keyvalue: Process) -> None:
    """A command may come in pieces and end with the connection: what is complete is answered, the rest is forgotten."""
    with connect(keyvalue.address) as client:
        assert client.ask(b"PING\r\n*2\r\n$4\r\nEC") == b"+PONG\r\n"
        assert client.ask(b"HO\r\n$3\r\nabc\r\n*1\r\n$", b"abc\r\n") == b"$3\r\nabc\r\n"
        client.end()
        assert client.read_until_eof() == b""


@pytest.mark.parametrize(
    "wrong, answer",
    [
        (b"*x\r\n", b"invalid length"),
        (b"*-1\r\n", b"invalid length"),
        (b"*1000000\r\n", b"invalid length"),
        (b"*1\r\nPING\r\n", b"invalid length"),
        (b"*1\r\n$x\r\n", b"invalid length"),
        (b"*1\r\n$-1\r\n", b"invalid length"),
        (b"*1\r\n$" + b"9" * 5000 + b"\r\n", b"invalid length"),
        (b"*2\r\n$3\r\nGET\r\n$4294967296\r\n", b"invalid length"),
        (b"*2\r\n$3\r\nGET\r\n$16777216\r\n", b"invalid length"),
        (b"x" * 65537, b"too big inline request"),
    ],
)
def test_protocol_errors(keyvalue: Process, wrong: bytes, answer: bytes) -> None:
    """Who does not speak the protocol gets the replies until there, is told so, and loses the connection at once."""
    with connect(keyvalue.address) as client:
        client.send(b"PING\r\n" + wrong)
        assert client.read_until_eof() == b"+PONG\r\n-ERR Protocol error: " + answer + b"\r\n"
    assert ask(keyvalue.address, b"PING\r\n") == b"+PONG\r\n"


# --- keyvalue.py, its parts ------------------------------------------------------------------------------------------


def _load_keyvalue() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples.keyvalue", EXAMPLES / "keyvalue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEYVALUE = _load_keyvalue()


def encode(request: list[bytes]) -> bytes:
    """A request as Redis clients send it."""
    return b"*%d\r\n" % len(request) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in request)


@given(st.data(), st.lists(st.lists(st.binary(max_size=20) | st.just(b"\r\n"), min_size=1, max_size=5), max_size=5))
def test_parser_at_random_cuts(data: st.DataObject, requests: list[list[bytes]]) -> None:
    """However the bytes are cut, the same requests come out, and what is missing is never more than what comes."""
    text = b"".join(map(encode, requests))
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=10), label="cuts")})
    for pieces in ([text], [text[i : i + 1] for i in range(len(text))], [text[a:b] for a, b in pairwise(cuts)]):
        parser, found, rest = KEYVALUE.Parser(aserver.Limits()), [], len(text)
        for piece in pieces:
            found += list(parser.feed(piece))
            rest -= len(piece)
            assert 0 <= parser.missing <= rest
        assert found == requests


@pytest.mark.parametrize("size", [97, 98, 99])
def test_parser_request_limit(size: int) -> None:
    """The arguments of one request together may be as large as one message may (98 bytes and a line end are 100)."""
    parser = KEYVALUE.Parser(aserver.Limits(max_exact_size=100))
    request = [b"x" * 50, b"x" * (size - 50)]
    if size > 98:
        with pytest.raises(KEYVALUE.Goodbye, match="invalid length"):
            list(parser.feed(encode(request)))
    else:
        assert list(parser.feed(encode(request) * 2)) == [request] * 2


@pytest.mark.parametrize("count", [KEYVALUE.MAX_ARGUMENTS - 1, KEYVALUE.MAX_ARGUMENTS, KEYVALUE.MAX_ARGUMENTS + 1])
def test_parser_argument_limit(count: int) -> None:
    """A request has at most `MAX_ARGUMENTS` arguments."""
    parser = KEYVALUE.Parser(aserver.Limits())
    if count > KEYVALUE.MAX_ARGUMENTS:
        with pytest.raises(KEYVALUE.Goodbye, match="invalid length"):
            list(parser.feed(encode([b""] * count)))
    else:
        assert list(parser.feed(encode([b""] * count))) == [[b""] * count]


@pytest.mark.parametrize("size", [99, 100, 101])
def test_parser_line_limit(size: int) -> None:
    """What is no complete line after as many bytes as a line may have is refused."""
    parser = KEYVALUE.Parser(aserver.Limits(max_line_size=100))
    if size > 100:
        with pytest.raises(KEYVALUE.Goodbye, match="too big inline request"):
            list(parser.feed(b"x" * size))
    else:
        assert list(parser.feed(b"x" * size)) == []


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_database_forgets_what_nobody_asks_for() -> None:
    """Keys past their time give their memory back to commands that do not name them, a few at each: no long pause."""
    clock = Clock()
    database = KEYVALUE.Database(clock)
    for number in range(100):
        database.execute([b"SET", b"dead%d" % number, b"value", b"EX", b"10"])
        database.execute([b"SET", b"live%d" % number, b"value", b"EX", b"20"])
    clock.now = 9.999
    assert database.execute([b"GET", b"dead7"]) == b"$5\r\nvalue\r\n"
    assert database.execute([b"TTL", b"dead7"]) == b":0\r\n"
    clock.now = 10.0
    assert database.execute([b"GET", b"dead7"]) == b"$-1\r\n"
    before = database.execute([b"DBSIZE"])
    assert before >= b":190\r\n"
    for _ in range(200 // KEYVALUE.SWEEP):
        database.execute([b"PING"])
    assert database.execute([b"DBSIZE"]) == b":100\r\n"
    clock.now = 20.0
    for _ in range(100 // KEYVALUE.SWEEP):
        database.execute([b"PING"])
    assert database.execute([b"DBSIZE"]) == b":0\r\n"


def test_database_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would need more memory than there may be is refused; what is deleted, or expires, makes room."""
    clock = Clock()
    database = KEYVALUE.Database(clock)
    monkeypatch.setattr(KEYVALUE, "MAX_MEMORY", 2 * KEYVALUE.ENTRY_OVERHEAD + 20)
    refused = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    assert database.execute([b"SET", b"a", b"123456789"]) == b"+OK\r\n"
    assert database.execute([b"SET", b"b", b"1234567890"]) == refused
    assert database.execute([b"SET", b"b", b"123456789"]) == b"+OK\r\n"
    assert database.execute([b"SET", b"b", b"1234567890"]) == refused
    assert database.execute([b"SET", b"b", b"12345678"]) == b"+OK\r\n"
    assert database.execute([b"SET", b"c", b""]) == refused
    assert database.execute([b"INCR", b"c"]) == refused
    assert database.execute([b"DEL", b"a"]) == b":1\r\n"
    assert database.execute([b"SET", b"c", b"123456789", b"PX", b"5"]) == b"+OK\r\n"
    clock.now = 1.0
    assert database.execute([b"SET", b"a", b"123456789"]) == b"+OK\r\n"
    assert database.execute([b"FLUSHALL"]) == b"+OK\r\n"
    assert database.execute([b"SET", b"a", b"x" * (KEYVALUE.ENTRY_OVERHEAD + 19)]) == b"+OK\r\n"

"""The datagram examples run as they are, in processes of their own, and do what they say for clients that are not ours.

Lives here: dns.py with dig and dnsperf, syslog.py with logger and SysLogHandler, discovery.py with a plain multicast
socket, each on each loop; and the parts of them that can be asked without a server. Must not: what `python -m aserver`
itself promises; the stream examples, which are in `test_examples`.
"""

from __future__ import annotations

import importlib.util
import logging
import logging.handlers
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import aserver

from .peers import TIMEOUT, datagram_client
from .programs import Program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGTERM to a process")

EXAMPLES = Path(__file__).parent.parent / "examples"
LOOPS = {"asyncio": ["--loop", "asyncio"], "uvloop": ["--loop", "uvloop"], "trio": ["--backend", "trio"]}

#: Runs what follows as `python FILE ...` does, but with one stream for what it prints and what it logs.
BOTH_STREAMS = "import os, sys; os.dup2(1, 2); os.execv(sys.executable, [sys.executable, '-W', 'error', *sys.argv[1:]])"


# --- starting, asking, stopping --------------------------------------------------------------------------------------


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


def port_in(line: str) -> int:
    """The port in a line such as "listening on udp://127.0.0.1:5300"."""
    found = re.search(r"(?:udp|tcp)://127\.0\.0\.1:(\d+)$", line)
    assert found, line
    return int(found[1])


def stop(process: Program, number: signal.Signals = signal.SIGTERM) -> str:
    """Send a signal, wait for the end with status 0 and no traceback, return what was printed meanwhile."""
    process.signal(number)
    status, output, errors = process.end()
    assert (status, "Traceback" in output + errors) == (0, False), output + errors
    return output


def load(name: str) -> ModuleType:
    """Import an example."""
    module_name = f"examples_{name}"
    spec = importlib.util.spec_from_file_location(module_name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def client(name: str) -> str:
    """The path of a client program; skips where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def said_by(*command: object, folder: Path | None = None) -> str:
    """Run a client program, return what it printed, fail with that if its status is not 0."""
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
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_all_are_described() -> None:
    """examples/README.md tells of each of the datagram examples."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in ("dns.py", "syslog.py", "discovery.py") if f"**[{name}]({name})**" not in readme] == []


# --- dns.py and its clients ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dns() -> ModuleType:
    """The module of dns.py, whose parts are asked without a server."""
    pytest.importorskip("dnslib")
    return load("dns")


@pytest.fixture(scope="module")
def dns_port(dns: ModuleType, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port where dns.py's handler answers on one of the loops, for all tests of this module."""
    arguments = ["-m", "aserver", *LOOPS[loop], f"{EXAMPLES / 'dns.py'}:serve", "udp://127.0.0.1:0"]
    with Program(tmp_path_factory.mktemp("dns"), *arguments) as process:
        yield port_in(process.wait_for("listening on"))
        stop(process)


@contextmanager
def dns_program(folder: Path, *arguments: object) -> Iterator[tuple[Program, int, int]]:
    """Run dns.py as a program, on a free port of UDP and one of TCP."""
    with Program(folder, "-c", BOTH_STREAMS, EXAMPLES / "dns.py", "udp://127.0.0.1:0", *arguments) as process:
        yield process, port_in(process.wait_for("listening on udp:")), port_in(process.wait_for("listening on tcp:"))


def dig(port: int, *words: str) -> str:
    """Ask with dig, once, heeding nobody's ~/.digrc; what it prints."""
    return said_by(client("dig"), "-r", "@127.0.0.1", "-p", port, "+tries=1", f"+time={TIMEOUT:.0f}", *words)


def status_and_flags(answer: str) -> tuple[str, set[str]]:
    """The status in a full answer of dig, and its flags."""
    found = re.search(r"status: (\w+),.*?;; flags:([a-z ]*);", answer, re.DOTALL)
    assert found, answer
    return found[1], set(found[2].split())


NAME = b"\3www\7example\4test\0"
BIG = b"\3big\7example\4test\0"


def query(name: bytes = NAME, kind: int = 1, *, flags: int = 0x0100, edns: int | None = None, ident: int = 77) -> bytes:
    """A query by the book (RFC 1035, 4.1; RFC 6891, 6.1.2), with *edns* as the size that the client takes."""
    head = struct.pack("!6H", ident, flags, 1, 0, 0, edns is not None) + name + struct.pack("!2H", kind, 1)
    return head if edns is None else head + struct.pack("!BHHIH", 0, 41, edns, 0, 0)


def rcode(reply: bytes) -> int:
    """How a reply ended: 0 is well, 1 FORMERR, 3 NXDOMAIN, 4 NOTIMP, 5 REFUSED."""
    return reply[3] & 0x0F


def truncated(reply: bytes) -> bool:
    """Whether a reply says that it is not complete, and then without one record of the answer."""
    tc = bool(reply[2] & 0x02)
    assert not tc or reply[6:8] == b"\0\0"
    return tc


def test_dig(dns_port: int) -> None:
    """dig gets every kind of record that the zone has, whatever the case of the name."""
    assert dig(dns_port, "+short", "www.example.test") == "192.0.2.1\n192.0.2.2\n"
    assert dig(dns_port, "+short", "wWw.ExAmPlE.tEsT", "AAAA") == "2001:db8::1\n"
    assert dig(dns_port, "+short", "-x", "192.0.2.1") == "www.example.test.\n"
    assert dig(dns_port, "+short", "example.test", "TXT") == '"an example"\n'
    assert dig(dns_port, "+short", "example.test", "MX") == "10 mail.example.test.\n"


def test_dig_failures(dns_port: int) -> None:
    """A name that is not there, a type that it has not, a class, an operation and an EDNS version get their status."""
    assert status_and_flags(dig(dns_port, "none.example.test")) == ("NXDOMAIN", {"qr", "aa", "rd"})
    nothing = dig(dns_port, "www.example.test", "TXT")
    assert status_and_flags(nothing) == ("NOERROR", {"qr", "aa", "rd"})
    assert "ANSWER: 0" in nothing
    assert status_and_flags(dig(dns_port, "+norec", "www.example.test", "CH", "A"))[0] == "REFUSED"
    assert status_and_flags(dig(dns_port, "+opcode=notify", "www.example.test"))[0] == "NOTIMP"
    assert status_and_flags(dig(dns_port, "+edns=1", "+noednsneg", "www.example.test"))[0] == "BADVERS"
    assert "EDNS: version: 0" in dig(dns_port, "+edns=1", "www.example.test")


def test_dig_large_answer(dns_port: int) -> None:
    """1.1 KB come whole to a client that takes as much, and are truncated for one that takes 512 or does not say."""
    assert dig(dns_port, "+short", "+ignore", "+bufsize=1232", "big.example.test", "TXT").count("line ") == 10
    for words in (["+noedns"], ["+bufsize=512"]):
        small = dig(dns_port, "+ignore", *words, "big.example.test", "TXT")
        assert status_and_flags(small) == ("NOERROR", {"qr", "aa", "rd", "tc"})
        assert "ANSWER: 0" in small


def test_dnsperf(dns_port: int, tmp_path: Path) -> None:
    """dnsperf keeps a hundred questions under way, and gets an answer to each of a thousand, the right one."""
    data = tmp_path / "queries"
    data.write_text("www.example.test A\nwww.example.test AAAA\nexample.test MX\nnone.example.test A\n")
    where = ["-s", "127.0.0.1", "-p", dns_port, "-d", data]
    said = said_by(client("dnsperf"), *where, "-n", 250, "-c", 10, "-q", 100, "-t", TIMEOUT / 2)
    assert re.search(r"Queries sent: +1000\n", said), said
    assert re.search(r"Queries completed: +1000 \(", said), said
    assert re.search(r"Queries lost: +0 \(", said), said
    assert re.search(r"Response codes: +NOERROR 750 \(75\.00%\), NXDOMAIN 250 \(25\.00%\)\n", said), said


def test_dns_ignores_what_is_no_query(dns_port: int) -> None:
    """Noise and replies get nothing back, a broken query FORMERR; the next good query is answered as ever."""
    with datagram_client(("127.0.0.1", dns_port)) as peer:
        for noise in (b"", b"\0" * 11, query(flags=0x8180), b"\xff" * 2000):
            peer.send(noise)
        peer.send(query(ident=1)[:-1])
        assert peer.recv() == b"\x00\x01\x81\x01" + bytes(8)
        peer.send(query(ident=2))
        assert peer.recv().startswith(b"\x00\x02\x85\x00\x00\x01\x00\x02")


def test_dns_program(dns: ModuleType, tmp_path: Path) -> None:
    """By UDP an answer has three times the bytes of its question at most; what is more is truncated, whole by TCP."""
    with dns_program(tmp_path) as (process, udp, tcp):
        assert dig(udp, "+short", "www.example.test") == "192.0.2.1\n192.0.2.2\n"
        large = dig(udp, "+ignore", "+bufsize=1232", "big.example.test", "TXT")
        assert status_and_flags(large) == ("NOERROR", {"qr", "aa", "rd", "tc"})
        assert dig(tcp, "+tcp", "+short", "big.example.test", "TXT").count("line ") == 10
        assert dig(tcp, "+tcp", "+keepopen", "+short", "www.example.test", "example.test", "MX").count("\n") == 3
        stop(process, signal.SIGINT)


def test_dns_program_hosts(dns: ModuleType, tmp_path: Path) -> None:
    """`--hosts FILE` answers from that file, in both directions, and says what to type."""
    hosts = tmp_path / "hosts"
    hosts.write_text("# mine\n192.0.2.7\tbox box.lan  # two names\n\n2001:db8::7 box\nfe80::1%lo0 box\nnonsense\n")
    with Program(tmp_path, "-c", BOTH_STREAMS, EXAMPLES / "dns.py", "udp://127.0.0.1:0", "--hosts", hosts) as process:
        assert process.line() == "skipped: 'fe80::1%lo0 box'"
        assert process.line() == "skipped: 'nonsense'"
        assert process.line() == "Type in a second terminal: dig @127.0.0.1 -p 0 box."
        port = port_in(process.wait_for("listening on udp:"))
        assert dig(port, "+short", "box.lan") == "192.0.2.7\n"
        assert dig(port, "+short", "BOX", "AAAA") == "2001:db8::7\n"
        assert dig(port, "+short", "-x", "192.0.2.7") == "box.\n"
        assert dig(port, "+short", "-x", "2001:db8::7") == "box.\n"
        assert status_and_flags(dig(port, "www.example.test"))[0] == "NXDOMAIN"
        stop(process)


def test_dns_program_without_dnslib(tmp_path: Path) -> None:
    """Without dnslib it says what to install, and ends with status 1."""
    (tmp_path / "dnslib.py").write_text("raise ModuleNotFoundError('dnslib')\n")  # found before the real one
    path = os.pathsep.join(map(str, [tmp_path, Path(aserver.__file__).parent.parent]))
    with Program(tmp_path, EXAMPLES / "dns.py", environment={"PYTHONPATH": path}) as process:
        assert process.end() == (1, "", "This example needs dnslib; install it with: pip install dnslib\n")


# --- dns.py, its parts -----------------------------------------------------------------------------------------------


def test_answer_limit(dns: ModuleType) -> None:
    """A reply of exactly the limit is complete, one byte more is truncated; the size may be the client's, by EDNS."""
    size = len(dns.answer(query(BIG, 16, edns=512), 65535))
    for limit in (size - 1, size, size + 1):
        for reply in (dns.answer(query(BIG, 16, edns=512), limit), dns.answer(query(BIG, 16, edns=limit))):
            assert truncated(reply) == (limit < size)
            assert len(reply) <= limit


@pytest.mark.parametrize("edns, most", [(None, 512), (0, 512), (511, 512), (513, 513), (1233, 1232), (65535, 1232)])
def test_answer_size(dns: ModuleType, monkeypatch: pytest.MonkeyPatch, edns: int | None, most: int) -> None:
    """A client that says nothing, or less than 512, takes 512 bytes; nobody gets more than 1232, whatever he says."""
    filler = dns.DNSLabel("filler.test")
    for extra in (0, 1):
        empty = len(dns.answer(query(b"\6filler\4test\0", 16, edns=edns)))
        rest = most - empty - 12 + extra  # 12: a compressed name, type, class, time to live and length
        pieces = [b"x" * min(255, rest - at - 1) for at in range(0, rest, 256)]  # each with its length in front
        monkeypatch.setitem(dns.ZONE, filler, [dns.TXT(pieces)])
        reply = dns.answer(query(b"\6filler\4test\0", 16, edns=edns))
        assert truncated(reply) == bool(extra)
        assert extra or len(reply) == most
        monkeypatch.delitem(dns.ZONE, filler)


@pytest.mark.parametrize("size", [511, 512, 513])
def test_answer_query_limit(dns: ModuleType, size: int) -> None:
    """A query has 512 bytes at most: padded by EDNS to that it is answered, above it is malformed."""
    padding = size - len(query(edns=1232)) - 4
    padded = query(edns=1232)[:-2] + struct.pack("!3H", padding + 4, 12, padding) + bytes(padding)
    assert len(padded) == size
    assert rcode(dns.answer(padded)) == (size > 512)


def test_answer_echoes(dns: ModuleType) -> None:
    """A reply has the number, the question in the client's spelling, and whether he wanted recursion."""
    name = b"\3wWw\7eXaMpLe\4TeSt\0"
    for flags, head in ((0x0100, b"\x85\x00"), (0x0000, b"\x84\x00"), (0x0170, b"\x85\x00")):
        reply = dns.answer(query(name, 1, flags=flags, ident=513))
        assert reply.startswith(b"\x02\x01" + head + b"\0\1\0\2\0\0\0\0" + name + b"\0\1\0\1")


def test_answer_any(dns: ModuleType) -> None:
    """ANY is every record of the name."""
    assert dns.answer(query(kind=255))[6:8] == b"\0\3"


@pytest.mark.parametrize(
    "broken",
    [
        query()[:-1],
        query()[:4] + bytes(8),  # no question
        query()[:4] + b"\0\2" + query()[6:] + NAME + b"\0\1\0\1",  # two
        query(b"\x40" + b"x" * 64 + b"\0"),  # a label of 64 bytes
        query((b"\x3f" + b"x" * 63) * 5 + b"\0"),  # a name of 320
        query(b"\xc0\x0c"),  # a pointer to itself
        query(b"\xc0\xff"),  # and to nowhere
        query(b"".join(b"\xc0" + bytes([12 + 2 * max(0, n - 1)]) for n in range(120))),  # a chain of them
        query(b"\1\xff\0"),
        query(edns=1232)[:-1] + b"\5",  # options that are not there
    ],
)
def test_answer_malformed(dns: ModuleType, broken: bytes) -> None:
    """What is no query, but might have been meant as one, gets FORMERR: the header and nothing else."""
    assert dns.answer(broken) == b"\0\x4d\x81\1" + bytes(8)


@given(st.data())
def test_answer_anything(dns: ModuleType, data: st.DataObject) -> None:
    """Whatever comes, `answer` raises nothing; a reply is one, to this query, small enough, and is not answered."""
    packet = data.draw(st.binary(max_size=80) | st.sampled_from([query(), query(BIG, 16, edns=1232)]), label="packet")
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=5), label="changes"
    ):
        packet = packet[:at] + bytes([byte]) + packet[at + 1 :] if at < len(packet) else packet
    reply = dns.answer(packet)
    if len(packet) < 12 or packet[2] & 0x80:
        assert reply == b""
    else:
        assert reply[:2] == packet[:2]
        assert reply[2] & 0x80
        assert len(reply) <= 1232
        assert dns.answer(reply) == b""
        assert len(dns.answer(packet, 0)) <= 12 + len(packet)


def test_read_hosts(dns: ModuleType) -> None:
    """A hosts file: comments, several names, one name with several addresses; an address is called as it was first."""
    zone = dns.read_hosts("127.0.0.1 localhost box\n::1 localhost # six\n192.0.2.1 box\n192.0.2.1 other\n# end\n")
    assert {str(name): [str(record) for record in records] for name, records in zone.items()} == {
        "localhost.": ["127.0.0.1", "::1"],
        "box.": ["127.0.0.1", "192.0.2.1"],
        "other.": ["192.0.2.1"],
        "1.0.0.127.in-addr.arpa.": ["localhost."],
        "1.2.0.192.in-addr.arpa.": ["box."],
        f"1.{'0.' * 31}ip6.arpa.": ["localhost."],
    }


# --- syslog.py and its clients ---------------------------------------------------------------------------------------

SYSLOG = load("syslog")


class Receiver:
    """A syslog.py that runs: where it listens, and what it prints."""

    def __init__(self, process: Program, folder: Path) -> None:
        self.process = process
        self.port = port_in(process.wait_for("listening on udp:"))
        assert process.line() == "listening on unixgram:./log"
        self.path = folder / "log"

    def logger(self, *words: str) -> str:
        """Send a message with logger and return the line that it became."""
        said_by(client("logger"), "-d", *words, folder=self.path.parent)
        return self.process.line()


@pytest.fixture(scope="module")
def receiver(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """syslog.py on one of the loops, on UDP and on a Unix socket, for all tests of this module."""
    folder = tmp_path_factory.mktemp("syslog")
    handler = f"{EXAMPLES / 'syslog.py'}:serve"
    arguments = ["-m", "aserver", *LOOPS[loop], handler, "udp://127.0.0.1:0", "unixgram:./log?mode=666"]
    with Program(folder, *arguments) as process:
        receiver = Receiver(process, folder)
        yield receiver
        assert stop(process) == ""  # a line for each message, and no more
        assert not receiver.path.exists()


OLD_TIME = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
NEW_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d)"


def test_logger_udp(receiver: Receiver) -> None:
    """logger sends by UDP in the new format, by default or when asked, and in the old one."""
    remote = ["-n", "127.0.0.1", "-P", str(receiver.port), "-t", "backup"]
    plain = receiver.logger(*remote, "disk is full")
    assert re.fullmatch(rf"127\.0\.0\.1 user\.notice {NEW_TIME} \S+ backup: \[timeQuality .*\] disk is full", plain)
    words = ["--id=42", "-p", "local7.debug", "--rfc5424=notime,notq,nohost", "--msgid", "ID47"]
    assert receiver.logger(*remote, *words, "again") == "127.0.0.1 local7.debug backup[42]: ID47 again"
    structured = ["--rfc5424=notq,nohost", "--sd-id", "zoo@123", "--sd-param", 'tiger="hungry"', "--sd-param", 'n="2"']
    shown = receiver.logger(*remote, *structured, "élan")
    assert re.fullmatch(rf'127\.0\.0\.1 user\.notice {NEW_TIME} backup: \[zoo@123 tiger="hungry" n="2"\] élan', shown)
    old = receiver.logger(*remote, "--rfc3164", "-p", "auth.crit", "--id=7", "failed")
    assert re.fullmatch(rf"127\.0\.0\.1 auth\.crit {OLD_TIME} \S+ backup\[7\]: failed", old)


def test_logger_unix(receiver: Receiver) -> None:
    """logger writes to the Unix socket in its local format, which has no host, and in the new one."""
    local = ["-u", "./log", "-t", "backup"]
    assert re.fullmatch(rf"local user\.notice {OLD_TIME} backup: disk is full", receiver.logger(*local, "disk is full"))
    old = receiver.logger(*local, "--id=7", "-p", "daemon.warning", "a: b")
    assert re.fullmatch(rf"local daemon\.warning {OLD_TIME} backup\[7\]: a: b", old)
    new = receiver.logger(*local, "--rfc5424=notq,nohost", "disk is full")
    assert re.fullmatch(rf"local user\.notice {NEW_TIME} backup: disk is full", new)


def test_syslog_handler(receiver: Receiver) -> None:
    """Python's own SysLogHandler logs by UDP and into the Unix socket, with a name or without."""
    for address, sender in ((("127.0.0.1", receiver.port), "127.0.0.1"), (str(receiver.path), "local")):
        handler = logging.handlers.SysLogHandler(address, facility="local3")
        try:
            handler.setFormatter(logging.Formatter("%(message)s"))
            record = logging.LogRecord("any", logging.ERROR, __file__, 1, "said %s", ("hello",), None)
            handler.emit(record)
            assert receiver.process.line() == f"{sender} local3.err said hello"
            handler.ident = "app[12]: "
            handler.emit(record)
            assert receiver.process.line() == f"{sender} local3.err app[12]: said hello"
        finally:
            handler.close()


def test_syslog_hostile_packets(receiver: Receiver) -> None:
    """Whatever comes is one line that a terminal can only show, and is not answered: neither noise nor 60 KB."""
    shown = {
        b"": "user.notice",
        b"<191>a\nb\x1b[31m\x07\0c\0\n": r"local7.debug a\nb\x1b[31m\x07\x00c",
        b"<192>x": "user.notice <192>x",
        "\u202egnp.exe \u2028 é".encode(): r"user.notice \u202egnp.exe \u2028 é",
        b"<0>\xff\xfe": r"kern.emerg \xff\xfe",
        b"<13>" + b"x" * 60_000: "user.notice " + "x" * 60_000,
    }
    with datagram_client(("127.0.0.1", receiver.port)) as udp, datagram_client(receiver.path) as unix:
        for packet, line in shown.items():
            for peer, sender in ((udp, "127.0.0.1"), (unix, "local")):
                peer.send(packet)
                assert receiver.process.line() == f"{sender} {line}"
        for peer in (udp, unix):
            peer.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv()


def test_syslog_program(tmp_path: Path) -> None:
    """`python examples/syslog.py ENDPOINT...` receives on all of them, and Ctrl-C ends it with status 0."""
    file, addresses = EXAMPLES / "syslog.py", ["udp://127.0.0.1:0", "unixgram:./log"]
    with Program(tmp_path, "-c", BOTH_STREAMS, file, *addresses) as process:
        listening = process.wait_for("listening on")
        assert listening.endswith(", unixgram:./log")
        with datagram_client(("127.0.0.1", port_in(listening.partition(", ")[0]))) as peer:
            peer.send(b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed")
        assert process.line() == "127.0.0.1 auth.crit Oct 11 22:14:15 mymachine su: 'su root' failed"
        stop(process, signal.SIGINT)


# --- syslog.py, its parser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet, expected",
    [
        # the examples of RFC 3164, section 5.4
        (
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
            {"facility": "auth", "severity": "crit", "timestamp": "Oct 11 22:14:15", "host": "mymachine", "app": "su"}
            | {"text": "'su root' failed for lonvick on /dev/pts/8"},
        ),
        ("Use the BFG!", {"text": "Use the BFG!"}),
        (
            "<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!",  # no tag, so that the host is told by nothing
            {"timestamp": "Feb  5 17:32:18", "text": "10.0.0.99 Use the BFG!"},
        ),
        # what programs send in the old format
        (
            "<13>Oct  1 22:14:15 cron[12]: run",
            {"timestamp": "Oct  1 22:14:15", "app": "cron", "pid": "12", "text": "run"},
        ),
        (
            "<13>2026-01-31T12:00:00+01:00 fe80::1 app: x: y",
            {"timestamp": "2026-01-31T12:00:00+01:00", "host": "fe80::1", "app": "app", "text": "x: y"},
        ),
        ("<13>app:", {"app": "app"}),
        ("<13>http://example.test/: x", {"text": "http://example.test/: x"}),
        # those of RFC 5424, section 6.5
        (
            "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed",
            {
                "facility": "auth",
                "severity": "crit",
                "timestamp": "2003-10-11T22:14:15.003Z",
                "app": "su",
                "msgid": "ID47",
            }
            | {"host": "mymachine.example.com", "text": "'su root' failed"},
        ),
        (
            "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
            {
                "facility": "local4",
                "timestamp": "2003-08-24T05:14:15.000003-07:00",
                "host": "192.0.2.1",
                "app": "myproc",
            }
            | {"pid": "8710", "text": "%% It's time to make the do-nuts."},
        ),
        (
            '<165>1 - - evntslog - - [a@1 iut="3" b="x\\" \\] \\\\ \\n"][b@1 ip="1" ip="2"][c] text',
            {"facility": "local4", "app": "evntslog", "text": "text"}
            | {"data": {"a@1": [("iut", "3"), ("b", 'x" ] \\ \\n')], "b@1": [("ip", "1"), ("ip", "2")], "c": []}},
        ),
        ("<13>1 - - - - - -", {}),
        ("<13>1 - - - - - - -", {"text": "-"}),
        ("<13>1 - - - - - -  two", {"text": " two"}),
        # what is neither is all text
        ("<13>1 - - - - -", {"text": "1 - - - - -"}),
        ('<13>1 - - - - - [a b="c] d', {"text": '1 - - - - - [a b="c] d'}),
        ("<13>2 - - - - - - x", {"text": "2 - - - - - - x"}),
    ],
)
def test_parse(packet: str, expected: dict[str, Any]) -> None:
    """Messages of both formats, as the RFCs show them and as programs send them, are taken apart."""
    assert SYSLOG.parse(packet.encode()) == SYSLOG.Message(**{"facility": "user", "severity": "notice"} | expected)


@pytest.mark.parametrize(
    "packet, facility, severity, text",
    [
        (b"<0>x", "kern", "emerg", "x"),
        (b"<7>x", "kern", "debug", "x"),
        (b"<8>x", "user", "emerg", "x"),
        (b"<191>x", "local7", "debug", "x"),
        (b"<192>x", "user", "notice", "<192>x"),
        (b"<00>x", "user", "notice", "<00>x"),
        (b"<-1>x", "user", "notice", "<-1>x"),
        (b"<1000>x", "user", "notice", "<1000>x"),
        (b"<>x", "user", "notice", "<>x"),
        ("<\N{ARABIC-INDIC DIGIT ONE}>x".encode(), "user", "notice", "<\N{ARABIC-INDIC DIGIT ONE}>x"),
    ],
)
def test_parse_priority(packet: bytes, facility: str, severity: str, text: str) -> None:
    """The priority goes from 0 to 191; what is none is text, of user.notice."""
    assert SYSLOG.parse(packet) == SYSLOG.Message(facility=facility, severity=severity, text=text)


PIECES = st.sampled_from(
    [
        "<13>",
        "1 ",
        "- ",
        "-",
        " ",
        ":",
        "[",
        "]",
        "[a",
        ' b="',
        '"',
        "\\",
        "\\]",
        "Oct 11 22:14:15 ",
        "su",
        "\0",
        "\ufeff",
    ]
).map(str.encode)


@given(st.lists(PIECES | st.binary(max_size=8), max_size=30).map(b"".join))
@example(b"<13>1 - - - - - " + b'[a b="' + b"x" * 60_000)
@example(b"<13>1 - - - - - " + b'[a b="c"]' * 6_000 + b"x")
@example(b"<13>1 - - - - - [a" + b' b="c"' * 10_000)
@example(b"<13>Oct 11 22:14:15 " + b"a:" * 30_000)
def test_parse_anything(packet: bytes) -> None:
    """Whatever comes is a message with a facility and a severity, in good time, and one line of printable text."""
    message = SYSLOG.parse(packet)
    assert message.facility in SYSLOG.FACILITIES
    assert message.severity in SYSLOG.SEVERITIES
    assert SYSLOG.line(message, "local").isprintable()


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).filter(lambda x: x != "-")
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='=]"'), min_size=1, max_size=32)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(
    st.lists(WORDS | st.just(""), min_size=5, max_size=5),
    st.dictionaries(KEYS, st.lists(st.tuples(KEYS, VALUES), max_size=3), max_size=3),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=20),
)
def test_parse_what_was_said(words: list[str], data: dict[str, list[tuple[str, str]]], text: str) -> None:
    """What somebody writes by the rules of RFC 5424 is what `parse` reads, whatever the values have in them."""

    def escaped(value: str) -> str:
        return re.sub(r'(["\\\]])', r"\\\1", value)

    elements = ["".join([name, *(f' {key}="{escaped(value)}"' for key, value in each)]) for name, each in data.items()]
    structured = "".join(f"[{each}]" for each in elements) or "-"
    packet = " ".join(["<165>1", *(word or "-" for word in words), structured, text])
    fields = dict(zip(["timestamp", "host", "app", "pid", "msgid"], words, strict=True))
    expected = SYSLOG.Message(facility="local4", severity="notice", data=data, text=text, **fields)
    assert SYSLOG.parse(packet.encode()) == expected


# --- discovery.py ----------------------------------------------------------------------------------------------------

DISCOVERY = load("discovery")


class Group:
    """The group as plain sockets see it: one that has joined it, on a port of its own, and one that asks."""

    def __init__(self) -> None:
        host, _, interface = DISCOVERY.GROUP.partition("%")
        index = socket.if_nametoindex(interface)
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.bind(("", 0))
        self.address = (host, self.listener.getsockname()[1])
        membership = struct.pack("@4s4si", socket.inet_aton(host), bytes(4), index)
        self.listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self.asker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, membership)
        for sock in (self.listener, self.asker):
            sock.settimeout(TIMEOUT)

    def close(self) -> None:
        """Close both."""
        self.listener.close()
        self.asker.close()

    def ask(self, question: bytes) -> None:
        """Say something to the group; its own listener hears it first, so that nothing is heard later."""
        self.asker.sendto(question, self.address)
        assert self.heard() == question

    def heard(self) -> bytes:
        """What was said to the group next."""
        return self.listener.recv(65536)

    def heard_already(self) -> bytes | None:
        """The same of a listener that does not block; None if it was nothing."""
        try:
            return self.heard()
        except BlockingIOError:
            return None

    def answers(self, count: int) -> dict[bytes, str]:
        """So many answers to the asker, and the addresses that they came from."""
        received = [self.asker.recvfrom(65536) for _ in range(count)]
        return {data: address[0] for data, address in received}


@pytest.fixture
def group() -> Iterator[Group]:
    """A group that nobody else has."""
    group = Group()
    yield group
    group.close()


def discovery(folder: Path, group: Group, loop: str, *words: object) -> Program:
    """Run discovery.py in that group."""
    return Program(folder, EXAMPLES / "discovery.py", *words, "--group-port", group.address[1], "--loop", loop)


@contextmanager
def service(folder: Path, group: Group, loop: str, name: str, port: int) -> Iterator[Program]:
    """Serve a service; the block begins when it has said so to the group."""
    with discovery(folder, group, loop, "serve", name, port) as process:
        assert process.line() == f"{name}, port {port}, is announced to {DISCOVERY.GROUP}"
        assert group.heard() == f"HERE {port} {name}".encode()
        yield process


def test_discovery(loop: str, group: Group, tmp_path: Path) -> None:
    """Services answer the question and nothing else; `list` has them all, `watch` sees them come and go."""
    with ExitStack() as running:

        def serve(name: str, port: int) -> Program:
            return running.enter_context(service(tmp_path, group, loop, name, port))

        printer, scanner = serve("printer", 9100), serve("scanner", 9200)
        question = DISCOVERY.QUESTION
        for nothing in (b"", question.strip(), question[:-1], question + b" ", b"HERE 1 somebody", b"\xff" * 1000):
            group.ask(nothing)
        group.ask(question)
        answers = group.answers(2)
        assert answers.keys() == {b"HERE 9100 printer", b"HERE 9200 scanner"}
        (host,) = set(answers.values())
        listing = running.enter_context(discovery(tmp_path, group, loop, "list"))
        watch = running.enter_context(discovery(tmp_path, group, loop, "watch"))
        assert [group.heard() for _ in range(2)] == [question] * 2
        assert listing.end() == (0, f"printer {host}:9100\nscanner {host}:9200\n", "")
        assert [watch.line() for _ in range(2)] == [f"+ printer {host}:9100", f"+ scanner {host}:9200"]

        copier = serve("copier", 9300)
        assert watch.line() == f"+ copier {host}:9300"
        for process, name, number in (
            (printer, "9100 printer", signal.SIGINT),
            (copier, "9300 copier", signal.SIGTERM),
        ):
            assert stop(process, number) == ""
            assert group.heard() == f"GONE {name}".encode()
            port, kind = name.split()
            assert watch.line() == f"- {kind} {host}:{port}"
        group.ask(question)
        assert group.answers(1).keys() == {b"HERE 9200 scanner"}
        assert stop(watch) == ""
        assert stop(scanner) == ""
    group.asker.setblocking(False)
    with pytest.raises(BlockingIOError):
        group.asker.recv(65536)


def test_discovery_period(loop: str, group: Group, tmp_path: Path) -> None:
    """A service announces itself again and again, for who has missed it, and says goodbye last."""
    with discovery(tmp_path, group, loop, "serve", "printer", 9100, "--period", 0.01) as process:
        assert [group.heard() for _ in range(10)] == [b"HERE 9100 printer"] * 10
        stop(process)
    group.listener.setblocking(False)
    *before, last = iter(group.heard_already, None)  # all of it was said before the process ended
    assert (set(before) <= {b"HERE 9100 printer"}, last) == (True, b"GONE 9100 printer")


def test_discovery_list(group: Group, tmp_path: Path) -> None:
    """`list` shows whoever answers by the rules, once; what else it is sent it leaves out; it may be that nobody is."""
    with ExitStack() as running:
        lists = [running.enter_context(discovery(tmp_path, group, "asyncio", "list")) for _ in range(2)]
        peers = [group.listener.recvfrom(65536)[1] for _ in lists]
        wrong = ["GONE 1 a", "HERE 0 a", "HERE 1 \x1b[31m", "HERE 1 two words", f"HERE 1 {'x' * 61}", "HERE 1 a\n", ""]
        for notice in (*wrong, f"HERE 65535 {'x' * 60}", "HERE 1 b", "HERE 1 b"):
            group.listener.sendto(notice.encode(), peers[0])
        shown = {each.end() for each in lists}
    assert (0, "there is nobody\n", "") in shown
    (output,) = (output for status, output, errors in shown if (status, errors) == (0, "") and "nobody" not in output)
    assert re.fullmatch(rf"b [0-9.]+:1\n{'x' * 60} [0-9.]+:65535\n", output)


def test_discovery_question_is_long_enough() -> None:
    """The longest answer is as long as the question: any service can answer, and nobody gets more than he sends."""
    longest = b"HERE 65535 " + b"x" * 60
    assert DISCOVERY.NOTICE.fullmatch(longest)
    assert not DISCOVERY.NOTICE.fullmatch(longest + b"x")
    assert len(longest) == len(DISCOVERY.QUESTION)


@pytest.mark.parametrize("words", [(), ("printer",), ("printer", "0"), ("two words", "1"), ("x" * 61, "1")])
def test_discovery_wrong_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """What is no name or no port is refused with the rule, before anything is opened."""
    monkeypatch.setattr(sys, "argv", ["discovery.py", "serve", *words])
    with pytest.raises(SystemExit, match=r"^2$"):
        DISCOVERY.main()
    assert "serve needs a name" in capsys.readouterr().err

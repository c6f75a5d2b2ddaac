"""What the README says is done as it says: its commands, its programs, its tables."""

from __future__ import annotations

import dataclasses
import inspect
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import aserver
import compat
from aserver._limits import Limits

from .peers import ask_datagram

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def program(containing: str) -> dict[str, Any]:
    """Run the Python block with *containing* in it, as a module that is imported; return its names."""
    (code,) = [block for block in blocks("python") if containing in block]
    return run_block(code)


def run_block(code: str) -> dict[str, Any]:
    """Run a program as a module that is imported; return its names."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def rows(header: str) -> dict[str, str]:
    """The rows below the table header that begins with *header*: first cell to second cell, without backquotes."""
    lines = README.split(f"\n{header}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {first: second for first, second, *_ in cells}


def ask(address: Any, data: bytes) -> bytes:
    """Send, end, and return all that comes back."""
    with socket.create_connection(address, 10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


def test_test_command_is_what_ci_runs() -> None:
    """The README's command for the tests is the last line of what CI runs, to the letter."""
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().splitlines()[-1]
    assert command.removeprefix("exec ") in "\n".join(blocks("sh"))


@pytest.mark.parametrize("marker, name", [("class Upper(aserver.", "Upper"), ("async def upper", "upper")])
def test_upper(marker: str, name: str) -> None:
    """Both forms of the first program answer in upper case."""
    handler = program(marker)[name]
    with aserver.start_in_thread(aserver.TCPServer(("127.0.0.1", 0), handler)) as server:
        assert ask(server.server_address, b"hello\nworld") == b"HELLO\nWORLD"


@pytest.mark.parametrize(
    "marker", ["# was: import socketserver", "    async def handle(self):\n        async for line in self.rfile:"]
)
def test_changed_import(marker: str) -> None:
    """The program with one line changed serves, and so does the one whose handler is async."""
    (handler,) = [
        names["Upper"]
        for code in blocks("python")
        if marker in code and "from compat" in code and (names := run_block(code))
    ]
    with compat.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert ask(server.server_address, b"hello\nworld\n") == b"HELLO\nWORLD\n"
        finally:
            server.shutdown()
            thread.join()


def test_hosted() -> None:
    """The legacy handler in a native server answers."""
    handler = compat.hosted(program("compat.hosted")["Legacy"], wait_for_data=True)
    with aserver.start_in_thread(aserver.TCPServer(("127.0.0.1", 0), handler)) as server:
        assert ask(server.server_address, b"hello\n") == b"HELLO\n"


def test_program_beside_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The synchronous program with a server beside it runs to its end and prints what it says."""
    program("start_in_thread")
    assert capsys.readouterr().out == "b'pong\\n'\n"


def test_first_success() -> None:
    """The first command's program prints what the README shows, with its port, and answers."""
    process = subprocess.Popen(
        [sys.executable, "examples/upper.py", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        shown = "".join(next(process.stdout) for _ in range(5))
        port = int(shown.rsplit(":", 1)[1])
        promised = blocks("text")[0].replace("tcp://127.0.0.1:9999", f"tcp://127.0.0.1:{port}").replace("9999", "0")
        assert shown == promised
        assert ask(("127.0.0.1", port), b"hello\n") == b"HELLO\n"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_limits_table() -> None:
    """The table of limits has each field of `Limits` with its default."""
    table = rows("| option | default | |")
    assert table == {each.name: repr(each.default) for each in dataclasses.fields(Limits)}


def test_pong() -> None:
    """The program for datagrams answers in upper case."""
    handler = program("async def pong(datagram")["pong"]
    with aserver.start_in_thread(aserver.UDPServer(("127.0.0.1", 0), handler)) as server:
        assert ask_datagram(server.server_address, b"hello") == b"HELLO"


def test_argument_tables() -> None:
    """The tables of arguments have the defaults of the functions they tell of."""
    datagram_server = inspect.signature(aserver.DatagramServer).parameters
    for name, default in rows("| argument of a datagram server | default | |").items():
        assert default == repr(datagram_server[name].default)
    table = rows("| field of `Sessions` | default | |")
    assert table == {each.name: repr(each.default) for each in dataclasses.fields(aserver.Sessions)}
    server = inspect.signature(aserver.StreamServer).parameters
    table = rows("| argument of a server | default | |")
    assert table | {"name": "None"} == {name: repr(server[name].default) for name in ("backlog", "reuse_port", "name")}
    for function in (aserver.run, aserver.start_in_thread):
        parameters = inspect.signature(function).parameters
        table = {name: text.strip("`").replace('"', "'") for name, text in rows("| argument of `run` and").items()}
        assert table == {name: repr(parameters[name].default) for name in ("backend", "loop", "grace")}


def test_compat_tables() -> None:
    """The tables of compat have its defaults."""
    for name, default in rows("| attribute of `compat` | default | |").items():
        cls, _, attribute = name.partition(".")
        assert repr(getattr(getattr(compat, cls), attribute)) == default, name
    hosted = inspect.signature(compat.hosted).parameters
    table = rows("| argument of `compat.hosted` | default | |")
    assert table == {name: repr(each.default) for name, each in hosted.items() if name != "handler_class"}


def test_public_names_are_documented() -> None:
    """Each public name is there and says what it is."""
    for name in aserver.__all__:
        assert inspect.getdoc(getattr(aserver, name)), name


def test_links_lead_somewhere() -> None:
    """Each relative link of the README leads to a file."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

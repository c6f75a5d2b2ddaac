"""Programs in child processes, for the tests of what a process does: signals, exit statuses, standard streams.

Lives here: starting one, reading its lines as they come, waiting for its end. Must not: anything of `aserver` but where
it is imported from.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from .peers import Address

#: Seconds to wait for the end of a program that has been told to end.
END_TIMEOUT = 20.0


class Ended(NamedTuple):
    """How a program ended: exit status (negative: the signal), and what of its output nobody had read."""

    status: int
    output: str
    errors: str


class Program:
    """A Python program in a child process, killed if it is still there at the end of the block.

    Args:
        folder: its working directory; it holds its standard error, too.
        arguments: those of the interpreter, such as a file name or ``-m aserver``.
        environment: variables for it, beside ours without ASERVER_*.
    """

    def __init__(self, folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self._errors = folder / f"stderr-{id(self)}"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", *map(str, arguments)],
                cwd=folder,
                env=_environment() | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stdin.close()
        self.stdout.close()
        if error is not None:
            print(f"standard error of the program:\n{self._errors.read_text()}")  # shown by pytest

    def line(self) -> str:
        """The next line that it prints, without its end; "" after the last one."""
        return self.stdout.readline().rstrip("\n")

    def wait_for(self, text: str) -> str:
        """Read lines until one has *text* in it; return that one."""
        seen = []
        while line := self.stdout.readline():
            if text in line:
                return line.rstrip("\n")
            seen.append(line)
        raise AssertionError(f"ended without {text!r} in its output {seen}; errors: {self._errors.read_text()}")

    def address(self) -> Address:
        """Where it listens, by the next line that says so."""
        return address_in(self.wait_for("listening on"))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait until it has ended."""
        output, _ = self.process.communicate(timeout=END_TIMEOUT)
        return Ended(self.process.returncode, output, self._errors.read_text())


def _environment() -> dict[str, str]:
    spec = importlib.util.find_spec("aserver")
    assert spec is not None
    assert spec.origin is not None
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ASERVER_")}
    return environment | {"PYTHONPATH": str(Path(spec.origin).parent.parent)}  # the one that the tests import


def address_in(line: str) -> Address:
    """The address in a line such as "listening on tcp://127.0.0.1:9999"."""
    if found := re.search(r"listening on tcp://\[?([^]]*?)\]?:(\d+)$", line):
        return found[1], int(found[2])
    found = re.search(r"listening on unix:(.*)$", line)
    assert found, line
    return found[1]


def write(file: Path, source: str) -> Path:
    """Write a program, dedented."""
    file.write_text(textwrap.dedent(source))
    return file

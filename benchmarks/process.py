"""A contender as a subprocess: started, pinned, read, and always ended by its pid.

The meters read the kernel's own accounts of that process from outside (Linux): nothing is asked of the contender.
"""

import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.roster import Contender

__all__ = ["ServerProcess", "StartFailed"]

START_TIMEOUT = 20.0  # an interpreter and its imports take 0.1-0.5 s; the rest is for a machine that is busy
END_TIMEOUT = 3.0  # SIGTERM ends all of them at once; after this, SIGKILL
SETTLE_STEP = 0.005
SETTLE_STEPS = 400  # two seconds in all: the longest we wait for a server to finish closing
SETTLED_STEPS = 3  # in a row, so that one slice stolen from the server by somebody else is not taken for rest
SETTLED_CPU = 50e-6
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class StartFailed(Exception):
    """The contender did not print its port."""


class ServerProcess:
    """A running contender; a context manager that starts and ends it."""

    port: int

    def __init__(self, contender: Contender, core: int | None) -> None:
        self.contender = contender
        self._core = core

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile()
        module = f"benchmarks.contenders.{self.contender.module}"
        # As an installed package has it: what is compiled at each start leaves memory behind, which a fork then copies.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [sys.executable, *self.contender.runner, "-m", module, *self.contender.arguments],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # a Ctrl-C is ours to handle; the contender is ended below
        )
        self.pid = self._process.pid
        try:
            if self._core is not None:
                os.sched_setaffinity(self.pid, {self._core})  # before it has threads or children; they inherit it
            self.port = self._read_port()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _read_port(self) -> int:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT)
        line = self._process.stdout.readline() if ready else b""
        if not line.strip().isdigit():
            with suppress(subprocess.TimeoutExpired):  # what it says last, it says before it ends
                self._process.wait(END_TIMEOUT)
            raise StartFailed(f"printed {line!r} instead of its port (stderr: {self.last_words()})")
        return int(line)

    def _end(self) -> None:
        children = self._children()
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            with suppress(ProcessLookupError):  # it ended with its connection
                os.kill(child, 9)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def _children(self) -> list[int]:
        with suppress(OSError):  # the process has gone, and its children are nobody's to find
            tasks = Path(f"/proc/{self.pid}/task").iterdir()
            return [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return []

    def cpu(self) -> float:
        """User and system seconds of the process, its threads past and present, and its children past and present."""
        seconds = _cpu_clock(self.pid)
        if self.contender.forks:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[13]) + int(fields[14])) / TICK  # cutime, cstime: the children already reaped
            for child in self._children():
                with suppress(OSError):  # reaped since it was listed: a part of the next reading
                    seconds += _cpu_clock(child)
        return seconds

    def settled_cpu(self) -> float:
        """`cpu()`, once the server has stopped working: it may still be closing what the client has left."""
        last, quiet = self.cpu(), 0
        for _ in range(SETTLE_STEPS):
            time.sleep(SETTLE_STEP)
            now = self.cpu()
            quiet = quiet + 1 if now - last < SETTLED_CPU else 0
            last = now
            if quiet == SETTLED_STEPS:
                break
        return last

    def memory(self) -> int:
        """Resident bytes of the process; of a forking server, of the whole tree, each page counted once.

        There mapped files are left out: their proportional share depends on who else on the machine has mapped them.
        """
        if not self.contender.forks:
            return _memory(self.pid, "Rss:")
        total = _memory(self.pid, "Pss_Anon:")
        for child in self._children():
            with suppress(OSError):  # it has ended, and has no memory any more
                total += _memory(child, "Pss_Anon:")
        return total

    def forget_peak(self) -> int:
        """Start `peak_memory()` afresh; gives the resident bytes of now to compare it with."""
        with suppress(OSError):  # not every container lets us; then the peak is of the process's whole life
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return _status_memory(self.pid, "VmRSS:")

    def peak_memory(self) -> int:
        """The most resident bytes there have been at once since `forget_peak()`."""
        return _status_memory(self.pid, "VmHWM:")

    def kernel_drops(self) -> int:
        """Datagrams that the kernel has thrown away because the server's UDP socket was full."""
        table = [line.split() for line in Path(f"/proc/{self.pid}/net/udp").read_text().splitlines()[1:]]
        return sum(int(row[-1]) for row in table if int(row[1].rpartition(":")[2], 16) == self.port)

    def descriptors(self) -> int:
        """Open descriptors of the process itself."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        """Threads of the process itself, the first one included."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def stderr_bytes(self) -> int:
        """How much it has written on its standard error so far."""
        return os.fstat(self._stderr.fileno()).st_size

    def last_words(self) -> str:
        """The last line on its standard error, for the report of a failure."""
        written = os.pread(self._stderr.fileno(), 4096, max(0, self.stderr_bytes() - 4096))
        return written.decode(errors="replace").strip().rpartition("\n")[2]


def _cpu_clock(pid: int) -> float:
    """The CPU-time clock of another process, in nanoseconds' resolution (clock_getcpuclockid(3)'s encoding)."""
    return time.clock_gettime((~pid << 3) | 2)


def _memory(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _status_memory(pid: int, field: str) -> int:
    """A line of `status`: the only place that knows the peak, and to be compared with its own kind only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

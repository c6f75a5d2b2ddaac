"""One worker process, seen from the server: a fresh interpreter with a channel of its own.

Lives here: how it is started, spoken to, heard and ended. Must not: when; that is for `_processes`, which imports this.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from ._executor import Done

__all__ = ["Worker"]

#: Bytes that a channel takes at once: the largest datagram, and another for the request that is taken beyond the bound.
CHANNEL_BUFFER = 256 * 1024
FOLDER = str(Path(__file__).parents[1])
BOOT = f"import sys; sys.path.insert(0, {FOLDER!r}); from compat._worker import main; sys.exit(main(int(sys.argv[1])))"


class Worker:
    """A process, its channel, and what it was sent and has not yet finished."""

    def __init__(self, first: bytes, descriptors: list[int]) -> None:
        self.jobs: list[Done | None] = []
        self.ready = False
        self.served = 0
        self.said = b""
        self.channel, theirs = socket.socketpair()
        try:
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER)
            with theirs:
                self.process = _start_interpreter(theirs.fileno())
            self.send(first, descriptors)
        except BaseException:
            self.channel.close()
            raise

    def send(self, data: bytes, descriptors: list[int]) -> None:
        """Send a frame with its descriptors."""
        if not descriptors:
            self.channel.sendall(data)
            return
        sent = socket.send_fds(self.channel, [data], descriptors)
        if sent < len(data):
            self.channel.sendall(data[sent:])

    def hear(self) -> bytes:
        """What it has said meanwhile; b"" when it has ended."""
        try:
            return self.channel.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b" "
        except ConnectionResetError:  # it ended with requests unread
            return b""

    def dismiss(self) -> None:
        """Let it end when it has finished."""
        try:
            self.channel.shutdown(socket.SHUT_WR)
        except OSError:  # it has ended already
            pass

    def end(self, timeout: float) -> str:
        """Wait for its end, kill it if that takes too long; say how it ended."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.channel.close()  # not before: to hang up would interrupt it on its way out
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"worker process {self.process.pid} {how}"

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self.channel.close()
        self.process.returncode = 0  # it is nobody's child here


def _start_interpreter(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a worker with SIGINT blocked, so that a Ctrl-C is not its end before it can see to that itself."""
    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, *flags, "-c", BOOT, str(descriptor)], stdin=subprocess.DEVNULL, pass_fds=[descriptor]
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

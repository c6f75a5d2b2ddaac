"""Blocking peers for the tests: the other side of a connection is never our own code.

Lives here: stdlib sockets with a timeout on every wait, and the way to use them from an async test. Must not: anything
of `aserver` or `compat`.

    async def test_upper(server):
        with await in_thread(connect, server.server_address) as client:
            assert await in_thread(client.ask, b"hello\n") == b"HELLO\n"

or in one step: `await in_thread(ask, server.server_address, b"hello\n")`.
"""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import anyio.to_thread

#: Seconds that any one wait of a peer may take; well below the 30 s that a test has.
TIMEOUT = 10.0

#: A host with its port (for IPv6 with flow and scope behind), or the path of a Unix socket.
Address = tuple[Any, ...] | str | Path

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread, from an async test."""
    return await anyio.to_thread.run_sync(functools.partial(func, *args, **kwargs))


def _family(address: Address) -> socket.AddressFamily:
    if isinstance(address, str | Path):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _plain(address: Address) -> Any:
    return str(address) if isinstance(address, Path) else address


class Client:
    """One blocking connection. Each method waits `TIMEOUT` at most, then raises TimeoutError."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def recv(self, size: int = 65536) -> bytes:
        """Whatever is there, `size` bytes at most; b"" at the end of the stream."""
        if self._unread:
            data, self._unread = self._unread[:size], self._unread[size:]
            return data
        return self.sock.recv(size)

    def read_exactly(self, size: int) -> bytes:
        """Read `size` bytes; fewer only if the stream ends before."""
        data = b""
        while len(data) < size and (chunk := self.recv(size - len(data))):
            data += chunk
        return data

    def read_until(self, mark: bytes = b"\n") -> bytes:
        """Read up to and including `mark`; if the stream ends before, what came until then."""
        data = b""
        while mark not in data and (chunk := self.recv()):
            data += chunk
        head, found, self._unread = data.partition(mark)
        return head + found

    def read_until_eof(self) -> bytes:
        """Read until the server closes its side."""
        data = b""
        while chunk := self.recv():
            data += chunk
        return data

    def ask(self, data: bytes, until: bytes = b"\n") -> bytes:
        """Send, and read the answer up to and including `until`."""
        self.send(data)
        return self.read_until(until)

    def end(self) -> None:
        """Send no more; reading goes on (half-close)."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a TCP reset, as a crashing peer does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close; a second time does nothing."""
        self.sock.close()


def connect(
    address: Address, *, tls: ssl.SSLContext | None = None, server_hostname: str | None = "localhost"
) -> Client:
    """Connect to a TCP address or to a Unix path, with a TLS handshake if a context is given."""
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(_plain(address))
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=server_hostname)  # closes the old one if it fails
        return Client(sock)
    except BaseException:
        sock.close()
        raise


def ask(address: Address, data: bytes, until: bytes = b"\n", *, tls: ssl.SSLContext | None = None) -> bytes:
    """Connect, send, read the answer up to and including `until`, close."""
    with connect(address, tls=tls) as client:
        return client.ask(data, until)


def talk(address: Address, data: bytes, *, tls: ssl.SSLContext | None = None) -> bytes:
    """Connect, send, end our side, read until the server ends its side, close. Without TLS half-close is real."""
    with connect(address, tls=tls) as client:
        client.send(data)
        if tls is None:
            client.end()
        return client.read_until_eof()


def ask_datagram(address: Address, data: bytes) -> bytes:
    """Send one datagram (UDP, or to a Unix path) and return the one that answers it."""
    with datagram_client(address) as client:
        client.send(data)
        return client.recv()


class _UnixDatagramClient(Client):
    """A Unix datagram socket with a path of its own, without which nobody could answer it."""

    def __init__(self, sock: socket.socket, folder: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(sock)
        self._folder = folder

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


def datagram_client(address: Address) -> Client:
    """A datagram socket that sends to `address` and hears only from there: use its `send` and `recv`."""
    family = _family(address)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family is not getattr(socket, "AF_UNIX", None):
            sock.connect(_plain(address))
            return Client(sock)
        folder = tempfile.TemporaryDirectory()
        client = _UnixDatagramClient(sock, folder)
        try:
            sock.bind(str(Path(folder.name) / "client"))
            sock.connect(_plain(address))
        except BaseException:
            folder.cleanup()
            raise
        return client
    except BaseException:
        sock.close()
        raise

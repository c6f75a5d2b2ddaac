"""Addresses: how they are written, what they mean, and how they read in a log. No network, no file system, no loop.

Lives here: the endpoints, which say where to listen, the parser that makes them, and addresses as text. Must not live
here: anything that resolves, binds or looks at a path; that is `_endpoints`. The rooms of the server import it; it
imports `_errors` only. What the caller got wrong is a ValueError or TypeError from `parse`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ._errors import LOGGED_TEXT_MAX

__all__ = [
    "AF_UNIX",
    "Address",
    "DescriptorEndpoint",
    "Endpoint",
    "InetEndpoint",
    "SocketEndpoint",
    "UnixEndpoint",
    "describe",
    "kind_of",
    "parse",
    "peer_text",
    "unfit",
    "unix_text",
]

#: Only the owner may connect unless the address says otherwise: systemd's 0666 and gunicorn's umask 0 let everybody in.
UNIX_MODE = 0o600
#: `sun_path` holds 108 bytes on Linux and 104 on macOS and the BSDs, one of them the closing NUL.
UNIX_PATH_MAX = 107 if sys.platform == "linux" else 103
#: None where there are no Unix sockets.
AF_UNIX = None if sys.platform == "win32" else socket.AF_UNIX
_ACCEPTED = {
    socket.SOCK_STREAM: "give 'tcp://host:port', 'unix:/path', 'fd://3', (host, port), a pathlib.Path, a listening "
    "socket or a list",
    socket.SOCK_DGRAM: "give 'udp://host:port', 'unixgram:/path', 'fd://3', (host, port), a pathlib.Path, a bound "
    "datagram socket or a list",
}
Address: TypeAlias = "str | os.PathLike[str] | tuple[str | None, int] | socket.socket"


@dataclass(frozen=True, slots=True)
class InetEndpoint:
    """Where to listen: *host* (None is every interface, both families) and *port* (0 is any free one)."""

    host: str | None
    port: int
    kind: socket.SocketKind = socket.SOCK_STREAM

    def __str__(self) -> str:
        return f"{_INET_SCHEMES[self.kind]}://{_inet_text((self.host or '*', self.port))}"


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """Where to listen: *path*, whose inode gets *mode*; "\\0name" is an abstract name, open to every local user."""

    path: str
    mode: int = UNIX_MODE
    kind: socket.SocketKind = socket.SOCK_STREAM

    def __str__(self) -> str:
        text = unix_text(self.path, self.kind)
        return text if self.mode == UNIX_MODE else f"{text.removesuffix('?')}?mode={self.mode:03o}"


@dataclass(frozen=True, slots=True)
class DescriptorEndpoint:
    """A listening or bound socket that this process has inherited as descriptor *fd*."""

    fd: int
    kind: socket.SocketKind = socket.SOCK_STREAM

    def __str__(self) -> str:
        return f"fd://{self.fd}"


@dataclass(frozen=True, slots=True)
class SocketEndpoint:
    """A bound socket that the caller has made."""

    sock: socket.socket

    def __str__(self) -> str:
        return repr(self.sock)


Endpoint: TypeAlias = InetEndpoint | UnixEndpoint | DescriptorEndpoint | SocketEndpoint

_INET_SCHEMES = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
_UNIX_SCHEMES = {socket.SOCK_STREAM: "unix", socket.SOCK_DGRAM: "unixgram"}


# --- from an address to endpoints, without I/O ------------------------------------------------------------------------


def parse(
    address: Address | Sequence[Address], *, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[Endpoint, ...]:
    """Return the endpoints that *address* means, without touching network or file system.

    Args:
        address: "tcp://host:port" (IPv6 in brackets, * for every interface), "unix:/path?mode=660" (octal),
            "unix:@name" (abstract), "fd://3", a path with a "/" in it, a `pathlib.Path` (taken literally), a
            (host, port) tuple (host "" or None is every interface), a bound socket; or a list of these.
            In a string "?" begins the options: a path that has one itself is written with another at its end.
            Datagrams have "udp://" and "unixgram:" in place of "tcp://" and "unix:".
        kind: what the server needs: SOCK_STREAM or SOCK_DGRAM.

    Raises:
        ValueError: the value means nothing; the text has it and says what to write instead.
        TypeError: nothing of that type is an address.
    """
    if kind not in _INET_SCHEMES:
        raise _bad(kind, "is no kind of socket that is known here", "pass kind=socket.SOCK_STREAM or SOCK_DGRAM")
    endpoints = tuple(_parse_one(one, kind) for one in (address if isinstance(address, list) else [address]))
    if not endpoints:
        raise _bad(address, "has no address in it", _ACCEPTED[kind])
    given = [one for one in endpoints if isinstance(one, DescriptorEndpoint | SocketEndpoint)]
    if len(set(given)) < len(given):
        raise _bad(address, "has one descriptor or socket twice", "give each of them once")
    return endpoints


def _bad(value: object, fact: str, remedy: str) -> ValueError:
    return ValueError(f"{value!r} {fact}; {remedy}")


def _parse_one(address: object, kind: socket.SocketKind) -> Endpoint:
    if isinstance(address, str):
        return _parse_text(address, kind)
    if isinstance(address, tuple):
        return _parse_pair(address, kind)
    if isinstance(address, os.PathLike):
        path = os.fsdecode(address)
        return _unix_endpoint(address, f"./{path}" if path.startswith("@") else path, kind)
    if isinstance(address, socket.socket):
        return _parse_socket(address, kind)
    raise TypeError(f"{address!r} is not an address; {_ACCEPTED[kind]}")


def _parse_text(address: str, kind: socket.SocketKind) -> Endpoint:
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", address, re.DOTALL)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", "")
    inet, unix = _INET_SCHEMES[kind], _UNIX_SCHEMES[kind]
    if scheme == inet:
        return _parse_inet(address, rest, kind)
    if scheme == unix:
        return _parse_unix(address, rest, kind)
    if scheme == "fd":
        return _parse_fd(address, rest, kind)
    if kind_of(address) not in (None, kind):
        other, this = ("datagram", "stream") if kind == socket.SOCK_STREAM else ("stream", "datagram")
        fact = f"is a {other} endpoint and this is a {this} server"
        raise _bad(address, fact, f"write {inet}://host:port or {unix}:/path")
    if "/" not in address:
        host = "127.0.0.1" if address.startswith(":") else ""
        port = "" if ":" in address else ":9999"
        raise _bad(address, "has no scheme", f"write {inet}://{host}{address}{port}, or ./{address} for a Unix socket")
    if scheme:
        raise _bad(address, f"has the unknown scheme {scheme!r}", f"write {inet}://host:port, {unix}:/path or fd://3")
    return _parse_unix(address, address, kind)


def kind_of(address: str) -> socket.SocketKind | None:
    """Return the kind of socket that the scheme of an endpoint string asks for, None if it leaves that open."""
    scheme = address.partition(":")[0].lower()
    for kind in _INET_SCHEMES:
        if scheme in (_INET_SCHEMES[kind], _UNIX_SCHEMES[kind]):
            return kind
    return None


def _parse_inet(address: str, rest: str, kind: socket.SocketKind) -> InetEndpoint:
    scheme = _INET_SCHEMES[kind]
    host, colon, port = rest.removeprefix("//").rpartition(":")
    if not rest.startswith("//") or not colon or port.endswith("]"):
        raise _bad(address, f"is not of the form {scheme}://host:port", f"write for example {scheme}://localhost:9999")
    if not host:
        here, everywhere = f"{scheme}://127.0.0.1:{port}", f"{scheme}://*:{port}"
        raise _bad(address, "has no host", f"write {here} for this machine only, {everywhere} for every interface")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed != (":" in host):
        remedy = f"write IPv6, and nothing else, in brackets: {scheme}://[::1]:9999"
        raise _bad(address, f"has the host {host!r}", remedy)
    if not re.fullmatch(r"[0-9]{1,5}", port):
        raise _bad(address, f"has the port {port!r}", "write a number from 0 to 65535, and nothing behind it")
    return _inet_endpoint(address, host[1:-1] if bracketed else host, int(port), kind)


def _parse_pair(address: tuple[Any, ...], kind: socket.SocketKind) -> InetEndpoint:
    if len(address) != 2:
        raise _bad(address, "is not (host, port)", "write two items, a zone with its host: ('fe80::1%eth0', 9999)")
    host, port = address
    if not isinstance(host, str | None) or not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"{address!r} is not (host, port); give a str or None, and an int")
    return _inet_endpoint(address, host, port, kind)


def _inet_endpoint(address: object, host: str | None, port: int, kind: socket.SocketKind) -> InetEndpoint:
    if not 0 <= port <= 65535:
        raise _bad(address, f"has the port {port}", "write a number from 0 to 65535")
    if host in (None, "", "*"):
        return InetEndpoint(None, port, kind)
    if re.search(r"[\s\x00-\x20\x7f/?#@*\\\[\]]", host) or ("%" in host and ":" not in host):
        raise _bad(address, f"has the host {host!r}", "write a name or an IP address, and nothing around it")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise _bad(address, f"has the host {host!r}: {error}", "write an IPv6 address such as ::1")
    return InetEndpoint(host, port, kind)


def _parse_unix(address: str, rest: str, kind: socket.SocketKind) -> UnixEndpoint:
    path = rest.removeprefix("//")
    if path != rest and not path.startswith("/"):
        raise _bad(address, "has a host, and Unix sockets have none", f"write {_UNIX_SCHEMES[kind]}:/{path}")
    path, _, query = path.rpartition("?") if "?" in path else (path, "", "")
    key, _, value = query.partition("=")
    if query and key != "mode":
        remedy = "the only one is ?mode=660; end a path that has a '?' itself with another '?'"
        raise _bad(address, f"has the unknown option {key!r}", remedy)
    if query and not re.fullmatch(r"0?[0-7]{3}", value):
        raise _bad(address, f"has the mode {value!r}", "write three octal digits, such as ?mode=660")
    abstract = path.startswith("@")
    if abstract and query:
        raise _bad(address, "gives a mode to an abstract name, which has none", "leave the mode out, or write a path")
    return _unix_endpoint(address, path.removeprefix("@"), kind, int(value, 8) if query else UNIX_MODE, abstract)


def _unix_endpoint(
    address: object, path: str, kind: socket.SocketKind, mode: int = UNIX_MODE, abstract: bool = False
) -> UnixEndpoint:
    scheme = _UNIX_SCHEMES[kind]
    if AF_UNIX is None or (abstract and sys.platform != "linux"):
        raise _bad(address, f"is not possible on {sys.platform}", f"write {_INET_SCHEMES[kind]}://127.0.0.1:9999")
    if not path or (path.endswith("/") and not abstract):
        raise _bad(address, "names no socket", f"write {scheme}:/path, {scheme}:./path or {scheme}:@name")
    if "\0" in path:
        raise _bad(address, "has a NUL in its path", f"remove it (an abstract name is written {scheme}:@name)")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise _bad(address, f"cannot be a file name ({error.reason})", "write it in other characters")
    if size > UNIX_PATH_MAX:
        remedy = "write a shorter one, or one relative to the working directory"
        raise _bad(address, f"has a path of {size} bytes, and the kernel takes {UNIX_PATH_MAX}", remedy)
    return UnixEndpoint(f"\0{path}" if abstract else path, mode, kind)


def _parse_fd(address: str, rest: str, kind: socket.SocketKind) -> DescriptorEndpoint:
    if not re.fullmatch(r"//[0-9]{1,9}", rest):
        raise _bad(address, "names no descriptor", "write its number, such as fd://3")
    return DescriptorEndpoint(int(rest[2:]), kind)


def _parse_socket(sock: socket.socket, kind: socket.SocketKind) -> SocketEndpoint:
    if sock.fileno() < 0:
        raise _bad(sock, "is closed", "give an open one")
    if hasattr(sock, "do_handshake"):  # an SSLSocket does its handshakes in accept(), one client after the other
        raise TypeError(f"{sock!r} is a TLS socket; give the plain one, and the context as tls=")
    if fault := unfit(sock, kind):
        raise _bad(sock, fault, _ACCEPTED[kind])
    if not _is_bound(sock):
        raise _bad(sock, "is not bound", "call its bind() first, or give the address instead")
    return SocketEndpoint(sock)


def _is_bound(sock: socket.socket) -> bool:
    try:
        name = sock.getsockname()
    except OSError:  # how Windows says no
        return False
    return bool(name[1] if isinstance(name, tuple) else name)


def unfit(sock: socket.socket, kind: socket.SocketKind) -> str:
    if sock.type != kind:
        return f"is of type {sock.type!r}, and this server needs {kind!r}"
    if sock.family not in (socket.AF_INET, socket.AF_INET6, AF_UNIX):
        return f"is of family {sock.family!r}, and only AF_INET, AF_INET6 and AF_UNIX are served"
    return ""


# --- addresses as text ------------------------------------------------------------------------------------------------


def describe(sock: socket.socket) -> str:
    """Return the endpoint string of a bound socket: "tcp://[::1]:9999", "udp://…", "unix:/path", "unixgram:@name".

    Raises:
        OSError: the socket is closed.
    """
    kind, address = sock.type, sock.getsockname()
    if sock.family == AF_UNIX:
        return unix_text(os.fsdecode(address), kind)
    return f"{_INET_SCHEMES[kind]}://{_inet_text(address)}"


def peer_text(address: object) -> str:
    """Return a peer's address for logs: "127.0.0.1:5000", "[::1]:5000", "unix:/path", or "unix" if it has no name.

    A peer chooses the path it binds, so that is escaped to printable ASCII; the text has at most 200 characters.

    Args:
        address: what `accept` or `recvfrom` returned.
    """
    if isinstance(address, tuple):
        return _inet_text(address)[:LOGGED_TEXT_MAX]
    if not isinstance(address, str | bytes) or not address:
        return "unix"
    name = os.fsdecode(address)
    name = f"@{name[1:]}" if name.startswith("\0") else name
    return f"unix:{ascii(name)[1:-1]}"[:LOGGED_TEXT_MAX]


def _inet_text(address: tuple[Any, ...]) -> str:
    host, port, *rest = address
    if rest and rest[-1]:
        host = f"{host}%{rest[-1]}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_text(path: str, kind: socket.SocketKind) -> str:
    """Return the string that `parse` takes for *path*: the rules of `_parse_unix`, backwards."""
    scheme = _UNIX_SCHEMES[kind]
    if path.startswith("\0"):
        path = f"@{path[1:]}"
    elif path.startswith("//"):
        path = f"//{path}"
    return f"{scheme}:{path}?" if "?" in path else f"{scheme}:{path}"

"""Addresses: an address or an endpoint string goes in, bound and non-blocking listening sockets come out.

Lives here: how addresses are written, resolving, binding, what a path and an inherited descriptor must be like, and
the options that accepted connections inherit. TCP and Unix sockets differ here and nowhere else. Must not live here:
accepting, serving, logging; no loop is known (anyio resolves names). The server imports it; it imports `_errors` only.
What the caller got wrong is a ValueError or TypeError from `parse`; what the world refuses is an OSError from `bind`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

from ._errors import LOGGED_TEXT_MAX

if sys.platform != "win32":
    import fcntl

__all__ = ["Address", "BoundSocket", "Endpoint", "bind", "describe", "parse", "peer_text"]

#: Only the owner may connect unless the address says otherwise: systemd's 0666 and gunicorn's umask 0 let everybody in.
UNIX_MODE = 0o600
#: `sun_path` holds 108 bytes on Linux and 104 on macOS and the BSDs, one of them the closing NUL.
UNIX_PATH_MAX = 107 if sys.platform == "linux" else 103
#: How often port 0 is drawn when what was drawn is taken in another family (asyncio listens on two different ports).
#: Where half of all ephemeral ports are taken, 16 draws fail once in 65 536 starts.
PORT_DRAWS = 16
#: Set on the listening socket because accepted ones inherit them: right for every connection, a system call for none.
#: No delay: a reply in two segments does not wait 40 ms for an acknowledgement. Keepalive after 60 s, 4 probes 15 s
#: apart: the kernel's 2 h outlast every NAT. Unacknowledged bytes 60 s (in ms): the kernel's way takes 15 minutes.
#: What a platform lacks is left out; TCP_KEEPALIVE is what macOS calls TCP_KEEPIDLE.
CONNECTION_OPTIONS = (
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 60),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 15),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),
)

_AF_UNIX = None if sys.platform == "win32" else socket.AF_UNIX
_IN_USE = "is in use by a live server; stop that one, or choose another name"
_ACCEPTED = "give 'tcp://host:port', 'unix:/path', 'fd://3', (host, port), a pathlib.Path, a listening socket or a list"
_TCP_REMEDIES = {
    errno.EADDRINUSE: "stop whoever listens there, or choose another port (0 takes a free one)",
    errno.EACCES: "choose a port from 1024 up, or let systemd open this one and serve fd://3",
    errno.EADDRNOTAVAIL: "write an address of this machine, or * for every one that it has",
    socket.EAI_NONAME: "check the spelling, or write the address itself",
}

Address: TypeAlias = "str | os.PathLike[str] | tuple[str | None, int] | socket.socket"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """Where to listen: *host* (None is every interface, both families) and *port* (0 is any free one)."""

    host: str | None
    port: int

    def __str__(self) -> str:
        return f"tcp://{_inet_text((self.host or '*', self.port))}"


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """Where to listen: *path*, whose inode gets *mode*; "\\0name" is an abstract name, open to every local user."""

    path: str
    mode: int = UNIX_MODE

    def __str__(self) -> str:
        text = _unix_text(self.path)
        return text if self.mode == UNIX_MODE else f"{text.removesuffix('?')}?mode={self.mode:03o}"


@dataclass(frozen=True, slots=True)
class DescriptorEndpoint:
    """A listening socket that this process has inherited as descriptor *fd*."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


@dataclass(frozen=True, slots=True)
class SocketEndpoint:
    """A bound socket that the caller has made."""

    sock: socket.socket

    def __str__(self) -> str:
        return repr(self.sock)


Endpoint: TypeAlias = TcpEndpoint | UnixEndpoint | DescriptorEndpoint | SocketEndpoint


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
        kind: what the server needs; only SOCK_STREAM is known.

    Raises:
        ValueError: the value means nothing; the text has it and says what to write instead.
        TypeError: nothing of that type is an address.
    """
    if kind not in _PARSERS:
        raise _bad(kind, "is no kind of socket that is known here", "pass kind=socket.SOCK_STREAM")
    endpoints = tuple(_parse_one(one, kind) for one in (address if isinstance(address, list) else [address]))
    if not endpoints:
        raise _bad(address, "has no address in it", _ACCEPTED)
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
        return _parse_pair(address)
    if isinstance(address, os.PathLike):
        path = os.fsdecode(address)
        return _unix_endpoint(address, f"./{path}" if path.startswith("@") else path)
    if isinstance(address, socket.socket):
        return _parse_socket(address, kind)
    raise TypeError(f"{address!r} is not an address; {_ACCEPTED}")


def _parse_text(address: str, kind: socket.SocketKind) -> Endpoint:
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", address, re.DOTALL)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", "")
    if parser := _PARSERS[kind].get(scheme):
        return parser(address, rest)
    if scheme in ("udp", "unixgram"):
        raise _bad(address, "is a datagram endpoint and this is a stream server", "write tcp://host:port or unix:/path")
    if "/" not in address:
        host = "127.0.0.1" if address.startswith(":") else ""
        port = "" if ":" in address else ":9999"
        raise _bad(address, "has no scheme", f"write tcp://{host}{address}{port}, or ./{address} for a Unix socket")
    if scheme:
        raise _bad(address, f"has the unknown scheme {scheme!r}", "write tcp://host:port, unix:/path or fd://3")
    return _parse_unix(address, address)


def _parse_tcp(address: str, rest: str) -> TcpEndpoint:
    host, colon, port = rest.removeprefix("//").rpartition(":")
    if not rest.startswith("//") or not colon or port.endswith("]"):
        raise _bad(address, "is not of the form tcp://host:port", "write for example tcp://localhost:9999")
    if not host:
        here, everywhere = f"tcp://127.0.0.1:{port}", f"tcp://*:{port}"
        raise _bad(address, "has no host", f"write {here} for this machine only, {everywhere} for every interface")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed != (":" in host):
        raise _bad(address, f"has the host {host!r}", "write IPv6, and nothing else, in brackets: tcp://[::1]:9999")
    if not re.fullmatch(r"[0-9]{1,5}", port):
        raise _bad(address, f"has the port {port!r}", "write a number from 0 to 65535, and nothing behind it")
    return _tcp_endpoint(address, host[1:-1] if bracketed else host, int(port))


def _parse_pair(address: tuple[Any, ...]) -> TcpEndpoint:
    if len(address) != 2:
        raise _bad(address, "is not (host, port)", "write two items, a zone with its host: ('fe80::1%eth0', 9999)")
    host, port = address
    if not isinstance(host, str | None) or not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"{address!r} is not (host, port); give a str or None, and an int")
    return _tcp_endpoint(address, host, port)


def _tcp_endpoint(address: object, host: str | None, port: int) -> TcpEndpoint:
    if not 0 <= port <= 65535:
        raise _bad(address, f"has the port {port}", "write a number from 0 to 65535")
    if host in (None, "", "*"):
        return TcpEndpoint(None, port)
    if re.search(r"[\s\x00-\x20\x7f/?#@*\\\[\]]", host) or ("%" in host and ":" not in host):
        raise _bad(address, f"has the host {host!r}", "write a name or an IP address, and nothing around it")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise _bad(address, f"has the host {host!r}: {error}", "write an IPv6 address such as ::1")
    return TcpEndpoint(host, port)


def _parse_unix(address: str, rest: str) -> UnixEndpoint:
    path = rest.removeprefix("//")
    if path != rest and not path.startswith("/"):
        raise _bad(address, "has a host, and Unix sockets have none", f"write unix:/{path}")
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
    return _unix_endpoint(address, path.removeprefix("@"), int(value, 8) if query else UNIX_MODE, abstract)


def _unix_endpoint(address: object, path: str, mode: int = UNIX_MODE, abstract: bool = False) -> UnixEndpoint:
    if _AF_UNIX is None or (abstract and sys.platform != "linux"):
        raise _bad(address, f"is not possible on {sys.platform}", "write tcp://127.0.0.1:9999")
    if not path or (path.endswith("/") and not abstract):
        raise _bad(address, "names no socket", "write unix:/path, unix:./path or unix:@name")
    if "\0" in path:
        raise _bad(address, "has a NUL in its path", "remove it (an abstract name is written unix:@name)")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise _bad(address, f"cannot be a file name ({error.reason})", "write it in other characters")
    if size > UNIX_PATH_MAX:
        remedy = "write a shorter one, or one relative to the working directory"
        raise _bad(address, f"has a path of {size} bytes, and the kernel takes {UNIX_PATH_MAX}", remedy)
    return UnixEndpoint(f"\0{path}" if abstract else path, mode)


def _parse_fd(address: str, rest: str) -> DescriptorEndpoint:
    if not re.fullmatch(r"//[0-9]{1,9}", rest):
        raise _bad(address, "names no descriptor", "write its number, such as fd://3")
    return DescriptorEndpoint(int(rest[2:]))


def _parse_socket(sock: socket.socket, kind: socket.SocketKind) -> SocketEndpoint:
    if sock.fileno() < 0:
        raise _bad(sock, "is closed", "give an open one")
    if hasattr(sock, "do_handshake"):  # an SSLSocket does its handshakes in accept(), one client after the other
        raise TypeError(f"{sock!r} is a TLS socket; give the plain one, and the context as tls=")
    if fault := _unfit(sock, kind):
        raise _bad(sock, fault, _ACCEPTED)
    if not _is_bound(sock):
        raise _bad(sock, "is not bound", "call its bind() first, or give the address instead")
    return SocketEndpoint(sock)


def _is_bound(sock: socket.socket) -> bool:
    try:
        name = sock.getsockname()
    except OSError:  # how Windows says no
        return False
    return bool(name[1] if isinstance(name, tuple) else name)


def _unfit(sock: socket.socket, kind: socket.SocketKind) -> str:
    if sock.type != kind:
        return f"is of type {sock.type!r}, and this server needs {kind!r}"
    if sock.family not in (socket.AF_INET, socket.AF_INET6, _AF_UNIX):
        return f"is of family {sock.family!r}, and only AF_INET, AF_INET6 and AF_UNIX are served"
    return ""


#: What each kind of server understands. The datagram side adds a row, and shares the rules for paths.
_PARSERS: dict[int, dict[str, Callable[[str, str], Endpoint]]] = {
    socket.SOCK_STREAM: {"tcp": _parse_tcp, "unix": _parse_unix, "fd": _parse_fd},
}


# --- addresses as text ------------------------------------------------------------------------------------------------


def describe(sock: socket.socket) -> str:
    """Return the endpoint string of a bound socket: "tcp://[::1]:9999", "udp://…", "unix:/path", "unixgram:@name".

    Raises:
        OSError: the socket is closed.
    """
    stream, address = sock.type == socket.SOCK_STREAM, sock.getsockname()
    if sock.family == _AF_UNIX:
        return _unix_text(os.fsdecode(address), "unix" if stream else "unixgram")
    return f"{'tcp' if stream else 'udp'}://{_inet_text(address)}"


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


def _unix_text(path: str, scheme: str = "unix") -> str:
    """Return the string that `parse` takes for *path*: the rules of `_parse_unix`, backwards."""
    if path.startswith("\0"):
        path = f"@{path[1:]}"
    elif path.startswith("//"):
        path = f"//{path}"
    return f"{scheme}:{path}?" if "?" in path else f"{scheme}:{path}"


# --- from endpoints to sockets ----------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class BoundSocket:
    """A listening, non-blocking socket and its names.

    Attributes:
        sock: the socket; it belongs to this object, also if it was inherited or handed in ready-made.
        address: what `server_address` shows: the tuple of `getsockname`, a Unix path as it was given, an abstract name
            as the bytes of `getsockname`.
        endpoint: the same as a string for logs and clients, such as "tcp://[::1]:9999"; `parse` understands it.
    """

    sock: socket.socket
    address: Any
    endpoint: str
    #: Path, inode and maker of what is ours to unlink.
    _made: tuple[str, os.stat_result, int] | None = field(default=None, repr=False)

    def close(self) -> None:
        """Close the socket; unlink its path if this process made it and the inode there is still ours. Idempotent."""
        path, inode, maker = self._made or ("", None, 0)
        self._made = None
        if inode and maker == os.getpid():  # a forked child that closes must not take the name from its parent
            try:
                # Before the socket is closed: while it lives nobody else gets its inode number, and no other starter
                # finds the path stale and puts his own there.
                if os.path.samestat(os.lstat(path), inode):
                    os.unlink(path)
            except OSError:  # gone already, or privileges were dropped: the next start finds it stale and replaces it
                pass
        self.sock.close()


async def bind(endpoints: Iterable[Endpoint], *, backlog: int, reuse_port: bool) -> list[BoundSocket]:
    """Listen on all of *endpoints*, or on none of them.

    Every address that a host resolves to is bound, all on one port; families that the machine lacks are left out
    unless the address was spelled out. A Unix path that a dead server left is replaced, nothing else ever is.
    Accepted TCP connections inherit the `CONNECTION_OPTIONS`.

    Args:
        endpoints: what `parse` returned.
        backlog: how many connections the kernel holds until they are accepted (at most its `somaxconn`).
        reuse_port: let other processes listen on the same TCP ports (SO_REUSEPORT).

    Returns:
        At least one socket for each endpoint, in their order; the caller closes them.

    Raises:
        OSError: an endpoint cannot be had; the text names it. What was bound until then is closed and unlinked;
            descriptors and sockets that were handed in stay open, with whoever gave them.
        ValueError: *reuse_port* on a platform that has none.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError(f"reuse_port={reuse_port!r} is not possible on {sys.platform}; leave it out")
    bound: list[BoundSocket] = []
    with ExitStack() as undo:  # for errors and for being cancelled
        for endpoint in endpoints:
            await anyio.lowlevel.checkpoint_if_cancelled()
            try:
                bound += await _bind_one(endpoint, backlog, reuse_port, undo)
            except OSError as error:
                raise _named(endpoint, error)
        undo.pop_all()
    return bound


async def _bind_one(endpoint: Endpoint, backlog: int, reuse_port: bool, undo: ExitStack) -> list[BoundSocket]:
    if isinstance(endpoint, TcpEndpoint):
        return await _bind_tcp(endpoint, backlog, reuse_port, undo)
    if isinstance(endpoint, UnixEndpoint):
        return [_bind_unix(endpoint, backlog, undo)]
    if isinstance(endpoint, DescriptorEndpoint):
        return [_bound(_adopt(endpoint.fd, undo))]
    _prepare(endpoint.sock)
    if not _is_listening(endpoint.sock):
        endpoint.sock.listen(backlog)
    return [_bound(endpoint.sock)]


def _named(endpoint: Endpoint, error: OSError) -> OSError:
    """Return the same error with a text that names the endpoint and, where one is known, the remedy."""
    text = f"{endpoint}: {error.strerror or error}"
    if error.filename is not None:
        text += f": {error.filename!r}"
    if isinstance(endpoint, TcpEndpoint) and error.errno in _TCP_REMEDIES:
        text += f"; {_TCP_REMEDIES[error.errno]}"
    return type(error)(error.errno, text)


def _prepare(sock: socket.socket) -> None:
    """Make *sock* non-blocking and give it what accepted sockets inherit; before it listens, so that the first do."""
    sock.setblocking(False)
    if sock.family != _AF_UNIX:
        for level, name, value in CONNECTION_OPTIONS:
            try:
                sock.setsockopt(level, getattr(socket, name), value)
            except (AttributeError, OSError):  # unknown here, or refused by a sandbox: no reason not to serve
                pass


def _bound(sock: socket.socket) -> BoundSocket:
    return BoundSocket(sock, sock.getsockname(), describe(sock))


def _is_listening(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _adopt(fd: int, undo: ExitStack) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        remedy = "pass a listening socket, as systemd's socket units do"
        raise OSError(error.errno, f"is no open socket ({error.strerror}); {remedy}")
    undo.callback(sock.detach)  # if it is refused, or another endpoint fails, it stays open
    if fault := _unfit(sock, socket.SOCK_STREAM):
        raise OSError(errno.EINVAL, f"{fault}; pass another one")
    if not _is_listening(sock):
        raise OSError(errno.EINVAL, "is not a listening socket; let its maker call listen() (systemd: Accept=no)")
    _prepare(sock)
    sock.set_inheritable(False)  # it has arrived: programs that handlers start must not hold the port
    return sock


async def _resolve(endpoint: TcpEndpoint) -> list[tuple[int, str]]:
    """Return family and address of all that the endpoint's host means; a zone is in the address as a number."""
    host, port = endpoint.host, endpoint.port
    if host and "%" in host:  # an address, so nobody is asked and nothing blocks; uvloop would lose the zone
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(family, f"{address[0]}%{address[3]}") for family, _, _, _, address in found]
    try:
        resolved = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # how idna says it
        raise socket.gaierror(socket.EAI_NONAME, f"is not a host name ({error})")
    return [(family, address[0]) for family, _, _, _, address in resolved]


async def _bind_tcp(endpoint: TcpEndpoint, backlog: int, reuse_port: bool, undo: ExitStack) -> list[BoundSocket]:
    addresses = await _resolve(endpoint)
    draws = 1 if endpoint.port else PORT_DRAWS
    while True:
        draws -= 1
        try:
            return _listen_on_one_port(addresses, endpoint.port, backlog, reuse_port, undo)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not draws:
                raise


def _listen_on_one_port(
    addresses: list[tuple[int, str]], port: int, backlog: int, reuse_port: bool, undo: ExitStack
) -> list[BoundSocket]:
    bound: list[BoundSocket] = []
    missing = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    with ExitStack() as attempt:
        for family, host in dict.fromkeys(addresses):
            try:
                sock = attempt.enter_context(_listen(family, host, port, backlog, reuse_port))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                missing = error  # a machine without IPv6 whose resolver knows ::1; what was spelled out is the only one
                continue
            bound.append(_bound(sock))
            port = bound[0].address[1]
        if not bound:
            raise missing
        undo.push(attempt.pop_all())
    return bound


def _listen(family: int, host: str, port: int, backlog: int, reuse_port: bool) -> socket.socket:
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        _prepare(sock)
        if sys.platform == "win32":  # where SO_REUSEADDR lets others steal the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # connections of the last run that are in TIME_WAIT must not keep this one from starting
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # whatever the machine's default is
            host, _, zone = host.partition("%")
            sock.bind((host, port, 0, int(zone or 0)))
        else:
            sock.bind((host, port))
        sock.listen(backlog)
        undo.pop_all()
    return sock


# What follows knows nothing of the kind of socket but what it is told: datagram sockets have the same rules for paths.


def _bind_unix(endpoint: UnixEndpoint, backlog: int, undo: ExitStack) -> BoundSocket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = BoundSocket(sock, endpoint.path, _unix_text(endpoint.path))
    undo.callback(bound.close)
    _prepare(sock)
    if endpoint.path.startswith("\0"):
        try:
            sock.bind(endpoint.path)
        except OSError as error:
            raise OSError(error.errno, _IN_USE if error.errno == errno.EADDRINUSE else error.strerror)
        sock.listen(backlog)
        bound.address = sock.getsockname()
        return bound
    path = endpoint.path  # spelled out: the working directory may be another one when it is unlinked
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    _check_directory(os.path.dirname(path))
    with _starter_lock(f"{path}.lock"):
        _make_room(endpoint.path, sock.type)
        _bind_path(sock, endpoint.path, endpoint.mode)
        made = os.lstat(path)
        bound._made = (path, made, os.getpid())
        if stat.S_IMODE(made.st_mode) != endpoint.mode:  # the umask took bits away
            os.chmod(path, endpoint.mode)
        sock.listen(backlog)  # under the lock: until it listens it looks like what a dead server left
    return bound


def _check_directory(directory: str) -> None:
    try:
        mode = os.stat(directory).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {directory!r}; create it first")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        fact = f"anybody could put his own socket into {directory!r} (mode {stat.S_IMODE(mode):04o})"
        raise PermissionError(errno.EACCES, f"{fact}; run chmod o-w on it, or chmod +t, or choose another directory")


@contextmanager
def _starter_lock(path: str) -> Iterator[None]:
    """Hold the lock file *path*, so that no starter acts on what another has just changed. It is there only meanwhile.

    Removing it is safe: it is removed while it is locked, and who locks a file without a name starts over.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags, 0o600), "rb", buffering=0) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(errno.EADDRINUSE, "another server is starting there right now; start only one of the two")
            state = os.fstat(lock.fileno())
            if not stat.S_ISREG(state.st_mode) or state.st_size:
                raise FileExistsError(errno.EEXIST, f"{path!r} is no lock file; move it away, or choose another path")
            if state.st_nlink == 0:
                continue
            try:
                yield
            finally:
                os.unlink(path)
            return


def _make_room(path: str, kind: int) -> None:
    """Unlink the socket that a dead server left at *path*; refuse whatever else is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFREG: "a regular file"}
        what = kinds.get(stat.S_IFMT(mode), "a special file")
        raise FileExistsError(errno.EEXIST, f"there is {what}, not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer == errno.ECONNREFUSED:
        os.unlink(path)
    elif answer in (0, errno.EAGAIN, errno.EPROTOTYPE):  # connected; its backlog is full; it is of another kind
        raise OSError(errno.EADDRINUSE, _IN_USE)
    elif answer != errno.ENOENT:  # which means that it has just gone
        fact = f"cannot find out whether the socket there is dead ({os.strerror(answer)})"
        raise OSError(answer, f"{fact}; remove it, or choose another path")


def _bind_path(sock: socket.socket, path: str, mode: int, *, by_rename: bool = sys.platform != "linux") -> None:
    """Bind *path* so that its inode has no permission that *mode* lacks, not for an instant."""
    if not by_rename:  # Linux gives the inode the mode of the socket, less the umask
        os.fchmod(sock.fileno(), mode)
        sock.bind(path)
        return
    private = os.path.join(os.path.dirname(path), f".{secrets.token_hex(4)}")
    sock.bind(private)
    try:
        os.chmod(private, mode)
        os.rename(private, path)
    except BaseException:
        os.unlink(private)
        raise

"""Endpoints: where to listen goes in, bound and non-blocking listening sockets come out.

Lives here: resolving, binding, what a path and an inherited descriptor must be like, and the options that accepted
connections inherit. TCP and Unix sockets differ in these two files, here and in `_addresses`, and nowhere else. Must
not live here: accepting, serving, logging; no loop is known (anyio resolves names). The server and the listener import
it; it imports `_addresses` only. What the world refuses is an OSError from `bind`.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel

from ._addresses import AF_UNIX, DescriptorEndpoint, Endpoint, InetEndpoint, UnixEndpoint, describe, unfit, unix_text

if sys.platform != "win32":
    import fcntl

__all__ = ["BoundSocket", "bind"]

#: What is asked of the kernel as receive buffer of a datagram socket, which caps it at net.core.rmem_max (208 KiB where
#: nobody raised it): what arrives while the loop is busy waits there, and what does not fit is lost.
DATAGRAM_BUFFER = 1024 * 1024
#: Linux' names for what `socket` has no word for: 0 keeps multicast out that only another process has joined.
_MULTICAST_ALL = ((socket.IPPROTO_IP, 49), (getattr(socket, "IPPROTO_IPV6", 41), 29))
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

_IN_USE = "is in use by a live server; stop that one, or choose another name"
_INET_REMEDIES = {
    errno.EADDRINUSE: "stop whoever listens there, or choose another port (0 takes a free one)",
    errno.EACCES: "choose a port from 1024 up, or let systemd open this one and serve fd://3",
    errno.EADDRNOTAVAIL: "write an address of this machine, or * for every one that it has",
    socket.EAI_NONAME: "check the spelling, or write the address itself",
}


@dataclass(slots=True, eq=False)
class BoundSocket:
    """A listening (streams) or receiving (datagrams), non-blocking socket and its names.

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


@dataclass(frozen=True, slots=True)
class BindOptions:
    """What the sockets of a server get, whatever their endpoints.

    Args:
        backlog: how many connections the kernel holds until they are accepted (at most its `somaxconn`).
        reuse_port: let other processes bind the same TCP or UDP ports (SO_REUSEPORT).
        broadcast: let datagrams be sent to broadcast addresses (SO_BROADCAST).
    """

    backlog: int
    reuse_port: bool = False
    broadcast: bool = False


async def bind(endpoints: Iterable[Endpoint], options: BindOptions) -> list[BoundSocket]:
    """Listen on all of *endpoints*, or on none of them; datagram sockets are bound and receive.

    Every address that a host resolves to is bound, all on one port; families that the machine lacks are left out
    unless the address was spelled out. A Unix path that a dead server left is replaced, nothing else ever is.
    Accepted TCP connections inherit the `CONNECTION_OPTIONS`.

    Args:
        endpoints: what `parse` returned.
        options: see `BindOptions`.

    Returns:
        At least one socket for each endpoint, in their order; the caller closes them.

    Raises:
        OSError: an endpoint cannot be had; the text names it. What was bound until then is closed and unlinked;
            descriptors and sockets that were handed in stay open, with whoever gave them.
        ValueError: *reuse_port* on a platform that has none.
    """
    if options.reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError(f"reuse_port={options.reuse_port!r} is not possible on {sys.platform}; leave it out")
    bound: list[BoundSocket] = []
    with ExitStack() as undo:  # for errors and for being cancelled
        for endpoint in endpoints:
            await anyio.lowlevel.checkpoint_if_cancelled()
            try:
                bound += await _bind_one(endpoint, options, undo)
            except OSError as error:
                raise _named(endpoint, error)
        undo.pop_all()
    return bound


async def _bind_one(endpoint: Endpoint, options: BindOptions, undo: ExitStack) -> list[BoundSocket]:
    if isinstance(endpoint, InetEndpoint):
        return await _bind_inet(endpoint, options, undo)
    if isinstance(endpoint, UnixEndpoint):
        return [_bind_unix(endpoint, options, undo)]
    if isinstance(endpoint, DescriptorEndpoint):
        return [_bound(_adopt(endpoint, options, undo))]
    _prepare(endpoint.sock, options)
    if endpoint.sock.type == socket.SOCK_STREAM and not _is_listening(endpoint.sock):
        endpoint.sock.listen(options.backlog)
    return [_bound(endpoint.sock)]


def _named(endpoint: Endpoint, error: OSError) -> OSError:
    """Return the same error with a text that names the endpoint and, where one is known, the remedy."""
    text = f"{endpoint}: {error.strerror or error}"
    if error.filename is not None:
        text += f": {error.filename!r}"
    if isinstance(endpoint, InetEndpoint) and error.errno in _INET_REMEDIES:
        text += f"; {_INET_REMEDIES[error.errno]}"
    return type(error)(error.errno, text)


def _prepare(sock: socket.socket, options: BindOptions) -> None:
    """Make *sock* non-blocking and give it its options; before it listens, so that what is accepted inherits them."""
    sock.setblocking(False)
    if sock.type == socket.SOCK_DGRAM:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < DATAGRAM_BUFFER:
            _set(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
        if sock.family != AF_UNIX:
            if sys.platform == "linux":
                _set(sock, *_MULTICAST_ALL[sock.family == socket.AF_INET6], 0)
            if options.broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    elif sock.family != AF_UNIX:
        for level, name, value in CONNECTION_OPTIONS:
            if hasattr(socket, name):
                _set(sock, level, getattr(socket, name), value)


def _set(sock: socket.socket, level: int, name: int, value: int) -> None:
    try:
        sock.setsockopt(level, name, value)
    except OSError:  # unknown here, or refused by a sandbox: no reason not to serve
        pass


def _bound(sock: socket.socket) -> BoundSocket:
    return BoundSocket(sock, sock.getsockname(), describe(sock))


class _ListeningSocket(socket.socket):
    """A socket that knows its family and type by heart: accept() asks for them each time, and to make an enum's member
    of a number anew is a fifth of what accepting costs.
    """

    family: Any = None
    type: Any = None

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(family, kind)
        self.family, self.type = socket.AddressFamily(family), socket.SocketKind(kind)


def _is_listening(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _adopt(endpoint: DescriptorEndpoint, options: BindOptions, undo: ExitStack) -> socket.socket:
    try:
        sock = socket.socket(fileno=endpoint.fd)
    except OSError as error:
        remedy = "pass a bound socket, as systemd's socket units do"
        raise OSError(error.errno, f"is no open socket ({error.strerror}); {remedy}")
    undo.callback(sock.detach)  # if it is refused, or another endpoint fails, it stays open
    if fault := unfit(sock, endpoint.kind):
        raise OSError(errno.EINVAL, f"{fault}; pass another one")
    if endpoint.kind == socket.SOCK_STREAM and not _is_listening(sock):
        raise OSError(errno.EINVAL, "is not a listening socket; let its maker call listen() (systemd: Accept=no)")
    _prepare(sock, options)
    sock.set_inheritable(False)  # it has arrived: programs that handlers start must not hold the port
    return sock


async def _resolve(endpoint: InetEndpoint) -> list[tuple[int, str]]:
    """Return family and address of all that the endpoint's host means; a zone is in the address as a number."""
    host, port = endpoint.host, endpoint.port
    if host and "%" in host:  # an address, so nobody is asked and nothing blocks; uvloop would lose the zone
        found: list[Any] = socket.getaddrinfo(host, port, type=endpoint.kind, flags=socket.AI_NUMERICHOST)
        return [(family, f"{address[0]}%{address[3]}") for family, _, _, _, address in found]
    try:
        resolved = await anyio.getaddrinfo(host, port, type=endpoint.kind, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # how idna says it
        raise socket.gaierror(socket.EAI_NONAME, f"is not a host name ({error})")
    return [(family, address[0]) for family, _, _, _, address in resolved]


async def _bind_inet(endpoint: InetEndpoint, options: BindOptions, undo: ExitStack) -> list[BoundSocket]:
    addresses = await _resolve(endpoint)
    draws = 1 if endpoint.port else PORT_DRAWS
    while True:
        draws -= 1
        try:
            return _listen_on_one_port(addresses, endpoint, options, undo)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not draws:
                raise


def _listen_on_one_port(
    addresses: list[tuple[int, str]], endpoint: InetEndpoint, options: BindOptions, undo: ExitStack
) -> list[BoundSocket]:
    bound: list[BoundSocket] = []
    port = endpoint.port
    missing = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    with ExitStack() as attempt:
        for family, host in dict.fromkeys(addresses):
            try:
                sock = attempt.enter_context(_listen(family, host, port, endpoint.kind, options))
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


def _listen(family: int, host: str, port: int, kind: socket.SocketKind, options: BindOptions) -> socket.socket:
    with ExitStack() as undo:
        sock = undo.enter_context(_ListeningSocket(family, kind))
        _prepare(sock, options)
        if sys.platform == "win32":  # where SO_REUSEADDR lets others steal the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif kind == socket.SOCK_STREAM:  # connections of the last run, in TIME_WAIT, must not keep this one out
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # For datagrams SO_REUSEADDR would let anybody on the machine take the port over, and with it what arrives.
        if options.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # whatever the machine's default is
            host, _, zone = host.partition("%")
            sock.bind((host, port, 0, int(zone or 0)))
        else:
            sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(options.backlog)
        undo.pop_all()
    return sock


def _bind_unix(endpoint: UnixEndpoint, options: BindOptions, undo: ExitStack) -> BoundSocket:
    sock = _ListeningSocket(socket.AF_UNIX, endpoint.kind)
    bound = BoundSocket(sock, endpoint.path, unix_text(endpoint.path, endpoint.kind))
    undo.callback(bound.close)
    _prepare(sock, options)
    if endpoint.path.startswith("\0"):
        try:
            sock.bind(endpoint.path)
        except OSError as error:
            raise OSError(error.errno, _IN_USE if error.errno == errno.EADDRINUSE else error.strerror)
        if endpoint.kind == socket.SOCK_STREAM:
            sock.listen(options.backlog)
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
        if endpoint.kind == socket.SOCK_STREAM:
            sock.listen(options.backlog)  # under the lock: until it listens it looks like what a dead server left
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

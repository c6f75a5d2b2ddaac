"""How much is let in: the `Limits` of a server and the gate that keeps them. Pure: no I/O, no loop, the clock injected.

The listener asks the gate before it accepts; the stream takes its sizes from `Limits`. Only the server makes a gate.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Backoff", "Gate", "Limits", "OncePer", "Sessions", "connection_capacity", "peer_key"]

#: Most connections that are held when nobody says how many. Ranch stops at 1024, gunicorn at 1000, nginx at 512 a
#: worker; an idle connection costs about 3 KB here, so that ten thousand are affordable and still a bound.
MAX_CONNECTIONS = 10_000
#: Descriptors left to the program for logs, files and outgoing connections when the limit is computed.
SPARE_DESCRIPTORS = 64

#: Longest line or delimited message. asyncio and easynetwork have 64 KiB, h11 16, line servers as little as 8.
MAX_LINE_SIZE = 64 * 1024
#: Largest block that receive_exactly() gathers. gRPC takes messages of 4 MiB, MySQL's client packets of 16 MiB; a
#: length prefix that claims 4 GiB must be refused before a byte of it is waited for.
MAX_EXACT_SIZE = 16 * 1024 * 1024

#: Seconds at the connection limit after which those who still wait in the kernel's queue are accepted and closed, so
#: that a client sees a refusal in place of a hang. Ranch lets them wait for ever, nginx closes at once.
SHED_AFTER = 5.0

#: Datagrams that are handled at once, and the bytes that they may have: what comes above it is dropped, for which a
#: sender of datagrams is prepared, and counted. A waiting handler costs about 2 KB, a flood so a few megabytes at most.
MAX_IN_FLIGHT = 1024
MAX_IN_FLIGHT_SIZE = 4 * 1024 * 1024
#: Bytes of a datagram at most: more than UDP carries (65 507 over IPv4, 65 527 over IPv6). The stdlib's 8192 cuts.
MAX_DATAGRAM_SIZE = 65_535
#: What a user may ask for at most: each receive gets a buffer of that size, and Unix datagrams are not larger than the
#: send buffer that the kernel grants, 208 KiB where nobody raised it.
MAX_DATAGRAM_SIZE_MOST = 16 * 1024 * 1024

#: Peers that have a session at once, datagrams that may wait in one and bytes that may wait in all of them, and seconds
#: of silence after which one ends. NATs forget a silent UDP flow after 30 s to 5 min (RFC 4787, section 4.3: never in
#: less than two minutes).
MAX_SESSIONS = 10_000
MAX_QUEUED = 64
MAX_QUEUED_SIZE = 16 * 1024 * 1024
SESSION_IDLE = 120.0

#: Pause after a failed accept: short at first, because a descriptor is mostly free again within a request's time, and
#: at most a second, so that recovery is never further away than that (asyncio always sleeps one second).
BACKOFF_FIRST = 0.005
BACKOFF_LAST = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The bounds of a server, each on by default.

    Args:
        max_connections: connections held at once; None computes min(10 000, 0.9 x (soft descriptor limit - 64)).
            At the limit nothing is accepted, and the kernel's backlog is the queue.
        max_connections_per_peer: connections held at once from one address (IPv6: from one /64 network); what comes
            above it is closed at once. None sets no bound, because many clients may stand behind one address. Unix
            sockets have no peer address and are not counted.
        shed_after: seconds at max_connections after which the clients in the kernel's queue are accepted and closed;
            None lets them wait.
        max_line_size: bytes that readline() and receive_until() gather at most, the delimiter included.
        max_exact_size: bytes that receive_exactly() may be asked for at most.
        max_in_flight: datagrams that are handled at once; what comes above it is dropped and counted.
        max_in_flight_size: bytes of these datagrams together.
        max_datagram_size: bytes of a datagram; a larger one is dropped and counted, never cut.
        max_amplification: how many times the bytes of a datagram the replies to it may have together, so that nobody
            can use the server to flood a victim in whose name he writes; None sets no bound. QUIC takes 3 (RFC 9000,
            section 8.1).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is no number.
    """

    max_connections: int | None = field(
        default=None, metadata={"help": "connections held at once (default: from the descriptor limit, at most 10000)"}
    )
    max_connections_per_peer: int | None = field(
        default=None, metadata={"help": "connections held at once from one address, IPv6 by /64 (default: no bound)"}
    )
    shed_after: float | None = field(
        default=SHED_AFTER,
        metadata={"help": "seconds at max-connections after which waiting clients are closed; none: never"},
    )
    max_line_size: int = field(default=MAX_LINE_SIZE, metadata={"help": "bytes of a line or delimited message at most"})
    max_exact_size: int = field(
        default=MAX_EXACT_SIZE, metadata={"help": "bytes that receive_exactly() may be asked for"}
    )
    max_in_flight: int = field(default=MAX_IN_FLIGHT, metadata={"help": "datagrams that are handled at once"})
    max_in_flight_size: int = field(default=MAX_IN_FLIGHT_SIZE, metadata={"help": "bytes of these datagrams together"})
    max_datagram_size: int = field(default=MAX_DATAGRAM_SIZE, metadata={"help": "bytes of a datagram at most"})
    max_amplification: float | None = field(
        default=None, metadata={"help": "times the bytes of a datagram that its replies may have (default: no bound)"}
    )

    def __post_init__(self) -> None:
        _check_numbers(self, lowest={"shed_after": 0})
        if self.max_datagram_size > MAX_DATAGRAM_SIZE_MOST:
            size, most = self.max_datagram_size, MAX_DATAGRAM_SIZE_MOST
            raise ValueError(f"max_datagram_size is {size!r}; it must be at most {most}: no datagram is larger")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sessions:
    """That a datagram server gives each peer a session, and the bounds of these.

    Args:
        max_sessions: sessions that are open at once; datagrams of further peers are dropped and counted.
        max_queued: datagrams that wait in a session for its handler; further ones are dropped and counted.
        max_queued_size: bytes that wait in all sessions together; the same.
        idle_timeout: seconds without a datagram from its peer after which the input of a session ends; None lets it
            wait for ever.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is no number.
    """

    max_sessions: int = field(default=MAX_SESSIONS, metadata={"help": "peers that have a session at once"})
    max_queued: int = field(default=MAX_QUEUED, metadata={"help": "datagrams that wait in a session for its handler"})
    max_queued_size: int = field(default=MAX_QUEUED_SIZE, metadata={"help": "bytes that wait in all sessions"})
    idle_timeout: float | None = field(
        default=SESSION_IDLE, metadata={"help": "seconds of silence after which a session ends; none: never"}
    )

    def __post_init__(self) -> None:
        _check_numbers(self, lowest={"idle_timeout": 0})


def _check_numbers(group: Any, lowest: dict[str, int]) -> None:
    """Raise unless each field is of its type and at least 1, or at least what *lowest* says."""
    for each in fields(group):
        value = getattr(group, each.name)
        optional, seconds = "None" in str(each.type), "float" in str(each.type)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float) if seconds else int):
            raise TypeError(f"{each.name} is {value!r}; it must be {'a number' if seconds else 'an integer'}")
        least = lowest.get(each.name, 1)
        if not value >= least:  # also not a number
            raise ValueError(f"{each.name} is {value!r}; it must be at least {least}")


def connection_capacity(soft_descriptor_limit: int) -> int:
    """Return how many connections fit under *soft_descriptor_limit* when nobody says how many.

    Nine tenths of what is left after the program's own 64 descriptors; on a very short machine (``ulimit -n 64``) half
    of the little there is, so that there is a server at all.
    """
    roomy = (soft_descriptor_limit - SPARE_DESCRIPTORS) * 9 // 10
    return min(MAX_CONNECTIONS, max(roomy, soft_descriptor_limit // 2, 1))


def peer_key(address: object) -> str | None:
    """Return what stands for a peer when connections are counted, or None where peers have no address (Unix).

    An IPv6 host owns a /64 network and can come from any of its addresses; an IPv4 address mapped into IPv6 is itself.
    """
    if not isinstance(address, tuple):
        return None
    host = str(address[0])
    if ":" not in host:
        return host
    parsed = ipaddress.IPv6Address(host.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


class Gate:
    """Counts who is inside, and says whether the next one may come in. One for all listeners of a server.

    Attributes:
        inside: connections that hold a permit.
        capacity: how many may.
        suspended: while True, nobody comes in.
    """

    __slots__ = ("_peers", "_per_peer", "capacity", "inside", "suspended")

    def __init__(self, capacity: int, per_peer: int | None) -> None:
        self.capacity = capacity
        self.inside = 0
        self.suspended = False
        self._per_peer = per_peer
        self._peers: dict[str, int] = {}

    @property
    def open(self) -> bool:
        """Whether a permit is free and nobody has suspended the server."""
        return self.inside < self.capacity and not self.suspended

    def enter(self, address: object) -> bool:
        """Take a permit for a peer at *address*; False if it has as many connections as one peer may."""
        if self._per_peer is not None and (key := peer_key(address)) is not None:
            count = self._peers.get(key, 0)
            if count >= self._per_peer:
                return False
            self._peers[key] = count + 1
        self.inside += 1
        return True

    def leave(self, address: object) -> bool:
        """Give the permit of a peer at *address* back; True if somebody may be waiting for it."""
        if self._per_peer is not None and (key := peer_key(address)) is not None:
            count = self._peers.pop(key) - 1
            if count:
                self._peers[key] = count
        self.inside -= 1
        return self.inside + 1 == self.capacity


class Backoff:
    """The pause after each failure in a row: 5 ms, doubled each time, at most a second."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = BACKOFF_FIRST

    def pause(self) -> float:
        """Return the seconds to pause after one more failure."""
        pause = self._next
        self._next = min(pause * 2, BACKOFF_LAST)
        return pause

    def reset(self) -> None:
        """Begin with the short pause again, after a success."""
        self._next = BACKOFF_FIRST


class OncePer:
    """Lets a log line through once an *interval* (seconds), and counts what it held back."""

    __slots__ = ("_clock", "_held_back", "_interval", "_last")

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._clock = clock
        self._last: float | None = None
        self._held_back = 0

    def __call__(self) -> int | None:
        """Return None if this one is to be held back, otherwise how many were held back since the last."""
        now = self._clock()
        if self._last is not None and now - self._last < self._interval:
            self._held_back += 1
            return None
        self._last = now
        held_back, self._held_back = self._held_back, 0
        return held_back

"""Datagrams: one packet as a handler sees it, and the socket that they all come through and are answered by.

Receiving goes in batches until the socket is empty; a packet arrives whole or is counted as too large. Replies leave
from the address that the packet was sent to, and wait while the kernel has no room for them. Whether there is room for
one more handler, and what its handler does, is the server's business; only the server and `_session` import this.

Source: ``udp(7)``, ``ip(7)`` (IP_PKTINFO), ``unix(7)``; RFC 3542 (IPV6_PKTINFO).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio

from ._addresses import AF_UNIX, peer_text
from ._door import Door
from ._endpoints import BoundSocket
from ._errors import NO_MEMORY, PEER_GONE, ReplyRefusedError
from ._readiness import Loop, Task

__all__ = ["Ancillary", "Budget", "Datagram", "DatagramCounters", "DatagramSocket"]

logger = logging.getLogger("aserver")

#: What `recvmsg` tells of a packet beside its bytes.
Ancillary: TypeAlias = list[tuple[int, int, bytes]]

#: Packets that are received in a row before the rest of the program gets its turn: some 100 µs of receiving.
RECEIVE_BATCH = 64
#: Room for the ancillary data of one packet: a packet information of either version.
ANCILLARY_SIZE = socket.CMSG_SPACE(20) if hasattr(socket, "CMSG_SPACE") else 0
#: Seconds between two tries to answer a Unix peer whose queue is full, where not even a descriptor is left to ask when.
RETRY = 0.05

#: `socket` has the first only from Python 3.14 on.
_IP_PKTINFO = {"linux": 8, "darwin": 26}.get(sys.platform)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
_IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", None)
#: Linux: a socket's counters, of which the ninth tells how many packets it dropped (since 4.12).
_SO_MEMINFO, _MEMINFO, _MEMINFO_DROPS = 55, struct.Struct("@9I"), 8


@dataclass(slots=True)
class DatagramCounters:
    """What became of the packets; shared by the sockets of a server.

    Attributes:
        beginning: those whose `begin` has not returned: the one whose handler looks at the counters in its first step.
    """

    received: int = 0
    beginning: int = 0
    too_large: int = 0
    no_room: int = 0
    receive_errors: int = 0
    sent: int = 0
    send_errors: int = 0
    replies_refused: int = 0


class Budget:
    """How many bytes a peer may still be sent, for what it has sent itself."""

    __slots__ = ("_counters", "_factor", "_left")

    def __init__(self, factor: float, counters: DatagramCounters) -> None:
        self._factor = factor
        self._counters = counters
        self._left = 0.0

    def earn(self, size: int) -> None:
        """Note that the peer has sent *size* bytes."""
        self._left += size * self._factor

    def spend(self, size: int) -> None:
        """Note that the peer is sent *size* bytes; ReplyRefusedError if that is too much."""
        if size > self._left:
            self._counters.replies_refused += 1
            raise ReplyRefusedError(size, int(self._left))
        self._left -= size


class Datagram:
    """One packet that was received.

    Several tasks may reply at once, each reply is a packet of its own. Not thread-safe: use it in the loop that serves
    it. Cancelling a reply that waits for room sends nothing.

    Attributes:
        data: its bytes, all of them; there may be none.
        via, ancillary, budget: the socket that it came through, what the kernel told with it, and how much may be
            replied; for the server.
        peer: the address it came from: ``(host, port)``, with flow and scope for IPv6; for Unix sockets the path of the
            peer, and None or ``""`` if it has none and cannot be answered.
    """

    __slots__ = ("ancillary", "budget", "data", "peer", "via")

    def __init__(self, data: bytes, peer: Any, via: DatagramSocket, ancillary: Ancillary | None) -> None:
        self.data = data
        self.peer = peer
        self.via = via
        self.ancillary = ancillary
        self.budget: Budget | None = None

    def __repr__(self) -> str:
        return f"<Datagram {peer_text(self.peer)} {len(self.data)} bytes>"

    async def reply(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, as one packet, back to the peer, from the address that it had sent to.

        Returns when the kernel has it, and waits while the kernel has no room; whether it arrives nobody knows.

        Raises:
            anyio.BrokenResourceError: the network, a firewall or the peer does not take it. A handler that lets it pass
                ends as lost, which is nobody's bug.
            aserver.ReplyRefusedError: it is larger than ``Limits.max_amplification`` allows; the same.
            anyio.ClosedResourceError: the server is closed.
            ValueError: it is larger than a datagram can be.
        """
        if self.budget is not None:
            self.budget.spend(memoryview(data).nbytes)
        # Spelled out, as two calls more would be a tenth of what a datagram costs.
        via = self.via
        if self.ancillary is None and not via.waiting:
            try:
                via.sendto(data, self.peer)
            except (OSError, TypeError):  # the longer way knows what to make of it
                pass
            else:
                via.counters.sent += 1
                return
        await via.send(data, self.peer, self.ancillary and reply_source(self.ancillary))

    @property
    def local_address(self) -> Any:
        """The address that the packet was sent to, as far as the system tells: ``(host, port)``, or a Unix path.

        It is one of this machine, a multicast group or a broadcast address.
        """
        own = self.via.bound.address
        for level, kind, info in self.ancillary or ():
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return (socket.inet_ntop(socket.AF_INET, info[8:12]), own[1])
            if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
                return (socket.inet_ntop(socket.AF_INET6, info[:16]), own[1])
        return own

    # What a server does with requests of any kind; a packet has no input that could end.

    def begin_draining(self) -> None:
        """Nothing: it is all there is."""

    end_input = begin_draining
    abort = begin_draining


class DatagramSocket(Door):
    """Receives from one bound socket, and sends on it.

    Args:
        bound, loop: as for every door.
        counters: those of the server.
        max_size: bytes of a packet at most.
        requests: what the server has open; while that is nothing, there is room.
        has_room: says whether there is for a packet of so many bytes.
        begin: serves a packet, as `Loop.start` does.
        begun: hears of each one that is not served yet when `begin` returns, and of its task.
    """

    def __init__(
        self,
        bound: BoundSocket,
        loop: Loop,
        counters: DatagramCounters,
        max_size: int,
        requests: Sized,
        has_room: Callable[[int], bool],
        begin: Callable[[Datagram], Task | None],
        begun: Callable[[Datagram, Task], None],
    ) -> None:
        super().__init__(bound, loop)
        self.admitting = True
        self.counters = counters
        self._max_size = max_size
        self._requests = requests
        self._has_room = has_room
        self._begin = begin
        self._begun = begun
        self._sock = bound.sock
        self.sendto = bound.sock.sendto
        self._watch = loop.watch(bound.sock, _nothing_to_read)
        self._turn = anyio.Lock()
        self.waiting = 0
        self._dropped_before = _kernel_drops(self._sock) or 0
        self._dropped: int | None = None
        # One byte more than is let in tells what is too large from what just fits, and costs nothing.
        self._tells_address = _ask_for_address(self._sock)
        self._receive: Callable[..., tuple[Any, ...]] = self._sock.recvfrom
        self._room: tuple[int, ...] = (max_size + 1,)
        if self._tells_address:
            self._receive, self._room = self._sock.recvmsg, (max_size + 1, ANCILLARY_SIZE)

    # -- receiving -----------------------------------------------------------------------------------------------------

    async def _wait_for_permit(self) -> None:
        while not self.admitting:
            await self._rest(None)

    def _take_batch(self) -> bool:
        if not self.admitting:
            return False
        receive, room, max_size, tells_address = self._receive, self._room, self._max_size, self._tells_address
        counters, requests, begin = self.counters, self._requests, self._begin
        for _ in range(self._batch):
            try:
                message = receive(*room)
            except BlockingIOError:
                self._shrink_batch()
                break
            except (OSError, MemoryError) as exc:
                if not self._receive_failed(exc):
                    return False
                continue
            counters.received += 1
            data = message[0]
            if len(data) > max_size:
                counters.too_large += 1
            elif requests and not self._has_room(len(data)):
                counters.no_room += 1
            else:
                counters.beginning += 1
                try:
                    datagram = Datagram(data, message[-1], self, message[1] if tells_address else None)
                    if (task := begin(datagram)) is not None:
                        self._begun(datagram, task)
                except Exception:  # out of memory, most likely: this datagram's bad luck, not the server's end
                    counters.no_room += 1
                    logger.exception("%s: a datagram could not be served", self.bound.endpoint)
                counters.beginning -= 1
        else:
            self._grow_batch(RECEIVE_BATCH)
        self._backoff.reset()
        return self.admitting  # a handler that never waits may have suspended the server

    def take_waiting(self, most: int) -> None:
        """Receive what waits now, in a row, but not much more than *most* packets."""
        until = self.counters.received + most
        while self.admitting and self._failure is None and self.counters.received < until:
            before = self.counters.received
            self._take_batch()
            if self.counters.received == before:
                break

    def _receive_failed(self, failure: OSError | MemoryError) -> bool:
        """Decide what a failed receive means; whether to try the next at once."""
        self.counters.receive_errors += 1
        exc = failure if isinstance(failure, OSError) else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if exc.errno in PEER_GONE or isinstance(exc, ConnectionError):
            # The network's answer to something that we sent (ICMP): it concerns one peer, who is not told of here.
            logger.debug("%s: the network reports: %s", self.bound.endpoint, exc.strerror)
            return True
        if exc.errno in NO_MEMORY:
            self._pause = self._backoff.pause()
            self._warn("%s cannot receive: %s", exc.strerror)
        else:
            self._failure = exc
        return False

    @property
    def dropped_by_kernel(self) -> int | None:
        """Packets that the kernel dropped since the server was opened; None where it does not tell."""
        if self._sock.fileno() >= 0 and (now := _kernel_drops(self._sock)) is not None:
            self._dropped = (now - self._dropped_before) % 2**32  # the counter has 32 bits
        return self._dropped

    def retire(self) -> None:
        """Receive nothing more."""
        self.admitting = False

    def close(self) -> None:
        """Close the socket; replies that wait for room fail."""
        self.admitting = False
        _ = self.dropped_by_kernel  # for who asks later
        self._watch.close()
        self.bound.close()

    # -- sending -------------------------------------------------------------------------------------------------------

    async def send(self, data: bytes | bytearray | memoryview, address: Any, source: Ancillary | None = None) -> None:
        """Send one packet to *address*; from the address and interface that *source* names. See `Datagram.reply`."""
        # Who waits for room goes first; on a Unix socket it is one peer's queue that is full, and nobody waits for it.
        if not self.waiting and self._take(data, address, source):
            return
        if self._sock.family == AF_UNIX:
            while not self._take(data, address, source):
                await self._wait_for_unix_peer(address)
            return
        self.waiting += 1
        try:
            async with self._turn:
                while not self._take(data, address, source):
                    await self._watch.wait_writable()
        finally:
            self.waiting -= 1

    def _take(self, data: bytes | bytearray | memoryview, address: Any, source: Ancillary | None) -> bool:
        """Give one packet to the kernel; whether it has taken it. Raises what `Datagram.reply` does."""
        try:
            if source is None:
                self.sendto(data, address)
            else:
                self._sock.sendmsg((data,), source, 0, address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            raise self._translated(exc, data, address) from exc
        except TypeError:
            if address:  # what is wrong is the type of the data
                raise
            raise anyio.BrokenResourceError("the peer has no address, so nothing can be sent to it") from None
        self.counters.sent += 1
        return True

    def _translated(self, exc: OSError, data: bytes | bytearray | memoryview, address: Any) -> Exception:
        if self._sock.fileno() < 0:
            return anyio.ClosedResourceError(f"{self.bound.endpoint} is closed")
        self.counters.send_errors += 1
        if exc.errno == errno.EMSGSIZE:
            return ValueError(f"{memoryview(data).nbytes} bytes do not fit into one datagram; send less at a time")
        if exc.errno is None:  # Python itself refuses, before it asks the system
            return ValueError(f"{address!r} cannot be sent to: {exc}")
        return anyio.BrokenResourceError(f"nothing can be sent to {peer_text(address)}: {exc.strerror}")

    async def _wait_for_unix_peer(self, address: Any) -> None:
        """Wait until our own buffer and the peer's queue, which has room for a few packets only, may take one more."""
        async with self._turn:
            await self._watch.wait_writable()
        try:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:  # no descriptor is left
            await anyio.sleep(RETRY)
            return
        with probe:
            probe.setblocking(False)
            if probe.connect_ex(address) == 0:  # connected, and only so, it is not writable while the peer is not
                await anyio.wait_writable(probe)


def _nothing_to_read() -> bool:
    return False


def _ask_for_address(sock: socket.socket) -> bool:
    """Have the kernel tell to which address packets were sent, where there are several; whether it does."""
    if sock.family == AF_UNIX or not hasattr(sock, "recvmsg") or sock.getsockname()[0] not in ("0.0.0.0", "::"):
        return False
    try:
        if sock.family == socket.AF_INET6 and _IPV6_RECVPKTINFO is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        elif sock.family == socket.AF_INET and _IP_PKTINFO is not None:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            return False
    except OSError:  # replies go out from the address that the route prefers, then
        return False
    return True


def reply_source(received: Ancillary) -> Ancillary | None:
    """Return what makes a packet leave from the address that the one with *received* was sent to."""
    for level, kind, info in received:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            # The second of the three is the machine's own address, also if the packet was sent to a group.
            return [(level, kind, bytes(4) + info[4:8] + bytes(4))]
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            to_group, link_local = info[0] == 0xFF, info[0] == 0xFE and info[1] & 0xC0 == 0x80
            interface = info[16:20] if to_group or link_local else bytes(4)
            return [(level, kind, (bytes(16) if to_group else info[:16]) + interface)]
    return None


def interface_source(family: int, index: int) -> Ancillary:
    """Return what makes a packet leave through the interface with number *index*.

    Raises:
        ValueError: the platform cannot.
    """
    if family == socket.AF_INET6 and _IPV6_PKTINFO is not None:
        return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("@16sI", bytes(16), index))]
    if family == socket.AF_INET and _IP_PKTINFO is not None:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("@I4s4s", index, bytes(4), bytes(4)))]
    raise ValueError(f"an interface cannot be chosen on {os.name}; leave it out")


def _kernel_drops(sock: socket.socket) -> int | None:
    if sys.platform != "linux" or sock.family == AF_UNIX:  # a Unix socket drops nothing: its senders wait
        return 0 if sock.family == AF_UNIX else None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:  # an older kernel, or closed
        return None
    return int(_MEMINFO.unpack(found)[_MEMINFO_DROPS]) if len(found) == _MEMINFO.size else None

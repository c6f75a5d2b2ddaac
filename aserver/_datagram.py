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
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import anyio

from ._addresses import AF_UNIX, peer_text
from ._ancillary import ANCILLARY_SIZE, Ancillary, ask_for_address, kernel_drops, reply_source, sent_to
from ._door import Door
from ._endpoints import BoundSocket
from ._errors import NO_MEMORY, PEER_GONE, ReplyRefusedError
from ._readiness import Loop, Task

__all__ = ["Budget", "Datagram", "DatagramCounters", "DatagramSocket"]

logger = logging.getLogger("aserver")

#: Packets that are received in a row before the rest of the program gets its turn: some 100 µs of receiving.
RECEIVE_BATCH = 64
#: Bytes of the receive buffer that even an empty packet takes, and more.
LEAST_ROOM = 256
#: Seconds between two tries to answer a Unix peer whose queue is full, where not even a descriptor is left to ask when.
RETRY = 0.05


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
        return sent_to(self.ancillary or [], self.via.bound.address)

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
        self.waiting = 0
        self._turn = anyio.Lock()
        self._queues: dict[Any, _Queue] = {}
        self._dropped_before = kernel_drops(self._sock) or 0
        self._dropped: int | None = None
        # One byte more than is let in tells what is too large from what just fits, and costs nothing.
        self._tells_address = ask_for_address(self._sock)
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

    def take_waiting(self) -> None:
        """Receive what waits now, in a row, but not much more than can wait: in a flood there would be no end."""
        room = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) if self.admitting else 0
        until = self.counters.received + room // LEAST_ROOM
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
        if self._sock.fileno() >= 0 and (now := kernel_drops(self._sock)) is not None:
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
        for queue in self._queues.values():
            if queue.probe is not None:
                anyio.notify_closing(queue.probe)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def send(self, data: bytes | bytearray | memoryview, address: Any, source: Ancillary | None = None) -> None:
        """Send one packet to *address*; from the address and interface that *source* names. See `Datagram.reply`."""
        # Who waits goes first; on a Unix socket, who waits for the same peer.
        unix = self._sock.family == AF_UNIX
        key = address if unix else None
        if (queue := self._queues.get(key)) is None:
            if self._take(data, address, source):
                return
            queue = self._queues[key] = _Queue()
        queue.length += 1
        self.waiting += 1
        try:
            async with queue.turn:
                while not self._take(data, address, source):
                    await (self._room_at(queue, address) if unix else self._watch.wait_writable())
        finally:
            self.waiting -= 1
            queue.length -= 1
            if not queue.length:
                del self._queues[key]

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

    async def _room_at(self, queue: _Queue, address: Any) -> None:
        """Wait until our own buffer and the queue of a Unix peer, which holds a few packets only, may take one more."""
        async with self._turn:
            await self._watch.wait_writable()
        try:
            queue.probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:  # no descriptor is left
            await anyio.sleep(RETRY)
            return
        with queue.probe:
            queue.probe.setblocking(False)
            try:
                # Connected, and only so, it is not writable while the peer takes nothing.
                if queue.probe.connect_ex(address) == 0:
                    await anyio.wait_writable(queue.probe)
            except anyio.ClosedResourceError:  # the server was closed: the next try says so
                pass
            finally:
                queue.probe = None


class _Queue:
    """Those who wait to send to one address, one after the other."""

    __slots__ = ("length", "probe", "turn")

    def __init__(self) -> None:
        self.length = 0
        self.turn = anyio.Lock()
        self.probe: socket.socket | None = None


def _nothing_to_read() -> bool:
    return False

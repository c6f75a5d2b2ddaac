"""Who is in the house: the open requests of a server, their tasks, and the counters of what became of them.

A request is a connection, a datagram or a session.

Bookkeeping only: nothing here waits for a socket or runs a handler. The server enters and leaves; whoever wants to
know when the house is empty waits on the bell that the last one to leave rings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

from ._readiness import Task

__all__ = ["DatagramStatistics", "Registry", "ShutdownReport", "Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A stream server's counters at one moment, all since it was opened except `open`.

    Args:
        open: connections that are open now.
        accepted: connections that were accepted.
        completed: connections whose handler returned.
        failed: connections whose handler or hook raised.
        lost: connections that ended by the network or the peer: reset, early end, a line over the limit.
        rejected: connections that ``verify_request`` turned away.
        cancelled: connections whose handler was cancelled.
        refused_per_peer: connections closed because their peer had as many as one may.
        shed: clients accepted and closed for want of a descriptor, or after `Limits.shed_after` at the limit.
        accept_errors: accepts that failed, for whatever reason.
    """

    open: int
    accepted: int
    completed: int
    failed: int
    lost: int
    rejected: int
    cancelled: int
    refused_per_peer: int
    shed: int
    accept_errors: int


@dataclass(frozen=True, slots=True)
class DatagramStatistics:
    """A datagram server's counters at one moment, all since it was opened except `open` and `queued`.

    Each datagram that was received is in `handled`, `queued` or `dropped`: ``received == handled + queued + dropped``.

    Args:
        open: requests that are open now; a request is a datagram, or with ``sessions=`` a session.
        received: datagrams that were read from the sockets.
        handled: datagrams that a handler got.
        queued: datagrams that wait for the handler of their session.
        completed: requests whose handler returned.
        failed: requests whose handler or hook raised.
        lost: requests that ended by the network or the peer: a reply that could not be sent.
        rejected: requests that ``verify_request`` turned away.
        cancelled: requests whose handler was cancelled.
        dropped_in_flight: datagrams for which `Limits.max_in_flight` or `Limits.max_in_flight_size` left no room.
        dropped_too_large: datagrams of more than `Limits.max_datagram_size` bytes.
        dropped_session_limit: datagrams of new peers while `Sessions.max_sessions` were open.
        dropped_queue_full: datagrams for which their session's queue had no room.
        dropped_unread: datagrams that were in the queue of a session when it ended.
        dropped_by_kernel: datagrams that the kernel dropped, mostly for want of room in the receive buffer. They were
            never received, so they are not in `dropped`. None where the system does not tell (it does on Linux).
        receive_errors: receiving that failed, for whatever reason.
        sent: datagrams that the kernel took.
        send_errors: datagrams that could not be sent.
        replies_refused: replies that `Limits.max_amplification` forbade.
    """

    open: int
    received: int
    handled: int
    queued: int
    completed: int
    failed: int
    lost: int
    rejected: int
    cancelled: int
    dropped_in_flight: int
    dropped_too_large: int
    dropped_session_limit: int
    dropped_queue_full: int
    dropped_unread: int
    dropped_by_kernel: int | None
    receive_errors: int
    sent: int
    send_errors: int
    replies_refused: int

    @property
    def dropped(self) -> int:
        """Datagrams that were received and given to no handler, for all reasons."""
        return (
            self.dropped_in_flight
            + self.dropped_too_large
            + self.dropped_session_limit
            + self.dropped_queue_full
            + self.dropped_unread
        )


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What became of the requests that were open when a server was told to stop.

    Args:
        finished: ended by themselves within the grace.
        cancelled: had to be cancelled at its end.
        aborted: did not end on cancellation; their connection was reset, or their socket closed, under them.
    """

    finished: int
    cancelled: int
    aborted: int

    @property
    def clean(self) -> bool:
        """Whether all of them ended by themselves."""
        return not self.cancelled and not self.aborted


RequestT = TypeVar("RequestT")


class Registry(Generic[RequestT]):
    """The open requests of one server and the task that serves each.

    Attributes:
        tasks: each open request with its task; who enters puts it there.
        completed, failed, lost, rejected, cancelled: see `Statistics`.
    """

    __slots__ = ("_bell", "cancelled", "completed", "failed", "lost", "rejected", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[RequestT, Task] = {}
        self._bell: anyio.Event | None = None
        self.completed = 0
        self.failed = 0
        self.lost = 0
        self.rejected = 0
        self.cancelled = 0

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[RequestT]:
        return iter(list(self.tasks))

    @property
    def ended(self) -> int:
        """Requests that came to an end, whichever it was."""
        return self.completed + self.failed + self.lost + self.rejected + self.cancelled

    def leave(self, request: RequestT) -> None:
        """Note that *request* has ended; the last one to leave rings the bell."""
        self.tasks.pop(request, None)
        if not self.tasks and self._bell is not None:
            self._bell.set()
            self._bell = None

    async def wait_empty(self) -> None:
        """Wait until no request is open. Several may wait; cancelling one changes nothing."""
        while self.tasks:
            if self._bell is None:
                self._bell = anyio.Event()
            await self._bell.wait()

"""Who is in the house: the open requests of a server, their tasks, and the counters of what became of them.

Bookkeeping only: nothing here waits for a socket or runs a handler. The server enters and leaves; whoever wants to
know when the house is empty waits on the bell that the last one to leave rings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import anyio

from ._readiness import Task
from ._stream import Stream

__all__ = ["Registry", "ShutdownReport", "Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A server's counters at one moment, all since it was opened except `open`.

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
class ShutdownReport:
    """What became of the connections that were open when a server was told to stop.

    Args:
        finished: ended by themselves within the grace.
        cancelled: had to be cancelled at its end.
        aborted: did not end on cancellation; their connection was reset under them.
    """

    finished: int
    cancelled: int
    aborted: int

    @property
    def clean(self) -> bool:
        """Whether all of them ended by themselves."""
        return not self.cancelled and not self.aborted


class Registry:
    """The open connections of one server and the task that serves each.

    Attributes:
        completed, failed, lost, rejected, cancelled: see `Statistics`.
    """

    __slots__ = ("_bell", "_tasks", "cancelled", "completed", "failed", "lost", "rejected")

    def __init__(self) -> None:
        self._tasks: dict[Stream, Task] = {}
        self._bell: anyio.Event | None = None
        self.completed = 0
        self.failed = 0
        self.lost = 0
        self.rejected = 0
        self.cancelled = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._tasks))

    def enter(self, stream: Stream, task: Task) -> None:
        """Note that *task* serves *stream*."""
        self._tasks[stream] = task

    def leave(self, stream: Stream) -> None:
        """Note that *stream* has ended; the last one to leave rings the bell."""
        self._tasks.pop(stream, None)
        if not self._tasks and self._bell is not None:
            self._bell.set()
            self._bell = None

    async def wait_empty(self) -> None:
        """Wait until no connection is open. Several may wait; cancelling one changes nothing."""
        while self._tasks:
            if self._bell is None:
                self._bell = anyio.Event()
            await self._bell.wait()

    def tasks(self) -> list[Task]:
        """Return the tasks of all open connections."""
        return list(self._tasks.values())

    def abort(self) -> int:
        """Reset all open connections; return how many."""
        for stream in self:
            stream.abort()
        return len(self)

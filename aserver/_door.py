"""A door: one bound socket, through which requests come in batch by batch until it fails or is retired.

Here is what accepting connections and receiving datagrams have in common: to wait for a permit, to pump, to pause when
the machine is short of something, and to say so once a second at most. What comes in is told in `_listener` and
`_datagram`, the only rooms that build on this one.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod

import anyio

from ._endpoints import BoundSocket
from ._errors import ListenerFailedError
from ._limits import Backoff, OncePer
from ._readiness import Loop

__all__ = ["Door"]

logger = logging.getLogger("aserver")


#: A batch begins with one, as to look in vain costs more than a turn of the loop (an accept 4 µs, a receive 1.5); it
#: doubles when so many in a row were full, and then each time until one is not.
FULL_BATCHES = 4


class Door(ABC):
    """Lets requests in through one bound socket."""

    def __init__(self, bound: BoundSocket, loop: Loop) -> None:
        self.bound = bound
        self._loop = loop
        self._bell: anyio.CancelScope | None = None
        self._rung = False
        self._backoff = Backoff()
        self._pause = 0.0
        self._batch, self._full_batches = 1, 0
        self._failure: OSError | None = None
        self._may_log = OncePer(1.0, time.monotonic)

    @abstractmethod
    async def _wait_for_permit(self) -> None:
        """Wait until somebody may come in."""

    @abstractmethod
    def _take_batch(self) -> bool:
        """Let in who is there; False when that has to stop for now (a permit is missing, or a pause or failure set)."""

    async def accept_forever(self) -> None:
        """Let requests in until cancelled.

        Raises:
            aserver.ListenerFailedError: the socket itself is no longer good for it.
        """
        while self._failure is None:
            await self._wait_for_permit()
            await self._loop.pump(self.bound.sock, self._take_batch)
            if self._pause:
                await self._rest(self._pause)
                self._pause = 0.0
        raise ListenerFailedError(
            self._failure.errno, f"{self.bound.endpoint} accepts no more: {self._failure.strerror}"
        ) from self._failure

    def _grow_batch(self, most: int) -> None:
        """Take more at a time while there is more each time."""
        self._full_batches += 1
        if self._batch < most and (self._batch > 1 or self._full_batches >= FULL_BATCHES):
            self._batch, self._full_batches = self._batch * 2, 0

    def _shrink_batch(self) -> None:
        """Take fewer next time, after there were not that many."""
        self._batch, self._full_batches = max(self._batch // 2, 1), 0

    async def _rest(self, seconds: float | None) -> bool:
        """Sleep for *seconds*, or until the bell rings; whether it did."""
        self._rung = False
        with anyio.move_on_after(seconds) as self._bell:
            await anyio.sleep_forever()
        self._bell = None
        return self._rung

    def ring(self) -> None:
        """End a pause and look again: a permit may be free, or what was lacking may be there."""
        if self._bell is not None:
            self._rung = True
            self._bell.cancel()

    @abstractmethod
    def retire(self) -> None:
        """Let nobody in any more; what is inside can still answer."""

    @abstractmethod
    def close(self) -> None:
        """Close the socket. Idempotent; `accept_forever` must have ended."""

    def _warn(self, message: str, *details: object) -> None:
        if (held_back := self._may_log()) is not None:
            logger.warning(message, self.bound.endpoint, *details)
            if held_back:
                logger.debug("%s: %d such lines were held back", self.bound.endpoint, held_back)

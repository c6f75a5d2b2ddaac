"""Accepting: permit first, in small batches, and what to do about each errno. The same on every loop.

A listener turns one bound socket into a sequence of accepted, non-blocking sockets for the server. It knows the gate,
not what a connection is for. Only the server imports it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from ._endpoints import BoundSocket
from ._errors import ListenerFailedError
from ._limits import Backoff, Gate, OncePer
from ._readiness import Loop

__all__ = ["AcceptCounters", "Listener"]

logger = logging.getLogger("aserver")

#: Accepts in a row, and seconds for them, before live connections get their turn. A batch as long as the backlog put
#: the p99 of a live client at 1.2 s in a flood of connects.
ACCEPT_BATCH = 32
ACCEPT_BUDGET = 0.001
#: A batch begins with one, as an accept that finds nobody costs 4 µs, more than a turn of the loop; it doubles when so
#: many in a row were full.
FULL_BATCHES = 4
#: Clients that are turned away in a row when there is no descriptor for them: one costs about 10 µs.
SHED_BATCH = 128

#: The connection was lost while it waited for us, or a firewall or network trouble took it: its error, not ours.
_CONNECTION_LOST = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED EPERM EPROTO ENOPROTOOPT EOPNOTSUPP ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET "
        "ECONNRESET ETIMEDOUT EINTR"
    ).split()
    if hasattr(errno, name)
)
#: Out of descriptors (WSAEMFILE on Windows): a waiting client can be turned away through the reserve.
_NO_DESCRIPTOR = frozenset((errno.EMFILE, errno.ENFILE, getattr(errno, "WSAEMFILE", errno.EMFILE)))
#: Out of kernel memory: there is nothing to do but to wait.
_NO_MEMORY = frozenset((errno.ENOBUFS, errno.ENOMEM, getattr(errno, "WSAENOBUFS", errno.ENOBUFS)))


@dataclass(slots=True)
class AcceptCounters:
    """What became of the clients that knocked; shared by the listeners of a server."""

    accepted: int = 0
    refused_per_peer: int = 0
    shed: int = 0
    accept_errors: int = 0


class Listener:
    """Accepts from one bound socket as long as the gate is open."""

    def __init__(
        self,
        bound: BoundSocket,
        gate: Gate,
        loop: Loop,
        counters: AcceptCounters,
        shed_after: float | None,
        on_connection: Callable[[socket.socket, Any], None],
    ) -> None:
        self.bound = bound
        self._gate = gate
        self._loop = loop
        self._counters = counters
        self._shed_after = shed_after
        self._on_connection = on_connection
        self._bell: anyio.CancelScope | None = None
        self._rung = False
        self._reserve = _open_reserve()
        self._backoff = Backoff()
        self._batch, self._full_batches = 1, 0
        self._pause = 0.0
        self._failure: OSError | None = None
        self._may_log = OncePer(1.0, time.monotonic)

    async def accept_forever(self) -> None:
        """Accept until cancelled.

        Raises:
            aserver.ListenerFailedError: the socket itself is no longer good for accepting.
        """
        while self._failure is None:
            if not self._gate.open:
                await self._wait_for_permit()
            await self._loop.pump(self.bound.sock, self._accept_batch)
            if self._pause:
                await self._rest(self._pause)
                self._pause = 0.0
        raise ListenerFailedError(
            self._failure.errno, f"{self.bound.endpoint} accepts no more: {self._failure.strerror}"
        ) from self._failure

    def ring(self) -> None:
        """End a pause and look again: a permit may be free, or the descriptor that an accept lacked."""
        if self._bell is not None:
            self._rung = True
            self._bell.cancel()

    def close(self) -> None:
        """Close the socket and the reserve; accepting must have ended."""
        self.bound.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    async def _wait_for_permit(self) -> None:
        while not self._gate.open:
            patience = None if self._gate.suspended else self._shed_after
            if not await self._rest(patience):
                with anyio.CancelScope() as self._bell:
                    await self._loop.pump(self.bound.sock, self._shed_at_limit)
                self._bell = None

    async def _rest(self, seconds: float | None) -> bool:
        """Sleep for *seconds*, or until the bell rings; whether it did."""
        self._rung = False
        with anyio.move_on_after(seconds) as self._bell:
            await anyio.sleep_forever()
        self._bell = None
        return self._rung

    def _shed_at_limit(self) -> bool:
        if not self._gate.open and not self._gate.suspended and (shed := self._shed_waiting()):
            self._warn("%s: at its limit of %d connections; closed %d that waited", self._gate.capacity, shed)
        return False

    def _accept_batch(self) -> bool:
        """Accept what is there; False when accepting has to pause."""
        until = time.monotonic() + ACCEPT_BUDGET
        for _ in range(self._batch):
            if not self._gate.open:
                return False
            try:
                sock, address = self.bound.sock.accept()
            except BlockingIOError:
                self._batch, self._full_batches = 1, 0
                return True
            except OSError as exc:
                if not self._accept_failed(exc):
                    return False
                continue
            self._backoff.reset()
            self._counters.accepted += 1
            if self._gate.enter(address):
                self._hand_over(sock, address)
            else:
                self._counters.refused_per_peer += 1
                sock.close()
            if time.monotonic() > until:
                break
        else:
            self._grow_batch()
        return True

    def _grow_batch(self) -> None:
        """Accept more at a time while there is more each time."""
        self._full_batches += 1
        if self._full_batches >= FULL_BATCHES and self._batch < ACCEPT_BATCH:
            self._batch, self._full_batches = self._batch * 2, 0

    def _hand_over(self, sock: socket.socket, address: Any) -> None:
        try:
            sock.setblocking(False)
            self._on_connection(sock, address)
        except Exception:  # out of memory, most likely: this client's bad luck, not the server's end
            sock.close()
            self._gate.leave(address)
            logger.exception("%s: a connection could not be started", self.bound.endpoint)

    def _accept_failed(self, exc: OSError) -> bool:
        """Decide what a failed accept means; whether to try the next at once."""
        self._counters.accept_errors += 1
        if exc.errno in _CONNECTION_LOST:
            logger.debug("%s: a client was gone before it was accepted: %s", self.bound.endpoint, exc.strerror)
            return True
        if exc.errno in _NO_DESCRIPTOR or exc.errno in _NO_MEMORY:
            shed = self._shed_waiting() if exc.errno in _NO_DESCRIPTOR else 0
            self._pause = self._backoff.pause()
            self._warn("%s cannot accept: %s; closed %d that waited", exc.strerror, shed)
        else:
            self._failure = exc
        return False

    def _shed_waiting(self) -> int:
        """Accept and close who waits in the kernel's queue, so that he sees a refusal and not a hang; return how many.

        The reserve lends the descriptor that this takes when the process has none left.
        """
        shed = 0
        if self._reserve >= 0:
            os.close(self._reserve)
        try:
            while shed < SHED_BATCH:
                sock, _ = self.bound.sock.accept()
                sock.close()
                shed += 1
        except OSError:
            pass  # nobody waits any more; or another thread took the descriptor, and the pause is all there is
        self._reserve = _open_reserve()
        self._counters.shed += shed
        return shed

    def _warn(self, message: str, *details: object) -> None:
        if (held_back := self._may_log()) is not None:
            logger.warning(message, self.bound.endpoint, *details)
            if held_back:
                logger.debug("%s: %d such lines were held back", self.bound.endpoint, held_back)


def _open_reserve() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return -1  # none left already; the next closing of a connection gives another chance

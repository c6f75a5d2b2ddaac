"""Accepting: permit first, in small batches, and what to do about each errno. The same on every loop.

A listener turns one bound socket into a sequence of accepted, non-blocking sockets for the server. It knows the gate,
not what a connection is for. Only the server imports it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from ._door import Door
from ._endpoints import BoundSocket
from ._errors import NO_DESCRIPTOR, NO_MEMORY, PEER_GONE
from ._limits import Gate
from ._readiness import Loop

__all__ = ["AcceptCounters", "Listener", "let_in"]

logger = logging.getLogger("aserver")

#: Accepts in a row, and seconds for them, before live connections get their turn. A batch as long as the backlog put
#: the p99 of a live client at 1.2 s in a flood of connects.
ACCEPT_BATCH = 32
ACCEPT_BUDGET = 0.001
#: Clients that are turned away in a row when there is no descriptor for them: one costs about 10 µs.
SHED_BATCH = 128


@dataclass(slots=True)
class AcceptCounters:
    """What became of the clients that knocked; shared by the listeners of a server."""

    accepted: int = 0
    refused_per_peer: int = 0
    shed: int = 0
    accept_errors: int = 0


class Listener(Door):
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
        super().__init__(bound, loop)
        self._gate = gate
        self._counters = counters
        self._shed_after = shed_after
        self._on_connection = on_connection
        self._reserve = _open_reserve()

    def close(self) -> None:
        """Close the socket and the reserve."""
        self.bound.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def retire(self) -> None:
        """Close the socket: what was accepted does not need it."""
        self.close()

    async def _wait_for_permit(self) -> None:
        while not self._gate.open:
            patience = None if self._gate.suspended else self._shed_after
            if not await self._rest(patience):
                with anyio.CancelScope() as self._bell:
                    await self._loop.pump(self.bound.sock, self._shed_at_limit)
                self._bell = None

    def _shed_at_limit(self) -> bool:
        if not self._gate.open and not self._gate.suspended and (shed := self._shed_waiting()):
            self._warn("%s: at its limit of %d connections; closed %d that waited", self._gate.capacity, shed)
        return False

    def _take_batch(self) -> bool:
        """Accept what is there; False when accepting has to pause."""
        until = time.monotonic() + ACCEPT_BUDGET
        for _ in range(self._batch):
            if not self._gate.open:
                return False
            try:
                sock, address = self.bound.sock.accept()
            except BlockingIOError:
                self._shrink_batch()
                return True
            except OSError as exc:
                if not self._accept_failed(exc):
                    return False
                continue
            self._backoff.reset()
            let_in(sock, address, self._gate, self._counters, self._on_connection, self.bound.endpoint)
            if time.monotonic() > until:
                break
        else:
            self._grow_batch(ACCEPT_BATCH)
        return True

    def _accept_failed(self, exc: OSError) -> bool:
        """Decide what a failed accept means; whether to try the next at once."""
        self._counters.accept_errors += 1
        if exc.errno in PEER_GONE:
            logger.debug("%s: a client was gone before it was accepted: %s", self.bound.endpoint, exc.strerror)
            return True
        if exc.errno in NO_DESCRIPTOR or exc.errno in NO_MEMORY:
            shed = self._shed_waiting() if exc.errno in NO_DESCRIPTOR else 0
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


def let_in(
    sock: socket.socket,
    address: Any,
    gate: Gate,
    counters: AcceptCounters,
    on_connection: Callable[[socket.socket, Any], None],
    where: str,
) -> bool:
    """Hand an accepted connection over with a permit, or close it; whether it was handed over."""
    counters.accepted += 1
    if not gate.enter(address):
        counters.refused_per_peer += 1
        sock.close()
        return False
    try:
        sock.setblocking(False)
        on_connection(sock, address)
    except Exception:  # out of memory, most likely: this client's bad luck, not the server's end
        sock.close()
        gate.leave(address)
        logger.exception("%s: a connection could not be started", where)
        return False
    return True


def _open_reserve() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return -1  # none left already; the next closing of a connection gives another chance

"""What has become of every datagram of a flood: handled, dropped by the server, dropped by the kernel, or unaccounted.

What a contender has handled it must be asked; what the kernel has dropped the kernel is asked. Whatever is left over
still waits in some queue, or was thrown away and nobody knows.
"""

import socket
import time

from benchmarks.client import BadAnswer
from benchmarks.datagram_client import counters
from benchmarks.process import ServerProcess

__all__ = ["Accounts"]

STEP = 0.1  # between two questions
STEPS = 100  # ten seconds in all: whoever is still at work then has kept what others would have dropped
SETTLED_STEPS = 5  # in a row without a change, after which none is expected: a handler takes a tenth of one


class Accounts:
    """The accounts of one contender; every question is a datagram like the others and counted with them."""

    def __init__(self, server: ServerProcess, asker: socket.socket) -> None:
        self.sent = 0
        self._server = server
        self._asker = asker
        self._counters: dict[str, int] = {}
        self._kernel = 0

    def settle(self) -> bool:
        """Ask until every datagram is accounted for, or nothing changes any more; False if there is no end to it."""
        last, unchanged = -1, 0
        for _ in range(STEPS):
            if not self._ask():
                continue
            if not self.unaccounted:
                return True
            unchanged = unchanged + 1 if self.unaccounted == last else 0
            if unchanged == SETTLED_STEPS:
                return True
            last = self.unaccounted
            time.sleep(STEP)
        if not self._counters:
            raise BadAnswer(f"{STEPS} questions for the counters, no answer")
        return False

    def _ask(self) -> bool:
        self.sent += 1
        found = counters(self._asker)
        if found is not None:
            self._counters = found
        self._kernel = self._server.kernel_drops()
        return found is not None

    @property
    def unaccounted(self) -> int:
        """Datagrams nobody has counted: in a queue, or lost."""
        return self.sent - self._counters["handled"] - self._counters.get("dropped", 0) - self._kernel

    def shown(self) -> dict[str, float]:
        """The columns of the table."""
        return {
            "handled": self._counters["handled"],
            "dropped": self._counters.get("dropped", 0),
            "kernel drops": self._kernel,
            "unaccounted": self.unaccounted,
        }

    def check(self) -> None:
        """Raise unless the counters of a server that counts what it has `received` add up, to the datagram."""
        if "received" not in self._counters:
            return
        received, kernel = self._counters["received"], self._counters.get("kernel", self._kernel)
        done = self._counters["handled"] + self._counters["dropped"]
        if received != done or received + kernel != self.sent or kernel != self._kernel:
            raise BadAnswer(f"sent {self.sent}, the kernel dropped {self._kernel}, counted {self._counters}")

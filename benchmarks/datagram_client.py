"""The load in datagrams: one thread, one epoll, every answer checked, and whatever is lost is asked for again.

The other half of `client`, with its two bounds and its `BadAnswer`. UDP may lose, so a lost answer is no error until
one in a hundred is missing. Knows nothing of contenders or figures. Traffic goes to 127.0.0.1 only.
"""

import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.client import DEADLINE, LOCALHOST, BadAnswer, check_silent

__all__ = ["Client", "clients", "connected_socket", "counters", "exchange", "flood"]

SIZE = 64
TURNS = 8  # different bursts a client cycles through, so that an answer that comes late is told from the one awaited
PATIENCE = 0.5  # an answer takes microseconds, on a busy machine a stolen time slice or two; then it counts as lost
LOST_MOST = 0.01  # of what was asked; on the loopback a datagram is lost only if somebody throws it away
FLOOD_DATAGRAM = b"flood".ljust(1024, b".")
QUESTION = b"statistics"
QUESTION_PATIENCE = 0.2  # the question may be lost in the flood like any other datagram; it is simply put again


class Client:
    """A connected UDP socket with the bursts of datagrams it sends in turn."""

    __slots__ = ("_all", "_bursts", "_turn", "asked", "missing", "recv", "resent", "send", "sock")

    def __init__(self, sock: socket.socket, number: int, depth: int) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.send = sock.send
        self._bursts = [[_datagram(f"{number} {turn} {place}") for place in range(depth)] for turn in range(TURNS)]
        self._all = frozenset(datagram for burst in self._bursts for datagram in burst)
        self._turn = 0
        self.missing: set[bytes] = set()
        self.asked = 0
        self.resent = 0

    def ask(self) -> None:
        """Send the next burst."""
        self._turn = turn = (self._turn + 1) % TURNS
        self.asked += 1
        burst = self._bursts[turn]
        self.missing.update(burst)
        for datagram in burst:
            self.send(datagram)

    def ask_again(self) -> int:
        """Send again what has not been answered; gives how many that were."""
        for datagram in self.missing:
            self.send(datagram)
        self.resent += len(self.missing)
        return len(self.missing)

    def check_surplus(self, data: bytes) -> None:
        """Raise unless `data`, which is not awaited, is the late answer to something that was asked again."""
        if not self.resent or data not in self._all:
            expected = min(self.missing, default=b"")
            raise BadAnswer(f"the answer should be {expected[:20]!r}..., received {data[:80]!r}")


def _datagram(text: str) -> bytes:
    return text.encode().ljust(SIZE, b".")


@contextmanager
def connected_socket(port: int) -> Iterator[socket.socket]:
    """A UDP socket that talks to that port alone, so that a server that has gone is an error and not a silence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((LOCALHOST, port))
        yield sock


@contextmanager
def clients(port: int, count: int, depth: int = 1) -> Iterator[list[Client]]:
    """`count` clients for `exchange()`, each with bursts of `depth` datagrams."""
    found: list[Client] = []
    try:
        for number in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            found.append(Client(sock, number, depth))
            sock.connect((LOCALHOST, port))
            sock.setblocking(False)
        yield found
        check_silent(client.sock for client in found if not client.resent)
    finally:
        for client in found:
            client.sock.close()


def exchange(clients: Sequence[Client], bursts: int) -> None:
    """Send `bursts` bursts, one in flight from each client, and check every answer."""
    by_descriptor = {client.sock.fileno(): client for client in clients}
    with select.epoll() as epoll:
        for descriptor in by_descriptor:
            epoll.register(descriptor, select.EPOLLIN)
        for client in clients[:bursts]:
            client.ask()
        unsent = bursts - len(clients[:bursts])
        unanswered = bursts
        losses = _Losses(clients, bursts)
        while unanswered:
            for descriptor, _ in epoll.poll(losses.next_look - time.monotonic()):
                client = by_descriptor[descriptor]
                data = client.recv(65536)
                missing = client.missing
                if data not in missing:
                    client.check_surplus(data)
                    continue
                missing.remove(data)
                if missing:
                    continue
                unanswered -= 1
                if unsent:
                    unsent -= 1
                    client.ask()
            if time.monotonic() >= losses.next_look:
                losses.look()


class _Losses:
    """Looks twice in a `PATIENCE` or so: who still waits for the same burst has lost a part of it."""

    def __init__(self, clients: Sequence[Client], bursts: int) -> None:
        self._clients = clients
        depth = max(len(client.missing) for client in clients)
        self._allowed = depth * (len(clients) + LOST_MOST * bursts)  # one server that oversleeps costs a burst of each
        self._resent = 0
        self._deadline = time.monotonic() + DEADLINE
        self._seen: list[int] = []
        self.look()

    def look(self) -> None:
        """Ask again for what has been missing since the last look, within the bounds."""
        now = time.monotonic()
        self.next_look = now + PATIENCE
        for client, asked in zip(self._clients, self._seen, strict=False):  # nothing has been seen at the first look
            if client.missing and client.asked == asked:
                self._resent += client.ask_again()
        self._seen = [client.asked for client in self._clients]
        if self._resent > self._allowed:
            raise BadAnswer(f"{self._resent} datagrams had to be sent again: more than one in a hundred is lost")
        if now > self._deadline:
            raise BadAnswer(f"not all answers in {DEADLINE:g} s")


def flood(socks: Sequence[socket.socket], count: int, pace: float | None = None) -> None:
    """Send `count` datagrams of 1 KB, from each socket in turn, `pace` a second or as fast as this process can."""
    sends = [sock.send for sock in socks]
    due = time.monotonic()
    for begin in range(0, count, len(sends)):
        for send in sends[: count - begin]:
            send(FLOOD_DATAGRAM)
        if pace:
            due += len(sends) / pace
            time.sleep(max(0.0, due - time.monotonic()))


def counters(sock: socket.socket) -> dict[str, int] | None:
    """Ask the contender for its counters, ``name number name number ...``; None if it does not answer in time."""
    sock.settimeout(QUESTION_PATIENCE)
    sock.send(QUESTION)
    try:
        words = sock.recv(65536).decode().split()
    except TimeoutError:
        return None
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}

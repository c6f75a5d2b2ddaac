"""Waiting in the calling thread: for a request, for another thread's bell, for descriptors to be free again.

Lives here: the bell, what serve_forever and handle_request wait with, the pause after an accept that failed for want of
resources. Must not: hooks of the server, or what becomes of a request. Only `socketserver` imports it. There is no
event loop and no thread: a handler may run a loop of its own, and a server that forks stays free of threads. Nothing
is opened before serving begins.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import threading
import time

TYPE_CHECKING = False  # what a server that forks has not imported, its children need not inherit
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

__all__ = ["AcceptTrouble", "Bell", "DefaultSelector", "Watch", "log", "make_bell", "wait_readable"]

#: What serving waits with where nobody has put another selector in place, and the system has no poll() of its own.
#: Neither knows FD_SETSIZE on Linux: descriptors above 1023 are waited for like any other.
DefaultSelector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)

#: Pause after a failed accept: a descriptor is mostly free again within a request's time; and a second at most, so that
#: recovery is never further away than that. The same as in `aserver`.
BACKOFF_FIRST = 0.005
BACKOFF_LAST = 1.0
#: Seconds between two warnings about it: a server that accepts nothing must not fill the disk as well.
WARNING_INTERVAL = 1.0
#: What poll() says of a request, and of a number that is no open descriptor; there is no poll() on Windows.
POLLIN: int = getattr(select, "POLLIN", 0)
POLLNVAL: int = getattr(select, "POLLNVAL", 0)
#: Seconds to sleep at a time where nothing can wake us: what the interval of serve_forever is by default.
NAP = 0.5

#: Nothing is wrong with the client: it stays in the kernel's queue, and a second look at once would find the same.
OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: The listening socket was shut down, or closed behind our back: no accept will succeed until somebody replaces it.
OUT_OF_SERVICE = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK))


class Bell:
    """Wakes the thread that made it out of its wait; rung by other threads, closed by its owner alone."""

    def __init__(self) -> None:
        self._owner = (os.getpid(), threading.get_ident())
        # reentrant: a signal handler may ring while its thread is ringing
        self._lock = threading.RLock()
        self.ear, self._mouth = socket.socketpair()
        self.ear.setblocking(False)
        self._mouth.setblocking(False)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is the one that waits for this bell."""
        return self._owner == (os.getpid(), threading.get_ident())

    def ring(self) -> None:
        """Wake the owner. Safe from any thread, after close() as well; a forked child does not wake its parent."""
        if os.getpid() != self._owner[0]:
            return
        with self._lock:  # the descriptor must not become a stranger's between a look at it and the write
            try:
                self._mouth.send(b"\0")
            except OSError:  # full, so it rings already; or closed, so nobody waits
                pass

    def silence(self) -> None:
        """Take back what has been rung."""
        try:
            self.ear.recv(4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self.ear.close()
            self._mouth.close()


class AcceptTrouble:
    """The pauses of a server that cannot accept: 5 ms, doubled up to a second; over as soon as a request is closed."""

    def __init__(self) -> None:
        self._until = 0.0
        self._pause = BACKOFF_FIRST
        self._warned = -WARNING_INTERVAL

    def begin(self, error: OSError, where: object) -> None:
        """Pause after *error*; say so, at most once a second."""
        now = time.monotonic()
        self._until = now + self._pause
        self._pause = min(self._pause * 2, BACKOFF_LAST)
        if now - self._warned >= WARNING_INTERVAL:
            self._warned = now
            log("warning", "%r cannot accept: %s; clients wait in the kernel's queue", where, error.strerror)

    def interrupt(self) -> bool:
        """End the pause, not the series; whether there was one."""
        paused, self._until = self._until > 0.0, 0.0
        return paused

    def end(self) -> None:
        """Begin with the short pause again, after an accept that succeeded."""
        self._until, self._pause = 0.0, BACKOFF_FIRST

    def remaining(self) -> float:
        """The seconds that are left of the pause."""
        return max(self._until - time.monotonic(), 0.0) if self._until else 0.0


class Watch:
    """Waits for a server's descriptor and its bell in turn, from the beginning of serve_forever to its end.

    Args:
        server: asked for its descriptor before each wait: the socket may be replaced, or closed, meanwhile.
        selector: the class to wait with; poll() itself when it is `DefaultSelector` and the system has it.

    Raises:
        ValueError: the server is closed.
    """

    def __init__(self, server: Any, selector: Any) -> None:
        self._fd = checked_fileno(server)
        self._fileno = server.fileno
        self._request = [(self._fd, POLLIN)]  # what poll() mostly says
        self.bell = make_bell() if selector is DefaultSelector else None
        self._dead = -1
        self._poll: Any = None
        self._selector: Any = None
        try:
            if selector is DefaultSelector and hasattr(select, "poll"):
                self._poll = select.poll()
                self._poll.register(self._fd, POLLIN)
                if self.bell is not None:
                    self._poll.register(self.bell.ear.fileno(), POLLIN)
            else:
                self._selector = selector()
                self._selector.register(server, selectors.EVENT_READ)
                if self.bell is not None:
                    self._selector.register(self.bell.ear, selectors.EVENT_READ)
        except BaseException:
            self.close()
            raise

    @property
    def polls(self) -> bool:
        """Whether it waits with poll() itself, so that nobody watches how often."""
        return self._poll is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened for waiting."""
        if self.bell is not None:
            self.bell.close()
        if self._selector is not None:
            self._selector.close()

    def wait(self, timeout: float | None, trouble: AcceptTrouble | None) -> bool:
        """Wait *timeout* seconds at most (None: as long as it takes); whether a request is there.

        Ends early, with False, when the bell rings and when a pause of *trouble* is over.
        """
        pause = trouble.remaining() if trouble is not None else 0.0
        if pause and (timeout is None or pause < timeout):
            timeout = pause
        if self._poll is None:
            return self._select(timeout, bool(pause))
        try:
            fd = -1 if pause else self._fileno()
        except (OSError, ValueError):  # what a wrapper says when another thread has closed its socket
            fd = -1
        if fd != self._fd:
            fd = self._turn_to(fd)
        if fd < 0 and self.bell is None:  # nothing at all to wait for
            timeout = NAP if timeout is None else min(timeout, NAP)
        events = self._poll.poll(None if timeout is None else timeout * 1000 if timeout > 0 else 0)
        return bool(events) and (events == self._request or self._sort(events))

    def _sort(self, events: list[tuple[int, int]]) -> bool:
        """Whether a request is among the events, and not only the bell, or that the descriptor is none."""
        ready = False
        for fd, event in events:
            if fd != self._fd:
                self.bell.silence()  # type: ignore[union-attr]  # there is no other descriptor
            elif event & POLLNVAL:  # closed behind the back of its socket, and would be reported for ever
                self._dead = fd
            else:
                ready = True
        if self._dead == self._fd >= 0:
            self._turn_to(-1)
        return ready

    def _turn_to(self, fd: int) -> int:
        """Poll *fd* from now on in place of the one before, -1 for none; return what is polled."""
        if fd == self._dead:
            fd = -1
        if fd != self._fd:
            if self._fd >= 0:
                self._poll.unregister(self._fd)
            if fd >= 0:
                self._poll.register(fd, POLLIN)
            self._fd = fd
            self._request = [(fd, POLLIN)]
        return fd

    def _select(self, timeout: float | None, paused: bool) -> bool:
        """The same with a selector; one that the program has put in place sees the server only, as it always did."""
        try:
            closed = self._fileno() < 0
        except (OSError, ValueError):  # as above
            closed = True
        if paused or closed:
            time.sleep(NAP if timeout is None else min(timeout, NAP))
            return False
        ready = self._selector.select(timeout)
        if self.bell is None:
            return bool(ready)
        self.bell.silence()
        return any(key.fileobj is not self.bell.ear for key, _ in ready)


def log(level: str, message: str, *details: object) -> None:
    """Log to "compat"; `logging` is imported when there is something to say, which in normal operation there is not."""
    import logging

    getattr(logging.getLogger("compat"), level)(message, *details)


def wait_readable(server: Any, timeout: float | None, selector: Any) -> bool:
    """Wait *timeout* seconds at most (None: as long as it takes) for a request; whether there is one.

    Raises:
        ValueError: the server is closed.
    """
    fd = checked_fileno(server)
    if selector is DefaultSelector and hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, POLLIN)
        return bool(poll.poll(None if timeout is None else max(timeout * 1000, 0)))
    with selector() as chosen:
        chosen.register(server, selectors.EVENT_READ)
        return bool(chosen.select(timeout))


def checked_fileno(server: Any) -> int:
    """The descriptor of a server that is about to wait for it.

    Raises:
        ValueError: it has none any more.
    """
    fd: int = server.fileno()
    if fd < 0:
        raise ValueError(f"the server is closed: its fileno() is {fd!r}")
    return fd


def make_bell() -> Bell | None:
    """A bell for the calling thread; None if no descriptor is to be had, and it has to look from time to time."""
    try:
        return Bell()
    except OSError:
        return None

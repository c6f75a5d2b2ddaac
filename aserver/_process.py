"""The process: the signals that stop it, and that it leaves when its time is over, whatever still runs in it.

Lives here: handlers of signals, the clock that runs from the first one, the last words before an end by force. Must not
live here: servers, or what they do about a signal; that is told by callbacks. Only `_run` imports it. No loop is known
(anyio waits for the socket that wakes it up).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import anyio

__all__ = ["Overtime", "Signals", "last_words"]

logger = logging.getLogger("aserver")

#: What a terminal, and what systemd, Docker and Kubernetes send to a program that is to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds for the last log lines to be written before the process ends by force: who reads them may have stopped.
FLUSH_TIME = 1.0


class Overtime:
    """The clock that runs from the moment when the servers are told to stop; *expired* is called when it has run out.

    A thread and no task, because what it guards against is a blocked event loop, or threads that the end of a loop, or
    of the interpreter, would wait for. There is none before that moment: a program with a second thread cannot fork.
    """

    def __init__(self, seconds: float | None, expired: Callable[[str], None]) -> None:
        self._seconds = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        self._expired = expired
        self._timer: threading.Timer | None = None
        self._returned = False

    def __enter__(self) -> Self:
        self._before = set(threading.enumerate())
        return self

    def begin(self) -> None:
        """Start the clock unless it runs already."""
        if self._timer is None and self._seconds is not None:
            self._timer = threading.Timer(self._seconds, self._ring)
            self._timer.daemon = True
            _try_start(self._timer)

    def _ring(self) -> None:
        # After run() has returned the rest of the program may take its time; the end of the interpreter may not, which
        # waits for threads, once it has declared the main one ended.
        if not self._returned or not threading.main_thread().is_alive():
            self._expired("the event loop is blocked, or a thread goes on, long after the grace")

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._returned = True
        left = [thread for thread in threading.enumerate() if thread not in self._before and not thread.daemon]
        if self._timer is not None and not left:
            self._timer.cancel()


class Signals:
    """SIGINT and SIGTERM, from before the event loop starts until after it has ended.

    The handlers are Python's and not a loop's, so that a second signal also ends a program whose loop is blocked by a
    handler, or has ended and waits for threads. A socket pair wakes the loop up. Does nothing in a thread that is not
    the main one.

    Args:
        on_first: called at the first signal, between two instructions of whatever runs.
        on_second: called at the second one, before the process dies of it.

    Attributes:
        first: the name of the first signal; empty as long as there was none.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None]) -> None:
        self._on_first = on_first
        self._on_second = on_second
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self.first = ""

    def __enter__(self) -> Self:
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._received) or signal.SIG_DFL
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._ear.close()
        self._mouth.close()

    @contextmanager
    def waking(self) -> Iterator[None]:
        """While the block runs each signal wakes the loop up, also one that comes just when it falls asleep.

        uvloop and trio see to that themselves. asyncio does not, and would run the handlers after its next event only.
        """
        ours = self._mouth.fileno()
        if self._before and (theirs := signal.set_wakeup_fd(ours, warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        try:
            yield
        finally:
            if self._before and (theirs := signal.set_wakeup_fd(-1)) not in (ours, -1):
                signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)

    async def nudged(self) -> None:
        """Wait until there may have been a signal."""
        await anyio.wait_readable(self._ear)
        self._ear.recv(4096)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that a handler forked: the signal is its own, the socket its parent's
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        elif not self.first:
            self.first = signal.Signals(number).name
            self._mouth.send(b"\0")
            self._on_first()
        else:
            self._on_second()
            last_words()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def last_words(text: str = "") -> None:
    """Log *text* and bring out all that is buffered, as far as that is possible in `FLUSH_TIME`."""

    def say() -> None:
        if text:
            logger.critical("%s", text)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):  # nobody listens any more, or never did
                pass

    thread = threading.Thread(target=say, daemon=True)
    if _try_start(thread):
        thread.join(FLUSH_TIME)
    else:  # none to be had, or Python 3.12 on its way out: then in this one, as long as it takes
        say()


def _try_start(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:  # the system has no thread to give; the end must come all the same
        return False
    return True

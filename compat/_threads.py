"""Threads for requests: started without the hand-shake of `Thread.start()`, remembered until they have ended.

Lives here: what ThreadingMixIn does with a `threading.Thread`. Must not: what runs in it. Only `socketserver` imports
it.
"""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from typing import Any

__all__ = ["NoThreads", "Threads", "start", "start_among", "tell_unraisable"]

#: Threads that may have ended and are still remembered, before the first look for them.
REAP_FROM = 8


class Threads(list[threading.Thread]):
    """The live threads that server_close() waits for; daemons are not among them.

    Ended ones are dropped when as many have come as were alive at the last look: a look costs as much as there are
    threads, and so each thread costs the same however many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reap_at = REAP_FROM
        self._reaping = threading.Lock()

    def append(self, thread: threading.Thread) -> None:
        """Remember *thread* unless it is a daemon."""
        if thread.daemon:
            return
        if len(self) >= self._reap_at:
            self.reap()
        super().append(thread)

    def reap(self) -> None:
        """Forget the threads that have ended."""
        if self._reaping.acquire(blocking=False):  # otherwise another thread is at it
            try:
                looked_at = len(self)  # who comes meanwhile comes behind them
                self[:looked_at] = [thread for thread in self[:looked_at] if thread.is_alive()]
                self._reap_at = max(2 * len(self), REAP_FROM)
            finally:
                self._reaping.release()

    def join(self) -> None:
        """Wait until all of them have ended, but for the calling thread, and forget them."""
        while True:
            try:
                thread = self.pop()
            except IndexError:
                return
            if thread is not threading.current_thread():
                thread.join()


class NoThreads:
    """Stands for `Threads` where nobody waits for any."""

    def __contains__(self, thread: object) -> bool:
        return False

    def append(self, thread: threading.Thread) -> None:
        """Remember nothing."""

    def reap(self) -> None:
        """Look at nothing."""

    def join(self) -> None:
        """Wait for nothing."""


def start(thread: threading.Thread) -> None:
    """Start *thread* without waiting until it runs: that wait is two switches of threads, most of what a request costs.

    The thread is as good as started for everybody: is_alive() and join() wait for the moment when it runs. Where Python
    is not built as expected here, this is `thread.start()`.

    Raises:
        RuntimeError: the system has no thread to give.
    """
    started = getattr(thread, "_started", None)
    if type(started) is threading.Event and _exit_waits():
        thread._started = _Started(started)  # type: ignore[attr-defined]  # the one private name that this rests on
    thread.start()


def start_among(threads: Any, thread: threading.Thread) -> None:
    """Start *thread* as one of *threads*, of which it is none if that fails; see `start`."""
    threads.append(thread)
    try:
        start(thread)
    except BaseException:
        if thread in threads:  # not a daemon, and not dropped meanwhile as one that is not alive
            threads.remove(thread)
        raise


def tell_unraisable() -> None:
    """Tell of the exception that is being handled as of one that has ended a thread."""
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class _Started:
    """Stands for the event of a thread by which start() waits for the thread, and lets that one wait pass."""

    __slots__ = ("_begun", "_event")

    def __init__(self, event: threading.Event) -> None:
        self._event = event
        self._begun = False

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once the first time, which is start()'s: the system has taken the thread."""
        if self._begun:
            return self._event.wait(timeout)
        self._begun = True
        _coming.add(self)
        if self._event.is_set():  # it was here before we had said that it comes
            _coming.discard(self)
        return True

    def is_set(self) -> bool:
        """Whether the thread was started; once it was, wait until it runs, which it does in a moment."""
        return self._event.is_set() or (self._begun and self._event.wait())

    isSet = is_set

    def set(self) -> None:
        """Called by the thread when it runs."""
        self._event.set()
        _coming.discard(self)

    def _at_fork_reinit(self) -> None:
        """Called in a forked child, where no other thread will ever come to run."""
        self._begun = False
        _coming.discard(self)
        self._event._at_fork_reinit()  # type: ignore[attr-defined]  # what Thread would have called


#: Started, and not yet running.
_coming: set[_Started] = set()
#: Whether the end of the interpreter waits for those, too: None as long as nobody has asked.
_waited_for: bool | None = True if sys.version_info >= (3, 13) else None


def _exit_waits() -> bool:
    """Whether the interpreter, when it ends, waits for a thread that was started and does not run yet.

    From 3.13 on it does by itself. Before, a thread reports when it runs, and one that is late would be lost.
    """
    global _waited_for
    if _waited_for is None:
        register: Any = getattr(threading, "_register_atexit", None)
        try:
            register(_await_all)
            _waited_for = True
        except (TypeError, RuntimeError):  # there is no such function; or the interpreter is ending already
            _waited_for = False
    return _waited_for


def _await_all() -> None:
    """Before the interpreter waits for threads: let all of them report, and start the next ones with the hand-shake."""
    global _waited_for
    _waited_for = False
    for started in list(_coming):
        started.is_set()

"""The event loop in a thread of its own that all async handlers of a process share, and its end.

Lives here: the thread, how others call into it, who needs it, what the program's end does. Must not: servers, requests,
handlers. `_asynchronous` imports it; nothing that a program without async handlers imports does.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from ._waiting import Bell

__all__ = ["LoopThread", "enter", "leave", "running"]

#: Seconds that the end of the program waits for handlers that it has cancelled. Longer than any clean-up should take,
#: and short enough for somebody who has just pressed Ctrl-C.
EXIT_GRACE = 2.0


class Guest(Protocol):
    """Who needs the loop."""

    def close(self, wait: bool) -> None:
        """End; without *wait* at once."""


class LoopThread:
    """An event loop in a thread.

    Attributes:
        guests: who needs it; changed under `_lock`.
        tasks: a task group in it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.guests: set[Guest] = set()
        self.tasks: TaskGroup
        self._bell: Bell
        self._posted: deque[Callable[[], object]] = deque()
        self._posting = threading.Lock()
        self._over = False
        self._ended = False
        self._begun = threading.Event()
        self._error: BaseException | None = None
        # A daemon: the end of the program does not wait for handlers, it cancels them (see `_at_exit`).
        self._thread = threading.Thread(target=self._run, name="compat event loop", daemon=True)
        self._thread.start()
        self._begun.wait()
        if self._error is not None:
            raise RuntimeError("an event loop for async handlers cannot be started") from self._error

    @property
    def is_current(self) -> bool:
        """Whether the caller is in it."""
        return threading.current_thread() is self._thread

    @property
    def posted(self) -> int:
        """How many calls wait for their turn."""
        return len(self._posted)

    def post(self, callback: Callable[[], object]) -> None:
        """Have *callback* called in the loop, or here if that has ended; it must not raise. Does not wait."""
        with self._posting:
            if not self._ended:
                self._posted.append(callback)
                self._bell.ring()
                return
        callback()

    def end(self) -> None:
        """Let it end; called in the loop, when nobody needs it any more."""
        self._over = True
        self._bell.ring()

    def join(self) -> None:
        """Wait until it has ended; but not for a handler that does not let it."""
        self._thread.join(EXIT_GRACE)

    def join_if_over(self) -> None:
        """The same if it is about to end."""
        if self._over:
            self.join()

    def _run(self) -> None:
        try:
            try:
                anyio.run(self._main, backend_options={"use_uvloop": True})
            except Exception:  # not installed; or the main thread has ended, and it cannot be imported
                if self._begun.is_set():
                    raise
                anyio.run(self._main)
        except BaseException as error:
            if self._begun.is_set():
                raise
            self._error = error
            self._begun.set()

    async def _main(self) -> None:
        self._bell = Bell()
        try:
            async with anyio.create_task_group() as self.tasks:
                self._begun.set()
                while not self._over:
                    await anyio.wait_readable(self._bell.ear)
                    self._bell.silence()
                    while self._posted:
                        self._posted.popleft()()
        finally:
            with self._posting:
                self._ended = True
            self._bell.close()
            while self._posted:  # requests that come too late are closed
                self._posted.popleft()()


#: The loop of this process, and who may change that, or the guests that it has.
_loop: LoopThread | None = None
_lock = threading.Lock()
#: Whether the end of the program has been asked to tell us.
_exit_is_heard = False


def running() -> LoopThread | None:
    """The loop of this process, if there is one."""
    return _loop


def enter(guest: Guest) -> LoopThread:
    """The loop, started if it is not there; it stays until *guest* leaves.

    Raises:
        RuntimeError: it cannot be started.
    """
    global _loop, _exit_is_heard
    with _lock:
        if _loop is None:
            _loop = LoopThread()
        if not _exit_is_heard:
            _exit_is_heard = True
            atexit.register(_at_exit)
        _loop.guests.add(guest)
        return _loop


def leave(loop: LoopThread, guest: Guest) -> None:
    """Tell the loop, in it, that it is not needed any more by *guest*; it ends with the last one."""
    global _loop
    with _lock:
        loop.guests.discard(guest)
        if loop.guests:
            return
        if _loop is loop:
            _loop = None
    loop.end()


def _at_exit() -> None:
    """When the program ends cancel what runs, and let it clean up, so that nothing is left to complain."""
    with _lock:
        loop = _loop
        guests = list(loop.guests) if loop is not None else []
    for guest in guests:
        guest.close(wait=False)
    if loop is not None:
        loop.join()


def _forget() -> None:
    """In a forked child there is no loop: the threads of the parent are not here."""
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

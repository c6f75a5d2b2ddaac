"""The executors that keep nothing ready: in line, a fresh thread, a forked child, or threads that are somebody else's.

Lives here: those four. Must not: pools, hooks of a server. `executors` and `_imposed` import it.
"""

from __future__ import annotations

import os
import sys
import threading

from ._executor import QUEUED_PER_WORKER, Executor, perform, serve
from ._threads import NoThreads, Threads, start_among
from .socketserver import _work_and_exit

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable
    from typing import Any

    from ._executor import Done

__all__ = ["Borrowed", "Forks", "FreshThreads", "Inline"]

#: Requests at once for a borrowed executor that does not say how many workers it has: a request in a queue is 2 KB and
#: a descriptor, of which a process commonly has 1024.
PENDING = 512
#: Executors that pickle what they are to run, by module and name: asking for the classes would import them.
PICKLING = {
    ("concurrent.futures.process", "ProcessPoolExecutor"),
    ("concurrent.futures.interpreter", "InterpreterPoolExecutor"),
}


class Inline(Executor):
    """Serves in the thread that submits, as the plain servers do: what the handler raises comes out of submit()."""

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Serve the request."""
        server.finish_request(request, client_address)
        server.shutdown_request(request)
        if done is not None:
            done(None)
        return True


class FreshThreads(Executor):
    """Starts a thread for each request, with no bound, as ThreadingMixIn does.

    Args:
        daemon: whether the end of the program leaves them alone, and close() does not wait for them.
    """

    def __init__(self, *, daemon: bool = False) -> None:
        self.daemon = daemon
        self._threads = NoThreads() if daemon else Threads()

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Start a thread for the request."""
        thread = threading.Thread(
            target=process_request_thread, args=(server, request, client_address, done), daemon=self.daemon
        )
        start_among(self._threads, thread)
        return True

    def close(self, wait: bool) -> None:
        """Wait for the threads that are no daemons, or for none."""
        if wait:
            self._threads.join()


def process_request_thread(server: Any, request: Any, client_address: Any, done: Done | None) -> None:
    """What a fresh thread does; it is named after this function, as those of ThreadingMixIn are."""
    try:
        serve(server, request, client_address)
    finally:
        if done is not None:
            done(None)


class Forks(Executor):
    """Forks a child for each request, as ForkingMixIn does; for programs without threads, so not beside an event loop.

    `done` is called by collect() or a later submit(), with the status if that was not 0.

    Args:
        max_workers: how many children at most; submit() waits for one to end.
    """

    crosses = True

    def __init__(self, max_workers: int = 40) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeError(f"{sys.platform} has no fork(); ThreadPool and FreshThreads need none")
        self.max_workers = max_workers
        self._children: dict[int, Done | None] = {}

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Fork a child for the request."""
        self.collect()
        while len(self._children) >= self.max_workers and not over:
            self._reap(-1, 0)  # any, whosoever child it is
        pid = os.fork()
        if pid:
            self._children[pid] = done
            return True
        _work_and_exit(server, request, client_address)
        return False  # nobody is here any more

    def collect(self) -> None:
        """Forget the children that have ended."""
        for pid in list(self._children):
            self._reap(pid, os.WNOHANG)

    def _reap(self, pid: int, options: int) -> None:
        try:
            ended, status = os.waitpid(pid, options)
        except ChildProcessError:  # others have waited for it
            ended, status = pid if pid > 0 else next(iter(self._children)), 0
        if ended and (done := self._children.pop(ended, None)) is not None:
            code = os.waitstatus_to_exitcode(status)
            done(None if code == 0 else f"child process {ended} ended with status {code}")

    def close(self, wait: bool) -> None:
        """Wait for all children, or forget those that have ended."""
        while wait and self._children:
            self._reap(next(iter(self._children)), 0)
        self.collect()


class Borrowed(Executor):
    """Serves in the threads of an executor of `concurrent.futures`, which stays its owner's to shut down.

    Takes three requests for each of its workers at once, one to work on and two in its queue, which has no bound of
    its own; `PENDING` if it does not tell how many workers it has.

    Args:
        lender: a ThreadPoolExecutor, or any other whose work stays in this process.

    Raises:
        TypeError: it is no executor, or one that pickles what it is to run.
    """

    def __init__(self, lender: concurrent.futures.Executor) -> None:
        if any((kind.__module__, kind.__name__) in PICKLING for kind in type(lender).__mro__):
            raise TypeError(
                f"{type(lender).__name__} pickles what it runs, and a connection cannot be pickled; "
                "use ProcessPoolMixIn (ProcessPoolTCPServer) for processes, a ThreadPoolExecutor for threads"
            )
        if not callable(getattr(lender, "submit", None)):
            raise TypeError(f"{lender!r} is no executor of concurrent.futures: it has no submit()")
        self.lender = lender
        workers = getattr(lender, "_max_workers", None)
        self._limit = (1 + QUEUED_PER_WORKER) * workers if isinstance(workers, int) else PENDING
        self._changed = threading.Condition()
        self._pending = 0
        self._here: set[int] = set()
        self._waiting: list[Callable[[], object]] = []

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Submit the request to the lender."""
        with self._changed:
            if self._pending >= self._limit and not over:
                return False
            self._pending += 1
        try:
            future = self.lender.submit(self._perform, server, request, client_address)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(lambda future: self._over(future, server, request, done))
        return True

    def _perform(self, server: Any, request: Any, client_address: Any) -> None:
        here = threading.get_ident()
        self._here.add(here)
        try:
            perform(server, request, client_address, None)
        finally:
            self._here.discard(here)

    def _over(self, future: concurrent.futures.Future[None], server: Any, request: Any, done: Done | None) -> None:
        """Called when a request was served, or when the lender was shut down before."""
        lost = None
        if future.cancelled():
            server.shutdown_request(request)
            lost = "the executor was shut down before it came to this request"
        self._ended()
        if done is not None:
            done(lost)

    def _ended(self) -> None:
        with self._changed:
            self._pending -= 1
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for callback in waiting:
            callback()

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call *callback* when a request is over."""
        with self._changed:
            if self._pending >= self._limit:
                if callback not in self._waiting:
                    self._waiting.append(callback)
                return
        callback()

    def close(self, wait: bool) -> None:
        """Wait for our requests, but for the one in which we are, or for none."""
        if not wait:
            return
        with self._changed:
            mine = int(threading.get_ident() in self._here)
            self._changed.wait_for(lambda: self._pending <= mine)

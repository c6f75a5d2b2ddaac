"""Reused threads: as many as are needed at once, or a bounded number with a bounded queue.

Lives here: the threads, who of them is idle, and how they end. Must not: hooks of a server. `executors` imports it.

The thread that became idle last is the next to work, so that those too many have been idle long, and end. Each waits
for a lock of its own: handing it a request is one release, and nobody else wakes up.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from weakref import WeakSet

from ._executor import QUEUED_PER_WORKER, Executor, perform
from ._threads import start

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from ._executor import Done

    #: The arguments of perform().
    Job: TypeAlias = tuple[Any, Any, Any, Done | None]

__all__ = ["ThreadPool"]

#: Seconds that a thread waits for work before it ends: longer than the pauses of a busy server, and short enough that
#: yesterday's peak is no memory today. Trio keeps its threads for as long.
IDLE_TIMEOUT = 10.0


class _Worker:
    """A thread, and the request that it is to serve next."""

    __slots__ = ("job", "thread", "wake")

    def __init__(self, pool: ThreadPool, job: Job | None) -> None:
        self.job = job
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread = threading.Thread(target=pool.serve_requests, args=(self,), daemon=pool.daemon)

    def hand(self, job: Job | None) -> None:
        """Wake the thread for a request, or to end."""
        self.job = job
        self.wake.release()

    def take(self) -> Job | None:
        """The request, which the worker does not remember: it would live as long as nothing follows it."""
        job, self.job = self.job, None
        return job


class ThreadPool(Executor):
    """Threads that serve one request after the other, and so keep their thread-local state from one to the next.

    Args:
        max_workers: how many at most, with a queue of twice as many requests; None: one for each request that is being
            served, so that handlers may wait for each other.
        daemon: whether the end of the program leaves them alone.
        idle_timeout: seconds that a thread waits for work before it ends.
    """

    def __init__(
        self, max_workers: int | None = None, *, daemon: bool = False, idle_timeout: float = IDLE_TIMEOUT
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers is {max_workers!r}; it takes at least one thread (None: as many as needed)")
        self.max_workers = max_workers
        self.daemon = daemon
        self.idle_timeout = idle_timeout
        self._closed = False
        self.forget()
        _pools.add(self)
        _hear_of_exit()

    def forget(self) -> None:
        """Begin without threads, as a forked child does."""
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._queue: deque[Job] = deque()
        self._waiting: list[Callable[[], object]] = []

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Hand the request to an idle thread, or to a new one, or let it wait in the queue."""
        job = (server, request, client_address, done)
        with self._lock:
            if self._closed and not (over and self._workers):
                raise RuntimeError("the pool of threads is closed")
            if self._idle:
                self._idle.pop().hand(job)
                return True
            if self._closed or (self.max_workers is not None and len(self._workers) >= self.max_workers):
                return self._enqueue(job, over)
            worker = _Worker(self, job)
            self._workers.add(worker)
        try:
            start(worker.thread)
        except RuntimeError:  # the system has none to give: those that are there go on
            with self._lock:
                self._workers.discard(worker)
                if not self._workers:
                    raise
                return self._enqueue(job, over)
        return True

    def _enqueue(self, job: Job, over: bool) -> bool:
        if self._idle:  # since we looked
            self._idle.pop().hand(job)
            return True
        if not over and len(self._queue) >= QUEUED_PER_WORKER * len(self._workers):
            return False
        self._queue.append(job)
        return True

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call *callback* when a thread takes a request from the queue, or becomes idle."""
        with self._lock:
            full = len(self._queue) >= QUEUED_PER_WORKER * len(self._workers) and not self._idle
            if full and not self._closed:
                if callback not in self._waiting:
                    self._waiting.append(callback)
                return
        callback()

    def close(self, wait: bool) -> None:
        """Let idle threads end, and the others when there is nothing left to do."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
            self._dismiss_idle()
            waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
        if wait:
            for worker in workers:
                if worker.thread is not threading.current_thread():
                    worker.thread.join()

    def end_idle(self) -> None:
        """Let idle threads end: the interpreter waits for them."""
        with self._lock:
            self._dismiss_idle()

    def _dismiss_idle(self) -> None:
        self._workers.difference_update(self._idle)
        while self._idle:
            self._idle.pop().hand(None)

    def serve_requests(self, worker: _Worker) -> None:
        """The life of a thread: one request after the other, until there is none for too long."""
        job = worker.take()
        while job is not None:
            perform(*job)
            job = None  # while it waits it keeps nothing alive
            job = self._next(worker)

    def _next(self, worker: _Worker) -> Job | None:
        """The next request for a worker that is done with one; None if it is to end."""
        job = None
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if self._queue:
                job = self._queue.popleft()
            elif self._closed or _exiting:
                self._workers.discard(worker)
            else:
                self._idle.append(worker)
            idle = job is None and worker in self._workers
        for callback in waiting:
            callback()
        if not idle:
            return job
        if not worker.wake.acquire(timeout=self.idle_timeout):
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._workers.discard(worker)
                    return None
            worker.wake.acquire()  # a request was handed over in this moment
        return worker.take()


#: All pools of the process, for its end and for its forks.
_pools: WeakSet[ThreadPool] = WeakSet()
#: Whether the interpreter is ending, which waits for threads: none becomes idle any more. None: nobody has asked yet.
_exiting: bool | None = None


def _hear_of_exit() -> None:
    """Be told when the interpreter ends. Where it cannot be asked to, its end waits for IDLE_TIMEOUT."""
    global _exiting
    if _exiting is None:
        _exiting = False
        register: Any = getattr(threading, "_register_atexit", None)
        try:
            register(_end_idle)
        except (TypeError, RuntimeError):  # there is no such function; or the end has come already
            _exiting = register is not None


def _end_idle() -> None:
    global _exiting
    _exiting = True
    for pool in list(_pools):
        pool.end_idle()


def _forget() -> None:
    for pool in list(_pools):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Worker processes, seen from the server: started when needed, sent one request at a time, replaced when they end.

Lives here: the pool. Must not: one of them (`_interpreter`), what runs in it (`_worker`), how requests are written down
(`_crossing`), hooks of the server. `executors` and `_imposed` import it.

Workers are fresh interpreters, never forks of a program that may have threads. Each has a channel of its own: a worker
that is killed takes one request with it, and it is known which. What none of them is free for waits with the caller.
"""

from __future__ import annotations

import atexit
import os
import selectors
import socket
import sys
import threading
import time
from functools import partial
from weakref import WeakSet

from ._crossing import DONE, FAILED, READY, REASON_LIMIT, described, frame, import_path, main_module, plain
from ._executor import Executor
from ._interpreter import Worker
from ._waiting import NAP, log
from .socketserver import _is_async

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._executor import Done

__all__ = ["ProcessPool", "check"]

#: Pause after a worker that ended before it served anything, doubled up to half a minute: that is how often a program
#: whose import fails is tried again, which costs a tenth of a second each time.
BACKOFF_FIRST = 0.1
BACKOFF_LAST = 30.0
#: Seconds between two looks for workers that have ended, where nothing else makes us look.
LOOK_INTERVAL = 0.25
#: Seconds that a worker has to end when it is told to, before it is killed: its own exit handlers run in them.
END_TIMEOUT = 5.0
#: Attributes of a server that are its serving and not its state.
NOT_STATE = ("_BaseServer__", "_bells", "_executor")


def check(server: type, handler: Any) -> None:
    """Whether a worker process finds these classes.

    Raises:
        TypeError: it does not; the text has the remedy.
        RuntimeError: no process of this system can hand a connection to another.
    """
    if not hasattr(socket, "send_fds"):
        raise RuntimeError(f"{sys.platform} cannot send sockets to another process; serve in threads")
    import_path(server)
    import_path(handler)
    if _is_async(handler):
        raise TypeError(
            f"{handler!r} is async and runs on an event loop, not in a worker process; make handle() a plain method, "
            "or serve it in threads or in line"
        )


class ProcessPool(Executor):
    """Processes that serve one request after the other.

    Args:
        server: whose requests they are. Its class and its RequestHandlerClass are importable by name.
        max_workers: how many processes at most; None: twice the number of processors, and four at least.

    Raises:
        TypeError: one of the classes cannot be imported by name.
    """

    crosses = True

    def __init__(self, server: Any, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers is {max_workers!r}; it takes at least one process")
        check(type(server), server.RequestHandlerClass)
        self.max_workers = max_workers or max(4, 2 * _processors())
        self._server = server
        self._handler: Any = None
        self._handler_path = ""
        self._lock = threading.RLock()  # a signal handler may close the server
        self._selector = selectors.DefaultSelector()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._waiting: list[Callable[[], object]] = []
        self._closed = False
        self._pause, self._retry_at, self._reason = BACKOFF_FIRST, 0.0, ""
        self._looked = time.monotonic()
        self._given = _socket_to_give(server)
        _pools.add(self)

    # --- taking requests

    def submit(
        self, server: Any, request: Any, client_address: Any, *, done: Done | None = None, over: bool = False
    ) -> bool:
        """Send the request to an idle worker; start one if there is none."""
        calls: list[Callable[[], object]] = []
        try:
            with self._lock:
                while (worker := self._choose(over, calls)) is not None:
                    try:
                        worker.send(*self._written(server, request, client_address))
                    except (BrokenPipeError, ConnectionResetError):
                        self._lost(worker, calls)
                        continue
                    if self._idle:
                        self._idle.pop()
                    worker.jobs.append(done)
                    return True
                return False
        finally:
            _call(calls)

    def _written(self, server: Any, request: Any, client_address: Any) -> tuple[bytes, list[int]]:
        """The request as it crosses.

        Raises:
            TypeError: it cannot.
        """
        handler = server.RequestHandlerClass
        if handler is not self._handler:
            self._handler_path = import_path(handler)
            self._handler = handler
        body, sock = request if isinstance(request, tuple) else (b"", request)
        if type(sock) is not socket.socket:
            raise TypeError(
                f"{sock!r} cannot be sent to a worker process; what can is a plain socket (a TLS connection has its "
                "state in this process): serve it in threads"
            )
        if sock is self._given:
            return frame((self._handler_path, client_address, None), body), []
        return frame((self._handler_path, client_address, described(sock)), body), [sock.fileno()]

    def _choose(self, over: bool, calls: list[Callable[[], object]]) -> Worker | None:
        """The worker that became idle last; beyond the bound, the one with the least to do; None if there is none."""
        if self._closed:
            raise RuntimeError("the pool of processes is closed")
        if not self._idle:
            self._collect(calls)
        if self._idle:
            return self._idle[-1]  # what it needs is in the caches
        if all(worker.ready for worker in self._workers):
            self._grow()
        return min(self._workers, key=lambda worker: len(worker.jobs)) if over and self._workers else None

    def _grow(self) -> None:
        """Start a worker if there may be one more; the first of those that are busy now to be done may be quicker.

        Raises:
            RuntimeError: there is no worker at all, and starting one has just failed.
        """
        if len(self._workers) >= self.max_workers:
            return
        if time.monotonic() >= self._retry_at:
            try:
                self._start()
                return
            except OSError as error:  # the system has no process or descriptor to give: those that are there go on
                self._failed(f"cannot be started: {error}")
        if not self._workers:
            reason = self._reason.strip().rpartition("\n")[2]  # the log has it all
            raise RuntimeError(f"no worker process for this request: {reason}")

    def _start(self) -> None:
        server = self._server
        standing_in = sys.modules.get("compat.socketserver")
        state = {name: value for name, value in vars(server).items() if not name.startswith(NOT_STATE) and plain(value)}
        paths = import_path(type(server)), import_path(server.RequestHandlerClass)
        first = {
            "path": sys.path,
            "argv": sys.argv,
            "stands_in": standing_in is not None and sys.modules.get("socketserver") is standing_in,
            "main": main_module() if any(path.startswith("__main__:") for path in paths) else None,
            "server": paths[0],
            "handler": paths[1],
            "attributes": state,
            "socket": None if self._given is None else described(self._given),
        }
        worker = Worker(frame(first), [] if self._given is None else [self._given.fileno()])
        self._workers.add(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)

    # --- hearing from workers

    def fileno(self) -> int:
        """Readable when a worker has said something, or has ended; -1 where the system has neither epoll nor kqueue."""
        fileno = getattr(self._selector, "fileno", None)
        return -1 if fileno is None else fileno()

    def when_free(self, callback: Callable[[], object]) -> None:
        """Call *callback* from collect() when a worker is idle."""
        with self._lock:
            if not self._idle and not self._closed:
                if callback not in self._waiting:
                    self._waiting.append(callback)
                return
        callback()

    def collect(self) -> None:
        """Hear what the workers have said, and replace those that have ended."""
        calls: list[Callable[[], object]] = []
        try:
            with self._lock:
                if not self._closed or self._workers:
                    self._collect(calls)
        finally:
            _call(calls)

    def collect_at_leisure(self) -> None:
        """The same if it has not been done for a while: for a server that passes here after every request."""
        if time.monotonic() - self._looked > LOOK_INTERVAL:
            self.collect()

    def _collect(self, calls: list[Callable[[], object]]) -> None:
        self._looked = time.monotonic()
        for key, _ in self._selector.select(0):
            worker: Worker = key.data
            said = worker.hear()
            if not said:
                self._lost(worker, calls)
            elif worker.said or said.startswith(FAILED):
                worker.said = (worker.said + said)[: 1 + REASON_LIMIT]
            else:
                self._heard(worker, said, calls)

    def _heard(self, worker: Worker, said: bytes, calls: list[Callable[[], object]]) -> None:
        worker.ready = worker.ready or READY in said
        for _ in range(min(said.count(DONE), len(worker.jobs))):
            worker.served += 1
            if (done := worker.jobs.pop(0)) is not None:
                calls.append(partial(done, None))
        if worker.served:
            self._pause, self._retry_at, self._reason = BACKOFF_FIRST, 0.0, ""
        if worker.ready and not worker.jobs and not self._closed and worker not in self._idle:
            self._idle.append(worker)
            calls += self._waiting
            self._waiting = []

    def _lost(self, worker: Worker, calls: list[Callable[[], object]]) -> None:
        """A worker has ended: its request is over, and another takes its place."""
        self._selector.unregister(worker.channel)
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        how = worker.end(END_TIMEOUT)
        calls += [partial(done, f"{how} while it served this request") for done in worker.jobs if done is not None]
        if self._closed:
            self._end_of_closed()
            return
        calls += self._waiting
        self._waiting = []
        if not worker.served:
            self._failed(worker.said[1:].decode(errors="replace") or how)
            return
        log("warning", "%s; it is replaced, and lost with it are requests: %d", how, len(worker.jobs))
        try:
            self._start()
        except OSError as error:
            self._failed(f"cannot be started: {error}")

    def _failed(self, reason: str) -> None:
        """Pause before the next start; say the reason once, until a worker has served something."""
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, BACKOFF_LAST)
        if reason != self._reason:
            self._reason = reason
            log("error", "a worker process of %r is of no use: %s", self._server, reason)

    # --- ending

    def close(self, wait: bool) -> None:
        """Let the workers end when they have finished."""
        calls: list[Callable[[], object]] = []
        with self._lock:
            if not self._closed:
                self._closed = True
                self._idle.clear()
                calls += self._waiting
                self._waiting = []
                for worker in self._workers:
                    worker.dismiss()
                _closing.add(self)
                self._end_of_closed()
        _call(calls)
        while wait and self._workers:
            try:
                self._selector.select(NAP)  # without the lock: others may collect, too
            except (OSError, ValueError, TypeError):  # and have seen the last worker end, and closed this
                break
            self.collect()
        for pool in list(_closing - {self}):  # those that nobody waited for
            pool.collect()

    def _end_of_closed(self) -> None:
        if not self._workers:
            self._selector.close()
            _closing.discard(self)

    def end(self) -> None:
        """End the workers whatever they do: the interpreter ends."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, set()
            for worker in workers:
                worker.channel.close()
            for worker in workers:
                worker.end(END_TIMEOUT)
            self._selector.close()

    def forget(self) -> None:
        """Begin without workers, in a forked child."""
        self._lock = threading.RLock()
        if self._closed and not self._workers:
            return
        self._selector.close()
        for worker in self._workers:
            worker.forget()
        self._selector = selectors.DefaultSelector()
        self._workers, self._idle, self._waiting = set(), [], []


def _call(calls: list[Callable[[], object]]) -> None:
    """Call what is to be called when no lock is held."""
    for call in calls:
        call()


def _socket_to_give(server: Any) -> socket.socket | None:
    """The socket of a datagram server, through which its workers answer."""
    sock = getattr(server, "socket", None)
    return sock if type(sock) is socket.socket and sock.type == socket.SOCK_DGRAM else None


def _processors() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)  # new in 3.13
    return count() or 1


#: All pools of the process, for its end and for its forks; and those that are closed and have workers still.
_pools: WeakSet[ProcessPool] = WeakSet()
_closing: set[ProcessPool] = set()


@atexit.register
def _end() -> None:
    for pool in list(_pools):
        pool.end()


def _forget() -> None:
    _closing.clear()
    for pool in list(_pools):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Where a legacy handler runs: in line, in threads, in processes; and servers in socketserver's style for each of them.

An executor is a small object (class `Executor`); these are its bodies:

    Inline()                     in the calling thread
    FreshThreads(daemon=…)       a new thread for each request: what ThreadingMixIn does
    ThreadPool(max_workers=…)    reused threads: elastic (None), or bounded with a queue of twice as many requests
    Borrowed(executor)           threads of a concurrent.futures.Executor of the user's own
    Forks(max_workers=…)         a forked child for each request: what ForkingMixIn does; never where threads run
    ProcessPool(server, …)       processes that get the connection over SCM_RIGHTS and the classes by import path

From synchronous code, `dispatch(server, executor, request, client_address)` is process_request(): it waits for room,
and notices shutdown() meanwhile. From an event loop nothing here waits:

    executor.submit(server, request, client_address, done=…)
        True: taken, and `done(None)` will be called when the request is closed, in any thread (of a ProcessPool: from
        collect()); `done("sentence")` if it was lost with its worker. If `executor.crosses`, call
        `server.close_request(request)` right away: the worker has its own copy.
        False: no room; the request is still yours. Try again when `executor.when_free(callback)` calls back.
        Raises RuntimeError (no worker to be had), TypeError (this request cannot cross) or OSError (nor anything else
        just now): the request is still yours.
    executor.fileno()
        -1, or a descriptor to watch (add_reader, wait_readable): when it is readable call `executor.collect()`.
        It stays the same from the construction to close().
    executor.close(wait)
        Blocks if *wait*; what was taken is served in either case.

`server` is any object with `process_request_thread(request, client_address)`, called in the worker; without that, with
finish_request, handle_error, shutdown_request. For a ProcessPool its class and its RequestHandlerClass are importable
by name, a worker has a stand-in for it: made from the class without its constructor, with those instance attributes
that are plain data (numbers, texts, and lists, tuples, dicts of them), as they were when the worker started.

**Reused threads keep their thread-local state from one request to the next.** Programs keep "who is logged in" there.
That is why ThreadingMixIn never reuses a thread, and why these classes are asked for by name. A contextvars context, on
the other hand, is always a fresh and empty one.
"""

from __future__ import annotations

import socket

from . import socketserver
from ._dispatch import dispatch, executor_of
from ._executor import Executor
from ._inplace import Borrowed, Forks, FreshThreads, Inline
from ._pool import ThreadPool
from ._processes import ProcessPool, check

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    import concurrent.futures
    from typing import Any

__all__ = [
    "Borrowed",
    "Executor",
    "ExecutorMixIn",
    "ExecutorTCPServer",
    "ExecutorUDPServer",
    "Forks",
    "FreshThreads",
    "Inline",
    "ProcessPool",
    "ProcessPoolMixIn",
    "ProcessPoolTCPServer",
    "ProcessPoolUDPServer",
    "ThreadPool",
    "ThreadPoolMixIn",
    "ThreadPoolTCPServer",
    "ThreadPoolUDPServer",
    "as_executor",
    "dispatch",
]


def as_executor(executor: Executor | concurrent.futures.Executor) -> Executor:
    """One of ours as it is, one of concurrent.futures as `Borrowed`.

    Raises:
        TypeError: it is neither, or it would pickle what it runs.
    """
    return executor if isinstance(executor, Executor) else Borrowed(executor)


class ThreadPoolMixIn(socketserver.ThreadingMixIn):
    """Serves requests in reused threads, which keep their thread-local state from one request to the next.

    Attributes:
        max_workers: how many threads at most; twice as many requests wait in a queue, and then clients in the kernel's.
            None: as many as there are requests, so that handlers may wait for each other.
        daemon_threads: whether the end of the program leaves them alone.
        block_on_close: whether server_close() waits for the requests, if the threads are no daemons.
    """

    max_workers: int | None = None

    def _make_executor(self) -> Executor:
        return ThreadPool(self.max_workers, daemon=self.daemon_threads)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the request to a thread, where process_request_thread() is called; wait for one if need be.

        Raises:
            RuntimeError: there is none, and the system has none to give. The caller refuses that client.
        """
        dispatch(self, executor_of(self, self._make_executor), request, client_address)

    def server_close(self) -> None:
        """Close the server, then wait for the requests, if they are to be waited for."""
        super().server_close()
        if (executor := vars(self).pop("_executor", None)) is not None:
            executor.close(self.block_on_close and not self.daemon_threads)


class ExecutorMixIn:
    """Serves requests in the threads of an executor that the program brings, and never shuts it down.

    Attributes:
        executor: a ThreadPoolExecutor, or any other whose work stays in this process.
        block_on_close: whether server_close() waits for the requests.
    """

    executor: concurrent.futures.Executor | None = None
    block_on_close: bool = True
    process_request_thread = socketserver.ThreadingMixIn.process_request_thread

    def _make_executor(self) -> Executor:
        if self.executor is None:
            raise TypeError(f"{type(self).__name__}.executor is None; set it to a ThreadPoolExecutor, for instance")
        return Borrowed(self.executor)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Submit the request to the executor, where process_request_thread() is called.

        Raises:
            RuntimeError: the executor is shut down. The caller refuses that client.
            TypeError: it is none, or it would pickle what it runs.
        """
        executor = executor_of(self, self._make_executor)
        if isinstance(executor, Borrowed) and executor.lender is not self.executor:  # replaced meanwhile
            self._let_go(wait=False)
            executor = executor_of(self, self._make_executor)
        dispatch(self, executor, request, client_address)

    def _let_go(self, wait: bool) -> None:
        if (executor := vars(self).pop("_executor", None)) is not None:
            executor.close(wait)

    def server_close(self) -> None:
        """Close the server, then wait for the requests, if they are to be waited for."""
        super().server_close()  # type: ignore[misc]  # of the server that this is mixed into
        self._let_go(self.block_on_close)

    _worker_shakes_hands = socketserver.ThreadingMixIn._worker_shakes_hands


class ProcessPoolMixIn:
    """Serves requests in processes that were started beforehand and get the connection, or the datagram, sent.

    The server's class and the handler's are importable by name; in a worker `self.server` is a stand-in for the server:
    its class with its hooks, made without the constructor, and those instance attributes that are plain data. Of a
    program's main module the part under `if __name__ == "__main__":` does not run there.

    Attributes:
        max_workers: how many processes at most; clients wait in the kernel's queue for one. None: twice the number of
            processors, and four at least. They are started when they are needed.
        block_on_close: whether server_close() waits for the requests. The end of the program does not.

    Raises:
        TypeError: when constructed: one of the classes cannot be imported by name.
    """

    max_workers: int | None = None
    block_on_close: bool = True
    process_request_thread = socketserver.ThreadingMixIn.process_request_thread

    def __init__(self, server_address: Any, RequestHandlerClass: Any, *arguments: Any, **options: Any) -> None:
        check(type(self), RequestHandlerClass)
        super().__init__(server_address, RequestHandlerClass, *arguments, **options)  # type: ignore[call-arg]  # mixed

    def _make_executor(self) -> Executor:
        return ProcessPool(self, self.max_workers)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Send the request to a worker, where process_request_thread() is called, and close it here.

        Raises:
            RuntimeError: there is no worker, and none can be started. The caller refuses that client.
            TypeError: it is nothing that can be sent, such as a TLS connection.
        """
        dispatch(self, executor_of(self, self._make_executor), request, client_address)

    def service_actions(self) -> None:
        """Replace the workers that have ended."""
        super().service_actions()  # type: ignore[misc]  # of the server that this is mixed into
        if (executor := vars(self).get("_executor")) is not None:
            executor.collect_at_leisure()

    def server_close(self) -> None:
        """Close the server, wait for the requests, if they are to be waited for, and let the workers end."""
        super().server_close()  # type: ignore[misc]  # of the server that this is mixed into
        if (executor := vars(self).pop("_executor", None)) is not None:
            executor.close(self.block_on_close)


socketserver._OURS |= {
    ThreadPoolMixIn.process_request,
    ExecutorMixIn.process_request,
    ExecutorMixIn.process_request_thread,
}


class ThreadPoolTCPServer(ThreadPoolMixIn, socketserver.TCPServer):
    """Connections in reused threads."""


class ThreadPoolUDPServer(ThreadPoolMixIn, socketserver.UDPServer):
    """Datagrams in reused threads."""


class ExecutorTCPServer(ExecutorMixIn, socketserver.TCPServer):
    """Connections in the program's own executor."""


class ExecutorUDPServer(ExecutorMixIn, socketserver.UDPServer):
    """Datagrams in the program's own executor."""


class ProcessPoolTCPServer(ProcessPoolMixIn, socketserver.TCPServer):
    """Connections in worker processes."""


class ProcessPoolUDPServer(ProcessPoolMixIn, socketserver.UDPServer):
    """Datagrams in worker processes, which answer through the server's socket."""


if hasattr(socket, "AF_UNIX"):
    __all__ += [
        "ExecutorUnixDatagramServer",
        "ExecutorUnixStreamServer",
        "ProcessPoolUnixDatagramServer",
        "ProcessPoolUnixStreamServer",
        "ThreadPoolUnixDatagramServer",
        "ThreadPoolUnixStreamServer",
    ]

    class ThreadPoolUnixStreamServer(ThreadPoolMixIn, socketserver.UnixStreamServer):
        """Connections at a path in reused threads."""

    class ThreadPoolUnixDatagramServer(ThreadPoolMixIn, socketserver.UnixDatagramServer):
        """Datagrams at a path in reused threads."""

    class ExecutorUnixStreamServer(ExecutorMixIn, socketserver.UnixStreamServer):
        """Connections at a path in the program's own executor."""

    class ExecutorUnixDatagramServer(ExecutorMixIn, socketserver.UnixDatagramServer):
        """Datagrams at a path in the program's own executor."""

    class ProcessPoolUnixStreamServer(ProcessPoolMixIn, socketserver.UnixStreamServer):
        """Connections at a path in worker processes."""

    class ProcessPoolUnixDatagramServer(ProcessPoolMixIn, socketserver.UnixDatagramServer):
        """Datagrams at a path in worker processes."""

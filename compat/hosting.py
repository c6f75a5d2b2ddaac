"""hosted(): a legacy handler class as the handler of a native server.

Accepted, limited and drained by the async core; then the class runs as it is on its real, blocking socket, in a worker,
and the event loop never touches its bytes. Lives here: the handler class that a native server gets, what its stopping
means for a handler that cannot be cancelled, and the server as that handler sees it. Must not: where handlers run, that
is an executor's; accepting, limits, deadlines, those are the native server's. `compat.hosted` is this one, imported
when somebody asks for it, as `aserver` and anyio are.
"""

from __future__ import annotations

import concurrent.futures
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, cast

from anyio import from_thread
from anyio.lowlevel import current_token

import aserver

from . import socketserver
from ._executor import Executor
from ._pool import ThreadPool
from ._visit import Sender, Visit, end
from ._waiting import log
from .executors import as_executor

__all__ = ["HostedServer", "hosted"]

#: Threads for the connections of one server. Each costs some 40 KB when it works; above this number, 256 of which wait
#: for their peers, a machine does better to let clients wait.
MAX_WORKERS = 256
#: Seconds that a thread without work stays: a new one costs less than a tenth of a millisecond.
IDLE_TIMEOUT = 2.0
#: Milliseconds after which the thread that listens to worker processes looks whether they are still there.
LOOK_INTERVAL = 1000


def hosted(
    handler_class: Callable[[Any, Any, Any], Any],
    *,
    executor: Executor | concurrent.futures.Executor | Callable[[Any], Executor] | None = None,
    max_workers: int = MAX_WORKERS,
    wait_for_data: bool = False,
) -> type[aserver.BaseRequestHandler]:
    """Make a handler for `aserver.TCPServer`, `UnixStreamServer`, `UDPServer` and their like of a legacy handler class.

    Args:
        handler_class: a handler class of `socketserver`, the standard library's or ours, or what is called like one: a
            partial() of `SimpleHTTPRequestHandler`.
        executor: where it runs: one of `compat.executors`, or threads of `concurrent.futures`, for all servers that get
            this handler, and never closed here; or a function of the server (a `HostedServer`) that gives one for each,
            such as the class `compat.executors.ProcessPool`. None: `max_workers` threads for each server, reused.
        max_workers: threads for each server at most. Further clients are accepted (as far as the server's `Limits` let
            them) and wait, unread and in order.
        wait_for_data: whether a connection gets a thread only when its first byte is there. One that ends before is
            closed, and no handler is made for it. Not for protocols in which the server speaks first.

    Raises:
        TypeError: the class is an async one, or no class; or an executor is none.
        ValueError: *max_workers* is less than 1.

    The handler's `request` is the connection's socket, blocking, or for a datagram (bytes, an object with sendto());
    `server` is a `HostedServer`. What it raises is the native server's to log and to count.

    When the server stops, the handler sees `self.server.draining`. A second later the connection's input ends where
    nothing is unread: recv() returns b"", and a last answer can still be sent. At the end of the grace the connection
    is shut down, and a thread that goes on all the same is left behind; it does not hold up the end of the program.
    """
    inner = handler_class
    while not isinstance(inner, type) and hasattr(inner, "func"):  # partial()
        inner = inner.func
    name = getattr(inner, "__qualname__", repr(inner))
    if not callable(handler_class):
        raise TypeError(f"{handler_class!r} is no handler class; give a class derived from BaseRequestHandler")
    if socketserver._is_async(inner):
        raise TypeError(f"{name}.handle() is async, which needs no hosting; give aserver a handler class of aserver")
    if max_workers < 1:
        raise ValueError(f"max_workers is {max_workers!r}; it must be at least 1")
    host = _Host(handler_class, _maker(executor, max_workers), wait_for_data)
    text = f"{name}, a legacy handler class, hosted in a native server."
    return type(f"hosted({name})", (_HostedHandler,), {"host": host, "__doc__": text})


def _maker(executor: Any, max_workers: int) -> Callable[[HostedServer], Executor]:
    if executor is None:
        return lambda _: ThreadPool(max_workers, daemon=True, idle_timeout=IDLE_TIMEOUT)
    if callable(executor):
        return cast("Callable[[HostedServer], Executor]", executor)
    one = as_executor(executor)
    return lambda _: one


class HostedServer:
    """The native server as a legacy handler sees it: `self.server`.

    What it has not itself is the native server's, which is also where attributes are set. In a worker process there is
    no native server, and these attributes are all.

    Attributes:
        server_address: the address of its (first) socket.
        RequestHandlerClass: the legacy handler class.
    """

    _native: Any = None

    def __init__(self, native: Any, server_address: Any, handler_class: Any) -> None:
        vars(self).update(server_address=server_address, RequestHandlerClass=handler_class)
        if native is not None:
            vars(self)["_native"] = native

    @property
    def draining(self) -> bool:
        """Whether the server is stopping: finish what is under way, begin nothing new."""
        return self._native is not None and self._native.draining

    def __getattr__(self, name: str) -> Any:
        if self._native is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._native, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._native is None or name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self._native, name, value)

    # What a worker process calls; in a thread of this process a `Visit` stands there.

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Call the handler class."""
        self.RequestHandlerClass(request, client_address, self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the exception that is being handled to sys.stderr."""
        socketserver.BaseServer.handle_error(self, request, client_address)  # type: ignore[arg-type]  # asks for nothing

    def shutdown_request(self, request: Any) -> None:
        """End the request."""
        if isinstance(request, socket.socket):
            end(request)


class _Host:
    """What one call of hosted() has made: what is the same for all servers."""

    def __init__(
        self, handler_class: Any, make_executor: Callable[[HostedServer], Executor], wait_for_data: bool
    ) -> None:
        self.handler_class = handler_class
        self.make_executor = make_executor
        self.wait_for_data = wait_for_data

    def house(self, native: Any) -> _House:
        """What belongs to this server; kept by it, and made at its first request."""
        houses: dict[_Host, _House] = vars(native).setdefault("_hosted", {})
        if (house := houses.get(self)) is None:
            house = houses[self] = _House(self, native)
        return house


class _HostedHandler(aserver.BaseRequestHandler):
    host: ClassVar[_Host]

    async def handle(self) -> None:
        house = self.host.house(self.server)
        if isinstance(self.request, aserver.Stream):
            await house.serve_connection(self.request)
        elif isinstance(self.request, aserver.Datagram):
            sender = Sender(self.server, self.request, house.token)
            await house.serve(Visit(house, (self.request.data, sender), self.client_address))
        else:
            raise TypeError(f"{self.request!r} cannot be given to a legacy handler: it knows connections and datagrams")


class _House:
    """The legacy handlers of one server, those that run and those that wait; lives in the loop of that server.

    Attributes:
        facade: the server as handlers see it.
        token: of the loop.
    """

    def __init__(self, host: _Host, native: Any) -> None:
        self.facade = HostedServer(native, native.server_address, host.handler_class)
        self.token = current_token()
        self._thread = threading.get_ident()
        self._wait_for_data = host.wait_for_data
        # An executor is not led back to the server by what it is given: it would keep it for ever.
        self._stand_in = HostedServer(None, native.server_address, host.handler_class)
        self._executor = host.make_executor(self._stand_in)
        if self._executor.fileno() >= 0:
            threading.Thread(target=_listen, args=(weakref.ref(self._executor),), daemon=True).start()
        self._queue: deque[Visit] = deque()
        self._pumping = False
        self._room = False
        self._open = 0

    async def serve_connection(self, stream: aserver.Stream) -> None:
        """Take the socket from the stream, and serve it when there is something to serve."""
        visit = Visit(self, None, stream.peer)
        visit.request = stream.detach(visit)
        try:
            worth_it = not self._wait_for_data or await visit.wait_for_data()
        except BaseException:
            visit.request.close()
            raise
        if worth_it:
            visit.request.setblocking(True)
            await self.serve(visit)
        else:
            visit.request.close()

    async def serve(self, visit: Visit) -> None:
        """Let the visit wait for its turn, and for its end; raise what its handler raises."""
        self._open += 1
        self._queue.append(visit)
        self.pump()
        try:
            await visit.over.wait()
        except BaseException:
            visit.abandon()
            raise
        finally:
            self._open -= 1
            if not self._open and self.facade.draining and isinstance(self._executor, ThreadPool):
                self._executor.end_idle()
        visit.conclude()

    @property
    def crosses(self) -> bool:
        """Whether handlers run in other processes."""
        return self._executor.crosses

    def pump(self) -> None:
        """Hand those who wait, in their order, to the executor, as far as it has room."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                if self._queue[0].is_here and not self._submit(self._queue[0]):
                    self._room = False
                    self._executor.when_free(self._freed)
                    if not self._room:
                        return
                else:
                    self._queue.popleft()
        finally:
            self._pumping = False

    def _submit(self, visit: Visit) -> bool:
        server = self._stand_in if self.crosses else visit
        try:
            return self._executor.submit(server, visit.request, visit.client_address, done=visit.done)
        except (RuntimeError, TypeError) as error:  # no worker to be had; or not for this request
            visit.error = error
            visit.shutdown_request(visit.request)
            visit.over.set()
            return True

    def _freed(self) -> None:
        self._room = True
        if any(visit.is_here for visit in tuple(self._queue)):  # see `Visit.done`
            self.call(self.pump)

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in the loop, from any thread; nothing happens if it is not there any more."""
        if threading.get_ident() == self._thread:
            function()
            return
        try:
            from_thread.run_sync(function, token=self.token)
        except RuntimeError:  # the loop has ended
            log("debug", "%r: a handler has outlived its server", self.facade.server_address)


def _listen(executor: weakref.ref[Executor]) -> None:
    """Hear what worker processes say, for as long as the executor is there: in a thread of its own."""
    while (there := executor()) is not None:
        try:
            poll = select.poll()
            poll.register(there.fileno(), select.POLLIN)
        except (OSError, ValueError):  # it is closed
            return
        del there
        if poll.poll(LOOK_INTERVAL) and (there := executor()) is not None:
            there.collect()
        there = None

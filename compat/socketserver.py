"""The drop-in for the standard library's `socketserver`: its classes, hooks and order, on waiting of our own.

Lives here: what the module's documentation and its users name, and nothing else. Must not live here: how to wait
(`_waiting`), to start threads (`_threads`), to shake hands (`_handshake`).

Every class derives from the class whose place it takes, for the sake of isinstance(), and says again all that this one
has, so that nothing of it is ever executed: with that a value set on TCPServer does not reach what UDPServer says
itself. Hooks and handlers of plain servers run in the thread that called serve_forever(), where no event loop runs.
What each method promises is in the library's documentation, section "socketserver"; said here is what differs.
"""

from __future__ import annotations

import io
import os
import socket
import socketserver as _stdlib
import sys
import threading
import time

from . import _handshake
from ._threads import NoThreads as _NoThreads
from ._threads import Threads as _Threads
from ._threads import start_among as _start_among
from ._waiting import OUT_OF_RESOURCES, OUT_OF_SERVICE, AcceptTrouble, Bell, DefaultSelector, Watch, log, wait_readable

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "DatagramRequestHandler",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "UDPServer",
]

if sys.version_info < (3, 15):
    __version__ = "0.4"
else:

    def __getattr__(name: str) -> str:
        """The version, which Python 3.15 deprecates and 3.20 removes."""
        if name == "__version__":
            import warnings

            message = "'__version__' is deprecated and slated for removal in Python 3.20"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return "0.4"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


#: What serving waits with; programs put another class in its place.
_ServerSelector: Any = DefaultSelector

#: What marks the code of an `async def`: inspect.CO_COROUTINE, without inspect.
_CO_COROUTINE = 0x80
#: Since 3.14, and in the last patch releases of 3.13, the option is kept from Unix sockets: newer kernels refuse it.
_REUSE_PORT_FAMILIES = (socket.AF_INET, socket.AF_INET6)


#: Receives without waiting on a socket that waits otherwise; 0 where there is no such thing.
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
#: Looks for a further datagram that are left out after one in vain.
LOOKS_SKIPPED = 8


class BaseServer(_stdlib.BaseServer):
    """Waits and dispatches; a subclass brings at least fileno() and get_request().

    Args:
        server_address: where the server is; of any type, as only subclasses use it.
        RequestHandlerClass: called with (request, client_address, server) for each request.

    Attributes:
        timeout: seconds that handle_request() waits; None: as long as it takes.
        accept_errors: how often get_request() raised an OSError, which ends that request and nothing else.
    """

    RequestHandlerClass: Any
    timeout: float | None = None
    accept_errors = 0
    _bells: tuple[Bell, ...] = ()
    _trouble: AcceptTrouble | None = None

    def __init__(self, server_address: Any, RequestHandlerClass: Callable[[Any, Any, Self], Any]) -> None:
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        # Programs read and set these two under their mangled names: they are the truth, bells only make it quick.
        self.__is_shut_down = threading.Event()
        self.__shutdown_request = False

    def server_activate(self) -> None:
        """Called by the constructor; for subclasses."""

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve until shutdown() is called from another thread.

        Args:
            poll_interval: seconds between two calls of service_actions() when nothing happens, and the longest time
                until a flag that was set without shutdown() is seen; None: as long as nothing happens.

        Raises:
            ValueError: the server is closed.
            Exception: what the hooks raise, but for an OSError of get_request().
        """
        self.__is_shut_down.clear()
        try:
            with Watch(self, _ServerSelector) as watch:
                self.__serve(watch, poll_interval)
        finally:
            self.__shutdown_request = False
            self.__is_shut_down.set()

    def __serve(self, watch: Watch, poll_interval: float | None) -> None:
        bell = watch.bell
        if bell is not None:
            self._bells += (bell,)
        try:
            while not self.__shutdown_request:
                ready = watch.wait(poll_interval, self._trouble)
                if self.__shutdown_request:
                    break
                if ready:
                    self._handle_request_noblock()
                self.service_actions()
                if ready and watch.polls:
                    self.__serve_further()
        finally:
            self._bells = tuple(each for each in self._bells if each is not bell)

    def __serve_further(self) -> None:
        while not self.__shutdown_request and self._serve_waiting():
            self.service_actions()

    def _serve_waiting(self) -> bool:
        """Serve one more request if one waits and that can be found out without poll(); whether it was so."""
        return False

    def shutdown(self) -> None:
        """Stop serve_forever() and wait until it has returned; at once on an idle server, whatever its interval.

        Raises:
            RuntimeError: called by a handler or hook in the thread that serves, which would wait for itself for ever.
        """
        if any(bell.is_mine for bell in self._bells):
            raise RuntimeError(
                f"shutdown() of {self!r} called from the thread that is in its serve_forever(), and waits for that to "
                "return; call it from another thread"
            )
        self.__shutdown_request = True
        self._ring()
        self.__is_shut_down.wait()

    def _ring(self) -> None:
        """Let the threads that serve look again at what they wait for."""
        for bell in self._bells:
            bell.ring()

    def service_actions(self) -> None:
        """Called by serve_forever() after every request and every poll_interval; for subclasses."""

    def handle_request(self) -> Any:
        """Wait for one request and serve it in the calling thread.

        The shorter of `timeout` and the socket's own timeout counts, in seconds; when it is over, handle_timeout() is
        called and its value returned. shutdown() does not end it.

        Raises:
            ValueError: the server is closed.
            Exception: what the hooks raise, but for an OSError of get_request().
        """
        timeout = self._patience()
        if self._trouble is not None and (pause := self._trouble.remaining()):
            time.sleep(pause if timeout is None else min(pause, timeout))
        if wait_readable(self, timeout, _ServerSelector):
            return self._handle_request_noblock()
        return self.handle_timeout()

    def _patience(self) -> float | None:
        """The shorter of the two timeouts that a server may have."""
        listener = getattr(self, "socket", None)
        known = [self.timeout, listener.gettimeout() if listener is not None else None]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def _handle_request_noblock(self) -> None:
        """Serve the request that a wait has found; loops of others call this, too."""
        try:
            request, client_address = self.get_request()
        except OSError as error:
            self._not_accepted(error)
            return
        self._serve_request(request, client_address)

    def _serve_request(self, request: Any, client_address: Any) -> None:
        if self._trouble is not None:
            self._trouble.end()
        if not self.verify_request(request, client_address):
            self.shutdown_request(request)
            return
        try:
            self.process_request(request, client_address)
        except Exception:  # noqa: BLE001 - any failure of a handler is handle_error's
            self.handle_error(request, client_address)
            self.shutdown_request(request)
        except BaseException:
            self.shutdown_request(request)
            raise

    def _not_accepted(self, error: OSError) -> None:
        """Count an error that ends one request only; pause if the next attempt would end no better."""
        self._count(error)
        # an SSLError numbers its errors otherwise
        if type(error) is OSError and error.errno in OUT_OF_RESOURCES | OUT_OF_SERVICE:
            if self._trouble is None:
                self._trouble = AcceptTrouble()
            self._trouble.begin(error, self.server_address)

    def _count(self, error: OSError) -> None:
        """Note an error that nobody else hears of."""
        self.accept_errors += 1
        log("debug", "%r: no request came of %r", self.server_address, error)

    def _closed_one(self) -> None:
        """A request is closed: if accepting waits for a descriptor, here may be one."""
        if self._trouble is not None and self._trouble.interrupt():
            self._ring()

    def _worker_shakes_hands(self) -> bool:
        """Whether a TLS handshake may wait until the request is in its worker, unseen by all hooks before."""
        return False

    def _shake_hands(self, request: Any) -> bool:
        """Make the handshake if one is due; False if it failed, which counts as a failed accept does."""
        if not _handshake.is_due(request):
            return True
        try:
            _handshake.make(request)
        except OSError as error:
            self._count(error)
            return False
        return True

    def handle_timeout(self) -> Any:
        """Called by handle_request() when its time is over; for subclasses."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to serve this request; for subclasses."""
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the request here and close it; mixins do so elsewhere, and async handlers are served by their loop."""
        if _is_async(self.RequestHandlerClass):
            _hand_over(self, request, client_address)
            return
        self.finish_request(request, client_address)
        self.shutdown_request(request)

    def server_close(self) -> None:
        """Close what the server listens on; for subclasses."""
        _leave_loop(self)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Call the handler class, whose constructor does it all."""
        self.RequestHandlerClass(request, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        """End a request that was served or refused."""
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Close a request; for subclasses, which do well to call this, too."""
        self._closed_one()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the exception that is being handled to sys.stderr."""
        import traceback

        print("-" * 40, file=sys.stderr)
        print("Exception occurred during processing of request from", client_address, file=sys.stderr)
        traceback.print_exc()
        print("-" * 40, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.server_close()


class TCPServer(BaseServer, _stdlib.TCPServer):
    """Accepts TCP connections; each one is a request.

    A listening socket that the program has wrapped with TLS (`server.socket = context.wrap_socket(…)`) lets no client
    block the others for ever: a handshake has 10 seconds, and takes place in the worker if the server has workers and
    overrides none of get_request, verify_request, process_request and process_request_thread, which might look at it.

    Args:
        server_address: (host, port); port 0 lets the system choose, and the attribute tells.
        RequestHandlerClass: called with (request, client_address, server) for each request.
        bind_and_activate: whether to bind and listen at once.

    Raises:
        OSError: the address cannot be bound; the socket is closed again.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    request_queue_size: int = socket.SOMAXCONN if sys.version_info >= (3, 15) else 5
    allow_reuse_address: bool = False
    allow_reuse_port: bool = False

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Callable[[Any, Any, Self], Any],
        bind_and_activate: bool = True,
    ) -> None:
        BaseServer.__init__(self, server_address, RequestHandlerClass)
        self.socket = socket.socket(self.address_family, self.socket_type)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_bind(self) -> None:
        """Bind the socket and remember the address that it got."""
        if self.allow_reuse_address and hasattr(socket, "SO_REUSEADDR"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.allow_reuse_port and hasattr(socket, "SO_REUSEPORT") and self.address_family in _REUSE_PORT_FAMILIES:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Listen, with a queue of request_queue_size clients."""
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close the socket; a second time does nothing. Async handlers are told to end, and waited for or cancelled."""
        self.socket.close()
        self._ring()
        _leave_loop(self)

    def fileno(self) -> int:
        """The descriptor of the socket, -1 when it is closed."""
        return self.socket.fileno()

    def get_request(self) -> tuple[Any, Any]:
        """Accept one connection; return it and the client's address."""
        listener = self.socket
        if type(listener) is socket.socket or not _handshake.would_shake_hands(listener):
            return listener.accept()
        request, client_address = _handshake.accept(listener)
        if not self._worker_shakes_hands():
            try:
                _handshake.make(request)
            except BaseException:
                request.close()
                raise
        return request, client_address

    def shutdown_request(self, request: Any) -> None:
        """Send the end of the stream, also if the socket lives on elsewhere, and close the request."""
        try:
            request.shutdown(socket.SHUT_WR)
        except OSError:  # the client was quicker, or the handler
            pass
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Close the connection."""
        request.close()
        if self._trouble is not None:
            self._closed_one()


class UDPServer(TCPServer, _stdlib.UDPServer):
    """Receives datagrams; a request is the pair (bytes, the server's socket).

    Attributes:
        max_packet_size: bytes that are received of a datagram at most; the rest of it is lost.
    """

    allow_reuse_address: bool = False
    allow_reuse_port: bool = False
    socket_type: int = socket.SOCK_DGRAM
    max_packet_size: ClassVar[int] = 8192
    _looks_to_skip = 0 if _DONT_WAIT else sys.maxsize

    def get_request(self) -> tuple[Any, Any]:
        """Receive one datagram; return it with the socket, and the sender's address."""
        data, client_address = self.socket.recvfrom(self.max_packet_size)
        return (data, self.socket), client_address

    def _serve_waiting(self) -> bool:
        # A poll() for each is a fifth of what a datagram costs, and a look in vain as much: then some are left out.
        if self._looks_to_skip:
            self._looks_to_skip -= 1
            return False
        if getattr(self.get_request, "__func__", None) is not UDPServer.get_request:
            return False
        try:
            data, client_address = self.socket.recvfrom(self.max_packet_size, _DONT_WAIT)
        except (OSError, ValueError):  # nothing waits; or what is wrong is for the next get_request() to find
            self._looks_to_skip = LOOKS_SKIPPED
            return False
        self._serve_request((data, self.socket), client_address)
        return True

    def server_activate(self) -> None:
        """Do nothing: there is nothing to listen for."""

    def shutdown_request(self, request: Any) -> None:
        """Close the request."""
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Do nothing: the socket is the server's."""


class ThreadingMixIn(_stdlib.ThreadingMixIn):
    """Serves each request in a thread of its own, a fresh one.

    Attributes:
        daemon_threads: whether the end of the program leaves them alone.
        block_on_close: whether server_close() waits for those that are no daemons.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    _threads: Any = _NoThreads()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve and close the request: what the thread does."""
        _work(self, request, client_address)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request.

        Raises:
            RuntimeError: the system has none to give. The caller refuses that client, and serves on.
        """
        handler_class: Any = self.RequestHandlerClass  # type: ignore[attr-defined]  # as below
        if _is_async(handler_class) and getattr(self.process_request_thread, "__func__", None) in _OURS:
            _hand_over(self, request, client_address)
            return
        if self.block_on_close and "_threads" not in vars(self):
            self._threads = _Threads()
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=self.daemon_threads
        )
        _start_among(self._threads, thread)

    def server_close(self) -> None:
        """Close the server, then wait for the threads, if they are to be waited for."""
        _next(ThreadingMixIn, _stdlib.ThreadingMixIn, self).server_close()
        _leave_loop(self)  # also where the next one is the original's
        self._threads.join()

    def _worker_shakes_hands(self) -> bool:
        return _are_untouched(self, "process_request", "process_request_thread")


#: The hooks that see a request before it is in its worker, as they are before a program replaces them.
_OURS: set[Any] = {
    TCPServer.get_request,
    BaseServer.verify_request,
    ThreadingMixIn.process_request,
    ThreadingMixIn.process_request_thread,
}

if hasattr(os, "fork"):
    __all__ += ["ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer"]

    class ForkingMixIn(_stdlib.ForkingMixIn):
        """Serves each request in a process of its own, forked when the request comes.

        Attributes:
            max_children: how many there are at most; the next request waits for one to end.
            block_on_close: whether server_close() waits for all of them.
            active_children: their process ids; None before the first.
        """

        timeout: float | None = 300
        active_children: set[int] | None = None
        max_children: int = 40
        block_on_close: bool = True

        def collect_children(self, *, blocking: bool = False) -> None:
            """Forget the children that have ended.

            Args:
                blocking: wait until all have.
            """
            children = self.active_children
            while children and len(children) >= self.max_children:  # wait for any, whosoever child it is
                try:
                    pid, _ = os.waitpid(-1, 0)
                except ChildProcessError:  # others have waited for all of them
                    children.clear()
                    return
                children.discard(pid)
            if not children or not (blocking or _has_ended_child()):
                return
            for pid in children.copy():  # each by name: a child of the program is the program's to wait for
                try:
                    ended, _ = os.waitpid(pid, 0 if blocking else os.WNOHANG)
                except ChildProcessError:  # another has waited for it
                    ended = pid
                children.discard(ended)

        def handle_timeout(self) -> None:
            """Forget the children that have ended."""
            self.collect_children()

        def service_actions(self) -> None:
            """Forget the children that have ended."""
            self.collect_children()

        def process_request(self, request: Any, client_address: Any) -> None:
            """Fork a child for the request; it ends in here, with status 0, or 1 if the handler has failed."""
            pid = os.fork()
            if pid:
                if self.active_children is None:
                    self.active_children = set()
                self.active_children.add(pid)
                self.close_request(request)  # type: ignore[attr-defined]  # of the server that this is mixed into
                return
            _work_and_exit(self, request, client_address)

        def server_close(self) -> None:
            """Close the server, then wait for the children, if they are to be waited for."""
            _next(ForkingMixIn, _stdlib.ForkingMixIn, self).server_close()
            self.collect_children(blocking=self.block_on_close)

        def _worker_shakes_hands(self) -> bool:
            return _are_untouched(self, "process_request")

    _OURS.add(ForkingMixIn.process_request)

    def _has_ended_child() -> bool:
        """Whether it pays to ask for each child: the system tells in one call if none of them has ended."""
        if not hasattr(os, "waitid"):
            return True
        try:
            return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True


class ThreadingTCPServer(ThreadingMixIn, TCPServer, _stdlib.ThreadingTCPServer):
    """A thread for each connection."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer, _stdlib.ThreadingUDPServer):
    """A thread for each datagram."""


if hasattr(os, "fork"):

    class ForkingTCPServer(ForkingMixIn, TCPServer, _stdlib.ForkingTCPServer):
        """A process for each connection."""

    class ForkingUDPServer(ForkingMixIn, UDPServer, _stdlib.ForkingUDPServer):
        """A process for each datagram."""


if hasattr(socket, "AF_UNIX"):
    __all__ += ["ThreadingUnixDatagramServer", "ThreadingUnixStreamServer", "UnixDatagramServer", "UnixStreamServer"]

    class UnixStreamServer(TCPServer, _stdlib.UnixStreamServer):
        """Accepts connections at a path; server_close() leaves the file."""

        address_family: int = socket.AF_UNIX

    class UnixDatagramServer(UDPServer, _stdlib.UnixDatagramServer):
        """Receives datagrams at a path; server_close() leaves the file."""

        address_family: int = socket.AF_UNIX

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer, _stdlib.ThreadingUnixStreamServer):
        """A thread for each connection."""

    class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer, _stdlib.ThreadingUnixDatagramServer):
        """A thread for each datagram."""

    if hasattr(os, "fork") and sys.version_info >= (3, 12):
        __all__ += ["ForkingUnixDatagramServer", "ForkingUnixStreamServer"]

        class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer, _stdlib.ForkingUnixStreamServer):
            """A process for each connection."""

        class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer, _stdlib.ForkingUnixDatagramServer):
            """A process for each datagram."""


if TYPE_CHECKING:
    # The original's methods return None, and its files never wait: a checker would refuse `async def handle` for it.
    _BaseHandler = object
    _StreamHandler = object
    _DatagramHandler = object
else:
    _BaseHandler = _stdlib.BaseRequestHandler
    _StreamHandler = _stdlib.StreamRequestHandler
    _DatagramHandler = _stdlib.DatagramRequestHandler


class BaseRequestHandler(_BaseHandler):
    """One request: the constructor calls setup(), handle() and finish(), in which subclasses do their work.

    With `async def handle` in a subclass the request is a task on an event loop, in a thread that is started when the
    first such request comes; server_close() waits for it, or cancels it. `request` is an `aserver.Stream` then if it is
    a connection; setup() and finish() may be async, too, those inherited are plain. finish_request(), handle_error(),
    shutdown_request() and close_request() are called in that thread, with the socket as ever, and must not block it. A
    constructor called elsewhere, by an executor, a forked child or a hook of the program's own, waits for its handler.

    Args:
        request: what get_request() returned: a connection, or a datagram with the server's socket.
        client_address: whence it came.
        server: the server that it came to.

    Raises:
        Exception: what the three raise. After setup() has succeeded finish() is called whatever happens.
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        if _is_async(type(self)):
            _begin(self)
            return
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    def setup(self) -> Any:
        """Called before handle(); for subclasses."""

    def handle(self) -> Any:
        """Serve the request; for subclasses."""

    def finish(self) -> Any:
        """Called after handle(); for subclasses."""


class StreamRequestHandler(BaseRequestHandler, _StreamHandler):
    """A connection with two files on it.

    Attributes:
        rfile, wfile: binary files to read from and to write to; in an async handler `aserver.StreamReader` and
            `aserver.StreamWriter`, for which the sizes mean nothing, and `timeout` must be None.
        rbufsize, wbufsize: bytes of their buffers; -1 for the default, 0 for none.
        timeout: seconds that reading and writing may wait; None: as long as they take.
        disable_nagle_algorithm: whether small writes go out at once (TCP_NODELAY).
    """

    rbufsize: ClassVar[int] = -1
    wbufsize: ClassVar[int] = 0
    timeout: ClassVar[float | None] = None
    disable_nagle_algorithm: ClassVar[bool] = False
    connection: Any
    rfile: Any
    wfile: Any

    def setup(self) -> Any:
        """Make the files."""
        if _is_async(type(self)):
            _set_up_stream(self)
            return
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        if self.wbufsize == 0:
            self.wfile = _SocketWriter(self.connection)
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def finish(self) -> Any:
        """Send what is buffered, and close the files."""
        if _is_async(type(self)):  # nothing is, and they are closed with the connection
            return
        if not self.wfile.closed:
            try:
                self.wfile.flush()
            except OSError:  # the client is gone: there is nobody left to tell
                pass
        self.wfile.close()
        self.rfile.close()


class _SocketWriter(io.BufferedIOBase):
    """A file without a buffer: what is written has been handed to the system when write() returns."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def writable(self) -> bool:
        return True

    def write(self, b: Any) -> int:
        """Send all of *b* and return its length in bytes."""
        self._sock.sendall(b)
        with memoryview(b) as view:
            return view.nbytes

    def fileno(self) -> int:
        return self._sock.fileno()  # type: ignore[no-any-return]  # a socket, or what stands for it in a test


class DatagramRequestHandler(BaseRequestHandler, _DatagramHandler):
    """A datagram to be read from one file, and its answer, to be written to another and sent when the handler ends.

    Attributes:
        packet: the datagram's bytes.
        socket: the server's socket.
    """

    packet: bytes
    socket: Any
    rfile: Any
    wfile: Any

    def setup(self) -> Any:
        """Make the files."""
        self.packet, self.socket = self.request
        self.rfile = io.BytesIO(self.packet)
        self.wfile = io.BytesIO()

    def finish(self) -> Any:
        """Send the answer, one datagram even if it is empty."""
        answer = self.wfile.getvalue()
        if _is_async(type(self)):
            _send_answer(self, answer)
            return
        self.socket.sendto(answer, self.client_address)


def _is_async(handler_class: Any) -> bool:
    """Whether the handle() of a class, or of a partial() of one, is `async def`; looked at each time, as all hooks."""
    try:
        return bool(handler_class.handle.__code__.co_flags & _CO_COROUTINE)
    except AttributeError:  # a callable of another kind, or a handle() that is no plain function
        handler_class = getattr(handler_class, "func", handler_class)
        code = (
            getattr(getattr(handler_class, "handle", None), "__code__", None)
            if isinstance(handler_class, type)
            else None
        )
        return bool(getattr(code, "co_flags", 0) & _CO_COROUTINE)


def _hand_over(server: Any, request: Any, client_address: Any) -> None:
    """Have a request served by the event loop; see `_asynchronous`, which is imported when there is need of it."""
    made = server.RequestHandlerClass
    handler_class = made if isinstance(made, type) else made.func
    if not issubclass(handler_class, BaseRequestHandler):
        raise TypeError(
            f"{handler_class.__qualname__}.handle() is async, and the class is none of compat.socketserver's; derive "
            "it from one of its handler classes, or serve it with a server of aserver"
        )
    from ._asynchronous import hand_over

    hand_over(server, request, client_address, _is_async)


def _leave_loop(server: Any) -> None:
    """On closing: if requests of the server are in the event loop, let them end."""
    if "_side" in vars(server):
        from ._asynchronous import leave

        leave(server)


def _begin(handler: BaseRequestHandler) -> None:
    from ._asynchronous import begin

    begin(handler)


def _set_up_stream(handler: StreamRequestHandler) -> None:
    from ._asynchronous import set_up_stream

    set_up_stream(handler)


def _send_answer(handler: DatagramRequestHandler, answer: bytes) -> None:
    from ._asynchronous import send_answer

    send_answer(handler, answer)


def _work(server: Any, request: Any, client_address: Any) -> bool:
    """Serve and close a request in its worker; whether that went well."""
    try:
        if not _handshake.is_due(request) or server._shake_hands(request):
            server.finish_request(request, client_address)
        return True
    except Exception:  # noqa: BLE001 - any failure of a handler is handle_error's
        server.handle_error(request, client_address)
        return False
    finally:
        server.shutdown_request(request)


def _work_and_exit(server: Any, request: Any, client_address: Any) -> None:
    """The same as all that a forked child does: its status is 0 if that went well, otherwise 1."""
    status = 1
    try:
        if _work(server, request, client_address):
            status = 0
    finally:
        os._exit(status)


def _next(mixin: type, stands_for: type, server: Any) -> Any:
    """super() in *mixin*, past the class of the standard library that it stands for if that comes next."""
    order = type(server).__mro__
    following = order[order.index(mixin) + 1]
    return super(following if following is stands_for else mixin, server)


def _are_untouched(server: Any, *names: str) -> bool:
    """Whether these hooks, and those before them, are ours: nobody looks at a request before its worker has it."""
    return all(
        getattr(getattr(server, name), "__func__", None) in _OURS for name in ("get_request", "verify_request", *names)
    )

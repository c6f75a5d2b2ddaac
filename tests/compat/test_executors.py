"""Where handlers run: executors of threads, and the servers that have one."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import socket
import socketserver as stdlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import compat
from compat import _pool, _threads, executors, socketserver

from ..peers import ask, ask_datagram, connect, talk
from ..programs import Program, write
from .servers import END_TIMEOUT, Echo, needs_threads_after_main, serving

LOOPBACK = ("127.0.0.1", 0)


class DatagramEcho(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.packet)


class Name(socketserver.StreamRequestHandler):
    """Answer with the name of the thread."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(threading.current_thread().name.encode() + b"\n")


class Gate:
    """A handler that says when it runs, and ends when it is let."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()
        self.served: list[bytes] = []

    def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        self.inside.release()
        assert self.open.wait(END_TIMEOUT)
        line = request.recv(100)
        self.served.append(line)
        request.sendall(line)

    def enter(self) -> None:
        """Wait until one more handler runs."""
        assert self.inside.acquire(timeout=END_TIMEOUT)


class Requests:
    """Stands for a server: tells an executor what to do with a request, and what it was told."""

    def __init__(self, work: Callable[[Any], None] = lambda request: None) -> None:
        self.work = work
        self.closed: list[Any] = []

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            self.work(request)
        finally:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.work(request)

    def shutdown_request(self, request: Any) -> None:
        self.closed.append(request)


@pytest.fixture
def pool_of_two() -> Iterator[executors.ThreadPool]:
    """Two reused threads, ended afterwards."""
    pool = executors.ThreadPool(2)
    yield pool
    pool.close(wait=True)


# --- the names -------------------------------------------------------------------------------------------------------


def test_the_package_has_the_classes_and_does_not_show_them() -> None:
    """`from compat import ThreadPoolTCPServer` works, and dir(), * and __all__ stay the standard library's."""
    for name in executors.__all__:
        if name.endswith(("MixIn", "Server")):
            assert getattr(compat, name) is getattr(executors, name)
    assert sorted(compat.__all__) == sorted(stdlib.__all__)
    assert not [name for name in dir(compat) if "Pool" in name or name.startswith("Executor")]
    with pytest.raises(AttributeError, match="no attribute 'ThreadPoolFTPServer'"):
        compat.ThreadPoolFTPServer  # noqa: B018 - the look-up is the test


# --- the servers -----------------------------------------------------------------------------------------------------


class BroughtTCPServer(executors.ExecutorTCPServer):
    def server_activate(self) -> None:
        super().server_activate()
        self.executor = ThreadPoolExecutor(2)

    def server_close(self) -> None:
        super().server_close()
        assert self.executor is not None
        self.executor.shutdown()


@pytest.mark.parametrize("kind", [executors.ThreadPoolTCPServer, BroughtTCPServer])
def test_connections_one_after_the_other(kind: Any) -> None:
    """A pool of threads serves connections with unchanged handlers, in fewer threads than there are connections."""
    server = kind(LOOPBACK, Name)
    with serving(server):
        names = {talk(server.server_address, b"?\n") for _ in range(20)}
    assert 1 <= len(names) <= 3


def test_datagrams() -> None:
    """A pool of threads answers datagrams through the server's socket."""
    with serving(server := executors.ThreadPoolUDPServer(LOOPBACK, DatagramEcho)):
        assert [ask_datagram(server.server_address, b"%d" % n) for n in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_unix_sockets(tmp_path: Path) -> None:
    """Both kinds of Unix sockets have their classes."""
    stream, datagrams = str(tmp_path / "stream"), str(tmp_path / "datagrams")
    with serving(executors.ThreadPoolUnixStreamServer(stream, Echo)):
        assert ask(stream, b"1\n") == b"1\n"
    with serving(executors.ThreadPoolUnixDatagramServer(datagrams, DatagramEcho)):
        assert ask_datagram(datagrams, b"1") == b"1"


def test_it_goes_over_the_original() -> None:
    """ThreadPoolMixIn over a server of the standard library serves, also beyond its bound, and stops."""

    class Server(executors.ThreadPoolMixIn, stdlib.TCPServer):
        max_workers = 1

    server = Server(LOOPBACK, Echo)  # type: ignore[arg-type]  # the original's type knows its own handlers only
    with serving(server, 0.05), ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(5)]
        for client in clients:
            assert client.ask(b"1\n") == b"1\n"
            client.close()


def test_the_hooks_and_their_threads() -> None:
    """process_request runs in the serving thread; process_request_thread and what follows it run in the worker."""
    calls: list[tuple[str, bool]] = []

    def note(name: str) -> Any:
        def hook(self: Any, *arguments: Any) -> Any:
            calls.append((name, threading.current_thread() is thread))
            return getattr(super(Server, self), name)(*arguments)

        return hook

    class Server(executors.ThreadPoolTCPServer):
        pass

    hooks = "process_request process_request_thread finish_request handle_error shutdown_request close_request".split()
    for name in hooks:
        setattr(Server, name, note(name))

    def handler(request: Any, client_address: Any, server: Any) -> None:
        raise ValueError("the test's")

    server = Server(LOOPBACK, handler)
    with serving(server) as thread:
        assert talk(server.server_address, b"") == b""
    assert calls == [(name, name == "process_request") for name in hooks]


def test_state_of_threads_is_kept_and_context_is_fresh() -> None:
    """As documented: a reused thread keeps its thread-local state; a context variable reaches no other request."""
    local = threading.local()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[tuple[bool, str]] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        seen.append((hasattr(local, "user"), variable.get()))
        local.user = "somebody"
        variable.set("somebody")

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1

    variable.set("the program's")
    with serving(server := Server(LOOPBACK, handler)):
        for _ in range(2):
            talk(server.server_address, b"")
    assert seen == [(False, "unset"), (True, "unset")]


def test_an_elastic_pool_has_a_thread_for_each_request() -> None:
    """Without a bound 40 handlers which all wait for each other finish."""
    barrier = threading.Barrier(40)

    def handler(request: Any, client_address: Any, server: Any) -> None:
        barrier.wait(END_TIMEOUT)
        request.sendall(b"met\n")

    class Server(executors.ThreadPoolTCPServer):
        request_queue_size = 64

    server = Server(LOOPBACK, handler)
    with serving(server), ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(40)]
        assert {client.read_until_eof() for client in clients} == {b"met\n"}


def test_a_full_pool_lets_clients_wait_and_loses_none() -> None:
    """With one thread and a queue of two, ten clients are served in the order in which they came."""
    gate = Gate()

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1
        request_queue_size = 16

    server = Server(LOOPBACK, gate)
    with serving(server), ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(10)]
        for number, client in enumerate(clients):
            client.send(b"%d" % number)
        gate.enter()
        gate.open.set()
        assert [client.read_until_eof() for client in clients] == [b"%d" % number for number in range(10)]


def test_shutdown_ends_the_wait_for_room() -> None:
    """shutdown() returns while all threads are busy and the queue is full; what was accepted by then is served."""
    gate, asked = Gate(), threading.Semaphore(0)

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1

        def process_request(self, request: Any, client_address: Any) -> None:
            asked.release()
            super().process_request(request, client_address)

    server = Server(LOOPBACK, gate)
    with serving(server) as thread, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(4)]
        for client in clients:
            client.send(b"x")
        for _ in clients:
            assert asked.acquire(timeout=END_TIMEOUT)
        server.shutdown()
        thread.join(END_TIMEOUT)
        assert not thread.is_alive()
        assert gate.served == []
        gate.open.set()
        assert [client.read_until_eof() for client in clients] == [b"x"] * 4


def test_server_close_ends_the_wait_for_room(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is closed under its serve_forever() serves what it has accepted, without a complaint."""
    gate, asked = Gate(), threading.Semaphore(0)

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1
        block_on_close = False

        def process_request(self, request: Any, client_address: Any) -> None:
            asked.release()
            super().process_request(request, client_address)

    server = Server(LOOPBACK, gate)
    with serving(server), ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(4)]
        for client in clients:
            client.send(b"x")
        for _ in clients:
            assert asked.acquire(timeout=END_TIMEOUT)
        gate.enter()
        server.server_close()
        server.shutdown()
        gate.open.set()
        assert [client.read_until_eof() for client in clients] == [b"x"] * 4
    assert capsys.readouterr().err == ""


def test_handle_request_waits_for_room() -> None:
    """handle_request(), which has no bell, waits for room, too."""
    gate = Gate()

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1

    with Server(LOOPBACK, gate) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(4)]
        for client in clients:
            client.send(b"x")
        for _ in range(3):
            server.handle_request()
        fourth = threading.Thread(target=server.handle_request)
        fourth.start()
        gate.open.set()
        fourth.join(END_TIMEOUT)
        assert [client.read_until_eof() for client in clients] == [b"x"] * 4


def test_a_handler_that_raises_ends_its_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    """SystemExit, and an error of handle_error(), end the request; the thread serves on, and the second is told."""
    names: list[str] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        names.append(threading.current_thread().name)
        raise SystemExit if len(names) == 1 else ValueError("a handler's")

    class Server(executors.ThreadPoolTCPServer):
        max_workers = 1

        def handle_error(self, request: Any, client_address: Any) -> None:
            raise RuntimeError("handle_error's")

    told: list[str] = []
    hook, threading.excepthook = threading.excepthook, lambda args: told.append(repr(args.exc_value))
    try:
        with serving(server := Server(LOOPBACK, handler)):
            for _ in range(3):
                assert talk(server.server_address, b"") == b""
    finally:
        threading.excepthook = hook
    assert len(set(names)) == 1
    assert told == ["SystemExit()", *['RuntimeError("handle_error\'s")'] * 2]


@pytest.mark.parametrize("daemon, block, waits", [(False, True, True), (False, False, False), (True, True, False)])
def test_server_close_waits_as_the_mixin_does(daemon: bool, block: bool, waits: bool) -> None:
    """server_close() waits for requests if block_on_close and not daemon_threads."""
    gate = Gate()
    server = executors.ThreadPoolTCPServer(LOOPBACK, gate)
    server.daemon_threads, server.block_on_close = daemon, block
    with connect(server.server_address) as client:
        client.send(b"x")
        server.handle_request()
        gate.enter()
        closing = threading.Thread(target=server.server_close)
        closing.start()
        if not waits:
            closing.join(END_TIMEOUT)
            assert not closing.is_alive()
        assert closing.is_alive() == waits
        gate.open.set()
        assert client.read_until_eof() == b"x"
        closing.join(END_TIMEOUT)


def test_a_handler_may_close_the_server() -> None:
    """server_close() in a worker waits for the others, not for itself; with a borrowed executor as well."""

    def handler(request: Any, _: Any, server: Any) -> None:
        server.server_close()
        request.sendall(b"closed\n")

    class Borrowing(executors.ExecutorTCPServer):
        pass

    with ThreadPoolExecutor(2) as Borrowing.executor:
        for kind in (executors.ThreadPoolTCPServer, Borrowing):
            with serving(server := kind(LOOPBACK, handler)):
                assert ask(server.server_address, b"") == b"closed\n"


def test_a_server_serves_again_after_it_was_made_again() -> None:
    """An object that is closed and constructed again has a new pool."""
    server = executors.ThreadPoolTCPServer(LOOPBACK, Echo)
    for _ in range(2):
        with serving(server):
            assert ask(server.server_address, b"1\n") == b"1\n"
        server.__init__(LOOPBACK, Echo)  # type: ignore[misc]  # what Patroni does to reload
    server.server_close()


# --- the bodies ------------------------------------------------------------------------------------------------------


def test_room_ends_where_it_is_said_to(pool_of_two: executors.ThreadPool) -> None:
    """Two threads and a queue of four take six requests, not a seventh, but one beyond if told; then there is room."""
    gate, done, free = threading.Event(), threading.Semaphore(0), threading.Event()
    server = Requests(lambda request: assert_true(gate.wait(END_TIMEOUT)))
    for number in range(6):
        assert pool_of_two.submit(server, number, None, done=lambda lost: done.release())
    assert not pool_of_two.submit(server, 6, None)
    assert pool_of_two.submit(server, 7, None, over=True, done=lambda lost: done.release())
    pool_of_two.when_free(free.set)
    assert not free.is_set()
    gate.set()
    assert free.wait(END_TIMEOUT)
    for _ in range(7):
        assert done.acquire(timeout=END_TIMEOUT)
    assert sorted(server.closed) == [0, 1, 2, 3, 4, 5, 7]
    free.clear()
    pool_of_two.when_free(free.set)
    assert free.is_set()


def assert_true(value: bool) -> None:
    """An assertion as a function."""
    assert value


def test_idle_threads_end() -> None:
    """A thread without work for the given time ends, and the next request gets a new one."""
    pool = executors.ThreadPool(idle_timeout=0.001)
    done = threading.Semaphore(0)
    seen: list[threading.Thread] = []
    for _ in range(2):
        work = Requests(lambda request: seen.append(threading.current_thread()))
        pool.submit(work, None, None, done=lambda lost: done.release())
        assert done.acquire(timeout=END_TIMEOUT)
        seen[-1].join(END_TIMEOUT)
        assert not seen.pop().is_alive()
    pool.close(wait=True)


def test_idle_threads_hold_nothing(pool_of_two: executors.ThreadPool) -> None:
    """A request is forgotten when it was served, though its thread lives on."""
    done = threading.Semaphore(0)
    server = Requests()
    gone = weakref.ref(server)
    pool_of_two.submit(server, None, None, done=lambda lost: done.release())
    assert done.acquire(timeout=END_TIMEOUT)
    del server
    pool_of_two.submit(Requests(), None, None, done=lambda lost: done.release())
    assert done.acquire(timeout=END_TIMEOUT)
    pool_of_two.close(wait=True)
    gc.collect()
    assert gone() is None


def test_the_queue_is_served_when_the_pool_closes(pool_of_two: executors.ThreadPool) -> None:
    """close() serves what was taken, and takes no more."""
    gate = threading.Event()
    server = Requests(lambda request: assert_true(gate.wait(END_TIMEOUT)))
    for number in range(6):
        assert pool_of_two.submit(server, number, None)
    pool_of_two.close(wait=False)
    with pytest.raises(RuntimeError, match="closed"):
        pool_of_two.submit(server, 6, None)
    gate.set()
    pool_of_two.close(wait=True)
    assert sorted(server.closed) == [0, 1, 2, 3, 4, 5]


def test_refused_threads(monkeypatch: pytest.MonkeyPatch, pool_of_two: executors.ThreadPool) -> None:
    """Where the system gives no more threads those that are there go on; without any the request is refused."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gate, done = threading.Event(), threading.Semaphore(0)
    server = Requests(lambda request: assert_true(gate.wait(END_TIMEOUT)))
    with monkeypatch.context() as patch:
        patch.setattr(_pool, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool_of_two.submit(server, 1, None)
    assert pool_of_two.submit(server, 2, None, done=lambda lost: done.release())
    with monkeypatch.context() as patch:
        patch.setattr(_pool, "start", refuse)
        assert pool_of_two.submit(server, 3, None, done=lambda lost: done.release())
    gate.set()
    for _ in range(2):
        assert done.acquire(timeout=END_TIMEOUT)
    assert server.closed == [2, 3]


def test_a_forked_child_has_a_pool_of_its_own(pool_of_two: executors.ThreadPool) -> None:
    """A child that is forked while threads are busy or idle starts its own."""
    done = threading.Event()
    pool_of_two.submit(Requests(), None, None, done=lambda lost: done.set())
    assert done.wait(END_TIMEOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
        pid = os.fork()
    if pid == 0:
        done = threading.Event()
        pool_of_two.submit(Requests(), None, None, done=lambda lost: done.set())
        os._exit(0 if done.wait(END_TIMEOUT) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_fresh_threads() -> None:
    """Each request has a thread of its own, for which close() waits."""
    executor = executors.FreshThreads()
    names: list[str] = []
    told: list[str | None] = []
    for _ in range(5):
        work = Requests(lambda request: names.append(threading.current_thread().name))
        assert executor.submit(work, None, None, done=told.append)
    executor.close(wait=True)
    assert len(set(names)) == 5
    assert all("(process_request_thread)" in name for name in names)
    assert told == [None] * 5


def test_a_refused_fresh_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread the request is the caller's still, and close() waits for nobody."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = executors.FreshThreads()
    monkeypatch.setattr(_threads, "start", refuse)
    with pytest.raises(RuntimeError):
        executor.submit(Requests(), None, None)
    executor.close(wait=True)


def test_in_line() -> None:
    """In line the handler runs in the thread that submits, and what it raises comes out."""
    server = Requests(lambda request: names.append(threading.current_thread().name))
    names: list[str] = []
    told: list[str | None] = []
    executors.Inline().submit(server, "request", None, done=told.append)
    assert (names, told, server.closed) == ([threading.current_thread().name], [None], ["request"])

    def fail(request: Any) -> None:
        raise ValueError("a handler's")

    with pytest.raises(ValueError, match="a handler's"):
        executors.Inline().submit(Requests(fail), None, None)


def test_forked_children() -> None:
    """Forks serves in a child and tells how that ended: `done` of collect(), with the status if it is not 0."""
    here = os.getpid()
    executor = executors.Forks(2)
    told: list[str | None] = []

    class Server(Requests):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    def fail(request: Any) -> None:
        if request == "bad" or os.getpid() == here:
            raise ValueError

    for request in ("good", "bad", "good"):
        assert executor.submit(Server(fail), request, None, done=told.append)
    executor.close(wait=True)
    assert sorted(map(str, told))[:2] == ["None", "None"]
    assert "ended with status 1" in str(max(map(str, told), key=len))


# --- executors of the user's own -------------------------------------------------------------------------------------


def test_executors_that_pickle_are_refused() -> None:
    """A ProcessPoolExecutor is refused by a message that names what to use, and so is what is no executor."""
    with ProcessPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match=r"pickles what it runs.*ProcessPoolTCPServer"):
            executors.as_executor(executor)
    with pytest.raises(TypeError, match="no submit"):
        executors.as_executor(object())  # type: ignore[arg-type]  # the mistake
    own = executors.Inline()
    assert executors.as_executor(own) is own


def test_a_server_without_its_executor(capsys: pytest.CaptureFixture[str]) -> None:
    """A forgotten executor is said to each client's handle_error(), and the server serves on."""
    with serving(server := executors.ExecutorTCPServer(LOOPBACK, Echo)):
        assert talk(server.server_address, b"") == b""
        with ThreadPoolExecutor(1) as server.executor:
            assert ask(server.server_address, b"1\n") == b"1\n"
        with ThreadPoolExecutor(1) as server.executor:
            assert ask(server.server_address, b"2\n") == b"2\n"
        assert talk(server.server_address, b"") == b""
    errors = capsys.readouterr().err
    assert "executor is None; set it to a ThreadPoolExecutor" in errors
    assert "cannot schedule new futures after shutdown" in errors


def test_a_borrowed_executor_is_bounded() -> None:
    """A lender's queue has no bound: three requests for each of its workers is what it gets."""
    gate, free = threading.Event(), threading.Event()
    server = Requests(lambda request: assert_true(gate.wait(END_TIMEOUT)))
    with ThreadPoolExecutor(1) as lender:
        executor = executors.Borrowed(lender)
        assert [executor.submit(server, number, None) for number in range(4)] == [True, True, True, False]
        executor.when_free(free.set)
        assert not free.is_set()
        gate.set()
        assert free.wait(END_TIMEOUT)
        executor.close(wait=True)
    assert server.closed == [0, 1, 2]


def test_requests_that_the_lender_drops_are_closed() -> None:
    """Requests which a lender cancels when it is shut down are closed, and told as lost."""
    gate, inside = threading.Event(), threading.Event()
    told: list[str | None] = []

    def work(request: Any) -> None:
        inside.set()
        assert gate.wait(END_TIMEOUT)

    server = Requests(work)
    lender = ThreadPoolExecutor(1)
    executor = executors.Borrowed(lender)
    for number in range(2):
        assert executor.submit(server, number, None, done=told.append)
    assert inside.wait(END_TIMEOUT)
    lender.shutdown(wait=False, cancel_futures=True)
    assert server.closed == [1]
    assert told == ["the executor was shut down before it came to this request"]
    gate.set()
    executor.close(wait=True)
    lender.shutdown()
    assert told[1:] == [None]


# --- the end of the program ------------------------------------------------------------------------------------------

PROGRAM = """
    import os, socket, threading
    from compat import ThreadPoolTCPServer

    running = threading.Semaphore(0)

    def handler(request, address, server):
        running.release()
        request.recv(1)
        os.write(1, b"daemon\\n" if threading.current_thread().daemon else b"served\\n")

    server = ThreadPoolTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = DAEMON
    threading.Thread(target=server.serve_forever, daemon=True).start()
    idle, client = (socket.create_connection(server.server_address) for _ in range(2))
    idle.close()
    running.acquire(), running.acquire()
    if not DAEMON:
        threading.Thread(target=lambda: (threading.main_thread().join(), client.close()), daemon=True).start()
    os.write(1, b"end\\n")
"""


@pytest.mark.parametrize("daemon", [False, True])
def test_the_end_of_the_program(tmp_path: Path, daemon: bool) -> None:
    """The interpreter ends past idle threads; it waits for requests, unless daemon_threads, and then for none."""
    file = write(tmp_path / "program.py", PROGRAM.replace("DAEMON", str(daemon)))
    with Program(tmp_path, file) as program:
        ended = program.end()
    assert (ended.status, ended.errors) == (0, "")
    lines = ended.output.split()
    assert "end" in lines
    assert daemon or sorted(lines) == ["end", "served", "served"]


@needs_threads_after_main
def test_serving_goes_on_when_the_main_thread_has_ended(tmp_path: Path) -> None:
    """A server in a thread that is no daemon serves on after the main thread's end, where executors refuse to."""
    file = write(
        tmp_path / "program.py",
        """
        import threading
        from compat import ThreadPoolTCPServer

        def handler(request, address, server):
            if request.recv(100) == b"stop":
                threading.Thread(target=server.shutdown).start()
            request.sendall(b"served")

        server = ThreadPoolTCPServer(("127.0.0.1", 0), handler)

        def serve():
            with server:
                server.serve_forever(3600)

        def tell():
            threading.main_thread().join()
            print(server.server_address[1], flush=True)

        threading.Thread(target=serve).start()
        threading.Thread(target=tell).start()
        """,
    )
    with Program(tmp_path, file) as program:
        address = ("127.0.0.1", int(program.line()))
        assert [talk(address, word) for word in (b"1", b"2", b"stop")] == [b"served"] * 3
        ended = program.end()
    assert (ended.status, ended.errors) == (0, "")


def test_ctrl_c_with_a_busy_pool(tmp_path: Path) -> None:
    """Ctrl-C comes out of serve_forever() while it waits for room, and daemon threads do not hold the program."""
    file = write(
        tmp_path / "program.py",
        """
        import threading
        from compat import ThreadPoolTCPServer

        class Server(ThreadPoolTCPServer):
            max_workers = 1
            daemon_threads = True
            waiting = 0

            def process_request(self, request, address):
                self.waiting += 1
                if self.waiting == 4:
                    print("full", flush=True)
                super().process_request(request, address)

        with Server(("127.0.0.1", 0), lambda *_: threading.Event().wait()) as server:
            print(server.server_address[1], flush=True)
            server.serve_forever(3600)
        """,
    )
    with Program(tmp_path, file) as program, ExitStack() as stack:
        address = ("127.0.0.1", int(program.line()))
        for _ in range(4):
            stack.enter_context(connect(address))
        assert program.line() == "full"
        program.signal(signal.SIGINT)
        assert program.end().status == -signal.SIGINT


def test_the_sockets_of_requests_are_real() -> None:
    """A handler in a pool has the real socket, in blocking mode."""
    seen: list[Any] = []

    def handler(request: Any, client_address: Any, server: Any) -> None:
        seen.append((type(request), request.gettimeout()))

    with serving(server := executors.ThreadPoolTCPServer(LOOPBACK, handler)):
        talk(server.server_address, b"")
    assert seen == [(socket.socket, None)]

"""Handlers in worker processes: what reaches them, what happens when they end, and that they always do."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from compat import _crossing, _processes, executors

from ..conftest import LogBook
from ..peers import TIMEOUT, Client, ask, ask_datagram, connect, talk
from ..programs import Program, write
from . import handlers
from .handlers import LargeUDPServer, Lines, Other, Packet, Server
from .servers import END_TIMEOUT, Echo, serving

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture
def compat_log() -> Iterator[LogBook]:
    """The records of the logger "compat"."""
    book = LogBook()
    log = logging.getLogger("compat")
    log.addHandler(book)
    yield book
    log.removeHandler(book)


class Pair:
    """A connection as a server sees it, for a pool without a server: its client's end is a socket of the test."""

    def __init__(self) -> None:
        self.client, self.request = socket.socketpair()
        self.client.settimeout(TIMEOUT)

    def line(self) -> bytes:
        """What the handler has sent."""
        data = b""
        while not data.endswith(b"\n") and (more := self.client.recv(100)):
            data += more
        return data


def wait_for(pool: executors.ProcessPool, told: list[Any], count: int = 1) -> None:
    """Do what an event loop would, until *told* has so many entries."""
    deadline = time.monotonic() + END_TIMEOUT
    while len(told) < count:
        assert select.select([pool.fileno()], [], [], max(deadline - time.monotonic(), 0))[0]
        pool.collect()


def is_gone(pid: int) -> bool:
    """Whether a process that is no child of ours has ended, or does so in time."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], END_TIMEOUT)[0])
    finally:
        os.close(watch)


# --- what crosses ----------------------------------------------------------------------------------------------------


def test_connections_are_served_elsewhere() -> None:
    """A handler class runs unchanged in another process, on a real and blocking socket, with the client's address."""
    with serving(server := executors.ProcessPoolTCPServer(LOOPBACK, Lines)):
        assert int(ask(server.server_address, b"pid\n")) != os.getpid()
        assert ask(server.server_address, b"request\n") == b"('socket', None, True)\n"
        with connect(server.server_address) as client:
            for _ in range(3):
                assert client.ask(b"echo\n") == b"echo\n"


def test_a_timeout_crosses() -> None:
    """A timeout that get_request() has set is the worker's socket's, too."""

    server = Server(LOOPBACK, Lines)
    accept = server.get_request

    def get_request() -> Any:
        request, client_address = accept()
        request.settimeout(7.5)
        return request, client_address

    server.get_request = get_request  # type: ignore[method-assign]  # as programs do
    with serving(server):
        assert ask(server.server_address, b"request\n") == b"<('socket', 7.5, True)\n"


def test_the_hooks_of_the_server() -> None:
    """finish_request, handle_error and shutdown_request of the server's class are called in the worker."""
    with serving(server := Server(LOOPBACK, Lines)):
        assert talk(server.server_address, b"a\nb\n") == b"<a\nb\n>"
        assert talk(server.server_address, b"fail\n") == b'<! ValueError("the handler\'s")\n>'


def test_the_stand_in_for_the_server() -> None:
    """In the worker `self.server` has the address, the handler class, and the attributes that are plain data."""
    with serving(server := Server(LOOPBACK, Lines)), connect(server.server_address) as client:
        assert client.read_exactly(1) == b"<"
        assert client.ask(b"server server_address\n") == b"%r\n" % (server.server_address,)
        assert client.ask(b"server settings\n") == f"{server.settings!r}\n".encode()
        assert client.ask(b"server RequestHandlerClass\n") == f"{Lines!r}\n".encode()
        for method in (b"shutdown", b"serve_forever", b"handle_request"):
            assert b"only serves requests" in client.ask(b"call %b\n" % method)


def test_the_handler_class_is_looked_up_for_each_request() -> None:
    """Another class, or a function, assigned while serving is what the next request gets."""
    with serving(server := executors.ProcessPoolTCPServer(LOOPBACK, Lines)):
        assert ask(server.server_address, b"1\n") == b"1\n"
        server.RequestHandlerClass = Other
        assert ask(server.server_address, b"") == b"other\n"
        server.RequestHandlerClass = handlers.function
        assert ask(server.server_address, b"") == b"function\n"


@pytest.mark.parametrize("size", [0, 1, 8192, 60_000])
def test_datagrams(size: int) -> None:
    """A datagram crosses whole, and is answered through the server's socket: it comes from where it was sent to."""

    with serving(server := LargeUDPServer(LOOPBACK, Packet)):
        length, end, pid = ask_datagram(server.server_address, (b"." * size + b"end")[-size:] if size else b"").split(
            b" "
        )
    assert (int(length), end) == (size, b"end"[3 - min(size, 3) :])
    assert int(pid) != os.getpid()


def test_unix_sockets(tmp_path: Path) -> None:
    """Both kinds of Unix sockets have their classes."""
    stream, datagrams = str(tmp_path / "stream"), str(tmp_path / "datagrams")
    with serving(executors.ProcessPoolUnixStreamServer(stream, Lines)):
        assert ask(stream, b"1\n") == b"1\n"
    with serving(executors.ProcessPoolUnixDatagramServer(datagrams, Packet)):
        assert ask_datagram(datagrams, b"1end").startswith(b"4 end")


def test_nothing_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving calls no pickle in the server; the worker is given plain data and a class by its name."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickled")

    for name in ("dumps", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    with serving(server := Server(LOOPBACK, Lines)):
        assert ask(server.server_address, b"1\n") == b"<1\n"


class NotPlain(int):
    pass


@pytest.mark.parametrize("value", [1, "a", b"b", None, 1.5, True, [1, (2,)], {"a": {"b": []}}])
def test_plain_data(value: Any) -> None:
    """Numbers, texts and containers of them cross as they are."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert _crossing.plain(value)
        ours.sendall(_crossing.frame(value, b"body"))
        assert _crossing.Frames(theirs).next() == (value, b"body")


@pytest.mark.parametrize("value", [NotPlain(1), object(), [object()], {1: "a"}, {"a": threading.Lock()}, {1, 2}, print])
def test_what_does_not_cross(value: Any) -> None:
    """Anything else stays where it is."""
    assert not _crossing.plain(value)


def send_in_pieces(sock: socket.socket, data: bytes) -> None:
    """Send seven bytes at a time, and close."""
    for at in range(0, len(data), 7):
        sock.send(data[at : at + 7])
    sock.close()


def test_frames_in_pieces() -> None:
    """Frames come whole however they were cut, and the end of the channel is the end."""
    data = _crossing.frame(("a", 1), b"x" * 10_000) + _crossing.frame(None) + _crossing.frame("c")[:-1]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send_in_pieces, args=(ours, data))
        sender.start()
        frames = _crossing.Frames(theirs)
        assert frames.next() == (("a", 1), b"x" * 10_000)
        assert frames.next() == (None, b"")
        assert frames.next() is None
        sender.join()


# --- what is refused -------------------------------------------------------------------------------------------------


def local_class() -> type:
    """A class that nobody can import."""

    class Local(Lines):
        pass

    return Local


@pytest.mark.parametrize(
    "handler, text",
    [
        (lambda *_: None, "made inside a function"),
        (local_class(), "made inside a function"),
        (functools.partial(Lines), "has no name"),
        (object.__new__(Lines).do_pid, "has no name"),
        (type("Lines", (Lines,), {"__module__": handlers.__name__}), "would find"),
    ],
)
def test_handlers_that_cannot_be_imported(handler: Any, text: str) -> None:
    """Lambdas, local classes, partials, bound methods and impostors are refused at construction, with the remedy."""
    with pytest.raises(TypeError, match=f"{text}.*top of a module"):
        executors.ProcessPoolTCPServer(LOOPBACK, handler)


def test_servers_that_cannot_be_imported() -> None:
    """The server's class is imported as well, and refused if it cannot be."""

    class Local(executors.ProcessPoolTCPServer):
        pass

    with pytest.raises(TypeError, match="made inside a function"):
        Local(LOOPBACK, Lines)


def test_async_handlers_are_refused() -> None:
    """An async handler runs on an event loop; that is said at construction."""
    with pytest.raises(TypeError, match="is async"):
        executors.ProcessPoolTCPServer(LOOPBACK, AsyncHandler)


class AsyncHandler(Echo):
    async def handle(self) -> None:  # type: ignore[override]  # what the module allows and this base class has not
        pass


def test_tls_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A TLS connection lives in one process: its client is turned away, the error says why, and serving goes on."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = executors.ProcessPoolTCPServer(LOOPBACK, Lines)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        with connect(server.server_address, tls=client) as talking:
            assert ended(talking)
    assert "a TLS connection has its state in this process" in capsys.readouterr().err


# --- workers that end ------------------------------------------------------------------------------------------------


def test_a_killed_worker_takes_only_its_own_request(compat_log: LogBook) -> None:
    """When a worker is killed its client sees the end, the other goes on, and a new worker takes its place."""
    with serving(server := executors.ProcessPoolTCPServer(LOOPBACK, Lines)):
        with connect(server.server_address) as one, connect(server.server_address) as other:
            pids = int(one.ask(b"hang\n")), int(other.ask(b"pid\n"))
            os.kill(pids[0], signal.SIGKILL)
            assert ended(one)
            assert int(other.ask(b"pid\n")) == pids[1]
            assert int(ask(server.server_address, b"pid\n")) not in pids


def ended(client: Client) -> bool:
    """Whether a connection is over, in whichever way."""
    try:
        return client.recv() == b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return True


def test_what_a_pool_tells_of_a_lost_request(compat_log: LogBook) -> None:
    """`done` is told None for a request that was served, and how the worker ended for one that was lost with it."""
    server = executors.ProcessPoolTCPServer(LOOPBACK, Lines)
    pool = executors.ProcessPool(server, 1)
    told: list[str | None] = []
    with server:
        for word, expected in [(b"exit", None), (b"die", "ended with status 3"), (b"1", None)]:
            pair = Pair()
            with pair.client, pair.request:
                pair.client.sendall(word + b"\n")
                pair.client.shutdown(socket.SHUT_WR)
                free: list[bool] = [True]
                while not pool.submit(server, pair.request, None, done=told.append):
                    free.clear()
                    pool.when_free(lambda free=free: free.append(True))  # type: ignore[misc]  # a loop's variable
                    wait_for(pool, free)
                pair.request.close()
                wait_for(pool, told)
            lost = told.pop()
            assert (lost is None) if expected is None else (lost is not None and expected in lost)
        assert "it is replaced" in compat_log.take("worker process").getMessage()
        pool.close(wait=True)


def test_there_are_never_more_than_allowed() -> None:
    """Two workers serve two clients; the third waits until one of them is done, and is served by that one."""
    with serving(server := Server(LOOPBACK, Lines)), ExitStack() as stack:
        one, two, three = (stack.enter_context(connect(server.server_address)) for _ in range(3))
        pids = {one.ask(b"pid\n"), two.ask(b"pid\n")}
        assert len(pids) == 2
        three.send(b"pid\n")
        two.close()
        assert three.read_until() in pids


def test_shutdown_ends_the_wait_for_a_worker() -> None:
    """shutdown() returns while all workers are busy; the client that was accepted by then is served afterwards."""
    accepted = threading.Semaphore(0)
    server = Server(LOOPBACK, Lines)
    accept = server.get_request

    def get_request() -> Any:
        accepted.release()
        return accept()

    server.get_request = get_request  # type: ignore[method-assign]  # as programs do
    with serving(server) as thread, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.server_address)) for _ in range(2)]
        for client in clients:
            assert client.ask(b"1\n") == b"<1\n"
            assert accepted.acquire(timeout=END_TIMEOUT)
        third = stack.enter_context(connect(server.server_address))
        third.send(b"1\n")
        assert accepted.acquire(timeout=END_TIMEOUT)
        server.shutdown()
        thread.join(END_TIMEOUT)
        assert not thread.is_alive()
        for client in clients:
            client.close()
        assert third.read_until() == b"<1\n"


def test_a_worker_that_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compat_log: LogBook, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the import fails in workers, clients are refused, the reason is logged once, and starts get rarer."""
    module = write(tmp_path / "breaks.py", "import os\nif os.environ.get('BREAK'): raise ValueError('at import')\n")
    module.write_text(
        module.read_text() + "from compat.socketserver import BaseRequestHandler as B\nclass H(B): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import breaks  # type: ignore[import-not-found]  # written above

    monkeypatch.setenv("BREAK", "1")
    with serving(server := executors.ProcessPoolTCPServer(LOOPBACK, breaks.H)):
        for _ in range(3):
            assert talk(server.server_address, b"") == b""
        assert "ValueError: at import" in compat_log.take("is of no use").getMessage()
        assert not [line for line in compat_log.lines if "no use" in line]
        monkeypatch.delenv("BREAK")
        pool = vars(server)["_executor"]
        assert pool._pause > _processes.BACKOFF_FIRST
        pool._retry_at = 0.0  # as if the pause were over
        assert talk(server.server_address, b"") == b""
    errors = capsys.readouterr().err
    assert errors.count("no worker process for this request: ValueError: at import") == 3


def test_server_close_waits_for_requests() -> None:
    """server_close() waits for running requests and for the end of the workers, if block_on_close."""
    server = Server(LOOPBACK, Lines)
    with connect(server.server_address) as client:
        server.handle_request()
        assert client.ask(b"pid\n").startswith(b"<")
        closing = threading.Thread(target=server.server_close)
        closing.start()
        assert client.ask(b"1\n") == b"1\n"
        assert closing.is_alive()
        client.end()
        assert client.read_until_eof() == b">"
        closing.join(END_TIMEOUT)
        assert not closing.is_alive()


def test_server_close_need_not_wait() -> None:
    """Without block_on_close the request is served to its end all the same, and then the worker ends."""
    server = Server(LOOPBACK, Lines)
    server.block_on_close = False
    with connect(server.server_address) as client:
        server.handle_request()
        pid = int(client.ask(b"pid\n")[1:])
        server.server_close()
        assert client.ask(b"1\n") == b"1\n"
    assert is_gone(pid)
    with Server(LOOPBACK, Lines):  # any other pool that is closed looks after those
        pass
    for pool in list(_processes._closing):
        pool.close(wait=True)


def test_a_forked_child_leaves_the_workers_alone() -> None:
    """A child that is forked beside a pool starts workers of its own, and the parent's serve on."""
    server = Server(LOOPBACK, Lines)
    with connect(server.server_address) as client:
        server.handle_request()
        first = client.ask(b"pid\n")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with connect(server.server_address) as client:
                server.handle_request()
                status = 0 if client.ask(b"pid\n") not in (first, b"") else 2
            server.server_close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with connect(server.server_address) as client:
        server.handle_request()
        assert client.ask(b"pid\n") == first
    server.server_close()


# --- programs --------------------------------------------------------------------------------------------------------

PROGRAM = """
    import os, sys, threading
    from compat import ProcessPoolTCPServer, socketserver

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(b"%d %s\\n" % (os.getpid(), __name__.encode()))

    def main():
        with ProcessPoolTCPServer(("127.0.0.1", 0), Handler) as server:
            print(server.server_address[1], flush=True)
            server.serve_forever()

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_program(tmp_path: Path, end: signal.Signals) -> None:
    """A handler of the main module works; however the program ends, a worker ends with it, busy as it may be."""
    with Program(tmp_path, write(tmp_path / "program.py", PROGRAM)) as program:
        with connect(("127.0.0.1", int(program.line()))) as client:
            pid, name = client.ask(b"x\n").split()
            assert name == b"__mp_main__"
            if end is signal.SIGINT:
                os.kill(int(pid), end)  # Ctrl-C reaches it, too, and is not for it
                assert client.ask(b"x\n").split()[0] == pid
                client.end()  # server_close() waits for the request
            program.signal(end)
            assert program.end().status == -end
            assert is_gone(int(pid))


def test_the_end_of_a_program_that_closes_nothing(tmp_path: Path) -> None:
    """A program that just ends ends its workers, busy or not, and without a word."""
    source = PROGRAM[: PROGRAM.index("    def main")]
    source += """
    if __name__ == "__main__":
        server = ProcessPoolTCPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.readline()
    """
    with Program(tmp_path, write(tmp_path / "program.py", source)) as program:
        with connect(("127.0.0.1", int(program.line()))) as client:
            pid = int(client.ask(b"x\n").split()[0])
            program.stdin.write("\n")
            program.stdin.flush()
            end = program.end()
            assert is_gone(pid)
    assert end.status == 0
    assert "Traceback" not in end.errors


def test_a_main_module_without_its_guard(tmp_path: Path) -> None:
    """A script that starts its server at import is told where to put that; the worker starts no other."""
    source = PROGRAM.replace('if __name__ == "__main__":\n        main()', "main()")
    with Program(tmp_path, write(tmp_path / "program.py", source)) as program:
        assert talk(("127.0.0.1", int(program.line())), b"x\n") == b""
        program.signal(signal.SIGINT)
        assert 'if __name__ == "__main__"' in program.end().errors


def test_an_interactive_program_is_refused(tmp_path: Path) -> None:
    """A class that was typed, or given with -c, is nothing that a worker could import."""
    code = (
        "import compat\nclass Handler(compat.BaseRequestHandler): pass\ncompat.ProcessPoolTCPServer(('', 0), Handler)"
    )
    with Program(tmp_path, "-c", code) as program:
        end = program.end()
    assert end.status == 1
    assert "part of an interactive or -c program" in end.errors

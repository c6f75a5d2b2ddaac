"""Threads of requests: started without the hand-shake of Thread.start(), and yet threads like any other."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from compat import _threads, socketserver
from compat._threads import Threads, start

from ..peers import ask, connect
from ..programs import Program, write
from .servers import END_TIMEOUT, Echo, serving

LOOPBACK = ("127.0.0.1", 0)


def held(gate: threading.Event, **options: Any) -> threading.Thread:
    """A thread that ends when the gate opens."""
    return threading.Thread(target=gate.wait, args=(END_TIMEOUT,), **options)


def test_a_started_thread_is_alive() -> None:
    """Whoever looks at a thread right after its start finds it started: alive, listed, not to be started again."""
    gate = threading.Event()
    for _ in range(50):
        thread = held(gate)
        start(thread)
        assert thread.is_alive()
        assert thread in threading.enumerate()
        assert thread.ident is not None
        with pytest.raises(RuntimeError):
            thread.start()
        with pytest.raises(RuntimeError):
            thread.daemon = True
        gate.set()
        thread.join()
        assert not thread.is_alive()
        gate.clear()


def test_a_thread_not_started_is_none() -> None:
    """Before its start the thread is not alive."""
    thread = held(threading.Event())
    assert not thread.is_alive()


def test_join_waits_for_a_thread_that_has_hardly_begun() -> None:
    """join() right after the start returns when the work is done, not before it begins."""
    done: list[int] = []
    for number in range(100):
        thread = threading.Thread(target=done.append, args=(number,))
        start(thread)
        thread.join()
        assert done[-1] == number


def test_fork_right_after_a_start() -> None:
    """A child forked while a thread is on its way finds that thread ended, and waits for nothing."""
    pids = []
    gate = threading.Event()
    thread = held(gate)
    start(thread)
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: of the fork beside a thread
            pid = os.fork()
        if pid == 0:
            os._exit(1 if thread.is_alive() else 0)
        pids.append(pid)
    gate.set()
    thread.join()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 5


def test_ended_threads_are_forgotten_at_little_cost() -> None:
    """A list of threads drops the ended ones, keeps the live ones, and never holds many more than are alive."""
    gate = threading.Event()
    threads = Threads()
    living = [held(gate) for _ in range(20)]
    for thread in living:
        threads.append(thread)
        start(thread)
    for _ in range(200):
        thread = threading.Thread(target=int)
        threads.append(thread)
        start(thread)
        thread.join()
        assert len(threads) <= 2 * (len(living) + 1)
    assert set(living) <= set(threads)
    gate.set()
    threads.join()
    assert list(threads) == []
    assert not any(thread.is_alive() for thread in living)


def test_daemons_are_not_remembered() -> None:
    """A daemon thread is nobody's to wait for."""
    gate = threading.Event()
    threads = Threads()
    thread = held(gate, daemon=True)
    threads.append(thread)
    assert list(threads) == []


def test_a_refused_thread_refuses_one_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the system gives no thread that client is turned away; the server serves on and closes without complaint."""
    server = socketserver.ThreadingTCPServer(LOOPBACK, Echo)
    with serving(server):
        assert ask(server.server_address, b"1\n") == b"1\n"
        with monkeypatch.context() as patch:

            def refuse(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(_threads, "start", refuse)
            with connect(server.server_address) as client:
                assert client.read_until_eof() == b""
        assert ask(server.server_address, b"2\n") == b"2\n"
    assert "can't start new thread" in capsys.readouterr().err


def test_a_handler_may_close_the_server() -> None:
    """server_close() in a handler's thread waits for the other threads, not for itself."""

    def handler(request: Any, _: Any, server: Any) -> None:
        server.server_close()
        request.sendall(b"closed\n")

    server = socketserver.ThreadingTCPServer(LOOPBACK, handler)
    with serving(server):
        assert ask(server.server_address, b"") == b"closed\n"


def test_the_interpreter_waits_for_a_thread_that_has_hardly_begun(tmp_path: Path) -> None:
    """A handler whose request was taken right before the end of the program still runs to its end."""
    file = write(
        tmp_path / "program.py",
        """
        import os, threading
        from compat._threads import start

        def work(number):
            os.write(1, b"worked %d\\n" % number)

        for number in range(200):
            start(threading.Thread(target=work, args=(number,)))
        """,
    )
    with Program(tmp_path, file) as program:
        ended = program.end()
    assert ended.status == 0, ended.errors
    assert sorted(ended.output.splitlines()) == sorted(f"worked {number}" for number in range(200))

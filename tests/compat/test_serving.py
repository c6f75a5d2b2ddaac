"""Waiting and accepting, where compat does better than the original; for the rest the contract has its exam."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from typing import Any

import pytest

from compat import socketserver

from ..peers import ask, connect
from .servers import END_TIMEOUT, NEVER, Echo, serving

LOOPBACK = ("127.0.0.1", 0)
SERVERS = [socketserver.TCPServer, socketserver.UDPServer, socketserver.ThreadingTCPServer]


@pytest.mark.parametrize("poll_interval", [NEVER, None])
@pytest.mark.parametrize("cls", SERVERS)
def test_shutdown_waits_for_no_interval(cls: Any, poll_interval: float | None) -> None:
    """shutdown() of an idle server returns at once, however long the interval of its serve_forever() is."""
    serves = threading.Event()

    class Server(cls):  # type: ignore[misc]  # a parameter
        def service_actions(self) -> None:
            serves.set()

    server = Server(LOOPBACK, lambda request, address, server: None)
    with serving(server, poll_interval) as thread:
        with socket.socket(server.address_family, server.socket_type) as client:
            client.connect(server.server_address)
            client.send(b"")  # an empty datagram, or nothing
            assert serves.wait(END_TIMEOUT)
        began = time.monotonic()
        server.shutdown()
        took = time.monotonic() - began
        thread.join(END_TIMEOUT)
    assert took < 5


def test_close_of_a_serving_server_is_seen_at_once() -> None:
    """serve_forever() of a server that another thread closes polls its descriptor no more, and still ends at once."""
    server = socketserver.TCPServer(LOOPBACK, Echo)
    with serving(server, None) as thread:
        assert ask(server.server_address, b"1\n") == b"1\n"
        server.server_close()
        assert thread.is_alive()


@pytest.mark.parametrize("hook", ["handler", "service_actions"])
def test_shutdown_in_the_serving_thread_is_refused(hook: str) -> None:
    """shutdown() from where it would wait for itself raises RuntimeError, and the server serves on."""
    refused: list[str] = []

    def shut_down(server: Any) -> None:
        with pytest.raises(RuntimeError, match="call it from another thread"):
            server.shutdown()
        refused.append(hook)

    class Server(socketserver.TCPServer):
        def service_actions(self) -> None:
            if hook == "service_actions" and not refused:
                shut_down(self)

    class Handler(Echo):
        def handle(self) -> None:
            if hook == "handler":
                shut_down(self.server)
            super().handle()

    server = Server(LOOPBACK, Handler)
    with serving(server):
        for _ in range(2):
            assert ask(server.server_address, b"1\n") == b"1\n"
    assert hook in refused


def test_a_forked_child_wakes_nobody() -> None:
    """A forked child may close its copy of a serving server: the loop of its parent hears nothing of it."""
    turns: list[int] = []

    class Server(socketserver.ForkingTCPServer):
        def service_actions(self) -> None:
            super().service_actions()
            turns.append(1)

    def handler(request: socket.socket, _: Any, server: Any) -> None:
        server.server_close()
        server._ring()
        request.sendall(b"closed\n")

    server = Server(LOOPBACK, handler)
    with serving(server):
        for _ in range(3):
            assert ask(server.server_address, b"") == b"closed\n"
    assert len(turns) == 3  # one after each request, and none for a bell


class Starved(socketserver.ThreadingTCPServer):
    """Accepts nothing as long as `error` is set, as if the system refused."""

    error: int | None = None
    attempts = 0

    def get_request(self) -> Any:
        self.attempts += 1
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().get_request()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL])
def test_no_spinning_without_descriptors(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """An accept that fails for want of resources is tried again after pauses, with one line in the log."""
    server = Starved(LOOPBACK, Echo)
    server.error = number
    many = threading.Event()
    seen: list[float] = []

    def tick() -> None:
        seen.append(time.monotonic())
        if server.attempts >= 5:
            many.set()

    server.service_actions = tick  # type: ignore[method-assign]  # as programs do
    with serving(server), connect(server.server_address) as client:
        assert many.wait(END_TIMEOUT)
        waited = seen[-1] - seen[0]
        server.error = None
        assert client.ask(b"at last\n") == b"at last\n"
    assert waited >= 0.005 + 0.010 + 0.020 + 0.040 - 0.001  # four pauses between five attempts
    assert server.accept_errors >= 5
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert os.strerror(number) in warnings[0].getMessage()


def test_a_closed_request_ends_the_pause() -> None:
    """The pause ends when a request of the server is closed: a descriptor is free, and nobody waits for the clock."""
    server = Starved(LOOPBACK, Echo)
    failed = threading.Event()

    def tick() -> None:
        if server.attempts >= 9:  # the next pause is a second and more
            failed.set()

    server.service_actions = tick  # type: ignore[method-assign]  # as programs do
    with serving(server), connect(server.server_address) as first:
        assert first.ask(b"1\n") == b"1\n"
        server.error = errno.EMFILE
        with connect(server.server_address) as second:
            assert failed.wait(END_TIMEOUT)
            attempts = server.attempts
            server.error = None
            first.end()
            assert first.read_until_eof() == b""
            assert second.ask(b"2\n") == b"2\n"
            assert server.attempts <= attempts + 2


def test_other_errors_of_accepting_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """An error that concerns one client is no reason to pause or to warn: it is counted, and logged for debugging."""
    caplog.set_level("DEBUG", logger="compat")
    server = Starved(LOOPBACK, Echo)
    server.error = errno.ECONNABORTED
    many = threading.Event()

    def tick() -> None:
        if server.attempts >= 100:
            server.error = None
            many.set()

    server.service_actions = tick  # type: ignore[method-assign]  # as programs do
    with serving(server), connect(server.server_address) as client:
        assert many.wait(END_TIMEOUT)
        assert client.ask(b"1\n") == b"1\n"
    assert server.accept_errors == 100
    assert {record.levelname for record in caplog.records if record.name == "compat"} == {"DEBUG"}


def test_handle_request_pauses_too() -> None:
    """handle_request() called in a loop does not spin either."""
    server = Starved(LOOPBACK, Echo)
    server.error = errno.EMFILE
    with server, connect(server.server_address):
        began = time.monotonic()
        for _ in range(4):
            server.handle_request()
        assert time.monotonic() - began >= 0.005 + 0.010 + 0.020 - 0.001
        server.error = None
        server.handle_request()
        assert server.attempts == 5


def test_another_selector_is_used_as_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A selector that a program puts in place gets the server and nothing else; shutdown() then takes an interval."""
    registered: list[object] = []

    class Spy(selectors.SelectSelector):
        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            registered.append(fileobj)
            return super().register(fileobj, events, data)

    monkeypatch.setattr(socketserver, "_ServerSelector", Spy)
    server = socketserver.TCPServer(LOOPBACK, Echo)
    with serving(server, 0.01):
        assert ask(server.server_address, b"1\n") == b"1\n"
    assert registered == [server]


def test_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no poll(), a selector does the same, and shutdown() is as quick."""
    monkeypatch.delattr("select.poll")
    monkeypatch.setattr("compat._waiting.DefaultSelector", selectors.SelectSelector)
    monkeypatch.setattr(socketserver, "_ServerSelector", selectors.SelectSelector)
    server = socketserver.TCPServer(LOOPBACK, Echo)
    with serving(server, None):
        assert ask(server.server_address, b"1\n") == b"1\n"


def test_a_descriptor_closed_behind_its_socket_does_not_spin() -> None:
    """When somebody closes the number under the server's socket, serving waits quietly until it is shut down."""
    turns: list[int] = []

    class Server(socketserver.TCPServer):
        def service_actions(self) -> None:
            turns.append(1)

    server = Server(LOOPBACK, Echo)
    with serving(server):
        assert ask(server.server_address, b"1\n") == b"1\n"
        original, server.socket = server.socket, socket.socket(fileno=os.dup(server.fileno()))
        os.close(server.fileno())
        server._ring()
        server.shutdown()
        server.socket.detach()
        original.close()
    assert len(turns) < 10


def test_waiting_datagrams_and_hooks() -> None:
    """Datagrams that wait are served in order, with service_actions() after each, and none after shutdown was asked."""
    served: list[tuple[str, bytes]] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            served.append(("handled", data))
            if data == b"19":
                self.server._BaseServer__shutdown_request = True
            sock.sendto(data, self.client_address)

    class Server(socketserver.UDPServer):
        def service_actions(self) -> None:
            if served and served[-1][0] == "handled":
                served.append(("actions", served[-1][1]))

    with Server(("127.0.0.1", 0), Handler) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for number in range(25):
            client.sendto(b"%d" % number, server.server_address)
        server.serve_forever(3600)
        assert [client.recv(99) for _ in range(20)] == [b"%d" % number for number in range(20)]
    wanted = [(what, b"%d" % number) for number in range(20) for what in ("handled", "actions")]
    assert served == wanted


def test_get_request_is_asked_for_each_datagram() -> None:
    """A get_request() of the program's own is called for each datagram, however many wait."""
    asked = []

    class Server(socketserver.UDPServer):
        def get_request(self) -> Any:
            asked.append(1)
            return super().get_request()

        def service_actions(self) -> None:
            if len(asked) == 5:
                raise StopServing

    class Handler(socketserver.BaseRequestHandler):
        pass

    class StopServing(Exception):
        pass

    with Server(("127.0.0.1", 0), Handler) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        for _ in range(5):
            client.sendto(b"x", server.server_address)
        with pytest.raises(StopServing):
            server.serve_forever(3600)
    assert len(asked) == 5

"""A listening socket wrapped with TLS by the program: one silent client must not stop the others."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
import trustme

from compat import _handshake, socketserver

from ..peers import ask, connect
from .servers import END_TIMEOUT, Echo, serving

LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority of the test's own."""
    return trustme.CA()


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def wrapped(cls: Any, context: ssl.SSLContext, handler: Any = Echo) -> Any:
    """A server whose listening socket is wrapped after construction, as programs do it."""
    server = cls(LOOPBACK, handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def test_a_silent_client_stops_nobody(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """A client that connects and says nothing holds its own thread; others are served meanwhile."""
    server = wrapped(socketserver.ThreadingTCPServer, server_tls)
    with serving(server), connect(server.server_address):
        for _ in range(3):
            assert ask(server.server_address, b"hello\n", tls=client_tls) == b"hello\n"


class OneLine(socketserver.StreamRequestHandler):
    """Send one line back: a forked child has the client's descriptor as well, and would never see its end."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


def test_a_silent_client_holds_one_child(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with processes: the handshake is made in the child."""
    monkeypatch.setattr(_handshake, "HANDSHAKE_TIMEOUT", 2.0)  # closing waits for the silent one's child
    server = wrapped(socketserver.ForkingTCPServer, server_tls, OneLine)
    with serving(server), connect(server.server_address):
        for _ in range(3):
            assert ask(server.server_address, b"hello\n", tls=client_tls) == b"hello\n"


def test_the_handler_finds_the_handshake_made(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """In the handler the connection is as accept() of the standard library would have given it."""
    seen: list[Any] = []

    class Handler(Echo):
        def handle(self) -> None:
            request = self.request
            seen.append((request.version() is not None, request.gettimeout(), request.do_handshake_on_connect))
            super().handle()

    server = wrapped(socketserver.ThreadingTCPServer, server_tls, Handler)
    with serving(server):
        assert ask(server.server_address, b"1\n", tls=client_tls) == b"1\n"
    assert seen == [(True, None, True)]


@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_a_handshake_has_a_deadline(
    cls: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that never shakes hands is closed after the deadline, with workers and without."""
    monkeypatch.setattr(_handshake, "HANDSHAKE_TIMEOUT", 0.05)
    server = wrapped(cls, server_tls)
    with serving(server):
        with connect(server.server_address) as silent:
            assert silent.read_until_eof() == b""
        monkeypatch.setattr(_handshake, "HANDSHAKE_TIMEOUT", END_TIMEOUT)
        assert ask(server.server_address, b"1\n", tls=client_tls) == b"1\n"
    assert server.accept_errors == 1


@pytest.mark.parametrize("cls", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_a_failed_handshake_is_no_handlers_error(
    cls: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client that speaks no TLS is closed without a call of handle_error(), and counted."""
    server = wrapped(cls, server_tls)
    with serving(server):
        with connect(server.server_address) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            try:
                client.read_until_eof()
            except ConnectionResetError:  # it had sent more than the server has read
                pass
        assert ask(server.server_address, b"1\n", tls=client_tls) == b"1\n"
    assert server.accept_errors == 1
    assert capsys.readouterr().err == ""


def test_hooks_that_look_at_the_connection_find_the_handshake_made(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """A program with a hook of its own before the worker gets the handshake before that hook, as ever."""
    seen: list[tuple[bool, bool]] = []

    class Server(socketserver.ThreadingTCPServer):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            seen.append((request.version() is not None, threading.current_thread() is serving_thread))
            return True

    server = wrapped(Server, server_tls)
    with serving(server) as serving_thread:
        assert ask(server.server_address, b"1\n", tls=client_tls) == b"1\n"
    assert seen == [(True, True)]


def test_a_program_that_shakes_hands_itself_does_so(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """A listening socket with do_handshake_on_connect=False leaves the handshake to the handler."""
    seen: list[object] = []

    class Handler(Echo):
        def setup(self) -> None:
            seen.append(self.request.version())
            self.request.do_handshake()
            super().setup()

    server = socketserver.ThreadingTCPServer(LOOPBACK, Handler)
    server.socket = server_tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        assert ask(server.server_address, b"1\n", tls=client_tls) == b"1\n"
    assert seen == [None]

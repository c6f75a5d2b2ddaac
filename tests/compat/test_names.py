"""What stands where: our classes against those of the standard library whose place they take."""

from __future__ import annotations

import socket
import socketserver as stdlib
from typing import Any

import pytest

import compat
from compat import socketserver

from ..peers import ask
from .servers import serving

CLASSES: list[str] = sorted(stdlib.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_one_of_the_originals(name: str) -> None:
    """isinstance() and issubclass() against the standard library's class of that name hold."""
    assert issubclass(getattr(socketserver, name), getattr(stdlib, name))


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_of_the_original_is_reached(name: str) -> None:
    """Whatever the original says itself ours says itself as well, so that none of its code runs in ours."""
    said: dict[str, Any] = vars(getattr(socketserver, name))
    original = vars(getattr(stdlib, name))
    assert [key for key in original if not key.startswith("__") and key not in said] == []
    assert "__init__" not in original or "__init__" in said


def test_the_package_is_the_module() -> None:
    """`import compat as socketserver` gives the same classes as `from compat import socketserver`."""
    assert set(stdlib.__all__) <= set(compat.__all__)
    for name in stdlib.__all__:
        assert getattr(compat, name) is getattr(socketserver, name)


class OneLine(stdlib.StreamRequestHandler):
    """A handler that knows the original only."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


class OurOneLine(socketserver.StreamRequestHandler):
    """The same with ours."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline())


@pytest.mark.parametrize("handler", [OneLine, OurOneLine])
@pytest.mark.parametrize(
    "mixin, base",
    [
        (socketserver.ThreadingMixIn, stdlib.TCPServer),
        (stdlib.ThreadingMixIn, socketserver.TCPServer),
        (socketserver.ForkingMixIn, stdlib.TCPServer),
        (stdlib.ForkingMixIn, socketserver.TCPServer),
        (socketserver.ThreadingMixIn, stdlib.ThreadingTCPServer),
        (socketserver.ForkingMixIn, socketserver.TCPServer),
    ],
)
def test_ours_and_theirs_mix(mixin: Any, base: Any, handler: Any) -> None:
    """A mixin of one module goes over a server of the other, with handlers of either; each hook runs once."""
    calls: list[str] = []

    class Below(base):  # type: ignore[misc]  # a parameter
        def service_actions(self) -> None:
            calls.append("service_actions")
            super().service_actions()

        def server_close(self) -> None:
            calls.append("server_close")
            super().server_close()

    class Server(mixin, Below):  # type: ignore[misc]  # parameters
        pass

    server = Server(("127.0.0.1", 0), handler)
    with serving(server, 0.05):
        for _ in range(3):
            assert ask(server.server_address, b"1\n") == b"1\n"
    assert calls.count("server_close") == 1
    assert isinstance(server.socket, socket.socket)

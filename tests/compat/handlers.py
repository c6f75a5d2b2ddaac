"""Handlers and servers that worker processes import, and a sign by which a test sees that one is at work."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from compat import executors, socketserver


class Lines(socketserver.StreamRequestHandler):
    """Answer each line with what it asks for; unknown ones come back."""

    def handle(self) -> None:
        for line in self.rfile:
            word, _, rest = line.strip().decode().partition(" ")
            answer = getattr(self, f"do_{word}", None)
            self.wfile.write(f"{answer(rest) if answer else word}\n".encode())

    def do_pid(self, rest: str) -> Any:
        """The process."""
        return os.getpid()

    def do_die(self, rest: str) -> Any:
        """End the process in the middle of a request."""
        os._exit(3)

    def do_exit(self, rest: str) -> Any:
        """End the request."""
        sys.exit("not the process")

    def do_fail(self, rest: str) -> Any:
        """Raise."""
        raise ValueError("the handler's")

    def do_server(self, name: str) -> Any:
        """An attribute of the server."""
        return repr(getattr(self.server, name))

    def do_call(self, name: str) -> Any:
        """A method of the server."""
        try:
            return getattr(self.server, name)()
        except RuntimeError as error:
            return error

    def do_request(self, rest: str) -> Any:
        """What the request is."""
        timeout = self.request.gettimeout()
        return type(self.request).__name__, timeout, self.client_address == self.request.getpeername()

    def do_hang(self, rest: str) -> Any:
        """Never end."""
        self.wfile.write(f"{os.getpid()}\n".encode())
        threading.Event().wait()


class Other(socketserver.StreamRequestHandler):
    """Another handler, to be assigned while serving."""

    def handle(self) -> None:
        self.wfile.write(b"other\n")


class Packet(socketserver.DatagramRequestHandler):
    """Answer a datagram with its length, its end, and whether it was served elsewhere."""

    def handle(self) -> None:
        self.wfile.write(b"%d %b %d" % (len(self.packet), self.packet[-3:], os.getpid()))


def function(request: Any, client_address: Any, server: Any) -> None:
    """A handler need not be a class."""
    request.sendall(b"function\n")


class Server(executors.ProcessPoolTCPServer):
    """Two workers, and hooks that leave a trace in what the client gets."""

    max_workers = 2
    request_queue_size = 32

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.settings = {"name": "the test's", "sizes": (1, 2.5, None), "key": b"\0"}
        self.lock = threading.Lock()  # stays where it is
        super().__init__(*arguments, **options)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Say so."""
        request.sendall(b"<")
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell the client."""
        request.sendall(f"! {sys.exc_info()[1]!r}\n".encode())

    def shutdown_request(self, request: Any) -> None:
        """Say so."""
        request.sendall(b">")
        super().shutdown_request(request)


class LargeUDPServer(executors.ProcessPoolUDPServer):
    """Receives the largest datagrams."""

    max_packet_size = 65536
    max_workers = 1

"""The ThreadingMixIn example of socketserver's documentation, with nothing changed but the import.

``python examples/classic/threads.py`` starts the server in a thread, is its own client three times, and ends::

    Server loop running in thread: Thread-1 (serve_forever)
    Received: Thread-2 (process_request_thread): Hello World 1
    Received: Thread-3 (process_request_thread): Hello World 2
    Received: Thread-4 (process_request_thread): Hello World 3

The documentation shows it without the brackets, which Python has put behind the names of threads since 3.10.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from compat import socketserver


class ThreadedTCPRequestHandler(socketserver.BaseRequestHandler):
    """Answers with the name of the thread that it runs in."""

    def handle(self) -> None:
        data = str(self.request.recv(1024), "ascii")
        cur_thread = threading.current_thread()
        response = bytes(f"{cur_thread.name}: {data}", "ascii")
        self.request.sendall(response)


class ThreadedTCPServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection; the same as the ready-made ThreadingTCPServer."""


def client(ip: Any, port: int, message: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect((ip, port))
        sock.sendall(bytes(message, "ascii"))
        response = str(sock.recv(1024), "ascii")
        print(f"Received: {response}")


if __name__ == "__main__":
    # port 0: any that is free
    HOST, PORT = "localhost", 0

    server = ThreadedTCPServer((HOST, PORT), ThreadedTCPRequestHandler)
    with server:
        ip, port = server.server_address[:2]

        # one thread accepts, and starts one more for each connection
        server_thread = threading.Thread(target=server.serve_forever)
        # the program need not wait for it at its end
        server_thread.daemon = True
        server_thread.start()
        print("Server loop running in thread:", server_thread.name)

        client(ip, port, "Hello World 1")
        client(ip, port, "Hello World 2")
        client(ip, port, "Hello World 3")

        server.shutdown()

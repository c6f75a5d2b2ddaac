"""The TCP server of socketserver's documentation, with only the import changed (and a port that may be chosen).

Start it with ``python examples/classic/tcp_server.py``, and in a second terminal, twice, tcp_client.py beside it::

    python examples/classic/tcp_client.py hello world with TCP
    python examples/classic/tcp_client.py python is nice

Here stands then what the documentation promises (before it, where it listens)::

    127.0.0.1 wrote:
    b'hello world with TCP'
    127.0.0.1 wrote:
    b'python is nice'

Ctrl-C ends it, with the traceback that the original prints as well. Another port: ``PORT=8888 python …`` for both.
"""

from __future__ import annotations

import os

from compat import socketserver


class MyTCPHandler(socketserver.BaseRequestHandler):
    """Made anew for each connection; handle() is the conversation."""

    def handle(self) -> None:
        # self.request is the connection, an ordinary socket
        self.data = self.request.recv(1024).strip()
        print(f"{self.client_address[0]} wrote:")
        print(self.data, flush=True)
        # back goes the same, in capitals
        self.request.sendall(self.data.upper())


if __name__ == "__main__":
    HOST, PORT = "localhost", int(os.environ.get("PORT", "9999"))

    # bound and listening when the constructor returns
    with socketserver.TCPServer((HOST, PORT), MyTCPHandler) as server:
        print("listening on tcp://{}:{}".format(*server.server_address), flush=True)
        # serves until it is interrupted with Ctrl-C
        server.serve_forever()

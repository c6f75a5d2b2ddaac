"""The UDP server of socketserver's documentation, with only the import changed (and a port that may be chosen).

Start it with ``python examples/classic/udp_server.py``, and in a second terminal udp_client.py beside it::

    python examples/classic/udp_client.py hello world with UDP

It prints what tcp_server.py prints: who wrote, and what. Ctrl-C ends it, with the traceback that the original prints as
well. Another port: ``PORT=8888 python …`` for both.
"""

from __future__ import annotations

import os

from compat import socketserver


class MyUDPHandler(socketserver.BaseRequestHandler):
    """Made anew for each datagram: there is no connection, so the answer needs an address."""

    def handle(self) -> None:
        # self.request is a pair: what came, and the server's socket
        data = self.request[0].strip()
        socket = self.request[1]
        print(f"{self.client_address[0]} wrote:")
        print(data, flush=True)
        socket.sendto(data.upper(), self.client_address)


if __name__ == "__main__":
    HOST, PORT = "localhost", int(os.environ.get("PORT", "9999"))
    with socketserver.UDPServer((HOST, PORT), MyUDPHandler) as server:
        print("listening on udp://{}:{}".format(*server.server_address), flush=True)
        server.serve_forever()

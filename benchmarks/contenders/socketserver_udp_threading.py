"""``socketserver.ThreadingUDPServer``: a thread per datagram.

With the argument "compat" it is the same program with its import changed.
"""

import sys

if sys.argv[1:] == ["compat"]:
    from compat import socketserver
else:
    import socketserver  # type: ignore[no-redef]  # either has the same names


class Echo(socketserver.BaseRequestHandler):
    """Send the datagram back."""

    def handle(self) -> None:
        """The request is a pair of the data and the server's socket."""
        data, sock = self.request
        sock.sendto(data, self.client_address)


if __name__ == "__main__":
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Echo) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()

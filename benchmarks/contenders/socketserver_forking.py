"""``socketserver.ForkingTCPServer`` with a ``StreamRequestHandler``: a process per connection.

With the argument "compat" it is the same program with its import changed.
"""

import sys

if sys.argv[1:] == ["compat"]:
    from compat import socketserver
else:
    import socketserver  # type: ignore[no-redef]  # either has the same names


class Echo(socketserver.StreamRequestHandler):
    """Send every line back."""

    def handle(self) -> None:
        """Echo until the client has no more lines."""
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ForkingTCPServer):
    """The stock server, allowed more children than its 40, which the scenarios with 50 connections would exhaust."""

    max_children = 1000


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Echo) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()

"""``socketserver.ThreadingTCPServer`` with a ``StreamRequestHandler``: a thread per connection.

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


if __name__ == "__main__":
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()

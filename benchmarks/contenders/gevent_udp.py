"""``gevent.server.DatagramServer``: a greenlet per datagram."""

# gevent has no types, and need not be installed where the types are checked.
# mypy: disable-error-code="import-untyped,import-not-found", disallow-subclassing-any=False

from typing import Any

from gevent.server import DatagramServer


class Echo(DatagramServer):
    """Send the datagram back."""

    def handle(self, data: bytes, address: tuple[Any, ...]) -> None:
        """Send it."""
        self.socket.sendto(data, address)


if __name__ == "__main__":
    server = Echo("127.0.0.1:0")
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()

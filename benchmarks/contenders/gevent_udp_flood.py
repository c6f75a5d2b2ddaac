"""``gevent.server.DatagramServer`` with a handler that takes 10 ms."""

# gevent has no types, and need not be installed where the types are checked.
# mypy: disable-error-code="import-untyped,import-not-found", disallow-subclassing-any=False

from typing import Any

import gevent
from gevent.server import DatagramServer


class Slow(DatagramServer):
    """Take 10 ms, or answer with the count."""

    handled = 0

    def handle(self, data: bytes, address: tuple[Any, ...]) -> None:
        """Count it, the questions too."""
        self.handled += 1
        if data == b"statistics":
            self.socket.sendto(f"handled {self.handled}".encode(), address)
        else:
            gevent.sleep(0.01)


if __name__ == "__main__":
    server = Slow("127.0.0.1:0")
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()

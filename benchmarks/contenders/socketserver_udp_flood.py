"""``socketserver.ThreadingUDPServer`` with a handler that takes 10 ms and counts how often it has run."""

import socketserver
import threading
import time


class Slow(socketserver.BaseRequestHandler):
    """Take 10 ms, or answer with the count."""

    handled = 0
    lock = threading.Lock()

    def handle(self) -> None:
        """Count it, the questions too."""
        data, sock = self.request
        with self.lock:
            Slow.handled += 1
        if data == b"statistics":
            sock.sendto(f"handled {Slow.handled}".encode(), self.client_address)
        else:
            time.sleep(0.01)


if __name__ == "__main__":
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Slow) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()

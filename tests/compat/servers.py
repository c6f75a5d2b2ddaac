"""Servers of `compat.socketserver` in a thread, for the tests: started, asked, and stopped at the end of a block."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from compat import socketserver

needs_threads_after_main = pytest.mark.skipif(
    sys.version_info[:3] in ((3, 12, 0), (3, 12, 1)),
    reason="this Python starts no thread once the main one has ended (gh-113964)",
)

#: An interval that no test waits for: what happens in less was not polled.
NEVER = 3600.0
#: Seconds that a thread may take to end.
END_TIMEOUT = 10.0


class Echo(socketserver.StreamRequestHandler):
    """Send every line back."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


@contextmanager
def serving(server: Any, poll_interval: float | None = NEVER) -> Iterator[threading.Thread]:
    """Serve in a thread while the block runs, then shut down and close; what serve_forever raised comes out."""
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_forever(poll_interval)
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield thread
    finally:
        if thread.is_alive():
            server.shutdown()
        thread.join(END_TIMEOUT)
        server.server_close()
    assert not thread.is_alive()
    if errors:
        raise errors[0]

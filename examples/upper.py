"""The TCP server of socketserver's documentation, which sends back what it gets in upper case, in both handler forms.

Start it with ``python examples/upper.py``, or the second form on two addresses at once with
``python -m aserver examples/upper.py:upper tcp://127.0.0.1:9999 unix:./upper.sock``, and type in a second terminal::

    nc 127.0.0.1 9999
    hello                       HELLO comes back, and so on until Ctrl-D or Ctrl-C
"""

from __future__ import annotations

import logging
import sys

import aserver


class Upper(aserver.StreamRequestHandler):
    """A class, as for socketserver: an instance per connection, with files."""

    async def handle(self) -> None:
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def upper(stream: aserver.Stream) -> None:
    """The same as one function."""
    while line := await stream.readline():
        await stream.send(line.upper())


HINT = """\
Type in a second terminal, then a line such as hello, and HELLO comes back (Ctrl-C ends it, also here):
  nc 127.0.0.1 {0}
or, where there is no nc:
  python3 -c "import socket; s = socket.create_connection(('127.0.0.1', {0})); s.send(b'hello\\n'); print(s.recv(99))"
"""

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(sys.argv[1]) if sys.argv[1:] else 9999
    print(HINT.format(port), end="", flush=True)
    aserver.run(aserver.TCPServer(("127.0.0.1", port), Upper))

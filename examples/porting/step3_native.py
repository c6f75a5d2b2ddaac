"""Step 3 of 3: the asynchronous handler on the native server, the other one as it was, hosted by a native server.

Start it with ``python examples/porting/step3_native.py``; it does what step1_import.py does, and more:
Ctrl-C and SIGTERM let what is open finish, connections are counted and bounded, and so are threads.
"""

from __future__ import annotations

import csv
import gzip
import logging
import sys
import threading

import aserver
import compat
from compat import socketserver

HINT = """\
Type in a second terminal, then greeting=hello, then greeting, and hello comes back each time (Ctrl-C ends it):
  nc 127.0.0.1 {0}
and in a third one, for the whole table:
  nc 127.0.0.1 {1} </dev/null | gunzip
"""
LOCK = threading.Lock()
TABLE: dict[str, str] = {}


def answer(line: bytes) -> bytes:
    """Set a value or not, and return it."""
    name, equals, value = line.decode(errors="replace").strip().partition("=")
    with LOCK:
        if equals:
            TABLE[name] = value
        return f"{TABLE.get(name, '')}\n".encode()


class Table(aserver.StreamRequestHandler):
    """Many clients, which stay for days and say little."""

    async def handle(self) -> None:
        while line := await self.rfile.readline():
            await self.wfile.write(answer(line))


class Dump(socketserver.StreamRequestHandler):
    """Few clients, and two libraries that compute, and can write to nothing but a file that blocks."""

    wbufsize = -1  # gzip writes in small pieces

    def handle(self) -> None:
        with LOCK:
            rows = list(TABLE.items())
        with gzip.open(self.wfile, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(sorted(rows))


def main(port: int = 9997, dump_port: int = 9996) -> None:
    print(HINT.format(port, dump_port), end="", flush=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    aserver.run(
        aserver.TCPServer(("127.0.0.1", port), Table, name="table"),
        aserver.TCPServer(("127.0.0.1", dump_port), compat.hosted(Dump), name="dump"),
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

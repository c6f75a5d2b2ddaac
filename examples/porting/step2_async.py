"""Step 2 of 3: in the same program one handler is asynchronous, and its clients cost a task each in place of a thread.

Start it with ``python examples/porting/step2_async.py``; it does what step1_import.py does.
"""

from __future__ import annotations

import csv
import gzip
import sys
import threading

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


class Table(socketserver.StreamRequestHandler):
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


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True  # Ctrl-C does not wait for clients that stay for days


def main(port: int = 9997, dump_port: int = 9996) -> None:
    print(HINT.format(port, dump_port), end="")
    with Server(("127.0.0.1", port), Table) as table, Server(("127.0.0.1", dump_port), Dump) as dump:
        threading.Thread(target=dump.serve_forever, daemon=True).start()
        print("table: listening on tcp://{}:{}".format(*table.server_address))
        print("dump: listening on tcp://{}:{}".format(*dump.server_address), flush=True)
        try:
            table.serve_forever()
        except KeyboardInterrupt:
            dump.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

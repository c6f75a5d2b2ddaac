"""An XML-RPC server that has never heard of this package: run it as it is, with ours in socketserver's place.

``python -m compat examples/classic/rpc.py`` prints on whose classes it stands::

    ThreadingMixIn is compat.socketserver's
    listening on tcp://127.0.0.1:9994

(``python examples/classic/rpc.py``, without us: ``socketserver's``.) In a second terminal::

    python3 -c "from xmlrpc.client import ServerProxy as P; print(P('http://127.0.0.1:9994').primes(30))"

The whole program is the standard library's documentation turned into threads; there is no line to change in it, nor in
the library, whose `xmlrpc.server`, `http.server`, `wsgiref` and `logging.config` stand on ours then.
"""

from __future__ import annotations

import sys
from math import isqrt
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCServer

MAX_BOUND = 100_000  # one caller must not keep the processor for ever


class Server(ThreadingMixIn, SimpleXMLRPCServer):
    """A thread for each call."""

    daemon_threads = True  # Ctrl-C does not wait for clients that keep their connections


def primes(below: Any) -> list[int]:
    """The prime numbers below a bound."""
    if below > MAX_BOUND:
        raise ValueError(f"the bound is {below!r}; at most {MAX_BOUND}")
    found = [True] * below
    for number in range(2, isqrt(below) + 1):
        found[number * number :: number] = [False] * len(found[number * number :: number])
    return [number for number in range(2, below) if found[number]]


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 9994
    with Server(("127.0.0.1", port), logRequests=False) as server:
        server.register_function(primes)
        server.register_introspection_functions()
        print(f"ThreadingMixIn is {ThreadingMixIn.__module__}'s")
        print("listening on tcp://{}:{}".format(*server.server_address), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("bye")

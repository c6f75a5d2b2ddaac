"""An asyncio-native server framework: `async def handle` over TCP and Unix sockets, on asyncio, uvloop and trio.

The floor plan, from the street to the cellar; a room imports only rooms below it:

    _cli        python -m aserver: arguments to fields, a printed line for each address
    _target     what the command line's TARGET names
    _run        run() and start_in_thread(): from synchronous code into a loop, signals into a shutdown
    _server     the servers; the life of a connection; stopping
    _registry   who is in the house; statistics and the report of a shutdown
    _handlers   handler classes and functions in one shape; rfile and wfile
    _stream     Stream, with _outbox (what is unsent) and _buffer (what is unread)
    _listener   accepting: permits, batches, errnos
    _endpoints  endpoints to bound sockets, with _addresses (strings to endpoints)
    _limits     Limits, the gate and its clocks
    _readiness  the seam to asyncio, uvloop and trio
    _errors     exceptions and their wording
"""

from __future__ import annotations

from ._addresses import Address
from ._errors import BufferedDataError, ListenerFailedError, ServerStateError
from ._handlers import BaseRequestHandler, Handler, StreamReader, StreamRequestHandler, StreamWriter
from ._limits import Limits
from ._registry import ShutdownReport, Statistics
from ._run import run, start_in_thread
from ._server import StreamServer, TCPServer, UnixStreamServer
from ._stream import PeerCredentials, Stream

__all__ = [
    "Address",
    "BaseRequestHandler",
    "BufferedDataError",
    "Handler",
    "Limits",
    "ListenerFailedError",
    "PeerCredentials",
    "ServerStateError",
    "ShutdownReport",
    "Statistics",
    "Stream",
    "StreamReader",
    "StreamRequestHandler",
    "StreamServer",
    "StreamWriter",
    "TCPServer",
    "UnixStreamServer",
    "run",
    "start_in_thread",
]

"""An asyncio-native server framework: `async def handle` over TCP, UDP and Unix sockets, on asyncio, uvloop and trio.

The floor plan, from the street to the cellar; a room imports only rooms below it:

    _cli        python -m aserver: arguments to fields, a printed line for each address
    _target     what the command line's TARGET names
    _run        run() and start_in_thread(): from synchronous code into a loop, signals into a shutdown
    _server     the servers; the life of a connection, and of a datagram
    _lifecycle  what they have in common: opening, serving, stopping, the error boundary
    _registry   who is in the house; statistics and the report of a shutdown
    _handlers   handler classes and functions in one shape; rfile and wfile
    _stream     Stream, with _outbox (what is unsent) and _buffer (what is unread)
    _session    Session, the datagrams of one peer in order
    _datagram   Datagram, and the socket that all of them come through; _multicast
    _listener   accepting: permits, batches, errnos; like _datagram a _door
    _endpoints  endpoints to bound sockets, with _addresses (strings to endpoints)
    _limits     Limits and Sessions, the gate and its clocks
    _readiness  the seam to asyncio, uvloop and trio
    _errors     exceptions and their wording
"""

from __future__ import annotations

from ._addresses import Address
from ._datagram import Datagram
from ._errors import BufferedDataError, ListenerFailedError, ReplyRefusedError, ServerStateError
from ._handlers import (
    BaseRequestHandler,
    DatagramRequestHandler,
    Handler,
    StreamReader,
    StreamRequestHandler,
    StreamWriter,
)
from ._lifecycle import BaseServer
from ._limits import Limits, Sessions
from ._registry import DatagramStatistics, ShutdownReport, Statistics
from ._run import run, start_in_thread
from ._server import DatagramServer, StreamServer, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from ._session import Session
from ._stream import PeerCredentials, Stream

__all__ = [
    "Address",
    "BaseRequestHandler",
    "BaseServer",
    "BufferedDataError",
    "Datagram",
    "DatagramRequestHandler",
    "DatagramServer",
    "DatagramStatistics",
    "Handler",
    "Limits",
    "ListenerFailedError",
    "PeerCredentials",
    "ReplyRefusedError",
    "ServerStateError",
    "Session",
    "Sessions",
    "ShutdownReport",
    "Statistics",
    "Stream",
    "StreamReader",
    "StreamRequestHandler",
    "StreamServer",
    "StreamWriter",
    "TCPServer",
    "UDPServer",
    "UnixDatagramServer",
    "UnixStreamServer",
    "run",
    "start_in_thread",
]

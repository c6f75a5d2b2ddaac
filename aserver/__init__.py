"""An asyncio-native server framework: `async def handle` services on sockets of our own, on asyncio, uvloop and trio."""

from __future__ import annotations

from ._errors import BufferedDataError, ListenerFailedError, ServerStateError
from ._handlers import BaseRequestHandler, StreamReader, StreamRequestHandler, StreamWriter
from ._limits import Limits
from ._registry import ShutdownReport, Statistics
from ._run import run, start_in_thread
from ._server import StreamServer, TCPServer, UnixStreamServer
from ._stream import PeerCredentials, Stream

__all__ = [
    "BaseRequestHandler",
    "BufferedDataError",
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

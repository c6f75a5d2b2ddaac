"""TLS handshakes on a listening socket that the program has wrapped: where a worker can make them, and never for ever.

Lives here: accepting from an `ssl.SSLSocket` without its handshake, and making that handshake under a deadline. Must
not: hooks of the server. Only `socketserver` imports it. `ssl` is not imported: who has not done so has no such socket.
"""

from __future__ import annotations

import socket
import sys

TYPE_CHECKING = False  # nothing is imported that is not needed: see `_waiting`
if TYPE_CHECKING:
    from typing import Any
    from weakref import WeakSet

__all__ = ["accept", "is_due", "make", "would_shake_hands"]

#: Seconds for a handshake. A slow client on a bad line needs two or three; nginx and HAProxy give a minute and longer,
#: but hold no thread for it.
HANDSHAKE_TIMEOUT = 10.0

#: Accepted, with the handshake still to be made; None before the first.
_due: WeakSet[Any] | None = None


def would_shake_hands(listener: object) -> bool:
    """Whether accept() of *listener* makes a TLS handshake, in the standard library's way, which is known here."""
    ssl = sys.modules.get("ssl")
    return (
        ssl is not None
        and isinstance(listener, ssl.SSLSocket)
        and listener.do_handshake_on_connect
        and type(listener).accept is ssl.SSLSocket.accept
        and "accept" not in vars(listener)
    )


def accept(listener: Any) -> tuple[Any, Any]:
    """Accept a connection and leave the handshake due.

    Raises:
        OSError: nobody could be accepted, or the client is gone already.
    """
    global _due
    if _due is None:
        from weakref import WeakSet

        _due = WeakSet()
    plain, address = socket.socket.accept(listener)
    try:
        request = listener.context.wrap_socket(
            plain,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=listener.suppress_ragged_eofs,
        )
    except BaseException:
        plain.close()
        raise
    _due.add(request)
    return request, address


def is_due(request: object) -> bool:
    """Whether *request* came from accept() and has had no handshake."""
    return _due is not None and isinstance(request, socket.socket) and request in _due


def make(request: Any) -> None:
    """Make the handshake that is due, in `HANDSHAKE_TIMEOUT` seconds altogether.

    Raises:
        OSError: it failed, or took too long; the request is still open.
    """
    if _due is not None:
        _due.discard(request)
    timeout = request.gettimeout()
    if timeout is None or timeout > HANDSHAKE_TIMEOUT:
        request.settimeout(HANDSHAKE_TIMEOUT)
    request.do_handshake()
    request.settimeout(timeout)
    request.do_handshake_on_connect = True  # as if accept() had done it

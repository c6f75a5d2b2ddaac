"""The exceptions of the house, with their wording, and how foreign text is made fit for a log.

Whose fault an error is, is in its type: ``ValueError``/``TypeError`` and `ServerStateError` are the caller's,
anyio's `BrokenResourceError` is the world's, `ClosedResourceError` and `BusyResourceError` are a handler's own.
anyio's exceptions are used wherever they say what is meant; only what it has no word for lives here.
No room is below this one; everybody may import it.
"""

from __future__ import annotations

import errno

import anyio

__all__ = [
    "NO_DESCRIPTOR",
    "NO_MEMORY",
    "PEER_GONE",
    "BufferedDataError",
    "ListenerFailedError",
    "ReplyRefusedError",
    "ServerStateError",
    "TargetError",
    "printable",
]

#: What an errno of accepting or receiving means. The peer was gone before we came, or a firewall or network trouble
#: took it: its error, not ours.
PEER_GONE = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED EPERM EPROTO ENOPROTOOPT EOPNOTSUPP ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET "
        "ECONNRESET ETIMEDOUT EINTR"
    ).split()
    if hasattr(errno, name)
)
#: Out of descriptors (WSAEMFILE on Windows): a waiting client can be turned away through the reserve.
NO_DESCRIPTOR = frozenset((errno.EMFILE, errno.ENFILE, getattr(errno, "WSAEMFILE", errno.EMFILE)))
#: Out of kernel memory: there is nothing to do but to wait.
NO_MEMORY = frozenset((errno.ENOBUFS, errno.ENOMEM, getattr(errno, "WSAENOBUFS", errno.ENOBUFS)))

#: What a peer or a handler wrote reaches the log cut at this many characters: enough to recognise it, too little to
#: fill a disk with (the faults list asks for at most 1 kB of log per hostile connection).
LOGGED_TEXT_MAX = 200


class ServerStateError(RuntimeError):
    """A server was asked for something that its present state does not allow (serving after it was closed, say)."""

    def __init__(self, server: object, state: str, remedy: str) -> None:
        super().__init__(f"{server!r} {state}; {remedy}")


class ListenerFailedError(OSError):
    """No listening socket of a server can accept any more; the errno is the one of the last to fail."""


class BufferedDataError(RuntimeError):
    """A stream cannot give its socket away, because bytes of the conversation are still in its buffers."""

    def __init__(self, received: int, unsent: int) -> None:
        super().__init__(
            f"the stream holds {received} received and {unsent} unsent bytes that would be lost with its socket; "
            "receive() the former and flush() the latter before detach()"
        )


class ReplyRefusedError(anyio.BrokenResourceError):
    """A reply would have been larger, against what its peer sent, than ``Limits.max_amplification`` allows."""

    def __init__(self, size: int, allowed: int) -> None:
        super().__init__(
            f"the reply has {size} bytes and its peer may be sent {allowed} more; "
            "answer shorter, have the peer ask with more bytes, or raise Limits.max_amplification"
        )


class TargetError(Exception):
    """The command line names a target that cannot be imported, found or served."""


def printable(value: object) -> str:
    """Return *value* as ASCII text of one line and at most 200 characters, whatever a peer put into it."""
    try:
        text = ascii(value)
    except Exception as exc:  # noqa: BLE001 - a broken __repr__ must not take the log line with it
        text = f"<{type(value).__name__} whose repr raised {type(exc).__name__}>"
    return text if len(text) <= LOGGED_TEXT_MAX else f"{text[:LOGGED_TEXT_MAX]}... ({len(text)} characters)"

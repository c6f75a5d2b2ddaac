"""What the kernel tells of a packet beside its bytes, and what it is told when one is sent: addresses and interfaces.

Ancillary data in and out, and a socket's counter of drops; no loop, no waiting. Only the rooms of datagrams import it.

Source: ``ip(7)`` (IP_PKTINFO), RFC 3542 (IPV6_PKTINFO), ``sock_diag(7)`` (SK_MEMINFO_DROPS).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any, TypeAlias

from ._addresses import AF_UNIX

__all__ = [
    "ANCILLARY_SIZE",
    "Ancillary",
    "ask_for_address",
    "interface_source",
    "kernel_drops",
    "reply_source",
    "sent_to",
]

#: What `recvmsg` tells of a packet, and `sendmsg` takes.
Ancillary: TypeAlias = list[tuple[int, int, bytes]]

#: Room for that of one packet: a packet information of either version.
ANCILLARY_SIZE = socket.CMSG_SPACE(20) if hasattr(socket, "CMSG_SPACE") else 0

#: `socket` has the first only from Python 3.14 on.
_IP_PKTINFO = {"linux": 8, "darwin": 26}.get(sys.platform)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", None)
_IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", None)
#: Linux: a socket's counters, of which the ninth tells how many packets it dropped (since 4.12). The counter is that of
#: SO_RXQ_OVFL, which tells it with each packet only, and so never of the drops after the last one.
_SO_MEMINFO, _MEMINFO, _MEMINFO_DROPS = 55, struct.Struct("@9I"), 8


def ask_for_address(sock: socket.socket) -> bool:
    """Have the kernel tell to which address packets were sent, where there are several; whether it does."""
    if sock.family == AF_UNIX or not hasattr(sock, "recvmsg") or sock.getsockname()[0] not in ("0.0.0.0", "::"):
        return False
    try:
        if sock.family == socket.AF_INET6 and _IPV6_RECVPKTINFO is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        elif sock.family == socket.AF_INET and _IP_PKTINFO is not None:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            return False
    except OSError:  # replies go out from the address that the route prefers, then
        return False
    return True


def reply_source(received: Ancillary) -> Ancillary | None:
    """Return what makes a packet leave from the address that the one with *received* was sent to."""
    for level, kind, info in received:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            # The second of the three is the machine's own address, also if the packet was sent to a group. Packets that
            # came before the kernel was asked lack it; then it is the third, unless that is a group or everybody.
            own = info[4:8] if any(info[4:8]) else info[8:12]
            return [(level, kind, bytes(4) + own + bytes(4))] if own[0] < 224 else None
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            interface = info[16:20] if _is_scoped(info) else bytes(4)
            return [(level, kind, (bytes(16) if info[0] == 0xFF else info[:16]) + interface)]
    return None


def interface_source(family: int, index: int) -> Ancillary:
    """Return what makes a packet leave through the interface with number *index*.

    Raises:
        ValueError: the platform cannot.
    """
    if family == socket.AF_INET6 and _IPV6_PKTINFO is not None:
        return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, struct.pack("@16sI", bytes(16), index))]
    if family == socket.AF_INET and _IP_PKTINFO is not None:
        return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("@I4s4s", index, bytes(4), bytes(4)))]
    raise ValueError(f"an interface cannot be chosen on {os.name}; leave it out")


def kernel_drops(sock: socket.socket) -> int | None:
    """Return how many packets the kernel has dropped for *sock*; None where it does not tell."""
    if sys.platform != "linux" or sock.family == AF_UNIX:  # a Unix socket drops nothing: its senders wait
        return 0 if sock.family == AF_UNIX else None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:  # an older kernel, or closed
        return None
    return int(_MEMINFO.unpack(found)[_MEMINFO_DROPS]) if len(found) == _MEMINFO.size else None


def sent_to(received: Ancillary, own: Any) -> Any:
    """Return the address that the packet with *received* was sent to; *own*, that of the socket, if it does not say."""
    for level, kind, info in received:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return (socket.inet_ntop(socket.AF_INET, info[8:12]), own[1])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            scope = int.from_bytes(info[16:20], sys.byteorder) if _is_scoped(info) else 0
            return (socket.inet_ntop(socket.AF_INET6, info[:16]), own[1], 0, scope)
    return own


def _is_scoped(address: bytes) -> bool:
    """Whether an IPv6 address means something on one interface only: a group, or link-local."""
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)

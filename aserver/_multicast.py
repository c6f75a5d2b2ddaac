"""Multicast groups: what a group is called, and how a datagram socket joins and leaves one.

No loop, no server; the datagram server alone imports this.

Source: RFC 1112 and RFC 3493, section 5.2; ``ip(7)`` and ``ipv6(7)``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Group", "interface_index", "parse_groups"]


@dataclass(frozen=True, slots=True)
class Group:
    """A multicast group on one interface; *interface* "" is the one that the system's routes choose."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    interface: str

    @classmethod
    def parse(cls, text: str) -> Group:
        """Return the group that ``"239.1.2.3"``, ``"239.1.2.3%eth0"`` or ``"ff02::fb%eth0"`` means.

        Raises:
            ValueError: it is no address of a multicast group.
            TypeError: it is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no multicast group; give a string such as '239.1.2.3%eth0'")
        host, _, interface = text.partition("%")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{text!r} is no address; write for example 239.1.2.3, or ff02::fb%eth0")
        if not address.is_multicast:
            remedy = "write one from 224.0.0.0 to 239.255.255.255, or one that begins with ff"
            raise ValueError(f"{text!r} is no multicast group; {remedy}")
        return cls(address, interface)

    def __str__(self) -> str:
        return f"{self.address}%{self.interface}" if self.interface else str(self.address)

    def join(self, socks: Iterable[socket.socket]) -> None:
        """Have each of *socks* that is of the group's family receive what is sent to the group, or none of them.

        Raises:
            ValueError: none of them is.
            OSError: the interface does not exist, or the system refuses.
        """
        self._change(socks, join=True)

    def leave(self, socks: Iterable[socket.socket]) -> None:
        """Undo `join`; the same errors."""
        self._change(socks, join=False)

    def _change(self, socks: Iterable[socket.socket], *, join: bool) -> None:
        fitting = [sock for sock in socks if sock.family == self._family]
        if not fitting:
            version = self.address.version
            raise ValueError(f"no socket of this server is of IPv{version}, as the group {self} is; add one that is")
        done: list[socket.socket] = []
        try:
            for sock in fitting:
                sock.setsockopt(*self._option(join))
                done.append(sock)
        except OSError as exc:
            for sock in done:
                sock.setsockopt(*self._option(not join))
            verb = "join" if join else "leave"
            raise OSError(exc.errno, f"cannot {verb} the multicast group {self}: {exc.strerror}")

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6

    def _option(self, join: bool) -> tuple[int, int, bytes]:
        index = interface_index(self.interface) if self.interface else 0
        packed = self.address.packed
        if self.address.version == 6:
            name = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
            return socket.IPPROTO_IPV6, name, packed + struct.pack("@I", index)
        name = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
        if sys.platform == "win32":  # there an address 0.x.x.x is the number of an interface
            return socket.IPPROTO_IP, name, packed + struct.pack("!I", index)
        return socket.IPPROTO_IP, name, packed + struct.pack("@4si", bytes(4), index)


def interface_index(name: str) -> int:
    """Return the number of the interface called *name*; a number stands for itself.

    Raises:
        OSError: there is none.
    """
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return socket.if_nametoindex(name)
    except OSError as exc:
        known = ", ".join(known for _, known in socket.if_nameindex())
        raise OSError(
            exc.errno or errno.ENODEV, f"there is no network interface {name!r}; those of this machine are {known}"
        )


def parse_groups(groups: Sequence[str]) -> tuple[Group, ...]:
    """Return *groups*, each of which `Group.parse` takes."""
    if isinstance(groups, str):
        raise TypeError(f"groups is {groups!r}; it must be a list of strings, such as [{groups!r}]")
    return tuple(Group.parse(text) for text in groups)

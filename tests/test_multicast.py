"""The promises of `aserver._multicast` and of the server about groups: joined by option or at run time, heard by those
who have joined only, and answered from the machine's own address. All of it on the loopback interface.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import aserver
from aserver._multicast import Group, interface_index, parse_groups

from .test_datagram import Peer, short_dir
from .test_datagram_server import serving, totals, upper
from .test_server import needs_ipv6, turns, until

__all__ = ["short_dir"]  # the fixture

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface's name, and that it does multicast"),
]

GROUP = "239.255.17.4"
OTHER = "239.255.17.5"
GROUP6 = "ff02::4711"


class Speaker(Peer):
    """A peer that sends to *group*, through the loopback interface."""

    def __init__(self, group: str, port: int) -> None:
        super().__init__((group, port))
        index = socket.if_nametoindex("lo")
        if ":" in group:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("@4s4si", b"", b"", index))


def needs_route(group: str) -> None:
    """Skip, with the system's reason, where nothing can be sent to *group* through the loopback interface."""
    try:
        with Speaker(group, 9) as speaker:
            speaker.send(b"x")
    except OSError as exc:
        pytest.skip(f"{group} cannot be sent to through lo: {exc.strerror}")


# --- groups as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, address, interface",
    [
        ("239.1.2.3", "239.1.2.3", ""),
        ("224.0.0.1%eth0", "224.0.0.1", "eth0"),
        ("239.255.255.255%1", "239.255.255.255", "1"),
        ("ff02::fb%eth0", "ff02::fb", "eth0"),
        ("FF05::1", "ff05::1", ""),
    ],
)
def test_group(text: str, address: str, interface: str) -> None:
    """A group is an address and the interface behind it; it reads as it is written."""
    group = Group.parse(text)
    assert (group.address, group.interface) == (ipaddress.ip_address(address), interface)
    assert str(group) == text.lower() if text.isupper() else str(group).lower() == text.lower()
    assert parse_groups([text]) == (group,)


@pytest.mark.parametrize(
    "groups, kind, text",
    [
        (["10.0.0.1"], ValueError, "'10.0.0.1' is no multicast group; write one from 224.0.0.0 to 239.255.255.255"),
        (["223.255.255.255"], ValueError, "is no multicast group"),
        (["240.0.0.0"], ValueError, "is no multicast group"),
        (["::1"], ValueError, "or one that begins with ff"),
        (["all-hosts"], ValueError, "'all-hosts' is no address; write for example 239.1.2.3, or ff02::fb%eth0"),
        ([""], ValueError, "'' is no address"),
        (["239.1.2.3:80"], ValueError, "is no address"),
        ([("239.1.2.3", 80)], TypeError, "is no multicast group; give a string such as '239.1.2.3%eth0'"),
        ("239.1.2.3", TypeError, "groups is '239.1.2.3'; it must be a list of strings, such as ['239.1.2.3']"),
    ],
)
def test_no_group(groups: Any, kind: type[Exception], text: str) -> None:
    """What is no group is refused when the server is made, with what to write."""
    with pytest.raises(kind) as caught:
        aserver.UDPServer(("127.0.0.1", 0), upper, groups=groups)
    assert text in str(caught.value)


def test_interface_index() -> None:
    """An interface is known by its name or its number; an unknown one is an OSError with all that there are."""
    index = socket.if_nametoindex("lo")
    assert interface_index("lo") == interface_index(str(index)) == index
    with pytest.raises(
        OSError, match=r"there is no network interface 'nope'; those of this machine are .*lo"
    ) as caught:
        interface_index("nope")
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO)


# --- hearing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", ["lo", str(socket.if_nametoindex("lo")) if sys.platform == "linux" else ""])
async def test_joined_by_option(interface: str) -> None:
    """What is sent to a group that the server joined comes in, shows it, and is answered from its own address."""
    needs_route(GROUP)
    seen: list[Any] = []

    async def handler(datagram: aserver.Datagram) -> None:
        seen.append(datagram.local_address)
        await upper(datagram)

    async with serving(aserver.UDPServer(("", 0), handler, groups=[f"{GROUP}%{interface}"])) as server:
        port = server.server_address[1]
        with Speaker(GROUP, port) as speaker:
            assert await speaker.ask(b"hello") == b"HELLO"
            speaker.send(b"direct", ("127.0.0.1", port))
            assert await speaker.hear_from() == (b"DIRECT", ("127.0.0.1", port))
            speaker.send(b"group")
            assert await speaker.hear_from() == (b"GROUP", ("127.0.0.1", port))
        assert seen == [(GROUP, port), ("127.0.0.1", port), (GROUP, port)]


async def test_ipv6_joined_by_option() -> None:
    """The same over IPv6."""
    needs_route(GROUP6)
    seen: list[Any] = []

    async def handler(datagram: aserver.Datagram) -> None:
        seen.append(datagram.local_address[0])
        await upper(datagram)

    async with serving(aserver.UDPServer(("::", 0), handler, groups=[f"{GROUP6}%lo"])) as server:
        with Speaker(GROUP6, server.server_address[1]) as speaker:
            speaker.send(b"hello")
            data, source = await speaker.hear_from()
            assert (data, source[:2]) == (b"HELLO", ("::1", server.server_address[1]))
        assert seen == [GROUP6]


@needs_ipv6
async def test_groups_of_both_families() -> None:
    """A server with sockets of both families joins each group with those that it fits."""
    async with aserver.UDPServer(("", 0), upper, groups=[f"{GROUP}%lo", f"{GROUP6}%lo"]) as server:
        assert len(server.endpoints) == 2
        server.leave_group(f"{GROUP6}%lo")
        server.leave_group(f"{GROUP}%lo")
        with pytest.raises(OSError, match=f"cannot leave the multicast group {GROUP}%lo: "):
            server.leave_group(f"{GROUP}%lo")


async def test_joined_at_run_time() -> None:
    """A server hears a group from when it joins until it leaves; to do either twice is an OSError that says so."""
    needs_route(GROUP)
    async with serving(aserver.UDPServer(("0.0.0.0", 0), upper)) as server:
        with Speaker(GROUP, server.server_address[1]) as speaker:
            for count in (1, 2):
                speaker.send(b"before")
                await turns()
                server.join_group(f"{GROUP}%lo")
                with pytest.raises(OSError, match=f"cannot join the multicast group {GROUP}%lo: ") as caught:
                    server.join_group(f"{GROUP}%lo")
                assert caught.value.errno == errno.EADDRINUSE
                assert await speaker.ask(b"joined") == b"JOINED"
                server.leave_group(f"{GROUP}%lo")
                with pytest.raises(OSError, match=f"cannot leave the multicast group {GROUP}%lo: "):
                    server.leave_group(f"{GROUP}%lo")
                speaker.send(b"after")
                await turns()
                assert speaker.heard() == []
                assert totals(server)["received"] == count


async def test_only_those_who_joined_hear() -> None:
    """A group that another socket of the machine has joined is not heard by a server that has not."""
    needs_route(GROUP)
    async with serving(aserver.UDPServer(("0.0.0.0", 0), upper, groups=[f"{OTHER}%lo"], reuse_port=True)) as deaf:
        port = deaf.server_address[1]
        with Peer((GROUP, port), family=socket.AF_INET, bound=("0.0.0.0", 0)) as joined:
            Group.parse(f"{GROUP}%lo").join([joined.sock])
            with Speaker(GROUP, port) as speaker:
                speaker.send(b"not for you")
                speaker.send(b"sign of life", (GROUP, joined.name[1]))
                assert await joined.hear() == b"sign of life"
                speaker.send(b"to the other one", (OTHER, port))
                assert await speaker.hear() == b"TO THE OTHER ONE"
                assert totals(deaf)["received"] == 1


async def test_each_member_of_a_group_hears() -> None:
    """Two servers with one port and one group both get what is sent to it."""
    needs_route(GROUP)
    options: dict[str, Any] = {"groups": [f"{GROUP}%lo"], "reuse_port": True}
    async with serving(aserver.UDPServer(("0.0.0.0", 0), upper, **options)) as one:
        async with serving(aserver.UDPServer(("0.0.0.0", one.server_address[1]), upper, **options)) as two:
            with Speaker(GROUP, one.server_address[1]) as speaker:
                speaker.send(b"all")
                await until(lambda: one.statistics().completed and two.statistics().completed)
                assert speaker.heard() == [b"ALL", b"ALL"]


async def test_sessions_in_a_group() -> None:
    """A session that began with a datagram to a group answers from the machine's own address."""
    needs_route(GROUP)

    async def handler(session: aserver.Session) -> None:
        async for data in session:
            await session.send(data.upper())

    options: dict[str, Any] = {"groups": [f"{GROUP}%lo"], "sessions": aserver.Sessions()}
    async with serving(aserver.UDPServer(("0.0.0.0", 0), handler, **options)) as server:
        port = server.server_address[1]
        with Speaker(GROUP, port) as speaker:
            for _ in range(2):
                speaker.send(b"hello")
                assert await speaker.hear_from() == (b"HELLO", ("127.0.0.1", port))
            assert server.statistics().open == 1


async def test_send_to_a_group() -> None:
    """A server sends to a group through the interface that is named."""
    needs_route(GROUP)
    async with aserver.UDPServer(("0.0.0.0", 0), upper) as server:
        with Peer((GROUP, 1), family=socket.AF_INET, bound=("0.0.0.0", 0)) as member:
            Group.parse(f"{GROUP}%lo").join([member.sock])
            await server.send_to(b"news", (f"{GROUP}%lo", member.name[1]))
            data, (_, port) = await member.hear_from()
            assert (data, port) == (b"news", server.server_address[1])


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_no_socket_of_the_family(short_dir: Path) -> None:
    """A group of a family that the server has no socket for is a ValueError, when it is opened and at run time."""
    for address in (("127.0.0.1", 0), f"unixgram:{short_dir}/door"):
        server: Any = aserver.DatagramServer(address, upper, groups=[GROUP6])
        with pytest.raises(ValueError, match=f"no socket of this server is of IPv6, as the group {GROUP6} is; add one"):
            await server.__aenter__()
    async with aserver.DatagramServer(short_dir / "door", upper) as server:
        with pytest.raises(ValueError, match=r"no socket of this server is of IPv4"):
            server.join_group(GROUP)
        with pytest.raises(ValueError, match="is no multicast group"):
            server.join_group("127.0.0.1")
        with pytest.raises(TypeError):
            server.join_group(5)


async def test_unknown_interface() -> None:
    """An interface that there is not is an OSError with those that there are; nothing is left open or half joined."""
    text = rf"cannot join the multicast group {GROUP}%nope: there is no network interface 'nope'; those of this machine"
    with pytest.raises(OSError, match=text):
        await aserver.UDPServer(("127.0.0.1", 0), upper, groups=[f"{GROUP}%lo", f"{GROUP}%nope"]).__aenter__()
    async with aserver.UDPServer(("0.0.0.0", 0), upper) as server:
        with pytest.raises(OSError, match=text):
            server.join_group(f"{GROUP}%nope")
        with pytest.raises(OSError, match=f"cannot join the multicast group {GROUP}%4711: No such device"):
            server.join_group(f"{GROUP}%4711")


async def test_all_sockets_or_none() -> None:
    """Joining with several sockets of which one cannot leaves the others as they were."""
    async with aserver.UDPServer(["udp://0.0.0.0:0", "udp://0.0.0.0:0"], upper) as server:
        group = Group.parse(f"{GROUP}%lo")
        group.join([server._bound[1].sock])
        with pytest.raises(OSError, match="Address already in use"):
            server.join_group(f"{GROUP}%lo")
        group.leave([server._bound[1].sock])
        server.join_group(f"{GROUP}%lo")


async def test_states() -> None:
    """Before it is open a server joins nothing and says so."""
    server = aserver.UDPServer(("127.0.0.1", 0), upper)
    for change in (server.join_group, server.leave_group):
        with pytest.raises(aserver.ServerStateError, match="is not open"):
            change(GROUP)
    async with server:
        await anyio.lowlevel.checkpoint()
    with pytest.raises((OSError, aserver.ServerStateError)):
        server.join_group(f"{GROUP}%lo")

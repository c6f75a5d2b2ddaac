"""The promises of `aserver._datagram` about replies, on every loop and with both bodies of the seam: they leave from
the right address, wait for room in no buffer, and fail for the one peer alone.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from aserver._readiness import Loop

from . import streams
from .test_datagram import LARGEST, LOCAL, Faulty, Opened, Peer, adopted, fill, linux_only, opened, short_dir
from .test_server import needs_ipv6, turns, until

__all__ = ["short_dir"]  # the fixture

seam, anyio_backend, loop, bounded = streams.seam, streams.anyio_backend, streams.loop, streams.bounded

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="Unix datagrams")]


# --- replying --------------------------------------------------------------------------------------------------------


@bounded
async def test_reply(loop: Loop) -> None:
    """A reply goes to the peer as a datagram of its own, from the address it had sent to; there may be several."""
    async with opened(loop) as door:
        with Peer(door.address, connected=True) as peer, Peer(door.address) as other:
            other.send(b"other")
            peer.send(b"question")
            await until(lambda: len(door.got) == 2)
            got = door.got[1]
            assert repr(got) == f"<Datagram 127.0.0.1:{peer.name[1]} 8 bytes>"
            assert got.local_address == door.address
            for answer in (b"one", b"", bytearray(b"three"), memoryview(b"four"), memoryview(b"abcd").cast("H")):
                await got.reply(answer)
                assert await peer.hear() == bytes(answer)
            assert other.heard() == []
            assert (door.counters.sent, door.counters.send_errors) == (5, 0)


@bounded
async def test_concurrent_replies(loop: Loop) -> None:
    """Several tasks may reply at once."""
    async with opened(loop) as door:
        with Peer(door.address) as peer:
            peer.send(b"question")
            got = await door.next()
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(got.reply, b"%d" % number)
            assert sorted(peer.heard(), key=int) == [b"%d" % number for number in range(20)]


@linux_only
@bounded
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "127.1.2.3"])
async def test_reply_from_the_address_it_was_sent_to(loop: Loop, host: str) -> None:
    """On a socket for every address a reply leaves from the one that the peer had sent to, which the handler sees."""
    async with opened(loop, ("0.0.0.0", 0)) as door:
        with Peer((host, door.address[1])) as peer:
            peer.send(b"question")
            got = await door.next()
            assert got.local_address == (host, door.address[1])
            await got.reply(b"answer")
            assert await peer.hear_from() == (b"answer", (host, door.address[1]))


def own_ipv6() -> list[str]:
    """The addresses of this machine that need no zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().split("\n")
    except OSError:
        return []
    found = [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[:32])) for line in lines if line]
    return [address for address in found if not address.startswith("fe80")]


@needs_ipv6
@bounded
async def test_ipv6_reply_from_the_address_it_was_sent_to(loop: Loop) -> None:
    """The same over IPv6, from each address that this machine has; the peer keeps its own."""
    async with opened(loop, ("::", 0)) as door:
        for host in own_ipv6():
            with Peer((host, door.address[1])) as peer:
                peer.send(b"question")
                got = await door.next()
                assert got.local_address[:2] == (host, door.address[1])
                await got.reply(b"answer")
                data, source = await peer.hear_from()
                assert (data, source[:2]) == (b"answer", (host, door.address[1]))


@linux_only
@bounded
async def test_reply_to_a_broadcast(loop: Loop) -> None:
    """What was sent to a broadcast address is answered from the machine's own, and the handler sees which it was."""
    async with opened(loop, ("0.0.0.0", 0)) as door:
        with Peer(("127.255.255.255", door.address[1])) as peer:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            peer.send(b"question")
            got = await door.next()
            assert got.local_address == ("127.255.255.255", door.address[1])
            await got.reply(b"answer")
            assert await peer.hear_from() == (b"answer", ("127.0.0.1", door.address[1]))


@linux_only
@bounded
async def test_what_waited_before_the_socket_was_opened(loop: Loop) -> None:
    """A datagram that had come before the server (systemd starts one so) is answered from the right address, too."""
    bound = adopted(("0.0.0.0", 0))
    with Peer(("127.0.0.5", bound.address[1])) as peer:
        peer.send(b"question")
        door = Opened(bound, loop)
        door.door.take_waiting()
        got = await door.next()
        assert got.local_address == ("127.0.0.5", bound.address[1])
        await got.reply(b"answer")
        assert await peer.hear_from() == (b"answer", ("127.0.0.5", bound.address[1]))
    door.door.close()


@needs_ipv6
@linux_only
@bounded
async def test_reply_over_a_socket_of_both_families(loop: Loop) -> None:
    """On an inherited socket that receives IPv4 as IPv6, IPv4 peers are answered from the right address, too."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    async with opened(loop, ("::", 0), sock=sock) as door:
        with Peer(("127.0.0.5", door.address[1])) as peer:
            peer.send(b"question")
            got = await door.next()
            await got.reply(b"answer")
            assert await peer.hear_from() == (b"answer", ("127.0.0.5", door.address[1]))


@bounded
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_reply_that_is_too_large(loop: Loop, host: str) -> None:
    """The largest reply arrives; one byte more is a ValueError with the size, and sends nothing."""
    async with opened(loop, (host, 0)) as door:
        with Peer(("127.0.0.1", door.address[1])) as peer:
            peer.send(b"question")
            got = await door.next()
            with pytest.raises(ValueError, match="65508 bytes do not fit into one datagram; send less at a time"):
                await got.reply(b"x" * (LARGEST + 1))
            assert (door.counters.sent, door.counters.send_errors) == (0, 1)
            await got.reply(b"x" * LARGEST)
            assert len(await peer.hear()) == LARGEST


@bounded
async def test_reply_that_is_no_bytes(loop: Loop, short_dir: Path) -> None:
    """Text is refused with a TypeError."""
    for address in (LOCAL, ("0.0.0.0", 0), short_dir / "door"):
        async with opened(loop, address) as door:
            to = ("127.0.0.1", door.address[1]) if isinstance(address, tuple) else address
            with Peer(to, bound=None if isinstance(address, tuple) else short_dir / "peer") as peer:
                peer.send(b"question")
                got = await door.next()
                with pytest.raises(TypeError, match="bytes-like"):
                    await got.reply("text")  # type: ignore[arg-type]  # that is what is tried


@bounded
async def test_reply_after_the_end(loop: Loop, short_dir: Path) -> None:
    """Once the socket is closed a reply is a ClosedResourceError, and counts as nothing."""
    for address in (LOCAL, ("0.0.0.0", 0), short_dir / "door"):
        async with opened(loop, address) as door:
            to = ("127.0.0.1", door.address[1]) if isinstance(address, tuple) else address
            with Peer(to, bound=None if isinstance(address, tuple) else short_dir / "peer") as peer:
                peer.send(b"question")
                got = await door.next()
        with pytest.raises(anyio.ClosedResourceError):
            await got.reply(b"answer")
        assert (door.counters.sent, door.counters.send_errors) == (0, 0)


@bounded
@pytest.mark.parametrize("name", "EPERM ENOBUFS ENETUNREACH EHOSTUNREACH ECONNREFUSED".split())
async def test_network_does_not_take_a_reply(loop: Loop, name: str) -> None:
    """What a firewall, the network or a short machine refuses is a BrokenResourceError that says so, for this reply."""
    sock = Faulty()
    async with opened(loop, sock=sock) as door:
        with Peer(door.address) as peer:
            peer.send(b"question")
            got = await door.next()
            code = getattr(errno, name)
            sock.broken = code
            text = f"nothing can be sent to 127.0.0.1:{peer.name[1]}: {os.strerror(code)}"
            with pytest.raises(anyio.BrokenResourceError, match=text):
                await got.reply(b"lost")
            sock.broken = 0
            await got.reply(b"next")
            assert await peer.hear() == b"next"
            assert (door.counters.sent, door.counters.send_errors) == (1, 1)


@bounded
async def test_full_buffer_makes_replies_wait(loop: Loop) -> None:
    """While the kernel has no room, replies wait in their order, in no buffer, and nobody overtakes them."""
    sock = Faulty()
    async with opened(loop, sock=sock) as door:
        with Peer(door.address) as peer:
            peer.send(b"question")
            got = await door.next()
            sock.sending.extend([errno.EAGAIN, errno.EINTR, errno.EAGAIN, errno.EAGAIN, errno.EAGAIN])
            begun: list[bytes] = []

            async def reply(number: int) -> None:
                begun.append(b"%d" % number)
                await got.reply(begun[-1])

            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(reply, number)
            assert len(begun) == 10
            assert peer.heard() == begun


# --- replying to Unix peers ------------------------------------------------------------------------------------------


@bounded
async def test_unix_reply(loop: Loop, short_dir: Path) -> None:
    """A Unix peer with a name of its own is answered, whether it is a path or an abstract one."""
    names: list[Any] = [short_dir / "peer"]
    if sys.platform == "linux":
        names += ["\0" + str(short_dir), ""]  # the last: the kernel chooses one
    async with opened(loop, short_dir / "door") as door:
        for name in names:
            with Peer(short_dir / "door", bound=name) as peer:
                peer.send(b"question")
                got = await door.next()
                assert got.peer == peer.name
                assert got.local_address == str(short_dir / "door")
                await got.reply(b"answer")
                assert await peer.hear_from() == (b"answer", str(short_dir / "door"))


@bounded
async def test_unix_peer_without_a_name(loop: Loop, short_dir: Path) -> None:
    """A Unix peer that has bound no name is served, and answering it is a BrokenResourceError that says why."""
    async with opened(loop, short_dir / "door") as door:
        with Peer(short_dir / "door") as peer:
            peer.send(b"question")
            got = await door.next()
            assert not got.peer
            with pytest.raises(anyio.BrokenResourceError, match="the peer has no address"):
                await got.reply(b"answer")


@bounded
async def test_unix_peer_that_is_gone(loop: Loop, short_dir: Path) -> None:
    """A Unix peer that has ended, or whose path is gone, is a BrokenResourceError; the path is escaped in its text."""
    async with opened(loop, short_dir / "door") as door:
        path = short_dir / "peer\n"
        with Peer(short_dir / "door", bound=path) as peer:
            peer.send(b"question")
            got = await door.next()
        with pytest.raises(anyio.BrokenResourceError, match=r"peer\\n: Connection refused"):
            await got.reply(b"answer")
        path.unlink()
        with pytest.raises(anyio.BrokenResourceError, match=r"peer\\n: No such file or directory"):
            await got.reply(b"answer")
        assert door.counters.send_errors == 2


@linux_only
@bounded
async def test_full_unix_peer(loop: Loop, short_dir: Path) -> None:
    """A reply to a Unix peer that does not read waits for it, and others are answered meanwhile."""
    async with opened(loop, short_dir / "door") as door:
        with (
            Peer(short_dir / "door", bound=short_dir / "full") as full,
            Peer(short_dir / "door", bound=short_dir / "other") as other,
        ):
            full.send(b"question")
            got = await door.next()
            expected = fill(door.bound.sock, got.peer) + 5
            ends: list[int] = []

            async def reply(number: int) -> None:
                await got.reply(b"%d" % number)
                ends.append(number)

            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(reply, number)
                for _ in range(20):
                    other.send(b"question")
                    await (await door.next()).reply(b"answer")
                    assert await other.hear() == b"answer"
                assert ends == []
                heard: list[bytes] = []
                while len(heard) < expected:
                    heard.append(await full.hear())
            assert sorted(ends) == list(range(5))
            assert sorted(data for data in heard if data != b"fill") == [b"%d" % number for number in range(5)]


@linux_only
@bounded
@pytest.mark.parametrize("connected", [False, True], ids=["its-queue", "our-buffer"])
async def test_cancelled_while_a_unix_peer_is_full(loop: Loop, short_dir: Path, connected: bool) -> None:
    """A reply that is cancelled while its peer is full has sent nothing, and leaves nothing open."""
    async with opened(loop, short_dir / "door") as door:
        with Peer(short_dir / "door", bound=short_dir / "full", connected=connected) as full:
            full.send(b"question")
            got = await door.next()
            fill(door.bound.sock, got.peer)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(got.reply, b"never")
                    await turns()
                    scope.cancel()
            assert door.counters.sent == 0
            assert set(full.heard()) == {b"fill"}
            await got.reply(b"last")
            assert full.heard() == [b"last"]


@linux_only
@bounded
@pytest.mark.parametrize("end", ["closed", "gone", "replaced"])
async def test_full_unix_peer_that_ends(loop: Loop, short_dir: Path, end: str) -> None:
    """A reply that waits for a full Unix peer ends when that peer does; who has taken its name over gets it."""
    async with opened(loop, short_dir / "door") as door:
        full = Peer(short_dir / "door", bound=short_dir / "full")
        with full:
            full.send(b"question")
            got = await door.next()
            fill(door.bound.sock, got.peer)
            outcome: list[Any] = []

            async def reply() -> None:
                try:
                    await got.reply(b"late")
                    outcome.append("sent")
                except anyio.BrokenResourceError:
                    outcome.append("broken")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reply)
                await turns()
                heir = None
                if end != "closed":
                    (short_dir / "full").unlink()
                if end == "replaced":
                    heir = Peer(short_dir / "door", bound=short_dir / "full")
                full.sock.close()
            assert outcome == ["sent" if heir else "broken"]
            if heir:
                with heir:
                    assert heir.heard() == [b"late"]


@linux_only
@bounded
@pytest.mark.parametrize("connected", [False, True], ids=["its-queue", "our-buffer"])
async def test_closing_ends_what_waits_for_a_unix_peer(loop: Loop, short_dir: Path, connected: bool) -> None:
    """Replies that wait for a Unix peer when the socket is closed end with ClosedResourceError.

    The queue of a peer that is not connected to us is full first, otherwise it is our own buffer.
    """
    door = Opened(adopted(short_dir / "door"), loop)
    with Peer(short_dir / "door", bound=short_dir / "full", connected=connected) as full:
        fill(door.bound.sock, full.name)
        ends: list[str] = []

        async def reply() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await door.door.send(b"never", full.name)
            ends.append("closed")

        with anyio.move_on_after(2):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(reply)
                await turns()
                assert ends == []
                door.door.close()
        assert ends == ["closed"] * 3


@linux_only
@bounded
async def test_waiting_for_a_unix_peer_costs_few_descriptors(loop: Loop, short_dir: Path) -> None:
    """However many replies wait for one peer, they do not take a descriptor each."""
    async with opened(loop, short_dir / "door") as door:
        with Peer(short_dir / "door", bound=short_dir / "full") as full:
            full.send(b"question")
            got = await door.next()
            fill(door.bound.sock, got.peer)
            before = len(os.listdir("/proc/self/fd"))
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(got.reply, b"never")
                    await turns()
                    taken = len(os.listdir("/proc/self/fd")) - before
                    scope.cancel()
            assert taken <= 2

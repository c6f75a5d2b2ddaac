"""``anyio.create_udp_socket`` and a task of 10 ms for each datagram; on asyncio, uvloop or trio (argument)."""

import sys

import anyio
from anyio.abc import SocketAttribute, UDPSocket


class Slow:
    """Take 10 ms, or answer with the count."""

    handled = 0

    def __init__(self, udp: UDPSocket) -> None:
        self.udp = udp

    async def handle(self, packet: bytes, host: str, port: int) -> None:
        """Count it, the questions too."""
        self.handled += 1
        if packet == b"statistics":
            await self.udp.sendto(f"handled {self.handled}".encode(), host, port)
        else:
            await anyio.sleep(0.01)


async def main() -> None:
    """Serve, after printing the port."""
    async with await anyio.create_udp_socket(local_host="127.0.0.1", local_port=0) as udp:
        print(udp.extra(SocketAttribute.local_port), flush=True)
        slow = Slow(udp)
        async with anyio.create_task_group() as group:
            async for packet, (host, port) in udp:
                group.start_soon(slow.handle, packet, host, port)


if __name__ == "__main__":
    if sys.argv[1] == "trio":
        anyio.run(main, backend="trio")
    else:
        anyio.run(main, backend="asyncio", backend_options={"use_uvloop": sys.argv[1] == "uvloop"})

"""``anyio.create_udp_socket``, read in one loop as in its documentation; on asyncio, uvloop or trio (argument)."""

import sys

import anyio
from anyio.abc import SocketAttribute


async def main() -> None:
    """Serve, after printing the port."""
    async with await anyio.create_udp_socket(local_host="127.0.0.1", local_port=0) as udp:
        print(udp.extra(SocketAttribute.local_port), flush=True)
        async for packet, (host, port) in udp:
            await udp.sendto(packet, host, port)


if __name__ == "__main__":
    if sys.argv[1] == "trio":
        anyio.run(main, backend="trio")
    else:
        anyio.run(main, backend="asyncio", backend_options={"use_uvloop": sys.argv[1] == "uvloop"})

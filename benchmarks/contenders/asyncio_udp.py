"""An ``asyncio.DatagramProtocol``, a callback and no task at all; on asyncio or uvloop (the first argument)."""

import asyncio
import sys
from typing import Any, cast


class Echo(asyncio.DatagramProtocol):
    """Send the datagram back."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to send."""
        self.transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is one by its methods, not its class

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Send it."""
        self.transport.sendto(data, addr)


async def main() -> None:
    """Serve, after printing the port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())

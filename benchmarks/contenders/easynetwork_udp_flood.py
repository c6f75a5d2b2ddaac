"""easynetwork's UDP server with a handler that takes 10 ms; on asyncio or uvloop (the first argument)."""

# easynetwork need not be installed where the types are checked.
# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

import asyncio
import sys
from collections.abc import AsyncGenerator

from easynetwork.protocol import DatagramProtocol
from easynetwork.serializers.abc import AbstractPacketSerializer
from easynetwork.servers import AsyncUDPNetworkServer
from easynetwork.servers.handlers import AsyncDatagramClient, AsyncDatagramRequestHandler


class Raw(AbstractPacketSerializer[bytes, bytes]):
    """Bytes as they are."""

    def serialize(self, packet: bytes, /) -> bytes:
        """Nothing to do."""
        return packet

    def deserialize(self, data: bytes, /) -> bytes:
        """Nothing to do."""
        return data


class Slow(AsyncDatagramRequestHandler[bytes, bytes]):
    """Take 10 ms, or answer with the count."""

    handled = 0

    async def handle(self, client: AsyncDatagramClient[bytes]) -> AsyncGenerator[None, bytes]:
        """Count it, the questions too. One of these runs per client, the client's others wait in a queue."""
        request = yield
        self.handled += 1
        if request == b"statistics":
            await client.send_packet(f"handled {self.handled}".encode())
        else:
            await asyncio.sleep(0.01)


async def main() -> None:
    """Serve, after printing the port."""
    async with AsyncUDPNetworkServer("127.0.0.1", 0, DatagramProtocol(Raw()), Slow(), "asyncio") as server:
        await server.server_activate()
        print(server.get_addresses()[0].port, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())

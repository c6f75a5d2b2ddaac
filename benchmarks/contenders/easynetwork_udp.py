"""easynetwork's UDP server with a serializer that passes bytes on; on asyncio or uvloop (the first argument)."""

# easynetwork need not be installed where the types are checked.
# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False

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


class Echo(AsyncDatagramRequestHandler[bytes, bytes]):
    """Send the datagram back."""

    async def handle(self, client: AsyncDatagramClient[bytes]) -> AsyncGenerator[None, bytes]:
        """Run once for each datagram."""
        request = yield
        await client.send_packet(request)


async def main() -> None:
    """Serve, after printing the port."""
    async with AsyncUDPNetworkServer("127.0.0.1", 0, DatagramProtocol(Raw()), Echo(), "asyncio") as server:
        await server.server_activate()
        print(server.get_addresses()[0].port, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        import asyncio

        asyncio.run(main())

"""An ``asyncio.Protocol``, callbacks and no task at all; on asyncio or uvloop (the first argument)."""

import asyncio
import sys
from typing import cast


class Echo(asyncio.Protocol):
    """Send every line back; keep what has no line end yet."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods, not by its class

    def data_received(self, data: bytes) -> None:
        """Write the lines that are complete."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")


async def main() -> None:
    """Serve, after printing the port."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())

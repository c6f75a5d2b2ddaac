"""aserver with a handler class, on asyncio, uvloop or trio (the first argument)."""

import sys

import aserver


class Echo(aserver.StreamRequestHandler):
    """Send every line back."""

    async def handle(self) -> None:
        """Echo until the client has no more lines."""
        async for line in self.rfile:
            await self.wfile.write(line)


async def main() -> None:
    """Serve, after printing the port."""
    server = aserver.TCPServer(("127.0.0.1", 0), Echo)
    async with server:
        print(server.server_address[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "trio":
        import trio

        trio.run(main)
    elif sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        import asyncio

        asyncio.run(main())

"""aserver's UDP server with a handler class, on asyncio, uvloop or trio (the first argument)."""

import sys

import aserver


class Echo(aserver.DatagramRequestHandler):
    """Send the datagram back."""

    async def handle(self) -> None:
        """Read the packet and write the answer, which is sent at the end."""
        self.wfile.write(self.rfile.read())


async def main() -> None:
    """Serve, after printing the port."""
    server = aserver.UDPServer(("127.0.0.1", 0), Echo)
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

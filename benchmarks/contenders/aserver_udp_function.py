"""aserver's UDP server with one async function, on asyncio, uvloop or trio (the first argument)."""

import sys

import aserver


async def echo(datagram: aserver.Datagram) -> None:
    """Send the datagram back."""
    await datagram.reply(datagram.data)


async def main() -> None:
    """Serve, after printing the port."""
    server = aserver.UDPServer(("127.0.0.1", 0), echo)
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

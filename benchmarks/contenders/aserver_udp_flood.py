"""aserver's UDP server with a handler that takes 10 ms, on asyncio, uvloop or trio (the first argument)."""

import sys

import anyio

import aserver


async def slow(datagram: aserver.Datagram) -> None:
    """Take 10 ms, or answer with the server's own counters."""
    if datagram.data != b"statistics":
        await anyio.sleep(0.01)
        return
    counted = server.statistics()
    line = f"received {counted.received} handled {counted.handled} dropped {counted.dropped}"
    if counted.dropped_by_kernel is not None:
        line += f" kernel {counted.dropped_by_kernel}"
    await datagram.reply(line.encode())


async def main() -> None:
    """Serve, after printing the port."""
    async with server:
        print(server.server_address[1], flush=True)
        await server.serve_forever()


server = aserver.UDPServer(("127.0.0.1", 0), slow)

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

"""``anyio.create_tcp_listener`` and a buffered stream, on asyncio, uvloop or trio (the first argument)."""

import sys

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream


async def echo(stream: SocketStream) -> None:
    """Send every line back; an exception here would end the whole server."""
    async with stream:
        buffered = BufferedByteReceiveStream(stream)
        try:
            while True:
                line = await buffered.receive_until(b"\n", 65536)
                await stream.send(line + b"\n")
        except (anyio.IncompleteRead, anyio.BrokenResourceError):
            pass  # the client has closed, or reset, the connection


async def main() -> None:
    """Serve, after printing the port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    print(listener.extra(SocketAttribute.local_port), flush=True)
    await listener.serve(echo)


if __name__ == "__main__":
    if sys.argv[1] == "trio":
        anyio.run(main, backend="trio")
    else:
        anyio.run(main, backend="asyncio", backend_options={"use_uvloop": sys.argv[1] == "uvloop"})

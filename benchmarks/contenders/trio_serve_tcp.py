"""``trio.serve_tcp`` as in its tutorial (a handler that lets no exception out), reading lines through a buffer."""

import sys
from collections.abc import AsyncIterator
from functools import partial

import trio


async def lines(stream: trio.SocketStream) -> AsyncIterator[bytes]:
    """Cut what arrives into lines."""
    buffer = bytearray()
    async for chunk in stream:
        buffer += chunk
        while end := buffer.find(b"\n") + 1:
            yield bytes(buffer[:end])
            del buffer[:end]


async def echo(stream: trio.SocketStream) -> None:
    """Send every line back."""
    try:
        async for line in lines(stream):
            await stream.send_all(line)
    except Exception as error:  # noqa: BLE001  # the tutorial's own: one client's error would end the whole server
        print(f"echo crashed: {error!r}", file=sys.stderr)


async def main() -> None:
    """Serve, after printing the port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        print(listeners[0].socket.getsockname()[1], flush=True)


if __name__ == "__main__":
    trio.run(main)

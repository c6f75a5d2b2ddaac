"""An ``asyncio.DatagramProtocol`` that starts a task of 10 ms for each datagram; on asyncio or uvloop (argument)."""

import asyncio
import sys
from typing import Any, cast


class Slow(asyncio.DatagramProtocol):
    """Take 10 ms, or answer with the count."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.handled = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to send."""
        self.transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is one by its methods, not its class

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Start the task and keep it, as the documentation of create_task has it."""
        task = asyncio.create_task(self.handle(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def handle(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Count it, the questions too."""
        self.handled += 1
        if data == b"statistics":
            self.transport.sendto(f"handled {self.handled}".encode(), addr)
        else:
            await asyncio.sleep(0.01)


async def main() -> None:
    """Serve, after printing the port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Slow, local_addr=("127.0.0.1", 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())

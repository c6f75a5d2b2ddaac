"""Services that find each other by multicast: each says where it is, and whoever asks gets a list.

Start two of them, each in a terminal of its own, and ask in a third::

    python examples/discovery.py serve printer 9100         printer, port 9100, is announced to 239.255.77.77%lo
    python examples/discovery.py serve scanner 9200
    python examples/discovery.py list                       printer 192.0.2.7:9100, with an address of your machine
                                                            scanner 192.0.2.7:9200

``python examples/discovery.py watch`` goes on with who comes (``+ printer ...``) and, after Ctrl-C at a service, who
goes (``- printer ...``). All of it stays on this machine; for a network name the interface, everywhere the same:
``--group 239.255.77.77%eth0``.

A service is a `UDPServer` that has joined the group. With `reuse_port` several of them have the same port, and the
kernel gives each of them what is sent to the group. It answers a question with `reply`, from its own address to who has
asked, and speaks unasked with `send_to`. A question is as long as the longest answer, and no answer may be longer than
its question, so that nobody can use a service to flood somebody else (`max_amplification`).
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from typing import Any

import anyio

import aserver

logger = logging.getLogger("discovery")

GROUP = "239.255.77.77%lo" if sys.platform == "linux" else "239.255.77.77%lo0"
PORT = 7777  # of the group; that of a service is anything
PERIOD = 10.0  # seconds between two announcements, for who has missed one
LIST_TIME = 1.0  # seconds in which answers are awaited
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C is the first
LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
LIMITS = aserver.Limits(max_amplification=1)

#: ``HERE 9100 printer`` or ``GONE 9100 printer``.
NOTICE = re.compile(rb"(HERE|GONE) ([1-9][0-9]{0,4}) ([A-Za-z0-9_.-]{1,60})")
QUESTION = b"WHO IS HERE?".ljust(len(b"HERE 65535 ") + 60)


def everywhere(options: argparse.Namespace) -> str:
    """Return the address that stands for all of this machine, in the family of the group."""
    return "::" if ":" in options.group else "0.0.0.0"


def member(options: argparse.Namespace, handler: aserver.Handler) -> aserver.UDPServer:
    """Return a server that hears what is said to the group."""
    address = (everywhere(options), options.group_port)
    return aserver.UDPServer(address, handler, groups=[options.group], reuse_port=True, limits=LIMITS)


async def say(server: aserver.UDPServer, data: bytes, options: argparse.Namespace) -> None:
    """Say something to the group; while the network is down nobody hears it."""
    try:
        await server.send_to(data, (options.group, options.group_port))
    except anyio.BrokenResourceError as exc:
        logger.warning("%s", exc)


def understood(datagram: aserver.Datagram) -> tuple[str, str]:
    """Return HERE or GONE, and the service with its address; two empty strings if the datagram says neither."""
    if (notice := NOTICE.fullmatch(datagram.data)) is None:
        return "", ""
    verb, port, name = (part.decode() for part in notice.groups())
    host = datagram.peer[0]
    return verb, f"{name} [{host}]:{port}" if ":" in host else f"{name} {host}:{port}"


async def serve(options: argparse.Namespace) -> None:
    """Announce a service, and answer for it, until a signal comes."""
    here = f"HERE {options.port} {options.name}".encode()

    async def answer(datagram: aserver.Datagram) -> None:
        if datagram.data == QUESTION:
            await datagram.reply(here)

    async def announce() -> None:
        while True:
            await say(server, here, options)
            await anyio.sleep(options.period)

    with anyio.open_signal_receiver(*SIGNALS) as signals:
        async with member(options, answer) as server, anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            tasks.start_soon(announce)
            print(f"{options.name}, port {options.port}, is announced to {options.group}", flush=True)
            await anext(signals)
            await server.shutdown()  # from here on nobody gets an answer, but the goodbye can still be sent
            await say(server, here.replace(b"HERE", b"GONE", 1), options)
            tasks.cancel_scope.cancel()


async def ask(options: argparse.Namespace) -> list[str]:
    """Ask the group, and return who has answered within a second."""
    found: set[str] = set()

    async def collect(datagram: aserver.Datagram) -> None:
        verb, service = understood(datagram)
        if verb == "HERE":
            found.add(service)

    async with aserver.UDPServer((everywhere(options), 0), collect) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve_forever)
        await say(server, QUESTION, options)
        await anyio.sleep(LIST_TIME)
        tasks.cancel_scope.cancel()
    return sorted(found)


async def list_services(options: argparse.Namespace) -> None:
    """Print who is there."""
    print("\n".join(await ask(options)) or "there is nobody")


async def watch(options: argparse.Namespace) -> None:
    """Print who is there, and then who comes and goes, until a signal comes."""
    present: set[str] = set()

    def note(verb: str, service: str) -> None:
        if (verb == "HERE" and service not in present) or (verb == "GONE" and service in present):
            present.symmetric_difference_update({service})
            print("+" if verb == "HERE" else "-", service, flush=True)

    async def hear(datagram: aserver.Datagram) -> None:
        note(*understood(datagram))

    with anyio.open_signal_receiver(*SIGNALS) as signals:
        async with member(options, hear) as server, anyio.create_task_group() as tasks:
            await tasks.start(server.serve_forever)
            for service in await ask(options):
                note("HERE", service)
            await anext(signals)
            await server.shutdown()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Announce services by multicast, and list them.")
    parser.add_argument("command", choices=("serve", "list", "watch"))
    parser.add_argument("name", nargs="?", help="of the service to serve: 1 to 60 letters, digits, '_', '.' or '-'")
    parser.add_argument("port", nargs="?", help="of the service")
    parser.add_argument("--group", default=GROUP, help="the group with its interface (default: %(default)s)")
    parser.add_argument("--group-port", type=int, default=PORT, metavar="PORT", help="(default: %(default)s)")
    parser.add_argument("--period", type=float, default=PERIOD, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    options = parser.parse_args()
    if options.command == "serve" and not NOTICE.fullmatch(f"HERE {options.port} {options.name}".encode()):
        parser.error("serve needs a name, of 1 to 60 letters, digits, '_', '.' and '-', and the number of a port")
    function = {"serve": serve, "list": list_services, "watch": watch}[options.command]
    backend, settings = LOOPS[options.loop]
    anyio.run(function, options, backend=backend, backend_options=settings)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

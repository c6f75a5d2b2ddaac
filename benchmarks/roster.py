"""Who takes part: a name, the file in ``contenders/``, its argument, what it serves and what it must be spared.

Adding a contender is one file there and one line here. Imports nothing of the other rooms.
"""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

__all__ = ["CONTENDERS", "Contender", "Service"]

Service = Literal["tcp", "udp", "slow udp"]
"""What a contender serves and a scenario asks for: an echo of lines or of datagrams, or a datagram handler of 10 ms."""


@dataclass(frozen=True)
class Contender:
    """One server under measurement."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Import packages it cannot start without."""
    serves: Service = "tcp"
    forks: bool = False
    """It serves from child processes: their memory is shared with it, so memory is counted in proportional shares."""
    share: float = 1.0
    """The part of a round's connections it is asked for (a connection may cost it milliseconds)."""
    holds: int = 10_000
    """The most idle connections it is asked to hold."""
    runner: tuple[str, ...] = ()
    """What stands between the interpreter and the file: `python -m compat`, by which a program runs unchanged."""

    def missing(self) -> str:
        """Why it cannot start here; empty when it can."""
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        return "this platform has no fork()" if self.forks and not hasattr(os, "fork") else ""


_UDP = (
    Contender("aserver-udp-uvloop", "aserver_udp_function", ("uvloop",), ("aserver", "uvloop")),
    Contender("aserver-udp-asyncio", "aserver_udp_function", ("asyncio",), ("aserver",)),
    Contender("aserver-udp-trio", "aserver_udp_function", ("trio",), ("aserver", "trio")),
    Contender("aserver-udp-handler-uvloop", "aserver_udp_handler", ("uvloop",), ("aserver", "uvloop")),
    Contender("aserver-udp-handler-asyncio", "aserver_udp_handler", ("asyncio",), ("aserver",)),
    Contender("socketserver-udp", "socketserver_udp"),
    Contender("socketserver-udp-threading", "socketserver_udp_threading"),
    Contender("asyncio-udp-uvloop", "asyncio_udp", ("uvloop",), ("uvloop",)),
    Contender("asyncio-udp-asyncio", "asyncio_udp", ("asyncio",)),
    Contender("anyio-udp-uvloop", "anyio_udp", ("uvloop",), ("anyio", "uvloop")),
    Contender("easynetwork-udp-uvloop", "easynetwork_udp", ("uvloop",), ("easynetwork", "uvloop")),
    Contender("easynetwork-udp-asyncio", "easynetwork_udp", ("asyncio",), ("easynetwork",)),
    Contender("gevent-udp", "gevent_udp", (), ("gevent",)),
)

_COMPAT = (
    Contender("compat-threading", "socketserver_threading", ("compat",)),
    Contender("compat-forking", "socketserver_forking", ("compat",), forks=True, share=0.1, holds=200),
    Contender("compat-udp", "socketserver_udp", ("compat",), serves="udp"),
    Contender("compat-udp-threading", "socketserver_udp_threading", ("compat",), serves="udp"),
)
_COMPAT_EXECUTORS = (
    ("thread-pool", Contender("compat-thread-pool", "socketserver_threading")),
    ("processes", Contender("compat-processes", "socketserver_forking", forks=True)),
)

_SLOW_UDP = (
    Contender("aserver-flood-uvloop", "aserver_udp_flood", ("uvloop",), ("aserver", "uvloop")),
    Contender("aserver-flood-asyncio", "aserver_udp_flood", ("asyncio",), ("aserver",)),
    Contender("aserver-flood-trio", "aserver_udp_flood", ("trio",), ("aserver", "trio")),
    Contender("socketserver-flood-threading", "socketserver_udp_flood"),
    Contender("asyncio-flood-uvloop", "asyncio_udp_flood", ("uvloop",), ("uvloop",)),
    Contender("asyncio-flood-asyncio", "asyncio_udp_flood", ("asyncio",)),
    Contender("anyio-flood-uvloop", "anyio_udp_flood", ("uvloop",), ("anyio", "uvloop")),
    Contender("easynetwork-flood-uvloop", "easynetwork_udp_flood", ("uvloop",), ("easynetwork", "uvloop")),
    Contender("gevent-flood", "gevent_udp_flood", (), ("gevent",)),
)

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("aserver-uvloop", "aserver_function", ("uvloop",), ("aserver", "uvloop")),
        Contender("aserver-asyncio", "aserver_function", ("asyncio",), ("aserver",)),
        Contender("aserver-trio", "aserver_function", ("trio",), ("aserver", "trio")),
        Contender("aserver-handler-uvloop", "aserver_handler", ("uvloop",), ("aserver", "uvloop")),
        Contender("aserver-handler-asyncio", "aserver_handler", ("asyncio",), ("aserver",)),
        Contender("asyncio-streams-uvloop", "asyncio_streams", ("uvloop",), ("uvloop",)),
        Contender("asyncio-streams-asyncio", "asyncio_streams", ("asyncio",)),
        Contender("asyncio-protocol-uvloop", "asyncio_protocol", ("uvloop",), ("uvloop",)),
        Contender("socketserver-threading", "socketserver_threading"),
        # A fork per connection is some 1.5 ms, and each idle one is a whole process.
        Contender("socketserver-forking", "socketserver_forking", forks=True, share=0.1, holds=200),
        Contender("trio-serve-tcp", "trio_serve_tcp", (), ("trio",)),
        Contender("anyio-uvloop", "anyio_listener", ("uvloop",), ("anyio", "uvloop")),
        *(replace(contender, needs=("compat",)) for contender in _COMPAT),
        *(
            replace(contender, needs=("compat",), runner=("-m", "compat", "--executor", executor))
            for executor, contender in _COMPAT_EXECUTORS
        ),
        *(replace(contender, serves="udp") for contender in _UDP),
        *(replace(contender, serves="slow udp") for contender in _SLOW_UDP),
    )
}

"""Who takes part: a name, the file in ``contenders/``, its argument, and what it must be spared.

Adding a contender is one file there and one line here. Imports nothing of the other rooms.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["CONTENDERS", "Contender"]


@dataclass(frozen=True)
class Contender:
    """One server under measurement."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Import packages it cannot start without."""
    forks: bool = False
    """It serves from child processes: their memory is shared with it, so memory is counted in proportional shares."""
    share: float = 1.0
    """The part of a round's connections it is asked for (a connection may cost it milliseconds)."""
    holds: int = 10_000
    """The most idle connections it is asked to hold."""

    def missing(self) -> str:
        """Why it cannot start here; empty when it can."""
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        return "this platform has no fork()" if self.forks and not hasattr(os, "fork") else ""


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
    )
}

"""From synchronous code: `run` serves until a signal says stop, `start_in_thread` serves beside the program.

Lives here: which event loop is taken, and what several servers together do about signals and failures. Must not live
here: how a server stops (that is its `shutdown`), how a signal arrives, printing, reading of arguments. The command
line and the package's door import it. No loop is imported, only asked for by its name.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskStatus
from anyio.from_thread import start_blocking_portal

from ._errors import ListenerFailedError, ServerStateError
from ._lifecycle import DEFAULT_GRACE, KILL_GRACE, BaseServer
from ._process import Overtime, Signals, last_words

__all__ = ["backend_options", "run", "run_servers", "start_in_thread"]

logger = logging.getLogger("aserver")

#: Seconds beyond the grace after which the process is ended from outside of its event loop: what `shutdown` takes at
#: most to cancel and to reset, and one more for the loop itself.
OVERTIME = 2 * KILL_GRACE + 1.0

Server = TypeVar("Server", bound=BaseServer[Any])


def run(
    *servers: BaseServer[Any],
    backend: str = "asyncio",
    loop: str | Callable[[], Any] = "auto",
    grace: float | None = DEFAULT_GRACE,
) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM, then let the open connections finish: the blocking entry point.

    All servers are bound before one serves, all of them or none. The first signal begins `shutdown` of all at the same
    time. A second one ends the process at once, by that signal: listening sockets are closed, Unix paths removed, and
    nothing else is waited for. The signals' handlers of before are put back at the end.

    Args:
        servers: one server or several, each new; each serves once.
        backend: "asyncio" or "trio".
        loop: on asyncio "auto" (uvloop where it is installed), "asyncio", "uvloop", or a function that makes a loop.
        grace: seconds that open connections get to finish; 0 cancels at once, None waits for ever.

    Returns:
        when all servers have been shut down, by a signal or by somebody inside, and every connection ended by itself.

    Raises:
        ValueError, TypeError: an argument cannot be right; nothing has been opened.
        ModuleNotFoundError: the backend or loop that was asked for is not installed; nothing has been opened.
        OSError: an address cannot be bound.
        aserver.ListenerFailedError: all listening sockets of a server have failed; the others were shut down.
        aserver.ServerStateError: a server has been opened before.
        SystemExit: with status 1, and a line in the log: connections had to be cancelled, or reset, after the signal.
        RuntimeError: an event loop runs in this thread; use ``async with server`` there.

    Takes at most grace + 11 s from the signal on (cancelling and resetting take 5 s each where handlers resist). What
    still runs then, a handler that swallows its cancellation, blocks the event loop or has left a thread behind, is
    ended with the process: status 1 and a line in the log, no clean-up code. With a grace of None nothing is ended so.

    Call it in the main thread: in another one Python delivers no signals, and somebody inside has to call `shutdown`.
    """
    run_servers(servers, backend, backend_options(backend, loop), grace)


@contextmanager
def start_in_thread(
    server: Server,
    *,
    backend: str = "asyncio",
    loop: str | Callable[[], Any] = "auto",
    grace: float | None = DEFAULT_GRACE,
) -> Iterator[Server]:
    """Serve in an event loop of its own, in a thread of its own, while the block runs: for synchronous code and tests.

    Args:
        server: a new server; it serves once.
        backend, loop: as for `run`.
        grace: seconds that open connections get to finish when the block is left; 0 cancels at once, None waits for
            ever.

    Returns:
        a context manager that gives the server, which accepts connections already.

    Raises:
        ValueError, TypeError, ModuleNotFoundError: as for `run`.
        OSError: the address cannot be bound.
        aserver.ListenerFailedError: all listening sockets have failed; raised when the block is left.

    Leaving the block stops the server and waits for the thread; a handler that swallows its cancellation holds it up.
    Signals are left alone. In the block use what does not wait (`server_address`, `endpoints`, `statistics`): the other
    methods belong to the thread of the loop.
    """
    _check([server], grace)
    with start_blocking_portal(backend, backend_options(backend, loop), name=f"aserver {server.name}") as portal:
        with portal.wrap_async_context_manager(server):
            serving, _ = portal.start_task(server.serve_forever)
            try:
                yield server
            finally:
                portal.call(_shut_down, server, grace)
                serving.result()


async def _shut_down(server: BaseServer[Any], grace: float | None) -> None:
    try:
        await server.shutdown(grace)
    except ServerStateError:  # it has failed, or somebody inside was first: serve_forever() tells when it is over
        pass


def backend_options(backend: str, loop: str | Callable[[], Any]) -> dict[str, Any]:
    """Return what `anyio.run` takes as ``backend_options`` for this choice; see `run` for arguments and errors."""
    if backend not in ("asyncio", "trio"):
        raise ValueError(f"backend is {backend!r}; it must be 'asyncio' or 'trio'")
    if isinstance(loop, str) and loop not in ("auto", "asyncio", "uvloop"):
        raise ValueError(f"loop is {loop!r}; it must be 'auto', 'asyncio', 'uvloop' or a function that makes a loop")
    if not isinstance(loop, str) and not callable(loop):
        raise TypeError(f"loop is {loop!r}; it must be a name or a function that makes a loop")
    if backend == "trio":
        if loop != "auto":
            raise ValueError(f"loop is {loop!r}, and trio has only its own; leave it out, or choose backend 'asyncio'")
        if importlib.util.find_spec("trio") is None:
            raise ModuleNotFoundError("trio is not installed; install it, or choose backend 'asyncio'", name="trio")
        return {}
    if callable(loop):
        return {"loop_factory": loop}
    installed = sys.platform != "win32" and importlib.util.find_spec("uvloop") is not None
    if loop == "uvloop" and not installed:
        raise ModuleNotFoundError("uvloop is not installed; install it, or choose loop 'asyncio'", name="uvloop")
    return {"use_uvloop": loop != "asyncio" and installed}


def _check(servers: Sequence[object], grace: object) -> None:
    if not servers:
        raise ValueError("there is no server to run; give at least one")
    for server in servers:
        if not isinstance(server, BaseServer):
            raise TypeError(
                f"{server!r} is not a server; give an instance of aserver.StreamServer or aserver.DatagramServer"
            )
    if len(set(servers)) < len(servers):
        raise ValueError(f"{servers!r} has a server twice; give each of them once")
    if grace is None:
        return
    if not isinstance(grace, int | float) or isinstance(grace, bool):
        raise TypeError(f"grace is {grace!r}; it must be a number of seconds, or None")
    if not grace >= 0:  # written so that NaN is refused, too
        raise ValueError(f"grace is {grace!r}; it must be at least 0")


def _log_listening(server: BaseServer[Any]) -> None:
    logger.info("%s: listening on %s", server.name, ", ".join(server.endpoints))


def run_servers(
    servers: Sequence[BaseServer[Any]],
    backend: str,
    options: dict[str, Any],
    grace: float | None,
    on_listening: Callable[[BaseServer[Any]], None] = _log_listening,
) -> None:
    """Do what `run` promises with what `backend_options` gave; *on_listening* hears of each server once all listen."""
    _check(servers, grace)
    serving = _Run(servers, grace, on_listening)
    with serving.overtime, serving.signals:
        anyio.run(serving.main, backend=backend, backend_options=options)
    serving.conclude()


class _Run:
    """One run of some servers: bind all, serve all, stop all."""

    def __init__(
        self, servers: Sequence[BaseServer[Any]], grace: float | None, on_listening: Callable[[BaseServer[Any]], None]
    ) -> None:
        self._servers = servers
        self._grace = grace
        self._on_listening = on_listening
        self.overtime = Overtime(None if grace is None else grace + OVERTIME, self._abandon)
        self.signals = Signals(self.overtime.begin, self._close_listeners)
        self._serving: dict[BaseServer[Any], anyio.CancelScope] = {}
        self._stopping = False
        self._failure: ListenerFailedError | None = None
        self._cancelled = self._aborted = self._survivors = 0

    async def main(self) -> None:
        """Serve until all servers have ended."""
        async with AsyncExitStack() as house:
            for server in self._servers:
                await house.enter_async_context(server)
            for server in self._servers:
                self._on_listening(server)
            self._serving = {server: anyio.CancelScope() for server in self._servers}
            async with anyio.create_task_group() as self._tasks:
                for server in self._servers:
                    await self._tasks.start(self._serve, server)
                with self.signals.waking():
                    await self._obey()
            self.overtime.begin()
            if self._survivors:
                self._abandon(f"handlers that go on although cancelled and without their connection: {self._survivors}")

    async def _obey(self) -> None:
        """Wait for the first signal and do what it says; then stay, so that the loop wakes up for a second one."""
        while not (name := self.signals.first):
            await self.signals.nudged()
        requests = sum(server.statistics().open for server in self._servers)
        logger.info("%s: shutting down; open requests: %d", name, requests)
        self._stop_all()
        while True:
            await self.signals.nudged()

    async def _serve(self, server: BaseServer[Any], *, task_status: TaskStatus[Any]) -> None:
        try:
            with self._serving[server]:
                await server.serve_forever(task_status=task_status)
                self._survivors += server.statistics().open
        except ListenerFailedError as exc:
            self._failure = exc
        del self._serving[server]
        if self._failure is not None:
            self._stop_all()
        if not self._serving:
            self._tasks.cancel_scope.cancel()

    def _stop_all(self) -> None:
        if not self._stopping:
            self._stopping = True
            self.overtime.begin()
            for server in self._serving:
                self._tasks.start_soon(self._stop, server)

    async def _stop(self, server: BaseServer[Any]) -> None:
        try:
            report = await server.shutdown(self._grace)
        except ServerStateError:  # somebody inside was first, perhaps with more patience than ours
            with anyio.move_on_after(self._grace):
                await anyio.sleep_forever()
            self._cancelled += server.statistics().open
            if server in self._serving:
                self._serving[server].cancel()
        else:
            self._cancelled += report.cancelled
            self._aborted += report.aborted

    def conclude(self) -> None:
        """Tell the caller how it went."""
        if self._failure is not None:
            raise self._failure
        if self._cancelled or self._aborted:
            logger.warning(
                "requests that did not end within the grace of %s s: %d (cancelled: %d, reset after that: %d)",
                self._grace,
                self._cancelled + self._aborted,
                self._cancelled,
                self._aborted,
            )
            raise SystemExit(1)

    def _close_listeners(self) -> None:
        for server in self._servers:
            for bound in server._bound:
                bound.close()

    def _abandon(self, fact: str) -> None:
        """End the process although something in it goes on: the one thing that cannot hang."""
        self._close_listeners()
        last_words(f"{fact}; ending the process")
        os._exit(1)

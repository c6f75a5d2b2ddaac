"""The life of a server: opened, serving, stopping, closed; and the error boundary around user code.

What streams and datagrams have in common is here: the order of things, who waits for whom, what a stop does, and that
whatever a handler raises ends its own request and nothing else. What a request is, and the hooks and counters that only
one kind has, are told in `_server`, which alone imports this.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import anyio
from anyio.abc import TaskStatus

from ._addresses import Address, Endpoint, peer_text
from ._door import Door
from ._endpoints import BindOptions, BoundSocket, bind
from ._errors import ListenerFailedError, ServerStateError, printable
from ._limits import Limits
from ._readiness import open_loop
from ._registry import Registry, ShutdownReport

__all__ = ["DEFAULT_GRACE", "KILL_GRACE", "BaseServer", "Request", "check"]

logger = logging.getLogger("aserver")

#: Seconds that open requests get to end by themselves at `shutdown`; gunicorn and Kubernetes use the same.
DEFAULT_GRACE = 30.0
#: Seconds after which a connection that waits for input counts as idle at `shutdown`, although it has not answered what
#: it took last: servers that only listen never answer. Go takes 5 s of silence for idle.
SETTLE_TIME = 1.0
#: Seconds that a cancelled handler gets before its connection is reset under it, and again before it is left behind.
KILL_GRACE = 5.0


class Request(Protocol):
    """What a server does with the requests that it serves, whatever they are."""

    @property
    def peer(self) -> Any:
        """The address it came from."""

    def begin_draining(self) -> None:
        """The server is stopping."""

    def end_input(self) -> None:
        """The server is stopping, and has been patient enough: whatever waits for input sees its end."""

    def abort(self) -> None:
        """The handler has outlived its cancellation: whatever it does with the request next fails."""


RequestT = TypeVar("RequestT", bound=Request)


class BaseServer(ABC, Generic[RequestT]):
    """What all servers are; see `StreamServer` and `DatagramServer`, of which instances are made.

    Source: the stdlib's documentation of `socketserver`, "Server Objects".
    """

    def __init__(
        self,
        address: Address | list[Address] | None,
        *,
        options: BindOptions,
        limits: Limits | None,
        name: str | None,
    ) -> None:
        check("limits", limits, isinstance(limits, Limits | None), "an aserver.Limits")
        self.name = type(self).__name__ if name is None else name
        self.limits = Limits() if limits is None else limits
        self._endpoints = () if address is None else self._parse(address)
        self._options = options
        self._state: Literal["new", "open", "serving", "ended", "stopping", "closed"] = "new"
        self._forced = False
        self._left: anyio.Event | None = None
        self._bound: list[BoundSocket] = []
        self._doors: list[Door] = []
        self._registry: Registry[RequestT] = Registry()

    #: How requests end when it is nobody's bug here: the peer or the network went away, or said too much in one line.
    _network_ends: tuple[type[BaseException], ...] = (
        anyio.BrokenResourceError,
        anyio.EndOfStream,
        anyio.IncompleteRead,
        anyio.DelimiterNotFound,
    )

    # -- what the kinds of servers differ in ---------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _parse(address: Address | list[Address]) -> tuple[Endpoint, ...]: ...

    @abstractmethod
    def _open_doors(self) -> list[Door]:
        """Make a door for each bound socket; the seam is open."""

    @abstractmethod
    def _admit(self, admitted: bool) -> None:
        """From now on let requests in, or do not."""

    def _last_call(self) -> None:
        """Let in who came before the server is told to stop and can be let in without waiting."""

    @abstractmethod
    def statistics(self) -> Any:
        """Return the counters of this moment."""

    # -- hooks, to be overridden ---------------------------------------------------------------------------------------

    def verify_request(self, request: RequestT, client_address: Any) -> bool | Awaitable[bool]:
        """Return whether the request is to be served; if not it is dropped. By default each is."""
        return True

    def handle_error(self, request: RequestT, client_address: Any) -> Awaitable[None] | None:
        """Called while an exception of a handler or hook is being handled (``sys.exc_info()``); logs it by default.

        Not called for what is nobody's bug: a peer that resets or ends early, and cancellation.
        """
        logger.error("%s: the request of %s raised", self.name, peer_text(client_address), exc_info=True)
        return None

    # -- life of the server --------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        where = "not bound" if self._state == "new" else ", ".join(self.endpoints) or "no address"
        return f"<{self.name} {where} {self._state} open={len(self._registry)}>"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ServerStateError(self, "cannot be opened again", "make a new one")
        self._bound = await bind(self._endpoints, self._options)
        self._state = "open"
        self._stopping, self._stopped = anyio.Event(), anyio.Event()
        self._house = AsyncExitStack()
        try:
            self._loop = await self._house.enter_async_context(open_loop())
            self._doors = self._open_doors()
        except BaseException:
            for bound in self._bound:
                bound.close()
            self._state = "closed"
            await self._house.aclose()  # which does not get to see the exception, and puts it into no group
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stop_accepting()
            await self._end_forcibly()
        for door in self._doors:
            door.close()
        # Nothing runs in it any more; so whatever left the block leaves it as it is, in no exception group.
        await self._house.aclose()
        self._state = "closed"
        self._stopped.set()

    async def serve_forever(self, *, task_status: TaskStatus[Any] = anyio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve requests until `shutdown` has ended; opens and closes the server if nobody has.

        Args:
            task_status: for ``await task_group.start(server.serve_forever)``, which gives `server_address`.

        Raises:
            OSError: the address cannot be bound (only if this call opens the server).
            aserver.ListenerFailedError: all sockets have failed.
            aserver.ServerStateError: it is serving already, or was closed.

        Cancelling it stops accepting at once; `shutdown` then lets the open requests finish, and leaving
        ``async with`` ends them.
        """
        if self._state == "new":
            async with self:
                return await self.serve_forever(task_status=task_status)
        if self._state != "open":
            raise ServerStateError(self, f"cannot serve: it is {self._state}", "make a new one")
        self._state, self._left = "serving", anyio.Event()
        failures: list[ListenerFailedError] = []
        try:
            async with anyio.create_task_group() as acceptors:
                for door in self._doors:
                    acceptors.start_soon(self._accept, door, failures)
                for duty in self._duties():
                    acceptors.start_soon(duty)
                task_status.started(self.server_address)
                await self._stopping.wait()
                acceptors.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # Ctrl-C on trio: the caller has not asked for a group
            raise _lone(group) from None
        finally:
            if self._state == "serving":
                self._state = "ended"
            self._retire()
            self._left.set()
        if failures and len(failures) == len(self._doors):
            raise failures[-1]
        await self._stopped.wait()

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What else runs while the server serves."""
        return []

    async def _accept(self, door: Door, failures: list[ListenerFailedError]) -> None:
        try:
            await door.accept_forever()
        except ListenerFailedError as exc:
            failures.append(exc)
            logger.critical("%s: %s", self.name, exc.strerror)
            if len(failures) == len(self._doors):
                self._stopping.set()
        finally:
            door.retire()

    async def _stop_accepting(self) -> None:
        self._begin_stopping()
        if self._left is not None:
            await self._left.wait()  # serve_forever() has to leave the sockets before they are closed
        self._retire()

    def _begin_stopping(self) -> None:
        self._admit(False)
        self._stopping.set()

    def _retire(self) -> None:
        self._begin_stopping()
        for door in self._doors:
            door.retire()

    async def shutdown(self, grace: float | None = DEFAULT_GRACE) -> ShutdownReport:
        """Stop: accept nothing more, let the open requests finish, then cancel what is left, then reset it.

        The `draining` of every stream and session becomes True. A connection that waits for input between two requests
        sees the end of its input at once; one that has not answered what it took last sees it after a second of
        silence; a session sees it behind the datagrams that it has.

        Args:
            grace: seconds the requests get to finish; 0 cancels at once, None waits for ever.

        Returns:
            what became of the requests that were open.

        Raises:
            aserver.ServerStateError: the server was never opened, or is stopping already.

        Call it from a task of its own: a handler that awaits it waits for itself, until the grace is over.
        """
        if self._state not in ("open", "serving", "ended"):
            raise ServerStateError(self, f"cannot be shut down: it is {self._state}", "do so once, while it is open")
        self._state = "stopping"
        try:
            self._last_call()
            self._begin_stopping()
            total = len(self._registry)
            await self._stop_accepting()
            await self._let_finish(grace)
            cancelled, aborted = await self._end_forcibly()
        finally:  # also if whoever called us is cancelled; leaving ``async with`` then does the rest
            self._stopped.set()
        return ShutdownReport(finished=total - cancelled, cancelled=cancelled - aborted, aborted=aborted)

    async def _let_finish(self, grace: float | None) -> None:
        with anyio.move_on_after(grace):
            for request in self._registry:
                request.begin_draining()
            with anyio.move_on_after(SETTLE_TIME):
                await self._registry.wait_empty()
            for request in self._registry:
                request.end_input()
            await self._registry.wait_empty()

    async def _end_forcibly(self) -> tuple[int, int]:
        if self._forced:  # those who are left have survived it once
            return 0, 0
        tasks = list(self._registry.tasks.values())
        for task in tasks:
            self._loop.cancel(task)
        with anyio.move_on_after(KILL_GRACE):
            await self._registry.wait_empty()
        survivors = list(self._registry)
        for request in survivors:
            request.abort()
        with anyio.move_on_after(KILL_GRACE):
            await self._registry.wait_empty()
        self._forced = True
        return len(tasks), len(survivors)

    def suspend(self) -> None:
        """Let nothing in until `resume`: clients wait in the kernel's queue. Open requests go on."""
        self._check_open()
        self._admit(False)

    def resume(self) -> None:
        """Let requests in again after `suspend`; does nothing otherwise."""
        self._check_open()
        if self._state in ("open", "serving"):
            self._admit(True)
            self._ring()

    def _ring(self) -> None:
        for door in self._doors:
            door.ring()

    async def wait_empty(self) -> None:
        """Wait until no request is open; new ones may come unless the server is suspended or stopping."""
        await self._registry.wait_empty()

    # -- what can be asked ---------------------------------------------------------------------------------------------

    @property
    def server_address(self) -> Any:
        """The address of the (first) socket, with the port that was given for port 0; a Unix path as str.

        None if the server has no socket (`StreamServer.add_connection`).
        """
        self._check_open()
        return self._bound[0].address if self._bound else None

    @property
    def draining(self) -> bool:
        """Whether the server is stopping, or has stopped."""
        return self._state in ("stopping", "closed")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoint strings of all sockets, such as ``tcp://127.0.0.1:9999``."""
        self._check_open()
        return tuple(bound.endpoint for bound in self._bound)

    def _check_open(self) -> None:
        if self._state == "new":
            raise ServerStateError(self, "is not open", "enter it with 'async with' first")

    # -- the error boundary --------------------------------------------------------------------------------------------

    async def _raised(self, request: RequestT, exc: BaseException) -> None:
        """The error boundary: what a handler or hook raised ends here, whatever it is; only cancellation goes on."""
        cancelled, failure = _split(exc, anyio.get_cancelled_exc_class())
        if cancelled is not None and not self._loop.cancelling():
            cancelled, failure = None, exc  # nobody asked for it: the handler has raised it itself
        if failure is None:
            self._registry.cancelled += 1
        elif self._is_network_end(failure):
            self._registry.lost += 1
            logger.debug("%s: the request of %s ended: %s", self.name, peer_text(request.peer), printable(failure))
        else:
            try:
                if (waiting := self.handle_error(request, request.peer)) is not None:
                    await waiting
            except BaseException as hook_exc:  # noqa: BLE001 - the boundary's own boundary
                self._hook_raised(request, hook_exc)
            finally:  # not before: for the hook the request is open
                self._registry.failed += 1
        if cancelled is not None:
            raise cancelled

    def _is_network_end(self, exc: BaseException) -> bool:
        if isinstance(exc, BaseExceptionGroup):
            return all(self._is_network_end(each) for each in exc.exceptions)
        # Refused is whoever connects somewhere: a handler and its own backend.
        return isinstance(exc, self._network_ends) and not isinstance(exc, ConnectionRefusedError)

    def _hook_raised(self, request: RequestT, exc: BaseException) -> None:
        if isinstance(exc, anyio.get_cancelled_exc_class()) and self._loop.cancelling():
            raise exc
        logger.error("%s: a hook for %s raised", self.name, peer_text(request.peer), exc_info=exc)


def check(name: str, value: object, fits: bool, what: str) -> None:
    """Raise TypeError unless the argument *fits*."""
    if not fits:
        raise TypeError(f"{name} is {printable(value)}; it must be {what}")


def _lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception in *group*, or the group if there are several."""
    lone: BaseException = group
    while isinstance(lone, BaseExceptionGroup) and len(lone.exceptions) == 1:
        lone = lone.exceptions[0]
    return lone


def _split(exc: BaseException, kind: type[BaseException]) -> tuple[BaseException | None, BaseException | None]:
    """Return what is of *kind* in *exc*, one of them for all, and what is not; a handler's task group mixes them."""
    if not isinstance(exc, BaseExceptionGroup):
        return (exc, None) if isinstance(exc, kind) else (None, exc)
    group, rest = exc.split(kind)
    leaf: BaseException | None = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf, rest

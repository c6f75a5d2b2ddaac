"""The seam: wait until a socket is ready, run a task. With `_tasks` the only rooms that know asyncio and trio.

A `Loop` is put together from two choices. Sockets: `_EpollSockets` keeps them in an epoll set of our own, where a ready
socket is read at once and whoever waits for it is woken; `_AnyioSockets` waits, then reads, on whatever anyio runs on.
Tasks: the event loop's own, or those of a task group. Everything above this file is written once and cannot tell them
apart; with anyio's choices alone everything would still work, only slower. No policy lives here: no limit, no error
wording, no buffer. Imported by the rooms of the server; imports `_tasks` only.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing
from typing import Any, Protocol

import anyio

from ._tasks import AsyncioTasks, GroupTasks, Task

__all__ = ["Loop", "Task", "Watch", "open_loop"]


class Watch(Protocol):
    """One socket whose readiness can be waited for, by one reader and one writer at a time.

    ``feeding`` tells who reads: while it is True ``on_readable`` is called as soon as there is something, whether or
    not anybody waits; while it is False only during a wait.
    """

    feeding: bool

    def wait_readable(self) -> Awaitable[object]:
        """Wait until ``on_readable`` was called because the socket is readable, or until `wake`."""

    def wait_writable(self) -> Awaitable[object]:
        """Wait until the socket takes bytes again, or until `wake`."""

    def pause(self) -> None:
        """Leave the socket alone (``feeding`` is False then) until the next wait; waits under way stay."""

    def wake(self) -> None:
        """End the waits under way as if the socket were ready; who waited looks again at what he waited for."""

    def close(self) -> None:
        """Stop watching and end the waits under way; to be called before the socket is closed or handed on."""


class Loop:
    """What the house asks of an event loop.

    Attributes:
        watch: ``watch(sock, on_readable)`` gives the `Watch` of a socket. ``on_readable`` reads without blocking and
            returns whether it wants more; it must not raise.
        pump: ``await pump(sock, on_readable)`` calls ``on_readable`` each time the socket is readable, until it returns
            False.
        spawn: ``spawn(func, *args)`` runs an async function as a `Task` of its own. It must not raise anything but its
            cancellation; who spawns it holds it, as asyncio has only weak references to tasks.
        start: ``start(func, arg)`` does the same, but where it can (asyncio and uvloop; on Python 3.11 only in what
            `pump` calls back) it runs the function until its first wait at once. None if it has ended by then.
        cancel: ``cancel(task)`` raises cancellation where the task waits; one that has not begun begins first, so that
            its clean-up always runs.
        call_soon: ``call_soon(callback)`` calls back at the next turn of the loop.
        cancelling: whether the cancellation that was just caught in this task had been asked for from outside it.
    """

    def __init__(self, sockets: _EpollSockets | _AnyioSockets, tasks: AsyncioTasks | GroupTasks) -> None:
        self.watch = sockets.watch
        self.pump = tasks.pump
        self.spawn = tasks.spawn
        self.start = tasks.start
        self.cancel = tasks.cancel
        self.call_soon = tasks.call_soon
        self.cancelling = tasks.cancelling


@asynccontextmanager
async def open_loop(*, generic: bool = False) -> AsyncIterator[Loop]:
    """Give the `Loop` of the running event loop; its tasks must have ended when the block is left.

    Args:
        generic: make anyio's choices, also where there are faster ones.
    """
    trio: Any = sys.modules.get("trio")
    if trio is not None and not trio.lowlevel.in_trio_run():
        trio = None
    epoll = hasattr(select, "epoll") and not generic
    if epoll and trio is None:
        loop = asyncio.get_running_loop()
        with closing(_EpollSockets(loop.create_future)) as sockets, closing(AsyncioTasks(loop)) as tasks:
            loop.add_reader(sockets.fileno(), sockets.dispatch)
            try:
                yield Loop(sockets, tasks)
            finally:
                loop.remove_reader(sockets.fileno())
    elif epoll:
        nursery = trio.open_nursery(strict_exception_groups=True)
        with closing(_EpollSockets(lambda: _TrioWaiter(trio.lowlevel))) as sockets:
            async with _group_tasks(nursery, trio.CancelScope, trio) as group_tasks:
                dispatcher = group_tasks.spawn(sockets.dispatch_forever)
                dispatcher.shield = True  # it serves the clean-up of what is cancelled around it, too
                try:
                    yield Loop(sockets, group_tasks)
                finally:
                    group_tasks.cancel(dispatcher)
    else:
        async with _group_tasks(anyio.create_task_group(), anyio.CancelScope, trio) as group_tasks:
            yield Loop(_AnyioSockets(), group_tasks)


@asynccontextmanager
async def _group_tasks(group: Any, new_scope: Callable[[], Any], trio: Any) -> AsyncIterator[GroupTasks]:
    # On trio, Ctrl-C is raised in whatever code happens to run. In a request it would be taken for an exception of its
    # handler and end there; so requests are protected, and it reaches the program's main task instead.
    protect = _unchanged if trio is None else trio.lowlevel.enable_ki_protection
    with new_scope() as scope:
        async with group as opened:
            try:
                yield GroupTasks(opened, new_scope, protect)
            finally:
                # What leaves the block may be cancelled; that must not take the place of what it leaves with.
                scope.shield = True


def _unchanged(func: Any) -> Any:
    return func


# -- sockets -----------------------------------------------------------------------------------------------------------


class _Waiter(Protocol):
    """What one task waits on once: asyncio's future, or the like of it."""

    def __await__(self) -> Generator[Any, Any, None]: ...

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


class _TrioWaiter:
    """A waiter for trio, where an Event costs a parking lot and waiting for a socket an epoll_ctl call each time."""

    __slots__ = ("_done", "_lowlevel", "_task")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: Any = None
        self._done = False

    def __await__(self) -> Generator[Any, Any, None]:
        if not self._done:
            self._task = self._lowlevel.current_task()
            try:
                yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()
            finally:
                self._task = None  # its frames lead back to us

    def _abort(self, _: object) -> Any:
        self._done = True
        return self._lowlevel.Abort.SUCCEEDED

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None, /) -> None:
        if not self._done:
            self._done = True
            if self._task is not None:
                self._lowlevel.reschedule(self._task)


class _EpollSockets:
    """An epoll set of our own, which the event loop watches as one descriptor.

    One level more than asking the loop for each socket, and cheaper: to register costs one system call (uvloop: four,
    and a handle of 500 bytes), a ready socket one call of Python (asyncio and uvloop: a Handle run in a context; trio:
    an epoll_ctl and its bookkeeping). Against ``add_reader`` a line costs 1 % less on uvloop and 6 % on asyncio, and a
    connection 5 %; against ``trio.lowlevel.wait_readable`` a line costs a quarter less.
    """

    def __init__(self, create_waiter: Callable[[], _Waiter]) -> None:
        self.create_waiter = create_waiter
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def dispatch(self) -> None:
        """Call back for each socket that is ready."""
        callbacks = self._callbacks
        for fd, _ in self._epoll.poll(0):
            # Gone if an earlier callback of this round closed it. If it also gave the number to a new socket, that one
            # is asked once for nothing.
            if (callback := callbacks.get(fd)) is not None:
                callback()

    async def dispatch_forever(self) -> None:
        while True:
            await anyio.wait_readable(self.fileno())
            self.dispatch()

    def register(self, fd: int, callback: Callable[[], object]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        # The kernel forgets a socket by itself when it is closed, unless a child process has inherited it: then its
        # events would come for ever, for a number that may be another's.
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def watch(self, sock: socket.socket, on_readable: Callable[[], bool]) -> Watch:
        return _EpollWatch(self, sock, on_readable)


class _EpollWatch:
    """A socket in the epoll set, registered at its first wait and then left there: two epoll_ctl calls a connection,
    not two a message.
    """

    __slots__ = ("_fd", "_on_readable", "_reader", "_sock", "_sockets", "_writing", "feeding")

    def __init__(self, sockets: _EpollSockets, sock: socket.socket, on_readable: Callable[[], bool]) -> None:
        self._sockets = sockets
        self._sock = sock
        self._fd = sock.fileno()
        self._on_readable = on_readable
        self._reader: _Waiter | None = None
        self._writing = False
        self.feeding = False

    def wait_readable(self) -> Awaitable[object]:
        if not self.feeding:
            self._sockets.register(self._fd, self._readable)
            self.feeding = True
        self._reader = reader = self._sockets.create_waiter()
        return reader

    def _readable(self) -> None:
        if not self._on_readable():
            self.pause()
        if (reader := self._reader) is not None:
            self._reader = None
            if not reader.done():  # its task was cancelled in this turn; what was read waits for the next receive
                reader.set_result(None)

    async def wait_writable(self) -> None:
        self._writing = True
        try:
            await _wait_writable(self._sock)
        finally:
            self._writing = False

    def pause(self) -> None:
        if self.feeding:
            self.feeding = False
            self._sockets.unregister(self._fd)

    def wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._writing:
            anyio.notify_closing(self._sock)

    def close(self) -> None:
        self.pause()
        self._on_readable = _nothing  # no cycle is left
        self.wake()


def _nothing() -> bool:
    return True


class _AnyioSockets:
    """Sockets on any loop that anyio knows: wait, then read."""

    def watch(self, sock: socket.socket, on_readable: Callable[[], bool]) -> Watch:
        return _AnyioWatch(sock, on_readable)


class _AnyioWatch:
    __slots__ = ("_on_readable", "_sock")

    feeding = False

    def __init__(self, sock: socket.socket, on_readable: Callable[[], bool]) -> None:
        self._sock = sock
        self._on_readable = on_readable

    async def wait_readable(self) -> None:
        if self._sock.fileno() < 0:
            return
        try:
            await anyio.wait_readable(self._sock)
        except anyio.ClosedResourceError:  # wake() was called: that is what it does to a wait
            return
        self._on_readable()

    def wait_writable(self) -> Awaitable[object]:
        return _wait_writable(self._sock)

    def pause(self) -> None:
        pass  # between two waits nobody looks at the socket anyway

    def wake(self) -> None:
        anyio.notify_closing(self._sock)

    def close(self) -> None:
        self._on_readable = _nothing
        if self._sock.fileno() >= 0:
            anyio.notify_closing(self._sock)


async def _wait_writable(sock: socket.socket) -> None:
    if sock.fileno() < 0:
        return
    try:
        await anyio.wait_writable(sock)
    except anyio.ClosedResourceError:  # as above
        return

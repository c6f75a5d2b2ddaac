"""The seam's other half: tasks, and the watching of sockets that stay. Only here and in `_readiness` a loop is known.

`AsyncioTasks` are the event loop's own, `GroupTasks` those of a task group of anyio or trio. What a request is, or how
many there may be, is not known here. Only `_readiness` imports this.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import socket
import sys
import weakref
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeAlias, TypeVar

import anyio

__all__ = ["AsyncioTasks", "GroupTasks", "Task"]

#: A running task, of which nothing is known here but that `cancel` takes it.
Task: TypeAlias = object

T = TypeVar("T")

_ENDED: Any = object()


class AsyncioTasks:
    """Tasks of asyncio itself: 3 µs each, against 12 to 15 in an anyio task group.

    To pump, the loop watches the socket itself: it stays, and would cost one more epoll_wait each time in our set.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._create_task = loop.create_task
        self.call_soon = loop.call_soon
        self._spares = None
        if loop.get_task_factory() is not None:  # it is asked for each task
            self.start: Callable[[Callable[[T], Coroutine[Any, Any, None]], T], Task | None] = self.spawn
        elif sys.version_info >= (3, 12):
            self.start = self._start_eagerly
        else:
            self._spares = _Spares(loop)
            self.start = self._spares.start

    def close(self) -> None:
        """Let go of what is kept for tasks to come."""
        if self._spares is not None:
            self._spares.close()

    def spawn(self, func: Callable[..., Coroutine[Any, Any, None]], *args: object) -> Task:
        return self._create_task(func(*args))

    def _start_eagerly(self, func: Callable[[T], Coroutine[Any, Any, None]], arg: T) -> Task | None:
        task = asyncio.Task(func(arg), loop=self._loop, eager_start=True)  # type: ignore[call-arg]  # since 3.12
        return None if task.done() else task

    async def pump(self, sock: socket.socket, on_readable: Callable[[], bool]) -> None:
        fd = sock.fileno()
        done = self._loop.create_future()
        if self._spares is not None:
            on_readable = functools.partial(self._spares.run, on_readable)

        def readable() -> None:
            if not done.done() and not on_readable():
                done.set_result(None)

        self._loop.add_reader(fd, readable)
        try:
            await done
        finally:
            self._loop.remove_reader(fd)

    def cancel(self, task: Any) -> object:
        # Cancelled before its first step, a coroutine would never run; so behind that step in the loop's queue.
        return self.call_soon(task.cancel)

    def cancelling(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


class GroupTasks:
    """Tasks of a task group that is open as long as the server is.

    Args:
        group: a task group of anyio, or a nursery of trio.
        new_scope: makes a cancel scope of the same library.
        protect: applied to the function that each task runs.
    """

    def __init__(self, group: Any, new_scope: Callable[[], Any], protect: Callable[[Any], Any]) -> None:
        self._group = group
        self._new_scope = new_scope

        async def run(scope: Any, func: Callable[..., Coroutine[Any, Any, None]], args: tuple[object, ...]) -> None:
            with scope:
                await func(*args)

        self._run = protect(run)

    def spawn(self, func: Callable[..., Coroutine[Any, Any, None]], *args: object) -> Any:
        scope = self._new_scope()
        self._group.start_soon(self._run, scope, func, args)
        return scope

    start = spawn

    async def pump(self, sock: socket.socket, on_readable: Callable[[], bool]) -> None:
        while True:
            await anyio.wait_readable(sock)
            if not on_readable():
                return

    def cancel(self, task: Any) -> object:
        return task.cancel()

    def call_soon(self, callback: Callable[[], None]) -> None:
        async def call() -> None:
            callback()

        self._group.start_soon(call)

    def cancelling(self) -> bool:
        return True


# -- eager start before Python 3.12 ------------------------------------------------------------------------------------


class _Spares:
    """What ``eager_start`` does since Python 3.12, for 3.11: a coroutine that never waits costs no turn of the loop.

    A spare task is kept, which waits. What `pump` calls back runs under the spare's name, as the current task and in
    its context, and so does the first step of each coroutine that it starts. If a coroutine ends with that step, the
    spare is as good as new. If it waits, it becomes the spare's, which carries it on to its end, and a new spare is
    made. A spare that a coroutine has left a trace on (a reference, a callback, a cancellation, a context variable) is
    not used again, so that two coroutines never share a task.

    A task costs 3 µs on 3.11, half of it for the WeakSet of all tasks; this costs less than one.

    Source: `_enter_task` and `_leave_task` are there for such: the stdlib's documentation, "Extending asyncio".
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()
        self._wanted = False  # until the first one is started: who only accepts connections does without
        self._spare: _Spare | None = None
        self._current: _Spare | None = None
        self._task: Any = None
        self._references = 0

    def run(self, callback: Callable[[], bool]) -> bool:
        """Call back under the name of a spare, if one is ready."""
        spare = self._spare
        if self._wanted and (spare is None or spare.done):
            spare = self._spare = _Spare(self._loop, self._context.copy())
        if spare is None or not spare.parked or asyncio.current_task(self._loop) is not None:
            return callback()
        self._current, self._task = spare, spare.task
        _enter_task(self._loop, self._task)
        self._references = sys.getrefcount(self._task) + 1  # the name that it has in start()
        try:
            return spare.context.run(callback)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._task is not None:
            _leave_task(self._loop, self._task)
            self._current = self._task = None

    def start(self, func: Callable[[T], Coroutine[Any, Any, None]], arg: T) -> Task | None:
        """Run a coroutine until it waits; return the task that carries it on, or None if it has ended."""
        running, task, spare = func(arg), self._task, self._current
        if spare is None:
            self._wanted = True
            return self._loop.create_task(running, context=self._context.copy())
        self._current = None  # what it starts itself, before it waits, is not run in its name
        try:
            awaited = next(running.__await__(), _ENDED)  # send() would have to raise StopIteration
        except asyncio.CancelledError:
            awaited = _ENDED
        if awaited is _ENDED:
            if (
                sys.getrefcount(task) != self._references
                or weakref.getweakrefcount(task) != 1  # asyncio.all_tasks()
                or task._callbacks is not None
                or task.cancelling()
                or spare.context != spare.untouched
            ):
                self._leave()
                self._spare = None
                spare.dismiss()
            else:
                self._current = spare
            return None
        self._leave()
        self._spare = None
        spare.carry_on(running, awaited)
        return spare.task

    def close(self) -> None:
        """End the spare."""
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None


class _Spare:
    """A task that waits for a coroutine to carry on."""

    __slots__ = ("_awaited", "_bell", "_running", "context", "parked", "task", "untouched")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self.parked = False
        self._bell = loop.create_future()
        self._running: Coroutine[Any, Any, None] | None = None
        self._awaited: Any = None
        self.context = context
        self.untouched = context.copy()
        self.task: asyncio.Task[None] = loop.create_task(self._live(), context=context)

    @property
    def done(self) -> bool:
        """Whether it does not wait any more."""
        return self._bell.done()

    def carry_on(self, running: Coroutine[Any, Any, None], awaited: Any) -> None:
        """Run the rest of a coroutine, which has begun and waits for *awaited*."""
        self._running, self._awaited = running, awaited
        self.dismiss()

    def dismiss(self) -> None:
        """Let it end, after what it has to carry on."""
        if not self._bell.done():
            self._bell.set_result(None)

    async def _live(self) -> None:
        self.parked = True
        cancelled = False
        try:
            await self._bell
        except asyncio.CancelledError:
            if self._running is None:
                raise
            cancelled = self.task.cancelling() > 0
        if self._running is not None:
            running, awaited = self._running, self._awaited
            self._running = self._awaited = None
            await _rest(running, awaited, cancelled)


@coroutine
def _rest(running: Coroutine[Any, Any, None], awaited: Any, cancelled: bool) -> Generator[Any, Any, None]:
    """Do for a coroutine that waits for *awaited* what its task would do."""
    if cancelled and (awaited is None or not awaited.cancel()):
        try:
            awaited = running.throw(asyncio.CancelledError())
        except StopIteration:
            return
    while True:
        try:
            sent = yield awaited
        except BaseException as exc:  # noqa: BLE001 - it is the coroutine's
            step: Callable[[Any], Any] = running.throw
            sent = exc
        else:
            step = running.send
        try:
            awaited = step(sent)
        except StopIteration:
            return

"""The promises of `aserver._tasks.AsyncioTasks.start`: what pumping calls back begins at once, each in its own task.

The same tests hold for the eager tasks of Python 3.12 and for the spare task that does their work before.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
import pytest_asyncio

from aserver._readiness import open_loop

pytestmark = pytest.mark.asyncio

Begin = Callable[..., Awaitable[list[Any]]]

number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


@pytest_asyncio.fixture
async def begin() -> AsyncIterator[Begin]:
    """Start some functions in a row, in what pumping calls back; return what `start` gave for each."""
    async with open_loop() as loop:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def begin_them(*functions: Callable[[object], Any]) -> list[Any]:
            tasks: list[Any] = []

            def readable() -> bool:
                ours.recv(1)
                if functions:
                    tasks.extend(loop.start(function, None) for function in functions)
                return False

            theirs.send(b"x")
            await loop.pump(ours, readable)
            return tasks

        with ours, theirs:
            for _ in range(3):  # until then a spare is asked for, made, and ready
                await begin_them(_nothing)
            yield begin_them


async def _nothing(_: object) -> None:
    pass


async def test_it_never_waits(begin: Begin) -> None:
    """A coroutine that never waits has ended when `start` returns, and there is no task to hold."""
    seen: list[str] = []

    async def run(_: object) -> None:
        seen.append("ran")

    def look(_: object) -> Any:
        seen.append("next")
        return _nothing(_)

    assert await begin(run, look, run, look) == [None, None, None, None]
    assert seen == ["ran", "next", "ran", "next"]


async def test_it_waits(begin: Begin) -> None:
    """One that waits goes on in the task that `start` gave, which was its own from the first step on."""
    gate = asyncio.Event()
    steps: list[tuple[str, object]] = []

    def waiter(name: str) -> Callable[[object], Any]:
        async def run(_: object) -> None:
            steps.append((name, asyncio.current_task()))
            await asyncio.sleep(0)
            steps.append((name, asyncio.current_task()))
            await gate.wait()
            steps.append((name, asyncio.current_task()))

        return run

    tasks = await begin(waiter("one"), _nothing, waiter("two"))
    gate.set()
    await asyncio.gather(*(task for task in tasks if task is not None))
    assert tasks[0] is not tasks[2]
    assert {task for name, task in steps if name == "one"} == {tasks[0]}
    assert {task for name, task in steps if name == "two"} == {tasks[2]}
    assert len(steps) == 6


async def test_it_is_cancelled_while_it_waits(begin: Begin) -> None:
    """Cancelling its task raises where it waits, also if that has not had a turn of the loop yet."""
    ended: list[str] = []

    async def run(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    for turns in (0, 3):
        (task,) = await begin(run)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert ended == ["cancelled", "cancelled"]


async def test_its_own_cancellation(begin: Begin) -> None:
    """One that cancels its task in its first step is cancelled at its next wait, be it for a future or for a turn."""
    ended: list[str] = []

    def cancelled_in(wait: Callable[[], Awaitable[object]]) -> Callable[[object], Any]:
        async def run(_: object) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            try:
                await wait()
            except asyncio.CancelledError:
                ended.append("cancelled")

        return run

    tasks = await begin(cancelled_in(asyncio.Event().wait), cancelled_in(lambda: asyncio.sleep(0)), _nothing)
    await asyncio.wait([task for task in tasks if task is not None])
    assert ended == ["cancelled", "cancelled"]


async def test_a_cancellation_without_a_wait(begin: Begin) -> None:
    """One that cancels its task and ends leaves the next one alone, which may wait as long as it likes."""
    gate = asyncio.Event()
    ended: list[str] = []

    async def cancels(_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def cancels_not(_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.uncancel()

    async def waits(_: object) -> None:
        await gate.wait()
        ended.append("waited")

    for first in (cancels, cancels_not):
        tasks = await begin(first, waits)
        again = await begin(waits)
        gate.set()
        await asyncio.wait([task for task in (*tasks, *again) if task is not None])
        gate.clear()
    assert ended == ["waited"] * 4


@pytest.mark.parametrize("library", ["asyncio", "anyio"])
async def test_its_deadline(begin: Begin, library: str) -> None:
    """A deadline that one sets in its first step ends its wait, and nothing else."""
    ended: list[str] = []

    async def run(_: object) -> None:
        if library == "anyio":
            with anyio.move_on_after(0):
                await anyio.sleep_forever()
        else:
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                pass
        ended.append("in time")

    tasks = await begin(run, run, run)
    await asyncio.gather(*tasks)
    assert ended == ["in time"] * 3


async def test_its_context(begin: Begin) -> None:
    """What one sets in its context is seen by itself, also after a wait, and by no other."""
    seen: list[int] = []

    def setter(value: int, *, waits: bool) -> Callable[[object], Any]:
        async def run(_: object) -> None:
            seen.append(number.get())
            number.set(value)
            if waits:
                await asyncio.sleep(0)
                assert number.get() == value

        return run

    tasks = await begin(setter(1, waits=False), setter(2, waits=True), setter(3, waits=True), setter(4, waits=False))
    tasks += await begin(setter(5, waits=False))
    await asyncio.gather(*(task for task in tasks if task is not None))
    assert seen == [0] * 5
    assert number.get() == 0


async def test_its_traces(begin: Begin) -> None:
    """A task on which one that never waited has left something is nobody else's: whoever kept it has the right one."""
    kept: list[Any] = []
    called: list[str] = []

    async def keeps(_: object) -> None:
        kept.append(asyncio.current_task())

    async def keeps_weakly(_: object) -> None:
        kept.append(weakref.ref(asyncio.current_task()))

    async def is_called_back(_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: called.append("done"))

    others: list[Any] = []

    async def other(_: object) -> None:
        others.append(id(asyncio.current_task()))
        await asyncio.sleep(0)

    for trace in (keeps, keeps_weakly, is_called_back):
        tasks = await begin(trace, other)
        tasks += await begin(other)
        await asyncio.gather(*(task for task in tasks if task is not None))
    assert id(kept[0]) not in others
    assert kept[1]() is None or id(kept[1]()) not in others
    await asyncio.sleep(0)
    assert called == ["done"]
    assert kept[0].done()


async def test_what_it_raises_after_a_wait(begin: Begin) -> None:
    """What is raised into it where it waits, is raised there; its clean-up runs."""
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def run(_: object) -> None:
        try:
            await failing
        except LookupError as exc:
            seen.append(str(exc))
            await asyncio.sleep(0)
        finally:
            seen.append("cleaned up")

    (task,) = await begin(run)
    failing.set_exception(LookupError("no such thing"))
    await task
    assert seen == ["no such thing", "cleaned up"]


async def test_nothing_is_kept(begin: Begin) -> None:
    """Nothing holds on to what has ended."""

    class Thing:
        pass

    things: list[weakref.ref[Thing]] = []

    def with_thing(*, waits: bool) -> Callable[[object], Any]:
        async def run(_: object) -> None:
            thing = Thing()
            things.append(weakref.ref(thing))
            if waits:
                await asyncio.sleep(0)

        return run

    tasks = await begin(with_thing(waits=False), with_thing(waits=True))
    await asyncio.gather(*(task for task in tasks if task is not None))
    del tasks
    await begin(_nothing)
    gc.collect()
    assert [thing() for thing in things] == [None, None]


async def test_it_starts_another() -> None:
    """What one starts in its first step has a task of its own, be it that it waits or that the first one does."""
    seen: list[tuple[str, object]] = []
    async with open_loop() as loop:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        tasks: list[Any] = []

        async def inner(_: object) -> None:
            seen.append(("inner", asyncio.current_task()))
            await asyncio.sleep(0)
            seen.append(("inner", asyncio.current_task()))

        async def outer(_: object) -> None:
            seen.append(("outer", asyncio.current_task()))
            tasks.append(loop.start(inner, None))
            seen.append(("outer", asyncio.current_task()))
            await asyncio.sleep(0)
            seen.append(("outer", asyncio.current_task()))

        def readable() -> bool:
            ours.recv(1)
            tasks.append(loop.start(outer, None))
            return False

        with ours, theirs:
            for _ in range(3):
                theirs.send(b"x")
                await loop.pump(ours, readable)
                await asyncio.gather(*tasks)
                assert len({task for name, task in seen if name == "inner"}) == 1
                assert len({task for name, task in seen if name == "outer"}) == 1
                assert len({task for _, task in seen}) == 2
                seen.clear()
                tasks.clear()


async def test_a_task_factory_is_asked() -> None:
    """Where the program has a task factory of its own, it makes the tasks."""
    made: list[str] = []
    running = asyncio.get_running_loop()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__.rpartition(".")[2])
        return asyncio.Task(coroutine, loop=loop, **options)

    running.set_task_factory(factory)
    try:
        async with open_loop() as loop:
            task: Any = loop.start(_nothing, None)
            await task
    finally:
        running.set_task_factory(None)
    assert made == ["_nothing"]

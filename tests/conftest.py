"""What every test shares: the three event loops, and the check that nothing is left behind.

Lives here: fixtures and pytest hooks. Must not: anything of a single room, that is its own test module's.

An async test carries `pytest.mark.anyio` (asyncio, uvloop and trio) or `pytest.mark.asyncio` (pytest-asyncio, asyncio
and uvloop), never both. An async fixture names `anyio_backend` among its arguments.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import anyio
import hypothesis
import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

#: How long a thread, child or task may take to end after its test. Nothing waits that long unless it leaks.
SETTLE_TIMEOUT = 5.0


# --- the event loops -------------------------------------------------------------------------------------------------


def _loop_factories() -> dict[str, LoopFactory]:
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
        uvloop.new_event_loop().close()  # the first one opens a pipe for signals that the process keeps
    return factories


LOOP_FACTORIES = _loop_factories()


def _anyio_param(name: str) -> Any:
    """One of the three loops as a parameter, or its skip with the reason."""
    if importlib.util.find_spec(name) is None:
        return pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name} is not installed"))
    backend = ("trio", {}) if name == "trio" else ("asyncio", {"loop_factory": LOOP_FACTORIES[name]})
    return pytest.param(backend, id=name)


@pytest.fixture(scope="module", params=[_anyio_param(name) for name in ("asyncio", "uvloop", "trio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The loop a test marked `anyio` runs on: each of the three in turn."""
    return request.param


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """The loops a test marked `asyncio` runs on: the same two as above."""
    return LOOP_FACTORIES


# Time is no property of the code: a slow machine must not fail a test that holds.
hypothesis.settings.register_profile(
    "aserver", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("aserver")


# --- nothing is left behind ------------------------------------------------------------------------------------------

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure: its traceback keeps sockets alive, which would be reported as a second fault."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


def _open_descriptors() -> dict[int, str]:
    """The open descriptors of this process, each with what it is open on."""
    folder = next((f for f in ("/proc/self/fd", "/dev/fd") if os.path.isdir(f)), None)
    if folder is None:  # Windows: no such list
        return {}
    found = {}
    # multiprocessing opens these two once per process and keeps them
    kept = {
        getattr(getattr(resource_tracker, "_resource_tracker", None), "_fd", None),
        getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None),
    }
    for name in os.listdir(folder):
        fd = int(name)
        try:
            os.fstat(fd)
            target = os.readlink(f"{folder}/{name}") if folder == "/proc/self/fd" else "?"
        except OSError:  # the descriptor of the listing itself
            continue
        if fd not in kept:
            found[fd] = target
    return found


def _children() -> dict[int, str]:
    """The child processes, zombies included, each with its command line."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    pids: set[int] = set()
    if not lists:  # not Linux: those that multiprocessing knows
        pids = {child.pid for child in multiprocessing.active_children() if child.pid is not None}
    for file in lists:
        try:
            pids.update(map(int, file.read_text().split()))
        except OSError:  # the thread has ended meanwhile
            continue
    found = {}
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            line = ""
        # multiprocessing starts these two once per process and keeps them
        if "multiprocessing.resource_tracker" not in line and "multiprocessing.forkserver" not in line:
            found[pid] = line or "(no command line: a zombie?)"
    return found


def _threads() -> dict[threading.Thread, str]:
    """The threads of this process, without those that others keep on purpose."""
    return {
        thread: thread.name
        for thread in threading.enumerate()
        # trio keeps idle workers for 10 s for the next user; "Dummy-…" is a thread that Python has merely met
        if not thread.name.startswith(("Trio thread ", "Dummy-"))
    }


@dataclass(frozen=True)
class Resources:
    """What this process holds at one moment."""

    descriptors: dict[int, str]
    threads: dict[threading.Thread, str]
    children: dict[int, str]

    @classmethod
    def now(cls) -> Resources:
        """Take stock. Threads first: a thread that is about to end may still be closing its descriptors."""
        return cls(threads=_threads(), children=_children(), descriptors=_open_descriptors())

    def beyond(self, before: Resources) -> list[str]:
        """What is here now and was not before, one line each."""
        lines = [f"thread {name!r}" for thread, name in self.threads.items() if thread not in before.threads]
        lines += [f"child {pid}: {line}" for pid, line in self.children.items() if pid not in before.children]
        lines += [
            f"descriptor {fd}: {target}"
            for fd, target in self.descriptors.items()
            if before.descriptors.get(fd) != target
        ]
        return lines


def leftovers(before: Resources, timeout: float = SETTLE_TIMEOUT) -> list[str]:
    """What is left since `before`, after garbage collection and a bounded wait for what is still ending."""
    if not (left := Resources.now().beyond(before)):
        return left
    gc.collect()
    deadline = time.monotonic() + timeout
    while (left := Resources.now().beyond(before)) and time.monotonic() < deadline:
        for thread in threading.enumerate():
            if thread not in before.threads and thread is not threading.current_thread():
                thread.join(0.01)
                break
        else:
            time.sleep(0.01)  # nobody tells when a child or a descriptor is gone: look again, until the deadline
    return left


class _LoopErrors(logging.Handler):
    """Collects what asyncio only logs: callbacks that raised, task exceptions that nobody retrieved."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append("asyncio logged: " + self.format(record))


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: descriptors, threads and children are back to the start, and asyncio logged no error.

    Set up before every other fixture of a test and torn down after them, so that the test's loop is not there yet and
    is gone again; what module and session fixtures hold is here before and after.
    """
    before = Resources.now()
    errors = _LoopErrors()
    log = logging.getLogger("asyncio")
    log.addHandler(errors)
    try:
        yield
        if request.node.stash.get(_failed, False):
            return
        left = leftovers(before)  # first, for it collects garbage: a lost task logs when it is collected
        if left or errors.lines:
            pytest.fail("left behind by this test:\n  " + "\n  ".join(left + errors.lines), pytrace=False)
    finally:
        log.removeHandler(errors)


def _task_names() -> dict[int, str]:
    me = anyio.get_current_task().id
    return {
        task.id: task.name or "(no name)"
        for task in anyio.get_running_tasks()
        # a step of a fixture runs in a short-lived task of anyio's own test runner
        if task.id != me and not getattr(task.coro, "__qualname__", "").startswith("TestRunner.")
    }


@pytest.fixture
async def _tasks_come_back(anyio_backend: Any) -> AsyncIterator[None]:
    """Compare the tasks of the test's loop before and after, in the loop itself."""
    before = _task_names()
    yield
    with anyio.move_on_after(SETTLE_TIMEOUT):
        while _task_names().keys() - before.keys():  # noqa: ASYNC110 - a foreign task tells nobody when it ends
            await anyio.sleep(0.001)
    left = [name for task, name in _task_names().items() if task not in before]
    if left:
        pytest.fail("tasks left behind by this test:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _no_task_left_behind(request: pytest.FixtureRequest, _nothing_left_behind: None) -> None:
    """After each test marked `anyio`: the tasks are back to the start.

    Asked for by name, so that tests without a loop do not get one; after `_nothing_left_behind`, so that the loop is
    closed before descriptors are counted.
    """
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("_tasks_come_back")


# --- the log ---------------------------------------------------------------------------------------------------------


class LogBook(logging.Handler):
    """The records of one logger. A warning or worse that the test does not take is a failure at its end."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()  # a message that does not fit its arguments fails here, at the call
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        """Level and message of each record, in order: `WARNING: no more descriptors`."""
        return [f"{record.levelname}: {record.getMessage()}" for record in self.records]

    def take(self, text: str) -> logging.LogRecord:
        """Remove and return the first record whose level and message contain `text`."""
        for record, line in zip(self.records, self.lines, strict=True):
            if text in line:
                self.records.remove(record)
                return record
        raise AssertionError(f"no record with {text!r} among {self.lines}")


@pytest.fixture
def aserver_log() -> Iterator[LogBook]:
    """The records of the logger "aserver"; at the end none of level WARNING or above may be left untaken."""
    book = LogBook()
    log = logging.getLogger("aserver")
    level = log.level
    log.addHandler(book)
    log.setLevel(logging.DEBUG)
    try:
        yield book
    finally:
        log.removeHandler(book)
        log.setLevel(level)
    loud = [line for record, line in zip(book.records, book.lines, strict=True) if record.levelno >= logging.WARNING]
    assert not loud, f"logged and not expected by this test: {loud}"

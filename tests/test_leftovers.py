"""The check that runs after every test finds what is left behind: it is itself able to fail."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading

import pytest

from tests.conftest import LogBook, Resources, leftovers

needs_list = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd") and not os.path.isdir("/dev/fd"), reason="no list of open descriptors here"
)
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of children here")


def test_nothing_is_nothing() -> None:
    """Where nothing was left there is nothing to report, and no wait."""
    assert leftovers(Resources.now(), timeout=0) == []


@needs_list
def test_open_socket_is_found() -> None:
    """A socket that is still open is named by its descriptor; once closed it is not."""
    before = Resources.now()
    with socket.socket() as sock:
        (line,) = leftovers(before, timeout=0)
        assert line.startswith(f"descriptor {sock.fileno()}: ")
    assert leftovers(before, timeout=0) == []


def test_running_thread_is_found() -> None:
    """A thread that still runs is named; one that ends within the time is waited for."""
    before = Resources.now()
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="straggler")
    thread.start()
    try:
        assert leftovers(before, timeout=0) == ["thread 'straggler'"]
    finally:
        go.set()
    assert leftovers(before) == []


@needs_proc
def test_child_is_found_until_it_is_reaped() -> None:
    """A child process is reported, also as a zombie, until somebody has waited for it."""
    before = Resources.now()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert any(line.startswith(f"child {child.pid}: ") for line in leftovers(before, timeout=0))
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
        assert any(line.startswith(f"child {child.pid}: ") for line in leftovers(before, timeout=0))
    assert leftovers(before, timeout=0) == []


def test_log_book_gives_what_was_logged(aserver_log: LogBook) -> None:
    """`aserver_log` holds the records of "aserver" and of loggers below it; a taken one is gone."""
    logging.getLogger("aserver").warning("no more %s", "descriptors")
    logging.getLogger("aserver.deep").debug("fine")
    assert aserver_log.lines == ["WARNING: no more descriptors", "DEBUG: fine"]
    assert aserver_log.take("no more").levelno == logging.WARNING
    with pytest.raises(AssertionError, match="no record with 'no more'"):
        aserver_log.take("no more")

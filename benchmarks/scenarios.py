"""What is done to a contender, and what is read off it: one function and one entry of the table per scenario.

A scenario gets a freshly started `ServerProcess` and a number of requests and gives one `Sample`. It never judges.
"""

import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks import datagram_client
from benchmarks.client import check_silent, connected, exchange, visit
from benchmarks.flood import Accounts
from benchmarks.process import ServerProcess
from benchmarks.roster import Service

__all__ = ["SCENARIOS", "Sample", "Scenario"]

CONNECTIONS = 50
WINDOW = 5  # connections under way at once: what fits the stdlib's default backlog, beyond which a SYN waits a second
WARM_UP = 0.1  # of a round's requests, before the meters are read; CPython 3.11 specialises code within dozens of calls
SPARE_DESCRIPTORS = 64  # kept free on both sides when connections are held
UDP_CLIENTS = 20
OVERLOAD_PACE = 20_000  # a second: ten times what handlers of 10 ms do if each of the 20 peers is served in turn
UDP_BURSTERS = 8  # with 16 in flight each: what fits a UDP socket's default buffer of 208 KB, at 0.8-1.3 KB a datagram


@dataclass(frozen=True)
class Sample:
    """One round's figure, requests per second beside it, and what else is worth a column."""

    value: float
    rate: float
    extra: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    """A scenario, its sizes and its rounds."""

    name: str
    label: str
    title: str
    unit: str
    run: Callable[[ServerProcess, int], Sample]
    full: int
    quick: int
    rounds: int = 5
    quick_rounds: int = 3
    serves: Service = "tcp"


def _metered(server: ServerProcess, requests: int, work: Callable[[], None]) -> Sample:
    """CPU microseconds per request that `work`, which makes `requests` of them, costs the server."""
    before, noise, began = server.settled_cpu(), server.stderr_bytes(), time.perf_counter()
    work()
    wall = time.perf_counter() - began
    cpu = server.settled_cpu() - before
    return Sample(cpu * 1e6 / requests, requests / wall, {"stderr B/req": (server.stderr_bytes() - noise) / requests})


def _echo(server: ServerProcess, requests: int, depth: int) -> Sample:
    blocks = requests // depth
    with connected(server.port, CONNECTIONS, depth) as connections:
        exchange(connections, max(CONNECTIONS, int(blocks * WARM_UP)))
        return _metered(server, blocks * depth, partial(exchange, connections, blocks))


def _connect(server: ServerProcess, requests: int, *, reset: bool) -> Sample:
    count, note = _asked(server, requests)
    work = partial(visit, server.port, window=WINDOW, reset=reset)
    work(int(count * WARM_UP))
    return replace(_metered(server, count, partial(work, count)), note=note)


def _asked(server: ServerProcess, requests: int) -> tuple[int, str]:
    """How many connections this contender is asked for, and the remark if that is not all."""
    count = int(requests * server.contender.share)
    return count, f"asked for {count} of {requests} a round" if count < requests else ""


def _idle(server: ServerProcess, wanted: int) -> Sample:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
    count = min(wanted, server.contender.holds, limit)
    note = f"held {count} of {wanted}: " if count < wanted else ""
    if note:
        note += "RLIMIT_NOFILE" if count == limit else "what it is asked to hold at most"
    visit(server.port, CONNECTIONS, window=WINDOW)
    server.settled_cpu()
    before, began = server.memory(), time.perf_counter()
    held: list[socket.socket] = []
    try:
        visit(server.port, count, window=WINDOW, keep=held)
        wall = time.perf_counter() - began
        server.settled_cpu()
        grown = server.memory() - before
        check_silent(held)
        return Sample(grown / 1024 / count, count / wall, {"held": count, "threads": server.threads()}, note)
    finally:
        for sock in held:
            sock.close()


def _churn(server: ServerProcess, requests: int) -> Sample:
    count, note = _asked(server, requests)
    visit(server.port, int(count * WARM_UP))
    server.settled_cpu()
    before, descriptors, threads = server.memory(), server.descriptors(), server.threads()
    sample = _metered(server, count, partial(visit, server.port, count))
    extra = {
        "CPU us": sample.value,
        "fds before": descriptors,
        "fds after": server.descriptors(),
        "threads before": threads,
        "threads after": server.threads(),
    }
    return Sample((server.memory() - before) / 1024, sample.rate, extra, note)


def _datagrams(server: ServerProcess, requests: int, *, clients: int, depth: int) -> Sample:
    bursts = requests // depth
    with datagram_client.clients(server.port, clients, depth) as talking:
        datagram_client.exchange(talking, max(clients, int(bursts * WARM_UP)))
        before = sum(client.resent for client in talking)
        sample = _metered(server, bursts * depth, partial(datagram_client.exchange, talking, bursts))
        resent = sum(client.resent for client in talking) - before
        return replace(sample, extra=sample.extra | {"resent": resent})


def _flood(server: ServerProcess, count: int, *, pace: float | None) -> Sample:
    with ExitStack() as stack:
        asker, *flooders = (
            stack.enter_context(datagram_client.connected_socket(server.port)) for _ in range(UDP_CLIENTS + 1)
        )
        accounts = Accounts(server, asker)
        accounts.settle()  # the first question, so that what a first datagram imports is not taken for growth
        server.settled_cpu()
        resident, before, began = server.memory(), server.forget_peak(), time.perf_counter()
        datagram_client.flood(flooders, count, pace)
        wall = time.perf_counter() - began
        accounts.sent += count
        settled = accounts.settle()
        if settled:
            accounts.check()
        extra = {"KB after": (server.memory() - resident) / 1024, **accounts.shown()}
        note = "" if settled else "still at work when it was last asked"
        return Sample((server.peak_memory() - before) / 1024, count / wall, extra, note)


CPU = "CPU µs per request"
PEAK = "resident KB grown, at the peak"

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "echo50",
            "line echo 50",
            "64-byte lines over 50 kept connections, one request in flight on each",
            CPU,
            partial(_echo, depth=1),
            full=40_000,
            quick=15_000,
        ),
        Scenario(
            "pipelined16",
            "16 pipelined",
            "the same with 16 lines in one write; the figure is per line",
            CPU,
            partial(_echo, depth=16),
            full=160_000,
            quick=32_000,
        ),
        Scenario(
            "connect",
            "connect and close",
            "connect, one line, its answer, close by the client; 5 at a time",
            CPU,
            partial(_connect, reset=False),
            full=8_000,
            quick=2_000,
        ),
        Scenario(
            "reset",
            "connect and reset",
            "the same, but the client resets the connection instead of closing it",
            CPU,
            partial(_connect, reset=True),
            full=8_000,
            quick=1_000,
            quick_rounds=2,
        ),
        Scenario(
            "idle",
            "idle connection",
            "connections that have exchanged one line and are silent",
            "resident KB per connection",
            _idle,
            full=10_000,
            quick=2_000,
            rounds=1,
            quick_rounds=1,
        ),
        Scenario(
            "churn20k",
            "20 000 connections",
            "20 000 connections one after the other (2 000 with --quick), after a tenth of that to warm up",
            "resident KB grown",
            _churn,
            full=20_000,
            quick=2_000,
            rounds=1,
            quick_rounds=1,
        ),
        Scenario(
            "udp-echo",
            "udp echo 20",
            "64-byte datagrams from 20 sockets, one in flight from each",
            CPU,
            partial(_datagrams, clients=UDP_CLIENTS, depth=1),
            full=40_000,
            quick=10_000,
            serves="udp",
        ),
        Scenario(
            "udp-burst",
            "udp 16 in flight",
            "the same from 8 sockets, 16 in flight from each; the figure is per datagram",
            CPU,
            partial(_datagrams, clients=UDP_BURSTERS, depth=16),
            full=80_000,
            quick=16_000,
            serves="udp",
        ),
        Scenario(
            "udp-flood",
            "udp flood",
            "1 KB datagrams from 20 sockets, as fast as they can be sent, to a handler that takes 10 ms",
            PEAK,
            partial(_flood, pace=None),
            full=100_000,
            quick=20_000,
            rounds=1,
            quick_rounds=1,
            serves="slow udp",
        ),
        Scenario(
            "udp-overload",
            "udp overload",
            "the same at 20 000 a second, so that little is dropped by the kernel and the rest is up to the server",
            PEAK,
            partial(_flood, pace=OVERLOAD_PACE),
            full=100_000,
            quick=20_000,
            rounds=1,
            quick_rounds=1,
            serves="slow udp",
        ),
    )
}

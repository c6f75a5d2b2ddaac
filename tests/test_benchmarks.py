"""The benchmarks as an instrument: the roster fits the scenarios, and the load in datagrams sees loss and lies.

No figure is judged here, and the servers are the standard library's: what is tested is the instrument, not a contender.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

# The suite of an installed package runs without the benchmarks; their meters read /proc.
pytest.importorskip("benchmarks", reason="only in a checkout")
if sys.platform != "linux":
    pytest.skip("the benchmarks need Linux", allow_module_level=True)

from benchmarks import datagram_client
from benchmarks.client import BadAnswer
from benchmarks.measure import run_scenario
from benchmarks.pairs import PAIRS
from benchmarks.roster import CONTENDERS
from benchmarks.scenarios import SCENARIOS

#: What a server under test does with the datagram of this number: the answer, or None for none.
Answering = Callable[[int, bytes], bytes | None]


@contextmanager
def udp_server(answering: Answering) -> Iterator[int]:
    """A blocking socket in a thread; gives its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

        def serve() -> None:
            number = 0
            while (received := sock.recvfrom(2048))[0] != b"end":
                data, peer = received
                if (answer := answering(number, data)) is not None:
                    sock.sendto(answer, peer)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", address)
            thread.join()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is soon asked for again."""
    monkeypatch.setattr(datagram_client, "PATIENCE", 0.05)


def test_the_pairs_name_contenders_that_serve_what_their_scenario_asks_for() -> None:
    """A bar that can never be measured would always seem kept."""
    for pair in PAIRS:
        service = SCENARIOS[pair.scenario].serves
        assert {CONTENDERS[name].serves for name in (pair.left, pair.right) if name} == {service}, pair


def test_lost_answers_are_asked_for_again_and_counted() -> None:
    """An exchange survives a loss and says how many there were."""
    with udp_server(lambda number, data: None if number in (5, 9) else data) as port:
        with datagram_client.clients(port, 4, depth=2) as clients:
            datagram_client.exchange(clients, 50)
            assert sum(client.resent for client in clients) >= 2


def test_a_wrong_answer_is_an_error() -> None:
    """Every answer is checked."""
    with udp_server(lambda number, data: data[::-1] if number == 7 else data) as port:
        with pytest.raises(BadAnswer, match="answer should be"), datagram_client.clients(port, 2) as clients:
            datagram_client.exchange(clients, 50)


def test_an_answer_nobody_asked_for_is_an_error() -> None:
    """Neither during the exchange nor after it does a server get away with a second answer."""
    with udp_server(lambda number, data: data) as port:
        with datagram_client.clients(port, 1) as (client,):
            datagram_client.exchange([client], 3)
            with pytest.raises(BadAnswer, match="received b'0 1 0"):
                client.check_surplus(b"0 1 0".ljust(64, b"."))


def test_a_silent_server_is_an_error_soon() -> None:
    """Loss never makes the load wait for ever."""
    with udp_server(lambda number, data: None) as port:
        with pytest.raises(BadAnswer, match="sent again"), datagram_client.clients(port, 3) as clients:
            datagram_client.exchange(clients, 10)


@pytest.mark.parametrize(
    "scenario, contender, size",
    [
        ("udp-echo", "socketserver-udp", 200),
        ("udp-burst", "asyncio-udp-asyncio", 320),
        ("udp-flood", "asyncio-flood-asyncio", 500),
        ("udp-overload", "socketserver-flood-threading", 50),
    ],
)
def test_a_round(scenario: str, contender: str, size: int) -> None:
    """One small round of each UDP scenario gives a figure, and the flood's accounts have nothing left over."""
    (result,) = run_scenario(SCENARIOS[scenario], [CONTENDERS[contender]], size=size, rounds=1, core=None)
    assert not result.error
    assert result.samples[0].extra.get("unaccounted", 0) == 0

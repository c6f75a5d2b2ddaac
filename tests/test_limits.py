"""The promises of `aserver._limits`: what may be configured, who is let in, how failures are paced."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aserver._limits import (
    BACKOFF_FIRST,
    BACKOFF_LAST,
    MAX_CONNECTIONS,
    MAX_EXACT_SIZE,
    MAX_LINE_SIZE,
    SHED_AFTER,
    Backoff,
    Gate,
    Limits,
    OncePer,
    Sessions,
    connection_capacity,
    peer_key,
)

WHOLE_NUMBERS = ["max_connections", "max_connections_per_peer", "max_line_size", "max_exact_size"]
HERE = ("127.0.0.1", 1)
THERE = ("127.0.0.2", 1)


# --- Limits ----------------------------------------------------------------------------------------------------------


def test_every_bound_is_on_by_default() -> None:
    """Limits() bounds everything but the connections of one peer, which may stand for many clients."""
    limits = Limits()
    assert (limits.max_line_size, limits.max_exact_size) == (MAX_LINE_SIZE, MAX_EXACT_SIZE) == (65536, 16777216)
    assert limits.shed_after == SHED_AFTER == 5.0
    assert limits.max_connections is None  # computed from the descriptor limit
    assert limits.max_connections_per_peer is None


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
@pytest.mark.parametrize("value, right", [(-1, False), (0, False), (1, True), (2, True)])
def test_whole_numbers(name: str, value: int, right: bool) -> None:
    """Each count and size is at least one; what is wrong, and how, is in the text."""
    if right:
        assert getattr(Limits(**{name: value}), name) == value
    else:
        with pytest.raises(ValueError, match=f"^{name} is {value}; it must be at least 1$"):
            Limits(**{name: value})


@pytest.mark.parametrize("value, right", [(-0.001, False), (-1, False), (0, True), (0.001, True), (5, True)])
def test_shed_after(value: float, right: bool) -> None:
    """shed_after is any number of seconds from 0 on."""
    if right:
        assert Limits(shed_after=value).shed_after == value
    else:
        with pytest.raises(ValueError, match=f"^shed_after is {value}; it must be at least 0$"):
            Limits(shed_after=value)


def test_not_a_number_of_seconds() -> None:
    """NaN, which is neither early nor late, is refused."""
    with pytest.raises(ValueError, match="shed_after is nan"):
        Limits(shed_after=float("nan"))


@pytest.mark.parametrize("name", [*WHOLE_NUMBERS, "shed_after"])
@pytest.mark.parametrize("value", ["10", True, b"1", [1]])
def test_no_numbers(name: str, value: Any) -> None:
    """A text, a truth value or anything else that is no number is a TypeError that names the field and the value."""
    with pytest.raises(TypeError) as caught:
        Limits(**{name: value})
    assert (
        str(caught.value) == f"{name} is {value!r}; it must be {'an integer' if name in WHOLE_NUMBERS else 'a number'}"
    )


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_fractions(name: str) -> None:
    """Half a connection or half a byte is refused."""
    with pytest.raises(TypeError, match=f"^{name} is 1.5; it must be an integer$"):
        Limits(**{name: 1.5})  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("name", ["max_connections", "max_connections_per_peer", "shed_after"])
def test_none_where_it_means_something(name: str) -> None:
    """None is computed, unbounded, or never, for the fields that document it."""
    assert getattr(Limits(**{name: None}), name) is None  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("name", ["max_line_size", "max_exact_size"])
def test_none_where_it_would_be_unbounded(name: str) -> None:
    """None is refused for the sizes: nothing unbounded is ever collected."""
    with pytest.raises(TypeError, match=f"^{name} is None; it must be an integer$"):
        Limits(**{name: None})  # type: ignore[arg-type]  # that is the point


def test_limits_are_values() -> None:
    """Limits are frozen, compared by value, and keyword-only."""
    limits = Limits(max_connections=3)
    assert limits == Limits(max_connections=3) != Limits()
    assert hash(limits) == hash(Limits(max_connections=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.max_connections = 4  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        Limits(3)  # type: ignore[call-arg]  # that is the point


def test_every_field_explains_itself() -> None:
    """Each field has the one line of help that the command line is generated from."""
    for each in dataclasses.fields(Limits):
        assert each.metadata["help"].strip(), each.name


# --- datagrams -------------------------------------------------------------------------------------------------------

DATAGRAM_NUMBERS = ["max_in_flight", "max_in_flight_size", "max_datagram_size"]
SESSION_NUMBERS = ["max_sessions", "max_queued", "max_queued_size"]
OF_DATAGRAMS = [(Limits, name) for name in DATAGRAM_NUMBERS] + [(Sessions, name) for name in SESSION_NUMBERS]


def test_defaults_of_datagrams() -> None:
    """By default all is bounded but the size of replies, and no datagram that UDP can carry is refused."""
    limits, sessions = Limits(), Sessions()
    assert (limits.max_in_flight, limits.max_in_flight_size, limits.max_datagram_size) == (1024, 4 * 2**20, 65_535)
    assert limits.max_amplification is None
    assert (sessions.max_sessions, sessions.max_queued, sessions.max_queued_size) == (10_000, 64, 16 * 2**20)
    assert sessions.idle_timeout == 120.0


@pytest.mark.parametrize("group, name", OF_DATAGRAMS)
@pytest.mark.parametrize("value, right", [(-1, False), (0, False), (1, True), (2, True)])
def test_whole_numbers_of_datagrams(group: Any, name: str, value: int, right: bool) -> None:
    """Each count and size is at least one; what is wrong, and how, is in the text."""
    if right:
        assert getattr(group(**{name: value}), name) == value
    else:
        with pytest.raises(ValueError, match=f"^{name} is {value}; it must be at least 1$"):
            group(**{name: value})


@pytest.mark.parametrize("group, name", OF_DATAGRAMS)
@pytest.mark.parametrize("value", ["10", True, None, 1.5, [1]])
def test_no_whole_numbers_of_datagrams(group: Any, name: str, value: Any) -> None:
    """A text, a truth value, a fraction, or None where that would be unbounded, is a TypeError."""
    with pytest.raises(TypeError) as caught:
        group(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}; it must be an integer"


@pytest.mark.parametrize("value, right", [(-1, False), (0.5, False), (1, True), (1.5, True), (3, True), (None, True)])
def test_max_amplification(value: float | None, right: bool) -> None:
    """max_amplification is any number from 1 on, or None."""
    if right:
        assert Limits(max_amplification=value).max_amplification == value
    else:
        with pytest.raises(ValueError, match=f"^max_amplification is {value}; it must be at least 1$"):
            Limits(max_amplification=value)


@pytest.mark.parametrize("value, right", [(-0.1, False), (float("nan"), False), (0.1, True), (5, True), (None, True)])
def test_idle_timeout(value: float | None, right: bool) -> None:
    """idle_timeout is a number of seconds, or None."""
    if right:
        assert Sessions(idle_timeout=value).idle_timeout == value
    else:
        with pytest.raises(ValueError, match=f"^idle_timeout is {value}; it must be "):
            Sessions(idle_timeout=value)


def test_sessions_are_values() -> None:
    """Sessions are frozen, compared by value, and keyword-only; each field has a line of help."""
    sessions = Sessions(max_queued=3)
    assert sessions == Sessions(max_queued=3) != Sessions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sessions.max_queued = 4  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        Sessions(3)  # type: ignore[call-arg]  # that is the point
    assert all(each.metadata["help"].strip() for each in dataclasses.fields(Sessions))


# --- connection_capacity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "descriptors, capacity",
    [
        (1, 1),
        (2, 1),
        (64, 32),
        (144, 72),  # from here on nine tenths of what is above 64 are more than a half
        (145, 72),
        (164, 90),
        (256, 172),
        (1024, 864),
        (11175, 9999),
        (11176, 10_000),
        (11177, 10_000),
        (1 << 20, 10_000),
    ],
)
def test_connection_capacity(descriptors: int, capacity: int) -> None:
    """Nine tenths of what the program leaves, half where that is next to nothing, ten thousand at most."""
    assert connection_capacity(descriptors) == capacity


@given(st.integers(1, 1 << 40))
def test_connection_capacity_leaves_room(descriptors: int) -> None:
    """There is always a server, and from two descriptors on it never takes them all."""
    capacity = connection_capacity(descriptors)
    assert 1 <= capacity <= min(MAX_CONNECTIONS, max(1, descriptors - 1))


# --- peer_key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address, key",
    [
        (("192.0.2.1", 5000), "192.0.2.1"),
        (("192.0.2.1", 5001), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::", 5000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:3::1", 5000, 0, 0), "2001:db8:1:3::/64"),
        (("::1", 5000, 0, 0), "::/64"),
        (("::ffff:192.0.2.1", 5000, 0, 0), "192.0.2.1"),
        (("::FFFF:c000:201", 5000, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 5000, 0, 2), "fe80::/64"),
        (("fe80::2%3", 5000, 0, 3), "fe80::/64"),
        ("", None),
        ("/run/client.sock", None),
        (b"\0abstract", None),
        (None, None),
    ],
)
def test_peer_key(address: Any, key: str | None) -> None:
    """A peer is its IPv4 address, also mapped into IPv6, or its IPv6 /64; Unix peers are nobody."""
    assert peer_key(address) == key


# --- Gate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside, is_open", [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_gate_capacity(inside: int, is_open: bool) -> None:
    """The gate is open as long as fewer than its capacity are inside; who has been accepted is let in regardless."""
    gate = Gate(3, None)
    for _ in range(inside):
        assert gate.enter(HERE)
    assert gate.inside == inside
    assert gate.open is is_open


def test_gate_opens_when_somebody_leaves() -> None:
    """leave() says when the one who leaves makes room for somebody who may be waiting, and only then."""
    gate = Gate(2, None)
    for _ in range(3):
        gate.enter(HERE)
    assert gate.leave(HERE) is False  # two are still inside
    assert not gate.open
    assert gate.leave(HERE) is True
    assert gate.open
    assert gate.leave(HERE) is False
    assert gate.inside == 0


def test_suspended_gate() -> None:
    """A suspended gate is closed however few are inside, and open again afterwards."""
    gate = Gate(2, None)
    gate.suspended = True
    assert not gate.open
    gate.suspended = False
    assert gate.open


@pytest.mark.parametrize("count, last", [(1, True), (2, True), (3, False)])
def test_per_peer_cap(count: int, last: bool) -> None:
    """A peer gets as many permits as one may have, the next is refused and takes none; others are not affected."""
    gate = Gate(10, 2)
    entered = [gate.enter((HERE[0], port)) for port in range(count)]
    assert entered == [True] * (count - 1) + [last]
    assert gate.inside == sum(entered)
    assert gate.enter(THERE)
    gate.leave(HERE)
    assert gate.enter(HERE)


def test_per_peer_cap_counts_networks() -> None:
    """The addresses of one IPv6 /64 are one peer, an IPv4 address and its mapped form, too."""
    gate = Gate(10, 1)
    assert gate.enter(("2001:db8::1", 1, 0, 0))
    assert not gate.enter(("2001:db8::2", 1, 0, 0))
    assert gate.enter(("2001:db8:0:1::1", 1, 0, 0))
    assert gate.enter(("192.0.2.1", 1))
    assert not gate.enter(("::ffff:192.0.2.1", 1, 0, 0))
    gate.leave(("::ffff:192.0.2.1", 2, 0, 0))
    assert gate.enter(("192.0.2.1", 1))


def test_unix_peers_are_not_counted() -> None:
    """Unix sockets have no peer address: the cap does not apply to them."""
    gate = Gate(10, 1)
    assert [gate.enter("") for _ in range(5)] == [True] * 5
    assert gate.inside == 5
    for _ in range(5):
        gate.leave("")
    assert gate.inside == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_gate_like_a_list(steps: list[tuple[bool, int]]) -> None:
    """However peers come and go, who is inside and what the cap refuses is what a plain list says."""
    gate = Gate(5, 2)
    inside: list[int] = []
    for enters, peer in steps:
        address = (f"192.0.2.{peer}", 1)
        if enters:
            allowed = inside.count(peer) < 2
            assert gate.enter(address) is allowed
            if allowed:
                inside.append(peer)
        elif peer in inside:
            inside.remove(peer)
            assert gate.leave(address) is (len(inside) == 4)
        assert gate.inside == len(inside)
        assert gate.open is (len(inside) < 5)


# --- Backoff and OncePer ---------------------------------------------------------------------------------------------


def test_backoff() -> None:
    """Pauses double from 5 ms and stay at one second; after a success they begin again."""
    backoff = Backoff()
    pauses = [backoff.pause() for _ in range(12)]
    assert pauses[0] == BACKOFF_FIRST == 0.005
    assert pauses[:9] == [min(0.005 * 2**n, 1.0) for n in range(9)]
    assert pauses[-4:] == [BACKOFF_LAST] * 4 == [1.0] * 4
    backoff.reset()
    assert backoff.pause() == BACKOFF_FIRST
    assert backoff.pause() == 2 * BACKOFF_FIRST


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("elapsed, through", [(0.0, False), (0.999, False), (1.0, True), (1.001, True), (60.0, True)])
def test_once_per(elapsed: float, through: bool) -> None:
    """The first goes through, the next when the interval is over and not before; it says how many were held back."""
    clock = Clock()
    once = OncePer(1.0, clock)
    assert once() == 0
    clock.now = elapsed
    assert once() == (0 if through else None)
    clock.now = 100.0
    assert once() == (0 if through else 1)


def test_once_per_counts_what_it_held_back() -> None:
    """What was held back is told once, with the next that goes through; a clock at zero or below is a clock."""
    clock = Clock()
    clock.now = -5.0
    once = OncePer(1.0, clock)
    assert once() == 0
    assert [once() for _ in range(7)] == [None] * 7
    clock.now = -4.0
    assert once() == 7
    clock.now = -3.0
    assert once() == 0


def test_once_per_measures_from_the_last_that_went_through() -> None:
    """A steady stream gets through once an interval: being held back does not start the interval again."""
    clock = Clock()
    once = OncePer(1.0, clock)
    through = 0
    for step in range(100):
        clock.now = step * 0.25
        through += once() is not None
    assert through == 25

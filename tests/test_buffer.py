"""The promises of `aserver._buffer`: every byte comes out once and in order, however the bytes came in."""

from __future__ import annotations

import itertools

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aserver._buffer import ReceiveBuffer

#: Few different bytes, so that delimiters and parts of them are everywhere.
texts = st.text("ab\r\n", max_size=60).map(str.encode)
delimiters = st.sampled_from([b"\n", b"\r\n", b"a", b"ab", b"aab", b"\r\n\r\n", b"abab"])
ROOM = 1 << 20


def fed(*chunks: bytes) -> ReceiveBuffer:
    """A buffer that was given *chunks*, one after the other."""
    buffer = ReceiveBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """*data* in pieces, none of them empty."""
    places = sorted({place % (len(data) + 1) for place in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


class Model:
    """What a receive buffer is, told without a thought for speed."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, chunk: bytes) -> None:
        self.data += chunk

    def take(self, nbytes: int) -> bytes:
        taken, self.data = self.data[:nbytes], self.data[nbytes:]
        return taken

    def take_until(self, delimiter: bytes, limit: int) -> bytes | None:
        """As the buffer's; a message is too long as soon as nothing that may still come can make it fit."""
        head, found, _ = self.data.partition(delimiter)
        if found:
            if len(head) + len(delimiter) > limit:
                raise anyio.DelimiterNotFound(limit)
            return self.take(len(head) + len(delimiter))
        if len(self.data) >= limit:
            raise anyio.DelimiterNotFound(limit)
        return None


def test_new_buffer_is_empty() -> None:
    """A buffer that was never fed has nothing to give, and says so."""
    buffer = ReceiveBuffer()
    assert buffer.size == 0
    assert buffer.take(0) == buffer.take(10) == b""
    assert buffer.take_until(b"\n", 10) is None
    assert repr(buffer) == "<ReceiveBuffer size=0>"


def test_whole_messages() -> None:
    """Messages that came in one read come out one by one with their delimiters, and the rest stays."""
    buffer = fed(b"one\ntwo\n\nthr")
    assert [buffer.take_until(b"\n", ROOM) for _ in range(4)] == [b"one\n", b"two\n", b"\n", None]
    assert buffer.size == 3
    buffer.feed(b"ee\n")
    assert buffer.take_until(b"\n", ROOM) == b"three\n"
    assert buffer.size == 0


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"\r\n\r\n", b"abab"])
def test_byte_by_byte(delimiter: bytes) -> None:
    """A message that comes byte by byte comes out when its last byte is there, not before."""
    buffer = ReceiveBuffer()
    message = b"x\ra\rb" + delimiter
    for _ in range(3):
        for byte in message[:-1]:
            buffer.feed(bytes([byte]))
            assert buffer.take_until(delimiter, ROOM) is None
        buffer.feed(message[-1:])
        assert buffer.take_until(delimiter, ROOM) == message
        assert buffer.size == 0


@pytest.mark.parametrize("first", range(1, 6))
@pytest.mark.parametrize("second", range(1, 6))
@pytest.mark.parametrize("look", [False, True], ids=["unlooked", "looked"])
def test_delimiter_in_pieces(first: int, second: int, look: bool) -> None:
    """A delimiter of several bytes is found wherever reads cut it, also when somebody looked between the reads."""
    data = b"--ab--ab-\r\n.\r\nrest"
    chunks = cut(data, [8 + first, 8 + first + second])
    buffer = ReceiveBuffer()
    for chunk in chunks[:-1]:
        buffer.feed(chunk)
        if look:
            assert buffer.take_until(b"\r\n.\r\n", ROOM) is None or chunk is chunks[-2]
            if buffer.size == 4:
                break
    else:
        buffer.feed(chunks[-1])
    if buffer.size > 4:
        assert buffer.take_until(b"\r\n.\r\n", ROOM) == data[:-4]
    assert buffer.take(100) in (b"rest", b"")


@pytest.mark.parametrize("limit, fits", [(5, False), (6, True), (7, True)])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
def test_limit(limit: int, fits: bool, whole: bool) -> None:
    """A message of exactly the limit, delimiter included, comes out; one byte more is refused and stays."""
    buffer = fed(b"12345\nrest") if whole else fed(*cut(b"12345\nrest", list(range(10))))
    if fits:
        assert buffer.take_until(b"\n", limit) == b"12345\n"
        assert buffer.take(10) == b"rest"
    else:
        for _ in range(2):
            with pytest.raises(anyio.DelimiterNotFound, match=str(limit)):
                buffer.take_until(b"\n", limit)
        assert buffer.size == 10
        assert buffer.take(10) == b"12345\nrest"


@pytest.mark.parametrize("size, refused", [(9, False), (10, True), (11, True)])
@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n"])
def test_limit_without_a_delimiter(size: int, refused: bool, delimiter: bytes) -> None:
    """Bytes without a delimiter are refused once they fill the limit: no delimiter could make them fit any more."""
    buffer = fed(b"x" * size)
    if refused:
        with pytest.raises(anyio.DelimiterNotFound):
            buffer.take_until(delimiter, 10)
    else:
        assert buffer.take_until(delimiter, 10) is None
    buffer.feed(delimiter)
    assert buffer.take_until(delimiter, 100) == b"x" * size + delimiter


def test_limit_of_a_later_message() -> None:
    """The limit is that of the message, not of what is buffered before and behind it."""
    buffer = fed(b"12\n345\n6789\n", b"abcdefghijkl")
    assert [buffer.take_until(b"\n", 5) for _ in range(3)] == [b"12\n", b"345\n", b"6789\n"]
    with pytest.raises(anyio.DelimiterNotFound):
        buffer.take_until(b"\n", 5)
    assert buffer.take(100) == b"abcdefghijkl"


def test_delimiters_in_turn() -> None:
    """What was searched for one delimiter is searched again for another, and for the first one again."""
    buffer = fed(b"a;b", b"c\nd")
    assert buffer.take_until(b"--", ROOM) is None
    assert buffer.take_until(b"\n", ROOM) == b"a;bc\n"
    assert buffer.take_until(b"--", ROOM) is None
    buffer.feed(b"--e\n")
    assert buffer.take_until(b"\n", ROOM) == b"d--e\n"
    buffer.feed(b"f--\n")
    assert buffer.take_until(b"--", ROOM) == b"f--"
    assert buffer.take(1) == b"\n"


def test_take_after_a_search() -> None:
    """Bytes taken as a block are not part of the next message, however far the search had come."""
    buffer = fed(b"12345", b"678")
    assert buffer.take_until(b"\n", ROOM) is None
    assert buffer.take(6) == b"123456"
    buffer.feed(b"\n9\n")
    assert buffer.take_until(b"\n", ROOM) == b"78\n"
    assert buffer.take_until(b"\n", ROOM) == b"9\n"


@pytest.mark.parametrize("chunks", [(b"hello",), (b"he", b"llo"), tuple(bytes([byte]) for byte in b"hello")])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 6])
def test_take(chunks: tuple[bytes, ...], size: int) -> None:
    """take(n) gives n bytes, or all if they are fewer, as `bytes`; the rest stays."""
    buffer = fed(*chunks)
    taken = buffer.take(size)
    assert type(taken) is bytes
    assert taken == b"hello"[:size]
    assert buffer.size == max(0, 5 - size)
    assert buffer.take(100) == b"hello"[size:]


def test_what_is_given_out_does_not_change() -> None:
    """A message that was given out is its owner's: what comes later does not change it."""
    buffer = fed(b"ab", b"c\nd", b"e")
    message = buffer.take_until(b"\n", ROOM)
    buffer.feed(b"\nxyz")
    assert message == b"abc\n"
    assert type(message) is bytes
    assert buffer.take_until(b"\n", ROOM) == b"de\n"


def test_large_message_in_small_pieces() -> None:
    """A message of a megabyte in pieces of 100 bytes is searched once, not once for each piece."""
    buffer = ReceiveBuffer()
    for _ in range(10_000):
        buffer.feed(b"x" * 100)
        assert buffer.take_until(b"\n", 2 * ROOM) is None
    buffer.feed(b"\n")
    assert buffer.take_until(b"\n", 2 * ROOM) == b"x" * 1_000_000 + b"\n"


feeds = st.tuples(st.just("feed"), texts.filter(bool), st.just(0))
takes = st.tuples(st.just("take"), st.just(b""), st.integers(0, 30))
takes_until = st.tuples(st.just("take_until"), delimiters, st.integers(1, 40))


@given(st.lists(st.one_of(feeds, feeds, takes, takes_until, takes_until), max_size=40))
@example([("feed", b"a\r", 0), ("take_until", b"\r\n", 40), ("take", b"", 1), ("feed", b"\n", 0)])
def test_like_the_model(steps: list[tuple[str, bytes, int]]) -> None:
    """Any mixture of feeding, taking blocks and taking messages gives what the trivial model gives."""
    buffer, model = ReceiveBuffer(), Model()
    for what, data, number in steps:
        if what == "feed":
            buffer.feed(data)
            model.feed(data)
        elif what == "take":
            assert buffer.take(number) == model.take(number)
        else:
            expected: bytes | str | None
            try:
                expected = model.take_until(data, number)
            except anyio.DelimiterNotFound:
                with pytest.raises(anyio.DelimiterNotFound):
                    buffer.take_until(data, number)
            else:
                assert buffer.take_until(data, number) == expected
        assert buffer.size == len(model.data)
    assert buffer.take(ROOM) == model.data


@given(texts, st.lists(st.integers(0, 60), max_size=20), delimiters)
@example(b"aab", [1, 2], b"aab")
def test_random_cuts(data: bytes, cuts: list[int], delimiter: bytes) -> None:
    """The messages are the same wherever the reads cut the stream."""
    buffer = ReceiveBuffer()
    messages = []
    for chunk in cut(data, cuts):
        buffer.feed(chunk)
        while (message := buffer.take_until(delimiter, ROOM)) is not None:
            messages.append(message)
    *expected, rest = data.split(delimiter)
    assert messages == [each + delimiter for each in expected]
    assert buffer.take(ROOM) == rest

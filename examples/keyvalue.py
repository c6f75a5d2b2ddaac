"""A key-value store that speaks the Redis protocol, for redis-cli, redis-benchmark and the Redis libraries.

Start it with ``python examples/keyvalue.py`` and type in a second terminal::

    redis-cli -p 6380 set greeting hello ex 60                  OK
    redis-cli -p 6380 get greeting                              "hello"
    redis-cli -p 6380 incr visits                               (integer) 1
    redis-benchmark -p 6380 -t ping,set,get -P 16 -q            SET: 200000.00 requests per second, ...

or ``nc 127.0.0.1 6380`` and the commands as they are: ``SET greeting hello``, ``GET greeting``.

`Parser` makes requests out of bytes, `Database` replies out of requests, and the handler moves bytes. All connections
share one `Database`; no command waits for anything, so each is atomic without a lock.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

import aserver

MAX_ARGUMENTS = 16 * 1024  # of one request: an empty argument takes 6 bytes to send and more to keep
MAX_MEMORY = 256 * 1024 * 1024  # bytes of all entries; a SET that would pass it is refused
ENTRY_OVERHEAD = 150  # bytes that an entry takes besides its key and value, about
REPLY_CHUNK = 64 * 1024  # replies to requests that came together go out together, up to this size
MAX_INTEGER = 2**63 - 1
SWEEP = 4  # entries with a deadline that each command looks at: dead ones go faster than new ones can come

STAR, DOLLAR = b"*$"
OK = b"+OK\r\n"
NULL = b"$-1\r\n"
#: The answer to HELLO says which version of the protocol is spoken from here on; here they differ in `NULL` alone.
HELLO_2 = b"*4\r\n$6\r\nserver\r\n$7\r\naserver\r\n$5\r\nproto\r\n:2\r\n"
HELLO_3 = b"%2\r\n$6\r\nserver\r\n$7\r\naserver\r\n$5\r\nproto\r\n:3\r\n"
NULL_3 = b"_\r\n"


class CommandError(Exception):
    """A command cannot be done; the text is the reply."""


class Goodbye(Exception):
    """The connection ends; the text is the last reply."""


class Parser:
    """Requests out of bytes, however these are cut: ``*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n``, or a line ``GET k``.

    Attributes:
        missing: bytes that complete the argument under way, if its length is known; otherwise 0.
    """

    def __init__(self, limits: aserver.Limits) -> None:
        self.missing = 0
        self._limits = limits
        self._unread = b""
        self._arguments: list[bytes] = []  # of the request under way
        self._expected = 0  # arguments that it lacks
        self._room = 0  # bytes that these may have

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Take the next bytes; yield each request that they complete, before the next one is looked at."""
        data = self._unread + data
        position = self.missing = 0
        try:
            while (end := data.find(b"\n", position)) >= 0:
                following = end + 1
                if self._expected:
                    size = int(data[position + 1 : end])
                    if data[position] != DOLLAR or not 0 <= size <= self._room:
                        raise ValueError
                    following += size + 2
                    if following > len(data):
                        self.missing = following - len(data)
                        break
                    self._arguments.append(data[end + 1 : following - 2])
                    self._expected -= 1
                    self._room -= size
                elif data[position] == STAR:
                    self._expected = int(data[position + 1 : end])
                    self._room = self._limits.max_exact_size - 2
                    if not 0 <= self._expected <= MAX_ARGUMENTS:
                        raise ValueError
                else:
                    self._arguments = data[position:end].split()
                position = following
                if self._arguments and not self._expected:
                    request, self._arguments = self._arguments, []
                    yield request
        except ValueError:  # no number, or one that is out of range
            raise Goodbye("-ERR Protocol error: invalid length") from None
        self._unread = data[position:]
        if not self.missing and len(self._unread) > self._limits.max_line_size:
            raise Goodbye("-ERR Protocol error: too big inline request")


def integer(text: bytes) -> int:
    """Return the number in an argument or a value, as strict about it as Redis."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if abs(number) > MAX_INTEGER or b"%d" % number != text:
        raise CommandError("-ERR value is not an integer or out of range")
    return number


class Database:
    """Entries, some of them until a deadline. The methods that are listed in `COMMANDS` return the reply.

    What is past its deadline does not exist for whoever asks. Its memory comes back at that moment, or when one of the
    commands that follow comes by on the round through all deadlines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: dict[bytes, bytes] = {}
        self._deadlines: OrderedDict[bytes, float] = OrderedDict()  # in the order of the round
        self._memory = 0

    def execute(self, request: list[bytes]) -> bytes:
        """Do what a request wants; return the reply."""
        if self._deadlines:
            self._sweep()
        name, *arguments = request
        command, fewest, most = COMMANDS.get(name.upper(), (None, 0, 0))
        if command is None:
            return f"-ERR unknown command {name[:64].decode('latin-1')!a}\r\n".encode()
        if not fewest <= len(arguments) <= most:
            return b"-ERR wrong number of arguments for '%b' command\r\n" % name.lower()
        try:
            return command(self, *arguments)
        except CommandError as exc:
            return f"{exc}\r\n".encode()

    def _sweep(self) -> None:
        now = self._clock()
        for _ in range(min(SWEEP, len(self._deadlines))):
            key = next(iter(self._deadlines))
            if self._deadlines[key] <= now:
                self._remove(key)
            else:
                self._deadlines.move_to_end(key)

    def _find(self, key: bytes) -> bytes | None:
        if key in self._deadlines and self._deadlines[key] <= self._clock():
            self._remove(key)
        return self._values.get(key)

    def _store(self, key: bytes, value: bytes) -> None:
        old = self._values.get(key)
        growth = len(value) - len(old) if old is not None else len(key) + len(value) + ENTRY_OVERHEAD
        if growth > 0 and self._memory + growth > MAX_MEMORY:
            raise CommandError("-OOM command not allowed when used memory > 'maxmemory'.")
        self._memory += growth
        self._values[key] = value

    def _remove(self, key: bytes) -> None:
        self._memory -= len(key) + len(self._values.pop(key)) + ENTRY_OVERHEAD
        self._deadlines.pop(key, None)

    def ping(self, text: bytes | None = None) -> bytes:
        return b"+PONG\r\n" if text is None else self.echo(text)

    def echo(self, text: bytes) -> bytes:
        return b"$%d\r\n%b\r\n" % (len(text), text)

    def get(self, key: bytes) -> bytes:
        value = self._find(key)
        return NULL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)

    def set(self, key: bytes, value: bytes, *options: bytes) -> bytes:
        deadline: float | None = None
        words = iter(options)
        for word in map(bytes.upper, words):
            if word in (b"EX", b"PX") and deadline is None:
                if (number := integer(next(words, b""))) <= 0:
                    raise CommandError("-ERR invalid expire time in 'set' command")
                deadline = self._clock() + number / (1 if word == b"EX" else 1000)
            elif word not in (b"NX", b"XX"):
                raise CommandError("-ERR syntax error")
            elif (self._find(key) is None) == (word == b"XX"):
                return NULL
        self._store(key, value)
        self._deadlines.pop(key, None)
        if deadline is not None:
            self._deadlines[key] = deadline
        return OK

    def delete(self, *keys: bytes) -> bytes:
        found = [key for key in set(keys) if self._find(key) is not None]
        for key in found:
            self._remove(key)
        return b":%d\r\n" % len(found)

    def exists(self, *keys: bytes) -> bytes:
        return b":%d\r\n" % sum(self._find(key) is not None for key in keys)

    def incr(self, key: bytes, amount: bytes = b"1") -> bytes:
        value = self._find(key)
        number = integer(b"0" if value is None else value) + integer(amount)
        if abs(number) > MAX_INTEGER:
            raise CommandError("-ERR increment or decrement would overflow")
        self._store(key, b"%d" % number)
        return b":%d\r\n" % number

    def expire(self, key: bytes, seconds: bytes) -> bytes:
        deadline = self._clock() + integer(seconds)
        if self._find(key) is None:
            return b":0\r\n"
        self._deadlines[key] = deadline
        return b":1\r\n"

    def ttl(self, key: bytes) -> bytes:
        if self._find(key) is None:
            return b":-2\r\n"
        seconds = round(self._deadlines[key] - self._clock()) if key in self._deadlines else -1
        return b":%d\r\n" % min(seconds, MAX_INTEGER)

    def dbsize(self) -> bytes:
        return b":%d\r\n" % len(self._values)

    def flushall(self, *options: bytes) -> bytes:
        self._values.clear()
        self._deadlines.clear()
        self._memory = 0
        return OK

    # What clients ask before they begin.

    def hello(self, version: bytes = b"2", *options: bytes) -> bytes:
        if version not in (b"2", b"3"):
            raise CommandError("-NOPROTO unsupported protocol version")
        return HELLO_3 if version == b"3" else HELLO_2

    def client(self, action: bytes, *options: bytes) -> bytes:
        if action.upper() not in (b"SETINFO", b"SETNAME"):
            raise CommandError("-ERR unknown subcommand")
        return OK

    def command(self, *options: bytes) -> bytes:
        return b"*0\r\n"

    def config(self, action: bytes, name: bytes) -> bytes:
        if action.upper() != b"GET":
            raise CommandError("-ERR unknown subcommand")
        return b"*2\r\n$%d\r\n%b\r\n$0\r\n\r\n" % (len(name), name)

    def quit(self) -> bytes:
        raise Goodbye("+OK")


#: Each command with the fewest and the most arguments that it takes.
COMMANDS: dict[bytes, tuple[Callable[..., bytes], int, int]] = {
    b"CLIENT": (Database.client, 1, 9),
    b"COMMAND": (Database.command, 0, 9),
    b"CONFIG": (Database.config, 2, 2),
    b"DBSIZE": (Database.dbsize, 0, 0),
    b"DEL": (Database.delete, 1, MAX_ARGUMENTS),
    b"ECHO": (Database.echo, 1, 1),
    b"EXISTS": (Database.exists, 1, MAX_ARGUMENTS),
    b"EXPIRE": (Database.expire, 2, 2),
    b"FLUSHALL": (Database.flushall, 0, 1),
    b"GET": (Database.get, 1, 1),
    b"HELLO": (Database.hello, 0, 9),
    b"INCR": (Database.incr, 1, 1),
    b"INCRBY": (Database.incr, 2, 2),
    b"PING": (Database.ping, 0, 1),
    b"QUIT": (Database.quit, 0, 0),
    b"SET": (Database.set, 2, 5),
    b"TTL": (Database.ttl, 1, 1),
}

DATABASE = Database()


class KeyValue(aserver.StreamRequestHandler):
    """One connection."""

    async def handle(self) -> None:
        parser = Parser(self.server.limits)
        replies = bytearray()
        null = NULL
        try:
            while data := await (self.rfile.read(parser.missing) if parser.missing else self.rfile.read1()):
                for request in parser.feed(data):
                    reply = DATABASE.execute(request)
                    if reply is HELLO_2 or reply is HELLO_3:
                        null = NULL if reply is HELLO_2 else NULL_3
                    replies += null if reply is NULL else reply
                    if len(replies) > REPLY_CHUNK:
                        await self.wfile.write(replies)
                        replies = bytearray()
                await self.wfile.write(replies)
                replies = bytearray()
        except Goodbye as exc:
            await self.wfile.write(replies + f"{exc}\r\n".encode())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(sys.argv[1]) if sys.argv[1:] else 6380
    print(f"Type in a second terminal: redis-cli -p {port} set greeting hello", flush=True)
    aserver.run(aserver.TCPServer(("127.0.0.1", port), KeyValue))

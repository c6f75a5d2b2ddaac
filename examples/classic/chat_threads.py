"""A chat room written for threads, as such programs are: two for each member, and a lock around what they share.

Start it with ``python examples/classic/chat_threads.py``, type ``nc 127.0.0.1 9995`` in two more terminals, and talk.
It is the room of examples/chat.py, so the two can be read side by side: what there is a task is a thread here, what
there needs no lock needs one here, and what there is cancelled has here its socket shut down, which is the only way to
wake a thread that reads or writes.

Of `compat` it uses what it used of socketserver, word for word; ``from compat import socketserver`` is the port of it.
"""

from __future__ import annotations

import queue
import re
import socket
import sys
import threading

from compat import socketserver

MAX_LINE = 1000  # bytes of a line with its end
OUTBOX_LINES = 1000  # lines that wait for one member; who is further behind is dropped
FAREWELL_TIME = 5.0  # seconds for the lines that still wait when somebody leaves


class Room:
    """Who is here; every method may be called in any thread, and none of them waits for a member."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connected: set[Member] = set()  # also those without a name so far
        self._members: dict[str, Member] = {}
        self.is_open = True

    def connect(self, member: Member) -> None:
        with self._lock:
            self._connected.add(member)
            if not self.is_open:
                member.wake(socket.SHUT_RD)

    def disconnect(self, member: Member) -> None:
        with self._lock:
            self._connected.discard(member)

    def enter(self, member: Member, name: str) -> bool:
        """Let a member in and tell everybody; False if somebody has that name already."""
        with self._lock:
            if name.casefold() in self._members:
                return False
            others = ", ".join(sorted(each.name for each in self._members.values())) or "nobody else"
            self._tell_all(f"* {name} has come")
            member.name = name
            member.post(f"* welcome, {name}; here are: {others}")
            self._members[name.casefold()] = member
            return True

    def leave(self, member: Member) -> None:
        """Let a member out and tell the others why, unless all are leaving."""
        with self._lock:
            del self._members[member.name.casefold()]
            if self.is_open:
                self._tell_all(f"* {member.name} has left{member.reason}")

    def say(self, text: str, speaker: Member) -> None:
        with self._lock:
            self._tell_all(text, speaker)

    def _tell_all(self, text: str, speaker: Member | None = None) -> None:
        for member in self._members.values():
            if member is not speaker:
                member.post(text)

    def close(self) -> None:
        """Let nobody in any more, and end the input of all who are connected: their threads say goodbye and end."""
        with self._lock:
            self.is_open = False
            for member in self._connected:
                member.wake(socket.SHUT_RD)


ROOM = Room()


class Member(socketserver.StreamRequestHandler):
    """One connection: handle() reads in the thread that the server has started, deliver() writes in another."""

    disable_nagle_algorithm = True  # a line does not wait until the one before has arrived
    name = ""
    reason = ""  # for leaving, as the others hear it

    def setup(self) -> None:
        super().setup()
        self.outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: there is no more
        ROOM.connect(self)

    def handle(self) -> None:
        writer = threading.Thread(target=self.deliver, daemon=True)
        writer.start()
        try:
            if self.introduce():
                try:
                    self.post(self.listen())
                finally:
                    ROOM.leave(self)
        except ConnectionError:  # left without a word
            pass
        finally:
            self.outbox.put(None)
            writer.join(FAREWELL_TIME)
            self.wake(socket.SHUT_RDWR)  # a writer that still waits for its reader gives up now
            writer.join()

    def finish(self) -> None:
        ROOM.disconnect(self)
        super().finish()

    def introduce(self) -> bool:
        """Ask for a name until it is a good one; False if the other side ends before."""
        self.post("Your name?")
        while line := self.rfile.readline(MAX_LINE):
            if not re.fullmatch(r"\w{1,20}", name := clean(line)):
                self.post("A name has 1 to 20 letters, digits or _; your name?")
            elif ROOM.enter(self, name):
                return True
            else:
                self.post("That name is taken; your name?")
        return False

    def listen(self) -> str:
        """Pass on what the member says until the input ends; return what he hears last."""
        while line := self.rfile.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                self.reason = f" (dropped: a line has more than {MAX_LINE} bytes)"
                return f"* you are dropped: a line has more than {MAX_LINE} bytes"
            if text := clean(line):
                ROOM.say(f"<{self.name}> {text}", self)
        return "* goodbye" if ROOM.is_open else "* the room closes"

    def deliver(self) -> None:
        """Send what is in the outbox, as fast as the other side reads."""
        try:
            while (text := self.outbox.get()) is not None:
                self.wfile.write(f"{text}\n".encode())
        except OSError:  # gone, or dropped: the reading thread hears of it, too
            pass

    def post(self, text: str) -> None:
        """Put a line into the outbox; a member whose outbox is full is dropped."""
        if self.outbox.qsize() < OUTBOX_LINES:
            self.outbox.put(text)
        elif not self.reason:
            self.reason = f" (dropped: more than {OUTBOX_LINES} lines were not read)"
            self.wake(socket.SHUT_RDWR)

    def wake(self, how: int) -> None:
        """End what the threads of this member wait for."""
        try:
            self.connection.shutdown(how)
        except OSError:  # the other side was quicker
            pass


def clean(line: bytes) -> str:
    """Return what somebody typed as text that a terminal can only show: no colours, no cursor, no bell, no new line."""
    text = line.decode(errors="replace").replace("\t", " ").strip()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class Server(socketserver.ThreadingTCPServer):
    """Waits for its threads in server_close(), which is what `block_on_close` (the default) and no daemons mean."""

    allow_reuse_address = True


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 9995
    with Server(("127.0.0.1", port), Member) as server:
        print(f"Type in two or more other terminals: nc 127.0.0.1 {server.server_address[1]}")
        print("listening on tcp://{}:{}".format(*server.server_address), flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("the room closes")
        finally:
            ROOM.close()

"""A chat room over plain TCP: names, who comes and goes, and what somebody says to everybody else.

Start it with ``python examples/chat.py``, type ``nc 127.0.0.1 9998`` in two more terminals, and talk::

    Your name?
    ann
    * welcome, ann; here are: bob
    hello                               <ann> hello, on bob's terminal

Nobody waits for anybody: a line goes into the outbox of each member, and a task per member empties it. With somebody
who reads too slowly there are three ways: the speaker waits for him, and with the speaker the room; the server keeps
his lines, without end; or he gets no more. Here he gets no more, and not in silence: who is `OUTBOX_LINES` behind is
dropped, the others hear why, and so does he, after the lines that wait for him, if he reads on soon.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap

import anyio
import anyio.lowlevel

import aserver

MAX_LINE = 1000  # bytes of a line with its end
OUTBOX_LINES = 1000  # lines that wait for one member: at most 1 MB, and mostly the same bytes for all
FAREWELL_TIME = 5.0  # seconds for the lines that still wait when somebody leaves


class Room:
    """Who is here; one for all connections."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def enter(self, member: Member, name: str) -> bool:
        """Let a member in and tell everybody; False if somebody has that name already."""
        if name.casefold() in self._members:
            return False
        others = ", ".join(sorted(each.name for each in self._members.values())) or "nobody else"
        member.name = name
        self.say(f"* {name} has come")
        self._members[name.casefold()] = member
        member.post(f"* welcome, {name}; here are: {textwrap.shorten(others, 200, placeholder=' ...')}\n".encode())
        return True

    def leave(self, member: Member, reason: str) -> None:
        """Let a member out and tell the others why, unless all are leaving."""
        del self._members[member.name.casefold()]
        if not member.request.draining:
            self.say(f"* {member.name} has left{reason}")

    def say(self, text: str, speaker: Member | None = None) -> None:
        """Put a line into the outbox of everybody but the speaker, which takes no time: nobody is waited for."""
        line = f"{text}\n".encode()
        for member in self._members.values():
            if member is not speaker:
                member.post(line)


ROOM = Room()


class Member(aserver.BaseRequestHandler):
    """One connection, from the question for a name until it leaves."""

    name = ""
    farewell = "* goodbye\n"
    reason = ""  # for leaving, as the others hear it

    async def setup(self) -> None:
        self.listening = anyio.CancelScope()
        self.outbox, self.waiting = anyio.create_memory_object_stream[bytes](OUTBOX_LINES)

    async def handle(self) -> None:
        if not await self.introduce():
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.deliver)
            try:
                with self.listening:
                    await self.listen()
            finally:
                ROOM.leave(self, self.reason)
            self.outbox.close()  # deliver() ends when it is empty
            tasks.cancel_scope.deadline = anyio.current_time() + FAREWELL_TIME

    async def finish(self) -> None:
        self.outbox.close()
        self.waiting.close()

    async def introduce(self) -> bool:
        """Ask for a name until it is a good one; False if the other side ends before."""
        await self.request.send(b"Your name?\n")
        while line := await self.request.readline(MAX_LINE):
            if not re.fullmatch(r"\w{1,20}", name := clean(line)):
                await self.request.send(b"A name has 1 to 20 letters, digits or _; your name?\n")
            elif ROOM.enter(self, name):
                return True
            else:
                await self.request.send(b"That name is taken; your name?\n")
        return False

    async def listen(self) -> None:
        """Pass on what the member says, until the other side ends or the server is told to stop."""
        try:
            while line := await self.request.readline(MAX_LINE):
                if text := clean(line):
                    ROOM.say(f"<{self.name}> {text}", self)
                await anyio.lowlevel.checkpoint()  # who pastes a book gives the outboxes time to empty
        except anyio.DelimiterNotFound:
            self.drop(f"a line has more than {MAX_LINE} bytes")
        if self.request.draining:
            self.farewell = "* the room closes\n"

    def post(self, line: bytes) -> None:
        """Put a line into the outbox; a member whose outbox is full is dropped."""
        if self.listening.cancel_called:
            return  # dropped, and leaves at the next turn of the loop
        try:
            self.outbox.send_nowait(line)
        except anyio.WouldBlock:
            self.drop(f"more than {OUTBOX_LINES} lines were not read")

    def drop(self, reason: str) -> None:
        """End the connection against its will; `handle` does the rest."""
        self.reason = f" (dropped: {reason})"
        self.farewell = f"* you are dropped: {reason}\n"
        self.listening.cancel()

    async def deliver(self) -> None:
        """Send what is in the outbox, all of it at once, as fast as the other side reads."""
        async for line in self.waiting:
            more = self.waiting.statistics().current_buffer_used
            await self.request.send(b"".join([line, *(self.waiting.receive_nowait() for _ in range(more))]))
        await self.request.send(self.farewell.encode())


def clean(line: bytes) -> str:
    """Return what somebody typed as text that a terminal can only show: no colours, no cursor, no bell, no new line."""
    text = line.decode(errors="replace").replace("\t", " ").strip()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port = int(sys.argv[1]) if sys.argv[1:] else 9998
    print(f"Type in two or more other terminals: nc 127.0.0.1 {port}", flush=True)
    aserver.run(aserver.TCPServer(("127.0.0.1", port), Member))

"""A syslog receiver: messages in the old format (RFC 3164) and the new one (RFC 5424), on UDP and on a Unix socket.

Start it with ``python examples/syslog.py`` and type in a second terminal, in the same folder::

    logger -n 127.0.0.1 -P 5514 -d -t backup "disk is full"
    logger -n 127.0.0.1 -P 5514 -d -p auth.crit --rfc3164 -t su "failed for ann"
    logger -u ./syslog.sock -d "from this machine"

Each message becomes one line here: who sent it, facility and severity, then what the sender says of itself::

    127.0.0.1 user.notice 2026-01-31T12:00:00.123456+00:00 myhost backup: [timeQuality tzKnown="1" ...] disk is full
    127.0.0.1 auth.crit Jan 31 12:00:00 myhost su: failed for ann
    local user.notice Jan 31 12:00:00 ann: from this machine

Python's own ``logging.handlers.SysLogHandler(address=("127.0.0.1", 5514))`` or ``(address="./syslog.sock")`` works,
too. Anybody can send anything: `parse` makes a `Message` out of every packet, and what a terminal would obey is shown
as ``\\x1b``. Nothing is ever answered.
"""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import aserver

ENDPOINTS = ["udp://127.0.0.1:5514", "unixgram:./syslog.sock?mode=666"]

FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock "
    "local0 local1 local2 local3 local4 local5 local6 local7"
).split()
SEVERITIES = "emerg alert crit err warning notice info debug".split()
NO_PRIORITY = 13  # user.notice: what RFC 3164, section 4.3.3, takes where there is none

PRIORITY = re.compile(r"<(0|[1-9][0-9]{0,2})>")
PARAMETER = re.compile(r' ([^ =\]"]+)="((?:[^"\\\]]|\\.)*)"', re.DOTALL)
ELEMENT = re.compile(rf'\[([^ =\]"]+)((?:{PARAMETER.pattern})*)\]', re.DOTALL)
NEW = re.compile(
    rf"1 (?P<timestamp>\S+) (?P<host>\S+) (?P<app>\S+) (?P<pid>\S+) (?P<msgid>\S+)"
    rf" (?P<data>-|(?:{ELEMENT.pattern})+)(?: (?P<text>.*))?",
    re.DOTALL,
)
#: Nearly all of it is left out by somebody: Unix sockets have no host, SysLogHandler not even a time.
OLD = re.compile(
    r"(?:(?P<timestamp>[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T\S+) "
    r"(?:(?P<host>[^\s\[\]]*[^\s\[\]:]) (?=[^\s\[\]:]+(?:\[[^\s\]]*\])?:(?:\s|$)))?)?"
    r"(?:(?P<app>[^\s\[\]:]+)(?:\[(?P<pid>[^\s\]]*)\])?:(?:\s|$))?(?P<text>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message; what is not in it is empty."""

    facility: str
    severity: str
    timestamp: str = ""
    host: str = ""
    app: str = ""
    pid: str = ""
    msgid: str = ""
    data: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    text: str = ""


def parse(packet: bytes) -> Message:
    """Return what a packet says, in either format; what is in none of them is all text."""
    body = packet.decode(errors="backslashreplace").rstrip("\0\r\n")
    priority = NO_PRIORITY
    if (found := PRIORITY.match(body)) and int(found[1]) < len(FACILITIES) * 8:
        priority, body = int(found[1]), body[found.end() :]
    fields: dict[str, Any] = {"facility": FACILITIES[priority // 8], "severity": SEVERITIES[priority % 8]}
    if new := NEW.fullmatch(body):
        fields |= {name: "" if value == "-" else value for name, value in new.groupdict().items()}
        fields["data"] = _structured(new["data"])
        fields["text"] = (new["text"] or "").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # says that it is UTF-8
    elif old := OLD.fullmatch(body):  # which takes everything
        fields |= old.groupdict(default="")
    return Message(**fields)


def _structured(text: str) -> dict[str, list[tuple[str, str]]]:
    data: dict[str, list[tuple[str, str]]] = {}
    for name, parameters, *_ in ELEMENT.findall(text):
        found = data.setdefault(name, [])
        found += [(key, re.sub(r'\\(["\\\]])', r"\1", value)) for key, value in PARAMETER.findall(parameters)]
    return data


def line(message: Message, sender: str) -> str:
    """Return a message as one line that a terminal can only show: no colours, no cursor, no bell, no new line."""
    app = f"{message.app}[{message.pid}]" if message.pid else message.app
    data = ""
    for name, parameters in message.data.items():
        data += "[" + " ".join([name, *(f'{key}="{value}"' for key, value in parameters)]) + "]"
    words = (message.timestamp, message.host, f"{app}:" if app else "", message.msgid, data, message.text)
    shown = " ".join([sender, f"{message.facility}.{message.severity}", *filter(None, words)])
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


async def serve(datagram: aserver.Datagram) -> None:
    """Print what came."""
    sender = datagram.peer[0] if isinstance(datagram.peer, tuple) else "local"
    print(line(parse(datagram.data), sender), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    endpoints = sys.argv[1:] or ENDPOINTS
    if not sys.argv[1:]:
        print("Type in a second terminal: logger -n 127.0.0.1 -P 5514 -d hello", flush=True)
    aserver.run(aserver.DatagramServer([*endpoints], serve))

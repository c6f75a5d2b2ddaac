"""A DNS server that knows a few names, from a dict or from a hosts file; on UDP, and on TCP for what UDP must not say.

It needs dnslib for the format: ``pip install dnslib``. Start it with ``python examples/dns.py`` and type in a second
terminal::

    dig @127.0.0.1 -p 5300 +short www.example.test              192.0.2.1 and 192.0.2.2
    dig @127.0.0.1 -p 5300 +short www.example.test AAAA         2001:db8::1
    dig @127.0.0.1 -p 5300 +short -x 192.0.2.1                  www.example.test.
    dig @127.0.0.1 -p 5300 +short big.example.test TXT          ten long lines, by TCP
    dig @127.0.0.1 -p 5300 none.example.test                    ... status: NXDOMAIN ...

``python examples/dns.py udp://127.0.0.1:5301 --hosts /etc/hosts`` answers from that file, on another port.

DNS is the classic reflector: who asks in a victim's name has a small question answered to the victim with a large
answer. `Limits.max_amplification` refuses that; the reply is then "truncated", as it is where an answer does not fit
into what the client takes, and a client that is no victim asks again by TCP.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import sys
from pathlib import Path
from typing import Any, TypeAlias

import aserver

try:
    import dnslib  # type: ignore[import-untyped]  # it has no types
    from dnslib import AAAA, MX, PTR, QTYPE, RCODE, RR, TXT, A, DNSError, DNSLabel, DNSRecord
    from dnslib.label import DNSLabelError  # type: ignore[import-untyped]  # the same
except ModuleNotFoundError:
    sys.exit("This example needs dnslib; install it with: pip install dnslib")

logger = logging.getLogger("dns")

ENDPOINT = "udp://127.0.0.1:5300"
TTL = 60  # seconds that clients may remember an answer
MAX_QUERY = 512  # bytes; a question has at most 272, and then there are EDNS options
PLAIN_UDP = 512  # bytes that a client takes in a datagram if it does not say how many
MOST_UDP = 1232  # and that we send, whatever it says: what no network cuts into fragments (dnsflagday.net/2020)
MOST_TCP = 65535
MAX_AMPLIFICATION = 3  # times the bytes of the question; the same as in QUIC

Zone: TypeAlias = dict[Any, list[Any]]  # names (dnslib's DNSLabel, to which A and a are the same) to their records

ZONE: Zone = {
    DNSLabel("www.example.test"): [A("192.0.2.1"), A("192.0.2.2"), AAAA("2001:db8::1")],
    DNSLabel("example.test"): [MX("mail.example.test", 10), TXT("an example")],
    DNSLabel("big.example.test"): [TXT(f"line {number} {'.' * 90}") for number in range(10)],
    DNSLabel("1.2.0.192.in-addr.arpa"): [PTR("www.example.test")],
}


def read_hosts(text: str) -> Zone:
    """Return the names in a hosts file, and the way back from its addresses to the first name of each."""
    zone: Zone = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            ip = ipaddress.ip_address(address)
            record = A(str(ip)) if ip.version == 4 else AAAA(str(ip))
            labels = [DNSLabel(name) for name in names]
        except ValueError:  # not an address, one with an interface behind it, or not a name
            if address:
                logger.warning("skipped: %r", line)
            continue
        for label in labels:
            zone.setdefault(label, []).append(record)
        for name in names[:1]:
            zone.setdefault(DNSLabel(ip.reverse_pointer), [PTR(name)])
    return zone


def answer(query: bytes, limit: int | None = None) -> bytes:
    """Return the reply to a query, from `ZONE`; b"" for what must not be answered.

    Args:
        query: what came, whatever it is.
        limit: bytes of the reply; what would be larger is truncated. None is what the client takes by UDP.
    """
    if len(query) < 12 or query[2] & 0x80:  # no header; or a reply, which would be answered by one, and so on for ever
        return b""
    try:
        if len(query) > MAX_QUERY:
            raise DNSError("too long")
        return _reply(DNSRecord.parse(query), limit)
    except (DNSError, DNSLabelError, ValueError):
        return query[:2] + bytes([0x80 | query[2] & 0x79, RCODE.FORMERR]) + bytes(8)  # the header and nothing else


def _reply(request: Any, limit: int | None) -> bytes:
    if len(request.questions) != 1:
        raise DNSError("not one question")
    header, question = request.header, request.q
    reply = DNSRecord(
        dnslib.DNSHeader(id=header.id, bitmap=0, qr=1, opcode=header.opcode, aa=1, rd=header.rd), q=question
    )
    edns = next((record for record in request.ar if record.rtype == QTYPE.OPT), None)
    if edns is not None:
        reply.add_ar(dnslib.EDNS0("", udp_len=MOST_UDP, ext_rcode=1 if edns.edns_ver else 0))  # 1 is "bad version"
    if limit is None:
        limit = min(max(PLAIN_UDP, edns.edns_len), MOST_UDP) if edns is not None else PLAIN_UDP

    if header.opcode != 0:
        reply.header.rcode = RCODE.NOTIMP
    elif question.qclass != 1:
        reply.header.rcode = RCODE.REFUSED
    elif edns is None or not edns.edns_ver:
        for record in ZONE.get(question.qname, []):
            kind = getattr(QTYPE, type(record).__name__)
            if question.qtype in (kind, QTYPE.ANY):
                reply.add_answer(RR(question.qname, kind, ttl=TTL, rdata=record))
        if question.qname not in ZONE:
            reply.header.rcode = RCODE.NXDOMAIN

    packed: bytes = reply.pack()
    if len(packed) > limit:
        reply.rr, reply.header.tc = [], 1
        packed = reply.pack()
    return packed


async def serve(datagram: aserver.Datagram) -> None:
    """Answer a datagram; where that would be too much, say that TCP is the way."""
    if reply := answer(datagram.data):
        try:
            await datagram.reply(reply)
        except aserver.ReplyRefusedError:
            await datagram.reply(answer(datagram.data, limit=0))


class Stream(aserver.StreamRequestHandler):
    """The same by TCP, where each message has its length in front of it."""

    async def handle(self) -> None:
        while query := await self.rfile.read(int.from_bytes(await self.rfile.read(2))):
            if not (reply := answer(query, MOST_TCP)):
                break
            await self.wfile.write(len(reply).to_bytes(2) + reply)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Answer DNS queries from a few names, or from a hosts file.")
    parser.add_argument("endpoint", nargs="?", default=ENDPOINT, help="where (default: %(default)s), also by TCP")
    parser.add_argument("--hosts", type=Path, metavar="FILE", help="a hosts file, such as /etc/hosts")
    options = parser.parse_args()
    if options.hosts:
        ZONE.clear()
        ZONE.update(read_hosts(options.hosts.read_text(encoding="utf-8")))
    host, _, port = options.endpoint.removeprefix("udp://").rpartition(":")
    print(f"Type in a second terminal: dig @{host.strip('[]')} -p {port} {next(iter(ZONE), 'localhost')}", flush=True)
    aserver.run(
        aserver.UDPServer(options.endpoint, serve, limits=aserver.Limits(max_amplification=MAX_AMPLIFICATION)),
        aserver.TCPServer(options.endpoint.replace("udp:", "tcp:", 1), Stream),
    )

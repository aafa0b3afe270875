"""What a box asks of the resolver: one datagram."""

from __future__ import annotations

import dns.edns
import dns.message
import dns.rcode

from boxwood.engine.network import answers
from boxwood.engine.network.answers import Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions
from fuzz.target import lines

_EXCEPTIONS = Exceptions.parse([])
_OPTIONS = [dns.edns.ECSOption("10.0.0.1", 24), dns.edns.CookieOption(b"12345678", b""), dns.edns.EDEOption(1, "ö")]
SEEDS = (
    dns.message.make_query("www.public.example", "A", id=7).to_wire(),
    dns.message.make_query("www.public.example", "HTTPS", options=_OPTIONS, payload=4096, pad=128, id=7).to_wire(),
    dns.message.make_query("1.0.0.127.in-addr.arpa", "PTR", id=7).to_wire(),
    dns.message.make_query("b." * 31 + "ip6.arpa", "PTR", use_edns=0, want_dnssec=True, id=7).to_wire(),
    dns.message.make_query("localhost", "AAAA", use_edns=True, id=7).to_wire(),
)
WORDS = (
    b"\xc0\x0c", b"\xc0\0", b"\x3f" + b"a" * 63, b"\x01.", b"\x01\0", b"\0", b"\0\x29", b"\0\xff", b"\0\1\0\1", b"\x28\0", b"\x81\x80",
    *lines("\x05local", "\x09localhost", "\x07in-addr", "\x03ip6", "\x04arpa", "\x050x7f1", "\x02_x", "\x030/8"),
)  # fmt: skip


def check(wire: bytes) -> None:
    reply = _reply(wire)
    assert len(reply) <= len(wire) + 100, "no lever"
    if reply:
        assert reply[:2] == wire[:2] and reply[2] & 0x80 and not wire[2] & 0x80
        if wire[2] >> 3 & 15 == 0:
            dns.message.from_wire(reply)


def _reply(wire: bytes) -> bytes:
    """What comes back at once, if anything does."""
    try:
        question = answers.read(wire)
    except Unanswerable as unanswerable:
        return unanswerable.reply
    assert question.text.isascii() and question.text.isprintable() and " " not in question.text
    asked = question.to_ask().to_wire()
    assert answers.read(asked).name == question.name
    try:
        known = answers.answer_locally(question, _EXCEPTIONS, ipv6=False)
    except Refused:
        known = question.reply(dns.rcode.NXDOMAIN, why="a reason")
    return b"" if known is None else answers.fit(known, question.udp_size)

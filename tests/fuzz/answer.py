"""What the world answers: whoever owns a name chooses it, and boxes choose the name."""

from __future__ import annotations

import dns.message
import dns.rdatatype
import dns.rrset

from boxwood.engine.network import answers, upstream
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.answers import Refused
from boxwood.engine.network.exceptions import Exceptions
from fuzz.target import lines

_EXCEPTIONS = Exceptions.parse([])
_QUERY = dns.message.make_query("a.example", "HTTPS", id=7)
_QUESTION = answers.read(_QUERY.to_wire())


def _made(*records: str, authority: str = "", rcode: int = 0) -> bytes:
    response = dns.message.make_response(_QUERY)
    response.answer = [_rrset(record) for record in records]
    response.authority = [_rrset(authority)] if authority else []
    response.set_rcode(rcode)
    return response.to_wire()


def _rrset(record: str) -> dns.rrset.RRset:
    name, ttl, kind, rest = record.split(" ", 3)
    return dns.rrset.from_text(name, int(ttl), "IN", kind, rest)


_SOA = "example. 60 SOA ns.example. me.example. 1 2 3 4 5"
SEEDS = (
    _made("a.example. 60 CNAME b.example.", 'b.example. 60 HTTPS 1 . alpn="h2" ipv4hint="93.184.216.34" ipv6hint="2a00::1"'),
    _made('a.example. 60 HTTPS 1 b.example. ipv4hint="10.0.0.1"', "b.example. 60 A 10.0.0.1", authority=_SOA),
    _made("a.example. 4294967295 HTTPS 0 c.example.", "a.example. 60 NAPTR 1 1 u sip !.*!x! ."),
    _made(authority=_SOA, rcode=3),
    _made("a.example. 60 CNAME b.example.", "b.example. 60 CNAME a.example."),
)  # fmt: skip
WORDS = (
    b"\xc0\x0c", b"\xc0\x1b", b"\x0a\0\0\1", b"\x7f\0\0\1", b"\0\1\0\4", b"\0\4\0\4", b"\0\6\0\x10", b"\0\x41\0\1", b"\0\x05\0\1", b"\0\0\x29",
    b"\x01a\x07example\0", b"\xff\xff", b"\x3f" + b"a" * 63, *lines("\x01b", "\x05local"),
)  # fmt: skip


def check(wire: bytes) -> None:
    wire = b"\0\7" + wire[2:]
    try:
        answer = upstream._read(wire, _QUERY, stream=True)
        if answer is None:
            return
        assert 0 <= upstream._lifetime(answer, dns.rdatatype.HTTPS) <= 3600
        told = answers.rewrite(_QUESTION, answer, _EXCEPTIONS)
    except (ConnectionError, Refused):
        return
    for size in (512, 1232, 65535):
        said = answers.fit(told, size)
        assert len(said) <= size
        heard = dns.message.from_wire(said)
        assert all(is_public(address) for address, _ in answers.addresses_in(heard.answer))
    assert all(1 <= rrset.ttl <= 3600 for rrset in (*told.answer, *told.authority))

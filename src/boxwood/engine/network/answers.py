"""What boxes may ask, and what of the world's answers they are told: messages in, messages out; no sockets, no clocks.

A box hears nothing of addresses that are not on the internet: one of them in an answer makes the whole answer one that
there is no such name, as do names that only the operator's own network can know. Of an answer only the records that
the question leads to are handed on. Names are compared as labels, never as text. Signatures are not handed on, so a box
cannot validate: whoever must know with whom it speaks uses TLS.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.svcbbase import ParamKey, SVCBBase

from boxwood.engine.network.addresses import PRIVATE_V4, PRIVATE_V6, PUBLIC_V6, Address, Network, is_public
from boxwood.engine.network.exceptions import Exceptions

UDP_SIZE = 1232  # bytes that pass everywhere in one piece
TCP_SIZE = 65535
MOST_ASKED = 4096  # bytes of a question with all its options
_MOST_LABELS = 40  # of a name: the reverse name of an IPv6 address has 35; the work grows with the square
_LONGEST_TTL = 3600
_LOCAL_TTL = 30
_LONGEST_CHAIN = 16
_HEADER = struct.Struct("!6H")
_OPT = b"\0" + RdataType.OPT.to_bytes(2, "big")  # the root's name and the type: how the record begins
_ASKABLE_NAMES = (
    "A AAAA CAA CDNSKEY CDS CERT CNAME DNAME DNSKEY DS HINFO HTTPS LOC MX NAPTR NS NSEC NSEC3PARAM OPENPGPKEY PTR RP "
    "SMIMEA SOA SPF SRV SSHFP SVCB TLSA TXT URI"
)
_ASKABLE = frozenset(map(RdataType.from_text, _ASKABLE_NAMES.split()))
_LOCALHOST = dns.name.from_text("localhost")
_SOMEBODYS_OWN = tuple(
    map(
        dns.name.from_text,
        ("corp", "home", "home.arpa", "internal", "intranet", "ip6.int", "lan", "local", "localdomain", "private"),
    )
)
_IN_ADDR, _IP6 = dns.name.from_text("in-addr.arpa"), dns.name.from_text("ip6.arpa")
_OCTETS = {str(number).encode(): number for number in range(256)}
_NIBBLES = {f"{number:x}".encode(): number for number in range(16)}
_PART = re.compile(rb"[0-9]{1,3}[-/][0-9]{1,3}")
_BOX_ITSELF = tuple(map(ipaddress.IPv4Network, ("127.0.0.0/8", "198.18.0.0/15")))

# dnspython imports a type's module when it first meets the type, and remembers each type that it does not know: neither
# is for boxes to cause. `read` keeps unknown types away from it.
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]


class Unanswerable(Exception):
    """Not a question that is looked into: `reply` goes back, nothing where it is empty."""

    def __init__(self, reply: bytes = b"") -> None:
        super().__init__("not to be answered")
        self.reply = reply


class Refused(Exception):
    """The name is not resolved for boxes; the text says why."""


@dataclass(frozen=True, slots=True)
class Question:
    message: dns.message.Message
    name: dns.name.Name  # in small letters
    rdtype: RdataType

    @property
    def text(self) -> str:
        """The name in small letters without the last dot, as plain ASCII with everything unusual escaped."""
        return _text(self.name)

    @property
    def udp_size(self) -> int:
        return min(max(self.message.payload, 512), UDP_SIZE)

    def to_ask(self) -> dns.message.Message:
        """The same question with nothing of the box in it but the name."""
        return dns.message.make_query(self.name, self.rdtype)

    def reply(self, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, *, why: str = "") -> dns.message.Message:
        response = dns.message.make_response(self.message, recursion_available=True, our_payload=UDP_SIZE, pad=0)
        if why and self.message.edns >= 0:
            options: list[dns.edns.Option] = [dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, why)]
            response.use_edns(0, 0, UDP_SIZE, self.message.payload, options)
        response.set_rcode(rcode)
        return response


# --- what comes from boxes


def read(wire: bytes) -> Question:
    """Unanswerable."""
    if len(wire) < _HEADER.size:
        raise Unanswerable()
    ident, flags, *counts = _HEADER.unpack_from(wire)
    if flags & dns.flags.QR:
        raise Unanswerable()  # an answer to it might be answered, and so on
    opcode = dns.opcode.from_flags(flags)
    if opcode != dns.opcode.QUERY:
        raise Unanswerable(failure(wire, dns.rcode.REFUSED if opcode == dns.opcode.UPDATE else dns.rcode.NOTIMP))
    if len(wire) > MOST_ASKED or not _is_plain(wire, counts):
        raise Unanswerable(failure(wire, dns.rcode.FORMERR))
    header = _HEADER.pack(ident, flags & (dns.flags.RD | dns.flags.CD), *counts)
    try:
        message = dns.message.from_wire(header + wire[_HEADER.size :])
    except Exception:  # whatever it stumbles over
        raise Unanswerable(failure(wire, dns.rcode.FORMERR)) from None
    asked = message.question[0]
    if len(asked.name) > _MOST_LABELS:
        raise Unanswerable(failure(wire, dns.rcode.REFUSED))
    question = Question(message, asked.name.canonicalize(), asked.rdtype)
    if message.edns > 0:
        raise Unanswerable(question.reply(dns.rcode.BADVERS).to_wire())
    if asked.rdclass != dns.rdataclass.IN or asked.rdtype not in _ASKABLE:
        raise Unanswerable(question.reply(dns.rcode.REFUSED).to_wire())
    return question


def failure(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header, in answer to one of which nothing else is known."""
    ident, flags = struct.unpack_from("!HH", wire)
    response = dns.message.Message(id=ident)
    response.flags = dns.flags.QR | dns.flags.RA | (flags & (dns.flags.RD | 0x7800))  # and its opcode
    response.set_rcode(rcode)
    return response.to_wire()


def _is_plain(wire: bytes, counts: list[int]) -> bool:
    """One question, and at most an OPT record behind it."""
    asked, *answers, more = counts
    if asked != 1 or any(answers) or more > 1:
        return False
    place = _HEADER.size
    while place < len(wire) and 0 < wire[place] < 64:
        place += 1 + wire[place]
    if wire[place : place + 1] != b"\0":
        return False  # there is nothing yet that a compressed name could point to
    place += 5
    return not more or wire[place : place + len(_OPT)] == _OPT


# --- what is known here


def answer_locally(question: Question, exceptions: Exceptions, *, ipv6: bool) -> dns.message.Message | None:
    """The answer, if nobody else has to be asked. Refused."""
    name, rdtype = question.name, question.rdtype
    if name.is_subdomain(_LOCALHOST):
        return _addresses(question, ("127.0.0.1", "::1"))
    if rdtype in (RdataType.A, RdataType.AAAA) and exceptions.is_excepted(question.text):
        found = exceptions.looked_up().get(question.text)
        if not found:
            return question.reply(dns.rcode.SERVFAIL)
        return _addresses(question, [address for address in found if ipv6 or ":" not in address])
    reverse = _reversed(name)
    if reverse is not None and any(_is_within(reverse, own) for own in _BOX_ITSELF):
        return question.reply(dns.rcode.NXDOMAIN)  # programs ask for their own name all the time
    _check_name(name, exceptions)
    if rdtype == RdataType.AAAA and not ipv6:
        return question.reply()
    return None


def _addresses(question: Question, addresses: Iterable[str]) -> dns.message.Message:
    response = question.reply()
    kind = {RdataType.A: 4, RdataType.AAAA: 6}.get(question.rdtype)
    if fitting := [text for text in addresses if ipaddress.ip_address(text).version == kind]:
        response.answer.append(dns.rrset.from_text_list(question.name, _LOCAL_TTL, "IN", question.rdtype, fitting))
    return response


def _check_name(name: dns.name.Name, exceptions: Exceptions) -> None:
    """Refused, if only the operator's own network could know this name."""
    if exceptions.is_excepted(_text(name)):
        return
    labels = name.labels[:-1]
    if any(b"." in label or b"\0" in label for label in labels):
        raise Refused("to those who take it for text it is another name")
    if len(labels) == 1 or any(name.is_subdomain(own) for own in (_LOCALHOST, *_SOMEBODYS_OWN)):
        raise Refused("not a name of the internet")
    reverse = _reversed(name)
    if reverse is not None and _is_private(reverse):
        raise Refused("the name of an address that is not of the internet")


def _reversed(name: dns.name.Name) -> Network | None:
    """The network that a name below in-addr.arpa or ip6.arpa stands for, as far as its labels are numbers. Refused."""
    if name.is_subdomain(_IN_ADDR):
        octets = _numbers(name, _OCTETS, 4)
        return ipaddress.IPv4Network((bytes(octets).ljust(4, b"\0"), 8 * len(octets)))
    if name.is_subdomain(_IP6):
        nibbles = _numbers(name, _NIBBLES, 32)
        packed = bytes.fromhex("".join(f"{nibble:x}" for nibble in nibbles).ljust(32, "0"))
        return ipaddress.IPv6Network((packed, 4 * len(nibbles)))
    return None


def _numbers(name: dns.name.Name, known: Mapping[bytes, int], most: int) -> list[int]:
    found: list[int] = []
    for label in reversed(name.labels[-3 - most : -3]):
        if label.lower() in known:
            found.append(known[label.lower()])
        elif label.startswith(b"_") or _PART.fullmatch(label):
            break  # a service, or the zone of a part of the network (RFC 2317)
        else:
            raise Refused("some resolvers take it for a number, each for another one")
    return found


def _is_private(network: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return any(network.subnet_of(private) for private in PRIVATE_V4)
    return not network.overlaps(PUBLIC_V6) or any(network.subnet_of(private) for private in PRIVATE_V6)


def _is_within(network: Network, outer: ipaddress.IPv4Network) -> bool:
    return isinstance(network, ipaddress.IPv4Network) and network.subnet_of(outer)


# --- what comes from the world


def rewrite(question: Question, answer: dns.message.Message, exceptions: Exceptions) -> dns.message.Message:
    """What the box is told of an answer. Refused."""
    rcode = answer.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return question.reply(dns.rcode.SERVFAIL)
    names, found = _chain(question, answer)
    for name in names[1:]:
        _check_name(name, exceptions)
    for address, _ in addresses_in(found):
        if not is_public(address) and not exceptions.allows(address):
            raise Refused("an address that is not of the internet")
    response = question.reply(rcode)
    response.answer = found
    response.authority = _start_of_authority(answer, names[-1])
    for rrset in (*response.answer, *response.authority):
        rrset.ttl = min(max(rrset.ttl, 1), _LONGEST_TTL)
    return response


def _chain(question: Question, answer: dns.message.Message) -> tuple[list[dns.name.Name], list[dns.rrset.RRset]]:
    """The names that the question leads to, itself first, and the records on the way."""
    index = {(rrset.name, rrset.rdtype): rrset for rrset in answer.answer if rrset.rdclass == dns.rdataclass.IN}
    names, found = [question.name], []
    while len(names) <= _LONGEST_CHAIN:
        if (rrset := index.get((names[-1], question.rdtype))) is not None:
            found.append(rrset)
            break
        alias = index.get((names[-1], RdataType.CNAME))
        target = next((rdata.target for rdata in alias or () if isinstance(rdata, CNAME)), None)
        if alias is None or target is None or target in names:
            break
        found.append(alias)
        names.append(target)
    return names, found


def _start_of_authority(answer: dns.message.Message, name: dns.name.Name) -> list[dns.rrset.RRset]:
    """How long the name may be taken not to exist, by the zone that it would be in."""
    return [
        rrset
        for rrset in answer.authority
        if rrset.rdtype == RdataType.SOA and rrset.rdclass == dns.rdataclass.IN and name.is_subdomain(rrset.name)
    ][:1]


def addresses_in(rrsets: Iterable[dns.rrset.RRset]) -> Iterator[tuple[Address, int]]:
    """All addresses that these records tell a box, each with its TTL."""
    for rrset in rrsets:
        for rdata in rrset:
            for text in _texts(rdata):
                yield ipaddress.ip_address(text), rrset.ttl


def _texts(rdata: dns.rdata.Rdata) -> Iterator[str]:
    if isinstance(rdata, A | AAAA):
        yield rdata.address
    elif isinstance(rdata, SVCBBase):
        for key in (ParamKey.IPV4HINT, ParamKey.IPV6HINT):
            if (hint := rdata.params.get(key)) is not None:
                yield from hint.addresses


def fit(response: dns.message.Message, size: int) -> bytes:
    """The message in at most so many bytes. What is too large is emptied, and says that it can be had over TCP."""
    try:
        return response.to_wire(max_size=size)
    except dns.exception.TooBig:
        response.answer, response.authority = [], []
        if size < TCP_SIZE:
            response.flags |= dns.flags.TC
        else:
            response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire(max_size=size)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()

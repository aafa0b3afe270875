"""What boxes may ask, and what of it is answered here, without sockets."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring
import dns.update
import pytest
from fake_dns import NONE, addresses, asking, said

from boxwood.engine.network import answers
from boxwood.engine.network.answers import Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions

# --- names that are answered here, or by nobody


def here(name: str, rdtype: str = "A", *entries: str, ipv6: bool = False):
    exceptions = Exceptions.parse(entries)
    return answers.answer_locally(asking(name, rdtype), exceptions, ipv6=ipv6)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "a.b.localhost", "a\\.b.localhost"])
def test_localhost_is_the_box_itself(name):
    assert addresses(here(name)) == ["127.0.0.1"]
    assert addresses(here(name, "AAAA")) == ["::1"]
    told = here(name, "TXT")
    assert told is not None and told.rcode() == dns.rcode.NOERROR and not told.answer


@pytest.mark.parametrize(
    "name",
    [
        "intranet",
        "com",
        "LOCALHOST\\.",  # one label with a dot in it
        "printer.local",
        "metadata.google.internal",
        "METADATA.GOOGLE.INTERNAL.",
        "router.lan",
        "nas.home.arpa",
        "db.corp",
        "xlocalhost",
        "127\\.0\\.0\\.1",
        "intranet\\.corp.example",
        "intranet\\000.example",
        "1.0.0.10.in-addr.arpa",
        "10.in-addr.arpa",
        "254.169.254.169.IN-ADDR.arpa",
        "b._dns-sd._udp.0.0.168.192.in-addr.arpa",
        "0-127.1.168.192.in-addr.arpa",
        "0/25.1.168.192.in-addr.arpa",
        "5.0/25.1.168.192.in-addr.arpa",
        "1.1.168.0300.in-addr.arpa",
        "1.0.0.010.in-addr.arpa",
        "1.0.0.0xa.in-addr.arpa",
        "1.0.0.266.in-addr.arpa",
        "x.1.1.168.192.in-addr.arpa",
        "1." + "0." * 31 + "ip6.arpa",
        "1." + "0." * 30 + "d.f.ip6.arpa",
        "d.F.ip6.arpa",
        "4.5.2.0." + "0." * 20 + "2.c.e.0.0.0.d.f.ip6.arpa",
        "1.0.0.0.0.0.a.0.2.0.0.2.ip6.arpa",
        "\\[xFD000000000000000000000000000001/128].ip6.arpa",
        "1.0.0.127.ip6.int",
    ],
)
@pytest.mark.parametrize("rdtype", ["A", "PTR", "TXT", "AAAA"])
def test_names_of_the_operators_own_network_are_not_asked_for(name, rdtype):
    with pytest.raises(Refused):
        here(name, rdtype)


@pytest.mark.parametrize("name", ["1.0.0.127.in-addr.arpa", "7.3.18.198.in-addr.arpa"])
def test_the_names_of_the_box_itself_are_nothing_to_complain_of(name):
    told = here(name, "PTR")
    assert told is not None and told.rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    "name",
    [
        "public.example",
        "localhost.example",
        "local.example",
        "notlocal.internal.example",
        "evilinternal.example",
        "xn--bcher-kva.example",
        "_ldap._tcp.public.example",
        "*.public.example",
        "b\\195\\188cher.example",
        "34.216.184.93.in-addr.arpa",
        "in-addr.arpa",
        "172.in-addr.arpa",
        "0-127.216.184.93.in-addr.arpa",
        "b._dns-sd._udp.216.184.93.in-addr.arpa",
        "ip6.arpa",
        "1." + "0." * 27 + "0.0.a.2.ip6.arpa",
        ".",
    ],
)
def test_names_of_the_internet_are_asked_for(name):
    assert here(name, "PTR") is None
    assert here(name, "A") is None


def test_without_ipv6_no_ipv6_address_is_asked_for():
    told = here("public.example", "AAAA")
    assert told is not None and told.rcode() == dns.rcode.NOERROR and not told.answer
    assert here("public.example", "AAAA", ipv6=True) is None


@pytest.mark.parametrize("name", ["mirror.corp", "MIRROR.Corp.", "mirror"])
def test_an_excepted_name_has_the_addresses_that_the_host_found(name):
    exceptions = Exceptions.parse(["mirror.corp", "mirror:443"])
    for excepted in exceptions.names:
        exceptions.set_addresses(excepted, ["10.1.2.3", "10.1.2.4", "fd00::1"])
    told = answers.answer_locally(asking(name), exceptions, ipv6=False)
    assert addresses(told) == ["10.1.2.3", "10.1.2.4"]
    assert told.answer[0].ttl == 30
    assert addresses(answers.answer_locally(asking(name, "AAAA"), exceptions, ipv6=False)) == []
    assert addresses(answers.answer_locally(asking(name, "AAAA"), exceptions, ipv6=True)) == ["fd00::1"]
    assert answers.answer_locally(asking(name, "HTTPS"), exceptions, ipv6=False) is None


def test_an_excepted_name_that_the_host_has_not_found_yet():
    told = here("mirror.corp", "A", "mirror.corp")
    assert told is not None and told.rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("name", ["a.mirror.corp", "corp", "evilmirror.corp", "mirror\\.corp", "mirror.corp.local"])
def test_an_exception_is_for_its_own_name_alone(name):
    with pytest.raises(Refused):
        here(name, "A", "mirror.corp")


# --- what is not answered


def refusal(wire: bytes) -> bytes:
    with pytest.raises(Unanswerable) as caught:
        answers.read(wire)
    return caught.value.reply


@pytest.mark.parametrize(
    "rdtype", ["ANY", "AXFR", "IXFR", "NULL", "OPT", "MAILB", "TSIG", "TKEY", "APL", "RRSIG", "TYPE65280"]
)
def test_types_that_are_refused(rdtype):
    reply = dns.message.from_wire(refusal(dns.message.make_query("a.example", rdtype).to_wire()))
    assert reply.rcode() == dns.rcode.REFUSED
    assert reply.question[0].name == dns.name.from_text("a.example")


@pytest.mark.parametrize(
    "rdtype",
    [
        "A",
        "AAAA",
        "CNAME",
        "MX",
        "TXT",
        "SRV",
        "NS",
        "SOA",
        "CAA",
        "PTR",
        "HTTPS",
        "SVCB",
        "NAPTR",
        "DS",
        "DNSKEY",
        "TLSA",
        "SSHFP",
    ],
)
def test_types_that_are_answered(rdtype):
    assert asking("a.example", rdtype).rdtype == dns.rdatatype.from_text(rdtype)


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE"])
def test_classes_that_are_refused(rdclass):
    query = dns.message.make_query("version.bind", "TXT", rdclass)
    assert dns.message.from_wire(refusal(query.to_wire())).rcode() == dns.rcode.REFUSED


def test_an_update_is_refused():
    update = dns.update.UpdateMessage("example")
    update.add("a", 60, "A", "10.0.0.1")
    reply = refusal(update.to_wire())
    assert len(reply) == 12
    assert reply[:2] == update.id.to_bytes(2, "big")
    assert reply[3] & 15 == dns.rcode.REFUSED and reply[2] >> 3 & 15 == dns.opcode.UPDATE and reply[2] & 0x80


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 6, 7, 15])
def test_other_operations_are_not_known(opcode):
    query = dns.message.make_query("a.example", "A")
    query.flags |= opcode << 11
    assert refusal(query.to_wire())[3] & 15 == dns.rcode.NOTIMP


def test_an_answer_is_not_answered():
    query = dns.message.make_query("a.example", "A")
    query.flags |= dns.flags.QR
    assert refusal(query.to_wire()) == b""


def header(*counts: int, flags: int = 0x0100) -> bytes:
    return struct.pack("!6H", 7, flags, *counts)


QUESTION = b"\1a\7example\0\0\1\0\1"
OPT = b"\0\0\x29\4\xd0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("wire", "reply"),
    {
        "nothing": (b"", b""),
        "half a header": (header(1, 0, 0, 0)[:11], b""),
        "no question": (header(0, 0, 0, 0), 1),
        "two questions": (header(2, 0, 0, 0) + QUESTION * 2, 1),
        "a question that is missing": (header(1, 0, 0, 0), 1),
        "half a question": (header(1, 0, 0, 0) + QUESTION[:-1], 1),
        "more behind it": (header(1, 0, 0, 0) + QUESTION + b"x", 1),
        "a question with answers": (header(1, 1, 0, 0) + QUESTION + b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\1\1\1", 1),
        "65535 of everything": (header(65535, 65535, 65535, 65535) + QUESTION, 1),
        "65535 answers": (header(1, 65535, 0, 0) + QUESTION, 1),
        "two more": (header(1, 0, 0, 2) + QUESTION + OPT * 2, 1),
        "a record that is not OPT": (header(1, 0, 0, 1) + QUESTION + b"\0\xff\0\xff\0\0\0\0\0\0\0", 1),
        "half an OPT": (header(1, 0, 0, 1) + QUESTION + OPT[:-1], 1),
        "an OPT with an option that is too long": (header(1, 0, 0, 1) + QUESTION + OPT[:-2] + b"\0\4\0\3\0\xff", 1),
        "a name that points to itself": (header(1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", 1),
        "a name that points into the header": (header(1, 0, 0, 0) + b"\1a\xc0\0\0\1\0\1", 1),
        "a name of an unknown kind": (header(1, 0, 0, 0) + b"\x41a\0\0\1\0\1", 1),
        "a name that is too long": (header(1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", 1),
        "a question that is too large": (header(1, 0, 0, 1) + QUESTION + OPT[:-2] + b"\x20\0" + b"\0\3\x1f\xfc" + bytes(8188), 1),
    }.values(),
)  # fmt: skip
def test_garbage(wire, reply):
    found = refusal(wire)
    if reply == b"":
        assert found == b""
    else:
        assert len(found) == 12
        assert found[:2] == b"\0\7" and found[2] & 0x80 and found[3] & 15 == dns.rcode.FORMERR


def test_the_longest_name_is_a_name():
    wire = header(1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0\0\1\0\1"
    assert len(answers.read(wire).text) == 253


def test_a_name_of_too_many_labels_is_refused():
    reverse = b"\0011" * 32 + b"\3ip6\4arpa\0"
    answers.read(header(1, 0, 0, 0) + reverse + b"\0\x0c\0\1")
    assert refusal(header(1, 0, 0, 0) + b"\1a" * 40 + b"\0\0\1\0\1")[3] & 15 == dns.rcode.REFUSED


def test_a_signed_question_is_not_understood():
    query = dns.message.make_query("a.example", "A")
    query.use_tsig(dns.tsigkeyring.from_text({"key.": "c2VjcmV0"}))
    assert refusal(query.to_wire())[3] & 15 == dns.rcode.FORMERR


def test_an_edns_version_that_is_not_known():
    reply = dns.message.from_wire(refusal(dns.message.make_query("a.example", "A", use_edns=1).to_wire()))
    assert reply.rcode() == dns.rcode.BADVERS and reply.edns == 0


def test_the_question_comes_back_as_it_was_asked():
    question = asking("PuBLiC.eXample")
    wire = answers.fit(answers.rewrite(question, said(question, "public.example. 60 A 93.184.216.34"), NONE), 512)
    assert b"\6PuBLiC\7eXample\0" in wire
    assert wire.lower().count(b"public") == 1


def test_nothing_of_the_box_is_asked_upstream_but_the_name():
    options = [dns.edns.ECSOption("198.18.0.7", 32), dns.edns.CookieOption(b"12345678", b"")]
    question = asking("PuBLiC.example", options=options, want_dnssec=True, flags=dns.flags.CD)
    assert question.to_ask().to_wire()[2:] == dns.message.make_query("public.example", "A").to_wire()[2:]


def test_what_boxes_send_does_not_stay_in_the_parser():
    """It would remember every type, and every class of it, for ever."""
    assert not dns.rdata._dynamic_load_allowed
    known = len(dns.rdata._rdata_classes), len(dns.flags.Flag._value2member_map_)
    for rdtype in range(60000, 60050):
        record = b"\0" + struct.pack("!HHIH", rdtype, 1, 0, 0)
        assert refusal(header(1, 0, 0, 1) + QUESTION + record)[3] & 15 == dns.rcode.FORMERR
        answers.read(header(1, 0, 0, 1, flags=0x0110) + QUESTION + b"\0\0\x29" + struct.pack("!HIH", rdtype, 0, 0))
        answers.read(header(1, 0, 0, 0, flags=0x0100 | rdtype & 0x07FF) + QUESTION)
    assert (len(dns.rdata._rdata_classes), len(dns.flags.Flag._value2member_map_)) == known

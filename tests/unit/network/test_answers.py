"""What boxes may ask and what they are told, without sockets."""

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
from fake_dns import addresses, rrset

from boxwood.engine.network import answers
from boxwood.engine.network.addresses import PRIVATE_V4, PRIVATE_V6
from boxwood.engine.network.answers import Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions

NONE = Exceptions.parse([])
PRIVATE_4 = sorted({str(network[place]) for network in PRIVATE_V4 for place in (0, -1)} | {"169.254.169.254"})
PRIVATE_6 = [
    "::",
    "::1",
    "::a00:1",  # IPv4-compatible
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:93.184.216.34",  # mapped, if public
    "::ffff:0:a00:1",
    "64:ff9b::a00:1",
    "64:ff9b::5db8:d822",  # translated, if public
    "64:ff9b:1::a00:1",
    "2002:a00:1::1",  # 6to4
    "2002:5db8:d822::1",
    "2001::a00:1",  # Teredo
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "4000::1",
    *(str(network[place]) for network in PRIVATE_V6 for place in (0, -1)),
]
PUBLIC_4 = ["93.184.216.34", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "172.32.0.0", "198.20.0.0"]
PUBLIC_6 = ["2606:2800:220:1::1", "2a00::1", "3ffe::1", "2003::1"]


def ask(name: str = "a.example", rdtype: str = "A", **options) -> answers.Question:
    return answers.read(dns.message.make_query(name, rdtype, **options).to_wire())


def said(question: answers.Question, *records: str, rcode: int = 0, authority: tuple[str, ...] = ()):
    """An answer as it comes from the wire."""
    message = dns.message.make_response(question.message)
    message.answer = [rrset(record) for record in records]
    message.authority = [rrset(record) for record in authority]
    message.set_rcode(rcode)
    return dns.message.from_wire(message.to_wire())


def judge(name: str, rdtype: str, *records: str, exceptions: Exceptions = NONE):
    question = ask(name, rdtype)
    return answers.rewrite(question, said(question, *records), exceptions)


# --- addresses


def in_a_record(address: str):
    return judge("a.example", "A", f"a.example. 60 A {address}")


def beside_a_public_one(address: str):
    return judge("a.example", "A", "a.example. 60 A 93.184.216.34", f"a.example. 60 A {address}")


def behind_aliases(address: str):
    chain = [f"{here}.example. 60 CNAME {there}.example." for here, there in ("ab", "bc", "cd")]
    return judge("a.example", "A", f"d.example. 60 A {address}", *chain)


def in_a_hint(address: str):
    return judge("a.example", "HTTPS", f'a.example. 60 HTTPS 1 . alpn="h2" ipv4hint="93.184.216.34,{address}"')


def in_a_hint_of_a_service(address: str):
    return judge("_x.a.example", "SVCB", f'_x.a.example. 60 SVCB 3 b.example. ipv4hint="{address}" port="8080"')


def in_a_hint_behind_an_alias(address: str):
    return judge(
        "a.example", "HTTPS", "a.example. 60 CNAME b.example.", f'b.example. 60 HTTPS 1 . ipv4hint="{address}"'
    )


IPV4 = [in_a_record, beside_a_public_one, behind_aliases, in_a_hint, in_a_hint_of_a_service, in_a_hint_behind_an_alias]


@pytest.mark.parametrize("carrier", IPV4, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("address", PRIVATE_4)
def test_no_private_ipv4_is_told(carrier, address):
    with pytest.raises(Refused):
        carrier(address)


@pytest.mark.parametrize("carrier", IPV4, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("address", PUBLIC_4)
def test_public_ipv4_is_told(carrier, address):
    assert address in [str(found) for found, _ in answers.addresses_in(carrier(address).answer)]


def in_an_aaaa_record(address: str):
    return judge("a.example", "AAAA", f"a.example. 60 AAAA {address}")


def in_an_aaaa_record_behind_an_alias(address: str):
    return judge("a.example", "AAAA", "a.example. 60 CNAME b.example.", f"b.example. 60 AAAA {address}")


def in_an_ipv6_hint(address: str):
    return judge("a.example", "HTTPS", f'a.example. 60 HTTPS 1 . ipv4hint="93.184.216.34" ipv6hint="2a00::1,{address}"')


IPV6 = [in_an_aaaa_record, in_an_aaaa_record_behind_an_alias, in_an_ipv6_hint]


@pytest.mark.parametrize("carrier", IPV6, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("address", PRIVATE_6)
def test_no_private_ipv6_is_told(carrier, address):
    with pytest.raises(Refused):
        carrier(address)


@pytest.mark.parametrize("carrier", IPV6, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("address", PUBLIC_6)
def test_public_ipv6_is_told(carrier, address):
    assert address in [str(found) for found, _ in answers.addresses_in(carrier(address).answer)]


def test_excepted_addresses_are_told():
    exceptions = Exceptions.parse(["10.1.0.0/16", "fd00::/8", "mirror.corp"])
    exceptions.set_addresses("mirror.corp", ["192.168.7.7"])
    told = judge("a.example", "A", "a.example. 60 A 10.1.2.3", "a.example. 60 A 192.168.7.7", exceptions=exceptions)
    assert addresses(told) == ["10.1.2.3", "192.168.7.7"]
    assert judge("a.example", "AAAA", "a.example. 60 AAAA fd00::1", exceptions=exceptions).answer
    assert judge("a.example", "HTTPS", 'a.example. 60 HTTPS 1 . ipv4hint="10.1.2.3"', exceptions=exceptions).answer
    with pytest.raises(Refused):
        judge("a.example", "A", "a.example. 60 A 10.1.2.3", "a.example. 60 A 10.2.0.1", exceptions=exceptions)
    with pytest.raises(Refused):
        judge("a.example", "AAAA", "a.example. 60 AAAA ::ffff:10.1.2.3", exceptions=exceptions)


# --- what is left of an answer


def test_only_what_the_question_leads_to_is_told():
    told = judge(
        "a.example",
        "A",
        "other.example. 60 A 10.0.0.1",
        "a.example. 60 TXT left-out",
        "a.example. 60 CNAME B.example.",
        "b.EXAMPLE. 60 A 93.184.216.34",
        "b.example. 60 AAAA 2a00::1",
        "c.example. 60 CNAME d.example.",
    )
    assert [f"{found.name} {found[0]}" for found in told.answer] == [
        "a.example. B.example.",
        "B.example. 93.184.216.34",
    ]


def test_a_name_with_both_an_address_and_an_alias_has_the_address():
    told = judge(
        "a.example", "A", "a.example. 60 A 93.184.216.34", "a.example. 60 CNAME b.example.", "b.example. 60 A 10.0.0.1"
    )
    assert addresses(told) == ["93.184.216.34"]
    assert len(told.answer) == 1


@pytest.mark.parametrize("circle", [("aa",), ("ab", "ba"), ("ab", "bc", "cb")])
def test_aliases_in_a_circle_end(circle):
    told = judge("a.example", "A", *(f"{here}.example. 60 CNAME {there}.example." for here, there in circle))
    assert len(told.answer) < 3


def test_a_chain_is_followed_so_far_and_no_further():
    chain = [f"n{n}.example. 60 CNAME n{n + 1}.example." for n in range(40)]
    told = judge("n0.example", "A", *chain, "n40.example. 60 A 93.184.216.34")
    assert [found.rdtype for found in told.answer] == [dns.rdatatype.CNAME] * 16


def test_a_question_for_the_alias_itself_is_not_followed():
    told = judge("a.example", "CNAME", "a.example. 60 CNAME b.example.", "b.example. 60 CNAME c.example.")
    assert [str(found.name) for found in told.answer] == ["a.example."]


@pytest.mark.parametrize(
    "target",
    [
        "localhost.",
        "a.localhost.",
        "intranet.",
        "metadata.google.internal.",
        "printer.local.",
        "5.1.168.192.in-addr.arpa.",
        "1.0.18.198.in-addr.arpa.",
        "1.D.F.ip6.arpa.",
    ],
)
def test_an_alias_does_not_lead_to_a_name_of_the_operator(target):
    for rdtype, data in (("TXT", "secret"), ("PTR", "db.corp."), ("A", "93.184.216.34")):
        with pytest.raises(Refused):
            judge("a.example", rdtype, f"a.example. 60 CNAME {target}", f"{target} 60 {rdtype} {data}")


def test_an_alias_may_lead_to_any_other_name():
    target = "1.0.0.0.A.2.ip6.arpa."
    told = judge("a.example", "PTR", f"a.example. 60 CNAME {target}", f"{target} 60 PTR host.example.")
    assert len(told.answer) == 2


def test_of_authority_the_start_is_told_and_of_the_rest_nothing():
    question = ask(use_edns=0)
    message = said(
        question,
        rcode=dns.rcode.NXDOMAIN,
        authority=(
            "other.example. 300 SOA ns. me. 1 2 3 4 60",
            "example. 9999 SOA ns.example. me.example. 1 2 3 4 60",
            ". 60 SOA ns. me. 1 2 3 4 60",
            "example. 60 NS ns.example.",
        ),
    )
    message.additional = [rrset("ns.example. 60 A 10.0.0.1")]
    told = answers.rewrite(question, message, NONE)
    assert told.rcode() == dns.rcode.NXDOMAIN
    assert [(str(found.name), found.rdtype, found.ttl) for found in told.authority] == [
        ("example.", dns.rdatatype.SOA, 3600)
    ]
    assert told.additional == []
    assert told.edns == 0 and told.payload == 1232


@pytest.mark.parametrize(("ttl", "told"), [(0, 1), (1, 1), (59, 59), (3600, 3600), (86400, 3600), (2**31 - 1, 3600)])
def test_ttls_are_neither_nothing_nor_long(ttl, told):
    found = judge("a.example", "A", f"a.example. {ttl} CNAME b.example.", f"b.example. {ttl} A 93.184.216.34").answer
    assert [record.ttl for record in found] == [told, told]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.YXDOMAIN])
def test_a_failure_upstream_is_one_here_and_nothing_of_it_is_told(rcode):
    question = ask()
    told = answers.rewrite(question, said(question, "a.example. 60 A 93.184.216.34", rcode=rcode), NONE)
    assert told.rcode() == dns.rcode.SERVFAIL and not told.answer


def test_records_of_another_class_are_not_told():
    question = ask("a.example", "TXT")
    message = said(question, "a.example. 60 TXT in")
    message.answer.insert(0, dns.rrset.from_text("a.example.", 60, "HS", "TXT", "hs"))
    message.answer.append(dns.rrset.from_text("a.example.", 60, "HS", "TXT", "hs"))
    assert [str(record[0]) for record in answers.rewrite(question, message, NONE).answer] == ['"in"']


def test_no_claim_that_it_was_validated():
    question = ask()
    message = said(question, "a.example. 60 A 93.184.216.34")
    message.flags |= dns.flags.AD | dns.flags.AA | dns.flags.TC
    told = answers.rewrite(question, message, NONE)
    assert told.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA


def test_a_large_answer_is_emptied_over_udp_and_whole_over_tcp():
    question = ask("a.example", "TXT", use_edns=0, payload=4096)
    records = [f'a.example. 60 TXT "{n:0200}"' for n in range(8)]
    told = answers.rewrite(question, said(question, *records), NONE)
    assert len(answers.fit(told, 65535)) > 1600
    assert not told.flags & dns.flags.TC
    small = dns.message.from_wire(answers.fit(told, question.udp_size))
    assert small.flags & dns.flags.TC and not small.answer
    assert small.question == question.message.question


@pytest.mark.parametrize(
    ("options", "size"), [({}, 512), ({"payload": 100}, 512), ({"payload": 900}, 900), ({"payload": 65535}, 1232)]
)
def test_the_largest_datagram(options, size):
    assert ask(**options).udp_size == size


# --- names that are answered here, or by nobody


def here(name: str, rdtype: str = "A", *entries: str, ipv6: bool = False):
    exceptions = Exceptions.parse(entries)
    return answers.answer_locally(ask(name, rdtype), exceptions, ipv6=ipv6)


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
    told = answers.answer_locally(ask(name), exceptions, ipv6=False)
    assert addresses(told) == ["10.1.2.3", "10.1.2.4"]
    assert told.answer[0].ttl == 30
    assert addresses(answers.answer_locally(ask(name, "AAAA"), exceptions, ipv6=False)) == []
    assert addresses(answers.answer_locally(ask(name, "AAAA"), exceptions, ipv6=True)) == ["fd00::1"]
    assert answers.answer_locally(ask(name, "HTTPS"), exceptions, ipv6=False) is None


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
    assert ask("a.example", rdtype).rdtype == dns.rdatatype.from_text(rdtype)


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
    question = ask("PuBLiC.eXample")
    wire = answers.fit(answers.rewrite(question, said(question, "public.example. 60 A 93.184.216.34"), NONE), 512)
    assert b"\6PuBLiC\7eXample\0" in wire
    assert wire.lower().count(b"public") == 1


def test_nothing_of_the_box_is_asked_upstream_but_the_name():
    options = [dns.edns.ECSOption("198.18.0.7", 32), dns.edns.CookieOption(b"12345678", b"")]
    question = ask("PuBLiC.example", options=options, want_dnssec=True, flags=dns.flags.CD)
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

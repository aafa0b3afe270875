"""What boxes are told, without sockets."""

from __future__ import annotations

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
from fake_dns import NONE, addresses, asking, rrset, said

from boxwood.engine.network import answers
from boxwood.engine.network.addresses import PRIVATE_V4, PRIVATE_V6
from boxwood.engine.network.answers import Refused
from boxwood.engine.network.exceptions import Exceptions

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


def judge(name: str, rdtype: str, *records: str, exceptions: Exceptions = NONE):
    question = asking(name, rdtype)
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
    question = asking(use_edns=0)
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
    question = asking()
    told = answers.rewrite(question, said(question, "a.example. 60 A 93.184.216.34", rcode=rcode), NONE)
    assert told.rcode() == dns.rcode.SERVFAIL and not told.answer


def test_records_of_another_class_are_not_told():
    question = asking("a.example", "TXT")
    message = said(question, "a.example. 60 TXT in")
    message.answer.insert(0, dns.rrset.from_text("a.example.", 60, "HS", "TXT", "hs"))
    message.answer.append(dns.rrset.from_text("a.example.", 60, "HS", "TXT", "hs"))
    assert [str(record[0]) for record in answers.rewrite(question, message, NONE).answer] == ['"in"']


def test_no_claim_that_it_was_validated():
    question = asking()
    message = said(question, "a.example. 60 A 93.184.216.34")
    message.flags |= dns.flags.AD | dns.flags.AA | dns.flags.TC
    told = answers.rewrite(question, message, NONE)
    assert told.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA


def test_a_large_answer_is_emptied_over_udp_and_whole_over_tcp():
    question = asking("a.example", "TXT", use_edns=0, payload=4096)
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
    assert asking(**options).udp_size == size

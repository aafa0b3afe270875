"""The operator's exceptions: what may be written, what it means, and what is never opened."""

from __future__ import annotations

import ipaddress

import pytest

from boxwood.engine.network.exceptions import Exceptions, Rule


def net(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("10.1.2.3", Rule(net("10.1.2.3/32"))),
        ("10.0.0.0/8", Rule(net("10.0.0.0/8"))),
        ("10.1.2.3:443", Rule(net("10.1.2.3/32"), "", 443, 443)),
        ("10.0.0.0/8:8000-8010", Rule(net("10.0.0.0/8"), "", 8000, 8010)),
        ("fd00::/8", Rule(net("fd00::/8"))),
        ("fd00::1:443", Rule(net("fd00::1:443/128"))),  # that is an address
        ("[fd00::1]", Rule(net("fd00::1/128"))),
        ("[fd00::1]:443", Rule(net("fd00::1/128"), "", 443, 443)),
        ("[fd00::/8]:1-65535", Rule(net("fd00::/8"), "", 1, 65535)),
        ("100.64.0.0/10", Rule(net("100.64.0.0/10"))),
        ("8.8.8.8", Rule(net("8.8.8.8/32"))),
        ("mirror.corp", Rule(None, "mirror.corp")),
        ("Mirror.CORP.", Rule(None, "mirror.corp")),
        ("mirror", Rule(None, "mirror")),
        ("mirror.corp:80-90", Rule(None, "mirror.corp", 80, 90)),
        ("xn--bcher-kva.corp", Rule(None, "xn--bcher-kva.corp")),
        ("_apt.mirror.corp:443", Rule(None, "_apt.mirror.corp", 443, 443)),
        ("10.corp", Rule(None, "10.corp")),
    ],
)
def test_entries(entry, rule):
    exceptions = Exceptions.parse([entry])
    assert exceptions.rules == (rule,)
    assert exceptions.networks == ((rule.network,) if rule.network else ())
    assert exceptions.names == ((rule.name,) if rule.name else ())


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("0.0.0.0/0", "open everything"),
        ("::/0", "open everything"),
        ("0.0.0.0/1", "0.0.0.0/8"),
        ("128.0.0.0/1", "169.254.0.0/16"),
        ("2000::/3", "2001::/32"),
        ("8000::/1", "fe80::/10"),
        ("0.0.0.0", "this host"),
        ("127.0.0.1", "loopback"),
        ("127.0.0.0/8:443", "loopback"),
        ("126.0.0.0/7", "loopback"),
        ("169.254.169.254", "metadata"),
        ("198.18.0.7", "other boxes"),
        ("198.0.0.0/8", "other boxes"),
        ("224.0.0.251", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::1", "loopback"),
        ("::", "loopback"),
        ("[::1]:80", "loopback"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "interface"),
        ("ff02::1", "multicast"),
        ("::ffff:10.1.2.3", "name the IPv4 address"),
        ("64:ff9b::a01:203", "name the IPv4 address"),
        ("2002:a01:203::1", "name the IPv4 address"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("10.1.2.3/8", "10.1.2.3 or 10.0.0.0/8?"),
        ("fd00::1/8", "fd00::1 or fd00::/8?"),
        ("10.0.0.0/255.0.0.0", "leading bits"),
        ("10.0.0.0/33", "not an address or a network"),
        ("10.0.0.0/", "leading bits"),
        ("10.1.2", "not an address or a network"),
        ("127.1", "not an address or a network"),
        ("0x7f.0.0.0x1", "not an address or a network"),
        ("2130706433", "not an address or a network"),
        ("010.1.2.3", "not an address or a network"),
        ("10.1.2.3:0", "between 1 and 65535"),
        ("10.1.2.3:65536", "between 1 and 65535"),
        ("10.1.2.3:90-80", "smaller one first"),
        ("10.1.2.3:http", "neither a port"),
        ("10.1.2.3:", "neither a port"),
        ("10.1.2.3:1-2-3", "neither a port"),
        ("10.1.2.3:¹", "neither a port"),
        ("fd00::/8:443", "leading bits"),
        ("[10.1.2.3]:443", "brackets"),
        ("[fd00::1", "brackets"),
        ("[fd00::1]443", "brackets"),
        ("*.corp", "name each host"),
        ("*", "name each host"),
        ("mirror*.corp", "name each host"),
        ("localhost", "box itself"),
        ("a.localhost.", "box itself"),
        ("", "neither an address"),
        (".", "neither an address"),
        ("mirror..corp", "neither an address"),
        ("-mirror.corp", "neither an address"),
        ("mirror .corp", "neither an address"),
        ("mirror\n.corp", "neither an address"),
        ("mirror\0.corp", "neither an address"),
        ("a" * 64 + ".corp", "neither an address"),
        (".".join(["a" * 60] * 5), "neither an address"),
        ("bücher.corp", "xn--"),
        ("http://mirror.corp", "neither a port"),
    ],
)
def test_entries_that_are_refused(entry, reason):
    with pytest.raises(ValueError) as caught:
        Exceptions.parse(["10.0.0.1", entry])
    assert repr(entry) in str(caught.value)
    assert reason in str(caught.value)
    assert "allowed are addresses (10.1.2.3" in str(caught.value)


def allows(exceptions: Exceptions, *addresses: str) -> list[bool]:
    return [exceptions.allows(ipaddress.ip_address(address)) for address in addresses]


def test_no_exception_allows_nothing():
    assert allows(Exceptions.parse([]), "10.1.2.3", "8.8.8.8", "fd00::1") == [False, False, False]


def test_networks_are_allowed_and_nothing_beside_them():
    exceptions = Exceptions.parse(["10.1.0.0/16", "[fd00::/8]:443", "100.64.0.0/10"])
    assert allows(exceptions, "10.1.0.0", "10.1.255.255", "fd12::1", "100.64.0.1") == [True] * 4
    assert allows(exceptions, "10.0.255.255", "10.2.0.0", "fc00::1", "::ffff:10.1.0.1", "64:ff9b::a01:1") == [False] * 5


def test_metadata_stays_closed_within_a_network_that_is_open():
    exceptions = Exceptions.parse(["100.64.0.0/10", "fd00::/8"])
    assert allows(exceptions, "100.100.100.200", "fd00:ec2::254", "fd20:ce::254") == [False] * 3


def test_the_addresses_that_a_name_has_now_are_allowed():
    exceptions = Exceptions.parse(["mirror.corp", "index.corp:443"])
    assert exceptions.looked_up() == {}
    exceptions.set_addresses("mirror.corp", ["10.1.2.3", "fd00::1", "10.1.2.3"])
    exceptions.set_addresses("index.corp", ["10.9.9.9"])
    assert exceptions.looked_up() == {"mirror.corp": ("10.1.2.3", "fd00::1"), "index.corp": ("10.9.9.9",)}
    assert allows(exceptions, "10.1.2.3", "fd00::1", "10.9.9.9", "10.1.2.4") == [True, True, True, False]
    exceptions.set_addresses("mirror.corp", ["10.1.2.4"])
    assert allows(exceptions, "10.1.2.3", "fd00::1", "10.9.9.9", "10.1.2.4") == [False, False, True, True]
    exceptions.set_addresses("index.corp", [])
    assert allows(exceptions, "10.9.9.9") == [False]


def test_a_name_opens_nothing_that_is_never_opened():
    exceptions = Exceptions.parse(["mirror.corp"])
    closed = ["127.0.1.1", "169.254.169.254", "::1", "fe80::1%eth0", "198.18.0.2", "224.0.0.1", "100.100.100.200"]
    exceptions.set_addresses("mirror.corp", [*closed, "::ffff:127.0.0.1", "10.1.2.3"])
    assert exceptions.looked_up() == {"mirror.corp": ("10.1.2.3",)}
    assert not any(allows(exceptions, *closed))


def test_a_name_has_so_many_addresses_and_no_more():
    exceptions = Exceptions.parse(["mirror.corp"])
    exceptions.set_addresses("mirror.corp", [f"10.1.2.{n}" for n in range(100)])
    assert exceptions.looked_up()["mirror.corp"] == tuple(f"10.1.2.{n}" for n in range(64))


def test_addresses_of_a_name_that_is_not_excepted():
    with pytest.raises(KeyError):
        Exceptions.parse(["mirror.corp"]).set_addresses("corp", ["10.1.2.3"])


@pytest.mark.parametrize(
    ("name", "excepted"),
    [
        ("mirror.corp", True),
        ("MIRROR.corp.", True),
        ("corp", False),
        ("a.mirror.corp", False),
        ("evilmirror.corp", False),
        ("mirror.corp.evil.example", False),
        ("mirror.corp..", False),
        ("mirror\\.corp", False),
        ("", False),
    ],
)
def test_a_name_is_excepted_alone(name, excepted):
    assert Exceptions.parse(["mirror.corp"]).is_excepted(name) is excepted

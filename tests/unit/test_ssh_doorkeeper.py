"""How many SSH connections there may be, and how often logins may fail."""

from __future__ import annotations

from boxwood.server.ssh import login
from boxwood.server.ssh.login import Doorkeeper


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_failed_logins_shut_an_address_out_for_a_while() -> None:
    clock = Clock()
    keeper = Doorkeeper(clock)
    for _ in range(login.FAILED - 1):
        keeper.failed("192.0.2.1")
    assert not keeper.full("192.0.2.1")
    keeper.failed("192.0.2.1")
    assert keeper.full("192.0.2.1") and not keeper.full("192.0.2.2")
    clock.now += login.FAILED_SECONDS
    assert not keeper.full("192.0.2.1")


def test_many_addresses_take_no_more_room() -> None:
    keeper = Doorkeeper(Clock())
    for number in range(login.KEPT + 100):
        keeper.failed(f"2001:db8:0:{number:x}::1")
    assert len(keeper._failed) == login.KEPT


def test_connections_are_bounded_for_each_address_for_strangers_and_in_all() -> None:
    keeper = Doorkeeper(Clock())
    keeper.by_address["192.0.2.1"] = login.MOST_OF_ADDRESS
    assert keeper.full("192.0.2.1") and not keeper.full("192.0.2.2")
    keeper.count_strangers("192.0.2.3", more=login.MOST_STRANGERS // 2)
    assert keeper.full("192.0.2.3") and not keeper.full("192.0.2.2")  # nobody shuts others out
    keeper.count_strangers("192.0.2.4", more=login.MOST_STRANGERS // 2)
    assert keeper.full("192.0.2.2")
    for address in ("192.0.2.3", "192.0.2.4"):
        keeper.count_strangers(address, more=-login.MOST_STRANGERS // 2)
    assert not keeper.full("192.0.2.2") and not keeper.strangers
    keeper.by_address.update({f"198.51.100.{number}": 1 for number in range(login.MOST - login.MOST_OF_ADDRESS)})
    assert keeper.full("192.0.2.2")


def test_an_ipv6_network_of_64_bits_counts_as_one() -> None:
    """Whoever has one address there has all of them."""
    keeper = Doorkeeper(Clock())
    for number in range(login.FAILED):
        keeper.failed(f"2001:db8:0:1::{number:x}")
    assert keeper.full("2001:db8:0:1:ffff::") and keeper.failed_often("2001:db8:0:1:ffff::%eth0")
    assert not keeper.full("2001:db8:0:2::1")
    for number in range(login.MOST_OF_ADDRESS):
        keeper.count(f"2001:db8:0:3::{number:x}", more=1)
    for number in range(login.MOST_STRANGERS // 2):
        keeper.count_strangers(f"2001:db8:0:4::{number:x}", more=1)
    assert keeper.full("2001:db8:0:3:1::") and keeper.full("2001:db8:0:4:1::") and not keeper.full("192.0.2.1")
    for number in range(login.MOST_OF_ADDRESS):
        keeper.count(f"2001:db8:0:3:2::{number:x}", more=-1)
    assert not keeper.full("2001:db8:0:3:1::") and not keeper.by_address


def test_ipv4_in_ipv6_counts_as_what_it_is() -> None:
    keeper = Doorkeeper(Clock())
    for _ in range(login.FAILED):
        keeper.failed("::ffff:192.0.2.1")
    assert keeper.full("192.0.2.1") and not keeper.full("::ffff:192.0.2.2")

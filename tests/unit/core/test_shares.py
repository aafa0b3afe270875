"""Something of which there is so much for all VMs."""

from __future__ import annotations

from boxwood.core.shares import Shares


def test_nobody_takes_what_others_need():
    shares = Shares(of_vm=40, least=2, of_all=100)
    assert shares.take("a", 25) and not shares.take("a", 1)  # a quarter of what is left
    assert shares.take("b", 18) and not shares.take("b", 1)
    assert shares.take("c", 14)
    shares.give("a", 25)
    assert shares.take("a", 17) and shares._total == 49
    for vm, amount in (("a", 17), ("b", 18), ("c", 14)):
        shares.give(vm, amount)
    assert shares._total == 0 and not shares._taken
    full = Shares(of_vm=40, least=2, of_all=3)
    assert full.take("a", 2) and full.take("b", 1) and not full.take("c", 1) and "c" not in full._taken

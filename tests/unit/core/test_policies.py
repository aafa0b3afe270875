"""Policies in the core: kept, inherited, in force before anything runs, and after whatever happens to the server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from boxwood.core import errors, policies
from boxwood.core.model import ForkRequest
from boxwood.engine.api import EngineError
from boxwood.store import keys as key_rows
from boxwood.store import secrets as secret_rows

DENY = {"type": "outbound", "priority": 1, "action": "deny"}
WEB = {"type": "outbound", "priority": 2, "action": "allow", "match": {"ports": [443]}}
DOOR = {"type": "inbound", "priority": 1, "action": "allow", "match": {"ports": [80]}}


async def patch(world, vm, **update: Any):
    told = world.core.policies
    return await told.update(world.caller, vm.vm_id, told.parse(update))


def in_force(world, vm) -> dict[str, Any]:
    return world.machine.boxes[vm.vm_id].policies.to_json()


def order(world) -> list[str]:
    """What the engine was asked of these, in that order."""
    return [name for name, _ in world.machine.calls if name in ("boot", "police", "start_run", "attach")]


async def test_it_is_in_force_before_anything_runs(world):
    vm = await world.fork(policies={"rules": {"deny": DENY}}, command="pwd")
    await world.out(vm, "pwd")
    assert order(world)[:2] == ["boot", "police"]
    assert in_force(world, vm) == {"deny": DENY}


async def test_a_box_that_cannot_have_its_policy_is_none(world):
    vm = await world.fork(policies={"rules": {"deny": DENY}})
    world.machine.fail["police"] = [EngineError("no router")]
    run = await world.run(vm, "pwd")
    assert run.state == "failed" and "no router" in run.fail_reason
    assert vm.vm_id not in world.machine.boxes
    await world.out(vm, "pwd")
    assert in_force(world, vm) == {"deny": DENY}


async def test_a_vm_without_policy_asks_for_nothing(world):
    await world.out(await world.fork(), "pwd")
    assert world.machine.called("police") == []


async def test_a_change_acts_on_what_lives(world):
    vm = await world.fork()
    run = asyncio.create_task(world.run(vm, "hang"))
    while vm.vm_id not in world.machine.boxes:
        await asyncio.sleep(0)
    await patch(world, vm, rules={"deny": DENY})
    assert in_force(world, vm) == {"deny": DENY} and not run.done()
    await patch(world, vm, rules={"deny": None})
    assert in_force(world, vm) == {}
    await world.release(vm)
    await run


async def test_a_change_that_cannot_be_put_in_force_says_so_and_is_said_again(world, monkeypatch):
    monkeypatch.setattr(policies, "AGAIN_SECONDS", (0.0, 0.01))
    vm = await world.fork()
    await world.out(vm, "pwd")
    world.machine.fail["police"] = [EngineError("no router")] * 4
    for rules in ({"deny": DENY}, {"web": WEB}):
        with pytest.raises(errors.Unavailable, match="kept, but not in force"):
            await patch(world, vm, rules=rules)
    assert world.core.policies.get(world.caller, vm.vm_id).rules == {"deny": DENY, "web": WEB}
    while in_force(world, vm) != {"deny": DENY, "web": WEB}:
        await asyncio.sleep(0)
    assert len(world.machine.called("police")) == 5


async def test_it_survives_parking_and_the_server(world):
    vm = await world.fork(policies={"rules": {"deny": DENY}})
    await world.out(vm, "pwd")
    await world.core.vms.park(world.caller, vm.vm_id)
    await world.out(vm, "pwd")
    assert in_force(world, vm) == {"deny": DENY}
    world.machine.boxes[vm.vm_id].policies = None  # as if the server had died before the router answered
    await world.restart()
    assert in_force(world, vm) == {"deny": DENY}


async def test_a_box_whose_policy_cannot_be_said_again_is_put_down(world):
    vm = await world.fork(policies={"rules": {"deny": DENY}})
    await world.out(vm, "pwd")
    world.machine.fail["police"] = [EngineError("no router")]
    await world.restart()
    assert vm.vm_id not in world.machine.boxes
    await world.out(vm, "pwd")
    assert in_force(world, vm) == {"deny": DENY}


async def test_forks_inherit_and_change_their_own(world):
    source = await world.fork(policies={"rules": {"deny": DENY, "web": WEB}})
    child = await world.fork(source.vm_id, policies={"rules": {"web": None, "door": DOOR}})
    get = world.core.policies.get
    assert get(world.caller, child.vm_id).rules == {"deny": DENY, "door": DOOR}
    assert get(world.caller, source.vm_id).rules == {"deny": DENY, "web": WEB}
    await patch(world, source, policies=[])
    assert get(world.caller, child.vm_id).rules == {"deny": DENY, "door": DOOR}


async def test_a_snapshot_has_it_and_going_back_does_not_loosen_it(world):
    vm = await world.fork(policies={"rules": {"web": WEB}})
    taken = await world.core.snapshots.take(world.caller, vm.vm_id, "before")
    await patch(world, vm, rules={"deny": {**DENY, "priority": 9}})
    await world.core.snapshots.restore(world.caller, vm.vm_id, "before")
    assert set(world.core.policies.get(world.caller, vm.vm_id).rules) == {"deny", "web"}
    again = await world.fork(taken.snapshot_id)
    assert set(world.core.policies.get(world.caller, again.vm_id).rules) == {"web"}


async def test_an_immutable_vm_keeps_its_policy(world):
    vm = await world.fork(policies={"rules": {"deny": DENY}})
    await world.core.vms.update(world.caller, vm.vm_id, immutable=True)
    with pytest.raises(errors.InvalidState):
        await patch(world, vm, rules={"deny": None})
    assert world.core.policies.get(world.caller, vm.vm_id).rules == {"deny": DENY}


async def test_what_a_connection_cannot_be_judged_by_needs_an_engine_that_sees_requests(world, make_world):
    rule = {**WEB, "match": {"methods": ["GET"]}}
    with pytest.raises(errors.Unsupported, match="judges connections"):
        await world.fork(policies={"rules": {"a": rule}})
    world.machine.sees_requests = True
    await world.restart()
    vm = await world.fork(policies={"rules": {"a": rule}})
    assert world.core.policies.get(world.caller, vm.vm_id).mitm_domains == ["*"]


async def test_the_same_key_with_another_policy_is_another_request(world):
    first = ForkRequest(source_name="ubuntu", policies={"rules": {"deny": DENY}})
    made = await world.core.vms.fork(world.caller, first, "key")
    assert (await world.core.vms.fork(world.caller, first, "key")).vm_id == made.vm_id
    with pytest.raises(errors.IdempotencyConflict):
        await world.core.vms.fork(world.caller, replace(first, policies={}), "key")


async def test_a_box_without_policy_outlives_a_router_that_is_gone(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    world.machine.fail["police"] = [EngineError("no router")]
    await world.restart()
    assert vm.vm_id in world.machine.boxes


# --- secrets


async def values(world, vm) -> dict[str, str]:
    near, names = world.core.vms._database.near, frozenset({"A", "B", "C"})
    row = world.core.policies._access.own(world.caller, vm.vm_id)
    return world.core.secrets.values(near, row.org_id, row.id, names)


async def test_a_vms_own_secrets_go_before_its_organisations(world):
    await world.core.policies.set_secret(world.caller, "A", "org-a")
    await world.core.policies.set_secret(world.caller, "B", "org-b")
    vm = await world.fork(policies={"secrets": {"B": "vm-b", "C": "vm-c"}})
    assert await values(world, vm) == {"A": "org-a", "B": "vm-b", "C": "vm-c"}
    assert await values(world, await world.fork(vm.vm_id)) == {"A": "org-a", "B": "vm-b", "C": "vm-c"}
    await patch(world, vm, secrets={"B": None})
    assert await values(world, vm) == {"A": "org-a", "B": "org-b", "C": "vm-c"}
    await world.core.vms.delete(world.caller, vm.vm_id)
    assert secret_rows.of_scope(world.core.vms._database.near, vm.vm_id) == []


async def test_secrets_that_a_proxy_could_not_hide_are_refused_together(world):
    """In all spellings: what is written in many ways counts many times. What takes nothing more goes on."""
    world.machine.sees_requests = True
    await world.restart()
    names = [f"S{number}" for number in range(9)]
    rule = {
        "type": "outbound", "priority": 3, "match": {"hosts": ["a.example"]},
        "action": {"rewrite": {"headers": {"x": "".join(f"${{secret:{name}}}" for name in names)}}},
    }  # fmt: skip
    vm = await world.fork(policies={"rules": {"all": rule}, "secrets": {"S0": "0" * 16384}})
    with pytest.raises(errors.BadRequest, match=r"policies.secrets.*131072 bytes") as refused:
        await patch(world, vm, secrets={name: name[-1] * 16384 for name in names})
    assert "1" * 99 not in str(refused.value)
    assert world.core.secrets.names(world.core.vms._database.near, vm.vm_id) == {"S0"}
    await patch(world, vm, secrets={name: name[-1] * 16384 for name in names[:8]})
    with pytest.raises(errors.BadRequest, match=f"{vm.vm_id}.*131072") as refused:
        await world.core.policies.set_secret(world.caller, "S8", "8" * 16384)
    assert "8" * 99 not in str(refused.value) and world.core.secrets.list(world.caller) == ()
    await world.core.policies.set_secret(world.caller, "S9", "9" * 16384)  # which no rule names
    await patch(world, vm, rules={"deny": DENY})  # makes nothing worse
    odd = "\"'/<é" * 800  # one alone
    with pytest.raises(errors.BadRequest, match="131072"):
        await world.core.policies.set_secret(world.caller, "ODD", odd)
    with pytest.raises(errors.BadRequest, match=r"policies.secrets.S1.*131072"):
        await patch(world, vm, secrets={"S1": odd})


async def test_a_public_vm_gives_its_secrets_to_nobody(world):
    vm = await world.fork(public=True, policies={"secrets": {"A": "a"}, "rules": {"deny": DENY}})
    database = world.core.vms._database
    org = "01KZ00000000000000000000ZZ"
    await database.write(lambda connection: key_rows.insert_org(connection, org, "others", 1))
    other = replace(world.caller, org_id=org)
    child = await world.core.vms.fork(other, ForkRequest(source_id=vm.vm_id))
    assert world.core.policies.get(other, child.vm_id).secrets == {}
    assert world.core.policies.get(other, child.vm_id).rules == {"deny": DENY}
    assert world.core.policies.shown(other, vm.vm_id) is None
    with pytest.raises(errors.Forbidden):
        world.core.policies.get(other, vm.vm_id)


async def test_rules_of_another_organisations_vm_get_no_secret_of_ones_own(world):
    """A public VM would have whoever forks it send what he keeps for his own VMs."""
    world.machine.sees_requests = True
    await world.restart()
    gate = {"host": "https://evil.example", "allow_on_status": [200], "headers": {"x": "${secret:A}"}}
    door = {**DOOR, "auth": "open", "action": {"gate": gate}}
    vm = await world.fork(public=True, policies={"rules": {"web": with_key("${secret:A}"), "door": door, "deny": DENY}})
    org = "01KZ00000000000000000000ZZ"
    await world.core.vms._database.write(lambda connection: key_rows.insert_org(connection, org, "others", 1))
    other = replace(world.caller, org_id=org)
    await world.core.policies.set_secret(other, "A", "theirs")
    child = await world.core.vms.fork(other, ForkRequest(source_id=vm.vm_id))
    own = {**DOOR, "priority": 7, "action": {"gate": gate}}
    grandchild = await world.core.vms.fork(other, ForkRequest(source_id=child.vm_id, policies={"rules": {"own": own}}))
    rules = world.core.policies.get(other, grandchild.vm_id).rules
    assert {name: rule["action"] for name, rule in rules.items() if name != "own"} == dict.fromkeys(
        ("web", "door", "deny"), "deny"
    )
    assert "auth" not in rules["door"] and rules["own"]["action"]["gate"]["headers"] == gate["headers"]
    assert world.core.policies.get(world.caller, vm.vm_id).rules["door"]["action"]["gate"]


async def test_a_row_that_was_moved_cannot_be_read(world):
    vm = await world.fork(policies={"secrets": {"A": "a"}})
    database = world.core.vms._database
    await database.write(lambda connection: connection.execute("UPDATE secrets SET name = 'B'"))
    with pytest.raises(errors.Internal, match="cannot be read"):
        await values(world, vm)


async def test_who_may_change_secrets(world):
    member = replace(world.caller, role="member")
    with pytest.raises(errors.Forbidden):
        await world.core.policies.set_secret(member, "A", "a")
    with pytest.raises(errors.Forbidden):
        await world.core.policies.remove_secret(member, "A")


def with_key(value: str) -> dict[str, Any]:
    return {**WEB, "match": {"hosts": ["a.example"]}, "action": {"rewrite": {"headers": {"a": value}}}}


async def test_a_secret_of_the_organisation_that_changes_reaches_what_lives(world):
    world.machine.sees_requests = True
    await world.restart()
    policies, boxes = world.core.policies, world.machine.boxes
    await policies.set_secret(world.caller, "A", "one")
    rules = {"a": with_key("${secret:A}")}
    user = await world.fork(policies={"rules": rules})
    own = await world.fork(policies={"rules": rules, "secrets": {"A": "own"}})
    for vm in (user, own):
        await world.out(vm, "pwd")
    assert [boxes[vm.vm_id].secrets for vm in (user, own)] == [{"A": "one"}, {"A": "own"}]
    await policies.set_secret(world.caller, "A", "two")
    assert [boxes[vm.vm_id].secrets for vm in (user, own)] == [{"A": "two"}, {"A": "own"}]
    await policies.remove_secret(world.caller, "A")
    assert [boxes[vm.vm_id].secrets for vm in (user, own)] == [{}, {"A": "own"}]
    world.machine.fail["renew_secrets"] = [EngineError("no proxy")]
    with pytest.raises(errors.Unavailable, match="kept, but not in force"):
        await policies.set_secret(world.caller, "A", "three")
    await patch(world, user, rules={"b": DENY})  # whatever is told next is told what was kept
    assert boxes[user.vm_id].secrets == {"A": "three"}


async def test_a_secret_of_another_organisation_is_nobodys_here(world):
    world.machine.sees_requests = True
    await world.restart()
    database, org = world.core.vms._database, "01KZ00000000000000000000ZZ"
    await database.write(lambda connection: key_rows.insert_org(connection, org, "others", 1))
    vm = await world.fork(policies={"rules": {"a": with_key("${secret:A}")}})
    await world.out(vm, "pwd")
    asked: list[str] = []
    world.machine.boxes[vm.vm_id].ask_secrets = lambda: asked.append("asked") or {}
    await world.core.policies.set_secret(replace(world.caller, org_id=org), "A", "theirs")
    await world.core.policies.set_secret(world.caller, "B", "named by no rule")
    assert asked == []


async def test_a_secret_that_is_not_set_is_warned_of(world):
    world.machine.sees_requests = True
    await world.restart()
    vm = await world.fork(policies={"rules": {"a": with_key("${secret:A}")}})
    (warning,) = world.core.policies.get(world.caller, vm.vm_id).warnings
    assert warning.startswith("the secret A is not set")
    await world.core.policies.set_secret(world.caller, "A", "a")
    assert world.core.policies.get(world.caller, vm.vm_id).warnings == []


async def test_a_gate_of_what_comes_in_needs_somebody_who_asks_it(world):
    """A rewrite, and a look at the body, need nobody; and nothing is warned of."""
    gate = {"host": "https://a.test", "allow_on_status": [200], "headers": {"x": "${secret:KEY}"}}
    rules = {
        "look": {**DOOR, "action": "deny", "match": {"body_contains": ["x"]}, "priority": 2},
        "door": {**DOOR, "action": {"rewrite": {"path": "/x"}}},
    }
    vm = await world.fork(policies={"rules": rules})
    assert world.core.policies.get(world.caller, vm.vm_id).warnings == []
    with pytest.raises(errors.Unsupported, match="ask a gate"):
        await patch(world, vm, rules={"door": {**DOOR, "action": {"gate": gate}}})
    world.machine.sees_requests = True
    await world.restart()
    await patch(world, vm, rules={"door": {**DOOR, "action": {"gate": gate}}})
    (warning,) = world.core.policies.get(world.caller, vm.vm_id).warnings
    assert warning.startswith("the secret KEY is not set")

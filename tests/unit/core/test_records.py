"""Records: documents of the dialects' own, and who hears of their changes."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace

import pytest

from boxwood.core import errors
from boxwood.core import records as module
from boxwood.core.changes import Changes


async def test_one_record(world):
    records, caller = world.core.records, world.caller
    made = await records.create(caller, "thing", "ns", "a", {"x": [1, "ü", None]})
    assert records.get(caller, "thing", "ns", "a") == made
    assert (made.kind, made.namespace, made.name, made.body, made.vm_id) == (
        "thing",
        "ns",
        "a",
        {"x": [1, "ü", None]},
        None,
    )
    with pytest.raises(errors.AlreadyExists):
        await records.create(caller, "thing", "ns", "a", {})
    await records.create(caller, "other", "ns", "a", {})
    await records.create(caller, "thing", "other", "a", {})
    changed = await records.update(caller, "thing", "ns", "a", lambda body: {**body, "y": 2})
    assert changed.body == {"x": [1, "ü", None], "y": 2} and changed.revision > made.revision
    assert await records.delete(caller, "thing", "ns", "a") == replace(changed, revision=world.core.changes.revision)
    for ask in (records.delete(caller, "thing", "ns", "a"), records.update(caller, "thing", "ns", "a", dict)):
        with pytest.raises(errors.NotFound):
            await ask
    with pytest.raises(errors.NotFound):
        records.get(caller, "thing", "ns", "a")


async def test_a_change_that_is_refused_changes_nothing(world):
    records, caller = world.core.records, world.caller
    made = await records.create(caller, "thing", "ns", "a", {"x": 1})

    def change(body):
        body["x"] = 2
        raise errors.Conflict("resource", "no")

    with pytest.raises(errors.Conflict):
        await records.update(caller, "thing", "ns", "a", change)
    assert records.get(caller, "thing", "ns", "a") == made


async def test_lists(world):
    records, caller = world.core.records, world.caller
    for namespace, name in (("b", "2"), ("a", "21"), ("a", "1"), ("a", "20")):
        await records.create(caller, "thing", namespace, name, {})

    async def names(*where, **more):
        return [(record.namespace, record.name) for record in await records.list(caller, "thing", *where, **more)]

    assert await names() == [("a", "1"), ("a", "20"), ("a", "21"), ("b", "2")]
    assert await names("a", prefix="2") == [("a", "20"), ("a", "21")]
    assert await names("a", limit=1) == [("a", "1")]
    assert await names(limit=2) == [("a", "1"), ("a", "20")]
    assert await names(after=("a", "20")) == [("a", "21"), ("b", "2")]
    assert await names("a", after=("a", "1"), limit=1) == [("a", "20")]
    await records.update(caller, "thing", "a", "20", lambda body: {"x": "y" * 100}, ttl=3600)
    assert await names(most_bytes=50) == [("a", "1"), ("a", "20")]
    assert [record.name for record in await records.of_kind("thing")] == ["2", "21", "1", "20"]
    assert [record.name for record in await records.of_kind("thing", lasting=True)] == ["2", "21", "1"]
    assert await records.list(replace(caller, org_id="x"), "thing") == ()


async def test_one_expires(world):
    records, caller = world.core.records, world.caller
    with world.core.changes.subscribe(caller.org_id, ["thing"]) as changes:
        await records.create(caller, "thing", "ns", "short", {}, ttl=0.02)
        await records.create(caller, "thing", "ns", "long", {}, ttl=3600)
        await records.create(caller, "thing", "ns", "later", {})
        await records.update(caller, "thing", "ns", "later", dict, ttl=0.02)
        heard = []
        async for change in changes:
            heard.append((change.type, change.item.name))
            if heard.count(("deleted", "short")) and heard.count(("deleted", "later")):
                break
    assert [record.name for record in await records.list(caller, "thing")] == ["long"]


async def test_one_whose_time_ended_while_no_server_ran(world):
    await world.core.records.create(world.caller, "thing", "ns", "a", {}, ttl=3600)
    newest = world.core.changes.revision
    await world.core.close()
    with sqlite3.connect(world.config.data / "boxwood.db") as database:
        database.execute("UPDATE records SET expires_at = 1, revision = revision + 3600000000")
    database.close()
    await world.start()
    while await world.core.records.list(world.caller, "thing"):
        await asyncio.sleep(0)
    assert world.core.changes.revision > newest + 3_600_000_000, "revisions grow although the clock was set back"


async def test_it_goes_with_its_vm(world):
    records, caller = world.core.records, world.caller
    vm = await world.fork()
    for name in "ab":
        await records.create(caller, "thing", "ns", name, {})
        await records.update(caller, "thing", "ns", name, dict, vm_id=vm.vm_id)
    with world.core.changes.subscribe(caller.org_id, ["thing"]) as changes:
        await world.core.vms.delete(caller, vm.vm_id)
        assert {((change := await anext(changes)).type, change.item.name) for _ in "ab"} == {
            ("deleted", "a"),
            ("deleted", "b"),
        }
    assert await records.list(caller, "thing") == ()


async def test_too_large_and_too_many(world, monkeypatch):
    records, caller = world.core.records, world.caller
    monkeypatch.setattr(module, "BODY_BYTES", 100)
    with pytest.raises(errors.PayloadTooLarge):
        await records.create(caller, "thing", "ns", "a", {"x": "y" * 100})
    monkeypatch.setattr(module, "MOST", 2)
    for name in "ab":
        await records.create(caller, "thing", "ns", name, {})
    with pytest.raises(errors.CapacityUnavailable):
        await records.create(caller, "thing", "ns", "c", {})
    await records.delete(caller, "thing", "ns", "a")
    await records.create(caller, "thing", "ns", "c", {})
    for namespace, name in (("", "a"), ("a", ""), ("a", "x" * 254), ("a", "\0"), ("a", "\ud800")):
        with pytest.raises(errors.BadRequest):
            await records.create(caller, "thing", namespace, name, {})


async def test_too_many_bytes(make_world):
    world = await make_world(records_bytes=16 << 20)
    records, caller = world.core.records, world.caller
    big = {"x": "y" * (5 << 20)}
    for name in "ab":
        await records.create(caller, "thing", "ns", name, big)
    await records.create(caller, "thing", "ns", "soon", big, ttl=60)
    with pytest.raises(errors.CapacityUnavailable, match="records_bytes"):
        await records.update(caller, "thing", "ns", "a", lambda body: {"x": body["x"] + "y" * (2 << 20)})
    assert records.get(caller, "thing", "ns", "a").body == big
    await records.create(caller, "thing", "ns", "c", big)
    assert [one.name for one in await records.list(caller, "thing")] == ["a", "b", "c"], "what is to go soon gave way"
    with pytest.raises(errors.CapacityUnavailable, match="records_bytes"):
        await records.create(caller, "thing", "ns", "d", big)
    await records.update(caller, "thing", "ns", "a", lambda _: {})
    await records.create(caller, "thing", "ns", "d", big)
    await records.delete(caller, "thing", "ns", "d")
    await records.create(caller, "thing", "ns", "e", {"ü": "ü" * (2 << 20)})


async def test_bytes_are_counted_again_at_the_start(make_world):
    world = await make_world(records_bytes=16 << 20)
    for name in "ab":
        await world.core.records.create(world.caller, "thing", "ns", name, {"x": "y" * (7 << 20)})
    await world.core.close()
    world = await make_world(records_bytes=16 << 20)
    with pytest.raises(errors.CapacityUnavailable):
        await world.core.records.create(world.caller, "thing", "ns", "c", {"x": "y" * (7 << 20)})


async def test_what_has_changed_since(world):
    records, caller, changes = world.core.records, world.caller, world.core.changes
    first = await records.create(caller, "thing", "ns", "a", {})
    await records.create(caller, "thing", "ns", "b", {})
    await records.create(caller, "other", "ns", "c", {})
    await records.create(caller, "thing", "else", "d", {})
    with changes.subscribe(caller.org_id, ["thing"], "ns", first.revision) as told:
        assert (await anext(told)).item.name == "b"
        await records.delete(caller, "thing", "ns", "a")
        change = await anext(told)
        assert (change.type, change.item.name) == ("deleted", "a")
        assert change.revision == change.item.revision == changes.revision
    with changes.subscribe("another", ["thing"]) as told:
        await records.delete(caller, "thing", "ns", "b")
        assert await told.wait(lambda: None, 0.01) is None
    with pytest.raises(errors.Expired):
        changes.subscribe(caller.org_id, ["thing"], since=1)


async def test_who_does_not_listen_is_given_up(world, monkeypatch):
    monkeypatch.setattr("boxwood.core.changes.BEHIND", 3)
    records, caller = world.core.records, world.caller
    with world.core.changes.subscribe(caller.org_id, ["thing"]) as told:
        for name in "abcde":
            await records.create(caller, "thing", "ns", name, {})
        with pytest.raises(errors.Expired):
            await anext(told)


async def test_waiting_for_a_change(world):
    records, caller = world.core.records, world.caller
    await records.create(caller, "thing", "ns", "a", {"x": 1})

    def look():
        record = records.get(caller, "thing", "ns", "a")
        return record if record.body["x"] == 3 else None

    with world.core.changes.subscribe(caller.org_id, ["thing"]) as told:
        waiting = asyncio.create_task(told.wait(look, 20))
        for x in (2, 3):
            await records.update(caller, "thing", "ns", "a", lambda body, x=x: {"x": x})
        assert (await waiting).body == {"x": 3}


def test_revisions_grow():
    changes = Changes()
    given = [changes.next() for _ in range(1000)]
    assert given == sorted(set(given))


async def test_what_has_been_told(world):
    """Whoever looks at all there is and subscribes since then misses nothing."""
    records, changes, caller = world.core.records, world.core.changes, world.caller
    before = changes.told("thing")
    made = await records.create(caller, "thing", "ns", "a", {})
    await records.create(caller, "other", "ns", "a", {})
    assert before < changes.told("thing") == made.revision < changes.told("other")
    with changes.subscribe(caller.org_id, ["thing"], since=before) as missed:
        assert (await anext(missed)).item == made


async def test_big_changes_are_not_remembered_without_end(world, monkeypatch):
    monkeypatch.setattr("boxwood.core.changes.REMEMBERED_BYTES", 10_000)
    records, caller, changes = world.core.records, world.caller, world.core.changes
    made = await records.create(caller, "thing", "ns", "a", {"x": "y" * 3000})
    for _ in range(9):
        latest = await records.update(caller, "thing", "ns", "a", dict)
    assert len(changes._log) == 3
    with pytest.raises(errors.Expired):
        changes.subscribe(caller.org_id, ["thing"], since=made.revision)
    with changes.subscribe(caller.org_id, ["thing"], since=latest.revision - 1) as told:
        assert (await anext(told)).item == latest


async def test_whoever_listens_and_does_not_read_is_given_up(world, monkeypatch):
    """The slowest first; who only waits until something has changed keeps nothing."""
    monkeypatch.setattr("boxwood.core.changes.BEHIND_BYTES", 10_000)
    records, caller, changes = world.core.records, world.caller, world.core.changes
    with changes.subscribe(caller.org_id, ["thing"]) as slow, changes.subscribe(caller.org_id, ["thing"]) as other:
        waiting = asyncio.create_task(other.wait(lambda: None if len(seen) < 9 else "done", 60))
        seen = []
        for at in range(9):
            await records.create(caller, "thing", "ns", str(at), {"x": "y" * 3000})
            seen.append(at)
        await records.create(caller, "thing", "ns", "last", {})
        assert await waiting == "done"
        assert (slow.bytes, other.bytes) == (0, 0)
        with pytest.raises(errors.Expired):
            await anext(slow)


async def test_what_is_to_go_soon_gives_way(world, monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    records, caller = world.core.records, world.caller
    for name, ttl in (("stays", None), ("month", 30 * 86400), ("c", 300), ("a", 100), ("b", 200)):
        await records.create(caller, "thing", "ns", name, {}, ttl=ttl)
    with world.core.changes.subscribe(caller.org_id, ["thing"]) as told:
        await asyncio.gather(*(records.create(caller, "thing", "ns", name, {}) for name in ("d", "e")))
        assert {(await anext(told)).item.name for _ in range(2)} == {"a", "b"}
    await records.create(caller, "thing", "ns", "f", {})
    with pytest.raises(errors.CapacityUnavailable):
        await records.create(caller, "thing", "ns", "g", {})
    assert [one.name for one in await records.list(caller, "thing")] == ["d", "e", "f", "month", "stays"]

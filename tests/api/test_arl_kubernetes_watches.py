"""ARL's Kubernetes protocol over a core in memory: objects are watched, and waited for."""

from __future__ import annotations

import pytest

from kube import PYTHON, TABLE, Kube, Watch, pool_spec


@pytest.fixture
def kube(api) -> Kube:
    return Kube(api)


# Watching


async def test_a_watch_tells_what_is_there_and_what_changes(kube):
    await kube.pool(replicas=0)
    async with Watch(kube, "warmpools?watch=true") as watch:
        first = await watch.next()
        assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "p1")
        await kube.pool("p2", 0)
        assert (await watch.next())["type"] == "ADDED"
        await kube.ok(
            "PATCH",
            "warmpools/p2",
            {"metadata": {"labels": {"a": "b"}}},
            headers={"content-type": "application/merge-patch+json"},
        )
        changed = await watch.next()
        assert (changed["type"], changed["object"]["metadata"]["labels"]) == ("MODIFIED", {"a": "b"})
        await kube.ok("DELETE", "warmpools/p2")
        assert (await watch.next())["type"] == "DELETED"


async def test_a_watch_goes_on_from_a_list(kube):
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "before"}, "spec": {"poolRef": "none"}}, 201)
    await kube.until("sandboxes", "before", lambda one: one["status"]["conditions"])
    listed = await kube.ok("GET", "sandboxes")
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "after"}, "spec": {"poolRef": "none"}}, 201)
    await kube.ok("DELETE", "sandboxes/before")
    async with Watch(kube, f"sandboxes?watch=1&resourceVersion={listed['metadata']['resourceVersion']}") as watch:
        seen = [await watch.next() for _ in range(2)]
        while seen[-1]["type"] != "DELETED":
            seen.append(await watch.next())
    assert (seen[0]["type"], seen[0]["object"]["metadata"]["name"]) == ("ADDED", "after")
    assert seen[-1]["object"]["metadata"]["name"] == "before"


async def test_a_watch_from_too_long_ago(kube):
    async with Watch(kube, "sandboxes?watch=1&resourceVersion=5") as watch:
        told = await watch.next()
        assert (told["type"], told["object"]["reason"], told["object"]["code"]) == ("ERROR", "Expired", 410)
        assert await watch.next() is None
    assert watch.status == 200


async def test_a_watch_with_a_selector(kube):
    """What comes to fit is added, what no longer fits is deleted."""
    merge = {"content-type": "application/merge-patch+json"}
    await kube.pool(replicas=0)
    async with Watch(kube, "warmpools?watch=1&labelSelector=on") as watch:
        for labels, type_ in (({"on": "1"}, "ADDED"), ({"on": "2"}, "MODIFIED"), ({"on": None}, "DELETED")):
            await kube.ok("PATCH", "warmpools/p1", {"metadata": {"labels": labels}}, headers=merge)
            assert (await watch.next())["type"] == type_


async def test_a_watch_of_tables(kube):
    await kube.pool(replicas=0)
    async with Watch(kube, "warmpools?watch=1", accept=TABLE) as watch:
        first = (await watch.next())["object"]
        assert first["kind"] == "Table" and first["columnDefinitions"] and first["rows"][0]["cells"][0] == "p1"
        await kube.pool("p2", 0)
        assert (await watch.next())["object"]["columnDefinitions"] is None


async def test_a_watch_ends(kube):
    """When its time is over, or the server stops."""
    async with Watch(kube, "warmpools?watch=1&timeoutSeconds=1") as watch:
        assert await watch.next() is None
    await kube.pool(replicas=0)
    async with Watch(kube, "warmpools?watch=1") as watch:
        assert (await watch.next())["type"] == "ADDED"
        kube.api.app.stopping.set()
        assert await watch.next() is None
    await kube.api.app.core.close()


async def test_lists_of_initial_events_are_refused_as_by_older_servers(kube):
    await kube.refused(422, "sendInitialEvents", "GET", "warmpools?watch=1&sendInitialEvents=true")


# Holding


async def test_whoever_polls_is_answered_when_there_is_something_to_tell(kube):
    """Not when a Sandbox is only bound: the client would sleep for a second."""
    await kube.pool()
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": "p1"}}, 201, agent=PYTHON)
    assert (await kube.ok("GET", "sandboxes/s1", agent=PYTHON))["status"]["phase"] == "Ready"
    steps = [{"name": "a", "type": "Command", "command": ["echo", "hi"]}]
    body = {"metadata": {"name": "t1"}, "spec": {"sandboxRef": "s1", "steps": steps}}
    await kube.ok("POST", "tasks", body, 201, agent=PYTHON)
    assert (await kube.ok("GET", "tasks/t1", agent=PYTHON))["status"]["state"] == "Succeeded"
    body = {"metadata": {"name": "p2"}, "spec": pool_spec(3)}
    await kube.ok("POST", "warmpools", body, 201, agent=PYTHON)
    assert (await kube.ok("GET", "warmpools/p2", agent=PYTHON))["status"]["readyReplicas"] == 3


async def test_whoever_only_looks_is_answered_at_once(kube):
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": "none"}}, 201)
    for _ in range(2):
        assert (await kube.ok("GET", "sandboxes/s1"))["status"]["phase"] == "Pending"
    assert (await kube.ok("GET", "sandboxes/s1", agent=PYTHON))["status"]["phase"] == "Pending"


async def test_what_goes_while_somebody_waits_for_it(kube):
    """The object is deleted under a held request."""
    body = {"metadata": {"name": "s1"}, "spec": {"poolRef": "none"}}
    await kube.ok("POST", "sandboxes", body, 201, agent=PYTHON)
    async with Watch(kube, "sandboxes/s1", **{"user-agent": PYTHON}) as held:
        await kube.until("sandboxes", "s1", lambda one: one["status"]["conditions"])
        await kube.ok("DELETE", "sandboxes/s1")
        assert (await held.next())["reason"] == "NotFound"
    assert held.status == 404

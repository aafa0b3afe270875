"""The protocol of ARL's gateway: pools, experiments, sums."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.core.model import ForkRequest, PoolRequest, RunRequest
from boxwood.dialects.arl_gateway import snapshots
from together import together


async def pool(arl, name: str = "p", **members):
    return await arl.ok("POST", "/v1/pools", {"name": name, "image": "ubuntu", "replicas": 1, **members}, 201)


async def ready(arl, name: str = "p", count: int = 1):
    while (shown := await arl.ok("GET", f"/v1/pools/{name}"))["readyReplicas"] < count:
        await asyncio.sleep(0.001)
    return shown


async def test_a_pool(arl):
    assert await pool(arl, profile="x", workspaceDir="/workspace") == {"name": "p", "status": "created"}
    shown = await ready(arl)
    assert {name: shown[name] for name in ("name", "namespace", "profile", "image", "state", "conditions")} == {
        "name": "p", "namespace": "default", "profile": "x", "image": "ubuntu:latest", "state": "running", "conditions": [],
    }  # fmt: skip
    assert (shown["replicas"], shown["readyReplicas"], shown["allocatedReplicas"]) == (1, 1, 0)
    assert await arl.ok("GET", "/v1/pools") == [shown]
    assert [line for line in (await arl("GET", "/v1/pools/p/logs")).text.splitlines() if '"podName":"p"' in line]


async def test_sessions_come_out_of_the_pool_that_fits(arl):
    await pool(arl, profile="x")
    await ready(arl)
    boots = len(arl.api.machine.called("boot"))
    made = await arl.ok("POST", "/v1/sessions", {"image": "docker.io/ubuntu", "profile": "x"}, 201)
    assert made["poolRef"] == "p"
    assert len(arl.api.machine.called("boot")) == boots, "it was there"
    assert not [call for call in arl.api.machine.called("start_run") if call.argv == (b"mkdir",)]
    path = f"/v1/sessions/{made['id']}"
    assert await arl.said(path, "pwd") == "/workspace\n"
    shown = await ready(arl)
    assert (shown["readyReplicas"], shown["allocatedReplicas"]) == (1, 1)
    for members in ({"image": "arkuntu", "profile": "x"}, {"image": "ubuntu", "profile": "y"},
                    {"image": "ubuntu", "profile": "x", "allowInternet": False}):  # fmt: skip
        other = await arl.ok("POST", "/v1/sessions", members, 201)
        assert other["poolRef"] == ""
    alone = await arl.ok("POST", "/v1/sessions", {"profile": "x"}, 201)
    assert (alone["poolRef"], alone["image"]) == ("p", "ubuntu:latest")


async def test_an_empty_pool_forks(arl):
    await pool(arl)
    made = [await arl.session() for _ in range(3)]
    assert len(set(made)) == 3
    assert (await arl.ok("GET", "/v1/pools/p"))["allocatedReplicas"] == 3


async def test_clients_that_name_a_pool(arl):
    await pool(arl, namespace="ns")
    body = {"poolRef": "p", "namespace": "ns", "idleTimeoutSeconds": 60, "maxLifetimeSeconds": 3600}
    made = await arl.ok("POST", "/v1/sessions", body, 201)
    assert (made["poolRef"], made["namespace"], made["image"]) == ("p", "ns", "ubuntu:latest")
    path = f"/v1/sessions/{made['id']}"
    answer = await arl(
        "POST", f"{path}/execute", {"steps": [{"name": "a", "command": ["echo", "a"]}]}, headers={"accept": "text/event-stream"}
    )  # fmt: skip
    assert answer.json()["results"][0]["output"]["stdout"] == "a\n", "they would send it again if a stream broke"
    await arl.refused(404, "pool p not found", "GET", "/v1/pools/p")
    assert (await arl.ok("GET", "/v1/pools/p?namespace=ns"))["allocatedReplicas"] == 1


async def test_pools_of_others_making(arl):
    core = arl.api.app.core
    caller = await core.keys.authenticate(arl.key)
    await core.pools.create(caller, PoolRequest("k", source_name="ubuntu", replicas=1, about={"kind": "WarmPool"}))
    shown = await arl.ok("GET", "/v1/pools/k")
    assert (shown["image"], shown["profile"]) == ("ubuntu:latest", "default")
    made = await arl.ok("POST", "/v1/sessions", {"poolRef": "k", "namespace": "default"}, 201)
    assert await arl.said(f"/v1/sessions/{made['id']}", "pwd") == "/workspace\n"


async def test_more_and_fewer(arl):
    await pool(arl, replicas=0)
    assert await arl.ok("GET", "/v1/pools") == []
    (shown,) = await arl.ok("GET", "/v1/pools?includeStopped=true")
    assert (shown["state"], shown["replicas"]) == ("stopped", 0)
    assert (await arl.ok("PATCH", "/v1/pools/p", {"replicas": 2}))["replicas"] == 2
    await ready(arl, count=2)
    await arl.refused(400, "replicas", "PATCH", "/v1/pools/p", {"replicas": -1})
    await arl.refused(400, "replicas", "PATCH", "/v1/pools/p", {})
    await arl.refused(501, "resources", "PATCH", "/v1/pools/p", {"replicas": 1, "resources": {}})
    assert await arl.ok("POST", "/v1/pools/p/prefetch", status=202) == {"name": "p", "status": "prefetch_started"}


async def test_a_pool_is_drained_and_destroyed(arl):
    await pool(arl)
    path = await arl.session()
    other = await arl.session(profile="other")
    await arl.ok("DELETE", "/v1/pools/p", status=204)
    assert "reason=pool_deleted" in (await arl.refused(410, "has ended", "GET", path))["detail"]
    assert (await arl.ok("GET", "/v1/pools/p"))["state"] == "stopped"
    await arl.ok("GET", other)
    await arl.ok("POST", "/v1/pools/p/destroy", status=204)
    await arl.refused(404, "pool p not found", "GET", "/v1/pools/p")
    await arl.ok("DELETE", "/v1/pools/p", status=204)
    await arl.ok("POST", "/v1/pools/p/destroy", status=204)


async def test_resources(arl):
    resources = {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
    await pool(arl, resources=resources)
    await ready(arl)
    limits = arl.api.machine.called("boot")[-1].limits
    assert (limits.vcpu, limits.memory_mib) == (2, 1024)


@together(
    ("status", "text", "members"),
    [
        (400, "name and image are required", {"name": None}),
        (400, "name and image are required", {"image": ""}),
        (400, "boxwood image import", {"image": "node:22"}),
        (400, "name", {"name": "a b"}),
        (400, "replicas", {"replicas": 1 << 20}),
        (400, "resources", {"resources": {"limits": {"memory": "much"}}}),
        (501, "tools", {"tools": {}}),
        (501, "configEnv", {"configEnv": {}}),
        (501, "privateContainers", {"privateContainers": [{"name": "a"}]}),
    ],
)
async def test_pools_that_are_refused(arl, status, text, members):
    await arl.refused(status, text, "POST", "/v1/pools", {"name": "p", "image": "ubuntu", **members})
    assert await arl.ok("GET", "/v1/pools?includeStopped=1") == []


async def test_a_name_that_is_taken(arl):
    await pool(arl)
    while (await arl.api.ok("GET", "/vms"))["vms"]:  # what it was made of
        await asyncio.sleep(0.001)
    await arl.refused(409, "pool p already exists", "POST", "/v1/pools", {"name": "p", "image": "ubuntu"})
    assert (await arl.api.ok("GET", "/vms"))["vms"] == []


async def test_pools_of_others(arl, arl_stranger):
    await pool(arl)
    await arl_stranger.refused(404, "pool p not found", "GET", "/v1/pools/p")
    await arl_stranger.ok("POST", "/v1/pools/p/destroy", status=204)
    assert await arl_stranger.ok("GET", "/v1/pools") == []
    await arl.ok("GET", "/v1/pools/p")


# Experiments


async def managed(arl, experiment: str, **members):
    body = {
        "image": "ubuntu",
        "experimentId": experiment,
        "profile": "default",
        "workspaceDir": "/workspace",
        **members,
    }
    return await arl.ok("POST", "/v1/managed/sessions", body, 201)


async def test_experiments(arl, arl_stranger):
    made = [await managed(arl, name) for name in ("one", "one", "two")]
    assert (made[0]["experimentId"], made[0]["managed"]) == ("one", True)
    await arl.session()
    assert await arl.ok("GET", "/v1/managed/experiments") == [
        {
            "experimentId": name,
            "sessionCount": count,
            "image": "ubuntu:latest",
            "profile": "default",
            "namespace": "default",
        }
        for name, count in (("one", 2), ("two", 1))
    ]
    sessions = await arl.ok("GET", "/v1/managed/experiments/one/sessions")
    assert [one["id"] for one in sessions] == [one["id"] for one in made[:2]]
    assert len(await arl.ok("GET", "/v1/sessions?experiment=two")) == 1
    assert await arl.ok("GET", "/v1/summary") == {
        "sessions": 4, "managedSessions": 3, "pools": 0, "readyReplicas": 0, "allocatedReplicas": 0, "experiments": 2,
    }  # fmt: skip
    assert await arl_stranger.ok("DELETE", "/v1/managed/experiments/one") == {"deleted": 0}
    assert await arl_stranger.ok("GET", "/v1/managed/experiments/one/sessions") == []
    await arl.ok("DELETE", f"/v1/sessions/{made[0]['id']}", status=204)
    assert await arl.ok("DELETE", "/v1/managed/experiments/one") == {"deleted": 1}
    assert await arl.ok("DELETE", "/v1/managed/experiments/one") == {"deleted": 0}
    assert [one["experimentId"] for one in await arl.ok("GET", "/v1/managed/experiments")] == ["two"]


async def test_users_see_their_own_sessions_of_an_experiment(arl, arl_user):
    await managed(arl, "one")
    assert await arl_user.ok("GET", "/v1/managed/experiments/one/sessions") == []


@pytest.mark.parametrize(
    "members", [{"image": ""}, {"experimentId": ""}, {"experimentId": "a b"}, {"experimentId": "x" * 64}]
)
async def test_managed_sessions_that_are_refused(arl, members):
    body = {"image": "ubuntu", "experimentId": "e", **members}
    await arl.refused(400, "", "POST", "/v1/managed/sessions", body)


async def test_a_pool_of_ones_own_vm_is_gone_back_to(arl, monkeypatch):
    """Also beyond the snapshots: what its VMs had at the beginning is in no image."""
    monkeypatch.setattr(snapshots, "MOST_SNAPSHOTS", 1)
    core = arl.api.app.core
    caller = await core.keys.authenticate(arl.key)
    source = await core.vms.fork(caller, ForkRequest(source_name="ubuntu"))
    await core.runs.start(caller, source.vm_id, RunRequest("put /workspace/own mine"))
    await core.pools.create(caller, PoolRequest("own", source_id=source.vm_id))
    await core.vms.delete(caller, source.vm_id)
    made = await arl.ok("POST", "/v1/sessions", {"poolRef": "own", "namespace": "default"}, 201)
    path = f"/v1/sessions/{made['id']}"
    await arl.execute(path, ["put", "f", "0"], ["rm", "own"], ["put", "f", "2"], ["put", "f", "3"])
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    assert await arl.said(path, "cat", "own") == "mine"
    assert len((await core.vms.list(caller)).items) == 1, "snapshots are in no list"
    assert (await arl("DELETE", path)).status_code == 204
    while await core.records.of_kind(snapshots.KIND):
        await asyncio.sleep(0)

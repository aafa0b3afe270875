"""agentkernel's protocol: sandboxes, what is on record of them, their time."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from boxwood.dialects.agentkernel import words
from boxwood.engine.api import EngineError
from fakes import started
from together import together

# Sandboxes


async def test_create_is_answered_when_it_runs(ak):
    made = await ak.create("my-project", image="python:3.12-alpine", vcpus=2, memory_mb=1024)
    assert made["name"] == "my-project"
    assert (made["status"], made["backend"], made["image"]) == ("running", "boxwood", "python:3.12-alpine")
    assert (made["vcpus"], made["memory_mb"]) == (2, 1024)
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None
    (box,) = ak.api.machine.called("boot")
    assert (box.limits.vcpu, box.limits.memory_mib) == (2, 1024)
    assert None not in made.values(), "what is not known is left out"
    assert await ak.ok("GET", "/sandboxes/my-project") == {**made, "ip": "198.18.0.3"}


async def test_old_clients_send_nulls(ak):
    body = {"name": "a", "image": None, "vcpus": None, "memory_mb": None, "profile": None, "volumes": None}
    made = await ak.ok("POST", "/sandboxes", body, 201)
    assert (made["image"], made["vcpus"], made["memory_mb"]) == ("alpine:3.20", 1, 512)


async def test_unknown_members_are_ignored(ak):
    await ak.create("a", future=[1], created_from_template="x")


@together(
    "name",
    ["", "-a", "a-", "_a", "a--b", "a__b", "a-_b", "a b", "ü", "a/b", "a.b", "x" * 64, "by-uuid", "import-config", "list",
     "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
)  # fmt: skip
async def test_names_that_are_none(ak, name):
    await ak.refused(400, "name", "POST", "/sandboxes", {"name": name})
    assert not ak.api.machine.called("boot")


@pytest.mark.parametrize("name", ["a", "A1", "a-b_c", "x" * 63, "ubuntu"])
async def test_names(ak, name):
    await ak.create(name)
    assert [found["name"] for found in await ak.ok("GET", "/sandboxes")] == [name]
    await ak.ok("DELETE", f"/sandboxes/{name}")


async def test_a_public_name_is_no_sandbox(ak):
    await ak.refused(404, "Sandbox not found", "GET", "/sandboxes/ubuntu")
    await ak.refused(404, "Sandbox not found", "POST", "/sandboxes/ubuntu/exec", {"command": ["pwd"]})


async def test_two_of_one_name_at_once(ak):
    answers = await asyncio.gather(*(ak("POST", "/sandboxes", {"name": "same"}) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert {a.json()["error"] for a in answers if a.status_code == 409} == {"Sandbox 'same' already exists"}
    assert len(ak.api.machine.boxes) == 1


async def test_a_sandbox_that_cannot_be_booted_is_not_there(ak):
    ak.api.machine.fail["boot"] = [EngineError("no room")]
    await ak.refused(500, "no room", "POST", "/sandboxes", {"name": "a"})
    while (await ak("GET", "/sandboxes/a")).status_code != 404:
        await asyncio.sleep(0.001)
    await ak.create("a")


async def test_images_are_names_of_goldens(ak):
    await ak.create("a", image="ubuntu")
    for unknown in ("node:22-alpine", "ghcr.io/a/b@sha256:0", "a"):
        told = await ak.refused(400, "boxwood image import", "POST", "/sandboxes", {"name": "b", "image": unknown})
        assert unknown in told["error"]
    for wrong in ("a b", "x" * 257, "a;b", "ü"):
        await ak.refused(400, "Invalid image", "POST", "/sandboxes", {"name": "b", "image": wrong})


async def test_profiles(ak):
    for asked, told, size in (
        (None, None, 2048),
        ("Permissive", "permissive", 2048),
        ("moderate", "moderate", 512),
    ):
        made = await ak.create("a", profile=asked, memory_mb=2048, vcpus=4)
        assert (made.get("profile"), made["memory_mb"]) == (told, size)
        box = ak.api.machine.called("boot")[-1]
        assert (box.limits.memory_mib, box.limits.vcpu) == (size, 1 if asked == "moderate" else 4)
        await ak.ok("DELETE", "/sandboxes/a")
    await ak.refused(400, "permissive, moderate, restrictive", "POST", "/sandboxes", {"name": "a", "profile": "lax"})


async def test_the_restrictive_profile(ak):
    for asked, memory in ({}, 256), ({"memory_mb": 2048, "vcpus": 4, "network": False}, 256), ({"memory_mb": 128}, 128):
        made = await ak.create("a", profile="Restrictive", **asked)
        assert (made["profile"], made["vcpus"], made["memory_mb"], made.get("ip")) == ("restrictive", 1, memory, None)
        box = ak.api.machine.called("boot")[-1]
        assert (box.limits.vcpu, box.limits.memory_mib, box.network, box.read_only) == (0.5, memory, False, True)
        assert (await ak.api.ok("GET", "/vms/a"))["resources"]["vcpu"] == 1
        await ak.refused(400, "read-only", "PUT", "/sandboxes/a/files/srv/f", {"content": "x"})
        await ak.ok("PUT", "/sandboxes/a/files/tmp/f", {"content": "x"})
        assert (await ak.ok("GET", "/sandboxes/a/files/tmp/f"))["content"] == "x"
        await ak.ok("DELETE", "/sandboxes/a")
    body = {"name": "a", "profile": "restrictive", "network": "internet"}
    await ak.refused(400, "restrictive", "POST", "/sandboxes", body)


async def test_networks(ak):
    for asked, has in ((None, True), (True, True), ("internet", True), (False, False), ("none", False)):
        await ak.create("a", network=asked)
        assert ak.api.machine.called("boot")[-1].network is has
        await ak.ok("DELETE", "/sandboxes/a")
    await ak.refused(400, "network", "POST", "/sandboxes", {"name": "a", "network": "host"})


LATER = {
    "source_url": "https://github.com/a/b", "source_ref": "main", "volumes": ["a:/b"], "secrets": ["K:h"],
    "secret_files": ["K"], "placeholder_secrets": True, "ports": ["80"], "agent": "claude", "init_script": "x",
    "lifecycle": {"auto_delete_after_seconds": 1}, "secret_mappings": {"a": "b"}, "backend": "docker",
}  # fmt: skip


@together("member", LATER)
async def test_what_cannot_be_had_is_refused(ak, member):
    await ak.refused(422, member, "POST", "/sandboxes", {"name": "a", member: LATER[member]})
    assert await ak.ok("GET", "/sandboxes") == []


async def test_backends(ak):
    for name in ("", "auto", "Automatic", "boxwood"):
        await ak.create("a", backend=name)
        await ak.ok("DELETE", "/sandboxes/a")
    await ak.refused(400, "backend", "POST", "/sandboxes", {"name": "a", "backend": "nonsense"})
    told = await ak.ok("GET", "/backends")
    (ours,) = told["backends"]
    assert told["default_backend"] == ours["backend"] == "boxwood"
    assert ours["usable"] and len(ours["capabilities"]) == 12
    assert not any(ours["capabilities"].values())


@together(
    "wrong",
    [{}, {"name": 1}, {"name": "a", "vcpus": "2"}, {"name": "a", "vcpus": 0}, {"name": "a", "vcpus": -1},
     {"name": "a", "memory_mb": 1}, {"name": "a", "labels": {"a/b": "c"}}, {"name": "a", "vcpus": 10**9}, [], "x"],
)  # fmt: skip
async def test_wrong_bodies(ak, wrong):
    assert (await ak("POST", "/sandboxes", wrong)).status_code == 400
    assert await ak.ok("GET", "/sandboxes") == []


async def test_list_shows_what_has_a_name(ak):
    first = await ak.create("a", labels={"team": "x", "tier": "1"})
    await ak.create("b", labels={"team": "y"}, description="mine")
    nameless = await ak.api.fork()
    named = await ak.api.fork(name="from-v1")
    found = await ak.ok("GET", "/sandboxes")
    assert [one["name"] for one in found] == ["from-v1", "b", "a"]
    assert found[1]["description"] == "mine" and found[2]["labels"] == first["labels"] == {"team": "x", "tier": "1"}
    assert found[0]["uuid"] == words.uuid_of(named) != words.uuid_of(nameless)
    query = {
        "label=team:x": ["a"],
        "label=team:x&label=tier:1": ["a"],
        "label=team:x&label=tier:2": [],
        "x=1": ["from-v1", "b", "a"],
    }
    for text, names in query.items():
        assert [one["name"] for one in await ak.ok("GET", f"/sandboxes?{text}")] == names
    await ak.refused(400, "label", "GET", "/sandboxes?label=x")
    assert await ak.exec("from-v1", "echo", "one core") == "one core\n"


async def test_by_uuid(ak):
    made = await ak.create("a")
    assert str(uuid.UUID(made["uuid"])) == made["uuid"]
    assert (await ak.ok("GET", f"/sandboxes/by-uuid/{made['uuid']}"))["name"] == "a"
    await ak.refused(400, "UUID", "GET", "/sandboxes/by-uuid/a")
    await ak.refused(404, "Sandbox not found", "GET", f"/sandboxes/by-uuid/{uuid.UUID(int=0)}")
    golden = (await ak.api.ok("GET", "/vms/ubuntu"))["vm_id"]
    await ak.refused(404, "Sandbox not found", "GET", f"/sandboxes/by-uuid/{words.uuid_of(golden)}")
    await ak.refused(404, "Sandbox not found", "GET", f"/sandboxes/by-uuid/{words.uuid_of(await ak.api.fork())}")


def test_uuids_lead_back():
    for vm_id in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "7" + "Z" * 25, "0" * 26):
        assert words.vm_id_of(words.uuid_of(vm_id)) == vm_id


async def test_delete(ak):
    await ak.create("a")
    assert await ak.ok("DELETE", "/sandboxes/a") == "Sandbox removed"
    await ak.refused(404, "Sandbox not found", "DELETE", "/sandboxes/a")
    assert not ak.api.machine.boxes


async def test_stop_and_start(ak):
    await ak.create("a")
    await ak.ok("PUT", "/sandboxes/a/files/f", {"content": "kept"})
    assert await ak.ok("POST", "/sandboxes/a/stop") == "Sandbox stopped"
    assert await ak.ok("POST", "/sandboxes/a/stop") == "Sandbox stopped"
    assert not ak.api.machine.boxes
    assert (await ak.ok("GET", "/sandboxes/a"))["status"] == "stopped"
    await ak.refused(409, "Sandbox 'a' is not running", "POST", "/sandboxes/a/exec", {"command": ["pwd"]})
    await ak.refused(409, "not running", "POST", "/sandboxes/a/exec/detach", {"command": ["pwd"]})
    await ak.refused(409, "not running", "PUT", "/sandboxes/a/files/f", {"content": ""})
    await ak.refused(409, "not running", "DELETE", "/sandboxes/a/files/f")
    await ak.refused(404, "not running", "GET", "/sandboxes/a/files/f")
    await ak.api.refused(409, "invalid_state", "POST", "/vms/a/runs", {"command": "pwd"})
    assert not ak.api.machine.boxes
    assert await ak.ok("POST", "/sandboxes/a/start") == "Sandbox started"
    assert len(ak.api.machine.boxes) == 1
    assert (await ak.ok("GET", "/sandboxes/a/files/f"))["content"] == "kept"
    assert await ak.ok("POST", "/sandboxes/a/start") == "Sandbox started"


async def test_stop_ends_what_runs(ak):
    await ak.create("a")
    waiting = asyncio.create_task(ak("POST", "/sandboxes/a/exec", {"command": ["hang"]}))
    await started(ak.api.machine)
    await ak.ok("POST", "/sandboxes/a/stop")
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]) == (500, "Command failed: it was stopped")


# What is on record, and how long it lasts


async def test_logs(ak):
    await ak.create("a", image="python:3.12-alpine")
    await ak.exec("a", "echo", "a b")
    await ak("POST", "/sandboxes/a/exec", {"command": ["sh", "-c", "exit 4"]})
    await ak.ok("DELETE", "/sandboxes/a/files/x")
    entries = await ak.ok("GET", "/sandboxes/a/logs")
    assert [one["type"] for one in entries] == ["sandbox_created", "command_executed", "command_executed"]
    assert entries[0]["image"] == "python:3.12-alpine"
    assert [(one["command"], one["exit_code"]) for one in entries[1:]] == [
        (["echo", "a b"], 0),
        (["sh", "-c", "exit 4"], 4),
    ]
    assert [one["timestamp"] for one in entries] == sorted(one["timestamp"] for one in entries)
    assert all("pid" in one and one["user"] is None for one in entries)


async def test_ttl_is_real(ak, monkeypatch):
    await ak.create("a")
    assert "expires_at" not in await ak.ok("GET", "/sandboxes/a")
    before = datetime.now(UTC)
    told = await ak.ok("POST", "/sandboxes/a/extend", {"by": "1h"})
    first = datetime.fromisoformat(told["expires_at"])
    assert timedelta(hours=1) <= first - before <= timedelta(hours=1, minutes=1)
    told = await ak.ok("POST", "/sandboxes/a/extend", {"by": "1d30m"})
    assert datetime.fromisoformat(told["expires_at"]) - first == timedelta(days=1, minutes=30)
    assert (await ak.ok("GET", "/sandboxes/a"))["expires_at"] == told["expires_at"]
    await ak.create("b")
    monkeypatch.setattr(words, "seconds", lambda text: 0.02)
    await ak.ok("POST", "/sandboxes/b/extend")
    while (await ak("GET", "/sandboxes/b")).status_code != 404:
        await asyncio.sleep(0.005)
    assert (await ak.ok("GET", "/sandboxes/a"))["status"] == "running"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"by":null}'])
async def test_an_hour_where_nothing_can_be_read(ak, content):
    await ak.create("a")
    told = await ak.ok("POST", "/sandboxes/a/extend", content=content)
    assert datetime.fromisoformat(told["expires_at"]) > datetime.now(UTC) + timedelta(minutes=59)


@together("by", ["", "1", "h", "-1h", "1x", "0s", "367d", "1.5h", "1h ago", "9999999999999s", "١h"])
async def test_durations_that_are_none(ak, sandbox, by):
    await ak.refused(400, "Invalid duration", "POST", "/sandboxes/a/extend", {"by": by})
    assert "expires_at" not in await ak.ok("GET", "/sandboxes/a")


async def test_several_of_a_kind_at_once(ak):
    await ak.create("a")
    extended = await asyncio.gather(*(ak.ok("POST", "/sandboxes/a/extend", {"by": "1h"}) for _ in range(4)))
    ends = sorted(datetime.fromisoformat(told["expires_at"]) for told in extended)
    assert ends[3] - ends[0] == timedelta(hours=3), "none is lost"
    for route in ("stop", "start", "stop", "start"):
        assert {
            a.status_code for a in await asyncio.gather(*(ak("POST", f"/sandboxes/a/{route}") for _ in range(4)))
        } == {200}
    assert len(ak.api.machine.boxes) == 1
    await asyncio.gather(*(ak.ok("PUT", "/sandboxes/a/files/f", {"content": str(n) * 1000}) for n in range(8)))
    assert len(set((await ak.ok("GET", "/sandboxes/a/files/f"))["content"])) == 1
    answers = await asyncio.gather(*(ak("DELETE", "/sandboxes/a") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 404, 404, 404]

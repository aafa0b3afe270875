"""agentkernel's protocol: sandboxes, commands in them, their files, their time."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from boxwood.core.core import Core
from boxwood.dialects.agentkernel import words
from boxwood.engine.api import EngineError
from fakes import fake_engine, release


async def started(machine, name_of_run: str = "start_run", count: int = 1) -> None:
    """Wait until so many runs have begun."""
    while len(machine.called(name_of_run)) < count:
        await asyncio.sleep(0.001)


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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("member", LATER)
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


@pytest.mark.parametrize(
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


# Commands


@pytest.mark.parametrize(
    "argv",
    [
        [
            "argv",
            "a b",
            "",
            "'",
            '"',
            "\\",
            "$HOME",
            "`id`",
            "$(id)",
            ";",
            "&&",
            "|",
            ">",
            "*",
            "~",
            "#",
            "!",
            "\n",
            "\t",
        ],
        ["argv", "it's", "a'b'c", "''", "-n", "--", "=", "{a,b}", "x" * 20_000, "ü€𝄞", "line\nline\r\n", "\x01\x7f"],
    ],
)
async def test_arguments_arrive_as_they_are(ak, argv):
    await ak.create("a")
    assert json.loads(await ak.exec("a", *argv)) == argv[1:]
    (entry,) = [entry for entry in await ak.ok("GET", "/sandboxes/a/logs") if entry["type"] == "command_executed"]
    assert entry["command"] == argv


async def test_what_was_started_otherwise_is_one_text(ak):
    vm = (await ak.create("a"))["uuid"]
    await ak.api.run(words.vm_id_of(vm), "echo 'a' 'b'")
    (entry,) = [entry for entry in await ak.ok("GET", "/sandboxes/a/logs") if entry["type"] == "command_executed"]
    assert entry["command"] == ["echo 'a' 'b'"]


async def test_output_is_both_streams(ak):
    await ak.create("a")
    for script, output in (
        ("echo a", "a\n"),
        ("err a", "a\n"),
        ("echo a; err b", "a\n\nb\n"),
        ("cd /", ""),
        ("bytes ff41", "�A"),
    ):
        assert await ak.exec("a", "sh", "-c", script) == output


async def test_a_failing_command_is_an_error_that_tells_all(ak):
    await ak.create("a")
    told = await ak.refused(
        409,
        "Command exited with code 3: a\n\nb\n",
        "POST",
        "/sandboxes/a/exec",
        {"command": ["sh", "-c", "echo a; err b; exit 3"]},
    )
    assert (told["exit_code"], told["output"]) == (3, "a\n\nb\n")
    told = await ak.refused(409, "127", "POST", "/sandboxes/a/exec", {"command": ["nosuch"]})
    assert told["exit_code"] == 127


async def test_env_workdir_and_user(ak):
    await ak.create("a")
    assert await ak.exec("a", "env", "K", env=["K=v=w", "L="]) == "v=w\n"
    assert await ak.exec("a", "env", "K") == "\n", "of that command alone"
    assert await ak.exec("a", "pwd", workdir="/srv") == "/srv\n"
    assert await ak.exec("a", "pwd") == "/root\n"
    assert await ak.exec("a", "whoami", user="nobody") == "nobody\n"
    assert await ak.exec("a", "whoami", user=None, env=None, workdir=None, sudo=False) == "root\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": []}, {"command": "ls"}, {"command": None}, {}, {"command": ["a\0b"]}, {"command": [1]},
        {"command": ["a"], "env": ["K"]}, {"command": ["a"], "env": ["=v"]}, {"command": ["a"], "env": {"K": "v"}},
        {"command": ["a"], "workdir": "srv"}, {"command": ["a"], "workdir": "/a/../b"}, {"command": ["a"], "user": "a b"},
        {"command": ["a"], "workdir": "/a\nb"}, {"command": ["a"], "workdir": "/" + "x" * 1024}, {"command": ["a"], "user": "$(id)"},
    ],
)  # fmt: skip
async def test_commands_that_are_none(ak, wrong):
    await ak.create("a")
    for route in ("exec", "exec/detach"):
        await ak.refused(400, "", "POST", f"/sandboxes/a/{route}", wrong)
    assert not ak.api.machine.called("start_run")


async def test_sudo_is_refused(ak):
    await ak.create("a")
    await ak.refused(403, "sudo", "POST", "/sandboxes/a/exec", {"command": ["id"], "sudo": True})


async def test_no_command_waits_for_another(ak):
    await ak.create("a")
    hanging = [asyncio.create_task(ak.exec("a", "hang")) for _ in range(3)]
    await started(ak.api.machine, count=3)
    assert await asyncio.gather(*(ak.exec("a", "echo", str(n)) for n in range(10))) == [f"{n}\n" for n in range(10)]
    release(ak.api.machine, next(iter(ak.api.machine.boxes)))
    assert await asyncio.gather(*hanging) == ["", "", ""]


async def test_places_of_commands_are_used_again_and_nobodys_business(ak):
    await ak.create("a")
    for _ in range(5):
        await ak.exec("a", "pwd")
    assert len(ak.api.machine.called("open_session")) == 1
    vm = await ak.api.ok("GET", "/vms/a")
    assert [one["session_idx"] for one in vm["sessions"]] == [0]
    assert [one["session_idx"] for one in (await ak.api.ok("GET", "/vms/a/sessions"))["sessions"]] == [0]
    assert (await ak.api.ok("POST", "/vms/a/sessions", {}))["session_idx"] == 1
    await ak.api.ok("POST", "/fork", {"source_vm_name": "a", "name": "b"})
    await ak.exec("b", "pwd")


async def test_a_command_goes_on_without_its_client(ak):
    """… and does not end with the connection."""
    await ak.create("a")
    waiting = asyncio.create_task(ak.exec("a", "sh", "-c", "hang; put /f done"))
    await started(ak.api.machine)
    waiting.cancel()
    release(ak.api.machine, next(iter(ak.api.machine.boxes)))
    while (await ak("GET", "/sandboxes/a/files/f")).status_code != 200:
        await asyncio.sleep(0.001)


async def test_the_end_of_the_server_is_told(ak):
    await ak.create("a")
    waiting = asyncio.create_task(ak("POST", "/sandboxes/a/exec", {"command": ["hang"]}))
    await started(ak.api.machine)
    ak.api.app.stopping.set()
    answer = await waiting
    assert (answer.status_code, answer.json()["success"]) == (503, False)
    await ak.refused(503, "stopping", "GET", "/sandboxes")
    ak.api.app.stopping.clear()


# Detached commands


async def test_detached(ak):
    await ak.create("a")
    made = await ak.ok(
        "POST", "/sandboxes/a/exec/detach", {"command": ["sh", "-c", "echo out; err no; hang"], "env": ["A=b"]}
    )
    assert set(made) == {"id", "sandbox", "command", "pid", "status", "exit_code", "started_at"}
    assert (made["sandbox"], made["status"], made["exit_code"], made["command"][2]) == (
        "a",
        "running",
        None,
        "echo out; err no; hang",
    )
    await started(ak.api.machine)
    url = f"/sandboxes/a/exec/detached/{made['id']}"
    assert await ak.ok("GET", f"{url}/logs") == {"stdout": "out\n"}
    assert await ak.ok("GET", f"{url}/logs?stream=stderr") == {"stderr": "no\n"}
    assert (await ak.ok("GET", url))["status"] == "running"
    assert await ak.ok("DELETE", url) == "Command killed"
    ended = await ak.ok("GET", url)
    assert (ended["status"], ended["exit_code"]) == ("failed", 137)
    assert await ak.ok("DELETE", url) == "Command killed"
    assert await ak.ok("GET", "/sandboxes/a/exec/detached") == [ended]


async def test_detached_ends(ak):
    await ak.create("a")
    ids = [
        (await ak.ok("POST", "/sandboxes/a/exec/detach", {"command": ["sh", "-c", f"exit {n}"]}))["id"] for n in (0, 5)
    ]
    vm = (await ak.api.ok("GET", "/vms/a"))["vm_id"]
    for one in ids:
        await ak.api.ok("GET", f"/vms/{vm}/runs/{one}", params={"wait": 60})
    shown = await ak.ok("GET", "/sandboxes/a/exec/detached")
    assert [(one["id"], one["status"], one["exit_code"]) for one in shown] == [
        (ids[0], "completed", 0),
        (ids[1], "failed", 5),
    ]


async def test_only_detached_commands_are_shown_as_such(ak):
    await ak.create("a")
    await ak.exec("a", "pwd")
    run = (await ak.api.run("a", "pwd"))["run_id"]
    assert await ak.ok("GET", "/sandboxes/a/exec/detached") == []
    for wrong in (run, "nope", "01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        for method, more in (("GET", ""), ("DELETE", ""), ("GET", "/logs")):
            await ak.refused(404, "Detached command not found", method, f"/sandboxes/a/exec/detached/{wrong}{more}")
    await ak.create("b")
    made = await ak.ok("POST", "/sandboxes/b/exec/detach", {"command": ["hang"]})
    await ak.refused(404, "not found", "GET", f"/sandboxes/a/exec/detached/{made['id']}")


async def test_detached_commands_outlive_the_server(ak):
    await ak.create("a")
    made = await ak.ok("POST", "/sandboxes/a/exec/detach", {"command": ["sh", "-c", "hang; echo end"]})
    await started(ak.api.machine)
    await ak.api.app.core.close()
    core = ak.api.app.core = await Core.open(ak.api.config, fake_engine.FakeEngine(ak.api.machine))
    try:
        (shown,) = await ak.ok("GET", "/sandboxes/a/exec/detached")
        assert (shown["id"], shown["status"], shown["command"]) == (
            made["id"],
            "running",
            ["sh", "-c", "hang; echo end"],
        )
        vm = (await ak.api.ok("GET", "/vms/a"))["vm_id"]
        release(ak.api.machine, vm)
        await ak.api.ok("GET", f"/vms/{vm}/runs/{made['id']}", params={"wait": 60})
        assert await ak.ok("GET", f"/sandboxes/a/exec/detached/{made['id']}/logs") == {"stdout": "end\n"}
    finally:
        await core.close()
        ak.api.app.stopping.set()  # the fixture has nothing to close


# Files


async def test_files(ak):
    await ak.create("a")
    assert (
        await ak.ok("PUT", "/sandboxes/a/files/tmp/x/f.txt", {"content": "grüße\n"}) == "Wrote 8 bytes to /tmp/x/f.txt"
    )
    assert await ak.ok("GET", "/sandboxes/a/files/tmp/x/f.txt") == {"content": "grüße\n", "encoding": "utf8", "size": 8}
    raw = b"\xff\x00" + os.urandom(100_000)
    body = {"content": base64.b64encode(raw).decode(), "encoding": "base64"}
    assert await ak.ok("PUT", "/sandboxes/a/files//tmp//raw/", body) == "Wrote 100002 bytes to /tmp/raw"
    read = await ak.ok("GET", "/sandboxes/a/files/tmp/raw")
    assert (read["encoding"], read["size"], base64.b64decode(read["content"])) == ("base64", 100_002, raw)
    assert await ak.ok("DELETE", "/sandboxes/a/files/tmp/raw") == "Deleted /tmp/raw"
    assert await ak.ok("DELETE", "/sandboxes/a/files/tmp/raw") == "Deleted /tmp/raw"
    await ak.refused(404, "no such file", "GET", "/sandboxes/a/files/tmp/raw")
    assert await ak.ok("PUT", "/sandboxes/a/files/e", {"content": "", "encoding": None}) == "Wrote 0 bytes to /e"
    assert await ak.ok("GET", "/sandboxes/a/files/e") == {"content": "", "encoding": "utf8", "size": 0}


async def test_paths_are_decoded_in_parts(ak):
    await ak.create("a")
    assert (
        await ak.ok("PUT", "/sandboxes/a/files/tmp/a%20b%23%3F%25", {"content": "x"}) == "Wrote 1 bytes to /tmp/a b#?%"
    )
    assert await ak.ok("DELETE", "/sandboxes/a/files/-rf") == "Deleted /-rf"


async def test_what_cannot_be_read_is_not_found(ak):
    await ak.create("a")
    for path in ("", "/", "etc", "nope", "etc/os-release/x"):
        assert (await ak("GET", f"/sandboxes/a/files/{path}")).status_code == 404, path


@pytest.mark.parametrize(
    "path", ["a%2F%2e%2e%2Fb", "a..b", "%2e%2e/x", "proc/1/environ", "sys/x", "dev/null", "device", "etc/passwd", "etc/shadow-",
             "etc/sudoers.d/x", "root/.ssh/id", ".//proc/x", "a%00b"],
)  # fmt: skip
async def test_paths_that_nobody_may_name(ak, path):
    await ak.create("a")
    url = f"http://127.0.0.1:18888/sandboxes/a/files/{path}"
    for method, body in (("GET", None), ("PUT", {"content": ""}), ("DELETE", None)):
        request = ak.api.http.build_request(method, "/x", json=body, headers={"authorization": f"Bearer {ak.key}"})
        request.url = request.url.copy_with(raw_path=url.removeprefix("http://127.0.0.1:18888").encode())
        answer = await ak.api.http.send(request)
        assert (answer.status_code, answer.json()["success"]) == (400, False), answer.text
    name = "/" + unquote(path)
    await ak.refused(400, "Invalid path", "POST", "/sandboxes/a/files", {"files": {"/ok": "1", name: "2"}})
    assert not ak.api.machine.called("write_file")


async def test_writing_wrongly(ak):
    await ak.create("a")
    for wrong in (
        {},
        {"content": None},
        {"content": 1},
        {"content": "***", "encoding": "base64"},
        {"content": "YQ", "encoding": "base64"},
    ):
        assert (await ak("PUT", "/sandboxes/a/files/f", wrong)).status_code == 400
    for wrong in ({}, {"files": {}}, {"files": ["/a"]}, {"files": {"a": "relative"}}, {"files": {"/a": None}}):
        assert (await ak("POST", "/sandboxes/a/files", wrong)).status_code == 400
    await ak.refused(400, "Invalid base64", "PUT", "/sandboxes/a/files/f", {"content": "*", "encoding": "base64"})
    assert not ak.api.machine.called("write_file")


async def test_several_files(ak):
    await ak.create("a")
    assert await ak.ok("POST", "/sandboxes/a/files", {"files": {"/a/1": "one", "/b": "zwei"}}) == {"written": 2}
    assert (await ak.ok("GET", "/sandboxes/a/files/a/1"))["content"] == "one"


async def test_files_that_are_too_big(ak, monkeypatch):
    await ak.create("a")
    big = b'{"content":"' + b"x" * (16 << 20) + b'"}'
    await ak.refused(413, "16777216", "PUT", "/sandboxes/a/files/f", content=big)
    await ak.ok("PUT", "/sandboxes/a/files/f", {"content": "x" * 70_000})
    monkeypatch.setattr("boxwood.dialects.agentkernel.files.READ_LIMIT", 69_999)
    await ak.refused(413, "70000 bytes", "GET", "/sandboxes/a/files/f")


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


@pytest.mark.parametrize("by", ["", "1", "h", "-1h", "1x", "0s", "367d", "1.5h", "1h ago", "9999999999999s", "١h"])
async def test_durations_that_are_none(ak, by):
    await ak.create("a")
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

"""The protocol of ARL's gateway: sessions and steps in them, who may, and what is refused."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime

import pytest

from boxwood.dialects import arl_gateway
from boxwood.dialects.arl_gateway import gateway, session
from boxwood.engine.api import EngineError
from boxwood.server.routes import OPERATIONS
from fakes import release
from together import together

ABSENT = "/v1/sessions/ubuntu-0123456789abcdef"


# Sessions


async def test_a_session_as_clients_want_it(arl):
    made = await arl.ok("POST", "/v1/sessions", {"image": "ubuntu", "profile": "p"}, 201)
    assert re.fullmatch(r"ubuntu-[0-9a-f]{16}", made["id"])
    assert made["sandboxName"] == made["podName"] == made["id"]
    assert (made["status"], made["image"], made["profile"]) == ("active", "ubuntu:latest", "p")
    assert (made["namespace"], made["poolRef"]) == ("default", "")
    assert datetime.fromisoformat(made["createdAt"]).tzinfo is not None
    got = await arl.ok("GET", f"/v1/sessions/{made['id']}")
    assert got == {**made, "podIP": got["podIP"]}
    assert arl.api.machine.called("boot"), "it is ready when it is answered"


@pytest.mark.parametrize("image", ["ubuntu", "ubuntu:latest", "docker.io/library/ubuntu", "docker.io/ubuntu:latest"])
async def test_images_are_written_in_many_ways(arl, image):
    made = await arl.ok("POST", "/v1/sessions", {"image": image}, 201)
    assert (made["image"], made["profile"]) == ("ubuntu:latest", "default")


async def test_images_that_the_configuration_names(arl):
    made = await arl.ok("POST", "/v1/sessions", {"image": "python:3.12-slim"}, 201)
    assert re.fullmatch(r"python-3-12-slim-[0-9a-f]{16}", made["id"])


async def test_an_unknown_image_says_how_to_import_it(arl):
    told = await arl.refused(400, "boxwood image import", "POST", "/v1/sessions", {"image": "node:22"})
    assert "node:22" in told["error"]
    assert not arl.api.machine.called("boot")


@together(
    ("members", "text"),
    [
        ({}, "image or profile is required"),
        ({"image": "ubuntu", "mode": "x"}, "invalid mode"),
        ({"image": "ubuntu", "allocationTimeoutSeconds": -1}, "allocationTimeoutSeconds"),
        ({"image": "ubuntu", "profile": "a b"}, "profile"),
        ({"image": "ubuntu", "idleTimeoutSeconds": 1 << 40}, "idleTimeoutSeconds"),
        ({"image": "ubuntu", "idleTimeoutSeconds": "x"}, "idleTimeoutSeconds"),
        ({"image": "ubuntu", "configEnv": {"vars": {"A=B": "x"}}}, "configEnv"),
        ({"image": "ubuntu", "configEnv": {"vars": {"A": "x" * (1 << 20)}}}, "env"),
        ({"image": "x" * 300}, "image"),
        ({"image": "ubuntu", "mode": "devbox", "devbox": {"ports": [{"port": 0}]}}, "devbox.ports"),
        ({"image": "ü"}, "image"),
    ],
)
async def test_sessions_that_are_refused(arl, members, text):
    await arl.refused(400, text, "POST", "/v1/sessions", members)
    assert await arl.ok("GET", "/v1/sessions") == []


@pytest.mark.parametrize(
    "members",
    [
        {"privateContainers": [{"name": "a", "image": "b"}]},
        {"configEnv": {"configMaps": [{}]}},
        {"configEnv": {"envVars": [{"name": "A", "valueFrom": {}}]}},
        {"mode": "devbox", "devbox": {"sshPublicKeys": ["ssh-ed25519 A"]}},
        {"mode": "devbox", "devbox": {"storageSize": "5Gi"}},
    ],
)
async def test_what_this_server_has_not(arl, members):
    await arl.refused(501, "not supported", "POST", "/v1/sessions", {"image": "ubuntu", **members})


async def test_what_clients_send_without_meaning_it(arl):
    empty = {"privateContainers": [], "configEnv": {"vars": {}, "configMaps": [], "secrets": [], "envVars": []}}
    await arl.session(**empty, devbox=None, mode="", idleTimeoutSeconds=None, workspaceDir="/w", future=[1])


async def test_no_profile_no_pool(arl):
    await arl.refused(404, "no pool found for profile x", "POST", "/v1/sessions", {"profile": "x"})
    await arl.refused(404, "pool x not found", "POST", "/v1/sessions", {"poolRef": "x"})


async def test_a_devbox(arl):
    path = await arl.session(
        mode="devbox", devbox={"ports": [{"port": 80}, {"port": 1, "name": "a", "protocol": "udp"}], "gitConfig": {"name": "N"}}
    )  # fmt: skip
    shown = await arl.ok("GET", path)
    assert shown["mode"] == "devbox"
    assert shown["connectionInfo"] == {
        "shell": f"{path}/shell",
        "ports": [
            {"name": "port-1", "containerPort": 80, "protocol": "tcp"},
            {"name": "a", "containerPort": 1, "protocol": "udp"},
        ],
    }
    assert await arl.said(path, "env", "ARL_DEVBOX_GIT_USER_NAME") == "N\n"


async def test_a_session_that_cannot_be_booted_is_not_there(arl):
    arl.api.machine.fail["boot"] = [EngineError("no room")]
    await arl.refused(500, "no room", "POST", "/v1/sessions", {"image": "ubuntu"})
    assert await arl.ok("GET", "/v1/sessions") == []
    while await arl.api.app.core.vms.count(await arl.api.app.core.keys.authenticate(arl.key)):
        await asyncio.sleep(0.001)


async def test_a_list_page_by_page(arl):
    made = [(await arl.session(profile=profile)).rpartition("/")[2] for profile in ("a", "b", "a")]
    listed = await arl("GET", "/v1/sessions")
    assert [one["id"] for one in listed.json()] == made
    assert "x-next-cursor" not in listed.headers
    first = await arl("GET", "/v1/sessions?limit=2")
    assert [one["id"] for one in first.json()] == made[:2]
    rest = await arl("GET", f"/v1/sessions?cursor={first.headers['x-next-cursor']}")
    assert [one["id"] for one in rest.json()] == made[2:]
    assert [one["id"] for one in await arl.ok("GET", "/v1/sessions?profile=a")] == [made[0], made[2]]
    assert await arl.ok("GET", "/v1/sessions?status=suspended") == []
    await arl.refused(400, "limit", "GET", "/v1/sessions?limit=-1")


async def test_the_end_of_a_session(arl):
    path = await arl.session()
    assert (await arl("DELETE", path)).status_code == 204
    assert not arl.api.machine.boxes
    name = path.rpartition("/")[2]
    gone = await arl.refused(410, "has ended", "GET", path)
    assert gone["detail"].startswith("reason=deleted deletedAt=2")
    again = await arl.refused(404, f"session not found: {name}", "DELETE", path)
    assert "operation" not in again["error"]
    assert await arl.ok("GET", "/v1/sessions") == []


async def test_a_session_whose_vm_was_deleted_is_over(arl):
    path = await arl.session()
    (vm,) = (await arl.api.ok("GET", "/vms"))["vms"]
    await arl.api.ok("DELETE", f"/vms/{vm['vm_id']}")
    gone = await arl.refused(410, "has ended", "GET", path)
    assert "reason=runtime_lost" in gone["detail"]


async def test_ended_sessions_are_remembered_up_to_a_number(arl, monkeypatch):
    monkeypatch.setattr(gateway, "MOST_ENDED", 2)
    paths = [await arl.session() for _ in range(3)]
    await arl.execute(paths[0], ["echo", "a"])
    for path in paths:
        await arl.ok("DELETE", path, status=204)
    while (await arl("GET", paths[0])).status_code == 410:
        await asyncio.sleep(0.001)
    await arl.refused(404, "session not found", "GET", paths[0])
    assert [(await arl("GET", path)).status_code for path in paths[1:]] == [410, 410]


async def test_idle_sessions_end_by_themselves(arl):
    path = await arl.session(idleTimeoutSeconds=1)
    while (shown := await arl("GET", path)).status_code == 200:
        await asyncio.sleep(0.02)
    assert "reason=idle_timeout" in shown.json()["detail"]
    assert not arl.api.machine.boxes


async def test_a_session_in_which_something_runs_is_not_idle(arl):
    path = await arl.session(idleTimeoutSeconds=1)
    running = asyncio.create_task(arl.execute(path, ["hang"]))
    other = await arl.session(idleTimeoutSeconds=1)
    while (await arl("GET", other)).status_code == 200:
        await asyncio.sleep(0.02)
    while not any(process.end is None for box in arl.api.machine.boxes.values() for process in box.runs.values()):
        await asyncio.sleep(0.001)
    (vm_id,) = arl.api.machine.boxes
    release(arl.api.machine, vm_id)
    (result,) = await running
    assert result["output"]["exit_code"] == 0


async def test_suspended_and_resumed(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "kept"])
    assert await arl.ok("POST", f"{path}/suspend") == {"status": "suspended"}
    assert (await arl.ok("GET", path))["status"] == "suspended"
    assert not arl.api.machine.boxes
    await arl.refused(409, "is suspended", "POST", f"{path}/execute", {"steps": [{"name": "a", "command": ["pwd"]}]})
    await arl.refused(409, "is suspended", "POST", f"{path}/restore", {"snapshotID": "0"})
    assert await arl.ok("POST", f"{path}/resume") == {"status": "active"}
    assert await arl.said(path, "cat", "f") == "kept"


async def test_a_session_that_is_suspended_while_something_runs_has_no_idle_time(arl, monkeypatch):
    """The end of what ran comes before the stop is over, and counts as a use."""
    path = await arl.session(idleTimeoutSeconds=1)
    there = gateway.of_app(arl.api.app)
    (one,) = there.sessions.values()
    running = asyncio.create_task(arl.execute(path, ["hang"]))
    while not (boxes := arl.api.machine.boxes) or not boxes[one.facts.vm].runs:
        await asyncio.sleep(0.001)
    stop = there.core.vms.stop

    async def slow(*args):
        await stop(*args)
        await running
        one.expires_at = 0.0  # as if it had run for long
        await there.renew(one)

    monkeypatch.setattr(there.core.vms, "stop", slow)
    await arl.ok("POST", f"{path}/suspend")
    vm = await there.core.vms.get(one.caller, one.facts.vm)
    assert (vm.stopped, vm.expires_at) == (True, None)


async def test_the_network_is_put_off_and_on(arl):
    path = await arl.session()
    name = path.rpartition("/")[2]
    await arl.execute(path, ["put", "f", "kept"])
    answer = await arl.ok("PATCH", f"{path}/network-policy", {"allowInternet": False})
    assert answer == {"sessionID": name, "allowInternet": False}
    (result,) = await arl.execute(path, ["fetch", "10"])
    assert (result["index"], result["output"]["exit_code"]) == (1, 7)
    assert await arl.said(path, "cat", "f") == "kept"
    await arl.ok("PATCH", f"{path}/network-policy", {"allowInternet": True, "egressCIDRs": ["10.0.0.0/8"]})
    (result,) = await arl.execute(path, ["fetch", "10"])
    assert result["output"]["exit_code"] == 0
    while len(arl.api.machine.boxes) > 1:  # of the VMs that it went on from
        await asyncio.sleep(0.001)


async def test_networks_that_are_refused(arl):
    path = await arl.session()
    await arl.refused(400, "allowInternet is required", "PATCH", f"{path}/network-policy", {})
    for member in ("egressCIDRs", "egressFQDNs"):
        body = {"allowInternet": False, member: ["10.0.0.0/8"]}
        await arl.refused(501, "egress", "PATCH", f"{path}/network-policy", body)
    await arl.execute(path, ["daemon"])
    await arl.refused(409, "something runs", "PATCH", f"{path}/network-policy", {"allowInternet": False})


# Steps


async def test_all_steps_are_done_and_numbered(arl):
    path = await arl.session()
    first = await arl.execute(path, ["sh", "-c", "echo a ; err b ; exit 3"], ["pwd"])
    assert [one["index"] for one in first] == [0, 1]
    assert first[0]["output"] == {"stdout": "a\n", "stderr": "b\n", "exit_code": 3}
    assert first[1]["output"]["stdout"] == "/workspace\n"
    assert [one["snapshot_id"] for one in first] == ["0", "1"]
    assert first[0]["input"] == {"name": "step 0", "command": ["sh", "-c", "echo a ; err b ; exit 3"]}
    assert isinstance(first[0]["duration_ms"], int)
    assert datetime.fromisoformat(first[0]["timestamp"]).tzinfo is not None
    (second,) = await arl.execute(path, ["pwd"])
    assert second["index"] == 2


async def test_what_a_step_may_say(arl):
    path = await arl.session(configEnv={"vars": {"A": "session", "B": "session"}})
    steps = [
        {"name": "a", "command": ["env", "A"], "env": {"A": "step"}, "workDir": None, "timeoutSeconds": None},
        {"name": "b", "command": ["env", "B"], "env": None},
        {"name": "c", "command": ["pwd"], "workDir": "/srv"},
        {"name": "d", "command": ["pwd"], "workDir": "sub", "type": "Command"},
    ]
    done = await arl.ok("POST", f"{path}/execute", {"steps": steps, "traceID": "t"})
    assert [one["output"]["stdout"] for one in done["results"]] == ["step\n", "session\n", "/srv\n", "/workspace/sub\n"]
    assert done["results"][0]["input"] == {"name": "a", "command": ["env", "A"], "env": {"A": "step"}}
    assert done["sessionID"] == path.rpartition("/")[2]
    assert done["totalDurationMs"] == sum(one["duration_ms"] for one in done["results"])


async def test_steps_that_cannot_be_run_are_results(arl):
    path = await arl.session()
    steps = [
        {"name": "none"},
        {"name": "empty", "command": []},
        {"name": "nul", "command": ["a\0b"]},
        {"name": "nowhere", "command": ["no-such-program"]},
        {"name": "env", "command": ["pwd"], "env": {"A=B": "c"}},
        {"name": "slow", "command": ["hang"], "timeout": 1},
        {"name": "last", "command": ["echo", "still"]},
    ]
    done = await arl.ok("POST", f"{path}/execute", {"steps": steps})
    outputs = {one["name"]: one["output"] for one in done["results"]}
    for name in ("none", "empty"):
        assert outputs[name] == {"stdout": "", "stderr": "executor error: [2] empty command\n", "exit_code": 1}
    assert outputs["nul"]["exit_code"] == outputs["env"]["exit_code"] == 1
    assert outputs["nowhere"]["exit_code"] == 127
    assert "No such file or directory" in outputs["nowhere"]["stderr"]
    assert outputs["slow"] == {"stdout": "", "stderr": "executor error: timed out after 1 seconds\n", "exit_code": 124}
    assert outputs["last"]["stdout"] == "still\n"


async def test_bytes_that_are_no_text(arl):
    path = await arl.session()
    assert await arl.said(path, "bytes", "61ff62") == "a\N{REPLACEMENT CHARACTER}b"


@together(
    ("body", "text"),
    [
        ({}, "steps is required"),
        ({"steps": []}, "steps is required"),
        ({"steps": None}, "steps is required"),
        ({"steps": {}}, "invalid request"),
        ({"steps": [{"name": 1}]}, "invalid request"),
        ({"steps": [{"name": "a", "command": "ls"}]}, "invalid request"),
        ({"steps": [{"name": "a" * 1025}]}, "name"),
        ({"steps": [{"name": "a"}], "operationID": "a/b"}, "operationID"),
        ({"steps": [{"name": "a"}], "operationID": "x" * 129}, "operationID"),
    ],
)
async def test_executes_that_are_refused(arl, body, text):
    path = await arl.session()
    await arl.refused(400, text, "POST", f"{path}/execute", body)
    assert await arl.ok("GET", f"{path}/history") == []


async def test_a_body_that_is_too_long_or_no_json(arl):
    path = await arl.session()
    await arl.refused(400, "invalid request", "POST", f"{path}/execute", content=b"{")
    await arl.refused(413, "at most", "POST", f"{path}/execute", content=b" " * (10 << 20) + b"{}")


async def test_two_at_once_in_one_session(arl):
    path = await arl.session()
    hanging = asyncio.create_task(arl.execute(path, ["hang"]))
    while len(arl.api.machine.called("start_run")) < 2:  # the first made the directory
        await asyncio.sleep(0.001)
    (quick,) = await arl.execute(path, ["echo", "a"])
    (vm_id,) = arl.api.machine.boxes
    release(arl.api.machine, vm_id)
    (slow,) = await hanging
    assert (quick["index"], slow["index"]) == (0, 1), "in the order in which they ended"


# Who may


def routes() -> list[tuple[str, str]]:
    filled = {"{id}": ABSENT.rpartition("/")[2], "{operation}": "o", "{path}": "f", "{name}": "n", "{experiment}": "e",
              "{port}": "80"}  # fmt: skip
    found = []
    for operation in arl_gateway.DIALECT.operations:
        path = operation.path
        for name, value in filled.items():
            path = path.replace(name, value)
        if operation.access != "public":
            found.append((operation.method, path))
    return found


@together(("method", "path"), routes())
async def test_without_a_key(arl, method, path):
    for header, text in (
        (None, "missing or invalid Authorization header"),
        ("Basic x", "missing or invalid Authorization header"),
        ("Bearer ", "missing or invalid Authorization header"),
        ("Bearer wrong", "invalid API key"),
    ):
        headers = {} if header is None else {"authorization": header}
        response = await arl.api.http.request(method, f"/arl{path}", headers=headers)
        assert response.status_code == 401
        assert response.json() == {"error": text}
        assert response.headers["www-authenticate"] == 'Bearer realm="arl-gateway"'


async def test_no_such_route(arl):
    assert (await arl.api.http.get("/arl/v1/none")).status_code == 401
    await arl.refused(404, "page not found", "GET", "/v1/none")
    await arl.refused(404, "page not found", "PUT", "/v1/sessions")


async def test_health_needs_no_key(arl):
    response = await arl.api.http.get("/arl/healthz")
    assert (response.status_code, response.text) == (200, "ok")


BODIES = {
    "execute": {"steps": [{"name": "a", "command": ["put", "f", "x"]}]},
    "download-file": {"path": "f"},
    "files": {"path": "f", "content": "x"},
    "restore": {"snapshotID": "0"},
    "replay": {"sourceSessionID": "x"},
    "fork": {"step": 0},
    "network-policy": {"allowInternet": False},
}


def of_a_session() -> list[tuple[str, str]]:
    return [(method, path.removeprefix(ABSENT)) for method, path in routes() if path.startswith(ABSENT)]


@together(("method", "rest"), of_a_session())
async def test_sessions_of_others_and_none(arl, arl_stranger, arl_user, method, rest):
    path = await arl.session()
    await arl.execute(path, ["echo", "a"])
    body = BODIES.get(rest.strip("/"))
    more = {"headers": {"x-arl-path": "f"}}
    refused = next(one for one in arl_gateway.DIALECT.operations if _fits(one.path, method, rest, one.method)).refused
    if refused:
        await arl_stranger.refused(501, "not supported", method, path + rest, body, **more)
        return
    await arl_stranger.refused(404, "session not found", method, path + rest, body, **more)
    await arl.refused(404, "session not found", method, ABSENT + rest, body, **more)
    await arl_user.refused(403, "access denied: session owned by another user", method, path + rest, body, **more)
    assert len(await arl.ok("GET", f"{path}/history")) == 1


def _fits(path: str, method: str, rest: str, its_method: str) -> bool:
    pattern = re.sub(r"\{[a-z]+\}", "[^/]+", path.removeprefix("/v1/sessions/{id}"))
    return path.startswith("/v1/sessions/{id}") and method == its_method and re.fullmatch(pattern, rest) is not None


@together(
    ("method", "path"),
    [
        ("GET", "/v1/sessions"), ("GET", "/v1/summary"), ("GET", "/v1/pools"), ("POST", "/v1/pools"),
        ("GET", "/v1/pools/a"), ("PATCH", "/v1/pools/a"), ("DELETE", "/v1/pools/a"), ("POST", "/v1/pools/a/destroy"),
        ("POST", "/v1/pools/a/prefetch"), ("GET", "/v1/pools/a/logs"), ("POST", "/v1/managed/sessions"),
        ("GET", "/v1/managed/experiments"), ("DELETE", "/v1/managed/experiments/a"),
    ],
)  # fmt: skip
async def test_what_admins_alone_may(arl_user, method, path):
    await arl_user.refused(403, "admin access required", method, path)


async def test_users_have_sessions_of_their_own(arl, arl_user):
    path = await arl_user.session()
    assert await arl_user.said(path, "echo", "a") == "a\n"
    assert await arl.said(path, "echo", "admins too") == "admins too\n"
    await arl_user.ok("DELETE", path, status=204)


@pytest.mark.parametrize("name", ["A", "a_b", "..", "%2e%2e", "x" * 64, "ü", "a%00"])
async def test_ids_that_are_none(arl, name):
    await arl.refused(404, "", "GET", f"/v1/sessions/{name}")


async def test_its_routes_are_no_others():
    heads = {operation.path.split("/")[1] for operation in OPERATIONS}
    assert not arl_gateway.DIALECT.heads & heads
    assert session.KIND == "arl.session"

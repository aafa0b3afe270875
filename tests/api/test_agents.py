"""What clients get that only their User-Agent tells apart: wire 1.11 and 1.13."""

from __future__ import annotations

import base64

import pytest

STRICT = "python-httpx/0.28.1"
VM = {
    "vm_id", "owner_org_id", "created_at", "description", "public", "state", "network", "sessions", "resources", "name",
    "root_source_vm_id", "root_source_vm_name", "region", "provider", "started_at", "max_vcpus", "min_vcpus",
    "max_memory_mib", "min_memory_mib", "min_disk_mib", "max_disk_mib",
}  # fmt: skip
MANDATORY = {
    "vm_id",
    "owner_org_id",
    "created_at",
    "description",
    "public",
    "state",
    "network",
    "sessions",
    "resources",
}
SUMMARY = {
    "run_id", "state", "started_at", "exit_code", "session_id", "command", "completed_at", "fail_reason", "vm_id",
    "vm_name", "source_org_id", "region", "provider",
}  # fmt: skip
OUTPUT = {"stdout", "stdout_encoding", "stderr", "stderr_encoding"}
COMPLETED = OUTPUT | {
    "exit_code",
    "run_id",
    "state",
    "dispatch",
    "memory_requested_mib",
    "memory_achieved_mib",
    "memory_partial",
}
SESSION = {
    "session_id", "state", "cwd", "session_idx", "env", "started_at", "vm_id", "vm_name", "source_org_id", "region",
    "provider",
}  # fmt: skip


async def test_nothing_that_the_strict_releases_do_not_know(api):
    vm = await api.fork(name="strict")
    busy = await api.fork()
    await api.run(busy, "daemon")
    made = await api.ok("POST", "/fork", {"source_vm_id": busy}, agent=STRICT)
    assert MANDATORY <= set(made) <= VM
    for one in (await api.ok("GET", "/vms/strict", agent=STRICT), *(await api.ok("GET", "/vms", agent=STRICT))["vms"]):
        assert MANDATORY <= set(one) <= VM
        assert set(one["resources"]) <= {"vcpu", "memory_mib", "disk_mib"}
        assert all(set(session) <= SESSION for session in one["sessions"])
    url = f"/vms/{vm}/runs"
    done = await api.ok("POST", url, {"command": "echo x"}, agent=STRICT)
    assert OUTPUT < set(done) <= COMPLETED
    begun = await api.ok("POST", url, {"command": "hang", "time_to_background": 0}, agent=STRICT)
    assert set(begun) == {"run_id", "state"}
    shown = await api.ok("GET", f"{url}/{done['run_id']}", agent=STRICT)
    assert set(shown) <= SUMMARY | OUTPUT | {"retry_count"}
    listed = await api.ok("GET", url, agent=STRICT)
    assert all({"exit_code", "started_at"} < set(run) <= SUMMARY for run in listed["runs"])
    session = await api.ok("POST", f"/vms/{vm}/sessions", {}, agent=STRICT)
    assert set(session) <= SESSION
    chunk = {
        "path": "/f",
        "size": 1,
        "upload_id": "u",
        "start": 0,
        "end": 1,
        "content": base64.b64encode(b"x").decode(),
    }
    wrote = await api.ok(
        "POST", f"/vms/{vm}/sync", {"op": "write", "writes": [{**chunk, "is_secret": False}]}, agent=STRICT
    )
    assert set(wrote) == {"ok", "op", "results"}
    assert set(wrote["results"][0]) == {"path", "size", "received_bytes", "ranges", "complete", "written"}
    asked = {"op": "write", "writes": [{"path": "/g", "size": 9, "presigned": True}]}
    (wish,) = (await api.ok("POST", f"/vms/{vm}/sync", asked, agent=STRICT))["results"]
    assert set(wish) == {"path", "size", "presigned_url", "upload_id", "expires_in", "method", "complete", "written"}
    read = await api.ok("POST", f"/vms/{vm}/sync", {"op": "read", "path": "/f"}, agent=STRICT)
    assert set(read) == {"ok", "op", "path", "size", "content", "encoding"}
    listing = await api.ok("POST", f"/vms/{vm}/sync", {"op": "manifest", "path": "/w"}, agent=STRICT)
    assert set(listing) == {"root", "hash_algo", "entries", "truncated"}
    response = await api("GET", "/vms/nope", agent=STRICT)
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"code", "message", "timestamp"}


@pytest.mark.parametrize("agent", ["python-httpx2/2.16.2", "boxwood/0.1.0", "curl/8.0", ""])
async def test_everybody_else_gets_everything(api, agent):
    vm = await api.fork()
    done = await api.ok("POST", f"/vms/{vm}/runs", {"command": "pwd"}, agent=agent)
    assert {"session_id", "duration_ms"} <= set(done)
    assert "platform" in await api.ok("GET", f"/vms/{vm}", agent=agent)
    assert "request_id" in (await api("GET", "/vms/nope", agent=agent)).json()["error"]


async def test_flat_sizes_for_the_releases_that_read_them(api):
    vm = await api.fork(resources={"vcpu": 2, "memory_mib": 512})
    assert (await api.ok("GET", f"/vms/{vm}", agent="Python-urllib/3.12"))["vcpu_count"] == 2
    assert "vcpu_count" not in await api.ok("GET", f"/vms/{vm}")


async def test_an_integer_exit_code_for_the_releases_that_need_one(api):
    vm = await api.fork()
    body = {"command": "hang", "time_to_background": 0}
    run = (await api.ok("POST", f"/vms/{vm}/runs", body))["run_id"]
    await api.ok("DELETE", f"/vms/{vm}/runs/{run}")
    key = {"headers": {"idempotency-key": "k"}}
    begun = (await api.ok("POST", f"/vms/{vm}/runs", body, **key))["run_id"]
    await api.ok("DELETE", f"/vms/{vm}/runs/{begun}")
    assert (await api.ok("POST", f"/vms/{vm}/runs", body, **key))["exit_code"] is None
    assert (await api.ok("POST", f"/vms/{vm}/runs", body, agent="Python-urllib/3.9", **key))["exit_code"] == -1


@pytest.mark.parametrize(
    "agent, window", [("Python-urllib/3.9", 100), (STRICT, 100), ("python-httpx2/2.16.2", 290), ("boxwood/0.1.0", 290)]
)
async def test_windows(api, agent, window, monkeypatch):
    """What is waited in all, without waiting for it."""
    waited = []
    runs = api.app.core.runs
    start, wait = runs.start, runs.wait

    async def started(caller, vm, request, key=None):
        waited.append(request.wait)
        return await start(caller, vm, type(request)(request.command, wait=0))

    async def waits(caller, vm, run_id, seconds=None):
        waited.append(seconds)
        return await wait(caller, vm, run_id, 0)

    monkeypatch.setattr(runs, "start", started)
    monkeypatch.setattr(runs, "wait", waits)
    vm = await api.fork()
    await api.ok("POST", f"/vms/{vm}/runs", {"command": "hang"}, agent=agent)
    assert sum(waited) == window
    waited.clear()
    await api.ok("POST", f"/vms/{vm}/runs", {"command": "hang", "time_to_background": 30}, agent=agent)
    assert sum(waited) == 30

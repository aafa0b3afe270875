"""A host without room: each protocol says so in its own shape, says when to try again, and nothing half made is left."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.dialects.arl_kubernetes import binding
from kube import Kube

SHORT = {"disk": ("free_disk", "disk_spare_mib", "5"), "memory": ("free_memory", "memory_spare_mib", "1")}


@pytest.fixture
def rows(api):
    """All VMs that the store has, those in nobody's sight too."""

    def rows() -> int:
        near = api.app.core._database.near
        return int(near.execute("SELECT count(*) FROM vms WHERE origin IS NULL").fetchone()[0])

    return rows


@pytest.fixture
def short(api, monkeypatch):
    def short(of: str) -> tuple[str, str]:
        """The setting that is to be named, and the seconds until it is worth while to try again."""
        member, setting, seconds = SHORT[of]
        monkeypatch.setattr(api.machine, member, 1 << 20)
        return setting, seconds

    return short


async def nothing_is_left(api, rows, monkeypatch) -> None:
    """Now, nor once there is room again."""
    while rows() or api.machine.boxes:
        await asyncio.sleep(0.001)
    monkeypatch.undo()
    assert rows() == 0


@pytest.mark.parametrize(
    ("prefix", "agent"), [("/v1", None), ("/api/v1", None), ("/api/v1", "Python-urllib/3.11")],
    ids=["contract", "second", "first"],
)  # fmt: skip
async def test_forks(api, rows, short, monkeypatch, prefix, agent):
    setting, seconds = short("disk")
    api.prefix = prefix
    more = {"agent": agent} if agent else {}
    refused = await api("POST", "/fork", {"source_vm_name": "ubuntu", "command": "echo"}, **more)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], refused.headers["retry-after"]) == (
        503,
        "capacity_unavailable",
        seconds,
    )
    assert setting in error["message"]
    assert error["recovery"] == {"work": "not_started"} and error["retry_after_seconds"] == int(seconds)
    await nothing_is_left(api, rows, monkeypatch)


@pytest.mark.parametrize("of", SHORT)
async def test_sandboxes_of_agentkernel(ak, api, rows, short, monkeypatch, of):
    setting, seconds = short(of)
    refused = await ak("POST", "/sandboxes", {"name": "box"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, seconds)
    assert setting in refused.json()["error"]
    await nothing_is_left(api, rows, monkeypatch)
    await ak.create("box")


async def test_sandboxes_of_kubernetes_wait_for_room(api, rows, short, monkeypatch):
    """As pods do on a cluster that is full."""
    monkeypatch.setattr(binding, "RETRY_SECONDS", 0.01)
    kube = Kube(api)
    await kube.pool("p1", 0)
    before = rows()
    short("disk")
    made = await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": "p1"}}, 201)
    refused = asyncio.Event()
    check = api.app.core._admission.check_vm

    def heard() -> None:
        try:
            check()
        finally:
            refused.set()

    monkeypatch.setattr(api.app.core._admission, "check_vm", heard)
    await refused.wait()
    assert (await kube.ok("GET", "sandboxes/s1"))["status"].get("phase", "Pending") == "Pending", made
    assert rows() <= before
    api.machine.free_disk = 1 << 40
    await kube.until("sandboxes", "s1", lambda one: one["status"].get("phase") == "Ready")


@pytest.mark.parametrize("of", SHORT)
async def test_sessions_of_arl(arl, api, rows, short, monkeypatch, of):
    setting, seconds = short(of)
    refused = await arl("POST", "/v1/sessions", {"image": "ubuntu", "profile": "default"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, seconds)
    assert setting in refused.json()["error"]
    await nothing_is_left(api, rows, monkeypatch)
    assert await arl.session()


async def test_a_vm_that_is_there_keeps_its_files_while_no_box_can_be_made(api, short, monkeypatch):
    vm = await api.fork()
    assert (await api.run(vm, "put /x y"))["state"] == "completed"
    await api.app.core.vms.park(await api.app.core.keys.authenticate(api.key), vm)
    setting, _ = short("memory")
    error = await api.refused(503, "capacity_unavailable", "POST", f"/vms/{vm}/sync", {"op": "read", "path": "/x"})
    assert setting in error["message"] and error["recovery"] == {"work": "not_started"}
    monkeypatch.undo()
    assert (await api.run(vm, "cat /x"))["stdout"] == "y"

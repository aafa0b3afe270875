"""ARL's Kubernetes protocol over a core in memory: how Sandboxes live and die, and how Tasks are done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import httpx2
import pytest

from boxwood.core.core import Core
from boxwood.core.model import VMFilter
from boxwood.dialects.arl_kubernetes.operator import MOST_WAITING, Operator
from boxwood.server.app import App
from fakes import fake_engine, release
from kube import Kube, Watch, command


@pytest.fixture
async def kube(api) -> Kube:
    made = Kube(api)
    await made.pool(env=[{"name": "A", "value": "pool"}, {"name": "B", "value": "pool"}])
    return made


async def vms(kube: Kube) -> list:
    caller = await kube.api.app.core.keys.authenticate(kube.api.key)
    return list((await kube.api.app.core.vms.list(caller, VMFilter(), None, 100)).items)


async def status(kube: Kube, *steps, **spec) -> dict:
    await kube.sandbox(keepAlive=True)
    return (await kube.task("t1", *steps, **spec))["status"]


# Steps


async def test_commands_in_order(kube):
    done = await status(kube, ["echo", "one"], ["err", "two"], ["echo", "three"])
    assert done["state"] == "Succeeded"
    assert (done["exitCode"], done["stdout"], done["stderr"]) == (0, "one\nthree\n", "two\n")
    assert done["duration"].endswith("s") and done["startTime"] <= done["completionTime"]


async def test_the_first_failure_is_the_last_step(kube):
    done = await status(kube, ["echo", "one"], ["exit", "3"], ["echo", "never"])
    assert (done["state"], done["exitCode"], done["stdout"]) == ("Failed", 3, "one\n")


async def test_no_shell_is_between(kube):
    done = await status(kube, ["argv", "a b", "$HOME", "", "'", "ü"])
    assert done["stdout"] == '["a b", "$HOME", "", "\'", "\\u00fc"]'


async def test_the_environment_of_a_step_is_laid_over_the_containers(kube):
    done = await status(kube, command("env", "A", env={"A": "step"}), command("env", "B"))
    assert done["stdout"] == "step\npool\n"


async def test_directories(kube):
    places = ["/workspace", "/tmp", "/workspace/sub"]
    done = await status(kube, ["pwd"], command("pwd", workDir="/tmp"), command("pwd", workDir="sub"))
    assert done["stdout"].split() == places


@pytest.mark.parametrize(
    ("step", "text", "code"),
    [
        ({"name": "x", "type": "Command"}, "no command specified", 1),
        ({"name": "x", "type": "Command", "command": []}, "no command specified", 1),
        (command("nope"), "failed to start command: nope: No such file or directory\n", 1),
        (command("echo", "a\0b"), "failed to start command: ", 1),
        (command("echo", env={"": "x"}), "failed to start command: ", 1),
        ({"name": "x", "type": "FilePatch"}, "FilePatch step requires 'path' field\n", 1),
        ({"name": "x", "type": "FilePatch", "path": "a\0", "content": ""}, "File update failed: ", 1),
        ({"name": "x", "type": "FilePatch", "path": "dir/", "content": ""}, "File update failed: ", 1),
    ],
)
async def test_steps_that_cannot_be_done(kube, step, text, code):
    done = await status(kube, step, ["echo", "never"])
    assert (done["state"], done["exitCode"], done["stdout"]) == ("Failed", code, "")
    assert done["stderr"].startswith(text)


async def test_files(kube):
    done = await status(
        kube,
        {"name": "a", "type": "FilePatch", "path": "sub/a", "content": "relative ü"},
        {"name": "b", "type": "FilePatch", "path": "/etc/b", "content": "absolute"},
        {"name": "c", "type": "FilePatch", "path": "/workspace/c"},
        ["cat", "/workspace/sub/a"],
        ["cat", "/etc/b"],
        ["cat", "c"],
    )
    told = "File created: sub/a\nFile created: /etc/b\nFile created: /workspace/c\n"
    assert (done["exitCode"], done["stdout"]) == (0, told + "relative üabsolute")


async def test_steps_of_an_unknown_type_count_as_done(kube):
    done = await status(kube, {"name": "a", "type": "command", "command": ["exit", "1"]}, ["echo", "x"])
    assert (done["state"], done["stdout"]) == ("Succeeded", "x\n")


async def test_no_steps(kube):
    done = await status(kube)
    assert (done["state"], done["exitCode"], done["stdout"], done["stderr"]) == ("Succeeded", 0, "", "")


async def test_a_command_that_takes_too_long(kube):
    done = await status(kube, ["echo", "before"], ["hang"], ["echo", "never"], timeout="50ms")
    assert (done["state"], done["exitCode"], done["stdout"], done["stderr"]) == ("Failed", -1, "before\n", "")


async def test_output_without_end_is_cut(kube):
    done = await status(kube, ["flood", str(5 << 20)])
    assert done["state"] == "Succeeded"
    assert 2 << 20 <= len(done["stdout"]) < (2 << 20) + 100
    assert "bytes of output were not kept" in done["stderr"]


async def test_bytes_that_are_no_text(kube):
    """NULs and what is not UTF-8 take more room in JSON than as bytes."""
    done = await status(kube, ["bytes", "ff00" * 400_000])
    assert done["stdout"].startswith("\ufffd\0\ufffd\0") and "more characters were not kept" in done["stdout"]


# Tasks


async def test_a_task_without_a_sandbox(kube):
    done = await kube.task("t1", ["echo", "x"], sandbox="nope")
    assert done["status"]["state"] == "Failed"
    assert done["status"]["stderr"] == 'sandbox nope not found: sandboxes.arl.infra.io "nope" not found'
    assert done["status"]["exitCode"] == 1 and done["status"]["stdout"] == ""


async def test_a_task_waits_for_its_sandbox(kube):
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": "later"}}, 201)
    made = await kube.begin("t1", ["echo", "x"])
    assert made["status"]["state"] == "Pending"
    await kube.pool("later")
    done = await kube.until("tasks", "t1", lambda one: one["status"]["state"] == "Succeeded")
    assert done["status"]["stdout"] == "x\n"


async def test_tasks_of_a_sandbox_go_one_after_the_other(kube):
    await kube.sandbox()
    (vm,) = await vms(kube)
    first = await kube.begin("t1", ["echo", "x"], ["hang"], ["put", "f", "1"])
    assert first["status"]["state"] == "Running"
    second = await kube.begin("t2", ["cat", "f"])
    assert second["status"]["state"] == "Pending"
    while not any(process.spec.argv == (b"hang",) for process in kube.api.machine.boxes[vm.vm_id].runs.values()):
        await asyncio.sleep(0)
    assert (await kube.ok("GET", "tasks/t2"))["status"]["state"] == "Pending"
    release(kube.api.machine, vm.vm_id)
    done = await kube.until("tasks", "t2", lambda one: one["status"]["state"] == "Succeeded")
    assert done["status"]["stdout"] == "1"
    assert (await kube.ok("GET", "tasks/t1"))["status"]["state"] == "Succeeded"


async def test_another_sandbox_is_not_waited_for(kube):
    await kube.sandbox()
    await kube.sandbox("s2")
    await kube.begin("t1", ["hang"])
    assert (await kube.task("t2", ["echo", "x"], sandbox="s2"))["status"]["state"] == "Succeeded"


async def test_tasks_go_when_their_time_is_over(kube):
    await kube.sandbox()
    async with Watch(kube, "tasks?watch=1") as watch:
        await kube.begin("t1", ["echo", "x"], ttlSecondsAfterFinished=0)
        seen = [await watch.next()]
        while seen[-1]["type"] != "DELETED":
            seen.append(await watch.next())
    assert seen[-2]["object"]["status"]["state"] == "Succeeded"
    await kube.task("t2", ["echo", "x"])
    caller = await kube.api.app.core.keys.authenticate(kube.api.key)
    record = kube.api.app.core.records.get(caller, "arl.task", "default", "t2")
    assert record.expires_at is not None and 3500 < (record.expires_at - record.created_at).total_seconds() < 3700


async def test_a_task_that_is_deleted_before_its_turn(kube):
    await kube.sandbox()
    (vm,) = await vms(kube)
    await kube.begin("t1", ["hang"])
    await kube.begin("t2", ["put", "/f", "x"])
    await kube.begin("t3", ["cat", "/f"])
    await kube.ok("DELETE", "tasks/t2")
    while not kube.api.machine.boxes[vm.vm_id].runs:
        await asyncio.sleep(0)
    release(kube.api.machine, vm.vm_id)
    done = await kube.until("tasks", "t3", lambda one: one["status"]["state"] in ("Failed", "Succeeded"))
    assert done["status"]["state"] == "Failed"


async def test_a_task_that_is_deleted_and_made_anew_while_it_runs(kube):
    """What is told of the second is what the second did."""
    await kube.sandbox()
    (vm,) = await vms(kube)
    await kube.begin("t1", ["echo", "old"], ["hang"])
    while not any(process.spec.argv == (b"hang",) for process in kube.api.machine.boxes[vm.vm_id].runs.values()):
        await asyncio.sleep(0)
    await kube.ok("DELETE", "tasks/t1")
    made = await kube.begin("t1", ["echo", "new"])
    assert made["status"]["state"] == "Pending"
    release(kube.api.machine, vm.vm_id)
    done = await kube.until("tasks", "t1", lambda one: one["status"]["state"] in ("Failed", "Succeeded"))
    assert (done["status"]["state"], done["status"]["stdout"]) == ("Succeeded", "new\n")


# Sandboxes


async def test_a_sandbox_that_is_deleted_and_made_anew_while_it_waits(kube):
    """It has one VM, of its own pool."""
    for pool in ("never", "later"):
        await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": pool}}, 201)
        waits = await kube.until("sandboxes", "s1", lambda one: one["status"]["conditions"])
        assert f'"{pool}" not found' in waits["status"]["conditions"][0]["message"]
        if pool == "never":
            await kube.ok("DELETE", "sandboxes/s1")
    await kube.pool("never")
    await kube.until("warmpools", "never", lambda one: one["status"]["readyReplicas"] == 1)
    assert await vms(kube) == []
    await kube.pool("later")
    made = await kube.until("sandboxes", "s1", lambda one: one["status"]["phase"] == "Ready")
    assert made["status"]["podName"].startswith("later-")
    assert [vm.name for vm in await vms(kube)] == [made["status"]["podName"]]


async def test_a_sandbox_is_a_vm_of_the_pool(kube):
    made = await kube.sandbox()
    (vm,) = await vms(kube)
    assert made["status"]["podName"] == vm.name and made["status"]["workDir"] == "/workspace"
    assert made["status"]["conditions"][0]["reason"] == "Ready"
    assert vm.labels == {"arl.infra.io/sandbox": "default/s1"}
    pool = await kube.until("warmpools", "p1", lambda one: one["status"]["readyReplicas"] == 1)
    assert pool["status"]["allocatedReplicas"] == 1


async def test_no_pool_yet(kube):
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "s1"}, "spec": {"poolRef": "later"}}, 201)
    waits = await kube.until("sandboxes", "s1", lambda one: one["status"]["conditions"])
    assert waits["status"]["phase"] == "Pending"
    assert 'warmpools.arl.infra.io "later" not found' in waits["status"]["conditions"][0]["message"]
    await kube.pool("later")
    await kube.until("sandboxes", "s1", lambda one: one["status"]["phase"] == "Ready")


async def test_a_sandbox_that_waits_for_a_pool_in_vain(kube):
    body = {"metadata": {"name": "s1"}, "spec": {"poolRef": "never", "maxLifetimeSeconds": 1}}
    async with Watch(kube, "sandboxes?watch=1") as watch:
        await kube.ok("POST", "sandboxes", body, 201)
        while (await watch.next())["type"] != "DELETED":
            pass


async def test_a_sandbox_that_cannot_be_made_says_why(kube, api):
    api.machine.fail["start_run"] = []
    await kube.pool("bad", 0, workingDir="/workspace")
    api.machine.fail["boot"] = [fake_engine.EngineError("no room in this world")] * 8
    made = await kube.sandbox(pool="bad")
    api.machine.fail["boot"] = []
    assert made["status"]["phase"] == "Failed"
    assert "no room in this world" in made["status"]["conditions"][0]["message"]
    done = await kube.task("t1", ["echo", "x"])
    assert done["status"]["stderr"].startswith("sandbox s1 has failed: ")


@pytest.mark.parametrize("keep", [True, False])
async def test_two_tasks_in_a_sandbox_that_need_not_be_kept(kube, keep):
    """It stays for a while after the last one, for that is what clients expect."""
    await kube.sandbox(keepAlive=keep)
    for name in ("t1", "t2"):
        assert (await kube.task(name, ["echo", name]))["status"]["stdout"] == f"{name}\n"
    rests = await kube.until(
        "sandboxes", "s1", lambda one: any(c["type"] == "ReadyForCleanup" for c in one["status"]["conditions"])
    )
    assert rests["status"]["conditions"][-1]["reason"] == "AllTasksComplete"
    while _left((await vms(kube))[0].expires_at) > 700:  # as long as something was done in it
        await asyncio.sleep(0)
    assert _left((await vms(kube))[0].expires_at) == pytest.approx(600 if keep else 30, abs=20)


async def test_times_that_are_changed_count_from_then_on(kube):
    await kube.sandbox(keepAlive=True)
    patch = {"spec": {"idleTimeoutSeconds": 100}}
    await kube.ok("PATCH", "sandboxes/s1", patch, headers={"content-type": "application/merge-patch+json"})
    while _left((await vms(kube))[0].expires_at) > 120:
        await asyncio.sleep(0)
    await kube.task("t1", ["echo", "x"])
    while _left((await vms(kube))[0].expires_at) < 120:
        await asyncio.sleep(0)
    while _left((await vms(kube))[0].expires_at) > 120:
        await asyncio.sleep(0)


async def test_sandboxes_that_wait_are_bounded(kube):
    caller = await kube.api.app.core.keys.authenticate(kube.api.key)
    Operator.of(kube.api.app)._waiting[caller.org_id] = MOST_WAITING
    body = {"metadata": {"name": "s1"}, "spec": {"poolRef": "p1"}}
    await kube.refused(429, "wait for their pools already", "POST", "sandboxes", body)
    await kube.refused(404, "not found", "GET", "sandboxes/s1")


def _left(at) -> float:
    return (at - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [({}, 600), ({"idleTimeoutSeconds": 50}, 50), ({"idleTimeoutSeconds": 0}, 3600),
     ({"idleTimeoutSeconds": 9000}, 3600), ({"idleTimeoutSeconds": 0, "maxLifetimeSeconds": 100}, 100),
     ({"idleTimeoutSeconds": 0, "maxLifetimeSeconds": 0}, None)],
)  # fmt: skip
async def test_how_long_a_sandbox_may_live(kube, spec, seconds):
    await kube.sandbox(keepAlive=True, **spec)
    (vm,) = await vms(kube)
    if seconds is None:
        assert vm.expires_at is None
    else:
        assert vm.expires_at is not None and _left(vm.expires_at) == pytest.approx(seconds, abs=20)


async def test_a_sandbox_that_is_idle_goes_with_its_vm(kube):
    async with Watch(kube, "sandboxes?watch=1") as watch:
        await kube.sandbox(idleTimeoutSeconds=1)
        while (await watch.next())["type"] != "DELETED":
            pass
    assert await vms(kube) == []
    await kube.refused(404, "not found", "GET", "sandboxes/s1")


async def test_a_sandbox_does_not_go_while_something_is_done_in_it(kube):
    """Its idle time is shorter than what it does."""
    await kube.sandbox(idleTimeoutSeconds=1, keepAlive=True)
    done = await kube.task("t1", ["hang"], timeout="1500ms")
    assert (done["status"]["exitCode"], done["status"]["stderr"]) == (-1, "")
    assert len(await vms(kube)) == 1


async def test_a_sandbox_that_is_deleted_under_a_task(kube):
    await kube.sandbox()
    (vm,) = await vms(kube)
    await kube.begin("t1", ["hang"])
    await kube.begin("t2", ["echo", "x"])
    while not kube.api.machine.boxes[vm.vm_id].runs:
        await asyncio.sleep(0)
    await kube.ok("DELETE", "sandboxes/s1")
    for name in ("t1", "t2"):
        done = await kube.until("tasks", name, lambda one: one["status"]["state"] == "Failed")
        assert done["status"]["stderr"].startswith("sandbox s1 not found")


async def test_a_vm_that_is_deleted_takes_its_sandbox_along(kube, api):
    await kube.sandbox()
    (vm,) = await vms(kube)
    await api.ok("DELETE", f"/vms/{vm.vm_id}")
    await kube.refused(404, "not found", "GET", "sandboxes/s1")


async def test_a_pool_that_goes_leaves_its_sandboxes(kube):
    await kube.sandbox()
    await kube.ok("DELETE", "warmpools/p1")
    assert (await kube.task("t1", ["echo", "x"]))["status"]["state"] == "Succeeded"


async def test_what_the_container_does_is_done_in_the_sandbox(kube, api):
    """Unless it is only to keep a container alive."""
    await kube.pool("works", 0, command=["put", "/workspace/main", "ran"])
    await kube.pool("sleeps", 0, command=["/bin/sh", "-c", "sleep infinity"])
    await kube.sandbox("s1", "works")
    await kube.sandbox("s2", "sleeps")
    runs = [process.spec.argv for box in api.machine.boxes.values() for process in box.runs.values()]
    assert not any(argv and b"sleep infinity" in argv for argv in runs)
    caller = await api.app.core.keys.authenticate(api.key)
    (vm,) = [vm for vm in await vms(kube) if vm.labels["arl.infra.io/sandbox"] == "default/s1"]
    (main,) = [run for run in (await api.app.core.runs.list(caller, vm.vm_id)).items if run.tag == "arl.main"]
    await api.app.core.runs.ended(caller, vm.vm_id, main.run_id)
    assert (await kube.task("t1", ["cat", "main"]))["status"]["stdout"] == "ran"


async def test_where_the_workspace_is_mounted_commands_begin(kube):
    mounts = [{"name": "workspace", "mountPath": "/work"}]
    containers = [{"name": "executor", "image": "ubuntu", "volumeMounts": mounts}]
    spec = {"containers": containers, "volumes": [{"name": "workspace", "emptyDir": {}}]}
    body = {"metadata": {"name": "w"}, "spec": {"replicas": 0, "template": {"spec": spec}}}
    await kube.ok("POST", "warmpools", body, 201)
    assert (await kube.sandbox(pool="w"))["status"]["workDir"] == "/work"
    assert (await kube.task("t1", ["pwd"]))["status"]["stdout"] == "/work\n"
    spec["volumes"] = [{"name": "workspace", "hostPath": {"path": "/etc"}}]
    body["metadata"]["name"] = "host"
    await kube.refused(422, "volumes of hostPath are not supported", "POST", "warmpools", body)


# A server that ends


async def test_another_server_goes_on(kube, api):
    """A Task that ran is told to have failed, one that waited is done; a Sandbox without a pool goes on waiting."""
    await kube.sandbox(keepAlive=True)
    await kube.ok("POST", "sandboxes", {"metadata": {"name": "s2"}, "spec": {"poolRef": "later"}}, 201)
    await kube.until("sandboxes", "s2", lambda one: one["status"]["conditions"])
    (vm,) = await vms(kube)
    await kube.begin("t1", ["hang"])
    await kube.begin("t2", ["echo", "x"])
    while not api.machine.boxes[vm.vm_id].runs:
        await asyncio.sleep(0)
    api.app.stopping.set()
    await api.app.core.close()
    core = await Core.open(api.config, fake_engine.FakeEngine(api.machine))
    api.app = App(core)
    await api.app.start()
    async with _client(api) as http:
        api.http = http
        await core.goldens.ensure_host()
        lost = await kube.until("tasks", "t1", lambda one: one["status"]["state"] != "Running")
        assert lost["status"]["state"] == "Failed" and "the server was restarted" in lost["status"]["stderr"]
        done = await kube.until("tasks", "t2", lambda one: one["status"]["state"] == "Succeeded")
        assert done["status"]["stdout"] == "x\n"
        await kube.pool("later")
        await kube.until("sandboxes", "s2", lambda one: one["status"]["phase"] == "Ready")
    api.app.stopping.set()
    await core.close()


def _client(api):
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app), base_url="http://127.0.0.1:18888")


async def test_it_can_be_left_out(kube, api):
    core = api.app.core
    core.config = replace(core.config, dialects=("agentkernel",))
    api.app = App(core)
    async with _client(api) as http:
        response = await http.get("/k8s/version", headers={"authorization": f"Bearer {api.key}"})
    assert response.status_code == 404 and response.json()["error"]["code"] == "not_found"

"""ARL's surface: what is asked of whoever keeps the objects, what is handed out, what is refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from boxwood.faces.arl import (
    ApiException,
    ArlError,
    SandboxSession,
    TaskTimeout,
    WarmPoolManager,
    WarmPoolNotFound,
)
from boxwood.faces.arl import session as session_module
from boxwood.faces.arl.durations import go_seconds, go_text, seconds
from boxwood.faces.arl.errors import api_error
from faces.memory import Memory, no

STEP = {"name": "hello", "type": "Command", "command": ["echo", "hi"]}


# --- durations


@pytest.mark.parametrize(
    ("given", "length", "sent"),
    [
        (30, 30.0, "30s"), (0.25, 0.25, "250ms"), ("30s", 30.0, "30s"), ("5m", 300.0, "300s"), ("1h30m", 5400.0, "5400s"),
        ("300ms", 0.3, "300ms"), ("1.5h", 5400.0, "5400s"), ("2s500ms", 2.5, "2500ms"), ("100µs", 1e-4, "1ms"),
        (".5s", 0.5, "500ms"), ("3ns", 3e-9, "1ms"),
    ],
)  # fmt: skip
def test_durations(given: float | str, length: float, sent: str) -> None:
    assert seconds(given) == pytest.approx(length, rel=1e-12)
    assert go_text(seconds(given)) == sent


@pytest.mark.parametrize(
    "given",
    ["", "30", "s", "-1s", "+1s", "5 m", "1d", "30s ", "1h-3m", "1e3s", "0s", "0", 0, -1, 1e12, float("nan"),
     float("inf"), "9" * 400 + "s"],
)  # fmt: skip
def test_what_is_no_duration(given: float | str) -> None:
    with pytest.raises(ValueError, match="duration"):
        SandboxSession("pool", timeout=given)


@pytest.mark.parametrize("given", [True, None, b"30s", ["30s"]])
def test_what_is_not_even_text(given: Any) -> None:
    with pytest.raises(TypeError, match="duration"):
        WarmPoolManager(timeout=given)


def test_a_servers_durations_are_read_and_never_believed() -> None:
    assert [go_seconds(text) for text in ("781ms", "0s", "1m0.5s", "", None, 3, "nonsense")] == [
        0.781, 0.0, 60.5, None, None, None, None,
    ]  # fmt: skip


# --- a sandbox


def test_what_is_sent_for_a_sandbox(memory: Memory) -> None:
    session = SandboxSession(pool_ref="pool", namespace="default")
    made = session.create_sandbox()
    assert made["status"] == {"phase": "Ready", "podName": "p"}
    assert memory.bodies == [
        {
            "apiVersion": "arl.infra.io/v1alpha1",
            "kind": "Sandbox",
            "metadata": {"name": session.sandbox_name, "namespace": "default"},
            "spec": {"poolRef": "pool", "keepAlive": False},
        }
    ]
    assert re.fullmatch(r"session-[0-9a-f]{16}", session.sandbox_name or "")


@pytest.mark.parametrize(
    ("keep", "idle", "spec"),
    [
        (True, None, {"keepAlive": True, "idleTimeoutSeconds": 1800}),
        (True, 60, {"keepAlive": True, "idleTimeoutSeconds": 60}),
        (False, 0, {"keepAlive": False, "idleTimeoutSeconds": 0}),
    ],
)
def test_idle_time(memory: Memory, keep: bool, idle: int | None, spec: dict[str, Any]) -> None:
    SandboxSession("pool", keep_alive=keep, idle_timeout_seconds=idle).create_sandbox()
    assert memory.bodies[0]["spec"] == {"poolRef": "pool", **spec}


def test_a_hundred_sandboxes_have_a_hundred_names(memory: Memory) -> None:
    for _ in range(100):
        SandboxSession("pool").create_sandbox()
    assert len(memory.names("sandboxes")) == 100


def test_a_sandbox_is_waited_for(memory: Memory) -> None:
    phases = iter(["Pending", "Bound", "Ready"])
    memory.becomes["sandboxes"] = lambda sandbox: sandbox.update(status={"phase": next(phases)})
    assert SandboxSession("pool").create_sandbox()["status"]["phase"] == "Ready"


def test_a_pool_that_is_not_there(memory: Memory) -> None:
    with pytest.raises(WarmPoolNotFound, match=r"'nope' not found in namespace 'default'; there are: pool$") as missing:
        SandboxSession("nope").create_sandbox()
    assert (missing.value.status, missing.value.reason) == (404, "Not Found")
    assert isinstance(missing.value, ValueError) and isinstance(missing.value, RuntimeError)
    with pytest.raises(ApiException, match="create_warmpool"):
        SandboxSession("pool", "elsewhere").create_sandbox()
    assert memory.names("sandboxes") == []


def test_a_server_that_knows_no_pools_is_not_one_without_the_pool(memory: Memory) -> None:
    def nothing(*arguments: object, **more: object) -> Any:
        raise no(404, "the server could not find the requested resource")

    memory.get = memory.list = nothing  # type: ignore[method-assign]
    with pytest.raises(ApiException, match="could not find the requested resource") as missing:
        SandboxSession("pool").create_sandbox()
    assert not isinstance(missing.value, WarmPoolNotFound)


def test_a_sandbox_that_fails_says_why_and_is_deleted(memory: Memory) -> None:
    why = {"phase": "Failed", "conditions": [{"message": "the image has gone"}]}
    memory.becomes["sandboxes"] = lambda sandbox: sandbox.update(status=why)
    session = SandboxSession("pool")
    with pytest.raises(RuntimeError, match="the image has gone"):
        session.create_sandbox()
    assert session.sandbox_name is None and memory.names("sandboxes") == []


def test_a_sandbox_that_is_never_ready_is_given_up_and_deleted(memory: Memory) -> None:
    status = {"phase": "Pending", "conditions": [{"message": "no VM can be had"}]}
    memory.becomes["sandboxes"] = lambda sandbox: sandbox.update(status=status)
    with pytest.raises(TimeoutError, match=r"'pool' was ready within 0\.05 s: no VM can be had"):
        SandboxSession("pool", timeout=0.05).create_sandbox()
    assert memory.names("sandboxes") == []


def test_a_documented_timeout_is_that_of_tasks_and_not_of_sandboxes(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "READY_SECONDS", 0.05)
    memory.becomes["sandboxes"] = lambda sandbox: None
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        SandboxSession("pool", timeout="1h").create_sandbox()


def test_whoever_interrupts_leaves_nothing_behind(memory: Memory) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    memory.becomes["sandboxes"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        SandboxSession("pool").create_sandbox()
    memory.becomes["sandboxes"] = lambda sandbox: sandbox.update(status={"phase": "Ready"})
    memory.becomes["tasks"] = interrupt
    session = SandboxSession("pool")
    session.create_sandbox()
    with pytest.raises(KeyboardInterrupt):
        session.execute([STEP])
    assert memory.names("tasks") == []


def test_a_second_sandbox_replaces_the_first(memory: Memory, session: SandboxSession) -> None:
    first = session.sandbox_name
    session.create_sandbox()
    assert memory.names("sandboxes") == [session.sandbox_name] != [first]


def test_deleting_twice_and_deleting_what_has_gone(memory: Memory, session: SandboxSession) -> None:
    memory.there.clear()
    session.delete_sandbox()
    session.delete_sandbox()
    assert memory.asked == ["delete sandboxes"] and session.sandbox_name is None


def test_what_keeps_a_sandbox_from_being_deleted_is_told(memory: Memory, session: SandboxSession) -> None:
    def refuse(*arguments: object) -> None:
        raise no(403, "not yours")

    memory.delete = refuse  # type: ignore[method-assign]
    with pytest.raises(ApiException, match="not yours") as refused:
        session.delete_sandbox()
    assert refused.value.reason == "Forbidden" and session.sandbox_name is not None


def test_a_with_block(memory: Memory) -> None:
    with SandboxSession("pool") as session:
        assert memory.names("sandboxes") == [session.sandbox_name]
        session.execute([STEP])
    assert memory.names("sandboxes") == [] and memory.asked[-2:] == ["delete sandboxes", "close"]
    with pytest.raises(ZeroDivisionError), SandboxSession("pool"):
        _ = 1 / 0
    assert memory.names("sandboxes") == []


def test_a_with_block_that_keeps_its_sandbox_says_so(memory: Memory) -> None:
    session = SandboxSession("pool", keep_alive=True)
    with pytest.warns(UserWarning, match="does not delete the sandbox"):
        with session:
            pass
    assert memory.names("sandboxes") == [session.sandbox_name]
    assert session.execute([STEP])["status"]["state"] == "Succeeded"
    session.delete_sandbox()
    assert memory.names("sandboxes") == []


def test_the_pools_status(memory: Memory, session: SandboxSession) -> None:
    assert session.get_pool_status() == {"total": 2, "ready_idle": 2, "allocated": 1, "available": 2}
    memory.there["warmpools", "default", "pool"].pop("status")
    assert session.get_pool_status() == {"total": 2, "ready_idle": 0, "allocated": 0, "available": 0}


def test_a_shell_is_refused_by_name(session: SandboxSession) -> None:
    with pytest.raises(ArlError, match="create_interactive_shell"):
        session.create_interactive_shell()


def test_two_servers_at_once() -> None:
    with pytest.raises(ValueError, match="either"):
        SandboxSession("pool", url="http://127.0.0.1:1", kubeconfig="x")
    with pytest.raises(ValueError, match="either"):
        WarmPoolManager(api_key="k", context="x")


# --- pools


def test_what_is_sent_for_a_pool(memory: Memory) -> None:
    with WarmPoolManager(namespace="ns") as manager:
        manager.create_warmpool("mine", "python:3.9-slim", "arl-sidecar:latest", testbed_path="/testbed")
    body = memory.bodies[-1]
    mounts = [{"name": "workspace", "mountPath": "/workspace"}, {"name": "testbed", "mountPath": "/testbed"}]
    assert body["metadata"] == {"name": "mine", "namespace": "ns"} and body["spec"]["replicas"] == 2
    executor, sidecar = body["spec"]["template"]["spec"]["containers"]
    assert executor == {
        "name": "executor",
        "image": "python:3.9-slim",
        "command": ["/bin/sh", "-c", "sleep infinity"],
        "volumeMounts": mounts,
    }
    assert (sidecar["name"], sidecar["image"], sidecar["volumeMounts"]) == ("sidecar", "arl-sidecar:latest", mounts)
    assert [volume["name"] for volume in body["spec"]["template"]["spec"]["volumes"]] == ["workspace", "testbed"]


def test_a_pool_through_its_life(memory: Memory) -> None:
    manager = WarmPoolManager()
    manager.create_warmpool(name="my-pool", image="i", sidecar_image="s", replicas=3, command=["sleep", "9"])
    filling = iter(range(4))
    memory.becomes["warmpools"] = lambda pool: pool.update(status={"readyReplicas": next(filling)})
    manager.wait_for_warmpool_ready("my-pool")
    assert list(filling) == []
    memory.becomes["warmpools"] = lambda pool: None
    assert manager.get_warmpool("my-pool")["status"] == {"readyReplicas": 3}
    manager.delete_warmpool("my-pool")
    calls: list[Callable[[str], object]] = [
        manager.get_warmpool,
        manager.delete_warmpool,
        manager.wait_for_warmpool_ready,
    ]
    for call in calls:
        with pytest.raises(ApiException) as missing:
            call("my-pool")
        assert missing.value.status == 404 and isinstance(missing.value, RuntimeError)


@pytest.mark.parametrize("status", [{}, {"readyReplicas": 1, "conditions": []}, {"readyReplicas": "2"}])
def test_a_pool_that_is_not_ready(memory: Memory, status: dict[str, Any]) -> None:
    memory.becomes["warmpools"] = lambda pool: pool.update(status=status)
    with pytest.raises(TaskTimeout, match=r"'pool' is not ready after 0\.03 s"):
        WarmPoolManager(timeout="30ms").wait_for_warmpool_ready("pool")
    with pytest.raises(TimeoutError, match=r"after 0\.02 s"):
        WarmPoolManager().wait_for_warmpool_ready("pool", timeout=0.02)


def test_a_pool_that_says_why_it_is_not_ready(memory: Memory) -> None:
    status = {"readyReplicas": 0, "conditions": [{"type": "PodsFailing", "message": "no such image"}]}
    memory.becomes["warmpools"] = lambda pool: pool.update(status=status)
    with pytest.raises(TaskTimeout, match=r"after 0\.02 s: no such image"):
        WarmPoolManager(timeout=0.02).wait_for_warmpool_ready("pool")


def test_a_pool_of_none_is_never_ready(memory: Memory) -> None:
    memory.there["warmpools", "default", "pool"]["spec"]["replicas"] = 0
    with pytest.raises(TaskTimeout):
        WarmPoolManager(timeout=0.02).wait_for_warmpool_ready("pool")


# --- errors


def test_errors_survive_pickling() -> None:
    for error in (api_error(404, "m", "{}"), api_error(404, "m", None, WarmPoolNotFound), api_error(0, "gone")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (again.status, again.reason, again.body, str(again)) == (
            error.status, error.reason, error.body, str(error),
        )  # fmt: skip
    late = pickle.loads(pickle.dumps(TaskTimeout("late", {"status": {}})))
    assert (str(late), late.task) == ("late", {"status": {}})


def test_errors_without_the_kubernetes_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from boxwood.faces.arl import errors

    monkeypatch.setitem(__import__("sys").modules, "kubernetes.client.exceptions", None)
    errors._for_kubernetes.cache_clear()
    try:
        error = errors.api_error(409, "taken")
        assert type(error) is ApiException and (error.status, error.reason) == (409, "Conflict")
    finally:
        errors._for_kubernetes.cache_clear()


def test_errors_are_those_of_the_kubernetes_package() -> None:
    exceptions = pytest.importorskip("kubernetes.client.exceptions")
    for kind in (ApiException, WarmPoolNotFound):
        error = api_error(404, "nothing", "{}", kind)
        assert isinstance(error, kind) and isinstance(error, exceptions.ApiException)
        assert (type(error).__name__, str(error)) == (kind.__name__, "(404) nothing")

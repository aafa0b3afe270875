"""What ARL's document shows, against a real server: each example, in our own words, and what can be seen of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from amounts import amount
from boxwood.faces.arl import ApiException, SandboxSession, TaskTimeout, WarmPoolManager, WarmPoolNotFound
from boxwood.faces.arl.ours import BoxwoodObjects
from faces.test_arl_carriers import kubeconfig

pytestmark = pytest.mark.root
DEFAULT_GOLDEN = "ubuntu"
IMAGES = {"python:3.9-slim": DEFAULT_GOLDEN}
PRINTS = "import os, sys; print(os.getcwd(), os.environ.get('DEBUG')); print('done', file=sys.stderr)"


@pytest.fixture(scope="module")
def arl_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """With an image for the document's pools, and one pool: python-pool."""
    names = ",".join(f"{image}={golden}" for image, golden in IMAGES.items())
    server = servers.Server(tmp_path_factory.mktemp("arl") / "data", image_names=names).start()
    with WarmPoolManager(url=server.url, api_key=server.key) as manager:
        manager.create_warmpool("python-pool", "python:3.9-slim", "arl-sidecar:latest", replicas=2)
        manager.wait_for_warmpool_ready("python-pool")
    yield server
    server.down()


@pytest.fixture(autouse=True)
def environment(arl_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXWOOD_URL", arl_server.url)
    monkeypatch.setenv("BOXWOOD_API_KEY", arl_server.key)


def command(*argv: str, name: str = "step", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "Command", "command": list(argv), **more}


def vms(server: servers.Server) -> set[str]:
    with server.client() as box:
        return {vm.id for vm in box.list()}


def sandboxes(server: servers.Server, plural: str = "sandboxes") -> list[str]:
    status, found = server.request("GET", f"/k8s/apis/arl.infra.io/v1alpha1/namespaces/default/{plural}")
    assert status == 200, found
    return [item["metadata"]["name"] for item in found["items"]]


# --- quick start


def test_basic_usage_with_context_manager(arl_server: servers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    with SandboxSession(pool_ref="python-pool", namespace="default") as session:
        result = session.execute(
            [
                {
                    "name": "hello",
                    "type": "Command",
                    "command": ["echo", "Hello, World!"],
                }
            ]
        )
        print(result["status"]["stdout"])
        assert sandboxes(arl_server) == [session.sandbox_name]
    assert capsys.readouterr().out == "Hello, World!\n\n"
    assert sandboxes(arl_server) == []


def test_manual_lifecycle_management(arl_server: servers.Server) -> None:
    session = SandboxSession(pool_ref="python-pool", namespace="default", keep_alive=True)
    try:
        session.create_sandbox()
        result1 = session.execute([command("sh", "-c", "echo kept > note; pwd")])
        result2 = session.execute([command("cat", "note")])
    finally:
        session.delete_sandbox()
    assert (result1["status"]["stdout"], result2["status"]["stdout"]) == ("/workspace\n", "kept\n")
    assert sandboxes(arl_server) == []


# --- core classes


def test_sandbox_session() -> None:
    session = SandboxSession(pool_ref="python-pool", namespace="default", keep_alive=False, timeout="30s")
    session.register_callback("on_task_complete", print)
    session.create_sandbox()
    try:
        assert session.execute([command("true")])["spec"]["timeout"] == "30s"
    finally:
        session.delete_sandbox()
    assert session.sandbox_name is None
    session.delete_sandbox()


def test_warm_pool_manager(arl_server: servers.Server) -> None:
    before = vms(arl_server)
    manager = WarmPoolManager(namespace="default")
    manager.create_warmpool(name="my-pool", image="python:3.9-slim", sidecar_image="arl-sidecar:latest", replicas=3)
    manager.wait_for_warmpool_ready("my-pool")
    pool = manager.get_warmpool("my-pool")
    assert (pool["spec"]["replicas"], pool["status"]["readyReplicas"]) == (3, 3)
    with pytest.raises(ApiException) as taken:
        manager.create_warmpool(name="my-pool", image="python:3.9-slim", sidecar_image="s")
    assert (taken.value.status, taken.value.reason) == (409, "Conflict")
    with SandboxSession("my-pool") as session:
        assert session.execute([command("uname")])["status"]["stdout"] == "Linux\n"
        status = session.get_pool_status()
        assert (status["total"], status["allocated"]) == (3, 1) and status["available"] == status["ready_idle"] <= 3
    manager.delete_warmpool("my-pool")
    with pytest.raises(ApiException) as gone:
        manager.get_warmpool("my-pool")
    assert gone.value.status == 404
    servers.until(lambda: vms(arl_server) == before)


def test_pools_of_other_namespaces_are_others() -> None:
    manager = WarmPoolManager(namespace="elsewhere")
    with pytest.raises(ApiException):
        manager.get_warmpool("python-pool")
    with pytest.raises(WarmPoolNotFound, match="in namespace 'elsewhere'"):
        SandboxSession("python-pool", "elsewhere").create_sandbox()


# --- steps


def test_command_step() -> None:
    with SandboxSession(pool_ref="python-pool") as session:
        result = session.execute(
            [
                {"name": "write", "type": "FilePatch", "path": "/workspace/script.py", "content": PRINTS},
                {
                    "name": "run_script",
                    "type": "Command",
                    "command": ["python", "script.py"],
                    "workDir": "/workspace",
                    "env": {"DEBUG": "true"},
                },
            ]
        )
    assert result["status"]["stdout"] == "File created: /workspace/script.py\n/workspace true\n"
    assert result["status"]["stderr"] == "done\n" and result["status"]["exitCode"] == 0


def test_file_patch_step() -> None:
    with SandboxSession(pool_ref="python-pool") as session:
        result = session.execute(
            [
                {
                    "name": "write_file",
                    "type": "FilePatch",
                    "path": "/workspace/script.py",
                    "content": "print('Hello!')",
                },
                command("python", "/workspace/script.py"),
            ]
        )
    assert result["status"]["stdout"] == "File created: /workspace/script.py\nHello!\n"


@pytest.mark.parametrize("argument", ["$HOME *", "it's", 'a"b', "a\nb", "grün", "", "-n", "`id`"])
def test_arguments_arrive_as_they_are(argument: str) -> None:
    with SandboxSession(pool_ref="python-pool") as session:
        result = session.execute([command("printf", "%s|", argument)])
    assert result["status"]["stdout"] == f"{argument}|"


# --- results


def test_result_handling(arl_server: servers.Server) -> None:
    with SandboxSession(pool_ref="python-pool", keep_alive=False) as session:
        result = session.execute([command("sh", "-c", "echo out; echo err >&2")])
        status = result["status"]
        assert status["state"] == "Succeeded"
        assert (status.get("stdout", ""), status.get("stderr", ""), status.get("exitCode", 0)) == ("out\n", "err\n", 0)
        assert result["metadata"]["name"].startswith(f"{session.sandbox_name}-task-")
        steps = [command("echo", "first"), command("sh", "-c", "echo why >&2; exit 3"), command("echo", "never")]
        failed = session.execute(steps, trace_id="t1")["status"]
    assert (failed["state"], failed["stdout"], failed["stderr"], failed["exitCode"]) == (
        "Failed", "first\n", "why\n", 3,
    )  # fmt: skip


def test_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def on_complete(result: dict[str, Any]) -> None:
        told.append(f"Task completed: {result['status']['state']}")

    def on_success(result: dict[str, Any]) -> None:
        told.append(f"Success! Output: {result['status']['stdout']}")

    def on_failure(result: dict[str, Any]) -> None:
        told.append(f"Failed! Error: {result['status']['stderr']}")

    session = SandboxSession(pool_ref="python-pool")
    session.register_callback("on_task_complete", on_complete)
    session.register_callback("on_task_success", on_success)
    session.register_callback("on_task_failure", on_failure)
    with session:
        session.execute([command("echo", "hi")])
        session.execute([command("sh", "-c", "exit 1")])
    assert told == ["Task completed: Succeeded", "Success! Output: hi\n", "Task completed: Failed", "Failed! Error: "]
    assert caplog.text == ""


def test_a_script_afterwards() -> None:
    with SandboxSession("python-pool") as session:
        step = {"name": "w", "type": "FilePatch", "path": "after.sh", "content": "echo after; exit 2"}
        result = session.execute_with_callback([step], callback_script="/workspace/after.sh")
    assert result["status"]["state"] == "Succeeded"
    after = result["callback_result"]["status"]
    assert (after["state"], after["stdout"], after["exitCode"]) == ("Failed", "after\n", 2)


# --- errors


def seen(pool: str, argv: tuple[str, ...], timeout: str) -> str:
    """The document's handlers, in their order."""
    k8s_client = pytest.importorskip("kubernetes.client")
    try:
        with SandboxSession(pool_ref=pool) as session:
            result = session.execute([command(*argv)], timeout=timeout)
    except k8s_client.ApiException as e:
        return "WarmPool not found" if e.status == 404 else f"Kubernetes API error: {e}"
    except TimeoutError:
        return "Task timed out"
    except Exception as e:
        return f"Unexpected error: {e}"
    return str(result["status"]["state"])


def test_error_handling(arl_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen("nothing", ("true",), "5s") == "WarmPool not found"
    assert seen("python-pool", ("sleep", "60"), "500ms") == "Task timed out"
    assert seen("python-pool", ("true",), "soon").startswith("Unexpected error: not a duration")
    monkeypatch.setenv("BOXWOOD_API_KEY", "bxw_wrong")
    assert seen("python-pool", ("true",), "5s").startswith("Kubernetes API error: (401)")
    monkeypatch.setenv("BOXWOOD_API_KEY", arl_server.key)
    assert seen("python-pool", ("true",), "5s") == "Succeeded"
    assert sandboxes(arl_server) == []


def test_a_command_that_takes_too_long_is_killed_and_its_output_told() -> None:
    with pytest.raises(TaskTimeout) as late:
        with SandboxSession(pool_ref="python-pool", timeout=1) as session:
            session.execute([command("sh", "-c", "echo begun; sleep 60"), command("echo", "never")])
    assert late.value.task is not None and late.value.task["status"]["stdout"] == "begun\n"
    assert (late.value.task["status"]["state"], late.value.task["status"]["exitCode"]) == ("Failed", -1)


# --- best practices


def test_context_managers_clean_up_after_an_exception(arl_server: servers.Server) -> None:
    with pytest.raises(ZeroDivisionError), SandboxSession(pool_ref="python-pool") as session:
        session.execute([command("true")])
        assert sandboxes(arl_server) == [session.sandbox_name]
        _ = 1 / 0
    assert sandboxes(arl_server) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reuse_sandboxes_for_related_tasks(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed comes over this machine's own mirror, which the operator allows."""
    from api.test_installs import exceptions

    package = amount("six", "numpy")
    server = make_server(
        network_allow=",".join(exceptions()),
        share_client_config="true",
        image_names=",".join(f"{image}={golden}" for image, golden in IMAGES.items()),
    )
    place = {"url": server.url, "api_key": server.key}
    with WarmPoolManager(**place) as manager:
        manager.create_warmpool("python-pool", "python:3.9-slim", "s", replicas=1)
    session = SandboxSession(pool_ref="python-pool", keep_alive=True, **place)
    try:
        session.create_sandbox()
        step = {"name": "install", "type": "Command", "command": ["pip", "install", package]}
        installed = session.execute([step], timeout="4m")
        assert installed["status"]["state"] == "Succeeded", installed["status"]["stderr"]
        script = f"import {package}, pathlib\nruns = pathlib.Path('runs')\nruns.open('a').write('x')\nprint(len(runs.read_text()))"
        session.execute([{"name": "w", "type": "FilePatch", "path": "script.py", "content": script}])
        for i in range(10):
            result = session.execute([{"name": f"run_{i}", "type": "Command", "command": ["python", "script.py"]}])
            assert result["status"]["stdout"] == f"{i + 1}\n", result["status"]["stderr"]
    finally:
        session.delete_sandbox()


def test_handle_timeouts_appropriately() -> None:
    with SandboxSession(pool_ref="python-pool", timeout="300ms") as session:
        result = session.execute(
            [
                {
                    "name": "long_task",
                    "type": "Command",
                    "command": ["python", "-c", "import time; time.sleep(1); print('over')"],
                }
            ],
            timeout="5m",
        )
    assert (result["spec"]["timeout"], result["status"]["stdout"]) == ("300s", "over\n")


def test_check_results() -> None:
    with pytest.raises(RuntimeError, match=r"Task failed: .*nothing"), SandboxSession("python-pool") as session:
        result = session.execute([command("cat", "/nothing")])
        if result["status"]["state"] != "Succeeded":
            stderr = result["status"].get("stderr", "")
            raise RuntimeError(f"Task failed: {stderr}")


# --- the carriers


def test_the_end_of_a_task_is_heard_of_with_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get = BoxwoodObjects.get

    def counted(self: BoxwoodObjects, plural: Any, *rest: Any, **more: Any) -> Any:
        asked.append(plural)
        return get(self, plural, *rest, **more)

    monkeypatch.setattr(BoxwoodObjects, "get", counted)
    with SandboxSession(pool_ref="python-pool") as session:
        session.execute([command("sleep", "0.5")])
    assert asked.count("tasks") == 1


def test_the_same_over_a_kubeconfig(arl_server: servers.Server, tmp_path: Path) -> None:
    client = pytest.importorskip("kubernetes.client")
    file = kubeconfig(tmp_path, arl_server.url, arl_server.key)
    with WarmPoolManager(kubeconfig=file) as manager:
        manager.create_warmpool("of-kubernetes", "python:3.9-slim", "arl-sidecar:latest", replicas=1)
        manager.wait_for_warmpool_ready("of-kubernetes")
        with pytest.raises(client.ApiException) as taken:
            manager.create_warmpool("of-kubernetes", "python:3.9-slim", "arl-sidecar:latest")
        assert taken.value.status == 409
    with SandboxSession(pool_ref="of-kubernetes", kubeconfig=str(file)) as session:
        told: list[str] = []
        session.register_callback("on_task_success", lambda result: told.append(result["status"]["stdout"]))
        result = session.execute([command("echo", "Hello, World!")], trace_id="t")
        assert told == [result["status"]["stdout"]] == ["Hello, World!\n"]
        assert session.execute([command("sh", "-c", "exit 3")])["status"]["exitCode"] == 3
        with pytest.raises(TimeoutError) as late:
            session.execute([command("sleep", "60")], timeout="500ms")
        assert isinstance(late.value, TaskTimeout) and session.sandbox_name in sandboxes(arl_server)
        found = session.custom_api.list_namespaced_custom_object("arl.infra.io", "v1alpha1", "default", "sandboxes")
        assert [item["metadata"]["name"] for item in found["items"]] == [session.sandbox_name]
    assert sandboxes(arl_server) == []
    with pytest.raises(WarmPoolNotFound, match="there are: of-kubernetes, python-pool"):
        SandboxSession(pool_ref="nothing", kubeconfig=file).create_sandbox()
    WarmPoolManager(kubeconfig=file).delete_warmpool("of-kubernetes")


def test_every_sandbox_is_a_clean_one() -> None:
    for _ in range(4):
        with SandboxSession(pool_ref="python-pool") as session:
            result = session.execute([command("sh", "-c", "ls -A /workspace; echo used > /workspace/mark")])
            assert result["status"]["stdout"] == ""

"""ARL's surface: tasks in a sandbox, how they are waited for, and callbacks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from boxwood.faces.arl import (
    ApiException,
    SandboxSession,
    TaskTimeout,
)
from boxwood.faces.arl import session as session_module
from boxwood.faces.arl.objects import wait_for
from faces.memory import Memory, no

STEP = {"name": "hello", "type": "Command", "command": ["echo", "hi"]}
PATCH = {"name": "w", "type": "FilePatch", "path": "/workspace/a", "content": "x", "unknown": [1]}


# --- tasks


def test_what_is_sent_for_a_task(memory: Memory, session: SandboxSession) -> None:
    result = session.execute([STEP, PATCH], trace_id="t1", timeout="5m")
    body = memory.bodies[-1]
    assert body == {
        "apiVersion": "arl.infra.io/v1alpha1",
        "kind": "Task",
        "metadata": {"name": body["metadata"]["name"], "namespace": "default"},
        "spec": {"sandboxRef": session.sandbox_name, "steps": [STEP, PATCH], "timeout": "300s", "traceID": "t1"},
    }
    assert re.fullmatch(rf"{session.sandbox_name}-task-[0-9a-f]{{16}}", body["metadata"]["name"])
    assert result["status"] == {"state": "Succeeded", "exitCode": 0, "stdout": "hi\n", "stderr": ""}
    assert memory.names("tasks") == [body["metadata"]["name"]], "the server keeps it as long as it likes"


@pytest.mark.parametrize(
    ("mine", "its", "sent"), [("30s", None, "30s"), (7, None, "7s"), ("30s", 1.5, "1500ms"), (300, "2s", "2s")]
)
def test_whose_timeout(memory: Memory, mine: float | str, its: float | str | None, sent: str) -> None:
    session = SandboxSession("pool", timeout=mine)
    session.create_sandbox()
    session.execute([STEP], timeout=its)
    assert memory.bodies[-1]["spec"]["timeout"] == sent and "traceID" not in memory.bodies[-1]["spec"]


def test_a_task_that_fails_is_no_exception(memory: Memory, session: SandboxSession) -> None:
    memory.becomes["tasks"] = lambda task: task.update(status={"state": "Failed", "exitCode": 3})
    assert session.execute([STEP])["status"] == {"state": "Failed", "exitCode": 3, "stdout": "", "stderr": ""}
    memory.becomes["tasks"] = lambda task: task.update(status={"state": "Failed", "stderr": "sandbox s not found"})
    assert session.execute([STEP])["status"] == {"state": "Failed", "stderr": "sandbox s not found", "stdout": ""}


def test_tasks_need_a_sandbox_and_a_list() -> None:
    with pytest.raises(RuntimeError, match="create_sandbox"):
        SandboxSession("pool").execute([STEP])


@pytest.mark.parametrize("steps", [STEP, "echo hi"])
def test_steps_are_a_list(session: SandboxSession, memory: Memory, steps: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        session.execute(steps)
    assert memory.asked == []


def test_a_timeout_that_is_none_sends_nothing(session: SandboxSession, memory: Memory) -> None:
    with pytest.raises(ValueError, match="duration"):
        session.execute([STEP], timeout="soon")
    assert memory.asked == []


def test_a_task_that_does_not_end_is_given_up_and_deleted(
    memory: Memory, session: SandboxSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MARGIN", 0.02)
    memory.becomes["tasks"] = lambda task: task.update(status={"state": "Running"})
    told: list[Any] = []
    session.register_callback("on_task_complete", told.append)
    with pytest.raises(TimeoutError, match=r"has not ended after 0\.08 s, and was deleted") as late:
        session.execute([STEP, PATCH, STEP], timeout="30ms")
    assert isinstance(late.value, RuntimeError) and isinstance(late.value, TaskTimeout) and late.value.task is None
    assert memory.names("tasks") == [] and told == []


def test_a_command_that_was_killed_at_its_time(memory: Memory, session: SandboxSession) -> None:
    status = {"state": "Failed", "exitCode": -1, "stdout": "so far", "duration": "2.001s"}
    memory.becomes["tasks"] = lambda task: task.update(status=dict(status))
    told: list[str] = []
    session.register_callback("on_task_failure", lambda task: told.append(task["status"]["stdout"]))
    with pytest.raises(TimeoutError, match="did not end within 2 s") as late:
        session.execute([STEP], timeout="2s")
    assert isinstance(late.value, TaskTimeout) and late.value.task is not None
    assert late.value.task["status"]["stdout"] == "so far" and told == ["so far"]


@pytest.mark.parametrize("duration", ["1.9s", "", None])
def test_a_command_that_was_killed_before(memory: Memory, session: SandboxSession, duration: str | None) -> None:
    status = {"state": "Failed", "exitCode": -1, "duration": duration}
    memory.becomes["tasks"] = lambda task: task.update(status=dict(status))
    assert session.execute([STEP], timeout="2s")["status"]["exitCode"] == -1


def test_a_task_that_goes_while_it_is_waited_for(memory: Memory, session: SandboxSession) -> None:
    memory.becomes["tasks"] = lambda task: (_ for _ in ()).throw(no(404, "tasks not found"))  # type: ignore[arg-type]
    with pytest.raises(ApiException) as gone:
        session.execute([STEP])
    assert gone.value.status == 404 and memory.asked[-1] == "get tasks"


def test_a_task_whose_server_fails_is_deleted(memory: Memory, session: SandboxSession) -> None:
    memory.becomes["tasks"] = lambda task: (_ for _ in ()).throw(no(500, "broken"))  # type: ignore[arg-type]
    with pytest.raises(ApiException, match="broken"):
        session.execute([STEP])
    assert memory.names("tasks") == []


# --- waiting


class Clock:
    """Time passes when somebody sleeps, and by `takes` while a question is answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: float = 0.0) -> None:
        self.now, self.takes = 0.0, takes
        self.slept: list[float] = []
        monkeypatch.setattr("boxwood.faces.arl.objects.monotonic", lambda: self.now)
        monkeypatch.setattr("boxwood.faces.arl.objects.sleep", self.sleep)

    def sleep(self, pause: float) -> None:
        self.slept.append(round(pause, 6))
        self.now += pause

    def answer(self, _: object) -> None:
        self.now += self.takes


def test_whoever_answers_at_once_is_asked_at_growing_intervals(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = wait_for(memory, "warmpools", "default", "pool", lambda pool: False, 5.0)  # type: ignore[arg-type]
    assert clock.slept == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 0.73]
    assert found["metadata"] == {"name": "pool"} and memory.asked == ["get warmpools"] * 12


def test_whoever_holds_its_answers_is_asked_again_at_once(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, takes=10.0)
    memory.becomes["warmpools"] = clock.answer
    wait_for(memory, "warmpools", "default", "pool", lambda pool: False, 35.0)  # type: ignore[arg-type]
    assert clock.slept == [] and memory.asked == ["get warmpools"] * 4


def test_news_is_followed_up_at_once(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, versions = Clock(monkeypatch), iter("abcdd")
    memory.becomes["warmpools"] = lambda pool: pool["metadata"].update(resourceVersion=next(versions))
    wait_for(
        memory, "warmpools", "default", "pool", lambda pool: memory.asked.count("get warmpools") == 5, 35.0  # type: ignore[arg-type]
    )  # fmt: skip
    assert clock.slept == []
    memory.becomes["warmpools"] = lambda pool: None
    wait_for(memory, "warmpools", "default", "pool", lambda pool: clock.now > 0, 35.0)  # type: ignore[arg-type]
    assert clock.slept == [0.01]


# --- callbacks


def test_callbacks_in_their_order(memory: Memory, session: SandboxSession) -> None:
    told: list[str] = []
    for event in ("on_task_failure", "on_task_success", "on_task_complete", "anything"):
        for number in (1, 2):
            session.register_callback(event, lambda task, event=event, number=number: told.append(f"{event} {number}"))
    session.execute([STEP])
    assert told == ["on_task_complete 1", "on_task_complete 2", "on_task_success 1", "on_task_success 2"]
    told.clear()
    memory.becomes["tasks"] = lambda task: task.update(status={"state": "Failed", "exitCode": 1})
    session.execute([STEP])
    assert told == ["on_task_complete 1", "on_task_complete 2", "on_task_failure 1", "on_task_failure 2"]


def test_a_callback_gets_the_whole_task(session: SandboxSession) -> None:
    told: list[Any] = []
    session.register_callback("on_task_success", told.append)
    assert told == [] and [session.execute([STEP])] == told


def test_what_a_callback_raises_is_logged(session: SandboxSession, caplog: pytest.LogCaptureFixture) -> None:
    def boom(task: object) -> None:
        raise ZeroDivisionError("boom")

    told: list[Any] = []
    session.register_callback("on_task_complete", boom)
    session.register_callback("on_task_success", boom)
    session.register_callback("on_task_success", told.append)
    assert session.execute([STEP])["status"]["state"] == "Succeeded"
    assert len(told) == 1 and caplog.text.count("ZeroDivisionError: boom") == 2


def test_taking_callbacks_out(session: SandboxSession) -> None:
    told: list[str] = []
    one, two = lambda task: told.append("1"), lambda task: told.append("2")
    for function in (one, two, one):
        session.register_callback("on_task_success", function)
    session.unregister_callback("on_task_success", one)
    session.unregister_callback("on_task_success", one)
    session.unregister_callback("never", one)
    session.execute([STEP])
    assert told == ["2"]
    session.unregister_callback("on_task_success")
    session.execute([STEP])
    assert told == ["2"]


def test_a_callback_that_takes_itself_out(session: SandboxSession) -> None:
    told: list[str] = []

    def once(task: object) -> None:
        told.append("once")
        session.unregister_callback("on_task_success", once)

    session.register_callback("on_task_success", once)
    session.register_callback("on_task_success", lambda task: told.append("other"))
    session.execute([STEP])
    session.execute([STEP])
    assert told == ["once", "other", "other"]
    with pytest.raises(TypeError):
        session.register_callback("on_task_success", "no function")  # type: ignore[arg-type]


def test_a_script_afterwards(memory: Memory, session: SandboxSession) -> None:
    told: list[Any] = []
    session.register_callback("on_task_complete", told.append)
    result = session.execute_with_callback([STEP], callback_script="/workspace/after.sh", trace_id="t", timeout="9s")
    step = {"name": "callback_script", "type": "Command", "command": ["/bin/bash", "/workspace/after.sh"]}
    spec = {"sandboxRef": session.sandbox_name, "steps": [step], "timeout": "9s", "traceID": "t"}
    assert memory.bodies[-1]["spec"] == spec == result["callback_result"]["spec"]
    assert len(told) == 2
    assert "callback_result" not in session.execute_with_callback([STEP])
    memory.becomes["tasks"] = lambda task: task.update(status={"state": "Failed", "exitCode": 1})
    assert "callback_result" not in session.execute_with_callback([STEP], "/workspace/after.sh")

"""agentkernel's protocol: commands in sandboxes, awaited and detached."""

from __future__ import annotations

import asyncio
import json

import pytest

from boxwood.core.core import Core
from boxwood.dialects.agentkernel import words
from fakes import fake_engine, release, started
from together import together


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


@together(
    "wrong",
    [
        {"command": []}, {"command": "ls"}, {"command": None}, {}, {"command": ["a\0b"]}, {"command": [1]},
        {"command": ["a"], "env": ["K"]}, {"command": ["a"], "env": ["=v"]}, {"command": ["a"], "env": {"K": "v"}},
        {"command": ["a"], "workdir": "srv"}, {"command": ["a"], "workdir": "/a/../b"}, {"command": ["a"], "user": "a b"},
        {"command": ["a"], "workdir": "/a\nb"}, {"command": ["a"], "workdir": "/" + "x" * 1024}, {"command": ["a"], "user": "$(id)"},
    ],
)  # fmt: skip
async def test_commands_that_are_none(ak, sandbox, wrong):
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

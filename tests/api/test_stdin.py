"""Standard input that stays open: given bit by bit, from whoever may, as far as there is room."""

from __future__ import annotations

import asyncio
import base64

import pytest

from boxwood.core import stdin as core_stdin
from boxwood.core.model import Caller
from boxwood.store import keys as key_rows
from fakes import release


@pytest.fixture
async def vm(api):
    return await api.fork()


async def begin(api, vm, command="type", **members):
    begun = await api.ok(
        "POST", f"/vms/{vm}/runs", {"command": command, "stdin_open": True, "background": True, **members}
    )
    return begun["run_id"]


async def give(api, vm, run, data=b"", **query):
    return await api.ok("POST", f"/vms/{vm}/runs/{run}/stdin", params=query, content=data)


async def ended(api, vm, run):
    shown = await api.ok("GET", f"/vms/{vm}/runs/{run}?wait=60")
    assert shown["state"] == "completed", shown
    return shown["stdout"]


def process(api, vm, run):
    return api.machine.boxes[vm].runs[run]


async def test_it_is_given_bit_by_bit(either, vm):
    api = either
    run = await begin(api, vm)
    assert await give(api, vm, run, b"one ") == {"offset": 4, "taken": 4, "closed": False}
    assert await give(api, vm, run, b"two ") == {"offset": 8, "taken": 4, "closed": False}
    assert await give(api, vm, run) == {"offset": 8, "taken": 0, "closed": False}
    assert await give(api, vm, run, b"three", eof="True") == {"offset": 13, "taken": 5, "closed": True}
    assert await ended(api, vm, run) == "one two three"


async def test_a_beginning_and_any_bytes(api, vm):
    first, rest = bytes(range(256)), bytes(reversed(range(256))) * 1000
    run = await begin(api, vm, stdin=base64.b64encode(first).decode(), stdin_encoding="base64")
    assert (await give(api, vm, run, rest))["offset"] == 256 * 1001
    await give(api, vm, run, eof="1")
    shown = await api.ok("GET", f"/vms/{vm}/runs/{run}?wait=60")
    assert base64.b64decode(shown["stdout"]) == first + rest


async def test_a_program_without_a_shell_has_one_too(api, vm):
    begun = await api.ok("POST", f"/vms/{vm}/runs", {"argv": ["type"], "stdin_open": True, "background": True})
    await give(api, vm, begun["run_id"], b"x", eof="true")
    assert await ended(api, vm, begun["run_id"]) == "x"


async def test_what_is_sent_again_is_taken_once(api, vm):
    run = await begin(api, vm)
    for _ in range(2):
        assert (await give(api, vm, run, b"abc", offset=0))["offset"] == 3
    assert await give(api, vm, run, b"cde", offset=2) == {"offset": 5, "taken": 3, "closed": False}
    assert await give(api, vm, run, b"a", offset=0) == {"offset": 5, "taken": 1, "closed": False}
    error = await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs/{run}/stdin?offset=6", content=b"x")
    assert "goes on at 5" in error["message"]
    await give(api, vm, run, eof="true", offset=5)
    assert await ended(api, vm, run) == "abcde"


async def test_what_there_is_no_room_for_is_not_taken(api, vm, monkeypatch):
    monkeypatch.setattr(core_stdin, "ROOM_SECONDS", 0.0)
    run = await begin(api, vm)
    while vm not in api.machine.boxes or run not in api.machine.boxes[vm].runs:
        await asyncio.sleep(0.001)
    process(api, vm, run).no_room = True

    async def nothing(*_):
        return 3

    box = api.app.core.runs._lanes.find(vm, run).box
    assert (await give(api, vm, run, b"abc"))["taken"] == 3  # a byte each time
    monkeypatch.setattr(type(box), "write_stdin", nothing)
    assert await give(api, vm, run, b"def", offset=3, eof="true") == {"offset": 3, "taken": 0, "closed": False}


async def test_a_pending_run_is_waited_for(api, vm, monkeypatch):
    await api.run(vm, "hang", background=True)
    run = await begin(api, vm)
    giving = asyncio.create_task(give(api, vm, run, b"x", eof="true"))
    while vm not in api.machine.boxes or not api.machine.boxes[vm].runs:
        await asyncio.sleep(0.001)
    release(api.machine, vm)
    assert (await giving)["closed"]
    assert await ended(api, vm, run) == "x"
    await api.run(vm, "hang", background=True)
    run = await begin(api, vm)
    monkeypatch.setattr(core_stdin, "ROOM_SECONDS", 0.01)
    await api.refused(409, "resource_busy", "POST", f"/vms/{vm}/runs/{run}/stdin", content=b"x")


async def test_an_input_that_is_not_open_or_no_longer(api, vm):
    closed = await begin(api, vm, "type; hang")
    await give(api, vm, closed, b"x", eof="true")
    await api.refused(409, "conflict", "POST", f"/vms/{vm}/runs/{closed}/stdin", content=b"y")
    release(api.machine, vm)
    await ended(api, vm, closed)
    error = await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/runs/{closed}/stdin", content=b"y")
    assert error["details"] == {"resource": {"kind": "run", "id": closed}, "requirement": "running"}
    never = (await api.ok("POST", f"/vms/{vm}/runs", {"command": "hang", "background": True}))["run_id"]
    error = await api.refused(409, "conflict", "POST", f"/vms/{vm}/runs/{never}/stdin", content=b"y")
    assert "stdin_open" in error["message"]


async def test_a_box_that_dies(api, vm):
    run = await begin(api, vm)
    await give(api, vm, run, b"x")
    api.machine.boxes[vm].die("shot")
    await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/runs/{run}/stdin", content=b"y")


async def test_bounds_and_nonsense(api, vm):
    run = await begin(api, vm)
    path = f"/vms/{vm}/runs/{run}/stdin"
    await api.refused(413, "payload_too_large", "POST", path, content=bytes((4 << 20) + 1))
    for query in ("offset=-1", "offset=x", f"offset={1 << 51}", "eof=yes", "more=1"):
        await api.refused(400, "bad_request", "POST", f"{path}?{query}", content=b"x")
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"stdin_open": True})
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"signal": "SIGINT", "stdin_open": True})
    await api.refused(404, "not_found", "POST", f"/vms/{vm}/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/stdin", content=b"x")
    assert (await give(api, vm, run))["offset"] == 0


async def test_others_may_not(api, vm):
    run = await begin(api, vm)
    core = api.app.core
    await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
    stranger = {"authorization": f"Bearer {made.key}"}
    path = f"/vms/{vm}/runs/{run}/stdin"
    await api.refused(404, "not_found", "POST", path, content=b"x", headers=stranger)
    own = await api.fork()
    await api.refused(404, "not_found", "POST", f"/vms/{own}/runs/{run}/stdin", content=b"x")
    assert (await give(api, vm, run))["offset"] == 0


async def test_who_waits_too_long_for_another_writer_is_told_so(api, vm, monkeypatch):
    monkeypatch.setattr(core_stdin, "INPUT_SECONDS", 0.01)
    run = await begin(api, vm)
    async with api.app.core.runs._lanes.find(vm, run).typing:
        error = await api.refused(409, "resource_busy", "POST", f"/vms/{vm}/runs/{run}/stdin", content=b"x")
        assert "somebody else writes" in error["message"]
        assert (await give(api, vm, run))["offset"] == 0  # who only asks waits for nobody
    assert (await give(api, vm, run, b"x"))["taken"] == 1

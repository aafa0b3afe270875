"""Runs as they happen: what is told, from where, and what becomes of it when one side goes away."""

from __future__ import annotations

import asyncio

import pytest

from api.watching import Watched, output, parse
from boxwood.core import pastruns
from boxwood.core.model import Caller
from boxwood.server import events
from boxwood.store import keys as key_rows
from fakes import release

SSE = {"accept": "text/event-stream"}


async def streamed(api, vm, command, query="", **members):
    answer = await api("POST", f"/vms/{vm}/runs{query}", {"command": command, **members}, headers=SSE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert "content-length" not in answer.headers
    return parse(answer.text)


async def again(api, vm, run, query="", **headers):
    answer = await api("GET", f"/vms/{vm}/runs/{run}/events{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return parse(answer.text)


async def go_on(api, vm):
    """Let hang what hangs in this VM no longer, once it does."""
    while vm not in api.machine.boxes or not api.machine.boxes[vm].runs:
        await asyncio.sleep(0.001)
    release(api.machine, vm)


def watch(api, vm, command, query="", **headers):
    return Watched(api, "POST", f"/v1/vms/{vm}/runs{query}", {"command": command}, **headers)


async def test_a_run_from_its_start_to_its_end(either):
    api = either
    vm = await api.fork()
    told = await streamed(api, vm, "echo out; err what; exit 3")
    assert [event.kind for event in told] == ["started", "stdout", "stderr", "exit"]
    started, out, err, ended = told
    run = started.data["run_id"]
    assert (started.ident, started.data["vm_id"]) == ("0.0", vm)
    assert (out.ident, out.data) == ("4.0", {"data": "out\n", "encoding": "utf-8", "offset": 0})
    assert (err.ident, err.data) == ("4.5", {"data": "what\n", "encoding": "utf-8", "offset": 0})
    shown = await api.ok("GET", f"/vms/{vm}/runs/{run}")
    assert ended.ident == "4.5"
    assert ended.data == {
        "run_id": run, "state": "completed", "exit_code": 3, "fail_reason": None,
        "completed_at": shown["completed_at"], "duration_ms": shown["duration_ms"],
        "stdout_bytes": 4, "stderr_bytes": 5,
    }  # fmt: skip
    assert (shown["stdout"], shown["exit_code"]) == ("out\n", 3)


async def test_a_program_without_a_shell(api):
    vm = await api.fork()
    answer = await api("POST", f"/vms/{vm}/runs", {"argv": ["argv", "a b"]}, headers=SSE)
    assert output(parse(answer.text), "stdout") == b'["a b"]'


async def test_only_whoever_asks_for_events_gets_them(api):
    vm = await api.fork()
    for accept in ("*/*", "application/json", "text/event-streams", "text/*"):
        answer = await api("POST", f"/vms/{vm}/runs", {"command": "echo x"}, headers={"accept": accept})
        assert answer.json()["stdout"] == "x\n"
    answer = await api(
        "POST", f"/vms/{vm}/runs", {"command": "echo x"}, headers={"accept": "a/b, Text/Event-Stream;q=1"}
    )
    assert output(parse(answer.text), "stdout") == b"x\n"


async def test_what_is_refused_is_refused_by_status(api):
    vm = await api.fork()
    await api.refused(404, "not_found", "POST", "/vms/nope/runs", {"command": "x"}, headers=SSE)
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"env": {}}, headers=SSE)
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs?encoding=latin-1", {"command": "x"}, headers=SSE)
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs?on_disconnect=x", {"command": "x"}, headers=SSE)
    run = (await api.run(vm, "echo x"))["run_id"]
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/events")
    for offset in ("-1", "1.", ".1", "1.2.3.4", "1.2.", "x", "1e3", "9" * 16, "0.0\n", "٣"):
        error = await api.refused(400, "bad_request", "GET", f"/vms/{vm}/runs/{run}/events", params={"offset": offset})
        assert error["details"]["violations"][0]["field"] == "offset"
    await api.refused(400, "bad_request", "GET", f"/vms/{vm}/runs/{run}/events", headers={"last-event-id": "x"})


async def test_a_signal_has_no_events(api):
    vm = await api.fork()
    await api.run(vm, "hang", time_to_background=0)
    answer = await api("POST", f"/vms/{vm}/runs", {"signal": "SIGINT"}, headers=SSE)
    assert answer.headers["content-type"] == "application/json"


async def test_output_comes_as_it_is_put_out(api):
    vm = await api.fork()
    watched = watch(api, vm, "echo one; hang; echo two")
    started, one = await watched.event(), await watched.event()
    assert (started.kind, one.bytes) == ("started", b"one\n")
    await go_on(api, vm)
    told = await watched.rest()
    assert [event.kind for event in told] == ["stdout", "exit"]
    assert (told[0].data["offset"], told[0].bytes) == (4, b"two\n")


async def test_pending_and_then_started(api):
    vm = await api.fork()
    await api.run(vm, "hang", time_to_background=0)
    watched = watch(api, vm, "echo x")
    assert (await watched.event()).kind == "pending"
    await go_on(api, vm)
    assert [event.kind for event in await watched.rest()] == ["started", "stdout", "exit"]


async def test_from_any_offset_nothing_is_lost_and_nothing_comes_twice(api):
    vm = await api.fork()
    told = await streamed(api, vm, "echo abc; err xyz; echo def")
    run = told[0].data["run_id"]
    out, err = output(told, "stdout"), output(told, "stderr")
    for at in range(len(out) + 1):
        rest = await again(api, vm, run, f"?offset={at}.2")
        assert (output(rest, "stdout"), output(rest, "stderr")) == (out[at:], err[2:])
        assert rest[0].ident == f"{at}.2" and rest[-1].ident == f"{len(out)}.{len(err)}"
    rest = await again(api, vm, run, "?offset=1", **{"last-event-id": "8.4"})  # what a browser sends
    assert [event.kind for event in rest] == ["started", "exit"]
    beyond = await again(api, vm, run, "?offset=999.999")
    assert [event.kind for event in beyond] == ["started", "exit"]


async def test_many_listen_to_one_run(api):
    vm = await api.fork()
    first = watch(api, vm, "echo a; hang; flood 200000")
    run = (await first.event()).data["run_id"]
    assert (await first.event()).bytes == b"a\n"
    second = Watched(api, "GET", f"/v1/vms/{vm}/runs/{run}/events?offset=1")
    assert (await second.event()).kind == "started"
    assert (await second.event()).bytes == b"\n"
    await go_on(api, vm)
    told = await asyncio.gather(first.rest(), second.rest())
    assert [output(one, "stdout") for one in told] == [b"x" * 200_000] * 2


async def test_characters_are_whole_and_other_bytes_exact(api):
    vm = await api.fork()
    told = await streamed(api, vm, "bytes e282; bytes ac41; bytes ff00; bytes f09f98")
    assert output(told, "stdout") == bytes.fromhex("e282ac41ff00f09f98")
    watched = watch(api, vm, "bytes 41e2; hang; bytes 82ac; bytes c3")
    assert (await watched.event()).kind == "started"
    assert (await watched.event()).data == {"data": "A", "encoding": "utf-8", "offset": 0}
    await go_on(api, vm)
    told = await watched.rest()
    assert output(told, "stdout") == bytes.fromhex("e282acc3")
    assert "".join(e.data["data"] for e in told if e.kind == "stdout" and e.data["encoding"] == "utf-8")[0] == "€"


async def test_as_base64_nothing_is_held_back(api):
    vm = await api.fork()
    watched = watch(api, vm, "bytes e2; hang", "?encoding=base64")
    await watched.event()
    assert (await watched.event()).data == {"data": "4g==", "encoding": "base64", "offset": 0}
    await go_on(api, vm)
    await watched.rest()


@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1, 1_000_000])
async def test_of_what_lies_on_the_disk_pieces_are_read(api, size, monkeypatch):
    """Never the whole file, however much there is."""
    vm = await api.fork()
    told = await streamed(api, vm, f"flood {size}")
    read = []
    head = pastruns.head
    monkeypatch.setattr(pastruns, "head", lambda path, count, at: read.append(count) or head(path, count, at))
    rest = await again(api, vm, told[0].data["run_id"], "?offset=7")
    assert output(told, "stdout") == b"x" * size and output(rest, "stdout") == b"x" * (size - 7)
    assert max(read, default=0) <= pastruns.PIECE_BYTES
    assert bool(read) == (size > 64 << 10)


async def test_what_was_not_kept_is_counted(api):
    bound = api.app.core.runs._lanes._config.output_bytes
    vm = await api.fork()
    told = await streamed(api, vm, f"flood {bound + 10}")
    assert told[-1].data["truncated"] == 10
    assert told[-1].data["stdout_bytes"] == bound == len(output(told, "stdout"))


async def test_silence_is_filled_with_comments(api, monkeypatch):
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.01)
    vm = await api.fork()
    watched = watch(api, vm, "hang")
    assert (await watched.event()).kind == "started"
    for _ in range(3):
        assert (await watched.part()).startswith(b":")
    await go_on(api, vm)
    assert (await watched.rest())[-1].kind == "exit"


async def test_a_run_goes_on_when_its_listener_goes(api):
    vm = await api.fork()
    watched = watch(api, vm, "echo a; hang; echo b")
    run = (await watched.event()).data["run_id"]
    watched.leave()
    await watched.task
    assert (await api.ok("GET", f"/vms/{vm}/runs/{run}"))["state"] == "running"
    await go_on(api, vm)
    assert output(await again(api, vm, run), "stdout") == b"a\nb\n"


async def test_unless_he_says_that_it_is_to_end_with_him(api):
    vm = await api.fork()
    watched = watch(api, vm, "hang", "?on_disconnect=cancel")
    run = (await watched.event()).data["run_id"]
    watched.leave()
    await watched.task
    told = await again(api, vm, run)
    assert (told[-1].kind, told[-1].data["state"], told[-1].data["exit_code"]) == ("exit", "cancelled", None)


async def test_a_box_that_dies_ends_it(api):
    vm = await api.fork()
    watched = watch(api, vm, "echo a; hang")
    assert [(await watched.event()).kind for _ in range(2)] == ["started", "stdout"]
    api.machine.boxes[vm].die("it was shot")
    (ended,) = await watched.rest()
    assert (ended.kind, ended.data["state"], ended.data["exit_code"]) == ("exit", "failed", None)
    assert "it was shot" in ended.data["fail_reason"]


async def test_a_vm_that_is_deleted_ends_it(api):
    vm = await api.fork()
    watched = watch(api, vm, "hang")
    await watched.event()
    deleting = asyncio.create_task(api("DELETE", f"/vms/{vm}"))
    told = await watched.rest()
    assert (told[-1].kind, told[-1].data.get("state", told[-1].data.get("code"))) in (
        ("exit", "cancelled"), ("error", "not_found"),
    )  # fmt: skip
    assert (await deleting).status_code == 200


async def test_a_server_that_stops_says_so(api):
    vm = await api.fork()
    watched = watch(api, vm, "echo a; hang", "?on_disconnect=cancel")
    run = (await watched.event()).data["run_id"]
    assert (await watched.event()).bytes == b"a\n"
    api.app.stopping.set()
    (last,) = await watched.rest()
    assert (last.kind, last.data["code"]) == ("error", "unavailable")
    assert "goes on" in last.data["message"]
    api.app.stopping.clear()
    await go_on(api, vm)
    assert (await api.ok("GET", f"/vms/{vm}/runs/{run}?wait=60"))["state"] == "completed"


async def test_output_that_is_lost_is_an_error(api):
    vm = await api.fork()
    run = (await api.run(vm, "flood 100000"))["run_id"]
    (api.config.data / "spool" / vm / f"{run}.out").unlink()
    told = await again(api, vm, run)
    assert [event.kind for event in told] == ["started", "error"]
    assert told[-1].data["code"] == "unrecoverable"


async def test_the_same_key_gives_the_same_run_from_its_beginning(api):
    vm = await api.fork()
    body, headers = {"command": "echo once"}, {**SSE, "idempotency-key": "k"}
    first, second = [parse((await api("POST", f"/vms/{vm}/runs", body, headers=headers)).text) for _ in range(2)]
    assert first[0].data["run_id"] == second[0].data["run_id"]
    assert output(first, "stdout") == output(second, "stdout") == b"once\n"
    assert len((await api.ok("GET", f"/vms/{vm}/runs"))["runs"]) == 1


async def test_a_slow_reader_holds_up_nobody_and_nothing_is_kept_for_him(api):
    """He takes one part; the run ends meanwhile, another reader has all of it, and later he has all of it too."""
    vm = await api.fork()
    slow = watch(api, vm, "flood 3000000")
    run = (await slow.event()).data["run_id"]
    assert (await api.ok("GET", f"/vms/{vm}/runs/{run}?wait=60"))["state"] == "completed"
    assert api.app.core.runs._lanes.find(vm, run) is None  # what is told him now comes from the disk
    assert len(output(await again(api, vm, run), "stdout")) == 3_000_000
    assert len(output(await slow.rest(), "stdout")) == 3_000_000


async def test_others_hear_nothing(api):
    vm = await api.fork()
    run = (await api.run(vm, "echo secret"))["run_id"]
    core = api.app.core
    await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
    stranger = {"authorization": f"Bearer {made.key}"}
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/runs/{run}/events", headers=stranger)
    await api.refused(404, "not_found", "POST", f"/vms/{vm}/runs", {"command": "x"}, headers={**SSE, **stranger})
    own = await api.fork()  # a run of one VM is none of another
    await api.refused(404, "not_found", "GET", f"/vms/{own}/runs/{run}/events")

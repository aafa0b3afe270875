"""An agent that has been taken over: whatever it says, the server is not harmed and puts its box down."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from boxwood.engine import hostbox
from boxwood.engine.api import BoxGone, GuestError, RunEnd, RunSpec, SessionSpec
from boxwood.engine.frames import pack
from boxwood.engine.handleapi import Opening
from boxwood.engine.kernel import EXT4_MAGIC
from boxwood.engine.ptyapi import PtySpec
from unit.hostile import PTY, RUN, SESSION, Hostile, Screen, Sink, start

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "header",
    [
        {"ev": "out", "rid": RUN, "stream": 3, "at": 0},
        {"ev": "out", "rid": RUN, "stream": 1, "at": 7},
        {"ev": "out", "rid": RUN, "stream": 1, "at": -1},
        {"ev": "out", "rid": RUN, "stream": True, "at": 0},
        {"ev": "out", "rid": 5, "stream": 1, "at": 0},
        {"ev": "out"},
        {"ev": "end", "rid": RUN, "code": 256, "reason": "exit", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": "0", "reason": "exit", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "../x", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "exit", "out": 9, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "exit"},
        {"ev": "state", "sid": SESSION, "cwd": 7, "env": {}},
        {"ev": "state", "sid": SESSION, "cwd": "/", "env": {"a": 1}},
        {"ev": "state", "sid": "x" * 99, "cwd": "/", "env": {}},
        {"ev": "hello", "runs": {"a": 1}},
        {"ev": "hello", "runs": [{"rid": RUN, "end": {"code": 1}}]},
        {"ev": ["nested"]},
        {"boot": "failed", "error": "late"},
        {"re": 99, "more": True, "x": 1, "fds": 2},
        {},
    ],
)
async def test_what_makes_no_sense_ends_the_box(hostile: Hostile, header: dict[str, Any]) -> None:
    await hostile.hello()
    await start(hostile)
    hostile.say(header)
    await hostile.put_down()


@pytest.mark.parametrize("runs", [[5], [None], [[]], [{"rid": RUN, "end": 5}], [{"rid": RUN, "end": [1]}], [{}]])
async def test_a_greeting_that_makes_no_sense_ends_the_box(hostile: Hostile, runs: list[Any]) -> None:
    """At once, not when the deadline of the greeting has come."""
    hostile.say({"ev": "hello", "runs": runs, "sessions": []})
    with pytest.raises(BoxGone, match="broke the protocol"):
        await hostile.box.attach(hostile.sock)
    await hostile.put_down()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"runs": 0, "processes": -1},
        {"runs": "0", "processes": 1},
        {"runs": 0, "processes": 1 << 60},
        {"size": None},
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_box(hostile: Hostile, answer: dict[str, Any]) -> None:
    await hostile.hello()
    hostile.say({"re": 1, **answer})
    with pytest.raises(BoxGone, match="makes no sense"):
        await (hostile.box.write_file("/x", b"x") if "size" in answer else hostile.box.settle())
    await hostile.put_down()


NONSENSE = {"at": "0", "pty": 7, "size": -1}


@pytest.mark.parametrize("ask", ["run.stdin", "pty.open", "file.unpack", "file.place"])
async def test_an_answer_without_what_was_asked_for_ends_the_box(hostile: Hostile, ask: str) -> None:
    box = await hostile.hello()
    hostile.say({"re": 1, **NONSENSE})
    with pytest.raises(BoxGone, match="makes no sense"):
        match ask:
            case "run.stdin":
                await box.write_stdin(RUN, None, b"x", False)
            case "pty.open":
                await box.ptys.open(PtySpec(PTY, SESSION), Screen())
            case "file.unpack":
                await (await box.receive_archive("/x", False, 1)).unpacked()
            case _:
                feed = await box.receive_file("/x")
                hostile.say({"re": 2, **NONSENSE})
                await feed.place()
    await hostile.put_down()


@pytest.mark.parametrize(
    ("ask", "answer", "payload"),
    [
        ("read", {}, b"more than two"),
        ("stat", {"kind": "file", "size": -1, "mode": 0, "uid": 0, "gid": 0, "links": 1}, b""),
        ("stat", {}, b""),
        ("resolve", {"path": "relative"}, b""),
        ("resolve", {"path": "/nul\0"}, b""),
        ("resolve", {"path": ["/"]}, b""),
        ("space", {"block": 1, "total": 1 << 60, "free": 0, "files": 0, "files_free": 0}, b""),
    ],
)
async def test_what_makes_no_sense_of_files_that_are_open_ends_the_box(
    hostile: Hostile, ask: str, answer: dict[str, Any], payload: bytes
) -> None:
    handles = (await hostile.hello()).handles
    hostile.say({"re": 1})
    file = await handles.open(b"/file", Opening(read=True))
    hostile.say({"re": 2, **answer}, payload)
    with pytest.raises(BoxGone, match="makes no sense"):
        match ask:
            case "read":
                await file.read(0, 2)
            case "stat":
                await file.status()
            case "resolve":
                await handles.resolve(b"/")
            case _:
                await handles.space(b"/")
    await hostile.put_down()


async def test_what_does_not_fit_in_a_frame_is_refused(hostile: Hostile) -> None:
    """An environment that a box has told can be too large to be told to the next one."""
    box = await hostile.hello()
    with pytest.raises(GuestError, match="too much at once"):
        await box.open_session(SessionSpec(SESSION, {"A": "\x7f" * 60_000, "B": "é" * 1000}, "/", None))
    hostile.say({"re": 2, "runs": 0, "processes": 0})
    assert (await box.settle()).runs == 0 and not hostile.downs


async def test_a_run_that_ends_twice_ends_once(hostile: Hostile) -> None:
    await hostile.hello()
    sink = await start(hostile)
    end = {"ev": "end", "rid": RUN, "code": 0, "reason": "exit", "out": 0, "err": 0}
    hostile.say(end)
    hostile.say({**end, "code": 1})
    hostile.say({"ev": "out", "rid": RUN, "stream": 1, "at": 0}, b"late")
    await hostile.put_down()
    assert sink.end == RunEnd(0) and sink.got == []


async def test_silence_ends_the_box(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.engine.hostbox.ANSWER_SECONDS", 0.05)
    await hostile.hello()
    with pytest.raises(BoxGone):
        await hostile.box.settle()
    await hostile.put_down()


async def test_no_greeting_ends_the_box(hostile: Hostile) -> None:
    with pytest.raises(BoxGone, match="hello"):
        await hostile.box.attach(hostile.sock, 0.05)
    await hostile.put_down()


async def test_a_refusal_is_a_refusal(hostile: Hostile) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "errno": 2, "error": "no such file"})
    with pytest.raises(GuestError) as refused:
        await hostile.box.read_file("/x")
    assert refused.value.errno == 2 and not hostile.downs


def _pipe() -> int:
    r, w = os.pipe()
    os.close(w)
    return r


@pytest.mark.parametrize(
    "handed",
    [
        _pipe,
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.memfd_create("x"),
    ],
)
async def test_only_files_of_the_vm_are_taken(hostile: Hostile, handed: Callable[[], int]) -> None:
    """Not a pipe, directory, memory or file of another file system: fstat and statfs tell."""
    await hostile.hello()
    fd = handed()
    hostile.say({"re": 1, "size": 5, "mode": 0o644}, fds=[fd])
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BoxGone):
        await hostile.box.read_file("/x")
    await hostile.put_down()
    for thread in threading.enumerate():
        if thread.name == "strays":
            thread.join(10)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("handed", [_pipe, lambda: os.open("/", os.O_RDONLY), lambda: os.memfd_create("x")])
async def test_of_a_box_with_volumes_files_of_disks_are_taken_too(
    hostile: Hostile, handed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    await hostile.hello()
    hostile.box.mounts.add("a volume's")
    good = os.open(__file__, os.O_RDONLY)
    hostile.say({"re": 1, "size": 5, "mode": 0o644}, fds=[good])
    os.close(good)
    with monkeypatch.context() as patch:  # wherever this file lies
        patch.setattr(hostbox, "filesystem_type", lambda fd: EXT4_MAGIC)
        opened = await hostile.box.read_file("/v/x")
    assert opened.size == os.path.getsize(__file__)
    os.close(opened.fd)
    fd = handed()
    hostile.say({"re": 2, "size": 5, "mode": 0o644}, fds=[fd])
    os.close(fd)
    with pytest.raises(BoxGone):
        await hostile.box.read_file("/v/x")
    await hostile.put_down()


async def test_descriptors_that_nobody_asked_for_are_closed(hostile: Hostile) -> None:
    await hostile.hello()
    sink = await start(hostile)
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open("/etc/passwd", os.O_RDONLY)
    for _ in range(20):
        hostile.say({"ev": "out", "rid": RUN, "stream": 1, "at": len(sink.got)}, b"x", fds=[fd])
        async with asyncio.timeout(10):
            await sink.heard.wait()
        sink.heard.clear()
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before and not hostile.downs


@pytest.mark.parametrize("answered", [True, False])
async def test_a_file_that_nobody_waits_for_any_more_is_closed(hostile: Hostile, answered: bool) -> None:
    """Whoever asked for it may be cancelled when the answer is there already, or before."""
    await hostile.hello()
    before = len(os.listdir("/proc/self/fd"))
    reading = asyncio.ensure_future(hostile.box.read_file("/x"))
    await asyncio.sleep(0)  # asked
    if answered:
        with open("/etc/passwd", "rb") as file:
            hostile.say({"re": 1, "size": 5, "mode": 0o644}, fds=[file.fileno()])
        assert hostile.box._link is not None
        hostile.box._link._readable()
        assert len(os.listdir("/proc/self/fd")) == before + 1
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    if not answered:
        with open("/etc/passwd", "rb") as file:
            hostile.say({"re": 1, "size": 5, "mode": 0o644}, fds=[file.fileno()])
    hostile.say({"re": 2, "runs": 0, "processes": 0})
    await hostile.box.settle()
    assert len(os.listdir("/proc/self/fd")) == before and not hostile.downs


@pytest.mark.parametrize("answer", [{"re": 1}, {"re": 1, "more": True}, {"re": 1, "errno": 2, "error": "no"}])
async def test_an_answer_with_descriptors_ends_the_box(hostile: Hostile, answer: dict[str, Any]) -> None:
    """Nobody takes them, so a hostile agent could fill the server with them."""
    await hostile.hello()
    before = len(os.listdir("/proc/self/fd"))
    with open("/etc/passwd", "rb") as file:
        hostile.say(answer, fds=[file.fileno()] * 3)
    with pytest.raises(BoxGone):
        await hostile.box.manifest("/w")
    await hostile.put_down()
    for thread in threading.enumerate():
        if thread.name == "strays":
            await asyncio.to_thread(thread.join, 10)
    assert len(os.listdir("/proc/self/fd")) < before  # the link is closed too


async def test_a_manifest_that_leads_out_is_refused(hostile: Hostile) -> None:
    await hostile.hello()
    line = b'{"path":"../../etc/shadow","size":1,"mode":33188,"hash":"' + b"a" * 64 + b'"}\n'
    hostile.say({"re": 1, "more": True}, line)
    hostile.say({"re": 1, "root": "/w", "truncated": False})
    with pytest.raises(BoxGone):
        await hostile.box.manifest("/w")
    await hostile.put_down()


GOOD = '{"path":"%s","size":1,"mode":33188,"hash":"' + "a" * 64 + '"}'


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "[]",
        "5",
        "{",
        GOOD % "",
        GOOD % "/etc/passwd",
        GOOD % "a//b",
        GOOD % "a/./b",
        GOOD % "a/",
        GOOD % r"\ud800",
        GOOD % r"a\u0000b",
        GOOD % ("é" * 2100),
        GOOD.replace("33188", "-1") % "a",
        GOOD.replace("aaaa", "AAAA") % "a",
    ],
)
async def test_lines_of_a_manifest_that_make_no_sense_end_the_box(hostile: Hostile, line: str) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "more": True}, (GOOD % "fine").encode() + b"\n")
    hostile.say({"re": 1, "root": "/w", "truncated": False}, line.encode())
    with pytest.raises(BoxGone, match="manifest makes no sense"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


@pytest.mark.parametrize("root", [5, "\ud800", "a\0b", "x" * 5000])
async def test_a_manifest_of_no_directory_ends_the_box(hostile: Hostile, root: object) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "root": root, "truncated": False})
    with pytest.raises(BoxGone, match="manifest makes no sense"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


async def test_a_manifest_without_end_ends_the_box(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.engine.hostbox.MANIFEST_LIMIT", 1000)
    await hostile.hello()
    for _ in range(11):
        hostile.say({"re": 1, "more": True}, b"\n" * 100)
    with pytest.raises(BoxGone, match="without end"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


async def test_greetings_without_end(hostile: Hostile) -> None:
    await hostile.hello()
    hostile.say({"ev": "hello", "runs": [{"rid": "X" * 26, "end": None}]})
    await hostile.put_down()
    assert not hostile.box.known_runs


@pytest.mark.parametrize(
    ("env", "state"), [({}, bytes(4 << 20)), ({"A": "x" * 60_000}, b""), ({f"{n}": "" for n in range(6000)}, b"")]
)
async def test_states_that_nobody_listens_to_yet_take_little_memory(
    hostile: Hostile, env: dict[str, str], state: bytes
) -> None:
    """Neither what is saved nor an environment."""
    await hostile.hello()
    hostile.far.setblocking(True)
    frame = pack({"ev": "state", "sid": SESSION, "cwd": "/", "env": env}, state)

    def pour() -> None:
        try:
            for _ in range((100 << 20) // max(len(state), 40_000)):
                hostile.far.sendall(frame)
        except OSError:
            pass  # cut off

    pouring = asyncio.ensure_future(asyncio.to_thread(pour))
    await hostile.put_down()
    await pouring


async def test_an_agent_that_does_not_listen(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes the server say has no answer and no deadline, so only their number bounds it."""
    monkeypatch.setattr("boxwood.engine.link._MOST_UNREAD", 1000)
    box = await hostile.hello()
    for at in range(10_000):
        box.ack(RUN, at, 0)
    await hostile.put_down()


@pytest.mark.parametrize("programs", [True, False])
async def test_a_program_in_a_box_that_an_older_version_has_made_is_started_by_a_shell(
    hostile: Hostile, programs: bool
) -> None:
    hostile.say({"ev": "hello", "runs": [], "sessions": [], **({"programs": True} if programs else {})})
    await hostile.box.attach(hostile.sock)
    hostile.say({"re": 1})
    spec = RunSpec(RUN, SESSION, b"", argv=(b"echo", b"a b", b"\xff'"))
    await hostile.box.start_run(spec, Sink())
    data = hostile.far.recv(65536)
    size = int.from_bytes(data[:4], "little")
    header, payload = json.loads(data[8 : 8 + size]), data[8 + size :]
    if programs:
        assert (header["argv"], header["env"], payload) == (True, None, b"echo\0a b\0\xff'\0")
    else:  # beside the session's shell
        assert (header["argv"], header["env"], payload) == (False, {}, b"exec echo 'a b' '\xff'\"'\"''")
